"""GluonCV's SSD over VGG16 at 300 or 512 (`ssd_300_vgg16_atrous_voc` and its kin), as parameters of MXNet.

The file holds the anchors too, as constants: (centre x, centre y, width, height) in pixels, [1, 1, rows, columns, 4 k]
for each feature map, on more cells than the map has. The sizes are read from there, because they differ between the
data sets: at 300, a network for one's own classes has COCO's.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multibox.config import Config
from multibox.errors import WeightsError
from multibox.importers.common import VOC, Rules, class_names, coco_names, finish, rename, require
from multibox.models.anchor_layout import make_anchors
from multibox.models.backbones.vgg import CONVS
from multibox.models.checkpoint import Checkpoint
from multibox.presets import resolve

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

BODY = r"(?:.*_)?vggatrousextractor\d+_"
PREFIXED: Rules = (
    *((rf"{BODY}conv{i}_(.*)", rf"features.stages.{theirs}.\1") for i, (theirs, _) in enumerate(PLACES)),
    (rf"{BODY}dilated_conv0_(.*)", r"features.stages.5.0.\1"),
    (rf"{BODY}dilated_conv1_(.*)", r"features.stages.5.2.\1"),
    (rf"{BODY}extra(\d+)_conv0_(.*)", r"features.extras.\1.0.\2"),
    (rf"{BODY}extra(\d+)_conv1_(.*)", r"features.extras.\1.2.\2"),
    (rf"{BODY}normalize\d+_normalize_scale", "features.norm4.scale"),
    (rf"{BODY}init_scale", "features.init_scale"),
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
    """Tell an SSD of GluonCV, over any body, by the names of its class predictors."""
    return any(re.match(r"class_predictors\.|(?:.*_)?convpredictor\d+_", name) for name in params)


def read(file: Path, params: Mapping[str, NDArray[Any]], names: list[str]) -> Checkpoint:
    """Turn the parameters of `file`, under either kind of names, into a checkpoint.

    Raises:
        WeightsError: another body, another number of maps, unusual anchors, or tensors missing or of another shape.
    """
    state = rename({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in params.items()}, PREFIXED)
    require(state, "features.stages.0.0.weight", file, WHAT)
    levels = 1 + max(_predicted(state), default=-1)
    if levels not in SIDES:
        raise WeightsError(f"{file} predicts on {levels} feature maps, but {WHAT} has 6 or 7; give one of those")
    side = SIDES[levels]
    scale = require(state, "features.init_scale", file, WHAT).double().flatten()
    if len(scale) != 3 or not bool((scale > 0).all()):
        raise WeightsError(f"{file}: features.init_scale is {scale.tolist()}, expected three positive factors of RGB")
    maps = [require(state, f"anchor_generators.{level}.anchors", file, WHAT) for level in range(levels)]
    config = resolve(
        f"ssd{side}-vgg16",
        changes={
            "model.mean": tuple(255 * mean for mean in MEAN),
            # The factors were stored as float32
            "model.std": tuple(round(255 * std / factor, 4) for std, factor in zip(STD, scale.tolist(), strict=True)),
            "post.max_detections": 100,
            **_anchors(file, maps),
        },
    )
    _check_anchors(file, maps, config)
    logits = len(require(state, "class_predictors.0.predictor.bias", file, WHAT)) // FIRST_PER_CELL
    known = class_names(file, logits - 1, names, (VOC, coco_names()))
    return finish(file, config, known, _ours(state), f"GluonCV ssd_{side}_vgg16_atrous, {file.name}")


def _predicted(state: Mapping[str, Tensor]) -> Iterator[int]:
    """Yield the number of the feature map of every tensor of a predictor."""
    for name in state:
        if match := re.match(r"(?:class|box)_predictors\.(\d+)\.", name):
            yield int(match[1])


def _ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trained tensors under our names."""
    trained = {name: value for name, value in state.items() if not name.startswith("anchor_generators.")}
    del trained["features.init_scale"]
    renamed = rename(trained, RULES)
    if "backbone.norm.scale" in renamed:
        renamed["backbone.norm.scale"] = renamed["backbone.norm.scale"].flatten()
    return renamed


def _anchors(file: Path, maps: list[Tensor]) -> dict[str, Any]:
    """Return sizes and steps in pixels from the first cell of each map, whose squares are min and sqrt(min * max)."""
    edges: list[float] = []
    steps: list[float] = []
    low = square = 0.0
    for level, anchors in enumerate(maps):
        if anchors.ndim != 5 or min(anchors.shape[2:4]) < 2 or anchors.shape[4] not in (16, 24):
            raise WeightsError(
                f"{file}: anchor_generators.{level}.anchors has shape {list(anchors.shape)}, expected [1, 1, rows, "
                "columns, 16 or 24] with two rows and columns or more; save the parameters of the whole network again"
            )
        (x, _, low, _), (_, _, square, _) = anchors[0, 0, 0, 0, :8].double().reshape(2, 4).tolist()
        edges.append(round(low, 3))
        steps.append(round(2 * x, 3))
    # A map's max is the next map's min; behind the last one only its square tells
    edges.append(round(square * square / low, 3) if low > 0 else 0.0)
    if min(*edges, *steps) <= 0:
        raise _other_anchors(file)
    return {"anchors.sizes": tuple(pairwise(edges)), "anchors.steps": tuple(steps)}


def _check_anchors(file: Path, maps: list[Tensor], config: Config) -> None:
    """Refuse a file whose anchors the config does not make; the first 2 x 2 cells of each map tell."""
    side = config.model.input_size[0]
    theirs = torch.cat([anchors[0, 0, :2, :2].double().reshape(-1, 4) for anchors in maps]) / side
    half = theirs[:, 2:] / 2
    corners = torch.cat([theirs[:, :2] - half, theirs[:, :2] + half], dim=1)
    ours = make_anchors(config.anchors, ((2, 2),) * len(maps), config.model.input_size).double()
    if ours.shape != corners.shape or not torch.allclose(ours, corners, rtol=0, atol=CLOSE):
        raise _other_anchors(file)


def _other_anchors(file: Path) -> WeightsError:
    return WeightsError(
        f"{file}: its anchors are not those of ratios 1, 2, 1/2, 3, 1/3 over sizes that follow each other from map to "
        f"map, as {WHAT} has them; train with GluonCV's own ratios"
    )
