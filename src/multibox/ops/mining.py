"""Hard negative mining: which unmatched anchors take part in the classification loss (SSD paper, section 2.2)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.ops.boxes import Number, at_least_float32
from multibox.ops.nms import best_first
from multibox.ops.rows import may_read


def mine_hard_negatives(
    background_loss: Float[Tensor, "b a"],
    positive: Bool[Tensor, "b a"],
    candidate: Bool[Tensor, "b a"],
    ratio: Number = 3.0,
    minimum: int = 0,
) -> Bool[Tensor, "b a"]:
    """Choose, in each image, the candidates that look least like background.

    An image with P positives gets min(max(int(ratio * P), minimum), candidates) negatives: those of highest
    `background_loss`, of equal ones the first. SSD.TensorFlow takes all that tie with the last one instead. Nothing
    here makes the host wait for a GPU.

    Args:
        background_loss: -ln of the background's probability; no gradient flows through it.
        positive: Matched anchors.
        candidate: Anchors that may become negatives. Caffe and MXNet: unmatched, and below an IoU of 0.5 with every
            object. SSD.TensorFlow: whatever its matcher called background.
        ratio: Negatives per positive.
        minimum: Negatives taken from an image even if it has no object. Caffe and MXNet take none (0).
    """
    scores = at_least_float32(background_loss.detach()).masked_fill(~candidate, float("-inf"))
    wanted = (positive.sum(dim=1, keepdim=True) * ratio).long().clamp(min=minimum)
    wanted = torch.minimum(wanted, candidate.sum(dim=1, keepdim=True))
    threshold = _ranked(scores, wanted).gather(1, (wanted - 1).clamp(min=0))
    above = scores > threshold
    level = scores == threshold
    # The lowest score taken may be shared: the places that `above` leaves go to the first anchors of that score.
    room = wanted - above.sum(dim=1, keepdim=True)
    return above | (level & (level.cumsum(dim=1, dtype=torch.int32) <= room))


def _ranked(scores: Float[Tensor, "b a"], wanted: Int[Tensor, "b 1"]) -> Float[Tensor, "b top"]:
    # A CPU knows at once how many are wanted, and topk for few of many is ten times as fast as sorting. On a GPU,
    # asking would stall it and sorting is cheap.
    if may_read(scores):
        return scores.topk(max(1, int(wanted.max())), dim=1).values
    return scores.sort(dim=1, descending=True).values


def mine_ohem(
    loss: Float[Tensor, "b a"], positive: Bool[Tensor, "b a"], candidate: Bool[Tensor, "b a"], keep: int = 64
) -> Bool[Tensor, "b a"]:
    """Choose, in each image, the `keep` anchors of highest loss, positive or not (Caffe's `HARD_EXAMPLE`).

    Exactly min(keep, positives + candidates) of them, of equal ones the first; Caffe, whose `sample_size` is 64, leaves
    the order of equal ones open. Images without objects give `keep` background anchors. Losses are compared in float32.
    Nothing here makes the host wait for a GPU. Unlike in Caffe, anchors are never thinned by NMS before.

    A positive that is not chosen takes part in neither loss, not as background either, and does not count in the
    normaliser; the caller sees to that.

    Args:
        loss: The classification loss of each anchor's own label plus, of positives, the localisation loss summed over
            the four offsets, both unweighted; no gradient flows through it.
        positive: Matched anchors.
        candidate: Every unmatched anchor that is not ignored, however much it overlaps an object.
        keep: Anchors per image.
    """
    eligible = positive | candidate
    columns, _ = best_first(loss.detach(), eligible, keep)
    # Places that an image cannot fill name column 0. All its eligible anchors are chosen then, so this adds none.
    return torch.zeros_like(eligible).scatter(1, columns, True) & eligible
