"""What every recipe computes, by the very code that its lines are for, on cases small enough to be worked by hand.

The values were worked out from the original implementations (docs/originals.md names them), not from `recipes.py`. The
last test removes every line of every recipe in turn: some probe must notice.
"""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from multibox.data.augmentation import ColourJitter, CoveringCrop, Flip, ScaleJitter, find_augmentation
from multibox.data.augmentation_ops import (
    CaffeDistort,
    CaffePatch,
    Expand,
    HikapokDistort,
    HikapokPatch,
    NvidiaCrop,
    NvidiaJitter,
    RandomInterpolation,
    TorchvisionDistort,
    TorchvisionIoUCrop,
)
from multibox.errors import ConfigError
from multibox.losses.multibox_loss import l2_penalty, multibox_loss, select_anchors
from multibox.losses.targets import Targets, make_targets
from multibox.models.anchor_layout import anchors_for, make_anchors
from multibox.models.backbones import make_backbone
from multibox.models.backbones.layers import L2Norm, SameConv2d
from multibox.models.build import build_model
from multibox.ops.coding import encode
from multibox.postprocess import detect
from multibox.presets import PRESETS, RECIPES, fitting, resolve
from multibox.settings import get_setting
from multibox.structures import Size
from multibox.tensors import Batch, HeadOutputs
from multibox.training.optimizer import learning_rate, make_optimizer
from multibox.training.pacing import make_pace
from multibox.training.reporter import Reporter
from multibox.training.run import RunOptions, prepare
from multibox.training.splits import order_images
from multibox.training.step import Stepper


def labels_of(config, anchors, gt):
    """Return each anchor's class (0 background, -1 ignored) where object i is of class i."""
    anchors = torch.tensor([[left, 0.0, right, 1.0] for left, right in anchors])
    gt = torch.tensor([[[left, 0.0, right, 1.0] for left, right in gt]])
    return make_targets(anchors, gt, torch.arange(gt.shape[1])[None], config.matching, config.model).labels[0].tolist()


def threshold(config):
    """Overlaps of 1, 0.6, 0.5 and 0.4."""
    return labels_of(config, [(0, 1), (0, 0.6), (0, 0.5), (0, 0.4)], [(0, 1)])


def collision(config):
    """Two objects overlap the first anchor most, by 0.6 and 0.7, and the second by 0.05 and 0.16."""
    return labels_of(config, [(0, 1), (0.55, 0.95)], [(0, 0.6), (0, 0.7)])


def margins(losses, positive):
    """Return logits [n, 2] with these cross-entropies."""
    logits = torch.tensor([[math.log(math.exp(loss) - 1), 0.0] for loss in losses])
    return logits if positive else logits.flip(1)


def targets_of(labels, overlap, image, anchor, offsets):
    count = len(anchor)
    boxes, one = torch.tensor([[0.2, 0.2, 0.4, 0.4]]).expand(count, 4), torch.ones(count)
    return Targets(
        torch.tensor(labels), torch.tensor(overlap), torch.tensor(image), torch.tensor(anchor), one > 0, offsets, boxes,
        one, one, torch.zeros(count, dtype=torch.long),
    )  # fmt: skip


def mined(config):
    """One positive and six negatives; the last overlaps an object by 0.6 and looks least like background."""
    logits = torch.cat([margins([0.1], True), margins([0.3, 0.9, 0.2, 0.8, 0.7, 1.5], False)])[None]
    targets = targets_of([[1, *[0] * 6]], [[0.7, *[0.1] * 5, 0.6]], [0], [0], torch.zeros(1, 4))
    return select_anchors(logits, targets, config.loss)[0].nonzero().flatten().tolist()


