"""HiKapok's SSD300: its own code's outputs on seeded weights, and checkpoints that TensorFlow wrote."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from multibox.errors import WeightsError
from multibox.importers.common import VOC
from multibox.importers.hikapok import convert, read, state_dict
from multibox.models.anchor_layout import make_anchors
from multibox.models.build import build_model
from multibox.ops.coding import decode

GOLDEN = Path(__file__).parents[1] / "golden" / "hikapok_ssd300.npz"
"""Its `meta` says how it was made."""
FILE = Path("model.ckpt-120000")
LEVELS = np.cumsum([5776, 2166, 600, 150, 36, 4])
YX = [1, 0, 3, 2]
SHAPES = {name: tuple(shape) for name, shape in json.loads(np.load(GOLDEN)["meta"].item())["variables"].items()}


def zeros(shapes=SHAPES):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture
def seeded(seeded_weights):
    def make(name, shape):
        if len(shape) == 1:
            return seeded_weights(name, shape)
        kernel = seeded_weights(name, tuple(shape[axis] for axis in (3, 2, 0, 1))).transpose(2, 3, 1, 0)
        return kernel / np.float32(64) if name == "ssd300/conv1/conv1_1/kernel" else kernel

    return {name: make(name, shape) for name, shape in SHAPES.items()}


@pytest.mark.slow
def test_outputs_and_boxes_are_those_of_its_own_code(golden, seeded):
    found = convert(FILE, seeded, [])
    assert found.class_names == tuple(VOC)
    model = build_model(found.config, len(VOC)).eval()
    model.load_state_dict(found.state)
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    with torch.inference_mode():
        outputs = model(torch.from_numpy(image).permute(2, 0, 1)[None])
    anchors = make_anchors(found.config.anchors, outputs.feature_shapes, (300, 300))
    boxes = decode(outputs.offsets[0], anchors, found.config.model.variances)
    rows = golden["rows"]
    levels = np.searchsorted(LEVELS, rows, side="right")
    assert set(levels) == set(range(6))
    assert len(anchors) == LEVELS[-1]
    pairs = (
        (outputs.logits[0], golden["logits"]),
        (outputs.offsets[0], golden["offsets"][:, YX]),
        (boxes, golden["boxes"][:, YX]),
    )
    for ours, theirs in pairs:
        for level in range(6):
            here, wanted = ours[rows[levels == level]].numpy(), theirs[levels == level]
            np.testing.assert_allclose(here, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(anchors[rows].numpy(), golden["anchors"][:, YX], rtol=0, atol=1e-6)


def test_what_training_left_beside_the_weights_is_dropped():
    shapes = {"ssd300/conv4_3_scale/weights": (512,), "ssd300/fc7/bias": (4,), "ssd300/conv9_bn/gamma": (4,)}
    left = ["global_step", "ssd300/fc7/bias/Momentum", "ssd300/fc7/bias/ExponentialMovingAverage"]
    left += ["tower_1/ssd300/conv4_3_scale/weights", "beta1_power"]
    state = state_dict(zeros(shapes | dict.fromkeys(left, ())))
    assert state.keys() == {"backbone.norm.scale", "backbone.fc7.bias", "conv9_bn/gamma"}


@pytest.mark.parametrize("scope", ["", "detector/v2/"])
def test_any_scope(scope):
    shapes = {scope + name.removeprefix("ssd300/"): shape for name, shape in SHAPES.items()}
    assert state_dict(zeros({**shapes, "global_step": ()})).keys() == state_dict(zeros()).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("ssd300/fc6/kernel"), r"lacks 1 tensors of ssd300-vgg16 \(backbone\.fc6\.weight\)"),
        (lambda v: v.update({"ssd300/conv12/kernel": np.zeros(1)}), r"has 1 that it does not know \(conv12/weight\)"),
        (
            lambda v: v.pop("ssd300/multibox_head/cls_0/bias"),
            "expected variables such as ssd300/multibox_head/cls_0/bias",
        ),
        (lambda v: v.update({"ssd300/fc7/bias": np.zeros(9)}), r"fc7\.bias has shape \[9\], expected \[1024\]"),
        (lambda v: v.clear(), r"no checkpoint of HiKapok's SSD300: .* ssd300/conv4_3_scale/weights, found none"),
        (
            lambda v: (v.clear(), v.update({"vgg_16/fc6/weights": np.zeros(1)})),
            r"expected variables such as ssd300/conv4_3_scale/weights, found vgg_16/fc6/weights",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    variables = zeros()
    change(variables)
    with pytest.raises(WeightsError, match=message):
        convert(FILE, variables, [])


def test_three_anchors_a_cell_are_another_network():
    first = "ssd300/multibox_head/"
    shapes = {f"{first}cls_0/kernel": (3, 3, 512, 63), f"{first}cls_0/bias": (63,)}
    shapes |= {f"{first}loc_0/kernel": (3, 3, 512, 12), f"{first}loc_0/bias": (12,)}
    with pytest.raises(
        WeightsError, match=r"has shape \[63, 512, 3, 3\], expected \[84, 512, 3, 3\] .* with 20 classes"
    ):
        convert(FILE, zeros(SHAPES | shapes), [])


def test_without_tensorflow_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(WeightsError, match=r"model\.ckpt-120000 .*not installed: pip install tensorflow"):
        read(FILE, [])


@pytest.fixture
def checkpoints(monkeypatch):
    """Checkpoints by prefix, read through a stand-in for the four names of TensorFlow that are used."""
    held = {}

    class OpError(Exception):
        pass

    def load_checkpoint(prefix):
        if Path(prefix) not in held:
            raise OpError(f"Unable to open {prefix}\nand more")
        variables = held[Path(prefix)]
        return SimpleNamespace(get_tensor=variables.get, get_variable_to_shape_map=lambda: variables)

    def latest_checkpoint(folder):
        return next((str(prefix) for prefix in held if prefix.parent == Path(folder)), None)

    train = SimpleNamespace(load_checkpoint=load_checkpoint, latest_checkpoint=latest_checkpoint)
    errors = SimpleNamespace(OpError=OpError)
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(train=train, errors=errors))
    return held


@pytest.mark.slow
def test_a_checkpoint_of_tensorflow(checkpoints, tmp_path):
    prefix = tmp_path / FILE
    variables = {**zeros(), "global_step": np.int64(7), "ssd300/fc7/bias/Momentum": np.ones(1024, np.float32)}
    variables["ssd300/multibox_head/loc_5/bias"][:] = np.arange(16)
    checkpoints[prefix] = variables
    for file in (prefix, Path(f"{prefix}.index"), Path(f"{prefix}.data-00000-of-00001"), tmp_path):
        found = read(file, [])
        assert found.state["heads.localization.5.bias"].tolist() == [i ^ 1 for i in range(16)]
        assert found.source.endswith(file.name)


def test_what_is_no_checkpoint_of_tensorflow(checkpoints, tmp_path):
    with pytest.raises(WeightsError, match=r"absent.ckpt is no readable .* \(Unable to open .*ckpt\).*side by side"):
        read(tmp_path / "absent.ckpt", [])
    with pytest.raises(WeightsError, match="no file `checkpoint` that names one in reach"):
        read(tmp_path, [])
