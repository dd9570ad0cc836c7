"""Every setting, as frozen dataclasses: TOML in and out, `--set section.key=value`, typos answered by name.

Precedence: preset < recipe < `--set`. Values are plain (numbers, strings, booleans, tuples), so a config
is its own text form.
"""

import dataclasses
import json
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar, cast

from multibox.errors import ConfigError, did_you_mean

T = TypeVar("T")
Variances = tuple[float, float, float, float]
SizesPerLevel = tuple[tuple[float, ...], ...]
ShapesPerLevel = tuple[tuple[tuple[float, float], ...], ...]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and how its answers are read."""

    backbone: str = "tinyssd"
    """Name of the body; `multibox list backbones` shows them."""
    input_size: tuple[int, int] = (256, 256)
    """Height and width of the network's input in pixels; pictures are resized to it."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted from RGB values 0 to 255 inside the network."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divides RGB values after the mean was subtracted."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """How logits become scores; softmax heads carry a background class 0."""
    coder: Literal["center_size", "corner", "corner_size"] = "center_size"
    """How offsets describe a box relative to its anchor."""
    variances: Variances = (0.1, 0.1, 0.2, 0.2)
    """Offsets are divided by these when encoded."""
    init: Literal["xavier", "torch"] = "xavier"
    """Initial weights: Glorot uniform with zero biases (MXNet, HiKapok), or PyTorch's own."""
    prior: float = 0.0
    """Initial probability of any object at an anchor, set through the class biases; 0 leaves the biases alone."""


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """The boxes every prediction starts from."""

    style: Literal["mxnet", "caffe", "hikapok", "shapes"] = "mxnet"
    """Which lineage's rule turns sizes and ratios into shapes; `shapes` takes widths and heights as they are."""
    sizes: SizesPerLevel = ()
    """Per feature map: mxnet (size, extra size), caffe (min, max) in pixels, hikapok (extra scale, scale)."""
    ratios: SizesPerLevel = ()
    """Per feature map: aspect ratios w / h."""
    shapes: ShapesPerLevel = ()
    """Per feature map: (width, height) pairs as fractions of the input; used by style `shapes`."""
    steps: tuple[float, ...] = ()
    """Pixels between neighbouring centres, per feature map; without it the input is divided evenly."""
    offset: float = 0.5
    """Where in its cell an anchor is centred; 0.5 is the middle."""
    clip: bool = False
    """Cut anchors at the picture's border; no lineage does."""
    fit: int = 0
    """Anchors per cell to fit to the training boxes before training; 0 keeps the ones given."""


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Which anchors answer for which object."""

    matcher: Literal["bipartite", "dual_max"] = "bipartite"
    """bipartite: best anchor per object, then all above the threshold (Caffe, MXNet); dual_max: HiKapok."""
    threshold: float = 0.5
    """Overlap (IoU) from which an anchor is positive."""
    inclusive: bool = True
    """Whether the threshold itself is positive (Caffe) or not (MXNet)."""
    low: float = 0.5
    """dual_max: below this an anchor is negative; between `low` and `threshold` it is ignored."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What training minimises."""

    classification: Literal["cross_entropy", "focal", "sigmoid_focal"] = "cross_entropy"
    """Loss of the class logits."""
    localization: Literal["smooth_l1", "l1", "l2"] = "smooth_l1"
    """Loss of the offsets of positive anchors."""
    normalizer: Literal["positives", "selected", "anchors"] = "positives"
    """Divide by the positives of the batch (Caffe), by the selected anchors x 1 / (ratio + 1) (HiKapok), or average
    over all anchors of each picture (MXNet)."""
    sigma: float = 1.0
    """smooth_l1: quadratic below 1 / sigma^2."""
    alpha: float = 0.25
    """focal: weight of every class; sigmoid_focal: weight of the object class."""
    gamma: float = 2.0
    """focal: how strongly easy anchors are played down."""
    classification_weight: float = 1.0
    localization_weight: float = 1.0
    negative_ratio: float = 0.0
    """Hard negative mining: negatives per positive in each picture; 0 uses all negatives."""
    negative_overlap: float = 0.5
    """Mining: anchors that overlap an object this much or more are no candidates."""
    minimum_negatives: int = 0
    """Mining: negatives taken from a picture even if it has no object."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the weights are found."""

    epochs: int = 20
    """Passes over the training split; 0 takes as many as `steps` needs."""
    steps: int = 0
    """Optimiser steps when `epochs` is 0."""
    batch_size: int = 32
    lr: float = 0.2
    """Peak learning rate."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.0
    weight_decay: float = 5e-4
    decay_norms_and_biases: bool = True
    """Whether weight decay also shrinks biases and batch-norm parameters, as Gluon does."""
    bias_lr: float = 1.0
    """Learning-rate multiplier of biases; Caffe uses 2."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate falls after the warm-up."""
    warmup: float = 0.0
    """Share of all steps in which the learning rate rises linearly."""
    final_lr: float = 0.0
    """Where cosine ends, as a share of the peak."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    ema: float = 0.0
    """Decay of the running average of the weights; 0 keeps none."""
    augmentation: str = "none"
    """Name of an augmentation recipe."""
    report: Literal["d2l", "default"] = "default"
    """What an epoch prints: d2l prints post B's line every 5 epochs beside it."""
    validate_every: int = 0
    """Epochs between validations; 0 chooses about 20 validations a run."""
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the forward pass; auto takes bfloat16 where the machine multiplies it in hardware."""
    workers: int = -1
    """Processes that prepare pictures; -1 chooses."""


@dataclass(frozen=True, kw_only=True)
class PostConfig:
    """How outputs become detections."""

    score_threshold: float = 0.01
    """Scores at or below this are dropped before suppression."""
    nms_threshold: float = 0.45
    """Of two boxes of one class that overlap more than this, the better stays."""
    pre_nms_topk: int = 400
    """Best boxes per class that enter suppression."""
    max_detections: int = 200
    """Best detections kept per picture."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one run."""

    preset: str = "tinyssd"
    recipe: str = "default"
    model: ModelConfig = field(default_factory=ModelConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    post: PostConfig = field(default_factory=PostConfig)

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with dotted keys replaced: `{"train.lr": 0.1}`. Strings are parsed to the field's type."""
        config = self
        for key, value in changes.items():
            config = _set(config, key, key.split("."), value)
        return config

    def to_toml(self) -> str:
        """Write every setting as TOML, sections in order."""
        lines = [f"preset = {json.dumps(self.preset)}", f"recipe = {json.dumps(self.recipe)}"]
        for section in dataclasses.fields(self):
            values = getattr(self, section.name)
            if dataclasses.is_dataclass(values):
                lines += ["", f"[{section.name}]"]
                # JSON's numbers, strings, booleans and nested lists are TOML's as well
                lines += [f"{f.name} = {json.dumps(getattr(values, f.name))}" for f in dataclasses.fields(values)]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> Self:
        """Build from nested plain values; an unknown key is a `ConfigError` naming its nearest neighbour."""
        flat: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, Mapping):
                section = cast(Mapping[str, Any], value)
                flat.update({f"{key}.{name}": inner for name, inner in section.items()})
            else:
                flat[key] = value
        try:
            return cls().updated(flat)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def from_toml(cls, text: str, where: str = "config") -> Self:
        """Read what `to_toml` wrote, or a part of it."""
        try:
            return cls.from_dict(tomllib.loads(text), where)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{where}: not TOML ({error})") from None


