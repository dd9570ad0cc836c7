"""Hard negative mining: which unmatched anchors take part in the classification loss (SSD paper, section 2.2)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multibox.ops.boxes import Number, at_least_float32
from multibox.ops.nms import best_first


def negative_candidates(
    matched: Bool[Tensor, "b a"], best_overlap: Float[Tensor, "b a"], negative_overlap: Number = 0.5
) -> Bool[Tensor, "b a"]:
    """Return the anchors that may serve as negatives: unmatched, and below `negative_overlap` with every object.

    Caffe's and MXNet's rule (0.5 in both); HiKapok takes whatever its matcher called background instead. An anchor
    that overlaps an object more and is still unmatched takes no part in the classification loss.
    """
    return ~matched & (best_overlap < negative_overlap)


def mine_hard_negatives(
    background_loss: Float[Tensor, "b a"],
    positive: Bool[Tensor, "b a"],
    candidate: Bool[Tensor, "b a"],
    ratio: Number = 3.0,
    minimum: int = 0,
) -> Bool[Tensor, "b a"]:
    """Choose, in each image, the candidates that look least like background.

    An image with P positives gets min(max(int(ratio * P), minimum), candidates) negatives: those of the highest
    `background_loss` (-ln of the background's probability; pass it detached), of equal ones the first. Exactly as
    many as asked for, while HiKapok takes all that tie with the last. `minimum` lets images without objects teach
    something; Caffe and MXNet take none from them (0). Nothing here makes the host wait for a GPU.

    What may become a negative is the caller's decision::

        candidate = negative_candidates(assignment >= 0, best_overlap, negative_overlap=0.5)
        negative = mine_hard_negatives(loss, assignment >= 0, candidate)
    """
    scores = at_least_float32(background_loss.detach()).masked_fill(~candidate, float("-inf"))
    wanted = (positive.sum(dim=1, keepdim=True) * ratio).long().clamp(min=minimum)
    wanted = torch.minimum(wanted, candidate.sum(dim=1, keepdim=True))
    threshold = _ranked(scores, wanted).gather(1, (wanted - 1).clamp(min=0))
    above = scores > threshold
    level = scores == threshold
    # The k-th highest score may be shared: what `above` leaves open goes to the first anchors of that score.
    room = wanted - above.sum(dim=1, keepdim=True)
    return above | (level & (level.cumsum(dim=1, dtype=torch.int32) <= room))


def _ranked(scores: Float[Tensor, "b a"], wanted: Int[Tensor, "b 1"]) -> Float[Tensor, "b top"]:
    # How many are wanted is known to a CPU at once, and few of many are found ten times faster than by sorting. On a
    # GPU, asking would stall it and sorting is cheap.
    if scores.device.type == "cpu":
        return scores.topk(max(1, int(wanted.max())), dim=1).values
    return scores.sort(dim=1, descending=True).values


def mine_ohem(
    loss: Float[Tensor, "b a"], positive: Bool[Tensor, "b a"], candidate: Bool[Tensor, "b a"], keep: int = 64
) -> Bool[Tensor, "b a"]:
    """Choose, in each image, the `keep` anchors of highest loss among positives and candidates (Caffe's HARD_EXAMPLE).

    Exactly min(keep, positives + candidates) of them, of equal ones the first; in Caffe, whose `sample_size` is 64,
    equal ones go in any order. Where images have no objects, `keep` background anchors are learnt. Losses are compared
    in float32. Nothing here makes the host wait for a GPU.

    Caffe's loss is the classification loss of the anchor's own label plus, of positives, the localisation loss summed
    over the four offsets, both unweighted; no gradient is taken through the choice. Every unmatched anchor is a
    candidate, also one that overlaps an object by more than mining negatives allows; leave out ignored anchors only.
    Caffe can thin the anchors by NMS before choosing; that is not done here.

    A positive that is not chosen is demoted: it takes part in neither loss, not as background either, and does not
    count in the normaliser. It is for the caller to use the choice in all three places::

        chosen = mine_ohem(loss, labels > 0, labels == 0)
        positive, negative = chosen & (labels > 0), chosen & (labels == 0)
    """
    eligible = positive | candidate
    columns, _ = best_first(loss.detach(), eligible, keep)
    # Places that an image cannot fill name column 0. There all eligible anchors are chosen, so that it changes nothing.
    return torch.zeros_like(eligible).scatter(1, columns, True) & eligible
