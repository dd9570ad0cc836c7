"""What importers share: renaming tensors, naming classes, and checking the result against the network."""

# pyright: reportMissingTypeStubs=false

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import SSD300_VGG16_Weights

from multibox.config import Config
from multibox.errors import WeightsError
from multibox.models.build import build_model
from multibox.models.checkpoint import Checkpoint
from multibox.models.weights import some_names

# fmt: off
VOC = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
       "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
# fmt: on
"""The classes of PASCAL VOC, in alphabetical order, as everyone numbers them."""

Rules = Sequence[tuple[str, str]]
"""Regular expressions and what they become, tried in order on a whole name; the first that fits counts."""


class Importer(NamedTuple):
    """One kind of foreign weights."""

    read: Callable[[Path, list[str]], Checkpoint]
    """From a file and class names (none: the importer's own) to a checkpoint."""
    what: str
    """What it reads."""
    verified: str
    """Foreign numbers that its result was compared with; empty where there are none."""


def coco_names(gaps: bool = False) -> list[str]:
    """Return the names of COCO's 80 classes, or of its 90 numbers, where unused ones get a name of their own."""
    listed: Sequence[str] = SSD300_VGG16_Weights.COCO_V1.meta["categories"][1:]
    if not gaps:
        return [name for name in listed if name != "N/A"]
    return [f"unused {index}" if name == "N/A" else name for index, name in enumerate(listed, 1)]


def name_classes(file: Path, count: int, given: Sequence[str], known: Sequence[Sequence[str]] = ()) -> tuple[str, ...]:
    """Return the names given, or the list among `known` that has `count` entries, or class0, class1 ...

    Raises:
        WeightsError: names were given, but not as many as the weights have classes.
    """
    if given and len(given) != count:
        raise WeightsError(
            f"{file} was trained for {count} classes, but --names gives {len(given)}: {', '.join(given)}"
        )
    fitting = next((listed for listed in known if len(listed) == count), None)
    return tuple(given or fitting or (f"class{index}" for index in range(count)))


def rename(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Return the tensors under our names; a name that no rule knows stays as it is, for `finish` to report."""
    return {_renamed(name, rules): value for name, value in state.items()}


def _renamed(name: str, rules: Rules) -> str:
    for pattern, ours in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return name


def require(state: Mapping[str, Tensor], name: str, file: Path, what: str) -> Tensor:
    """Return a tensor by its foreign name.

    Raises:
        WeightsError: it is missing, so the file is not `what` was expected.
    """
    if name not in state:
        raise WeightsError(f"{file} is not {what}: expected tensors such as {name}, found {some_names(state)}")
    return state[name]


def finish(
    file: Path, config: Config, class_names: Sequence[str], state: Mapping[str, Tensor], source: str, license: str = ""
) -> Checkpoint:
    """Check the renamed tensors against the network that `config` describes and return the checkpoint.

    Raises:
        WeightsError: tensors are missing, superfluous or of another shape.
    """
    with torch.device("meta"):
        wanted = build_model(config, len(class_names)).state_dict()
    filled = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    # Most frameworks do not count the batches of a batch norm
    filled |= {
        name: torch.zeros((), dtype=torch.long)
        for name in wanted.keys() - filled.keys()
        if name.endswith("num_batches_tracked")
    }
    missing, extra = sorted(wanted.keys() - filled.keys()), sorted(filled.keys() - wanted.keys())
    if missing or extra:
        lacks = f"lacks {len(missing)} tensors of {config.preset} ({some_names(missing)})" if missing else ""
        has = f"has {len(extra)} that it does not know ({some_names(extra)})" if extra else ""
        raise WeightsError(f"{file} {' and '.join(filter(None, (lacks, has)))}; is it another network of this kind?")
    for name, value in wanted.items():
        if filled[name].shape != value.shape:
            raise WeightsError(
                f"{file}: {name} has shape {list(filled[name].shape)}, expected {list(value.shape)} for "
                f"{config.preset} with {len(class_names)} classes"
            )
    return Checkpoint(
        {name: filled[name].contiguous() for name in wanted}, config, tuple(class_names), {}, source, license
    )
