"""TensorFlow's SSD over MobileNetV1 in a TF Lite file: its 8-bit interpreter's outputs, and what is refused.

The published file computes in 8 bits and ours in float32, so outputs agree to the size of its rounding. The operators
behind the network are float there too: fed with its 8-bit outputs, ours must give its detections to the digit.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tflite as schema
import torch

from multibox import api
from multibox.errors import MissingExtraError, WeightsError
from multibox.importers import import_file, tflite
from multibox.inference.detector import open_checkpoint
from multibox.models.anchor_layout import make_anchors
from multibox.ops import decode, nms
from multibox.structures import Size

FILE = "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"
BROKEN = r"net\.tflite is a broken TF Lite file \(.+\); was it copied whole\?$"
BOX = "BoxPredictor_0/BoxEncodingPredictor"
MAPS = tuple(Size(side, side) for side in (19, 10, 5, 3, 2, 1))
VOC_TO_COCO = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}
VOC_TO_COCO |= {"diningtable": "dining table", "pottedplant": "potted plant"}


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "weights/ssd_mobilenet_v1_coco"


@pytest.fixture(scope="module")
def detector(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("tflite") / "coco.safetensors"
    said = import_file("tflite", folder / FILE, out, [])
    assert "ssd300-mobilenetv1 for person, bicycle, car, motorcycle, airplane, bus, train, truck ... (90 cl" in said
    return open_checkpoint(out)


@pytest.fixture(scope="module")
def graph(folder):
    return tflite.read_graph(folder / FILE)


@pytest.fixture(scope="module")
def raw(folder):
    """Their 8-bit output for cats_and_dogs.jpg: input, logits without background, offsets in our order."""
    with np.load(folder / "reference_raw_cats_and_dogs.npz") as arrays:
        image = torch.from_numpy(arrays["input_uint8_nhwc"]).permute(0, 3, 1, 2)
        logits = torch.from_numpy(arrays["raw_logits"])[..., 1:]
        return image, logits, torch.from_numpy(arrays["raw_offsets_tytxthtw"])[..., [1, 0, 3, 2]]


@pytest.fixture(scope="module")
def listed(folder):
    return json.loads((folder / "reference_detections.json").read_text())["images"]


def corners(anchors_yxhw):
    center, half = anchors_yxhw[:, [1, 0]], anchors_yxhw[:, [3, 2]] / 2
    return np.concatenate([center - half, center + half], 1)


def iou(box, boxes):
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clip(0).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared)


def test_every_layer_is_dequantised(folder, graph):
    with np.load(folder / "weights.npz") as arrays:
        wanted = dict(arrays)
    np.testing.assert_allclose(graph.anchors_yxhw, wanted.pop("anchors_yxhw_quantised"), rtol=1e-6)
    assert {f"{scope}/{part}" for scope in graph.layers for part in ("weights", "bias")} == wanted.keys()
    for scope, layer in graph.layers.items():
        assert layer.depthwise == scope.endswith("depthwise")
        np.testing.assert_allclose(layer.weights, wanted[f"{scope}/weights"], rtol=1e-6, atol=0)
        np.testing.assert_allclose(layer.bias, wanted[f"{scope}/bias"], rtol=1e-6, atol=0)


def test_config_and_names_are_those_of_the_file(detector, folder):
    model, post = detector.config.model, detector.config.post
    assert (model.width, model.input_size, model.score) == (0.75, (300, 300), "sigmoid")
    assert (model.mean, model.std, post.nms_threshold) == ((128.0,) * 3, (128.0,) * 3, 0.6)
    lines = (folder / "labelmap.txt").read_text().split("\n")[:90]
    assert [line if line != "???" else f"unused {index}" for index, line in enumerate(lines, 1)] == list(detector.names)


def test_outputs_are_as_near_as_8_bits_allow(detector, raw):
    """Measured means: offsets 0.050 of 1.13, logits 0.042."""
    image, logits, offsets = raw
    with torch.inference_mode():
        outputs = detector.model(image)
    assert outputs.feature_shapes == MAPS
    assert outputs.offsets.shape == offsets.shape
    assert (outputs.offsets - offsets).abs().mean() < 0.06
    assert (outputs.logits - logits).abs().mean() < 0.05
    # A permutation of coordinates, anchors or classes would not correlate
    for ours, theirs in ((outputs.offsets, offsets), (outputs.logits, logits)):
        for column in range(ours.shape[2]):
            assert np.corrcoef(ours[0, :, column], theirs[0, :, column])[0, 1] > 0.98


def test_anchors_are_those_of_the_file_to_8_bits(detector, graph):
    """Measured: corners differ by up to 0.0048 of the image."""
    anchors = make_anchors(detector.config.anchors, MAPS, (300, 300)).numpy()
    np.testing.assert_allclose(anchors, corners(graph.anchors_yxhw), rtol=0, atol=0.005)


@pytest.mark.parametrize(("own_anchors", "tolerance"), [(False, 2e-6), (True, 0.006)])
def test_its_outputs_give_its_detections(detector, graph, raw, listed, own_anchors, tolerance):
    """With the file's rounded anchors to the digit, with ours to their rounding."""
    _, logits, offsets = raw
    anchors = make_anchors(detector.config.anchors, MAPS, (300, 300))
    if not own_anchors:
        anchors = torch.from_numpy(corners(graph.anchors_yxhw))
    # Its operator: the best class of each anchor, boxes of all classes suppress each other
    model = detector.config.model
    scores, labels = logits[0].sigmoid().max(dim=1)
    boxes = decode(offsets[0], anchors, model.variances, model.coder)
    kept = nms(boxes, scores, detector.config.post.nms_threshold)[:10]
    wanted = listed["data/photos/cats_and_dogs.jpg"]["detections"]
    assert [detector.names[label] for label in labels[kept].tolist()] == [each["label"] for each in wanted]
    # Its scores are kept in 8 bits
    np.testing.assert_allclose(scores[kept], [each["score"] for each in wanted], rtol=0, atol=1 / 256)
    wanted_boxes = np.array([each["box_ymin_xmin_ymax_xmax_norm"] for each in wanted])[:, [1, 0, 3, 2]]
    np.testing.assert_allclose(boxes[kept], wanted_boxes, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_what_it_finds_is_found(detector, listed, shared):
    """All 94 detections above 0.35 in 15 photographs: same class, IoU above 0.75, score within 0.1.

    Ours finds more: there, a box of one class suppresses those of others.
    """
    count = 0
    for name, image in listed.items():
        found = detector.predict(shared / name, threshold=0.2)
        limits = (*image["size"], *image["size"])
        for each in image["detections"]:
            if each["score"] >= 0.35:
                overlap = iou(np.array(each["xyxy_px"]).clip(0, limits), found.boxes)
                labels = np.array([found.names[label] for label in found.labels])
                near = np.abs(found.scores - each["score"]) < 0.1
                assert ((labels == each["label"]) & near & (overlap > 0.75)).any(), (name, each)
                count += 1
    assert count == 94


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "split", "rename", "reference"),
    [
        ("tiny_coco", "val2017", None, "tiny_coco_val50"),
        ("voc100/gts/coco_format_v1", None, VOC_TO_COCO, "padilla_voc100 (coco_format_v1)"),
    ],
    ids=["coco", "voc"],
)
def test_precision_is_at_least_that_of_8_bits(detector, folder, shared, data, split, rename, reference):
    """Measured with 10 detections an image: 0.207 (8 bits 0.193) on COCO, 0.386 (0.364) on VOC.

    Most of the gain is suppression class by class; the rest is float32.
    """
    theirs = json.loads((folder / "reference_coco_map.json").read_text())[reference]
    ours = api.evaluate(detector, shared / "data" / data, split=split, rename=rename, max_detections=10)
    assert ours["images"] == theirs["images"]
    assert theirs["AP"] - 0.005 < ours["coco"]["AP"] < theirs["AP"] + 0.04


