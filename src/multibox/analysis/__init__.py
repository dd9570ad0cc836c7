"""Why it works or fails: anchors against boxes, and what later joins them."""