def losses(config):
    """Three images of six anchors with 3, 1 and 0 positives; each positive is off by 2 and by 0.5."""
    positives = [[0.2, 1.0, 0.6], [0.4], []]
    logits = torch.stack(
        [torch.cat([margins(each, True).view(-1, 2), margins([0.5] * (6 - len(each)), False)]) for each in positives]
    )
    targets = targets_of(
        [[1] * len(each) + [0] * (6 - len(each)) for each in positives],
        [[0.0] * 6] * 3,
        [0, 0, 0, 1],
        [0, 1, 2, 0],
        torch.tensor([2.0, 0.5, 0.0, 0.0]).expand(4, 4),
    )
    parts = multibox_loss(HeadOutputs(logits, torch.zeros(3, 6, 4), (Size(1, 6),)), targets, config.loss)
    return [round(parts.classification.item(), 5), round(parts.localization.item(), 5)]


def focal(loss):
    return 0.25 * (1 - math.exp(-loss)) ** 2 * loss


def groups(config):
    """Optimiser, momentum, then learning rate and decay of a weight, its bias, a batch norm and conv4_3's scale."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), L2Norm(4))
    optimizer = make_optimizer(model, config.train)
    found = {p: (g["scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    parameters = (model[0].weight, model[0].bias, model[1].weight, model[2].scale)
    momentum = optimizer.param_groups[0].get("momentum")
    return [type(optimizer).__name__, momentum, *(found[parameter] for parameter in parameters)]


def penalty(config):
    """The scale of conv4_3 at its start, a batch norm and a bias."""
    named = [("backbone.norm.scale", torch.full((512,), 20.0)), ("a_bn.weight", torch.ones(9)), ("b", torch.ones(2))]
    return round(l2_penalty(named, config.loss.l2_penalty).item(), 5)


def length(config):
    """Epochs, and steps of each, of a run on 3200 images."""
    batches = order_images(range(3200), config)
    steps = make_pace(config, batches.steps_per_epoch, None).fixed
    return [-(-steps // batches.steps_per_epoch), batches.steps_per_epoch]


def augmentation(config):
    return find_augmentation(config.train.augmentation)


def start(config):
    """A network's normalisation, whether Glorot drew its first weights, and the probability of an object at first."""
    shapes = {key: value for key, value in PRESETS["tinyssd"].settings.items() if key.startswith("anchors.")}
    more = {"model.backbone": "tinyssd", "model.heads": "conv3x3", "anchors.fit": "none"}
    small = config.updated({**shapes, **more, "model.score": "softmax"})
    model = build_model(small, 3)
    convolution = model.backbone.stages[0][0].conv1
    limit = math.sqrt(6 / (9 * 3 + 9 * 16))
    glorot = 0.9 * limit < convolution.weight.abs().max() <= limit and not convolution.bias.any()
    bias = model.heads.classification[0].bias.view(-1, 4)
    objects = 1 - bias.softmax(1)[:, 0].mean().item()
    return [model.mean.flatten().tolist(), model.std.flatten().tolist(), bool(glorot), round(objects, 4)]


def found(config, boxes, probabilities):
    """Return (label, width) of what is reported of `boxes` [n, 4], fractions, with `probabilities` [n, k]."""
    boxes, probabilities = torch.tensor(boxes), torch.tensor(probabilities)
    config = config.updated({"anchors.style": "shapes", "anchors.shapes": [[[0.25, 0.25]]], "anchors.steps": []})
    shapes = (Size(1, len(boxes)),)
    offsets = encode(boxes[None], make_anchors(config.anchors, shapes, config.model.input_size))
    outputs = HeadOutputs(probabilities.log()[None], offsets, shapes)
    [seen] = detect(outputs, anchors_for(outputs, config), [Size(1000, 1000)], config, ("a", "b"))
    widths = seen.boxes[:, 2] - seen.boxes[:, 0]
    return [(int(label), round(float(width))) for label, width in zip(seen.labels, widths, strict=True)]


