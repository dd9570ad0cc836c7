"""IoU of every anchor with every object of a batch, laid out so that the anchors are contiguous."""

from jaxtyping import Bool, Float
from torch import Tensor

TINY = 1e-37
"""Stands in for an area that is not positive; far below the rounding error of any real one."""


def without_padding(gt_xyxy: Float[Tensor, "b g 4"], gt_valid: Bool[Tensor, "b g"]) -> Float[Tensor, "b g 4"]:
    """Return the objects in float32, with boxes that have no area, and so match nothing, in place of padding."""
    return gt_xyxy.float().masked_fill(~gt_valid[..., None], 0)


def anchor_overlaps(
    anchors_xyxy: Float[Tensor, "a 4"], gt_xyxy: Float[Tensor, "b g 4"], gt_valid: Bool[Tensor, "b g"]
) -> Float[Tensor, "b g a"]:
    """Return the IoU of each object with each anchor, in float32; 0 for rows that are padding and boxes without area.

    The long axis comes last and coordinates are split first: every step and the reductions that follow run over
    contiguous memory.
    """
    anchor_x1, anchor_y1, anchor_x2, anchor_y2 = anchors_xyxy.float().t().contiguous().unbind()
    gt_x1, gt_y1, gt_x2, gt_y2 = without_padding(gt_xyxy, gt_valid).unsqueeze(2).unbind(-1)
    # In place where possible: fresh memory costs more than the arithmetic.
    shared = gt_x2.minimum(anchor_x2).sub_(gt_x1.maximum(anchor_x1)).clamp_(min=0)
    shared.mul_(gt_y2.minimum(anchor_y2).sub_(gt_y1.maximum(anchor_y1)).clamp_(min=0))
    # A box without area shares nothing, so raising its area to TINY only turns 0/0 into 0.
    anchor_areas = ((anchor_x2 - anchor_x1) * (anchor_y2 - anchor_y1)).clamp_(min=TINY)
    gt_areas = ((gt_x2 - gt_x1) * (gt_y2 - gt_y1)).clamp_(min=TINY)
    union = (anchor_areas + gt_areas).sub_(shared)
    return shared.div_(union)