def dequantise(values, scale, zero, axis, kind, stored=True):
    """Read `values` as a TF Lite tensor, of which this is as much as the importer asks for."""
    values_of = {
        "Name": b"kernel",
        "Type": getattr(schema.TensorType, kind),
        "ShapeAsNumpy": values.shape,
        "ScaleLength": len(scale),
        "ScaleAsNumpy": np.float32(scale),
        "ZeroPointAsNumpy": np.int64(zero),
        "QuantizedDimension": axis,
        "DataAsNumpy": np.frombuffer(values.tobytes(), np.uint8) if stored else 0,
    }
    stub = SimpleNamespace(**{name: lambda value=value: value for name, value in values_of.items()})
    stub.Buffer, stub.Quantization, stub.Buffers = (lambda: 0), (lambda: stub), (lambda index: stub)
    return tflite._values(stub, stub, Path("net.tflite"))


@pytest.mark.parametrize(
    ("kind", "scale", "zero", "axis", "shape"),
    [
        ("INT8", [0.5], [10], 0, (1,)),
        ("UINT8", [0.5], [10], 0, (1,)),
        ("INT8", [0.5, 2], [0, 1], 0, (2, 1, 1, 1)),
        ("INT8", [0.5, 2, 4], [0, 1, -3], 3, (1, 1, 1, 3)),
    ],
)
def test_scales_for_a_tensor_or_for_its_channels(kind, scale, zero, axis, shape):
    kernel = np.arange(54, dtype=kind.lower()).reshape(2, 3, 3, 3)
    wanted = (kernel - np.reshape(zero, shape)) * np.reshape(scale, shape)
    np.testing.assert_array_equal(dequantise(kernel, scale, zero, axis, kind), wanted)


