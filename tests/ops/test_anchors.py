"""Anchors by the rules of three originals against the numbers that these compute."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from multibox.errors import ConfigError
from multibox.ops.anchors import caffe_shapes, grid_anchors, hikapok_shapes, mxnet_shapes, pair_shapes
from multibox.ops.mxnet import multibox_prior

TINY_MAPS = [(32, 32), (16, 16), (8, 8), (4, 4), (1, 1)]
TINY_SIZES = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
MAPS_300 = [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
STEPS_300 = [(step / 300, step / 300) for step in (8, 16, 32, 64, 100, 300)]
RATIOS_300 = [(2,), (2, 3), (2, 3), (2, 3), (2,), (2,)]
MAPS_512 = [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
STEPS_512 = [(step / 512, step / 512) for step in (8, 16, 32, 64, 128, 256, 512)]
RATIOS_512 = [(2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)]


def close(actual, expected, atol=1e-6):
    return torch.allclose(actual, torch.tensor(expected, dtype=torch.float32), atol=atol, rtol=0)


@pytest.fixture(scope="module")
def tiny():
    return grid_anchors(mxnet_shapes(TINY_SIZES, [(1, 2, 0.5)] * 5), TINY_MAPS, feature_aspect=True)


@pytest.fixture(scope="module")
def ssd300():
    sizes = [30, 60, 111, 162, 213, 264, 315]
    return grid_anchors(caffe_shapes(sizes[:-1], sizes[1:], RATIOS_300, (300, 300)), MAPS_300, STEPS_300)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (
            0,
            [
                [-0.084375, -0.084375, 0.115625, 0.115625],
                [-0.120375, -0.120375, 0.151625, 0.151625],
                [-0.125796, -0.055086, 0.157046, 0.086336],
                [-0.055086, -0.125796, 0.086336, 0.157046],
            ],
        ),
        (4095, [[0.913664, 0.842954, 1.055086, 1.125796]]),
        (
            4096,
            [
                [-0.15375, -0.15375, 0.21625, 0.21625],
                [-0.19225, -0.19225, 0.25475, 0.25475],
                [-0.23038, -0.099565, 0.29288, 0.162065],
                [-0.099565, -0.23038, 0.162065, 0.29288],
            ],
        ),
        (
            5120,
            [
                [-0.2075, -0.2075, 0.3325, 0.3325],
                [-0.247, -0.247, 0.372, 0.372],
                [-0.319338, -0.128419, 0.444338, 0.253419],
                [-0.128419, -0.319338, 0.253419, 0.444338],
            ],
        ),
        (
            5376,
            [
                [-0.23, -0.23, 0.48, 0.48],
                [-0.27, -0.27, 0.52, 0.52],
                [-0.377046, -0.126023, 0.627046, 0.376023],
                [-0.126023, -0.377046, 0.376023, 0.627046],
            ],
        ),
        (
            5440,
            [
                [0.06, 0.06, 0.94, 0.94],
                [0.0195, 0.0195, 0.9805, 0.9805],
                [-0.122254, 0.188873, 1.122254, 0.811127],
                [0.188873, -0.122254, 0.811127, 1.122254],
            ],
        ),
    ],
)
def test_tinyssd(tiny, start, expected):
    assert tiny.shape == (5444, 4) and tiny.dtype == torch.float32
    assert close(tiny[start : start + len(expected)], expected)


def test_a_map_that_is_wider_than_high_narrows_the_anchors():
    actual = grid_anchors(mxnet_shapes([(0.5, 0.25)], [(1, 2, 0.5)]), [(2, 3)], feature_aspect=True)
    first = [
        [0, 0, 0.333333, 0.5],
        [0.083333, 0.125, 0.25, 0.375],
        [-0.069036, 0.073223, 0.402369, 0.426777],
        [0.048816, -0.103553, 0.284518, 0.603553],
    ]
    last = [
        [0.666667, 0.5, 1, 1],
        [0.75, 0.625, 0.916667, 0.875],
        [0.597631, 0.573223, 1.069036, 0.926777],
        [0.715482, 0.396447, 0.951184, 1.103553],
    ]
    assert actual.shape == (24, 4) and close(actual[:4], first) and close(actual[-4:], last)
    # Row by row: the second cell lies to the right of the first
    assert close(actual[4], [0.333333, 0, 0.666667, 0.5])


def test_every_pixel_of_d2ls_cat_and_dog():
    actual = grid_anchors(mxnet_shapes([(0.75, 0.5, 0.25)], [(1, 2, 0.5)]), [(561, 728)], feature_aspect=True)
    assert actual.shape == (2_042_040, 4)
    assert close(actual.view(561, 728, 5, 4)[250, 250, 0], [0.055117, 0.071524, 0.633070, 0.821524])


def test_mxnet_heeds_the_first_ratio_as_its_operator_does():
    actual = grid_anchors(mxnet_shapes([(0.3, 0.2)], [(3, 4)]), [(4, 6)], feature_aspect=True)
    assert torch.allclose(actual, multibox_prior((4, 6), (0.3, 0.2), (3, 4))[0], atol=1e-6)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (
            0,
            [
                [-0.036667, -0.036667, 0.063333, 0.063333],
                [-0.057377, -0.057377, 0.084044, 0.084044],
                [-0.057377, -0.022022, 0.084044, 0.048689],
                [-0.022022, -0.057377, 0.048689, 0.084044],
                [-0.01, -0.036667, 0.09, 0.063333],
            ],
        ),
        (
            5776,
            [
                [-0.073333, -0.073333, 0.126667, 0.126667],
                [-0.109348, -0.109348, 0.162681, 0.162681],
                [-0.114755, -0.044044, 0.168088, 0.097377],
                [-0.044044, -0.114755, 0.097377, 0.168088],
                [-0.146538, -0.031068, 0.199872, 0.084402],
                [-0.031068, -0.146538, 0.084402, 0.199872],
            ],
        ),
        (7942, [[-0.131667, -0.131667, 0.238333, 0.238333]]),
        (8542, [[-0.163333, -0.163333, 0.376667, 0.376667]]),
        (8692, [[-0.188333, -0.188333, 0.521667, 0.521667]]),
        (8728, [[0.06, 0.06, 0.94, 0.94], [0.019375, 0.019375, 0.980625, 0.980625]]),
    ],
)
def test_ssd300_as_caffe_lays_it(ssd300, start, expected):
    assert ssd300.shape == (8732, 4)
    assert close(ssd300[start : start + len(expected)], expected)


def test_ssd300_equals_torchvisions_generator(ssd300):
    generator = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
        clip=False,
    )
    image = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    torchvisions = generator(image, [torch.zeros(1, 1, *shape) for shape in MAPS_300])[0] / 300
    assert torch.allclose(ssd300, torchvisions, atol=1e-6)


@pytest.mark.parametrize(
    ("whole", "square", "bigger", "wide"),
    [
        (False, (-0.027188, 0.042813), (-0.043422, 0.059047), [-0.041685, -0.016936, 0.057310, 0.032561]),
        (True, (-0.026367, 0.041992), (-0.042554, 0.058179), [-0.040525, -0.016356, 0.056150, 0.031981]),
    ],
)
def test_ssd512_with_sizes_whole_and_broken(whole, square, bigger, wide):
    sizes = [35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6]
    sizes = [int(size) for size in sizes] if whole else sizes
    shapes = caffe_shapes(sizes[:-1], sizes[1:], RATIOS_512, (512, 512))
    actual = grid_anchors(shapes, MAPS_512, STEPS_512)
    assert actual.shape == (24564, 4)
    expected = [[low, low, high, high] for low, high in (square, bigger)]
    assert close(actual[:3], [*expected, wide])


def test_hikapok_puts_the_extra_square_first():
    extra = (0.1414, 0.2739, 0.4541, 0.6315, 0.8078, 0.9836)
    three, five = (1, 2, 0.5), (1, 2, 3, 0.5, 0.3333)
    shapes = hikapok_shapes((0.1, 0.2, 0.375, 0.55, 0.725, 0.9), extra, [three, five, five, five, three, three])
    actual = grid_anchors(shapes, MAPS_300, STEPS_300)
    assert actual.shape == (8732, 4)
    y_first = actual[:, [1, 0, 3, 2]]
    first = [
        [-0.057367, -0.057367, 0.084033, 0.084033],
        [-0.036667, -0.036667, 0.063333, 0.063333],
        [-0.022022, -0.057377, 0.048689, 0.084044],
        [-0.057377, -0.022022, 0.084044, 0.048689],
    ]
    last = [
        [0.0082, 0.0082, 0.9918, 0.9918],
        [0.05, 0.05, 0.95, 0.95],
        [0.181802, -0.136396, 0.818198, 1.136396],
        [-0.136396, 0.181802, 1.136396, 0.818198],
    ]
    assert close(y_first[:4], first) and close(y_first[-4:], last)


def test_offset_step_and_clip():
    shapes = [[(0.5, 0.25)]]
    assert close(grid_anchors(shapes, [(1, 2)], [(0.5, 0.25)], offset=0)[1], [0, -0.125, 0.5, 0.125])
    assert close(grid_anchors(shapes, [(2, 1)], offset=(0.5, 0.0))[1], [-0.25, 0.625, 0.25, 0.875])
    clipped = grid_anchors(shapes, [(2, 1)], offset=(0.5, 0.0), clip=True)
    assert close(clipped[1], [0, 0.625, 0.25, 0.875])


def test_caffe_on_an_input_that_is_not_square():
    shapes = caffe_shapes([30], [30], [(4,)], (300, 600))
    assert shapes == (((0.05, 0.1), (0.05, 0.1), (0.1, 0.05), (0.025, 0.2)),)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ConfigError, match="sizes has 2, ratios has 1"):
        mxnet_shapes([(0.2,), (0.3,)], [(1,)])
    with pytest.raises(ConfigError, match="max_sizes has 1"):
        caffe_shapes([30, 60], [60], [(2,), (2,)], (300, 300))
    with pytest.raises(ConfigError, match="extra_scales has 1"):
        hikapok_shapes([0.1, 0.2], [0.1], [(1,), (1,)])
    with pytest.raises(ConfigError, match="feature_shapes has 2"):
        grid_anchors([[(0.1, 0.1)]], [(1, 1), (2, 2)])
    with pytest.raises(ConfigError, match="steps has 1"):
        grid_anchors([[(0.1, 0.1)]] * 2, [(1, 1), (2, 2)], [(1, 1)])
    with pytest.raises(ConfigError, match="feature map 1 has 1 sizes but 2 ratios; pair them up"):
        pair_shapes([(0.1,), (0.2,)], [(1,), (1, 2)])
