"""Start from other weights: a detector's, whose class rows are kept by name, or those of a body trained elsewhere."""

import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from multibox.builtin import NO_WEIGHTS, builtin_name, find_model
from multibox.errors import WeightsError
from multibox.models.backbones.vgg import CONVS
from multibox.models.checkpoint import Checkpoint, load_checkpoint, load_config, read_metadata
from multibox.models.ssd import SSD
from multibox.presets import RECIPES, fitting, resolve

State = dict[str, Tensor]


def read_state(path: Path) -> State:
    """Return the tensors of a .safetensors, .npz or PyTorch file by name; nothing in it is executed.

    A dict around the weights (`state_dict`, `model`) and `module.` before names are taken off.

    Raises:
        WeightsError: the file is of another kind or broken.
    """
    try:
        found = _read(path)
    except Exception as error:
        # PyTorch's own sentence advises to unpickle what may be anything
        reason = "no PyTorch file" if isinstance(error, pickle.UnpicklingError) else str(error).partition("\n")[0]
        raise WeightsError(
            f"{path} is not readable as weights ({type(error).__name__}: {reason}); "
            "give .safetensors, .npz or a PyTorch state dict"
        ) from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{path} holds a {type(found).__name__}, expected tensors by name; save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in cast("Mapping[str, Tensor]", found).items()}


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle's protocol, which is no fault of the user's
        return torch.load(path, map_location="cpu", weights_only=True)


def fit_backbone(state: State, own: Mapping[str, Tensor]) -> State:
    """Return those tensors that a network with the tensors `own` can take, under its names.

    Every layout is tried and the one that fits most tensors counts: the network's own names with and without
    `backbone.`, torchvision's VGG16 with its two big layers thinned out, the reduced VGG16 of Caffe and ssd.pytorch.
    """
    candidates = (_fitting(layout(state), own) for layout in LAYOUTS)
    return max(candidates, key=len)


