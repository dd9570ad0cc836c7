"""Every setting, as frozen dataclasses: TOML in and out, `--set section.key=value`, typos answered by name.

Precedence: preset < recipe < `--set`. Values are plain (numbers, strings, booleans, tuples), so a config
is its own text form.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast

from multibox.errors import ConfigError
from multibox.settings import AutoFloat, AutoInt, replace_setting

Variances = tuple[float, float, float, float]
SizesPerLevel = tuple[tuple[float, ...], ...]
ShapesPerLevel = tuple[tuple[tuple[float, float], ...], ...]

SIGMOID_LOSSES = ("sigmoid_cross_entropy", "sigmoid_focal", "quality_focal", "varifocal")
"""Classification losses of heads without a background logit."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and how its answers are read."""

    backbone: str = "tinyssd"
    """Name of the body; `multibox list backbones` shows them, and timm:NAME takes one of timm's."""
    width: float = 1.0
    """Multiplier of the body's channels, where the lineage has one (MobileNet)."""
    heads: Literal["conv3x3", "conv1x1", "ssdlite", "rfb"] = "conv3x3"
    """How feature maps become logits and offsets: one convolution, or a depthwise and a 1x1 one (ssdlite, rfb)."""
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
    init: Literal["xavier", "kaiming", "torch"] = "xavier"
    """Initial weights: Glorot uniform with zero biases (Caffe, MXNet, HiKapok), the same with He normal in the body, or
    as PyTorch's modules come."""
    prior: float = 0.0
    """Initial probability of any object at an anchor, set through the class biases; 0 leaves the biases alone."""


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """The boxes every prediction starts from."""

    style: Literal["mxnet", "caffe", "hikapok", "pairs", "shapes"] = "mxnet"
    """Which lineage's rule turns sizes and ratios into shapes; `pairs` gives each anchor a size and a ratio
    (TensorFlow), `shapes` takes widths and heights as they are."""
    sizes: SizesPerLevel = ()
    """Per feature map: mxnet (size, extra size) as fractions of the input's height, caffe (min, max) in pixels of
    `design_size`, hikapok (extra scale, scale) and pairs (a size an anchor) as fractions of its shorter side."""
    ratios: SizesPerLevel = ()
    """Per feature map: aspect ratios w / h; caffe's without 1 and without the flipped ones."""
    shapes: ShapesPerLevel = ()
    """Per feature map: (width, height) pairs as fractions of the input; used by style `shapes`."""
    design_size: int = 0
    """Side of the square input, in pixels, for which caffe's sizes and the steps were chosen. At other inputs sizes
    follow the shorter side and the centres divide the input evenly."""
    steps: tuple[float, ...] = ()
    """Pixels between neighbouring centres, per feature map, at `design_size`; without it the input is divided
    evenly."""
    offset: float = 0.5
    """Where in its cell an anchor is centred; 0.5 is the middle."""
    clip: bool = False
    """Cut anchors at the picture's border; no lineage does."""
    clip_shapes: bool = False
    """Make anchors no wider and no higher than the input (torchvision, ssd.pytorch, Linzaer)."""
    clip_centers: bool = False
    """Pull centres that the steps put beyond the input onto its border (ssd.pytorch, lufficc, qfgaohao)."""
    fit: int = 0
    """Anchors per cell to fit to the training boxes before training; 0 keeps the ones given."""


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Which anchors answer for which object."""

    matcher: Literal["bipartite", "dual_max", "atss", "simota", "task_aligned"] = "bipartite"
    """bipartite: best anchor per object, then all above the threshold (Caffe, MXNet); dual_max: HiKapok; atss, simota
    and task_aligned find thresholds of their own, the last two by what the network answers."""
    threshold: float = 0.5
    """Overlap (IoU) from which an anchor is positive."""
    inclusive: bool = True
    """Whether the threshold itself is positive (Caffe) or not (MXNet)."""
    low: float = 0.5
    """dual_max: below this an anchor is negative; between `low` and `threshold` it is ignored."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What training minimises."""

    classification: Literal[
        "cross_entropy", "focal", "sigmoid_cross_entropy", "sigmoid_focal", "quality_focal", "varifocal"
    ] = "cross_entropy"
    """Loss of the class logits; all but the first two belong to models with `score = sigmoid`, and the last two learn
    how well a box is placed as its score."""
    localization: Literal["smooth_l1", "l1", "l2", "giou", "diou", "ciou"] = "smooth_l1"
    """Loss of the offsets of positive anchors, or of the boxes they stand for (giou, diou, ciou)."""
    normalizer: Literal["positives", "pictures", "selected", "anchors"] = "positives"
    """Divide by the positives of the batch (Caffe), by those of each picture and average over pictures (NVIDIA), by the
    selected anchors x 1 / (ratio + 1) (HiKapok), or average over all anchors of each picture (MXNet)."""
    sigma: float = 1.0
    """smooth_l1: quadratic below 1 / sigma^2."""
    alpha: float = 0.25
    """focal: weight of every class; sigmoid_focal: weight of the object class. varifocal keeps its paper's 0.75."""
    gamma: float = 2.0
    """Both focal losses, quality_focal and varifocal: how strongly easy anchors are played down."""
    classification_weight: float = 1.0
    localization_weight: float = 1.0
    negative_ratio: float = 0.0
    """Hard negative mining: negatives per positive in each picture; 0 uses all negatives."""
    negative_overlap: float = 0.5
    """Mining: anchors that overlap an object this much or more are no candidates."""
    minimum_negatives: int = 0
    """Mining: negatives taken from a picture even if it has no object."""
    hard_examples: int = 0
    """Online hard example mining instead: so many anchors of highest loss, positive or not, a picture; 0 is off."""
    l2_penalty: float = 0.0
    """Weight decay as a term of the loss, batch norms left out and the scale of conv4_3 at a tenth (HiKapok)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the weights are found."""

    epochs: int = 20
    """Passes over the training split; 0 takes as many as `steps` needs."""
    steps: int = 0
    """Optimiser steps when `epochs` is 0."""
    batch_size: AutoInt = 32
    """Pictures a step; auto (0) takes as many as fit into memory: a power of two, at most 32 (CPU) or 128 (GPU) and at
    most a quarter of the training pictures."""
    lr: AutoFloat = 0.2
    """Peak learning rate; auto (0) finds it by a range test of at most 60 steps before the run."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.0
    """Of sgd."""
    weight_decay: float = 5e-4
    """Through the gradient in sgd, apart from it in adamw."""
    bias_decay: float = 1.0
    """Multiplier of the weight decay for the convolutions' biases; Gluon decays them in full, Caffe not at all."""
    norm_decay: float = 1.0
    """Multiplier of the weight decay for the parameters of batch norms and for the scale of conv4_3."""
    backbone_lr: float = 1.0
    """Learning-rate multiplier of the body."""
    head_lr: float = 1.0
    """Learning-rate multiplier of the heads."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameter names that do not learn, such as backbone.*; frozen batch norms keep their statistics."""
    freeze_until: float = 1.0
    """Share of the run during which `freeze` holds; afterwards everything learns."""
    bias_lr: float = 1.0
    """Learning-rate multiplier of biases; Caffe uses 2."""
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    """How the learning rate falls after the warm-up."""
    boundaries: tuple[int, ...] = ()
    """steps: the first step, counted from 0, of every factor but the first; `--epochs` stretches or shrinks them."""
    factors: tuple[float, ...] = ()
    """steps: shares of the peak, one more than boundaries."""
    minimum_lr: float = 0.0
    """steps: the learning rate never falls below."""
    warmup: float = 0.0
    """Share of all steps in which the learning rate rises linearly."""
    warmup_steps: int = 0
    """Most steps of the warm-up, however long the run is; 0 sets no limit."""
    final_lr: float = 0.0
    """Where cosine ends, as a share of the peak."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    ema: float = 0.0
    """Decay of the running average of the weights; 0 keeps none."""
    augmentation: str = "none"
    """Name of an augmentation recipe."""
    mix_until: float = 0.85
    """Share of the run's epochs in which recipes that mix pictures do so; the last epochs see pictures as they are."""
    scales: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest scale of the input while training; each step draws one, rounded to 32 pixels."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """uniform: each picture once an epoch; balanced: those of rare classes more often, in as many steps."""
    difficult: Literal["keep", "drop"] = "keep"
    """Whether objects marked difficult are learnt (Caffe on VOC) or left out (HiKapok, Caffe on COCO)."""
    report: Literal["d2l", "default"] = "default"
    """What an epoch prints: d2l prints post B's line every 5 epochs beside it."""
    validate_every: int = 0
    """Epochs between validations; 0 chooses about 20 validations a run."""
    patience: int = 0
    """Validations without a better mAP@0.5 after which the run ends; 0 never ends it early. The schedule is not
    shortened, so such a run ends before its learning rate has fallen."""
    seed: int = 0
    """Of the initial weights, the order of the pictures, their augmentation and the sizes of `scales`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the forward pass; auto takes bfloat16 where the machine multiplies it in hardware."""
    workers: int = -1
    """Processes that prepare pictures; -1 chooses."""


