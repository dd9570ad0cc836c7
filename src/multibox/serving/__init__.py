"""Detectors behind HTTP: images in, detections out, for many clients at once. No torch on exported files."""
