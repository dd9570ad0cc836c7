"""VOC and COCO metrics of detections; knows no model."""
