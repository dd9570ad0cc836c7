"""GluonCV's SSD over VGG16: outputs equal GluonCV's own, both namings, and what is refused.

The golden file was made by GluonCV 0.10.5 in MXNet 1.9.1; the script that made it stands in its `meta`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from multibox.errors import WeightsError
from multibox.importers import gluoncv
from multibox.models.anchor_layout import make_anchors
from multibox.models.build import build_model
from multibox.presets import resolve

FILE = Path("ssd.params")
SIDES = (300, 512)
VOC300 = ((30, 60), (60, 111), (111, 162), (162, 213), (213, 264), (264, 315))


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "gluoncv_ssd.npz") as found:
        arrays = dict(found)
    return arrays | {"meta": json.loads(str(arrays["meta"]))}


def cells(low, high, ratios, step):
    """Return GluonCV's constant for two rows and columns: (centre x, centre y, width, height) in pixels."""
    shapes = [(low, low), ((low * high) ** 0.5,) * 2]
    shapes += [(low * r**0.5, low / r**0.5) for ratio in ratios for r in (ratio, 1 / ratio)]
    rows = [[[(x * step, y * step, *shape) for shape in shapes] for x in (0.5, 1.5)] for y in (0.5, 1.5)]
    return np.array(rows, np.float32).reshape(1, 1, 2, 2, -1)


def parameters(golden, side, fill, classes=3, prefixed=False):
    """Return what a file holds; `fill` makes a trained array from structural name and shape."""
    network = golden["meta"]["networks"][str(side)]
    params = {}
    for name, old, shape in network["parameters"]:
        if name == "features.init_scale":
            array = np.array(network["init_scale"], np.float32).reshape(shape)
        elif name.startswith("anchor_generators."):
            array = golden[f"cells_{side}_{name.split('.')[1]}"]
        else:
            out = shape[0] // 4 * (classes + 1) if name.startswith("class_predictors.") else shape[0]
            array = fill(name, (out, *shape[1:]))
        params[old if prefixed else name] = array
    return params


