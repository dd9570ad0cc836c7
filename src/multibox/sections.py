"""Every setting with its type, range and meaning, one struct per section of `config.toml`.

Words such as "none", "auto" and "all" stand in place of a number. `multibox list settings` and docs/settings.md print
this schema.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from multibox.settings import read_colour
from multibox.structures import Size

Variances = tuple[float, float, float, float]
SizesPerLevel = tuple[tuple[float, ...], ...]
ShapesPerLevel = tuple[tuple[tuple[float, float], ...], ...]

SIGMOID_LOSSES = ("sigmoid_cross_entropy", "sigmoid_focal", "quality_focal", "varifocal")
"""Classification losses of heads without a background logit."""


def means(text: str, such_as: object = None, **extra: object) -> Meta:
    """Return a setting's meaning, with an example for a list and the extras of `multibox.settings.Setting`."""
    return Meta(description=text, examples=None if such_as is None else [such_as], extra=dict(extra) or None)


Name = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
ShareBelowOne = Annotated[float, Meta(ge=0, lt=1)]
InnerShare = Annotated[float, Meta(gt=0, lt=1)]
Side = Annotated[int, Meta(ge=16, le=8192)]
Level = Annotated[float, Meta(ge=-1000, le=1000)]
Shade = Annotated[float, Meta(ge=0, le=255)]
Divisor = Annotated[float, Meta(ge=1e-6)]
Scale = Annotated[float, Meta(gt=0, le=4)]
Numbers = tuple[tuple[Positive, ...], ...]
Shapes = tuple[tuple[tuple[Positive, Positive], ...], ...]
Merge = Annotated[str, Meta(pattern=r"^[^=]+=[^=]+$")]


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network and how its outputs are read."""

    backbone: Annotated[
        Name,
        means("Name of the backbone. timm:NAME takes one of timm's.", expected="a name of `multibox list backbones`"),
    ] = "tinyssd"
    width: Annotated[
        Scale, means("Multiplier of the backbone's channels, for backbones that have one (MobileNet).")
    ] = 1.0
    heads: Annotated[
        Literal["conv3x3", "conv1x1", "ssdlite", "rfb"],
        means("Layers of a head: one convolution, or a depthwise and a 1x1 convolution (ssdlite, rfb)."),
    ] = "conv3x3"
    input_size: Annotated[
        Size,
        means(
            "Height and width of the network's input in pixels. Images are resized to it.",
            such_as=(256, 256),
            checked_as=tuple[Side, Side],
        ),
    ] = Size(256, 256)
    mean: Annotated[
        tuple[Level, Level, Level],
        means("Subtracted from RGB values 0 to 255 inside the network.", such_as=(127.5, 127.5, 127.5)),
    ] = (127.5, 127.5, 127.5)
    std: Annotated[
        tuple[Divisor, Divisor, Divisor],
        means("Divides RGB values after the mean is subtracted.", such_as=(127.5, 127.5, 127.5)),
    ] = (127.5, 127.5, 127.5)
    background: Annotated[
        tuple[Shade, Shade, Shade],
        means(
            "Colour that shows through transparent pixels, in training and in prediction. `--background` sets it.",
            such_as=(255, 255, 255),
            expected="a colour, such as white or #808080, or three numbers from 0 to 255, such as [128, 128, 128]",
            read_as=read_colour,
        ),
    ] = (255, 255, 255)
    score: Annotated[
        Literal["softmax", "sigmoid"], means("How logits become scores. Softmax heads carry a background class 0.")
    ] = "softmax"
    coder: Annotated[
        Literal["center_size", "corner", "corner_size"], means("How offsets describe a box relative to its anchor.")
    ] = "center_size"
    variances: Annotated[
        tuple[Positive, Positive, Positive, Positive],
        means("Offsets are divided by these when encoded.", such_as=(0.1, 0.1, 0.2, 0.2)),
    ] = (0.1, 0.1, 0.2, 0.2)
    init: Annotated[
        Literal["xavier", "kaiming", "torch"],
        means(
            "Initial weights: Glorot uniform with zero biases (Caffe, MXNet, HiKapok), the same with He normal in "
            "the backbone, or PyTorch's own."
        ),
    ] = "xavier"
    prior: Annotated[
        InnerShare | Literal["none"],
        means("Initial probability of any object at an anchor, set in the class biases; none leaves them alone."),
    ] = "none"


class AnchorConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The boxes every prediction starts from."""

    style: Annotated[
        Literal["mxnet", "caffe", "hikapok", "pairs", "shapes"],
        means(
            "Rule that turns sizes and ratios into shapes. `pairs` gives each anchor one size and one ratio "
            "(TensorFlow); `shapes` takes widths and heights as they are."
        ),
    ] = "mxnet"
    sizes: Annotated[
        Numbers,
        means(
            "Per feature map. mxnet: (size, extra size) as fractions of the input's height. caffe: (min, max) in "
            "pixels of `design_size`. hikapok: (extra scale, scale), and pairs: one size per anchor, as fractions of"
            " the input's shorter side.",
            such_as=((0.1, 0.2), (0.4, 0.5)),
        ),
    ] = ((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961))
    ratios: Annotated[
        Numbers,
        means(
            "Per feature map: aspect ratios w / h. Caffe's are given without 1 and without the flipped ones.",
            such_as=((1.0, 2.0, 0.5), (1.0, 2.0, 0.5)),
        ),
    ] = ((1.0, 2.0, 0.5),) * 5
    shapes: Annotated[
        Shapes,
        means(
            "Per feature map: (width, height) pairs as fractions of the input. Used by style `shapes`.",
            such_as=(((0.1, 0.2), (0.2, 0.1)),),
        ),
    ] = ()
    design_size: Annotated[
        Count | Literal["none"],
        means(
            "Side in pixels of the square input for which caffe's sizes and the steps were chosen. At any other input "
            "sizes follow the shorter side, and the steps are not used: the centres divide the input evenly. none "
            "takes both as pixels of the input itself."
        ),
    ] = "none"
    steps: Annotated[
        tuple[Positive, ...],
        means(
            "Pixels between neighbouring centres, per feature map. Used at `design_size` only. An empty list divides "
            "the input evenly.",
            such_as=(8, 16, 32, 64, 100, 300),
        ),
    ] = ()
    offset: Annotated[Share, means("Where in its cell an anchor is centred; 0.5 is the middle.")] = 0.5
    clip: Annotated[bool, means("Cut anchors at the image's border.")] = False
    clip_shapes: Annotated[
        bool, means("Make anchors no wider and no higher than the input (torchvision, ssd.pytorch, Linzaer).")
    ] = False
    clip_centers: Annotated[
        bool,
        means("Pull centres that the steps put beyond the input onto its border (ssd.pytorch, lufficc, qfgaohao)."),
    ] = False
    fit: Annotated[
        Annotated[int, Meta(ge=1, le=32)] | Literal["none"],
        means("Anchors per cell to fit to the training boxes before training; none keeps the ones given."),
    ] = "none"


class MatchingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which anchor learns which object."""

    matcher: Annotated[
        Literal["bipartite", "dual_max", "atss", "simota", "task_aligned"],
        means(
            "bipartite: the best anchor of each object, then all above the threshold (Caffe, MXNet). dual_max: "
            "HiKapok. atss, simota and task_aligned find their own thresholds; the last two use the network's "
            "outputs."
        ),
    ] = "bipartite"
    threshold: Annotated[
        Annotated[float, Meta(gt=0, le=1)], means("Overlap (IoU) from which an anchor is positive.")
    ] = 0.5
    inclusive: Annotated[
        bool, means("Whether an overlap equal to the threshold is positive (Caffe) or not (MXNet).")
    ] = True
    low: Annotated[
        Share, means("dual_max: an anchor below this overlap is negative; between `low` and `threshold` it is ignored.")
    ] = 0.5


class LossConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What training minimises."""

    classification: Annotated[
        Literal["cross_entropy", "focal", "sigmoid_cross_entropy", "sigmoid_focal", "quality_focal", "varifocal"],
        means(
            "Loss of the class logits. All but the first two need `model.score=sigmoid`. The last two learn the "
            "quality of the box as its score."
        ),
    ] = "cross_entropy"
    localization: Annotated[
        Literal["smooth_l1", "l1", "l2", "giou", "diou", "ciou"],
        means("Loss of the offsets of positive anchors, or of their decoded boxes (giou, diou, ciou)."),
    ] = "smooth_l1"
    normalizer: Annotated[
        Literal["positives", "images", "selected", "anchors"],
        means(
            "Divide by the positives of the batch (Caffe), by those of each image and average over images (NVIDIA), "
            "by the selected anchors x 1 / (ratio + 1) (HiKapok), or average over all anchors of each image (MXNet).",
            formerly="pictures",
            now="images",
        ),
    ] = "positives"
    sigma: Annotated[Positive, means("smooth_l1: quadratic below 1 / sigma^2.")] = 1.0
    alpha: Annotated[
        Share,
        means("focal: weight of every class. sigmoid_focal: of the object class. varifocal keeps its paper's 0.75."),
    ] = 0.25
    gamma: Annotated[
        NotNegative,
        means("Both focal losses, quality_focal and varifocal: how strongly easy anchors are weighted down."),
    ] = 2.0
    classification_weight: Annotated[NotNegative, means("Factor of the classification loss.")] = 1.0
    localization_weight: Annotated[NotNegative, means("Factor of the localization loss.")] = 1.0
    negative_ratio: Annotated[
        Positive | Literal["all"],
        means("Hard negative mining: negatives per positive in each image; all uses every negative."),
    ] = "all"
    negative_overlap: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | Literal["any"],
        means("Mining: anchors with this IoU or more are no candidates; any takes every unmatched anchor."),
    ] = 0.5
    minimum_negatives: Annotated[
        Annotated[int, Meta(ge=0)],
        means("Mining: negatives taken from an image even if it has no object; 0 learns nothing from it."),
    ] = 0
    hard_examples: Annotated[
        Count | Literal["none"],
        means("Online hard example mining instead: this many anchors of highest loss per image; none is off."),
    ] = "none"
    l2_penalty: Annotated[
        NotNegative,
        means("Weight decay in the loss, without batch norms, and a tenth for conv4_3's scale (HiKapok)."),
    ] = 0.0


class PostConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How outputs become detections."""

    score_threshold: Annotated[ShareBelowOne, means("Scores at or below this are dropped before suppression.")] = 0.01
    thresholds: Annotated[
        tuple[Share, ...],
        means(
            "Per class the lowest score that `predict` reports by default. Validation during training finds those "
            "with the best F1. An empty list is 0.3 for every class.",
            such_as=(0.3, 0.4),
        ),
    ] = ()
    nms_threshold: Annotated[
        Share, means("Of two boxes of one class that overlap more than this, the better one is kept.")
    ] = 0.45
    nms_inclusive: Annotated[
        bool, means("Whether an overlap equal to `nms_threshold` suppresses (MXNet, NVIDIA) or not (Caffe).")
    ] = False
    pre_nms_topk: Annotated[Count, means("Best boxes per class that enter suppression.")] = 400
    max_detections: Annotated[Count, means("Best detections kept per image.")] = 200
    max_per_class: Annotated[
        Count | Literal["none"],
        means("Best detections kept per class and image, before `max_detections` (HiKapok); none sets no limit."),
    ] = "none"
    min_size: Annotated[
        ShareBelowOne,
        means("Boxes no wider or no higher than this share of the image are dropped before suppression (HiKapok)."),
    ] = 0.0
    clip: Annotated[
        Literal["before_nms", "after_nms"],
        means("When boxes are cut at the border: before suppression (torchvision, HiKapok) or after it (Caffe)."),
    ] = "after_nms"
    multi_label: Annotated[
        bool,
        means("Whether an anchor may give several classes (Caffe) or only its best one (MXNet, TF Lite)."),
    ] = True
    flip: Annotated[
        bool,
        means("Average the outputs for an image and its mirror image, at twice the time. A run's validations do not."),
    ] = False


class DataConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Data of the run. The section stands in config.toml and never in a checkpoint."""

    path: Annotated[
        tuple[Name, ...],
        means(
            "Folders or files of the data, joined by class name.",
            expected="paths separated by commas, or a list of texts",
        ),
    ] = ()
    format: Annotated[
        Name, means("Format of the data. auto recognises it.", expected="auto, or a name of `multibox list formats`")
    ] = "auto"
    train_split: Annotated[
        Name, means("Split to learn from. auto takes the one named train.", expected="auto, or the name of a split")
    ] = "auto"
    val_split: Annotated[
        Name,
        means(
            "Split to validate on. auto takes val or holds out a tenth of the training images; none does not validate.",
            expected="auto, none, or the name of a split",
        ),
    ] = "auto"
    on_bad: Annotated[Literal["stop", "skip"], means("What a broken file does: stop, or be skipped.")] = "stop"
    classes: Annotated[
        tuple[Name, ...],
        means(
            "Classes to learn, by name. An empty list takes all of them.",
            expected="names separated by commas, such as cat,dog, or a list of texts",
        ),
    ] = ()
    merge: Annotated[
        tuple[Merge, ...],
        means(
            "Classes to join under one name.",
            expected="NEW=A,B, several separated by semicolons or as a list of texts",
            separator=";",
        ),
    ] = ()
    cache_gb: Annotated[
        NotNegative | Literal["auto"],
        means(
            "Most GB (10^9 bytes) of decoded images that are kept; the others are decoded in every epoch. auto is half "
            "of the free memory, or of the free disk where `data.cache_dir` is given.",
            such_as=4.0,
        ),
    ] = "auto"
    cache_dir: Annotated[
        Name,
        means(
            "Folder in which decoded images are kept for later runs. none keeps them in memory, for this run.",
            expected="none, or the path of a folder",
        ),
    ] = "none"
    fingerprint: Annotated[
        str,
        means(
            "Checksum of the names, sizes and boxes that the run started with. The run sets it.",
            expected="a text; empty until the run knows it",
        ),
    ] = ""
