"""Start from other weights: what network they imply, which tensors fit it, and how their files are read.

Weights are a detector's (a checkpoint, whose class rows are kept by name) or those of a backbone trained elsewhere.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
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

DEFAULT_PRESET = "multibox-fine"
SPELLINGS = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}
"""VOC's names of classes that COCO spells otherwise."""
VGG_CONVS = [place for block in CONVS for place in block]
"""Places of VGG16's convolutions among its `features`."""
CAFFE_CONVS = [f"conv{block}_{i}" for block, places in enumerate(CONVS, 1) for i in range(1, len(places) + 1)]
"""Caffe's names of the same."""


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

    A detector of the same preset brings its network, anchors and post-processing: its width, input size, mean and
    fitted anchors are what its weights were trained for. Its thresholds do not come along, because training finds new
    ones. Its classification loss comes along only where the recipe's would not fit its scores. Other weights bring
    nothing.

    Args:
        weights: a built-in model's name, a file or a run folder to start from; None or "none" starts from nothing.
        preset: what was asked for; None takes the detector's, and without one the recipe's default.
        recipe: what the network will be trained by.

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


def load_weights(model: SSD, weights: str | Path, class_names: tuple[str, ...]) -> Taken:
    """Fill `model` from a detector's or a backbone's weights and say what was taken.

    Args:
        model: the network to fill, in place.
        weights: a built-in model's name, a file or a run folder; "none" leaves the network as it is.
        class_names: those of `model`.

    Raises:
        WeightsError: the file is missing or broken, holds numbers that are not finite, or nothing in it fits the
            network.
    """
    if weights == NO_WEIGHTS:
        return Taken("no weights given: every tensor is fresh", known=False)
    path = find_model(weights)
    if read_metadata(path) is not None:
        taken = _load_detector(model, builtin_name(path) or str(path), load_checkpoint(path), class_names)
    else:
        taken = _load_backbone(model, path)
    _refuse_damaged(model, path)
    return taken


def _refuse_damaged(model: SSD, path: Path) -> None:
    for name, tensor in model.state_dict().items():
        if odd := int((~torch.isfinite(tensor)).sum()):
            raise WeightsError(
                f"{path} is damaged: {odd} values of {name} are not finite; give the file of an earlier save, or a "
                "built-in model"
            )


def _load_detector(model: SSD, where: str, checkpoint: Checkpoint, class_names: tuple[str, ...]) -> Taken:
    """Copy tensors of equal name and shape; class heads row by row, for the classes that both know by name."""
    own = model.state_dict()
    logits = model.heads.logits
    background, their_background = logits - len(class_names), int(checkpoint.config.model.score == "softmax")
    own_rows = {plain_name(name): row for row, name in enumerate(class_names)}
    their_rows = [(plain_name(name), row) for row, name in enumerate(checkpoint.class_names)]
    shared = [(own_rows[name], row) for name, row in their_rows if name in own_rows]
    rows = [(0, 0)] if background and their_background else []
    rows += [(ours + background, theirs + their_background) for ours, theirs in shared]
    their_logits = len(checkpoint.class_names) + their_background
    ends = {f"heads.{layer}.{kind}" for layer, _ in model.heads.class_layers() for kind in ("weight", "bias")}
    kept: State = {}
    heads = 0
    for name, tensor in checkpoint.state.items():
        if name in ends and _same_anchors(own[name], tensor, logits, their_logits):
            kept[name] = _merge_rows(own[name], tensor, rows, logits, their_logits)
            heads += 1
        elif name in own and name not in ends and own[name].shape == tensor.shape:
            kept[name] = tensor
    if not kept:
        raise WeightsError(f"{where}: no tensor fits this network; expected names such as {some_names(own)}")
    model.load_state_dict(kept, strict=False)
    known = [class_names[ours] for ours, _ in shared] if heads else []
    fresh = [name for name in class_names if name not in known]
    note = (
        f"{where}: {len(kept)} of {len(own)} tensors taken over; class rows kept: {', '.join(known) or 'none'}; "
        f"fresh: {', '.join(fresh) or 'none'}" + ("" if heads else " (the heads have other anchors or channels)")
    )
    return Taken(note, known=bool(heads) and not fresh)


def plain_name(name: str) -> str:
    """Return a class name without case, blanks and signs, and VOC's names of COCO's classes as COCO spells them."""
    plain = "".join(letter for letter in name.casefold() if letter.isalnum()) or name
    return SPELLINGS.get(plain, plain)


def _same_anchors(own: Tensor, other: Tensor, logits: int, their_logits: int) -> bool:
    return own.shape[1:] == other.shape[1:] and own.shape[0] // logits == other.shape[0] / their_logits


