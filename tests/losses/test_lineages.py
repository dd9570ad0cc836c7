"""The losses of caffe and hikapok against plain recomputations of their formulas (facts 5, 6, 17.9, 17.10)."""

import math

import pytest
import torch

from multibox.losses.multibox_loss import multibox_loss, select_anchors
from multibox.losses.targets import Targets, make_targets
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import HeadOutputs

CAFFE, HIKAPOK = resolve("ssd300-vgg16", "caffe"), resolve("ssd300-vgg16", "hikapok")


def margins(losses):
    """Return logits [n, 2] of which the second class costs `losses` in cross-entropy."""
    return torch.tensor([[math.log(math.exp(loss) - 1), 0.0] for loss in losses])


def rows(labels, image, anchor, offsets):
    """Return targets of which only labels and offsets matter."""
    count = len(anchor)
    anchors = torch.tensor([[0.2, 0.2, 0.4, 0.4]]).expand(count, 4)
    return Targets(
        labels, torch.zeros(labels.shape), image, anchor, offsets, anchors, torch.ones(count), torch.ones(count)
    )


def case(positives, negatives):
    """Return outputs and targets whose anchors cost what is listed."""
    logits = torch.cat([margins(positives), margins(negatives).flip(1)])[None]
    count = logits.shape[1]
    labels = torch.tensor([[1] * len(positives) + [0] * len(negatives)])
    anchors = torch.arange(len(positives))
    targets = rows(labels, torch.zeros_like(anchors), anchors, torch.zeros(len(positives), 4))
    return HeadOutputs(logits, torch.zeros(1, count, 4), (Size(1, count),)), targets


@pytest.mark.parametrize(("negatives", "caffe", "hikapok"), [(9, 2.1, 2.1), (3, 1.1, 2.2)])
def test_cross_entropy_of_three_positives(negatives, caffe, hikapok):
    outputs, targets = case([0.2, 1.0, 0.6], [0.5] * negatives)
    assert multibox_loss(outputs, targets, CAFFE.loss).classification.item() == pytest.approx(caffe, abs=1e-5)
    assert multibox_loss(outputs, targets, HIKAPOK.loss).classification.item() == pytest.approx(hikapok, abs=1e-5)


@pytest.mark.parametrize("config", [CAFFE, HIKAPOK])
def test_mining_takes_the_negatives_that_look_least_like_background(config):
    background = torch.tensor([0.9, 0.2, 0.8, 0.6, 0.6, 0.99, 0.3, 0.5])
    logits = torch.stack([background.log(), (1 - background).log()], 1)[None]
    labels = torch.tensor([[0, 0, 0, 1, 0, 0, 0, -1]])
    where = torch.tensor([3])
    targets = rows(labels, torch.zeros_like(where), where, torch.zeros(1, 4))
    assert select_anchors(logits, targets, config.loss)[0].nonzero().flatten().tolist() == [1, 3, 4, 6]


def plain(outputs, targets, lineage):
    """Return classification and localisation by loops over images and anchors."""
    chosen, distances, found = [], 0.0, 0
    for image in range(len(targets.labels)):
        labels = targets.labels[image].tolist()
        log_p = outputs.logits[image].log_softmax(-1)
        positives = [i for i, label in enumerate(labels) if label > 0]
        rivals = [i for i, label in enumerate(labels) if label == 0]
        if lineage == "caffe":
            rivals = [i for i in rivals if targets.overlap[image, i] < 0.5]
        rivals.sort(key=lambda i: log_p[i, 0].item())
        chosen += [-log_p[i, labels[i]].item() for i in positives + rivals[: 3 * len(positives)]]
        found += len(positives)
    for row, (image, anchor) in enumerate(zip(targets.image.tolist(), targets.anchor.tolist(), strict=True)):
        for d in (outputs.offsets[image, anchor] - targets.offsets[row]).abs().tolist():
            distances += 0.5 * d * d if d < 1 else d - 0.5
    if lineage == "caffe":
        return sum(chosen) / found, distances / found
    return 4 * sum(chosen) / len(chosen), distances / found


@pytest.mark.parametrize(("lineage", "config"), [("caffe", CAFFE), ("hikapok", HIKAPOK)])
def test_whole_losses_equal_plain_ones(lineage, config):
    generator = torch.Generator().manual_seed(5)
    low = torch.rand(300, 2, generator=generator) * 0.8
    anchors = torch.cat([low, low + 0.05 + 0.3 * torch.rand(300, 2, generator=generator)], 1)
    corner = torch.rand(3, 4, 2, generator=generator) * 0.6
    gt = torch.cat([corner, corner + 0.1 + 0.3 * torch.rand(3, 4, 2, generator=generator)], 2)
    labels = torch.randint(0, 20, (3, 4), generator=generator)
    gt[2, 1:], labels[2, 1:] = -1, -1
    outputs = HeadOutputs(
        torch.randn(3, 300, 21, generator=generator) * 2, torch.randn(3, 300, 4, generator=generator), (Size(15, 20),)
    )
    targets = make_targets(anchors, gt, labels, config.matching, config.model)
    assert len(targets.anchor) > 10
    parts = multibox_loss(outputs, targets, config.loss)
    classification, localization = plain(outputs, targets, lineage)
    assert parts.classification.item() == pytest.approx(classification, rel=1e-5)
    assert parts.localization.item() == pytest.approx(localization, rel=1e-5)


def test_nvidia_divides_image_by_image():
    config = resolve("ssd300-resnet50", "nvidia")
    one, few = case([0.2, 1.0, 0.6], [0.5] * 9), case([0.4], [0.3] * 11)
    logits = torch.cat([one[0].logits, few[0].logits])
    outputs = HeadOutputs(logits, torch.zeros(2, 12, 4), (Size(1, 12),))
    image, anchor = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 0])
    labels = torch.cat([one[1].labels, few[1].labels])
    targets = rows(labels, image, anchor, torch.full((4, 4), 2.0))
    parts = multibox_loss(outputs, targets, config.loss)
    # (0.2 + 1 + 0.6 + 9 * 0.5) / 3 and 0.4 + 3 * 0.3; four distances of 2 cost 1.5 each
    assert parts.classification.item() == pytest.approx((6.3 / 3 + 1.3) / 2, abs=1e-5)
    assert parts.localization.item() == pytest.approx(6.0, abs=1e-5)


def test_hard_examples_are_chosen_by_both_losses_and_the_others_count_in_neither():
    outputs, targets = case([0.2, 1.0, 0.6], [0.5] * 3)
    # Distances of 6, 0 and 0.02: in all the anchors cost 6.2, 1, 0.62 and 0.5 three times
    targets = targets._replace(offsets=torch.tensor([[2.0], [0.0], [0.1]]).expand(3, 4))
    parts = multibox_loss(outputs, targets, CAFFE.updated({"loss.hard_examples": 2}).loss)
    assert parts.selected[0].tolist() == [True, True, False, False, False, False]
    assert parts.positives == 2
    assert parts.classification.item() == pytest.approx((0.2 + 1.0) / 2, abs=1e-5)
    assert parts.localization.item() == pytest.approx(6.0 / 2, abs=1e-5)
