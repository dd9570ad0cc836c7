"""Videos, streams and cameras through a detector: reading, tracking, drawing and writing. Needs the extra `video`."""
