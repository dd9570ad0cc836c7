"""Losses of whole boxes instead of their offsets: 1 - GIoU, 1 - DIoU and 1 - CIoU.

They are thin on `ops.boxes.paired_iou`. torchvision's losses of the same names will not do: its CIoU is NaN for boxes
without width and height, and all three pick the boxes that overlap by a mask, at which a GPU makes the host wait.
Otherwise they differ by the 1e-7 that torchvision adds to areas and squared diagonals: by 2e-7 for boxes of half the
unit and larger, by 3e-6 for a tenth of it, by 6e-5 for a hundredth.
"""

from jaxtyping import Float
from torch import Tensor

from multibox.ops.boxes import paired_iou


def giou_loss(predicted_xyxy: Float[Tensor, "*shape 4"], gt_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape"]:
    """Return 1 - GIoU of each pair, 0 to 2 (arXiv:1902.09630): boxes apart are drawn together by the box round both."""
    return 1 - paired_iou(predicted_xyxy, gt_xyxy, "giou")


def diou_loss(predicted_xyxy: Float[Tensor, "*shape 4"], gt_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape"]:
    """Return 1 - DIoU of each pair, 0 to 2 (arXiv:1911.08287): boxes apart are drawn together by their centres."""
    return 1 - paired_iou(predicted_xyxy, gt_xyxy, "diou")


def ciou_loss(predicted_xyxy: Float[Tensor, "*shape 4"], gt_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape"]:
    """Return 1 - CIoU of each pair, 0 to 2.5 (arXiv:1911.08287): DIoU's loss plus a term of the aspect ratios.

    The term's weight alpha is a constant to the gradient, as in the paper. Its gradient grows with one over the size of
    the predicted box; that with respect to offsets, of whose exponential the size is made, stays below one.
    """
    return 1 - paired_iou(predicted_xyxy, gt_xyxy, "ciou")
