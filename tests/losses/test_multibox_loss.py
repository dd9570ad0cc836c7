"""The multibox loss and the L2 penalty: by hand, and against plain recomputations of what the originals compute."""

import math

import pytest
import torch

from multibox.config import LossConfig, MatchingConfig, ModelConfig
from multibox.losses.multibox_loss import HIKAPOK_RULES, l2_penalty, multibox_loss, select_anchors
from multibox.losses.targets import Targets, make_targets
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import HeadOutputs

ANCHORS = torch.tensor(
    [
        [0.1, 0.2, 0.3, 0.3],
        [0.15, 0.2, 0.4, 0.4],
        [0.63, 0.05, 0.88, 0.98],
        [0.66, 0.45, 0.8, 0.8],
        [0.57, 0.3, 0.92, 0.9],
    ]
)
ANCHORS[0] = torch.tensor([0.0, 0.1, 0.2, 0.3])
GT = torch.tensor([[[0.1, 0.08, 0.52, 0.92], [0.55, 0.2, 0.9, 0.88]]])
LABELS = torch.tensor([[0, 1]])
EMPTY = torch.full((1, 2, 4), -1.0), torch.full((1, 2), -1)


def outputs(batch=1, logits=3):
    torch.manual_seed(0)
    return HeadOutputs(
        torch.randn(batch, 5, logits, requires_grad=True), torch.randn(batch, 5, 4, requires_grad=True), (Size(1, 5),)
    )


def targets(gt=GT, labels=LABELS, **matching):
    return make_targets(ANCHORS, gt, labels, MatchingConfig(**matching), ModelConfig())


def test_targets_are_the_d2l_example():
    made = targets(inclusive=False)
    assert made.labels.tolist() == [[0, 1, 2, 0, 2]]
    assert made.anchor.tolist() == [1, 2, 4]
    expected = [[1.4, 10, 2.593969, 7.175423], [-1.2, 0.268817, 1.682361, -1.565459], [-0.571429, -1, 0, 0.625816]]
    assert torch.allclose(made.offsets, torch.tensor(expected), atol=1e-5)


def test_dual_max_ignores_the_zone_between():
    made = targets(matcher="dual_max", low=0.1, threshold=0.5)
    assert made.labels.tolist() == [[0, 1, 2, -1, 2]]


def test_positives_normalizer_by_hand():
    out, made = outputs(), targets()
    parts = multibox_loss(out, made, LossConfig(localization="l1"))
    log_p = out.logits.log_softmax(-1)[0]
    expected = -(log_p[0, 0] + log_p[1, 1] + log_p[2, 2] + log_p[3, 0] + log_p[4, 2]) / 3
    assert torch.allclose(parts.classification, expected)
    distance = (out.offsets[0, [1, 2, 4]] - made.offsets).abs().sum() / 3
    assert torch.allclose(parts.localization, distance)
    assert torch.allclose(parts.total, expected + distance)
    assert parts.positives == 3


def test_anchors_normalizer_is_the_mean_over_all_of_d2l():
    out, made = outputs(), targets()
    parts = multibox_loss(out, made, LossConfig(localization="l1", normalizer="anchors"))
    by_positives = multibox_loss(out, made, LossConfig(localization="l1"))
    assert torch.allclose(parts.classification, by_positives.classification * 3 / 5)
    assert torch.allclose(parts.localization, by_positives.localization * 3 / 20)


def test_selected_normalizer_is_hikapoks_mean_times_ratio_plus_one():
    out, made = outputs(), targets()
    config = LossConfig(normalizer="selected", negative_ratio=3.0)
    parts = multibox_loss(out, made, config)
    every = multibox_loss(out, made, LossConfig(negative_ratio=3.0))
    # Three positives and both negatives: the sum over 5 anchors / 5 * 4, against the sum / 3
    assert torch.allclose(parts.classification, every.classification * 3 / 5 * 4)


def test_mining_takes_the_hardest_negatives_and_ignores_the_rest():
    gt, labels = GT[:, :1], LABELS[:, :1]
    made = targets(gt, labels)
    assert made.labels.tolist() == [[0, 1, 0, 0, 0]]
    logits = torch.zeros(1, 5, 3)
    logits[0, 3, 0] = -2.0
    logits[0, 2, 0] = -1.0
    chosen = select_anchors(logits, made, LossConfig(negative_ratio=2.0))
    assert chosen.tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("classification", ["cross_entropy", "focal", "sigmoid_focal"])
