"""How good detections are: VOC and COCO figures; takes detections, knows no model."""
