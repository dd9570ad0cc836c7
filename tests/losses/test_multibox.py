import pytest
import torch

from multibox.config import LossConfig, MatchingConfig, ModelConfig
from multibox.losses.multibox_loss import multibox_loss, select_anchors
from multibox.losses.targets import make_targets
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
    lineage = multibox_loss(
        out, make_targets(ANCHORS, *empty, MatchingConfig(), ModelConfig()), LossConfig(negative_ratio=3.0)
    )
    assert columns == 2 or lineage.total == 0
