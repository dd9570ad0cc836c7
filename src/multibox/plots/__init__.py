"""Images with boxes, and curves; takes arrays, knows no model."""