@dataclass(frozen=True, kw_only=True)
class PostConfig:
    """How outputs become detections."""

    score_threshold: float = 0.01
    """Scores at or below this are dropped before suppression."""
    thresholds: tuple[float, ...] = ()
    """For each class the lowest score that `predict` reports unless told; validation during training finds them, where
    F1 is best, and saves them with the weights. Empty is 0.3 for every class."""
    nms_threshold: float = 0.45
    """Of two boxes of one class that overlap more than this, the better stays."""
    nms_inclusive: bool = False
    """Whether an overlap that equals `nms_threshold` is enough (MXNet, NVIDIA) or not (Caffe)."""
    pre_nms_topk: int = 400
    """Best boxes per class that enter suppression."""
    max_detections: int = 200
    """Best detections kept per picture."""
    max_per_class: int = 0
    """Best detections of each class kept per picture, before `max_detections` (HiKapok); 0 sets no limit."""
    min_size: float = 0.0
    """Boxes no wider or no higher than this share of the picture are dropped before suppression (HiKapok)."""
    clip: Literal["before_nms", "after_nms"] = "after_nms"
    """When boxes are cut at the picture's border: before suppression (torchvision, HiKapok) or after it (Caffe)."""
    multi_label: bool = True
    """Whether an anchor may answer for several classes (Caffe) or only for its best one (MXNet, TF Lite)."""
    flip: bool = False
    """Average the answers for a picture and its mirror image, at twice the time (prediction and evaluation; not the
    validations of a run)."""


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
            config = replace_setting(config, key, value)
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