def blank(name, shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("side", [300, pytest.param(512, marks=pytest.mark.slow)])
def test_outputs_equal_gluoncv(golden, side, seeded_weights):
    def fill(name, shape):
        if name == "features.norm4.scale":
            return 20 * seeded_weights(name, (512,)).reshape(shape)
        return seeded_weights(name, shape)

    checkpoint = gluoncv.convert(FILE, parameters(golden, side, fill), ["a", "b", "c"])
    assert checkpoint.class_names == ("a", "b", "c")
    model = build_model(checkpoint.config, 3).eval()
    model.load_state_dict(dict(checkpoint.state))
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    with torch.inference_mode():
        outputs = model(torch.from_numpy(image).permute(2, 0, 1)[None])
    rows = golden[f"rows_{side}"]
    anchors = make_anchors(checkpoint.config.anchors, outputs.feature_shapes, checkpoint.config.model.input_size)
    assert len(anchors) == outputs.logits.shape[1] == {300: 8732, 512: 24564}[side]
    np.testing.assert_allclose(anchors[rows], golden[f"anchors_{side}"], rtol=0, atol=1e-6)
    per_level = zip(outputs.feature_shapes, model.heads.localization, strict=True)
    ends = np.cumsum([h * w * head.out_channels // 4 for (h, w), head in per_level])
    level = np.searchsorted(ends, rows, side="right")
    assert set(level) == set(range(len(ends)))
    for ours, name in ((outputs.logits, "logits"), (outputs.offsets, "offsets")):
        theirs = golden[f"{name}_{side}"]
        for index in range(len(ends)):  # Levels differ in scale a hundredfold
            want = theirs[level == index]
            error = np.abs(ours[0, rows[level == index]].numpy() - want).max()
            assert error < 1e-4 * np.abs(want).max(), (name, index, error)


def test_settings_are_gluoncvs(golden):
    config = gluoncv.convert(FILE, parameters(golden, 300, blank), []).config
    assert config.model.input_size == (300, 300)
    assert config.model.mean == pytest.approx((123.675, 116.28, 103.53))
    assert config.model.std == (1, 1, 1)
    assert config.model.variances == (0.1, 0.1, 0.2, 0.2)
    # A network for one's own classes has COCO's sizes
    assert config.anchors.sizes == ((21, 45), (45, 99), (99, 153), (153, 207), (207, 261), (261, 315))
    assert config.anchors.steps == (8, 16, 32, 64, 100, 300)
    assert not config.anchors.clip
    assert not config.anchors.clip_shapes
    post = config.post
    assert (post.score_threshold, post.nms_threshold, post.pre_nms_topk, post.max_detections) == (0.01, 0.45, 400, 100)
    large = gluoncv.convert(FILE, parameters(golden, 512, blank), []).config
    assert large.anchors.sizes[0] == (51.2, 76.8)
    assert large.anchors.sizes[1:] == resolve("ssd512-vgg16").anchors.sizes[1:]


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prefix", ["ssd0_", "ssd17_", "my_net_", ""])
def test_names_with_prefixes_mean_the_same(golden, side, prefix):
    marks = {}

    def fill(name, shape):
        return np.full(shape, marks.setdefault(name, len(marks) + 1), np.float32)

    plain = gluoncv.convert(FILE, parameters(golden, side, fill), [])
    old = parameters(golden, side, fill, prefixed=True)
    assert gluoncv.is_ssd(old)
    read = gluoncv.convert(FILE, {prefix + name.partition("_")[2]: array for name, array in old.items()}, [])
    assert read.config == plain.config
    assert {name: float(value.flatten()[0]) for name, value in read.state.items()} == {
        name: float(value.flatten()[0]) for name, value in plain.state.items()
    }
    assert len({float(value.flatten()[0]) for value in plain.state.values()}) == len(plain.state)


def test_sizes_come_from_the_file(golden):
    params = parameters(golden, 300, blank)
    ratios, steps = resolve("ssd300-vgg16").anchors.ratios, (8, 16, 32, 64, 100, 300)
    for level, ((low, high), extra, step) in enumerate(zip(VOC300, ratios, steps, strict=True)):
        params[f"anchor_generators.{level}.anchors"] = cells(low, high, extra, step)
    assert gluoncv.convert(FILE, params, []).config.anchors == resolve("ssd300-vgg16").anchors


def test_names_of_the_classes(golden):
    def names(classes, given=()):
        return gluoncv.convert(FILE, parameters(golden, 300, blank, classes), list(given)).class_names

    assert names(3) == ("class0", "class1", "class2")
    assert names(20)[::19] == ("aeroplane", "tvmonitor")
    assert names(80)[::79] == ("person", "toothbrush")
    assert len(names(80)) == len(set(names(80))) == 80
    assert names(1, ["cell"]) == ("cell",)
    with pytest.raises(WeightsError, match=r"ssd\.params was trained for 2 classes, but --names gives 1: cell"):
        names(2, ["cell"])


def test_a_changed_scale_of_the_input_is_kept(golden):
    params = parameters(golden, 300, blank) | {"features.init_scale": np.ones((1, 3, 1, 1), np.float32)}
    assert gluoncv.convert(FILE, params, []).config.model.std == pytest.approx((58.395, 57.12, 57.375))


def test_told_by_names():
    assert gluoncv.is_ssd({"class_predictors.0.predictor.weight": 0})
    assert gluoncv.is_ssd({"ssd3_convpredictor11_conv0_bias": 0})
    assert not gluoncv.is_ssd({"blk_0.0.0.weight": 0, "cls_0.weight": 0, "tinyssd0_conv0_weight": 0})
    assert not gluoncv.is_ssd({})


def without(*endings):
    return lambda params: {name: array for name, array in params.items() if not name.endswith(endings)}


def with_one(name, array):
    return lambda params: params | {name: array}


DAMAGE = {
    "tensor": (without("stages.2.2.weight"), r"lacks 1 tensors of ssd300-vgg16 \(backbone\.features\.12\.weight\)"),
    "predictor": (without("class_predictors.3.predictor.bias"), r"lacks 1 .*heads\.classification\.3\.bias"),
    "anchors": (without("generators.3.anchors"), r"expected tensors such as anchor_generators\.3\.anchors"),
    "body": (without("stages.0.0.weight"), "is not GluonCV's SSD over VGG16"),
    "batch norm": (
        with_one("features.stages.0.1.gamma", np.ones(64)),
        r"does not know \(features\.stages\.0\.1\.gamma",
    ),
    "map": (with_one("box_predictors.9.predictor.bias", np.ones(16)), "predicts on 10 feature maps, but .* has 6 or 7"),
    "shape": (
        with_one("features.stages.5.0.bias", np.ones(9)),
        r"backbone\.fc6\.bias has shape \[9\], expected \[1024\]",
    ),
    "ratios": (
        with_one("anchor_generators.1.anchors", cells(45, 99, (2, 4), 16)),
        "its anchors are not those of ratios",
    ),
    "sizes": (
        with_one("anchor_generators.1.anchors", cells(45, 98, (2, 3), 16)),
        "its anchors are not those of ratios",
    ),
    "per cell": (
        with_one("anchor_generators.1.anchors", cells(45, 99, (2,), 16)),
        "its anchors are not those of ratios",
    ),
    "nothing": (with_one("anchor_generators.5.anchors", cells(0, 0, (2,), 300)), "its anchors are not those of ratios"),
    "flat": (with_one("anchor_generators.1.anchors", np.ones((4, 4))), r"anchors has shape \[4, 4\], expected \[1, 1"),
    "scale": (with_one("features.init_scale", np.zeros(3)), "expected three positive factors"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_what_does_not_fit_is_refused(golden, kind):
    damage, message = DAMAGE[kind]
    with pytest.raises(WeightsError, match=message) as caught:
        gluoncv.convert(FILE, damage(parameters(golden, 300, blank)), [])
    assert str(caught.value).startswith("ssd.params")
    assert "\n" not in str(caught.value)
