"""GluonCV's SSD over VGG16 at 300 or 512 (`ssd_300_vgg16_atrous_voc` and its kin), as parameters of MXNet.

The file holds the anchors too, as constants: (centre x, centre y, width, height) in pixels, [1, 1, rows, columns, 4 k]
for each feature map, on more cells than the map has. The sizes are read from there, because they differ between the
data sets: at 300, a network for one's own classes has COCO's.
"""

# pyright: reportUnknownMemberType=false

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multibox.config import Config
from multibox.errors import WeightsError
from multibox.importers.common import VOC, Rules, coco_names, finish, name_classes, rename, require
from multibox.models.anchor_layout import make_anchors
from multibox.models.backbones.vgg import CONVS
from multibox.models.checkpoint import Checkpoint
from multibox.presets import resolve
from multibox.structures import Size

WHAT = "GluonCV's SSD over VGG16 at 300 or 512"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's RGB values, 0 to 1; GluonCV takes the deviation back inside the network (`init_scale`)."""
SIDES = {6: 300, 7: 512}
"""Input side by the number of feature maps."""
FIRST_PER_CELL = 4
"""Anchors in a cell of the first map."""
CLOSE = 1e-5
"""How far anchors may be from the file's, as a fraction of the input."""

# GluonCV counts afresh in every stage of VGG, torchvision (and we) through pools and ReLUs
PLACES = tuple((f"{stage}.{2 * i}", ours) for stage, listed in enumerate(CONVS) for i, ours in enumerate(listed))
RULES: Rules = (
    *((rf"features\.stages\.{re.escape(theirs)}\.(.*)", rf"backbone.features.{ours}.\1") for theirs, ours in PLACES),
    (r"features\.stages\.5\.0\.(.*)", r"backbone.fc6.\1"),
    (r"features\.stages\.5\.2\.(.*)", r"backbone.fc7.\1"),
    (r"features\.norm4\.scale", "backbone.norm.scale"),
    (r"features\.(extras\..*)", r"backbone.\1"),
    (r"class_predictors\.(\d+)\.predictor\.(.*)", r"heads.classification.\1.\2"),
    (r"box_predictors\.(\d+)\.predictor\.(.*)", r"heads.localization.\1.\2"),
)
BACKBONE = r"(?:.*_)?vggatrousextractor\d+_"
PREFIXED: Rules = (
    *((rf"{BACKBONE}conv{i}_(.*)", rf"features.stages.{theirs}.\1") for i, (theirs, _) in enumerate(PLACES)),
    (rf"{BACKBONE}dilated_conv0_(.*)", r"features.stages.5.0.\1"),
    (rf"{BACKBONE}dilated_conv1_(.*)", r"features.stages.5.2.\1"),
    (rf"{BACKBONE}extra(\d+)_conv0_(.*)", r"features.extras.\1.0.\2"),
    (rf"{BACKBONE}extra(\d+)_conv1_(.*)", r"features.extras.\1.2.\2"),
    (rf"{BACKBONE}normalize\d+_normalize_scale", "features.norm4.scale"),
    (rf"{BACKBONE}init_scale", "features.init_scale"),
    (r"(?:.*_)?ssdanchorgenerator\d+_anchor_(\d+)", r"anchor_generators.\1.anchors"),
    # The two predictors of a map are created one after the other
    *(
        (rf"(?:.*_)?convpredictor{2 * level + place}_conv0_(.*)", rf"{kind}_predictors.{level}.predictor.\1")
        for level in range(max(SIDES))
        for place, kind in enumerate(("class", "box"))
    ),
)
"""From names of `collect_params().save`, `export` and `save_params` to those of `save_parameters`."""


def is_ssd(params: Mapping[str, Any]) -> bool:
    """Return whether these are parameters of an SSD of GluonCV, over any backbone."""
    return any(re.match(r"class_predictors\.|(?:.*_)?convpredictor\d+_", name) for name in params)


