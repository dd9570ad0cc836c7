"""Online hard example mining: the anchors of highest loss, positive or not, are all that is learnt from."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multibox.ops.ranking import best_first


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