@pytest.mark.parametrize("normalizer", ["positives", "selected", "anchors"])
@pytest.mark.parametrize("ratio", [0.0, 3.0])
def test_no_object_anywhere_is_finite_and_leaves_the_offsets_alone(classification, normalizer, ratio):
    out = outputs(logits=2 if classification == "sigmoid_focal" else 3)
    config = LossConfig(classification=classification, normalizer=normalizer, negative_ratio=ratio)
    parts = multibox_loss(out, targets(*EMPTY), config)
    parts.total.backward()
    assert torch.isfinite(parts.total)
    assert parts.localization == 0
    assert torch.isfinite(out.logits.grad).all()
    assert out.offsets.grad is None or (out.offsets.grad == 0).all()


@pytest.mark.parametrize("classification", ["cross_entropy", "focal", "sigmoid_focal"])
def test_a_image_without_objects_changes_nothing_but_negatives(classification):
    """Padding rows and empty images in a batch leave the localisation of the others alone."""
    out = outputs(batch=2, logits=2 if classification == "sigmoid_focal" else 3)
    gt = torch.cat([torch.cat([GT, EMPTY[0]], 1), torch.full((1, 4, 4), -1.0)])
    labels = torch.cat([torch.cat([LABELS, EMPTY[1]], 1), torch.full((1, 4), -1)])
    both = multibox_loss(out, targets(gt, labels), LossConfig(classification=classification))
    first = HeadOutputs(out.logits[:1], out.offsets[:1], out.feature_shapes)
    alone = multibox_loss(first, targets(), LossConfig(classification=classification))
    assert torch.allclose(both.localization, alone.localization)
    assert both.positives == alone.positives == 3


def test_sigmoid_heads_learn_one_column_per_class():
    logits = torch.full((1, 5, 2), -20.0)
    made = targets()
    logits[made.image, made.anchor, made.labels[made.image, made.anchor] - 1] = 20.0
    out = HeadOutputs(logits, torch.zeros(1, 5, 4), (Size(1, 5),))
    assert multibox_loss(out, made, LossConfig(classification="sigmoid_focal")).classification < 1e-6


@pytest.mark.parametrize("preset", ["tinyssd", "multibox-coco"])
def test_under_our_recipe_a_batch_without_objects_teaches_background(preset):
    config = resolve(preset)
    columns = 2 if config.model.score == "sigmoid" else 3
    out = outputs(batch=2, logits=columns)
    empty = torch.full((2, 1, 4), -1.0), torch.full((2, 1), -1)
    parts = multibox_loss(out, make_targets(ANCHORS, *empty, MatchingConfig(), config.model), config.loss, config.model)
    parts.total.backward()
    assert parts.positives == 0
    assert out.logits.grad is not None and out.logits.grad.abs().sum() > 0
    # Learning pushes every object's score down
    objects = out.logits.grad if columns == 2 else out.logits.grad[..., 1:]
    assert (objects >= 0).all() and out.offsets.grad is not None and not out.offsets.grad.any()
    caffe = multibox_loss(
        out, make_targets(ANCHORS, *empty, MatchingConfig(), ModelConfig()), LossConfig(negative_ratio=3.0)
    )
    assert columns == 2 or caffe.total == 0


@pytest.mark.parametrize(("minimum", "shares"), [(0, 0.0), (2, 2 / 2)])
def test_averaged_over_images_an_empty_one_gives_the_minimum_of_negatives(minimum, shares):
    out, made = outputs(batch=2), targets(torch.cat([GT, EMPTY[0]]), torch.cat([LABELS, EMPTY[1]]))
    out = HeadOutputs(torch.zeros_like(out.logits), out.offsets, out.feature_shapes)
    config = LossConfig(normalizer="images", negative_ratio=3.0, minimum_negatives=minimum)
    alone = multibox_loss(HeadOutputs(out.logits[:1], out.offsets[:1], out.feature_shapes), targets(), config)
    both = multibox_loss(out, made, config)
    # Two negatives at ln 3 each, over two images
    assert both.classification.item() == pytest.approx(alone.classification.item() / 2 + shares * math.log(3))
    assert both.localization.item() == pytest.approx(alone.localization.item() / 2)


CAFFE, HIKAPOK = resolve("ssd300-vgg16", "caffe"), resolve("ssd300-vgg16", "hikapok")


def margins(losses):
    """Return logits [n, 2] of which the second class costs `losses` in cross-entropy."""
    return torch.tensor([[math.log(math.exp(loss) - 1), 0.0] for loss in losses])


