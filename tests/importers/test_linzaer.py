"""Linzaer's RFB-320 face detector: its ONNX file's outputs, its boxes, the faces it found, and what is refused."""

import json

import numpy as np
import pytest
import torch

from multibox.data.images import read_image, resize_image
from multibox.errors import WeightsError
from multibox.importers import import_file
from multibox.importers.pytorch_ssds import read_linzaer
from multibox.inference.detector import open_checkpoint
from multibox.models.anchor_layout import make_anchors
from multibox.models.weights import read_state
from multibox.ops.coding import decode
from multibox.structures import Size

RAW = "version-RFB-320_without_postprocessing"
FACES = ("1.jpg", "10.jpg", "15.jpg")
SCORE, OVERLAP = 0.7, 0.99


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "weights/face_rfb320"


@pytest.fixture(scope="module")
def detector(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("linzaer") / "face.safetensors"
    said = import_file("linzaer", folder / "version-RFB-320.pth", out, [])
    assert "rfb320-face for face, from" in said
    return open_checkpoint(out)


@pytest.fixture(scope="module")
def reference(folder):
    with np.load(folder / "reference_raw_1jpg.npz") as arrays:
        return {name: arrays[name] for name in arrays.files if name.startswith("version-RFB-320")}


def run(detector, images):
    with torch.inference_mode():
        return detector.model(torch.from_numpy(images))


def iou(box, boxes):
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clip(0).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared)


def test_outputs_and_boxes_equal_the_onnx_files(detector, reference):
    outputs = run(detector, reference[f"{RAW}__input"] * 128 + 127)
    np.testing.assert_allclose(outputs.logits.softmax(2), reference[f"{RAW}__scores"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(outputs.offsets, reference[f"{RAW}__boxes"], rtol=0, atol=1e-4)

    model = detector.config.model
    anchors = make_anchors(detector.config.anchors, outputs.feature_shapes, model.input_size)
    assert anchors.shape == (4420, 4)
    boxes = decode(outputs.offsets[0], anchors, model.variances, model.coder)
    np.testing.assert_allclose(boxes, reference["version-RFB-320__boxes"][0], rtol=0, atol=1e-4)


def test_outputs_equal_onnxruntime_on_another_photograph(detector, folder, shared):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / f"{RAW}.onnx", options, providers=["CPUExecutionProvider"])
    pixels = np.asarray(resize_image(read_image(shared / "data/photos/person.jpg"), Size(240, 320)))
    image = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    scores, offsets = session.run(None, {"input": (image - 127) / 128})
    outputs = run(detector, image)
    np.testing.assert_allclose(outputs.logits.softmax(2), scores, rtol=0, atol=1e-4)
    np.testing.assert_allclose(outputs.offsets, offsets, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FACES)
def test_the_same_faces_are_found(detector, folder, name):
    """Boxes in their list may leave the image; ours are cut to it."""
    listed = json.loads((folder / "reference_version-RFB-320.json").read_text())["images"][name]
    found = detector.predict(folder / name, threshold=SCORE)
    width, height = listed["size"]
    wanted = np.array([face["xyxy_px"] for face in listed["detections"]]).clip(0, (width, height, width, height))
    scores = np.array([face["score"] for face in listed["detections"]])
    same = np.array([iou(box, found.boxes) for box in wanted]) > OVERLAP
    same &= np.abs(scores[:, None] - found.scores) < 1e-3
    assert same.shape == (len(wanted), len(wanted))
    assert (same.sum(0) == 1).all()
    assert (same.sum(1) == 1).all()


def test_names_and_licence(folder):
    found = read_linzaer(folder / "version-RFB-320.pth", ["visage"])
    assert found.class_names == ("visage",)
    assert found.license == "MIT"
    assert found.source.endswith("version-RFB-320.pth")
    with pytest.raises(WeightsError, match=r"was trained for 1 classes, but --names gives 2: eye, nose$"):
        read_linzaer(folder / "version-RFB-320.pth", ["eye", "nose"])


def test_a_missing_tensor_is_named(folder, tmp_path):
    state = read_state(folder / "version-RFB-320.pth")
    del state["base_net.7.branch1.2.bn.weight"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(
        WeightsError, match=r"lacks 1 tensors of rfb320-face \(backbone\.layers\.7\.branch1\.2\.1\.weight\)"
    ):
        read_linzaer(tmp_path / "net.pth", [])


def test_the_slim_detector_is_refused(tmp_path):
    slim = {f"base_net.{index}.{part}.weight": torch.zeros(1) for index in range(13) for part in (0, 3)}
    slim |= {"extras.0.0.weight": torch.zeros(1), "classification_headers.0.2.bias": torch.zeros(6)}
    torch.save(slim, tmp_path / "net.pth")
    with pytest.raises(
        WeightsError,
        match=r"net\.pth is not an RFB face detector \(the slim one .*: expected tensors such as "
        r"base_net\.7\.ConvLinear\.conv\.weight, found base_net\.0\.0\.weight, .* \.\.\.$",
    ):
        read_linzaer(tmp_path / "net.pth", [])


def test_broken_files_are_refused(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04 no weights")
    with pytest.raises(WeightsError, match=r"net\.pth is not readable as weights"):
        read_linzaer(tmp_path / "net.pth", [])
