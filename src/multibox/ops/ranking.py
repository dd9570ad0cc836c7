"""Best first, the same on every machine: orders in which equal scores go by number."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_BITS = 32
_MASK = (1 << _BITS) - 1
_NOBODY = torch.iinfo(torch.long).min


def best_first(
    scores: Float[Tensor, "r n"], wanted: Bool[Tensor, "r n"], limit: int
) -> tuple[Int[Tensor, "r k"], Bool[Tensor, "r k"]]:
    """Return the columns of each row's `limit` highest wanted scores, the lower of equal ones first, and which exist.

    `topk` leaves the order of equal values open, so it is given integers of score and column: float32 order like their
    bits, once those of negative numbers are turned round.
    """
    columns = scores.shape[1]
    # Adding 0 makes one zero of the two.
    bits = (scores.float() + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    reverse = _MASK - torch.arange(columns, device=scores.device)
    keys = ((bits.long() << _BITS) | reverse).masked_fill_(~wanted, _NOBODY)
    keys = keys.topk(limit, dim=1).values if limit < columns else keys.sort(dim=1, descending=True).values
    present = keys != _NOBODY
    return (_MASK - (keys & _MASK)).masked_fill_(~present, 0), present
