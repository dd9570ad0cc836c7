"""The MXNet operators against the worked examples of the d2l book and what their docstrings promise."""

import pytest
import torch

from multibox.errors import ConfigError
from multibox.ops.mxnet import multibox_detection, multibox_prior, multibox_target

ANCHORS = torch.tensor(
    [
        [
            [0, 0.1, 0.2, 0.3],
            [0.15, 0.2, 0.4, 0.4],
            [0.63, 0.05, 0.88, 0.98],
            [0.66, 0.45, 0.8, 0.8],
            [0.57, 0.3, 0.92, 0.9],
        ]
    ]
)
LABELS = torch.tensor([[[0, 0.1, 0.08, 0.52, 0.92], [1, 0.55, 0.2, 0.9, 0.88]]])
LOGITS = torch.zeros(1, 3, 5)

BOXES = torch.tensor(
    [[[0.1, 0.08, 0.52, 0.92], [0.08, 0.2, 0.56, 0.95], [0.15, 0.3, 0.62, 0.91], [0.55, 0.2, 0.9, 0.88]]]
)
PROBABILITIES = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.9]]])
NO_OFFSETS = torch.zeros(1, 16)


def test_prior_of_a_map_that_is_not_square():
    actual = multibox_prior((2, 3), sizes=(0.5, 0.25), ratios=(1, 2, 0.5))
    expected = torch.tensor(
        [
            [0, 0, 0.333333, 0.5],
            [0.083333, 0.125, 0.25, 0.375],
            [-0.069036, 0.073223, 0.402369, 0.426777],
            [0.048816, -0.103553, 0.284518, 0.603553],
        ]
    )
    assert actual.shape == (1, 24, 4)
    torch.testing.assert_close(actual[0, :4], expected, atol=1e-5, rtol=0)


def test_prior_of_tinyssd_first_and_last_map():
    first = multibox_prior(torch.zeros(1, 64, 32, 32), sizes=(0.2, 0.272), ratios=(1, 2, 0.5))[0]
    expected = torch.tensor([-0.125796, -0.055086, 0.157046, 0.086336])
    torch.testing.assert_close(first[2], expected, atol=1e-5, rtol=0)
    last = multibox_prior((1, 1), sizes=(0.88, 0.961), ratios=(1, 2, 0.5), clip=True)[0]
    torch.testing.assert_close(last[2], torch.tensor([0, 0.188873, 1, 0.811127]), atol=1e-5, rtol=0)


def test_prior_without_sizes_is_refused():
    with pytest.raises(ConfigError, match="at least one size"):
        multibox_prior((2, 2), sizes=())


def test_target_of_the_book():
    loc_target, loc_mask, cls_target = multibox_target(ANCHORS, LABELS, LOGITS)
    assert cls_target.tolist() == [[0, 1, 2, 0, 2]]
    assert loc_mask.view(5, 4)[:, 0].tolist() == [0, 1, 1, 0, 1]
    expected = torch.zeros(5, 4)
    expected[1] = torch.tensor([1.4, 10, 2.593969, 7.175423])
    expected[2] = torch.tensor([-1.2, 0.268817, 1.682361, -1.565459])
    expected[4] = torch.tensor([-0.571429, -1, 0, 0.625816])
    torch.testing.assert_close(loc_target.view(5, 4), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("ratio", "expected"), [(3.0, [0, 1, 2, 0, 2]), (0.34, [0, 1, 2, -1, 2])])
def test_target_with_mining(ratio, expected):
    logits = LOGITS.clone()
    logits[0, 0, 3] = 2
    actual = multibox_target(ANCHORS, LABELS, logits, negative_mining_ratio=ratio)
    assert actual[2].tolist() == [expected]


def test_target_ends_the_list_at_the_first_row_of_class_minus_one():
    labels = torch.cat([torch.full((1, 1, 5), -1.0), LABELS], dim=1)
    for ratio in (-1.0, 3.0):
        loc_target, loc_mask, cls_target = multibox_target(
            ANCHORS, labels, LOGITS, negative_mining_ratio=ratio, ignore_label=-7, minimum_negative_samples=2
        )
        assert bool((cls_target == -7).all())
        assert not loc_target.any() and not loc_mask.any()


@pytest.mark.parametrize(
    ("options", "classes", "boxes"),
    [
        ({"nms_threshold": 0.5}, [0, 1, -1, -1], [0, 3, 1, 2]),
        ({"nms_threshold": 0.6}, [0, 1, -1, 0], [0, 3, 1, 2]),
        ({"nms_threshold": 0.05, "force_suppress": True}, [0, 1, -1, -1], [0, 3, 1, 2]),
        ({"nms_threshold": 0.0}, [0, 0, 0, 1], [0, 1, 2, 3]),
        ({"threshold": 0.8}, [0, 1, -1, -1], [0, 3, 1, None]),
        ({"nms_topk": 1}, [0, -1, -1, -1], [0, 1, 2, 3]),
        ({"threshold": 0.95}, [-1, -1, -1, -1], [None] * 4),
    ],
)
def test_detection_of_the_book(options, classes, boxes):
    (actual,) = multibox_detection(PROBABILITIES, NO_OFFSETS, BOXES, **options)
    assert actual[:, 0].tolist() == classes
    for row, box in zip(actual, boxes, strict=True):
        expected = torch.full((4,), -1.0) if box is None else BOXES[0, box]
        torch.testing.assert_close(row[2:], expected)


def test_detection_reports_what_background_outweighs():
    probabilities = torch.tensor([[[0.9], [0.02], [0.08]]])
    (actual,) = multibox_detection(probabilities, torch.zeros(1, 4), BOXES[:, :1])
    assert actual[0, :2].tolist() == pytest.approx([1, 0.08])
