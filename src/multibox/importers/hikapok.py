"""HiKapok's SSD.TensorFlow: TensorFlow 1 checkpoints of its SSD300 over VGG16.

Those of its branch AbsoluteCoord look the same and load too; there every corner lies half a pixel of 300 further in.
"""

# pyright: reportUnknownMemberType=false

import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multibox.errors import WeightsError
from multibox.importers.common import VOC, Rules, finish, name_classes, rename
from multibox.models.backbones.vgg import CONVS
from multibox.models.checkpoint import Checkpoint
from multibox.presets import resolve

RULES: Rules = (
    (r"conv4_3_scale/weights", "backbone.norm.scale"),
    *(
        (rf"conv{block}/conv{block}_{number}/(.*)", rf"backbone.features.{place}.\1")
        for block, places in enumerate(CONVS, 1)
        for number, place in enumerate(places, 1)
    ),
    (r"(fc[67])/(.*)", r"backbone.\1.\2"),
    *(
        (rf"additional_layers/conv{i + 8}/conv{i + 8}_{number}/(.*)", rf"backbone.extras.{i}.{place}.\1")
        for i in range(4)
        for number, place in ((1, 0), (2, 2))
    ),
    (r"multibox_head/cls_(\d)/(.*)", r"heads.classification.\1.\2"),
    (r"multibox_head/loc_(\d)/(.*)", r"heads.localization.\1.\2"),
)

SCALE = "conv4_3_scale/weights"
NEEDED = (SCALE, "multibox_head/cls_0/bias", "multibox_head/loc_0/bias")
"""What tells its network, and how many classes and anchors a cell has."""
SCOPE = "ssd300/"
"""Before every name, unless it was trained with another --model_scope."""
TRAINING_STATE = re.compile(r"(.*/)?(Momentum|ExponentialMovingAverage|global_step)")
PARTS = re.compile(r"\.(index|meta|data-\d+-of-\d+)$")
"""Ends of the files of one checkpoint."""


def read(file: Path, class_names: list[str]) -> Checkpoint:
    """Read a checkpoint: its prefix (model.ckpt-120000), one of its files, or a folder, whose latest is taken.

    Raises:
        WeightsError: TensorFlow is not installed, or the checkpoint is broken or of another network.
    """
    return convert(file, read_variables(file), class_names)


def read_variables(file: Path) -> dict[str, Any]:
    """Return every variable of a TensorFlow checkpoint by its name, as an array (text as bytes)."""
    try:
        tensorflow: Any = importlib.import_module("tensorflow")
    except ImportError:
        raise WeightsError(
            f"{file} can only be read through TensorFlow, which is not installed: pip install tensorflow"
        ) from None
    prefix = tensorflow.train.latest_checkpoint(str(file)) if file.is_dir() else PARTS.sub("", str(file))
    if prefix is None:
        raise WeightsError(
            f"{file} has no file `checkpoint` that names one in reach; give a prefix: {file}/model.ckpt-120000"
        )
    try:
        reader = tensorflow.train.load_checkpoint(prefix)
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tensorflow.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"{file} is no readable checkpoint of TensorFlow ({reason}); keep its .index and .data files side by side"
        ) from None


def convert(file: Path, variables: Mapping[str, Any], class_names: list[str]) -> Checkpoint:
    """Return the checkpoint that the variables of `file` make.

    Raises:
        WeightsError: variables are missing, superfluous or of another shape.
    """
    scope = _scope(variables)
    for name in NEEDED:
        if scope + name not in variables:
            found = ", ".join(sorted(variables)[:3]) or "none"
            raise WeightsError(
                f"{file} is no checkpoint of HiKapok's SSD300: expected variables such as {scope}{name}, found {found}"
            )
    logits, coordinates = (len(variables[scope + name]) for name in NEEDED[1:])
    known = name_classes(file, 4 * logits // coordinates - 1, class_names, (VOC,))
    config = resolve("ssd300-vgg16", "hikapok")
    return finish(file, config, known, state_dict(variables), f"HiKapok's SSD.TensorFlow, {file.name}")


def state_dict(variables: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the network's variables under our names and in our order of axes, channels and coordinates.

    Both of its data formats store kernels [h, w, in, out]. What training left beside the weights is dropped; a name of
    the network's scope that no rule knows stays.
    """
    scope = _scope(variables)
    kept = {
        name.removeprefix(scope).replace("/kernel", "/weight"): torch.from_numpy(np.asarray(value))
        for name, value in variables.items()
        if name.startswith(scope) and not TRAINING_STATE.fullmatch(name)
    }
    state = rename(
        {name: value.permute(3, 2, 0, 1) if value.ndim == 4 else value for name, value in kept.items()}, RULES
    )
    for name, value in state.items():
        if name.startswith("heads.localization."):
            # Each anchor's cy, cx, h, w become cx, cy, w, h
            state[name] = value.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        elif name == "backbone.features.0.weight":
            # It eats blue, green, red; the means are in our order already
            state[name] = value.flip(1)
    return state


def _scope(variables: Iterable[str]) -> str:
    # The scale is a bare tf.Variable, so every further GPU makes a copy of it, under a longer name
    scopes = [name.removesuffix(SCALE) for name in variables if name.endswith(f"/{SCALE}") or name == SCALE]
    return min(scopes, key=len, default=SCOPE)
