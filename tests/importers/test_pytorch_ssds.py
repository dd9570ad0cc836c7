"""ssd.pytorch, lufficc's SSD and pytorch-ssd: outputs and anchors of the originals, and what is refused.

The golden file holds what the original definitions computed on weights that both sides make from the tensors' names;
its `meta` says how, and lists the tensors.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from multibox.errors import WeightsError
from multibox.importers.common import VOC
from multibox.importers.pytorch_ssds import read_lufficc, read_qfgaohao, read_ssd_pytorch
from multibox.models.anchor_layout import make_anchors
from multibox.models.build import build_model

READERS = {
    "ssd_pytorch": read_ssd_pytorch,
    "lufficc_300": read_lufficc,
    "lufficc_512": read_lufficc,
    "qfgaohao": read_qfgaohao,
}
CLASS_HEADS = ("conf.", "box_head.predictor.cls_headers.", "classification_headers.")
EVERY = pytest.mark.parametrize("case", READERS)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "pytorch_ssds.npz") as arrays:
        found = dict(arrays)
    return found | json.loads(str(found["meta"]))["cases"]


@pytest.fixture
def blank(golden):
    """Return a function that makes zeros, one number in memory, for every tensor of a case."""

    def make(case, logits=21):
        state = {}
        for name, (*shape,) in golden[case]["tensors"].items():
            if name.startswith(CLASS_HEADS):
                shape[0] = shape[0] // 21 * logits
            state[name] = torch.zeros(()).expand(shape)
        return state

    return make


@pytest.fixture
def read(tmp_path):
    def save_and_read(case, state, names=()):
        torch.save(state, tmp_path / "net.pth")
        return READERS[case](tmp_path / "net.pth", list(names))

    return save_and_read


def trained(tensors, seeded_weights):
    """Return the weights that the originals had; vectors called weight are scales."""
    state = {}
    for name, shape in tensors.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
            continue
        seed = f"{name}.scale" if name.endswith(".weight") and len(shape) == 1 else name
        state[name] = torch.from_numpy(seeded_weights(seed, tuple(shape)))
    return state


def check_anchors(golden, case, config, shapes):
    anchors = make_anchors(config.anchors, shapes, config.model.input_size).numpy()
    assert len(anchors) == golden[case]["anchors"]
    rows, wanted = golden[f"{case}.rows"], golden[f"{case}.anchors"]
    np.testing.assert_allclose(anchors[rows], wanted, rtol=0, atol=1e-5)


def maps(levels, per_cell):
    sides = [round((count / anchors) ** 0.5) for count, anchors in zip(levels, per_cell, strict=True)]
    return tuple((side, side) for side in sides)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * case.endswith("512")) for case in READERS]
)
def test_outputs_and_anchors_equal_the_originals(golden, case, tmp_path, seeded_weights):
    expected, file = golden[case], tmp_path / "net.pth"
    state = trained(expected["tensors"], seeded_weights)
    if case == "ssd_pytorch":  # of 2017, and from nn.DataParallel
        state = {f"module.{name}": value for name, value in state.items()}
        torch.save(state, file, _use_new_zipfile_serialization=False)
    else:
        torch.save({"model": state, "iteration": 7} if case.startswith("lufficc") else state, file)
    found = READERS[case](file, [])
    assert found.class_names == tuple(VOC)
    assert found.source.endswith("net.pth")

    model = build_model(found.config, len(VOC)).eval()
    model.load_state_dict(found.state)
    size = expected["size"]
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    with torch.inference_mode():
        outputs = model(torch.from_numpy(image).permute(2, 0, 1)[None])
    rows, ends = golden[f"{case}.rows"], np.cumsum(expected["levels"])
    assert outputs.logits.shape[1] == ends[-1]
    for name, ours in (("logits", outputs.logits), ("offsets", outputs.offsets)):
        got, wanted = ours[0].numpy()[rows], golden[f"{case}.{name}"]
        for start, end in zip((0, *ends), ends, strict=False):
            level = (rows >= start) & (rows < end)
            np.testing.assert_allclose(got[level], wanted[level], rtol=0, atol=1e-3 * wanted[level].std())
    check_anchors(golden, case, found.config, outputs.feature_shapes)


@pytest.mark.parametrize(
    ("case", "logits", "fitting"),
    [
        ("ssd_pytorch", 81, "ssd_pytorch_coco"),
        ("ssd_pytorch", 201, "ssd_pytorch_coco"),
        ("ssd_pytorch", 4, "ssd_pytorch_coco"),
        ("lufficc_300", 81, "lufficc_300_coco"),
        ("lufficc_300", 4, "lufficc_300"),
        ("lufficc_512", 81, "lufficc_512_coco"),
        ("lufficc_512", 4, "lufficc_512"),
        ("qfgaohao", 81, "qfgaohao"),
    ],
)
def test_the_number_of_classes_tells_the_anchors(golden, read, blank, case, logits, fitting):
    found = read(case, blank(case, logits))
    per_cell = [2 + 2 * len(ratios) for ratios in found.config.anchors.ratios]
    check_anchors(golden, fitting, found.config, maps(golden[fitting]["levels"], per_cell))
    assert len(found.class_names) == logits - 1
    if fitting.endswith("coco") and logits > 80:
        assert (found.class_names[0], found.class_names[79]) == ("person", "toothbrush")
        assert set(found.class_names[80:]) == {f"unused {index}" for index in range(81, logits)}
    else:
        assert found.class_names[0] == "class0"


@EVERY
def test_names_that_are_given_count(read, blank, case):
    names = ("cat", "dog", "owl")
    assert read(case, blank(case, 4), names).class_names == names
    with pytest.raises(WeightsError, match=r"net\.pth was trained for 20 classes, but --names gives 3: cat, dog, owl"):
        read(case, blank(case), names)


def test_batch_counters_may_be_absent(read, blank):
    old = {name: value for name, value in blank("qfgaohao").items() if "num_batches" not in name}
    assert "backbone.layers.0.1.num_batches_tracked" in read("qfgaohao", old).state


@pytest.mark.parametrize(
    ("case", "lost", "message"),
    [
        (
            "ssd_pytorch",
            "vgg.33.weight",
            "is not SSD300 of ssd.pytorch .*: expected tensors such as vgg.33.weight",
        ),
        ("ssd_pytorch", "vgg.14.bias", r"lacks 1 tensors of ssd300-vgg16 \(backbone.features.14.bias\)"),
        ("lufficc_300", "backbone.l2_norm.weight", r"lacks 1 tensors of ssd300-vgg16 \(backbone.norm.scale\)"),
        ("lufficc_512", "backbone.extras.8.bias", r"lacks 1 tensors of ssd512-vgg16 \(backbone.extras.4.0.bias\)"),
        ("qfgaohao", "extras.2.0.bias", r"lacks 1 tensors of ssd300-mobilenetv1 \(backbone.extras.2.0.bias\)"),
    ],
)
def test_a_missing_tensor_is_named(read, blank, case, lost, message):
    state = blank(case)
    del state[lost]
    with pytest.raises(WeightsError, match=message):
        read(case, state)


def test_a_larger_relative_is_refused(read, blank):
    more = {f"extras.{index}.weight": torch.zeros(()) for index in (8, 9)}
    with pytest.raises(WeightsError, match=r"has 2 that it does not know \(backbone.extras.4.0.weight, "):
        read("ssd_pytorch", blank("ssd_pytorch") | more)


def test_another_shape_is_named(read, blank):
    state = blank("qfgaohao") | {"base_net.0.0.weight": torch.zeros(16, 3, 3, 3)}
    with pytest.raises(WeightsError, match=r"backbone.layers.0.0.weight has shape \[16, 3, 3, 3\]"):
        read("qfgaohao", state)


@EVERY
def test_a_foreign_network_is_refused(read, blank, case):
    foreign = "qfgaohao" if case == "ssd_pytorch" else "ssd_pytorch"
    with pytest.raises(WeightsError, match=r"net\.pth is not .* expected tensors such as .*, found .* \.\.\.$"):
        read(case, blank(foreign))


@pytest.mark.parametrize("name", ["backbone.features.0.0.weight", "backbone._conv_stem.weight", "vgg.0.weight"])
def test_other_backbones_of_lufficc_are_refused(read, name):
    with pytest.raises(WeightsError, match="of its backbones only vgg is read"):
        read("lufficc_300", {name: torch.zeros(1)})


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        (["base_net.0.weight", "classification_headers.0.weight", "source_layer_add_ons.0.scale"], "vgg16-ssd"),
        (["base_net.1.conv.0.weight", "classification_headers.0.0.weight"], "mb2-ssd-lite"),
        (["base_net.3.squeeze.weight", "classification_headers.0.0.weight"], "sq-ssd-lite"),
        (["base_net.7.ConvLinear.conv.weight", "classification_headers.0.0.weight"], "Linzaer's RFB face detector"),
        (["base_net.13.3.weight", "classification_headers.0.0.weight"], "mb1-ssd-lite"),
    ],
)
def test_relatives_of_mb1_ssd_are_refused_by_name(read, tensors, name):
    with pytest.raises(WeightsError, match=rf"so it is {name}.*; of pytorch-ssd only mb1-ssd is read"):
        read("qfgaohao", dict.fromkeys(tensors, torch.zeros(1)))


class Trap:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@EVERY
def test_a_pickle_with_code_is_refused(tmp_path, read, case):
    mark = tmp_path / "executed"
    with pytest.raises(WeightsError, match=r"net\.pth"):
        read(case, {"vgg.0.weight": Trap(mark)})
    assert not mark.exists()
