"""The algorithm as pure tensor functions: boxes, anchors, matching, coding, mining, suppression."""

from multibox.ops.anchors import caffe_shapes, grid_anchors, hikapok_shapes, mxnet_shapes, pair_shapes
from multibox.ops.boxes import box_area, paired_iou, pairwise_iou
from multibox.ops.coding import decode, encode
from multibox.ops.matching import IGNORED, NEGATIVE, Assignment, MatchInputs, match_bipartite, match_dual_max
from multibox.ops.matching_dynamic import match_atss, match_simota, match_task_aligned
from multibox.ops.mining import mine_hard_negatives, mine_ohem
from multibox.ops.mxnet import multibox_detection, multibox_prior, multibox_target
from multibox.ops.nms import nms

__all__ = [
    "IGNORED",
    "NEGATIVE",
    "Assignment",
    "MatchInputs",
    "box_area",
    "caffe_shapes",
    "decode",
    "encode",
    "grid_anchors",
    "hikapok_shapes",
    "match_atss",
    "match_bipartite",
    "match_dual_max",
    "match_simota",
    "match_task_aligned",
    "mine_hard_negatives",
    "mine_ohem",
    "multibox_detection",
    "multibox_prior",
    "multibox_target",
    "mxnet_shapes",
    "nms",
    "pair_shapes",
    "paired_iou",
    "pairwise_iou",
]