def test_floats_stay_and_other_types_are_named():
    kernel = np.linspace(-1, 1, 54, dtype=np.float32).reshape(2, 3, 3, 3)
    np.testing.assert_array_equal(dequantise(kernel, [], [], 0, "FLOAT32"), kernel)
    with pytest.raises(WeightsError, match=r"net\.tflite: tensor kernel has TF Lite's type 5; floats and integers of"):
        dequantise(kernel, [], [], 0, "STRING")
    with pytest.raises(
        WeightsError, match=r"net\.tflite: tensor kernel is computed, not stored, as in files of 16-bit"
    ):
        dequantise(kernel, [], [], 0, "FLOAT32", stored=False)


def test_relatives_are_refused(graph, monkeypatch):
    def refused(message, **changes):
        monkeypatch.setattr(tflite, "read_graph", lambda file: replace(graph, **changes))
        with pytest.raises(WeightsError, match=rf"net\.tflite.* {message}"):
            tflite.read(Path("net.tflite"), [])

    layers, anchors = graph.layers, graph.anchors_yxhw
    refused(r"the layer FeatureExtractor/V2/expand, which", layers=layers | {"FeatureExtractor/V2/expand": layers[BOX]})
    refused(
        "expected layers such as Conv2d_0 and BoxPredictor_0 to _5, found Feature",
        layers={scope: layers[scope] for scope in layers if "_5/" not in scope},
    )
    # TensorFlow's setting reduce_boxes_in_lowest_layer: false
    second = layers[BOX.replace("_0", "_1")]
    refused("has 24 outputs, expected 4 for each of 3 anchors", layers=layers | {BOX: second})
    refused(r"1917 anchors that are not those of .* \(1917 here\)", anchors_yxhw=anchors * 1.1)
    refused(r"1911 anchors that are not those of .* \(1917 here\)", anchors_yxhw=anchors[:-6])


def test_the_package_is_named_where_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'multibox\[tflite\]'"):
        tflite.read(Path("net.tflite"), [])


def test_names_that_do_not_fit_are_refused(folder):
    with pytest.raises(WeightsError, match=r"was trained for 90 classes, but --names gives 2: cat, dog$"):
        tflite.read(folder / FILE, ["cat", "dog"])


@pytest.fixture
def refused(tmp_path):
    def check(content, message):
        (tmp_path / "net.tflite").write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            tflite.read(tmp_path / "net.tflite", [])

    return check


@pytest.mark.parametrize("content", [b"", b"TFL3", b"PK\x03\x04 something else"])
def test_a_file_of_another_kind_is_refused(refused, content):
    refused(content, r"net\.tflite is no TF Lite file: bytes 4 to 8 are b'.*', expected b'TFL3'$")


@pytest.mark.parametrize("rest", [b"", bytes(4000), bytes(range(256)) * 16, b"\xff" * 4000])
def test_garbage_is_refused(refused, rest):
    for start in (0, 28, 2**31 - 1, 2**32 - 1):
        refused(start.to_bytes(4, "little") + b"TFL3" + rest, BROKEN)


@pytest.mark.parametrize("part", [1e-5, 0.25, 0.5, 0.9, 0.99, 0.999])
def test_a_truncated_file_is_refused(refused, folder, part):
    content = (folder / FILE).read_bytes()
    refused(content[: int(len(content) * part)], BROKEN)


def test_flipped_bytes_never_give_a_traceback(tmp_path, folder):
    content, rng, refused = (folder / FILE).read_bytes(), np.random.default_rng(0), 0
    structure = len(content) - 35_000  # The weights stand before it
    for _ in range(20):
        flipped = np.frombuffer(content, np.uint8).copy()
        flipped[rng.integers(structure, len(content), 8)] = rng.integers(0, 256, 8)
        (tmp_path / "net.tflite").write_bytes(flipped.tobytes())
        try:
            tflite.read(tmp_path / "net.tflite", [])
        except WeightsError as error:
            assert "net.tflite" in str(error)
            refused += 1
    assert refused > 10
