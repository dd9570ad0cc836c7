"""Whole files: written, opened by their runtimes, equal to eager, and refused when they are not."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import multibox
from multibox.data.images import resize_image
from multibox.errors import ConfigError, DataError
from multibox.exporting import ExportOptions, VerificationError, export
from multibox.exporting.verify import match, run_onnx, run_openvino, verify
from multibox.inference.engines import FORMAT_VERSION, openvino_core
from multibox.models.anchor_layout import anchors_for
from multibox.postprocess import detect
from multibox.presets import PRESETS
from multibox.structures import Detections, Size

from .conftest import make_detector

NAMES = ["tiny", pytest.param("lite", marks=pytest.mark.slow)]
"""Fixtures of detectors."""


def export_both(detector, folder, name):
    for suffix in (".onnx", ".xml"):
        export(detector, folder / f"{name}{suffix}", ExportOptions(license="CC0-1.0", source="nowhere"))
    return folder


@pytest.fixture(scope="session")
def files(tiny, tmp_path_factory):
    return export_both(tiny, tmp_path_factory.mktemp("tiny"), "tiny")


@pytest.fixture(scope="session")
def lite_files(lite, tmp_path_factory):
    return export_both(lite, tmp_path_factory.mktemp("lite"), "lite")


def open_file(path):
    if path.suffix == ".onnx":
        return run_onnx(path.read_bytes())
    return run_openvino(openvino_core().read_model(path))


def limits(config, **changed):
    values = {name: getattr(config.post, name) for name in ("score_threshold", "nms_threshold", "max_detections")}
    values |= changed
    return {name: np.array(v, np.int64 if name == "max_detections" else np.float32) for name, v in values.items()}


@torch.inference_mode()
def eager(detector, batch, **changed):
    config = detector.config.updated({f"post.{name}": value for name, value in changed.items()})
    size = config.model.input_size
    pixels = np.stack([np.asarray(resize_image(Image.fromarray(each), size)) for each in batch])
    outputs = detector.model(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return detect(outputs, anchors_for(outputs, config), [Size(*batch.shape[1:3])] * len(batch), config, detector.names)


def found_in(answer, names):
    columns = zip(*(answer[name] for name in ("boxes", "scores", "labels", "counts")), strict=True)
    return [Detections(b[:n], s[:n], k[:n], names) for b, s, k, n in columns]


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_images_of_the_input_size_give_eagers_detections(request, name, suffix, count, noise):
    detector = request.getfixturevalue(name)
    files = request.getfixturevalue("files" if name == "tiny" else "lite_files")
    batch = noise(count, *detector.config.model.input_size)
    answer = open_file(files / f"{name}{suffix}")({"images": batch, **limits(detector.config)})
    for got, want in zip(found_in(answer, detector.names), eager(detector, batch), strict=True):
        assert len(want) > 50
        assert match(got, want, batch.shape[1]).matched >= len(want) * 0.98
        assert len(got) == len(want)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(50, 70), (1, 9), (3, 8000)])
def test_runtimes_agree_on_any_size(files, tiny, shape, noise):
    batch = noise(2, *shape)
    answers = [open_file(files / f"tiny{s}")({"images": batch, **limits(tiny.config)}) for s in (".onnx", ".xml")]
    for a, b in zip(*(found_in(answer, tiny.names) for answer in answers), strict=True):
        assert len(a) > 50
        assert match(a, b, max(shape)).matched >= len(a) * 0.98
        assert a.boxes.max() <= max(shape)
        assert np.all(a.boxes[:, 3] <= shape[0])


def test_limits_are_inputs_in_both_runtimes(files, tiny, noise):
    batch = noise(1, 64, 64)
    session = onnxruntime.InferenceSession(files / "tiny.onnx", providers=["CPUExecutionProvider"])
    model = openvino_core().read_model(files / "tiny.xml")
    for names in ([i.name for i in session.get_inputs()], [i.get_any_name() for i in model.inputs]):
        assert set(names) == {"images", *limits(tiny.config)}
    for suffix in (".onnx", ".xml"):
        run = open_file(files / f"tiny{suffix}")
        usual = run({"images": batch, **limits(tiny.config)})
        assert usual["counts"][0] == len(eager(tiny, batch)[0])
        assert run({"images": batch, **limits(tiny.config, max_detections=5)})["boxes"].shape == (1, 5, 4)
        high = run({"images": batch, **limits(tiny.config, score_threshold=0.9)})
        assert np.all(high["scores"] > 0.9)
        assert high["counts"][0] < usual["counts"][0]


@pytest.mark.slow
def test_plain_onnxruntime_prints_nothing(tiny, files, lite_files, tmp_path):
    export(tiny, tmp_path / "rows.onnx", ExportOptions(dialect="ultralytics", opset=13))
    export(tiny, tmp_path / "jetson.onnx", ExportOptions(dialect="jetson"))
    script = "import sys, onnxruntime\nfor path in sys.argv[1:]: onnxruntime.InferenceSession(path)"
    paths = [files / "tiny.onnx", lite_files / "lite.onnx", tmp_path / "rows.onnx", tmp_path / "jetson.onnx"]
    done = subprocess.run([sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, check=True)
    # Of a machine without a GPU it may say so
    said = [line for line in (done.stdout + done.stderr).splitlines() if "device_discovery" not in line]
    assert said == []


def with_defaults(path, out):
    """Write the file as version 0.1 would have: limits as initialisers that a caller may replace."""
    model = onnx.load(path)
    about = json.loads(next(p.value for p in model.metadata_props if p.key == "multibox"))
    for entry in model.graph.input:
        if entry.name != "images":
            kind = np.int64 if entry.name == "max_detections" else np.float32
            value = np.array(about["post"][entry.name], kind)
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, entry.name))
    model.ir_version = 10
    onnx.save(model, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("openvino", [True, False])
def test_files_of_version_0_1_are_still_read(files, tiny, tmp_path, noise, monkeypatch, openvino):
    if not openvino:
        monkeypatch.setattr("multibox.inference.engines.find_spec", lambda name: None)
    old = multibox.load(with_defaults(files / "tiny.onnx", tmp_path / "old.onnx"), precision="float32")
    new = multibox.load(files / "tiny.onnx", precision="float32")
    image = noise(50, 70)
    for threshold in (0.1, 0.5):
        a, b = old.predict(image, threshold), new.predict(image, threshold)
        assert len(a) > 5
        assert match(a, b, 70).matched == len(a) == len(b)


@pytest.mark.parametrize(("dialect", "opset", "expected", "ir_version"), [
    ("plain", None, 15, 8),
    pytest.param("plain", 13, 13, 7, marks=pytest.mark.slow),
    pytest.param("plain", 18, 18, 8, marks=pytest.mark.slow),
    pytest.param("plain", 20, 20, 9, marks=pytest.mark.slow),
    ("jetson", None, 13, 7),
])  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_opsets(request, tmp_path, name, dialect, opset, expected, ir_version):
    export(request.getfixturevalue(name), tmp_path / "model.onnx", ExportOptions(dialect=dialect, opset=opset))
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", expected)]
    assert model.ir_version == ir_version
    if expected < 14:
        assert "HardSwish" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("opset", [1, 12, 21])
def test_an_impossible_opset_names_the_range(tiny, tmp_path, opset):
    with pytest.raises(ConfigError, match=f"opset {opset}: expected 13 to 20"):
        export(tiny, tmp_path / "model.onnx", ExportOptions(opset=opset))
    with pytest.raises(ConfigError, match=r"model.xml: an opset is ONNX's"):
        export(tiny, tmp_path / "model.xml", ExportOptions(opset=15))


@pytest.mark.slow
def test_files_carry_no_folders(tiny, tmp_path, squares):
    source = f"trained on {squares.parent}/cells (train)"
    for name in ("model.onnx", "model.xml"):
        export(tiny, tmp_path / name, ExportOptions(source=source, data=squares, split="val"))
    for path in tmp_path.glob("model.*"):
        held = path.read_bytes()
        assert str(squares.parent).encode() not in held
        assert b"/tmp/" not in held
    assert b"trained on cells (train)" in (tmp_path / "model.onnx").read_bytes()


@pytest.mark.slow
def test_an_int8_file_that_finds_other_objects_is_not_written(tiny, tmp_path, squares, monkeypatch):
    monkeypatch.setattr(
        sys.modules["multibox.exporting.export"], "quantize", lambda model, images, size: _shifted(model)
    )
    options = ExportOptions(int8=True, calibrate=squares)
    with pytest.raises(VerificationError, match=r"INT8 differs: .* agree with the float file's to 0\.\d\d"):
        export(tiny, tmp_path / "model.xml", options)
    assert not list(tmp_path.glob("model.*"))


def _shifted(model):
    """Return the model with logits of the wrong sign."""
    import openvino

    output = next(o for node in model.get_ordered_ops() for o in node.outputs() if "logits" in o.get_names())
    targets = list(output.get_target_inputs())
    turned = openvino.opset13.negative(output).output(0)
    for target in targets:
        target.replace_source_output(turned)
    model.validate_nodes_and_infer_types()
    return model


def test_many_detections_and_none(files, tiny, noise):
    run, batch = open_file(files / "tiny.onnx"), noise(2, 64, 64)
    more = {"score_threshold": 0.0, "nms_threshold": 0.9, "max_detections": 900}
    found = found_in(run({"images": batch, **limits(tiny.config, **more)}), tiny.names)
    wanted = eager(tiny, batch, **more)
    for got, want in zip(found, wanted, strict=True):
        assert len(want) > 200
        assert match(got, want, 64).matched >= len(want) * 0.99
    none = run({"images": batch, **limits(tiny.config, score_threshold=1)})
    assert none["boxes"].shape == (2, 0, 4)
    assert none["counts"].tolist() == [0, 0]


def test_metadata(files, tiny):
    session = onnxruntime.InferenceSession(files / "tiny.onnx", _quiet(), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["multibox"])
    model = openvino_core().read_model(files / "tiny.xml")
    same = json.loads(model.get_rt_info(["multibox"]).astype(str))
    for values in (about, same):
        assert values["format_version"] == FORMAT_VERSION
        assert values["names"] == ["a", "b", "c"]
        assert values["preset"] == "tinyssd"
        assert values["input_size"] == [64, 64]
        assert values["score"] == "softmax"
        assert values["post"]["nms_threshold"] == tiny.config.post.nms_threshold
        assert values["license"] == "CC0-1.0"
        assert values["source"] == "nowhere"
        assert values["verification"]["matched"] > 0
    assert about["weights_sha256"] == same["weights_sha256"] == _hash(tiny)


def _quiet():
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def _hash(detector):
    digest = hashlib.sha256()
    for name, tensor in sorted(detector.model.state_dict().items()):
        values = tensor.numpy(force=True)
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode() + values.tobytes())
    return digest.hexdigest()


def _spoil(path, change):
    model = onnx.load(path)
    change(model.graph)
    return model.SerializeToString()


def _initializer(graph, wanted):
    tensor = next(t for t in graph.initializer if wanted(t))
    return tensor, onnx.numpy_helper.to_array(tensor).copy()


def test_a_changed_weight_is_found_in_the_network(files, tiny, noise):
    def change(graph):
        tensor, values = _initializer(graph, lambda t: t.name.startswith("network.") and len(t.dims) == 4)
        values[0, 0, 0, 0] += 0.5
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    data = _spoil(files / "tiny.onnx", change)
    with pytest.raises(VerificationError, match="network"):
        verify(run_onnx(data, stages=True), tiny, "plain", [noise(40, 50)])


@pytest.mark.slow
def test_other_stages_are_named(files, tiny, noise):
    def replace(kind, value):
        def change(graph):
            for node in graph.node:
                for attribute in node.attribute:
                    if attribute.name == "value" and list(attribute.t.dims) == kind:
                        values = onnx.numpy_helper.to_array(attribute.t) * np.float32(value)
                        attribute.t.CopyFrom(onnx.numpy_helper.from_array(values))

        return change

    def brighter(graph):
        for node in graph.node:
            if "resized" in node.output:
                node.output[0] = "dark"
                extra = onnx.helper.make_node("Add", ["dark", "const_1.0_f32"], ["resized"])
                graph.node.insert(list(graph.node).index(node) + 1, extra)
                return

    def overlap(graph):
        node = next(n for n in graph.node if n.op_type == "NonMaxSuppression")
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([0.2], np.float32), "wrong"))
        node.input[3] = "wrong"

    anchors = [344, 8]
    for stage, change in (("resize", brighter), ("decode", replace(anchors, 1.1)), ("NMS", overlap)):
        data = _spoil(files / "tiny.onnx", change)
        with pytest.raises(VerificationError, match=stage):
            verify(run_onnx(data, stages=True), tiny, "plain", [noise(40, 50)])


def test_a_failed_verification_leaves_no_file(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("multibox.exporting.verify.RAW", 0.0)
    with pytest.raises(VerificationError, match="network"):
        export(tiny, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dialect", ["raw", "ultralytics", pytest.param("jetson", marks=pytest.mark.slow)])
def test_dialects(tiny, dialect, tmp_path, noise):
    report = export(tiny, tmp_path / "model.onnx", ExportOptions(dialect=dialect))
    assert report["images"] > 0
    run = open_file(tmp_path / "model.onnx")
    batch = noise(2, 64, 64)
    if dialect == "jetson":
        answer = run({"input_0": np.zeros((2, 3, 64, 64), np.float32)})
        assert answer["scores"].shape == (2, 344, 4)
        assert answer["scores"].sum(2) == pytest.approx(1, abs=1e-5)
        assert answer["boxes"].shape == (2, 344, 4)
    elif dialect == "raw":
        answer = run({"images": noise(2, 30, 40)})
        assert answer["logits"].shape == (2, 344, 4)
        assert answer["offsets"].shape == (2, 344, 4)
    else:
        rows = run({"images": batch})["output0"]
        assert rows.shape == (2, 300, 6)
        wanted = eager(tiny, batch, max_detections=300)
        np.testing.assert_allclose(rows[0, : len(wanted[0]), 4], wanted[0].scores, atol=1e-5)
        assert np.all(rows[0, len(wanted[0]) :] == 0)


@pytest.mark.slow
def test_half_and_int8(tiny, tmp_path, squares):
    report = export(tiny, tmp_path / "half.xml", ExportOptions(half=True))
    assert 1e-6 < report["logits"] < 0.05
    tiny_squares = make_detector("tinyssd", 64, ("red", "blue"))
    options = ExportOptions(int8=True, calibrate=squares, data=squares, split="val")
    report = export(tiny_squares, tmp_path / "small.xml", options)
    assert set(report["int8"]) >= {"AP", "AP_eager", "labelled_images", "agreement", "images"}
    assert report["int8"]["agreement"] >= 0.8
    small, half = ((tmp_path / f"{name}.bin").stat().st_size for name in ("small", "half"))
    assert small < half
    model = openvino_core().read_model(tmp_path / "small.xml")
    assert sum(node.get_type_name() == "FakeQuantize" for node in model.get_ops()) > 5
    assert {o.get_any_name() for o in model.outputs} == {"boxes", "scores", "labels", "counts"}


def test_wrong_use(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.pt.*\.onnx or \.xml"):
        export(tiny, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="OpenVINO"):
        export(tiny, tmp_path / "model.onnx", ExportOptions(int8=True))
    with pytest.raises(ConfigError, match="--calibrate"):
        export(tiny, tmp_path / "model.xml", ExportOptions(int8=True))
    with pytest.raises(DataError, match="does not exist"):
        multibox.export(tiny, tmp_path / "model.onnx", data=tmp_path / "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset, tmp_path):
    detector = make_detector(preset, 64 if "vgg" in preset else 128)
    for name in ("model.onnx", "model.xml"):
        report = export(detector, tmp_path / name)
        assert report["matched"] + report["swapped"] >= report["detections"] * 0.99 > 0
        assert report["swapped"] <= report["detections"] * 0.2