def convert(file: Path, params: Mapping[str, NDArray[Any]], class_names: list[str]) -> Checkpoint:
    """Return the checkpoint that the parameters of `file`, under either kind of names, make.

    Raises:
        WeightsError: another backbone, another number of maps, unusual anchors, or tensors missing or of another shape.
    """
    state = rename({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in params.items()}, PREFIXED)
    require(state, "features.stages.0.0.weight", file, WHAT)
    predictors = (re.match(r"(?:class|box)_predictors\.(\d+)\.", name) for name in state)
    levels = 1 + max((int(match[1]) for match in predictors if match), default=-1)
    if levels not in SIDES:
        raise WeightsError(f"{file} predicts on {levels} feature maps, but {WHAT} has 6 or 7; give one of those")
    scale = cast("list[float]", require(state, "features.init_scale", file, WHAT).double().flatten().tolist())
    if len(scale) != 3 or not all(factor > 0 for factor in scale):
        raise WeightsError(f"{file}: features.init_scale is {scale}, expected three positive factors of RGB")
    maps = [require(state, f"anchor_generators.{level}.anchors", file, WHAT) for level in range(levels)]
    sizes, steps = _sizes_and_steps(file, maps)
    changes = {
        "model.mean": tuple(255 * mean for mean in MEAN),
        # The factors were stored as float32
        "model.std": tuple(round(255 * std / factor, 4) for std, factor in zip(STD, scale, strict=True)),
        "anchors.sizes": sizes,
        "anchors.steps": steps,
        "post.max_detections": 100,
    }
    config = resolve(f"ssd{SIDES[levels]}-vgg16", changes=changes)
    _check_anchors(file, maps, config)
    logits = len(require(state, "class_predictors.0.predictor.bias", file, WHAT)) // FIRST_PER_CELL
    classes = name_classes(file, logits - 1, class_names, (VOC, coco_names()))
    kept = {name: value for name, value in state.items() if not name.startswith("anchor_generators.")}
    del kept["features.init_scale"]
    trained = rename(kept, RULES)
    if "backbone.norm.scale" in trained:
        trained["backbone.norm.scale"] = trained["backbone.norm.scale"].flatten()
    return finish(file, config, classes, trained, f"GluonCV ssd_{SIDES[levels]}_vgg16_atrous, {file.name}")


def _sizes_and_steps(file: Path, maps: list[Tensor]) -> tuple[tuple[tuple[float, float], ...], tuple[float, ...]]:
    """Return both in pixels from the first cell of each map, whose squares are min and sqrt(min * max)."""
    edges: list[float] = []
    steps: list[float] = []
    low = square = 0.0
    for level, anchors in enumerate(maps):
        if anchors.ndim != 5 or min(anchors.shape[2:4]) < 2 or anchors.shape[4] not in (16, 24):
            raise WeightsError(
                f"{file}: anchor_generators.{level}.anchors has shape {list(anchors.shape)}, expected [1, 1, rows, "
                "columns, 16 or 24] with two rows and columns or more; save the parameters of the whole network again"
            )
        x, _, low, _, _, _, square, _ = cast("list[float]", anchors[0, 0, 0, 0, :8].double().tolist())
        edges.append(round(low, 3))
        steps.append(round(2 * x, 3))
    # A map's max is the next map's min; after the last one only its square tells
    edges.append(round(square * square / low, 3) if low > 0 else 0.0)
    if min(*edges, *steps) <= 0:
        raise _other_anchors(file)
    return tuple(pairwise(edges)), tuple(steps)


def _check_anchors(file: Path, maps: list[Tensor], config: Config) -> None:
    """Refuse a file whose anchors the config does not make; the first 2 x 2 cells of each map tell."""
    side = config.model.input_size.height
    center, size = torch.cat([anchors[0, 0, :2, :2].double().reshape(-1, 2, 2) for anchors in maps]).unbind(1)
    corners = torch.cat([center - size / 2, center + size / 2], dim=1) / side
    ours = make_anchors(config.anchors, (Size(2, 2),) * len(maps), config.model.input_size).double()
    if ours.shape != corners.shape or not torch.allclose(ours, corners, rtol=0, atol=CLOSE):
        raise _other_anchors(file)


def _other_anchors(file: Path) -> WeightsError:
    return WeightsError(
        f"{file}: its anchors are not those of ratios 1, 2, 1/2, 3, 1/3 over sizes that follow each other from map to "
        f"map, as {WHAT} has them; train with GluonCV's own ratios"
    )
