"""Box codes: worked examples, inverse of each other, degenerate boxes, precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_convert

from multibox.ops.coding import VARIANCES, decode, encode

CODES = ("center_size", "corner", "corner_size")


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize(
    ("anchor", "gt", "expected"),
    [
        ([0.15, 0.2, 0.4, 0.4], [0.1, 0.08, 0.52, 0.92], [1.4, 10.0, 2.593969, 7.175423]),
        ([0.2, 0.2, 0.6, 0.6], [0.3, 0.25, 0.7, 0.65], [2.5, 1.25, 0, 0]),
        ([0.25, 0.25, 0.75, 0.75], [0, 0, 1, 1], [0, 0, 3.465736, 3.465736]),
    ],
)
def test_encode_by_hand_and_back(anchor, gt, expected):
    actual = encode(rows(gt), rows(anchor))
    assert torch.allclose(actual, rows(expected), atol=2e-6, rtol=1e-6)
    assert torch.allclose(decode(actual, rows(anchor)), rows(gt), atol=1e-6)


def test_hikapoks_y_first_order_is_a_permutation():
    actual = encode(rows([0.1, 0.08, 0.52, 0.92]), rows([0.15, 0.2, 0.4, 0.4]))
    assert torch.allclose(actual[:, [1, 0, 3, 2]], rows([10.0, 1.4, 7.175423, 2.593969]), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("anchor", "offsets", "expected"),
    [
        ([0.2, 0.2, 0.6, 0.6], [1, -1, 0, 0], [0.24, 0.16, 0.64, 0.56]),
        ([0.2, 0.2, 0.6, 0.6], [1, -1, 1, -2], [0.195719, 0.225936, 0.684281, 0.494064]),
        ([0.5, 0.5, 1.1, 0.9], [2, 0, 1, 0], [0.553579, 0.5, 1.286421, 0.9]),
    ],
)
def test_decode_by_hand(anchor, offsets, expected):
    assert torch.allclose(decode(rows(offsets), rows(anchor)), rows(expected), atol=1e-6)


def test_each_variance_scales_its_own_offset():
    anchor, gt = rows([0.2, 0.2, 0.6, 0.6]), rows([0.1, 0.3, 0.7, 0.9])
    plain = {code: encode(gt, anchor, (1, 1, 1, 1), code) for code in CODES}
    assert torch.allclose(plain["corner"], rows([-0.1, 0.1, 0.1, 0.3]))
    assert torch.allclose(plain["corner_size"], rows([-0.25, 0.25, 0.25, 0.75]))
    assert torch.allclose(plain["center_size"], rows([0, 0.5, 0.405465, 0.405465]), atol=1e-6)
    variances = (0.1, 0.2, 0.4, 0.5)
    for code in CODES:
        assert torch.allclose(encode(gt, anchor, variances, code), plain[code] / rows(variances), atol=1e-6)
        assert torch.allclose(decode(plain[code] / rows(variances), anchor, variances, code), gt, atol=1e-6)


def test_corner_size_divides_x_by_the_width_and_y_by_the_height():
    actual = encode(rows([0.1, 0.3, 0.7, 0.9]), rows([0.2, 0.2, 0.4, 1.0]), (1, 1, 1, 1), "corner_size")
    assert torch.allclose(actual, rows([-0.5, 0.125, 1.5, -0.125]), atol=1e-6)


place, size = st.floats(-0.5, 1.2), st.floats(0.01, 1.5)
box = st.tuples(place, place, size, size)


@given(
    pairs=st.lists(st.tuples(box, box), min_size=1, max_size=6),
    variances=st.sampled_from([VARIANCES, (1, 1, 1, 1), (0.1, 0.2, 0.3, 0.4)]),
    code=st.sampled_from(CODES),
)
def test_decoding_undoes_encoding(pairs, variances, code):
    gt, anchors = box_convert(torch.tensor(pairs, dtype=torch.float64), "xywh", "xyxy").unbind(1)
    offsets = encode(gt, anchors, variances, code)
    assert torch.allclose(decode(offsets, anchors, variances, code), gt, atol=1e-9)
    assert torch.allclose(encode(decode(offsets, anchors, variances, code), anchors, variances, code), offsets)
    # float32 with a leading axis of images
    gt, anchors = gt.float().expand(3, -1, -1), anchors.float()
    actual = decode(encode(gt, anchors, variances, code), anchors, variances, code)
    assert actual.shape == gt.shape and torch.allclose(actual, gt, atol=1e-5)


@pytest.mark.parametrize("code", CODES)
def test_boxes_without_area_give_finite_offsets_and_gradients(code):
    gt = rows([-1, -1, -1, -1], [0.3, 0.3, 0.3, 0.8], [0.8, 0.8, 0.2, 0.3], [0.1, 0.1, 0.9, 0.9]).requires_grad_()
    anchors = rows([0.2, 0.2, 0.6, 0.6], [0.2, 0.2, 0.6, 0.6], [0.2, 0.2, 0.6, 0.6], [0.5, 0.5, 0.5, 0.5])
    anchors.requires_grad_()
    actual = encode(gt, anchors, code=code)
    actual.sum().backward()
    assert actual.isfinite().all() and gt.grad.isfinite().all() and anchors.grad.isfinite().all()
    offsets = torch.full((4, 4), 3.0, requires_grad=True)
    back = decode(offsets, anchors, code=code)
    back.sum().backward()
    assert back.isfinite().all() and offsets.grad.isfinite().all()


def test_there_is_no_epsilon_inside_the_logarithm():
    same_width = encode(rows([0.3, 0.25, 0.7, 0.65]), rows([0.2, 0.2, 0.6, 0.6]))
    assert same_width[0, 2:].abs().max() < 1e-6  # d2l's PyTorch version has 5e-6 here


@pytest.mark.parametrize("code", CODES)
def test_half_precision_is_computed_and_returned_in_float32(code):
    gt, anchors = rows([0.3, 0.25, 0.7, 0.65]).bfloat16(), rows([0.2, 0.2, 0.6, 0.6]).bfloat16()
    for function in (encode, decode):
        actual = function(gt, anchors, code=code)
        assert actual.dtype == torch.float32
        assert torch.equal(actual, function(gt.float(), anchors.float(), code=code))