def targets_of(labels, image, anchor, offsets):
    """Return targets of which only labels and offsets matter."""
    count = len(anchor)
    anchors = torch.tensor([[0.2, 0.2, 0.4, 0.4]]).expand(count, 4)
    return Targets(
        labels, torch.zeros(labels.shape), image, anchor, torch.ones(count, dtype=torch.bool), offsets, anchors,
        torch.ones(count), torch.ones(count), torch.zeros_like(anchor),
    )  # fmt: skip


def case(positives, negatives):
    """Return outputs and targets whose anchors cost what is listed."""
    logits = torch.cat([margins(positives), margins(negatives).flip(1)])[None]
    count = logits.shape[1]
    labels = torch.tensor([[1] * len(positives) + [0] * len(negatives)])
    anchors = torch.arange(len(positives))
    targets = targets_of(labels, torch.zeros_like(anchors), anchors, torch.zeros(len(positives), 4))
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
    targets = targets_of(labels, torch.zeros_like(where), where, torch.zeros(1, 4))
    assert select_anchors(logits, targets, config.loss)[0].nonzero().flatten().tolist() == [1, 3, 4, 6]


def plain(outputs, targets, original):
    """Return classification and localisation by loops over images and anchors."""
    chosen, distances, actual = [], 0.0, 0
    for image in range(len(targets.labels)):
        labels = targets.labels[image].tolist()
        log_p = outputs.logits[image].log_softmax(-1)
        positives = [i for i, label in enumerate(labels) if label > 0]
        rivals = [i for i, label in enumerate(labels) if label == 0]
        if original == "caffe":
            rivals = [i for i in rivals if targets.overlap[image, i] < 0.5]
        rivals.sort(key=lambda i: log_p[i, 0].item())
        chosen += [-log_p[i, labels[i]].item() for i in positives + rivals[: 3 * len(positives)]]
        actual += len(positives)
    for row, (image, anchor) in enumerate(zip(targets.image.tolist(), targets.anchor.tolist(), strict=True)):
        for d in (outputs.offsets[image, anchor] - targets.offsets[row]).abs().tolist():
            distances += 0.5 * d * d if d < 1 else d - 0.5
    if original == "caffe":
        return sum(chosen) / actual, distances / actual
    return 4 * sum(chosen) / len(chosen), distances / actual


@pytest.mark.parametrize(("original", "config"), [("caffe", CAFFE), ("hikapok", HIKAPOK)])
def test_whole_losses_equal_plain_ones(original, config):
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
    classification, localization = plain(outputs, targets, original)
    assert parts.classification.item() == pytest.approx(classification, rel=1e-5)
    assert parts.localization.item() == pytest.approx(localization, rel=1e-5)


def test_nvidia_divides_image_by_image():
    config = resolve("ssd300-resnet50", "nvidia")
    one, few = case([0.2, 1.0, 0.6], [0.5] * 9), case([0.4], [0.3] * 11)
    logits = torch.cat([one[0].logits, few[0].logits])
    outputs = HeadOutputs(logits, torch.zeros(2, 12, 4), (Size(1, 12),))
    image, anchor = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 0])
    labels = torch.cat([one[1].labels, few[1].labels])
    targets = targets_of(labels, image, anchor, torch.full((4, 4), 2.0))
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


def test_l2_penalty_by_hand():
    # 0.5 * 14 in full and 0.1 * 0.5 * 800 of the scale
    named = [
        ("block1.weight", torch.tensor([1.0, 2.0, 3.0])),
        ("conv4_3_scale.weight", torch.tensor([20.0, 20.0])),
        ("block1_bn.weight", torch.tensor([1000.0])),
    ]
    assert l2_penalty(named, 5e-4).item() == pytest.approx(0.0235)


def test_a_fresh_scale_of_conv4_3_adds_five():
    actual = l2_penalty([("features.conv4_3_scale", torch.full((512,), 20.0))], 5e-4)
    assert actual.shape == () and actual.item() == pytest.approx(5.12)


def test_the_first_rule_that_fits_counts():
    named = [("conv4_3_scale_bn", torch.tensor([2.0]))]
    assert l2_penalty(named, 1).item() == 0
    assert l2_penalty(named, 1, tuple(reversed(HIKAPOK_RULES))).item() == pytest.approx(0.2)
    assert l2_penalty(named, 1, ()).item() == pytest.approx(2.0)


def test_biases_count_in_full():
    assert l2_penalty([("head.bias", torch.tensor([2.0]))], 0.5).item() == pytest.approx(1.0)


def test_nothing_to_decay_is_zero():
    assert l2_penalty([], 5e-4).item() == 0
    assert l2_penalty([("x_bn.weight", torch.ones(3))], 5e-4).item() == 0