def suppressed(config):
    """How many of two boxes stay that overlap by 0.47; 0.5; 0.4, or 1 once they are clipped."""
    shapes = [[1.0, 1.0], [0.5, 1.0]]
    exact = config.updated({"anchors.style": "shapes", "anchors.shapes": [shapes], "anchors.steps": []})
    outputs = HeadOutputs(torch.tensor([[[0.1, 0.9], [0.2, 0.8]]]).log(), torch.zeros(1, 2, 4), (Size(1, 1),))
    half = len(detect(outputs, anchors_for(outputs, exact), [Size(8, 8)], exact, ("a",))[0].scores)
    likely = [[0.1, 0.9], [0.2, 0.8]]
    less = found(config, [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.47, 1.0]], likely)
    border = found(config, [[-0.6, 0.0, 0.4, 1.0], [0.0, 0.0, 0.4, 1.0]], likely)
    return [len(less), half, len(border)]


def reported(config):
    """Classes of one box of 0.5 and 0.4, then widths of boxes that are small or of low score."""
    box = [0.1, 0.1, 0.3, 0.3]
    small = [[0.1, 0.1, 0.125, 0.4], [0.5, 0.5, 0.54, 0.54], [0.7, 0.1, 0.9, 0.2]]
    one = [label for label, _ in found(config, [box], [[0.1, 0.5, 0.4]])]
    return [one, [w for _, w in found(config, small, [[0.1, 0.9, 0.0], [0.2, 0.8, 0.0], [0.97, 0.03, 0.0]])]]


GRID = [[x / 30, y / 30, x / 30 + 0.032, y / 30 + 0.032] for y in range(30) for x in range(30)]
"""Boxes that do not touch."""


def caps(config):
    """Of 2 x 300 boxes that do not touch; of 210 (450) times the same one before 40 others."""
    two = found(config, GRID[:600], [[0.1, 0.9, 0.0]] * 300 + [[0.1, 0.0, 0.9]] * 300)
    crowds = [found(config, [GRID[0]] * n + GRID[1:41], [[0.1, 0.9]] * n + [[0.3, 0.7]] * 40) for n in (210, 450)]
    return [len(two), *map(len, crowds)]


