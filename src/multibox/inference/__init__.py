"""From a file to `Detections`."""