def test_the_gradient_is_that_of_weight_decay():
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    scale = torch.tensor([20.0], requires_grad=True)
    norm = torch.tensor([1.0], requires_grad=True)
    l2_penalty([("a.weight", weight), ("conv4_3_scale", scale), ("a_bn.weight", norm)], 0.01).backward()
    assert torch.allclose(weight.grad, 0.01 * weight.detach())
    assert torch.allclose(scale.grad, 0.001 * scale.detach())
    assert norm.grad is None


def test_the_penalty_of_half_precision_is_summed_in_float32():
    # 0.5 * 1024 * 1: bfloat16 would stop counting at 256
    actual = l2_penalty([("w", torch.ones(1024, dtype=torch.bfloat16))], 1)
    assert actual.dtype == torch.float32 and actual.item() == 512


NORMALIZERS = ("positives", "selected", "anchors", "images")


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("objects", [True, False])
def test_the_mean_of_unequal_shares_is_the_loss_of_the_whole_batch(normalizer, first, objects):
    gt, labels = torch.cat([GT, EMPTY[0], GT]), torch.cat([LABELS, EMPTY[1], LABELS])
    gt[2, 1], labels[2, 1] = -1, -1
    if not objects:
        gt[:], labels[:] = -1, -1
    config = LossConfig(normalizer=normalizer, negative_ratio=3.0, minimum_negatives=2)
    out = outputs(batch=3)
    whole = multibox_loss(out, targets(gt, labels), config)
    whole.total.backward()
    expected = out.logits.grad.clone(), out.offsets.grad.clone()
    out.logits.grad = out.offsets.grad = None
    shares = [slice(0, first), slice(first, 3)]
    parts = [HeadOutputs(out.logits[share], out.offsets[share], out.feature_shapes) for share in shares]
    made = [targets(gt[share], labels[share]) for share in shares]
    counted = []

    def gather(counts):
        counted.append(counts)
        return counts

    for part, target in zip(parts, made, strict=True):
        multibox_loss(part, target, config, across=gather)
    mean = torch.stack(counted).mean(0)
    losses = [
        multibox_loss(part, target, config, across=lambda _: mean, processes=2)
        for part, target in zip(parts, made, strict=True)
    ]
    for name in ("total", "classification", "localization"):
        share = sum(getattr(loss, name) for loss in losses) / 2
        assert torch.allclose(share, getattr(whole, name), rtol=1e-6), name
    (sum(loss.total for loss in losses) / 2).backward()
    assert torch.allclose(out.logits.grad, expected[0], atol=1e-7)
    assert torch.allclose(out.offsets.grad, expected[1], atol=1e-7)


LOSSES = ("cross_entropy", "focal", "sigmoid_focal", "sigmoid_cross_entropy", "quality_focal", "varifocal")


@pytest.mark.parametrize(
    "changes",
    [*({"classification": name} for name in LOSSES), *({"localization": name} for name in ("l1", "l2", "giou", "ciou"))]
    + [{"normalizer": name} for name in NORMALIZERS]
    + [{"hard_examples": 3}, {"negative_ratio": 1.0, "minimum_negatives": 1}],
    ids=str,
)
def test_rows_of_all_anchors_give_the_loss_of_rows_of_positives(changes):
    sigmoid = changes.get("classification", "") in LOSSES[2:]
    model, config = ModelConfig(score="sigmoid" if sigmoid else "softmax"), LossConfig(**changes)
    gt, labels = torch.cat([GT, EMPTY[0]]), torch.cat([LABELS, EMPTY[1]])
    found = []
    for fixed in (False, True):
        out = outputs(batch=2, logits=2 if sigmoid else 3)
        # Of no object, so no loss of boxes may see it
        out.offsets.data[1] = math.nan
        out.offsets.data[0, 0] = 1e30
        matching = MatchingConfig()
        made = make_targets(ANCHORS, gt, labels, matching, model, out, fixed=fixed)
        assert len(made.anchor) == (10 if fixed else 3)
        parts = multibox_loss(out, made, config, model)
        parts.total.backward()
        found.append((parts, made, out.logits.grad, out.offsets.grad))
    (compact, made, *gradients), (every, all_rows, *same_gradients) = found
    for name in ("total", "classification", "localization"):
        assert torch.allclose(getattr(compact, name), getattr(every, name)), name
    for one, other in zip(gradients, same_gradients, strict=True):
        assert torch.isfinite(other).all() and torch.allclose(one, other)
    assert torch.equal(compact.selected, every.selected)
    assert torch.allclose(compact.box_losses, every.box_losses[all_rows.valid])
    for one, other in zip(made, all_rows.positives(), strict=True):
        assert torch.equal(one, other)
