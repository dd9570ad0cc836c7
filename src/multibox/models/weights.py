"""Start from the weights of another detector: rows of classes that both know are kept by name."""

from pathlib import Path

import torch
from torch import Tensor

from multibox.errors import WeightsError
from multibox.models.checkpoint import load_checkpoint
from multibox.models.ssd import SSD


def load_weights(model: SSD, path: Path, names: tuple[str, ...]) -> str:
    """Fill `model` from a checkpoint and return a sentence about what was kept.

    Tensors whose name and shape agree are copied. Class heads are copied row by row for the classes, found by name,
    that both know; other classes keep their fresh rows.

    Raises:
        WeightsError: nothing in the file fits the network.
    """
    checkpoint = load_checkpoint(path)
    own = model.state_dict()
    offset = model.heads.logits - len(names)
    shared = [(names.index(name), i) for i, name in enumerate(checkpoint.names) if name in names]
    rows = [(k, k) for k in range(offset)] + [(mine + offset, theirs + offset) for mine, theirs in shared]
    kept: dict[str, Tensor] = {}
    for name, tensor in checkpoint.state.items():
        if name not in own:
            continue
        if name.startswith("heads.classification."):
            kept[name] = _merge_rows(own[name], tensor, rows, model.heads.logits, len(checkpoint.names) + offset)
        elif own[name].shape == tensor.shape:
            kept[name] = tensor
    if not kept:
        raise WeightsError(f"{path}: no tensor fits this network; expected names such as {next(iter(own))}")
    model.load_state_dict(kept, strict=False)
    known = [names[mine] for mine, _ in shared]
    fresh = [name for name in names if name not in known]
    return (
        f"{path}: {len(kept)} of {len(own)} tensors taken over; class rows kept: {', '.join(known) or 'none'}; "
        f"fresh: {', '.join(fresh) or 'none'}"
    )


def _merge_rows(own: Tensor, other: Tensor, rows: list[tuple[int, int]], mine: int, theirs: int) -> Tensor:
    """Copy class rows between heads whose channels are anchor-major: channel a * K + k."""
    if own.shape[1:] != other.shape[1:] or own.shape[0] // mine != other.shape[0] // theirs:
        return own
    merged = own.clone().view(-1, mine, *own.shape[1:])
    source = other.view(-1, theirs, *other.shape[1:])
    to, at = (torch.tensor(column) for column in zip(*rows, strict=True))
    merged[:, to] = source[:, at].to(merged.dtype)
    return merged.view_as(own)
