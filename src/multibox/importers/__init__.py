"""Weights of other code bases, read without them."""

from collections.abc import Callable
from pathlib import Path

from multibox.errors import ConfigError, WeightsError, did_you_mean
from multibox.models.checkpoint import Checkpoint, save_checkpoint

Importer = Callable[[Path, list[str]], Checkpoint]


def _mxnet(file: Path, names: list[str]) -> Checkpoint:
    import torch

    from multibox.importers.mxnet import read_params, tinyssd_heads, tinyssd_state_dict
    from multibox.presets import resolve

    state = tinyssd_state_dict(read_params(file), str(file))
    classes, per_cell = tinyssd_heads(state, str(file))
    if set(per_cell) != {4}:
        raise WeightsError(f"{file}: {per_cell} anchors per cell, but TinySSD's sizes and ratios give 4 on every map")
    names = names or [f"class{index}" for index in range(classes)]
    if len(names) != classes:
        raise WeightsError(
            f"{file} was trained for {classes} classes, but --names gives {len(names)}: {', '.join(names)}"
        )
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    return Checkpoint(tensors, resolve("tinyssd", "d2l"), tuple(names), source=f"MXNet parameters {file.name}")


IMPORTERS: dict[str, tuple[Importer, str]] = {
    "mxnet": (_mxnet, "TinySSD of d2l and post B, .params of either name scheme; verified against MXNet 1.9.1"),
}


def import_file(kind: str, file: Path, out: Path, names: list[str], license: str = "") -> str:
    """Convert `file` and write the checkpoint `out`; return a sentence about what was written.

    Raises:
        ConfigError: an unknown kind.
        WeightsError: a file that is not of that kind, or class names that do not fit it.
    """
    if kind not in IMPORTERS:
        raise ConfigError(f"unknown kind {kind!r}{did_you_mean(kind, IMPORTERS)}; known: {', '.join(IMPORTERS)}")
    if not file.is_file():
        raise WeightsError(f"{file} does not exist; give the {kind} weights file")
    checkpoint = IMPORTERS[kind][0](file, names)
    save_checkpoint(
        out, Checkpoint(checkpoint.state, checkpoint.config, checkpoint.names, {}, checkpoint.source, license)
    )
    return f"{out}: {checkpoint.config.preset} for {', '.join(checkpoint.names)}, from {file}"
