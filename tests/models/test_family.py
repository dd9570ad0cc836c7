"""The presets against what the original implementations say of themselves: parameters, anchors, any input size."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_convert

from multibox.api import create
from multibox.config import Config
from multibox.errors import ConfigError
from multibox.models.anchor_layout import make_anchors
from multibox.models.build import build_model, measure
from multibox.presets import PRESETS, resolve


@pytest.mark.parametrize(
    ("preset", "classes", "parameters", "anchors"),
    [
        ("tinyssd", 1, 1_010_376, 5444),  # d2l.ai's TinySSD
        ("ssd300-vgg16", 20, 26_285_486, 8732),  # Caffe's, VOC
        ("ssd300-vgg16", 80, 34_305_206, 8732),
        ("ssd300-vgg16", 90, 35_641_826, 8732),  # torchvision's
        ("ssd512-vgg16", 20, 27_188_676, 24564),  # Caffe's
        ("ssd300-mobilenetv1", 90, None, 1917),
        ("ssdlite320-mobilenetv3", 90, 3_440_060, 3234),  # torchvision's num_params
        ("rfb320-face", 1, None, 4420),
        ("ssd300-resnet50", 80, None, 8732),
    ],
)
def test_sizes_are_those_of_the_original(preset, classes, parameters, anchors):
    size = measure(resolve(preset, changes={"anchors.fit": "none"}), classes)
    assert size.anchors == anchors
    if parameters is not None:
        assert size.parameters == parameters


@pytest.mark.parametrize("classes", [1, 20, 80])
def test_multibox_s_stays_under_a_billion_multiply_adds(classes):
    assert measure(resolve("multibox-s"), classes).multiply_adds < 1e9


def test_the_light_presets_are_light():
    assert measure(resolve("ssdlite320-mobilenetv3"), 90).multiply_adds == pytest.approx(0.583e9, rel=0.01)


def anchors_of(preset, **changes):
    config = resolve(preset, changes={"anchors.fit": "none", **changes})
    shapes = measure(config, 2).feature_shapes
    return make_anchors(config.anchors, shapes, config.model.input_size)


def test_vgg_anchors_are_those_of_caffe():
    found = anchors_of("ssd300-vgg16").numpy()
    expected = {
        0: [-0.036667, -0.036667, 0.063333, 0.063333],
        1: [-0.057377, -0.057377, 0.084044, 0.084044],
        2: [-0.057377, -0.022022, 0.084044, 0.048689],
        4: [-0.01, -0.036667, 0.09, 0.063333],
        5776: [-0.073333, -0.073333, 0.126667, 0.126667],
        7942: [-0.131667, -0.131667, 0.238333, 0.238333],
        8692: [-0.188333, -0.188333, 0.521667, 0.521667],
        8729: [0.019375, 0.019375, 0.980625, 0.980625],
    }  # Caffe's PriorBox, worked out in numpy
    for index, box in expected.items():
        np.testing.assert_allclose(found[index], box, atol=1e-6)
    first = anchors_of("ssd512-vgg16").numpy()[0]
    np.testing.assert_allclose(first[[0, 3]], [-0.027188, 0.042813], atol=1e-6)


def test_mobilenet_anchors_are_those_of_tensorflow(shared):
    rows = np.loadtxt(shared / "golden/mediapipe_anchors/anchor_golden_file_1.txt")
    found = box_convert(anchors_of("ssd300-mobilenetv1"), "xyxy", "cxcywh").numpy()
    np.testing.assert_allclose(found, rows, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["ssd300-vgg16", "ssd300-mobilenetv1", "ssdlite320-mobilenetv3"])
def test_at_another_aspect_squares_stay_square_and_centres_fill_the_input(preset):
    height, width = 270, 480
    found = anchors_of(preset, **{"model.input_size": [height, width]})
    pixels = found * torch.tensor([width, height, width, height])
    first_w, first_h = (pixels[0, 2:] - pixels[0, :2]).tolist()
    assert first_w == pytest.approx(first_h, rel=1e-5)
    centers = (found[:, :2] + found[:, 2:]) / 2
    assert 0 < centers.min() < 0.05
    assert 0.95 < centers.max() < 1
    square = anchors_of(preset)
    # The share of the shorter side stays what it was
    share = (square[0, 3] - square[0, 1]).item()
    assert first_h / height == pytest.approx(share, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_pretrained_weights_are_kept_at_any_size(preset):
    base = resolve(preset, changes={"anchors.fit": "none"})
    trained = build_model(base, 2, seed=1).state_dict()
    other = build_model(base.updated({"model.input_size": [160, 288]}), 2, seed=2)
    other.load_state_dict(trained, strict=True)
    assert torch.equal(next(iter(other.parameters())), next(iter(trained.values())))


def test_images_of_any_size_give_boxes_in_their_own_pixels():
    detector = create("ssdlite320-mobilenetv3", ["cat"])
    for height, width in ((1, 7), (50, 3), (700, 20)):
        found = detector.predict(np.full((height, width, 3), 127, np.uint8), threshold=0.0)
        assert len(found.scores) > 0
        assert found.boxes[:, [0, 2]].max() <= width
        assert found.boxes[:, [1, 3]].max() <= height


def test_same_seed_same_weights_and_global_generator_untouched():
    before = torch.random.get_rng_state()
    first, second = (build_model(resolve("tinyssd"), 2, seed=5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = build_model(resolve("tinyssd"), 2, seed=6).state_dict()
    assert not torch.equal(first["backbone.stages.0.0.conv1.weight"], other["backbone.stages.0.0.conv1.weight"])


def test_prior_sets_the_first_probability_of_background():
    config = resolve("tinyssd").updated({"model.prior": 0.02})
    model = build_model(config, 3).eval()
    for head in model.heads.classification:
        torch.nn.init.zeros_(head.weight)
    scores = model(torch.zeros(1, 3, 64, 64)).logits.softmax(-1)
    assert torch.allclose(scores[..., 0], torch.tensor(0.98), atol=1e-5)


def test_anchor_lists_of_the_wrong_length_are_refused():
    with pytest.raises(ConfigError, match=r"2 feature maps but tinyssd has 5"):
        build_model(Config().updated({"anchors.sizes": [[0.2], [0.3]], "anchors.ratios": [[1], [1]]}), 1)
