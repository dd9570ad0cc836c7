"""The recipes of torchvision and NVIDIA against torchvision's own matcher and loss, and NVIDIA's written as loops."""

import itertools
import math

import pytest
import torch
from torch import nn
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from multibox.losses.multibox_loss import multibox_loss
from multibox.losses.targets import make_targets
from multibox.models.anchor_layout import make_anchors
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import HeadOutputs

CLASSES = 20
CASES = {
    "torchvision-ssd": ("ssd300-vgg16", ssd300_vgg16, (38, 19, 10, 5, 3, 1)),
    "torchvision-ssdlite": ("ssdlite320-mobilenetv3", ssdlite320_mobilenet_v3_large, (20, 10, 5, 3, 2, 1)),
}
NVIDIA_MAPS = (38, 19, 10, 5, 3, 1)


@pytest.fixture(scope="module")
def theirs():
    """Return torchvision's networks without drawn weights, which neither anchors nor losses look at."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "xavier_uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *args, **options: tensor)
        return {
            recipe: make(weights=None, weights_backbone=None, num_classes=CLASSES + 1).train()
            for recipe, (_, make, _) in CASES.items()
        }


def images(seed, counts):
    """Return boxes [b, g, 4] (0 to 1) and labels [b, g] of images with `counts` objects, padded with -1."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(len(counts), max(counts), 2, generator=generator) * 0.7
    size = 0.04 + 0.6 * torch.rand(len(counts), max(counts), 2, generator=generator) ** 2
    gt = torch.cat([corner, (corner + size).clamp(max=1)], 2)
    labels = torch.randint(0, CLASSES, (len(counts), max(counts)), generator=generator)
    for row, count in enumerate(counts):
        gt[row, count:], labels[row, count:] = -1, -1
    return gt, labels


def outputs_of(seed, count, anchors):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, anchors, CLASSES + 1, generator=generator)
    return logits, torch.randn(count, anchors, 4, generator=generator)


def setup(recipe, theirs):
    preset, _, maps = CASES[recipe]
    config = resolve(preset, recipe)
    side = config.model.input_size[0]
    features = [torch.zeros(1, 1, cells, cells) for cells in maps]
    [boxes] = theirs[recipe].anchor_generator(ImageList(torch.zeros(1, 3, side, side), [(side, side)]), features)
    return config, side, boxes, make_anchors(config.anchors, tuple((cells, cells) for cells in maps), (side, side))


@pytest.mark.parametrize("recipe", CASES)
def test_anchors_are_torchvisions(recipe, theirs):
    _, side, boxes, ours = setup(recipe, theirs)
    torch.testing.assert_close(ours, boxes / side, rtol=0, atol=1e-6)
    assert len(ours) == (8732 if side == 300 else 3234)


