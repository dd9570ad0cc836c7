"""Elementwise losses, and the multibox loss that matches, encodes, mines and sums."""

from multibox.losses.elementwise import cross_entropy, focal_loss, l1, l2, sigmoid_focal, smooth_l1
from multibox.losses.multibox_loss import HIKAPOK_RULES, l2_penalty, multibox_loss
from multibox.losses.targets import Targets, make_targets

__all__ = [
    "HIKAPOK_RULES",
    "Targets",
    "cross_entropy",
    "focal_loss",
    "l1",
    "l2",
    "l2_penalty",
    "make_targets",
    "multibox_loss",
    "sigmoid_focal",
    "smooth_l1",
]