CLAIMED, SERVED = [2, 0], [2, 1]
INCLUSIVE, STRICT = [1, 1, 1, 0], [1, 1, 0, 0]
HARDEST, CANDIDATES, ALL = [0, 2, 4, 6], [0, 2, 4, 5], [0, 1, 2, 3, 4, 5, 6]
IMAGENET = [[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]
PER_BATCH, D2L_FOCAL = [1.3, 1.625], sum(map(focal, (0.2, 1.0, 0.6, 0.4))) + 14 * focal(0.5)
DECAYED = (1.0, 5e-4)
CROP_TO_EXPANDED = (CaffeDistort(32.0, (0.5, 1.5), (0.5, 1.5), 0.1, 0.5), Expand((1.0, 4.0), 0.5))
IOU_CROP = TorchvisionIoUCrop((0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0), (0.3, 1.0), (0.5, 2.0), 40)

PROBES: dict[Any, dict[str, Any]] = {
    threshold: {
        "caffe": INCLUSIVE,
        "hikapok": INCLUSIVE,
        "d2l": STRICT,
        "d2l-focal": STRICT,
        "torchvision-ssd": INCLUSIVE,
        "torchvision-ssdlite": INCLUSIVE,
        "nvidia": STRICT,
        "default": INCLUSIVE,
    },
    collision: {
        "caffe": SERVED,
        "hikapok": CLAIMED,
        "d2l": SERVED,
        "d2l-focal": SERVED,
        "torchvision-ssd": CLAIMED,
        "torchvision-ssdlite": CLAIMED,
        "nvidia": CLAIMED,
        "default": SERVED,
    },
    mined: {
        "caffe": CANDIDATES,
        "hikapok": HARDEST,
        "d2l": ALL,
        "d2l-focal": ALL,
        "torchvision-ssd": HARDEST,
        "torchvision-ssdlite": HARDEST,
        "nvidia": HARDEST,
        "default": CANDIDATES,
    },
    losses: {
        # (1.8 + 3 * 0.5 + 0.4 + 3 * 0.5) / 4; 1.5 + 0.125 for each of 4
        "caffe": PER_BATCH,
        "torchvision-ssd": PER_BATCH,
        "torchvision-ssdlite": PER_BATCH,
        # The image without objects adds three negatives: 3 * 0.5 / 4
        "default": [round(PER_BATCH[0] + 0.375, 5), PER_BATCH[1]],
        # 4 * 5.2 / 10
        "hikapok": [2.08, 1.625],
        # (3.3 / 3 + 1.9 / 1 + 0) / 3
        "nvidia": [1.0, round(2 * 1.625 / 3, 5)],
        # (2.2 + 14 * 0.5) / 18; 4 * 2.5 / 72, and 4 * 1.625 / 72
        "d2l": [round(9.2 / 18, 5), round(10 / 72, 5)],
        "d2l-focal": [round(D2L_FOCAL / 18, 5), round(6.5 / 72, 5)],
    },
    groups: {
        "caffe": ["SGD", 0.9, DECAYED, (2.0, 0.0), DECAYED, DECAYED],
        "hikapok": ["SGD", 0.9, *[(1.0, 0.0)] * 4],
        "d2l": ["SGD", 0.0, *[DECAYED] * 4],
        "d2l-focal": ["SGD", 0.0, *[DECAYED] * 4],
        "torchvision-ssd": ["SGD", 0.9, *[DECAYED] * 4],
        "torchvision-ssdlite": ["SGD", 0.9, *[(1.0, 4e-5)] * 4],
        "nvidia": ["SGD", 0.9, DECAYED, *[(1.0, 0.0)] * 3],
        "default": ["AdamW", None, (1.0, 0.05), *[(1.0, 0.0)] * 3],
    },
    # 5e-4 * 0.5 * (0.1 * 512 * 400 + 2)
    penalty: {"hikapok": 5.1205, "caffe": 0.0, "d2l": 0.0, "nvidia": 0.0},
    length: {
        "caffe": [1200, 100],
        "hikapok": [1200, 100],
        "d2l": [20, 100],
        "d2l-focal": [20, 400],
        "torchvision-ssd": [120, 100],
        "torchvision-ssdlite": [660, 16],
        "nvidia": [65, 100],
        "default": [7, 100],
    },
    augmentation: {
        "caffe": (
            *CROP_TO_EXPANDED,
            CaffePatch((0.1, 0.3, 0.5, 0.7, 0.9, 0.0), (0.3, 1.0), (0.5, 2.0), 50),
            RandomInterpolation(),
            Flip(0.5),
        ),
        "hikapok": (
            HikapokDistort(32.0, (0.5, 1.5)),
            HikapokPatch(
                Expand((1.1, 4.0), 0.5),
                (-0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
                (0.3, 0.999),
                50,
                3,
                emulate_defects=False,
            ),
            Flip(0.5),
        ),
        "d2l": (CoveringCrop(0.95, (0.05, 3.0), (0.75, 1.33), 200),),
        "d2l-focal": (CoveringCrop(0.95, (0.05, 3.0), (0.75, 1.33), 200),),
        "torchvision-ssd": (
            TorchvisionDistort((0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05), 0.5),
            Expand((1.0, 4.0), 0.5),
            IOU_CROP,
            Flip(0.5),
        ),
        "torchvision-ssdlite": (IOU_CROP, Flip(0.5)),
        "nvidia": (
            NvidiaCrop((1.0, 0.1, 0.3, 0.5, 0.7, 0.9, -1.0), (0.3, 1.0), (0.5, 2.0)),
            Flip(0.5),
            NvidiaJitter(0.125, 0.5, 0.5, 0.05),
        ),
        "default": (ScaleJitter(), Flip(), ColourJitter()),
    },
    start: {
        "caffe": [[123.0, 117.0, 104.0], [1.0] * 3, True, 0.75],
        "hikapok": [[123.68, 116.78, 103.94], [1.0] * 3, True, 0.75],
        "d2l": [[0.0] * 3, [1.0] * 3, True, 0.75],
        "d2l-focal": [[0.0] * 3, [1.0] * 3, True, 0.75],
        "torchvision-ssd": [[122.99925, 116.9991, 103.9992], [1.0] * 3, True, 0.75],
        "torchvision-ssdlite": [[127.5] * 3, [127.5] * 3, False, 0.75],
        "nvidia": [*IMAGENET, True, 0.75],
        "default": [*IMAGENET, True, 0.01],
    },
    suppressed: {
        "caffe": [1, 1, 2],
        "hikapok": [1, 1, 1],
        "d2l": [2, 1, 1],
        "d2l-focal": [2, 1, 1],
        "torchvision-ssd": [1, 1, 1],
        "torchvision-ssdlite": [2, 2, 1],
        "nvidia": [2, 1, 2],
        "default": [1, 1, 2],
    },
    reported: {
        "caffe": [[0, 1], [25, 40, 200]],
        "hikapok": [[0, 1], [40, 200]],
        "d2l": [[0], [25, 40, 200]],
        "d2l-focal": [[0], [25, 40, 200]],
        "torchvision-ssd": [[0, 1], [25, 40, 200]],
        "nvidia": [[0, 1], [25, 40]],
    },
    caps: {
        "caffe": [200, 41, 1],
        "hikapok": [400, 41, 1],
        "d2l": [600, 41, 41],
        "d2l-focal": [600, 41, 41],
        "torchvision-ssd": [200, 41, 1],
        "torchvision-ssdlite": [300, 41, 1],
        "nvidia": [200, 1, 1],
    },
}


def agrees(probe, recipe, config):
    found, wanted = probe(config), PROBES[probe][recipe]
    if probe is start:
        same = np.allclose(found[:2], wanted[:2], rtol=0, atol=1e-4) and found[2] == wanted[2]
        return same and found[3] == pytest.approx(wanted[3], abs=0.002)
    return found == (pytest.approx(wanted) if probe is losses else wanted)


@pytest.mark.parametrize(
    ("probe", "recipe"), [(probe, recipe) for probe, all_of in PROBES.items() for recipe in all_of]
)
def test_what_a_recipe_computes(probe, recipe):
    assert agrees(probe, recipe, resolve(fitting(recipe)[0], recipe)), probe(resolve(fitting(recipe)[0], recipe))


RATES = {
    # Steps of the run; step: learning rate
    "caffe": (120_000, {0: 1e-3, 79_999: 1e-3, 80_000: 1e-4, 99_999: 1e-4, 100_000: 1e-5}),
    "hikapok": (120_000, {0: 1e-4, 500: 1e-4, 501: 1e-3, 80_000: 1e-3, 80_001: 1e-4, 100_000: 1e-4, 100_001: 1e-5}),
    "d2l": (560, {0: 0.2, 559: 0.2}),
    "d2l-focal": (2240, {0: 0.2, 2239: 0.2}),
    # COCO: 3664 batches of 32 an epoch, 611 of 192
    "torchvision-ssd": (
        120 * 3664,
        {0: 2e-6, 499: 1e-3, 999: 2e-3, 80 * 3664 - 1: 2e-3, 80 * 3664: 2e-4, 110 * 3664 - 1: 2e-4, 110 * 3664: 2e-5},
    ),
    "torchvision-ssdlite": (660 * 611, {0: 0.15 / 611, 610: 0.15, 611 + 659 * 611 // 2: 0.075, 660 * 611 - 1: 0.0}),
    "nvidia": (
        65 * 3664,
        {0: 2.6e-3 / 300, 149: 1.3e-3, 299: 2.6e-3, 43 * 3664 - 1: 2.6e-3, 43 * 3664: 2.6e-4, 54 * 3664: 2.6e-5},
    ),
    "default": (700, {0: 2e-3 / 35, 34: 2e-3, 35: 2e-3, 699: 2e-5}),
}


def has_the_rates(recipe, config):
    steps, wanted = RATES[recipe]
    found = {step: learning_rate(step, steps, config.train) for step in wanted}
    return found == pytest.approx(wanted, rel=1e-3, abs=1e-6 if recipe == "torchvision-ssdlite" else 1e-9)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_learning_rate_of_each_recipe(recipe):
    assert has_the_rates(recipe, resolve(fitting(recipe)[0], recipe))


@pytest.mark.parametrize(("recipe", "epochs"), [("nvidia", 65), ("torchvision-ssd", 120)])
def test_a_small_data_set_warms_up_for_one_epoch(recipe, epochs):
    train = resolve(fitting(recipe)[0], recipe).train
    rates = [learning_rate(step, epochs * 6, train) for step in range(12)]
    assert rates[:6] == pytest.approx([train.lr * k / 6 for k in range(1, 7)])
    assert rates[6:] == [train.lr] * 6


def test_torchvision_warms_up_for_a_thousand_steps_of_a_long_epoch():
    for recipe, epochs in (("torchvision-ssd", 120), ("torchvision-ssdlite", 660)):
        train = resolve(fitting(recipe)[0], recipe).train
        rates = [learning_rate(step, epochs * 1500, train) / train.lr for step in (0, 499, 998, 999, 1000)]
        assert rates == pytest.approx([0.001, 0.5, 0.999, 1.0, 1.0])


def test_the_default_clips_gradients_and_averages_weights(monkeypatch):
    limits = []
    monkeypatch.setattr(nn.utils, "clip_grads_with_norm_", lambda parameters, limit, *_, **__: limits.append(limit))
    image, gt = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
    batch = Batch(image, gt, torch.zeros(1, 1, dtype=torch.long), ["a"], [Size(64, 64)])
    averages = {}
    for recipe in ("default", "d2l"):
        config = resolve("tinyssd", recipe, {"anchors.fit": "none", "model.input_size": [64, 64]})
        stepper = Stepper(build_model(config, 1).eval(), config, device="cpu", precision="float32")
        stepper.step(batch)
        averages[recipe] = stepper.average and stepper.average.decay
    assert limits == [10.0] and averages == {"default": 0.998, "d2l": None}


def test_hikapok_never_falls_below_its_floor():
    low = resolve("ssd300-vgg16", "hikapok", {"train.lr": 1e-5}).train
    assert learning_rate(119_999, 120_000, low) == 1e-6


def test_hikapok_drops_what_is_difficult(squares, tmp_path):
    for path in (squares / "Annotations").iterdir():
        again = path.read_text().split("<object>")[1].replace("</object>", "<difficult>1</difficult></object>")
        path.write_text(path.read_text().replace("</annotation>", f"<object>{again}"))
    changes = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0}
    shown = {}
    for recipe in ("hikapok", "caffe"):
        run = RunOptions(preset="ssd300-vgg16", recipe=recipe, epochs=1, out=tmp_path / recipe, changes=changes)
        trainer = prepare(squares, run)
        shown[recipe] = int((~trainer.training.crowd).sum()), trainer.config.train.seed
        trainer.records.close()
    assert shown == {"hikapok": (12, 20180503), "caffe": (24, 0)}


@pytest.mark.parametrize(("recipe", "printed"), [("d2l", True), ("d2l-focal", True), ("caffe", False)])
def test_d2ls_line_every_five_epochs(recipe, printed):
    lines = []
    rows = [{"epoch": e, "class_error": 2.33e-3, "box_mae": 2.53e-3, "seconds": 7.0} for e in range(1, 6)]
    config = resolve(fitting(recipe)[0], recipe)
    trainer = SimpleNamespace(config=config, finished=False, records=SimpleNamespace(rows=[]))
    reporter = Reporter(lines.append)
    for row in rows:
        trainer.records.rows.append(row)
        reporter.row(trainer, row)
    assert lines == ["epoch 5, class err 2.33e-03, bbox mae 2.53e-03, time 35.0 sec"] * printed


def test_hikapok_pads_as_tensorflow_does():
    with torch.device("meta"):
        made = {r: make_backbone(resolve("ssd300-vgg16", r).model.backbone, 1.0, 6) for r in ("hikapok", "caffe")}
    padded = {r: sum(isinstance(part, SameConv2d) for part in backbone.modules()) for r, backbone in made.items()}
    assert padded == {"hikapok": 2, "caffe": 0}


def test_anchors_of_the_recipes():
    maps = ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))
    first = make_anchors(resolve("ssd300-vgg16", "hikapok").anchors, maps, (300, 300))
    # HiKapok's anchors, worked out in numpy; here x first
    wanted = [
        [-0.057367, -0.057367, 0.084033, 0.084033],
        [-0.036667, -0.036667, 0.063333, 0.063333],
        [-0.057377, -0.022022, 0.084044, 0.048689],
        [-0.022022, -0.057377, 0.048689, 0.084044],
    ]
    assert np.allclose(first[:4], wanted, atol=1e-6)
    last = [[0.0082, 0.0082, 0.9918, 0.9918], [0.05, 0.05, 0.95, 0.95]]
    assert len(first) == 8732 and np.allclose(first[-4:-2], last, atol=1e-6)
    # MXNet's MultiBoxPrior, worked out in numpy; nothing is fitted to the data
    for recipe in ("d2l", "d2l-focal"):
        config = resolve("tinyssd", recipe)
        tiny = make_anchors(config.anchors, ((32, 32), (16, 16), (8, 8), (4, 4), (1, 1)), (256, 256))
        assert config.anchors.fit == "none" and len(tiny) == 5444
        assert np.allclose(tiny[0], [-0.084375, -0.084375, 0.115625, 0.115625], atol=1e-6)


def test_a_tuning_goes_above_its_recipe_and_below_set():
    assert [name for name, recipe in RECIPES.items() if recipe.tuning] == ["default"]
    for name, settings in RECIPES["default"].tuning.items():
        config = resolve(name)
        assert all(get_setting(config, setting) == wanted for setting, wanted in settings.items())
    assert resolve("multibox-coco", changes={"train.steps": 7}).train.steps == 7


ELSEWHERE = {
    "caffe": set(),
    "hikapok": {"model.backbone", "train.minimum_lr", "train.difficult", "train.seed"}
    | {"anchors.style", "anchors.sizes", "anchors.ratios"},
    "torchvision-ssd": {"anchors.sizes", "anchors.clip_shapes"},
    "torchvision-ssdlite": {"train.warmup_steps"},
    "nvidia": {"anchors.clip_shapes", "anchors.clip_centers"},
    "d2l": {"anchors.fit", "train.report"},
    "d2l-focal": {"anchors.fit", "train.report"},
    "default": {"train.clip_norm", "train.ema"},
}
"""Lines that other tests are for: those above, and test_recipe_parity.py for the anchors of torchvision and NVIDIA."""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_line_that_is_removed_is_noticed(recipe, monkeypatch):
    whole, unnoticed = RECIPES[recipe], set()
    full = resolve(fitting(recipe)[0], recipe)
    probes = [probe for probe in PROBES if recipe in PROBES[probe]]
    for setting in whole.settings:
        rest = {key: value for key, value in whole.settings.items() if key != setting}
        monkeypatch.setitem(RECIPES, recipe, dataclasses.replace(whole, settings=rest))
        try:
            config = resolve(fitting(recipe)[0], recipe)
        except ConfigError:
            continue
        # A line may also repeat a default
        if config != full and has_the_rates(recipe, config) and all(agrees(p, recipe, config) for p in probes):
            unnoticed.add(setting)
    assert unnoticed == ELSEWHERE[recipe]