def parse_assignments(assignments: list[str]) -> dict[str, str]:
    """Split `section.key=value` strings as given to `--set`."""
    changes: dict[str, str] = {}
    for text in assignments:
        key, found, value = text.partition("=")
        if not found:
            raise ConfigError(f"--set {text}: expected section.key=value, for example train.lr=0.1")
        changes[key.strip()] = value.strip()
    return changes


def _set(section: T, full_key: str, keys: list[str], value: Any) -> T:
    hints = typing.get_type_hints(type(section))
    if keys[0] not in hints:
        raise ConfigError(f"unknown setting {full_key!r}{did_you_mean(keys[0], hints)}; known: {', '.join(hints)}")
    current = getattr(section, keys[0])
    if dataclasses.is_dataclass(current):
        if len(keys) == 1:
            raise ConfigError(f"{full_key!r} is a section; name a setting in it, such as {full_key}.{_first(current)}")
        new = _set(current, full_key, keys[1:], value)
    elif len(keys) > 1:
        raise ConfigError(f"{'.'.join(keys[:-1])!r} is a setting, not a section, so {full_key!r} does not exist")
    else:
        new = _convert(full_key, hints[keys[0]], value)
    return dataclasses.replace(cast(Any, section), **{keys[0]: new})


def _first(section: Any) -> str:
    return dataclasses.fields(section)[0].name


def _convert(key: str, kind: Any, value: Any) -> Any:
    """Turn a string or JSON value into the field's type, or say what was expected."""
    if isinstance(value, str) and kind is not str and typing.get_origin(kind) is not Literal:
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise ConfigError(f"{key}={value}: expected {_describe(kind)}") from None
    if not _fits(kind, value):
        raise ConfigError(f"{key}={json.dumps(value)}: expected {_describe(kind)}")
    return _freeze(float(value) if kind is float else value)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in cast(list[Any], value)) if isinstance(value, list | tuple) else value


def _fits(kind: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        items = cast(list[Any], value)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_fits(arguments[0], item) for item in items)
        return len(items) == len(arguments) and all(_fits(a, item) for a, item in zip(arguments, items, strict=True))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin is tuple:
        return f"a list such as {'[[0.2, 0.27], [0.37, 0.45]]' if typing.get_origin(arguments[0]) else '[256, 256]'}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, str(kind))