@pytest.mark.parametrize("recipe", CASES)
@pytest.mark.parametrize("counts", [(5, 0, 12, 1), (0, 0)])
def test_matches_and_losses_are_torchvisions(recipe, counts, theirs):
    config, _, _, anchors = setup(recipe, theirs)
    gt, labels = images(7, counts) if any(counts) else (torch.full((2, 1, 4), -1.0), torch.full((2, 1), -1))
    logits, offsets = outputs_of(3, len(counts), len(anchors))
    targets = make_targets(anchors, gt, labels, config.matching, config.model)
    # In the same unit: an object overlaps all anchors of a size around it equally, but for rounding
    objects = [{"boxes": gt[i, :n], "labels": labels[i, :n] + 1} for i, n in enumerate(counts)]
    matched = [
        theirs[recipe].proposal_matcher(box_iou(each["boxes"], anchors))
        if len(each["boxes"])
        else torch.full((len(anchors),), -1)
        for each in objects
    ]
    for row, each in enumerate(objects):
        padded = torch.cat([each["labels"], torch.zeros(1, dtype=torch.long)])
        assert torch.equal(targets.labels[row], padded[matched[row]])
    outputs = {"bbox_regression": offsets, "cls_logits": logits}
    wanted = theirs[recipe].compute_loss(objects, outputs, [anchors] * len(counts), matched)
    shapes = tuple(Size(cells, cells) for cells in CASES[recipe][2])
    parts = multibox_loss(HeadOutputs(logits, offsets, shapes), targets, config.loss)
    assert parts.positives == (sum((each >= 0).sum() for each in matched))
    torch.testing.assert_close(parts.classification, wanted["classification"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.localization, wanted["bbox_regression"], rtol=1e-5, atol=1e-5)
    assert parts.positives > 20 or not any(counts)


def nvidia_anchors():
    """Return centre, width and height of every anchor, cell by cell, as DefaultBoxes makes them."""
    scales, steps = (21, 45, 99, 153, 207, 261, 315), (8, 16, 32, 64, 100, 300)
    ratios = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    made = []
    for level, cells in enumerate(NVIDIA_MAPS):
        size, following = scales[level] / 300, scales[level + 1] / 300
        shapes = [(size, size), (math.sqrt(size * following),) * 2]
        for ratio in ratios[level]:
            wide, narrow = size * math.sqrt(ratio), size / math.sqrt(ratio)
            shapes += [(wide, narrow), (narrow, wide)]
        for row, column, (width, height) in itertools.product(range(cells), range(cells), shapes):
            centre = [(place + 0.5) * steps[level] / 300 for place in (column, row)]
            made.append([min(max(value, 0.0), 1.0) for value in (*centre, width, height)])
    return made


def corners(box):
    x, y, w, h = box
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def overlap(one, other):
    shared = 1.0
    for low, high in ((0, 2), (1, 3)):
        shared *= max(min(one[high], other[high]) - max(one[low], other[low]), 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def nvidia_loss(anchors, gt, classes, logits, offsets):
    """Return an image's classification and localisation, over its positives: Encoder.encode, then Loss.forward."""
    if not gt:
        return 0.0, 0.0
    table = [[overlap(box, corners(anchor)) for box in gt] for anchor in anchors]
    owner = [max(range(len(gt)), key=row.__getitem__) for row in table]
    positive = [row[best] > 0.5 for row, best in zip(table, owner, strict=True)]
    for index in range(len(gt)):
        best = max(range(len(anchors)), key=lambda anchor: table[anchor][index])
        owner[best], positive[best] = index, True
    log_p = logits.double().log_softmax(-1)
    distance, classification, negatives = 0.0, 0.0, []
    for i, (x, y, w, h) in enumerate(anchors):
        if not positive[i]:
            negatives.append(-log_p[i, 0].item())
            continue
        left, top, right, bottom = gt[owner[i]]
        wanted = (
            10 * ((left + right) / 2 - x) / w,
            10 * ((top + bottom) / 2 - y) / h,
            5 * math.log((right - left) / w),
            5 * math.log((bottom - top) / h),
        )
        classification -= log_p[i, classes[owner[i]] + 1].item()
        for found, value in zip(offsets[i].tolist(), wanted, strict=True):
            off = abs(found - value)
            distance += off * off / 2 if off < 1 else off - 0.5
    count = sum(positive)
    classification += sum(sorted(negatives, reverse=True)[: 3 * count])
    return classification / count, distance / count


def test_nvidias_anchors_are_cut_to_the_image():
    config = resolve("ssd300-resnet50", "nvidia")
    ours = make_anchors(config.anchors, tuple((cells, cells) for cells in NVIDIA_MAPS), (300, 300))
    wanted = torch.tensor([corners(anchor) for anchor in nvidia_anchors()])
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)


def test_nvidias_loss_in_loops():
    config = resolve("ssd300-resnet50", "nvidia")
    anchors = nvidia_anchors()
    # The coarser maps alone: 2956 anchors do for loops
    coarse = slice(5776, None)
    boxes = make_anchors(config.anchors, tuple((cells, cells) for cells in NVIDIA_MAPS), (300, 300))[coarse]
    counts = (4, 0, 7)
    gt, labels = images(11, counts)
    # Wider and lower than an anchor: an object within several overlaps them equally, and rounding would choose
    places = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(2))[: gt[..., 0].numel()]
    x1, y1, x2, y2 = boxes[places].unbind(1)
    w, h = x2 - x1, y2 - y1
    near = torch.stack([x1 - 0.07 * w, y1 + 0.09 * h, x2 + 0.05 * w, y2 - 0.06 * h], 1)
    gt = torch.where(gt >= 0, near.view_as(gt), gt)
    logits, offsets = outputs_of(5, len(counts), len(boxes))
    targets = make_targets(boxes, gt, labels, config.matching, config.model)
    parts = multibox_loss(HeadOutputs(logits, offsets, (Size(1, len(boxes)),)), targets, config.loss)
    each = [
        nvidia_loss(anchors[coarse], gt[i, :n].tolist(), labels[i, :n].tolist(), logits[i], offsets[i])
        for i, n in enumerate(counts)
    ]
    assert parts.positives > 20
    # Images without objects count among those that are averaged
    assert parts.classification.item() == pytest.approx(sum(part[0] for part in each) / 3, rel=1e-5)
    assert parts.localization.item() == pytest.approx(sum(part[1] for part in each) / 3, rel=1e-5)
