"""One safetensors file that holds a detector whole: weights, config, class names, metrics, source."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from multibox.builtin import EXPECTED
from multibox.config import Config, migrate_settings
from multibox.errors import WeightsError
from multibox.files import write_bytes_whole
from multibox.models.anchor_layout import anchors_hash

FORMAT_VERSION = 3
SCALE, ZERO_POINT = ".scale", ".zero_point"
"""Ends of the names of two tensors beside an 8-bit one, whose value is (stored - zero point) * scale."""
_KNOWN = {"format_version", "config", "names", "anchors_hash", "metrics", "source", "license", "merge", "statistics"}


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights says."""

    state: Mapping[str, Tensor]
    config: Config
    class_names: tuple[str, ...]
    """Without background."""
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    """With the command that measured them."""
    source: str = ""
    """Where the weights come from."""
    license: str = ""
    merge: tuple[str, ...] = ()
    """Rules by which the run joined classes, such as `car=truck,bus`."""
    statistics: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of the images that the run learned from, and of what was found in validation (`analysis.drift`)."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint whole or not at all, through a power cut as well."""
    metadata = {
        "format_version": FORMAT_VERSION,
        "config": checkpoint.config.to_dict(),
        "names": list(checkpoint.class_names),
        "anchors_hash": anchors_hash(checkpoint.config),
        "metrics": checkpoint.metrics,
        "source": checkpoint.source,
        "license": checkpoint.license,
        # Older versions do not know these entries
        **({"merge": list(checkpoint.merge)} if checkpoint.merge else {}),
        **({"statistics": checkpoint.statistics} if checkpoint.statistics else {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.state.items()}
    write_bytes_whole(path, save(tensors, {"multibox": json.dumps(metadata)}), durable=True)


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Return what a file of ours says of itself, without reading its weights; None for any other file."""
    try:
        with cast(Any, safe_open(path, framework="pt")) as file:
            return _metadata(file)
    except (SafetensorError, OSError):
        return None


def load_config(path: Path) -> Config | None:
    """Return the config in a file of ours, None for any other file."""
    values = read_metadata(path)
    return None if values is None else _parse(path, values, {}).config


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that `save_checkpoint` wrote; 8-bit weights become float32.

    Raises:
        WeightsError: the file is missing, broken, foreign, or of a newer version.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; expected a .safetensors file or a run folder")
    try:
        with cast(Any, safe_open(path, framework="pt")) as file:
            values = _metadata(file)
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        if isinstance(error, SafetensorError) and path.suffix != ".safetensors":
            raise WeightsError(f"{path} is no model; expected {EXPECTED}") from None
        raise WeightsError(f"{path} is not a readable safetensors file ({error}); was it copied whole?") from None
    if values is None:
        raise WeightsError(f"{path} holds weights but no multibox config; bring it over with `multibox import`")
    for name in [name for name, value in state.items() if value.dtype == torch.uint8 and name + SCALE in state]:
        state[name] = (state[name].float() - state.pop(name + ZERO_POINT).float()) * state.pop(name + SCALE)
    return _parse(path, values, state)


def _metadata(file: Any) -> dict[str, Any] | None:
    metadata: dict[str, str] = file.metadata() or {}
    text = metadata.get("multibox")
    return None if text is None else json.loads(text)


def _parse(path: Path, values: dict[str, Any], state: dict[str, Tensor]) -> Checkpoint:
    version = values.get("format_version")
    if version == 1:
        # One switch decayed biases and batch norms together
        train = values["config"]["train"]
        train["bias_decay"] = train["norm_decay"] = float(train.pop("decay_norms_and_biases"))
    if version in (1, 2):
        migrate_settings(values["config"], str(path), resume=False)
    elif version != FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format version {version}, this multibox reads {FORMAT_VERSION}; update multibox to open it"
        )
    unknown = sorted(values.keys() - _KNOWN)
    if unknown:
        raise WeightsError(f"{path} carries unknown entries ({', '.join(unknown)}); update multibox to open it")
    config = Config.from_dict(values["config"], str(path))
    if values["anchors_hash"] != anchors_hash(config):
        raise WeightsError(f"{path}: this version makes other anchors from its config; its detections would be wrong")
    return Checkpoint(
        state,
        config,
        tuple(values["names"]),
        values["metrics"],
        values["source"],
        values["license"],
        tuple(values.get("merge", ())),
        values.get("statistics", {}),
    )