def _fitting(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> State:
    return {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}


def _same(state: State) -> State:
    return state


def _body(state: State) -> State:
    return {f"backbone.{name}": value for name, value in state.items()}


def _timm_body(state: State) -> State:
    # timm flattens names where it only returns features: layers.0 becomes layers_0
    flat = {re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", name): value for name, value in state.items()}
    return {f"backbone.net.{name}": value for name, value in (flat | state).items()}


def _vgg_thinned(state: State) -> State:
    """Make fc6 and fc7 of torchvision's VGG16 convolutions: every 4th channel, and taps 0, 3, 6 of fc6's 7x7."""
    fitted = _body(state)
    fc6, fc7 = state.get("classifier.0.weight"), state.get("classifier.3.weight")
    if fc6 is None or fc7 is None or fc6.shape != (4096, 25088) or fc7.shape != (4096, 4096):
        return {}
    fitted["backbone.fc6.weight"] = fc6.view(4096, 512, 7, 7)[::4, :, ::3, ::3]
    fitted["backbone.fc7.weight"] = fc7.view(4096, 4096, 1, 1)[::4, ::4]
    fitted["backbone.fc6.bias"], fitted["backbone.fc7.bias"] = (state[f"classifier.{i}.bias"][::4] for i in (0, 3))
    return fitted


def _vgg_numbered(state: State) -> State:
    """Rename VGG_ILSVRC_16_layers_fc_reduced as ssd.pytorch numbers it."""
    layers = {f"{index}": f"features.{index}" for index in VGG_CONVS}
    return _renamed(state, layers | {"31": "fc6", "33": "fc7"})


def _vgg_caffe(state: State) -> State:
    """Rename VGG_ILSVRC_16_layers_fc_reduced from Caffe's layer names."""
    layers = {name: f"features.{index}" for name, index in zip(CAFFE_CONVS, VGG_CONVS, strict=True)}
    return _renamed(state, layers | {"fc6": "fc6", "fc7": "fc7"})


def _renamed(state: State, layers: Mapping[str, str]) -> State:
    split = ((name.rpartition("."), value) for name, value in state.items())
    return {f"backbone.{layers[layer]}.{kind}": value for (layer, _, kind), value in split if layer in layers}


VGG_CONVS = [place for block in CONVS for place in block]
CAFFE_CONVS = [f"conv{block}_{i}" for block, places in enumerate(CONVS, 1) for i in range(1, len(places) + 1)]
LAYOUTS: tuple[Callable[[State], State], ...] = (_same, _body, _timm_body, _vgg_thinned, _vgg_numbered, _vgg_caffe)


DEFAULT_PRESET = "multibox-fine"


_SPELLINGS = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}
"""VOC's names of classes that COCO spells otherwise."""


class Taken(NamedTuple):
    """What came of weights."""

    note: str
    """A sentence about what was taken over."""
    known: bool
    """Whether the weights are a detector's that knows every class already."""


def choose_network(
    weights: str | Path | None, preset: str | None, recipe: str = "default"
) -> tuple[str, dict[str, Any]]:
    """Return the preset to use with these weights, and the settings that belong to them.

    A detector of the same preset brings its network, anchors and post-processing: width, input size, mean and fitted
    shapes of its own are what its weights were trained for. Its thresholds stay behind: they are those of its weights
    and classes, and training finds new ones. Its classification loss comes along only where the recipe's would not fit
    its scores. Other weights bring nothing.

    Args:
        weights: a built-in model's name, a file or a run folder to start from; None or "none" starts from nothing.
        preset: what was asked for; None takes the detector's, and without one the recipe's default.
        recipe: what it will be trained by.

    Raises:
        WeightsError: there is no such file.
    """
    config = None if weights in (None, NO_WEIGHTS) else load_config(find_model(weights))
    # The default preset starts from `coco` anyway and keeps all that it knows
    if config is None or (weights == "coco" and preset is None):
        return preset or default_preset(recipe), {}
    if preset not in (None, config.preset):
        return str(preset), {}
    settings = config.to_dict()
    changes = {f"{part}.{key}": value for part in ("model", "anchors", "post") for key, value in settings[part].items()}
    if resolve(config.preset, recipe).model.score != config.model.score:
        changes["loss.classification"] = config.loss.classification
    return config.preset, changes | {"post.thresholds": ()}


def default_preset(recipe: str) -> str:
    """Return the preset of a run that names none: multibox-fine, or the first one that the recipe was made for."""
    fits = fitting(recipe) if recipe in RECIPES else [DEFAULT_PRESET]
    return DEFAULT_PRESET if DEFAULT_PRESET in fits else fits[0]


def load_weights(model: SSD, weights: str | Path, names: tuple[str, ...]) -> Taken:
    """Fill `model` from a detector or from a backbone's weights and say what was taken.

    Args:
        model: the network to fill, in place.
        weights: a built-in model's name, a file or a run folder; "none" leaves the network as it is.
        names: the class names of `model`.

    Raises:
        WeightsError: the file is missing or broken, or nothing in it fits the network.
    """
    if weights == NO_WEIGHTS:
        return Taken("no weights given: every tensor is fresh", known=False)
    path = find_model(weights)
    if read_metadata(path) is not None:
        return _load_detector(model, builtin_name(path) or str(path), load_checkpoint(path), names)
    return _load_body(model, path)


def _load_body(model: SSD, path: Path) -> Taken:
    state, own = read_state(path), model.state_dict()
    kept = fit_backbone(state, own)
    if not kept:
        raise WeightsError(
            f"{path} does not fit this network: expected tensors such as {_some(own)}; found {_some(state)}"
        )
    model.load_state_dict(kept, strict=False)
    body = [name for name in own if name.startswith("backbone.")]
    fresh = sorted({name.removeprefix("backbone.").split(".")[0] for name in body if name not in kept})
    parts = ", ".join(fresh) or "none"
    return Taken(f"{path}: {len(kept)} of the body's {len(body)} tensors taken over; fresh parts: {parts}", known=False)


def _load_detector(model: SSD, where: str, checkpoint: Checkpoint, names: tuple[str, ...]) -> Taken:
    """Copy tensors of equal name and shape; class heads row by row for the classes, by name, that both know."""
    own = model.state_dict()
    background = model.heads.logits - len(names)
    foreign_background = checkpoint.config.model.score == "softmax"
    own_rows = {plain_name(name): row for row, name in enumerate(names)}
    theirs = [plain_name(name) for name in checkpoint.names]
    shared = [(own_rows[name], row) for row, name in enumerate(theirs) if name in own_rows]
    rows = [(0, 0)] if background and foreign_background else []
    rows += [(mine + background, theirs + foreign_background) for mine, theirs in shared]
    logits = len(checkpoint.names) + foreign_background
    ends = {f"heads.{layer}.{kind}" for layer, _ in model.heads.class_layers() for kind in ("weight", "bias")}
    kept: dict[str, Tensor] = {}
    heads = 0
    for name, tensor in checkpoint.state.items():
        if name in ends and _mergeable(own[name], tensor, model.heads.logits, logits):
            kept[name] = _merge_rows(own[name], tensor, rows, model.heads.logits, logits)
            heads += 1
        elif name in own and name not in ends and own[name].shape == tensor.shape:
            kept[name] = tensor
    if not kept:
        raise WeightsError(f"{where}: no tensor fits this network; expected names such as {_some(own)}")
    model.load_state_dict(kept, strict=False)
    known = [names[mine] for mine, _ in shared] if heads else []
    fresh = [name for name in names if name not in known]
    note = (
        f"{where}: {len(kept)} of {len(own)} tensors taken over; class rows kept: {', '.join(known) or 'none'}; "
        f"fresh: {', '.join(fresh) or 'none'}" + ("" if heads else " (the heads have other anchors or channels)")
    )
    return Taken(note, known=bool(heads) and not fresh)


def plain_name(name: str) -> str:
    """Return a class name without case, blanks and signs, VOC's names of COCO's classes as COCO spells them."""
    plain = "".join(letter for letter in name.casefold() if letter.isalnum()) or name
    return _SPELLINGS.get(plain, plain)


def _mergeable(own: Tensor, other: Tensor, mine: int, theirs: int) -> bool:
    return own.shape[1:] == other.shape[1:] and own.shape[0] // mine == other.shape[0] / theirs


def _merge_rows(own: Tensor, other: Tensor, rows: Sequence[tuple[int, int]], mine: int, theirs: int) -> Tensor:
    """Copy class rows between heads whose channels are anchor-major: channel a * K + k."""
    if not rows:
        return own
    merged = own.clone().view(-1, mine, *own.shape[1:])
    source = other.view(-1, theirs, *other.shape[1:])
    to, at = (torch.tensor(column) for column in zip(*rows, strict=True))
    merged[:, to] = source[:, at].to(merged.dtype)
    return merged.view_as(own)


def _some(state: dict[str, Tensor], most: int = 3) -> str:
    return ", ".join(list(state)[:most])
