"""The algorithm as pure tensor functions: boxes, anchors, matching, coding, mining, suppression."""

from multibox.ops.anchors import (
    caffe_shapes,
    caffe_sizes,
    extra_scales,
    grid_anchors,
    hikapok_shapes,
    linear_scales,
    mxnet_shapes,
)
from multibox.ops.boxes import (
    box_area,
    clip_boxes,
    cxcywh_to_xyxy,
    flip_boxes,
    paired_iou,
    pairwise_iou,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from multibox.ops.coding import decode, encode
from multibox.ops.matching import IGNORED, NEGATIVE, Assignment, MatchInputs, match_bipartite, match_dual_max
from multibox.ops.mining import mine_hard_negatives, negative_candidates
from multibox.ops.mxnet import multibox_detection, multibox_prior, multibox_target
from multibox.ops.nms import nms

__all__ = [
    "IGNORED",
    "NEGATIVE",
    "Assignment",
    "MatchInputs",
    "box_area",
    "caffe_shapes",
    "caffe_sizes",
    "clip_boxes",
    "cxcywh_to_xyxy",
    "decode",
    "encode",
    "extra_scales",
    "flip_boxes",
    "grid_anchors",
    "hikapok_shapes",
    "linear_scales",
    "match_bipartite",
    "match_dual_max",
    "mine_hard_negatives",
    "multibox_detection",
    "multibox_prior",
    "multibox_target",
    "mxnet_shapes",
    "negative_candidates",
    "nms",
    "paired_iou",
    "pairwise_iou",
    "xywh_to_xyxy",
    "xyxy_to_cxcywh",
    "xyxy_to_xywh",
]
