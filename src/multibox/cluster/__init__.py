"""Prediction on a Ray cluster: images from folders, lists, Parquet and tars to Parquet, each block once. No torch."""