def _merge_rows(own: Tensor, other: Tensor, rows: Sequence[tuple[int, int]], logits: int, their_logits: int) -> Tensor:
    """Copy class rows (to, from) between heads whose channels are anchor-major: channel a * K + k."""
    merged = own.clone().view(-1, logits, *own.shape[1:])
    source = other.view(-1, their_logits, *other.shape[1:])
    for to, at in rows:
        merged[:, to] = source[:, at]
    return merged.view_as(own)


def _load_backbone(model: SSD, path: Path) -> Taken:
    state, own = read_state(path), model.state_dict()
    kept = fit_backbone(state, own)
    if not kept:
        raise WeightsError(
            f"{path} does not fit this network: expected tensors such as {some_names(own)}; found {some_names(state)}"
        )
    model.load_state_dict(kept, strict=False)
    names = [name for name in own if name.startswith("backbone.")]
    fresh = sorted({name.split(".")[1] for name in names if name not in kept})
    note = f"{path}: {len(kept)} of the backbone's {len(names)} tensors taken over; fresh parts: "
    return Taken(note + (", ".join(fresh) or "none"), known=False)


def fit_backbone(state: State, own: Mapping[str, Tensor]) -> State:
    """Return those tensors that a network with the tensors `own` can take, under its names.

    Every layout is tried and the one that fits most tensors counts: the network's own names with and without
    `backbone.`, timm's, torchvision's VGG16 with its two big layers thinned out, and the reduced VGG16 of Caffe and
    ssd.pytorch.
    """
    plain = {f"backbone.{name}": value for name, value in state.items()}
    # timm flattens names where it only returns features: layers.0 becomes layers_0
    flat = {re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", name): value for name, value in state.items()}
    timm = {f"backbone.net.{name}": value for name, value in (flat | state).items()}
    layouts = (state, plain, timm, plain | _thinned(state), _reduced(state))
    fitting_tensors = (
        {name: value for name, value in layout.items() if name in own and own[name].shape == value.shape}
        for layout in layouts
    )
    return max(fitting_tensors, key=len)


def _thinned(state: State) -> State:
    """Make fc6 and fc7 of torchvision's VGG16 convolutions: every 4th channel, and taps 0, 3, 6 of fc6's 7x7."""
    fc6, fc7 = state.get("classifier.0.weight"), state.get("classifier.3.weight")
    if fc6 is None or fc7 is None or fc6.shape != (4096, 25088) or fc7.shape != (4096, 4096):
        return {}
    return {
        "backbone.fc6.weight": fc6.view(4096, 512, 7, 7)[::4, :, ::3, ::3],
        "backbone.fc7.weight": fc7.view(4096, 4096, 1, 1)[::4, ::4],
        "backbone.fc6.bias": state["classifier.0.bias"][::4],
        "backbone.fc7.bias": state["classifier.3.bias"][::4],
    }


def _reduced(state: State) -> State:
    """Rename VGG_ILSVRC_16_layers_fc_reduced from Caffe's layer names, or from ssd.pytorch's numbers."""
    layers = {str(place): f"features.{place}" for place in VGG_CONVS} | {"31": "fc6", "33": "fc7"}
    layers |= {name: f"features.{place}" for name, place in zip(CAFFE_CONVS, VGG_CONVS, strict=True)}
    layers |= {"fc6": "fc6", "fc7": "fc7"}
    split = ((name.rpartition("."), value) for name, value in state.items())
    return {f"backbone.{layers[layer]}.{kind}": value for (layer, _, kind), value in split if layer in layers}


def read_state(path: Path) -> State:
    """Return the tensors of a .safetensors, .npz or PyTorch file by name; nothing in it is executed.

    A dict around the weights (`state_dict`, `model`) and `module.` before names are taken off.

    Raises:
        WeightsError: the file is of another kind or broken.
    """
    try:
        content = _read(path)
    except Exception as error:
        # PyTorch's own sentence advises to unpickle what may be anything
        reason = "no PyTorch file" if isinstance(error, pickle.UnpicklingError) else str(error).partition("\n")[0]
        raise WeightsError(
            f"{path} is not readable as weights ({type(error).__name__}: {reason}); "
            "give .safetensors, .npz or a PyTorch state dict"
        ) from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    kind = type(cast(object, content)).__name__
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds a {kind}, expected tensors by name; save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in cast("Mapping[str, Tensor]", content).items()}


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Notes on pickle's protocol, which is not the user's choice
        return torch.load(path, map_location="cpu", weights_only=True)


def some_names(names: Iterable[str], most: int = 3) -> str:
    """Return the first names in a line, for messages."""
    listed = list(names)
    return ", ".join(listed[:most]) + (" ..." if len(listed) > most else "")
