"""Weights of bodies trained elsewhere: which file formats are read, and which layouts are recognised."""

import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from multibox.errors import WeightsError
from multibox.models.backbones.vgg import CONVS

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
