"""Weights of other code bases, read without them."""
