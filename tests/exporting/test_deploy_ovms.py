"""`--to ovms`: the config against the server's schema, the model against `predict` and in Intel's Model API."""

import json
import os
import subprocess

import numpy as np
import pytest

import multibox
from multibox.builtin import FOLDER
from multibox.errors import WeightsError
from multibox.exporting import fixed_limits
from multibox.exporting.folders import write_folder
from multibox.exporting.ovms import model_info
from multibox.inference.engines import compile_openvino, openvino_core
from multibox.inference.load import detections_of, open_exported

from .conftest import shown_block


def write(model, out):
    write_folder("ovms", model, out, export=lambda file: None)
    return out


@pytest.fixture(scope="module")
def folder(picky_file, tmp_path_factory):
    return write(picky_file, tmp_path_factory.mktemp("ovms") / "models")


@pytest.fixture
def images():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 56), (90, 31), (64, 64))]


def test_the_config_obeys_the_servers_schema(folder):
    """Written by hand after src/schema.cpp of model_server: the part about models, which refuses unknown keys."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert list(config) == ["model_config_list"]
    (entry,) = config["model_config_list"]
    assert list(entry) == ["config"]
    allowed = {"name": str, "base_path": str, "batch_size": int | str, "model_version_policy": dict, "nireq": int,
               "shape": dict | str, "layout": dict | str, "target_device": str, "plugin_config": dict,
               "stateful": bool}  # fmt: skip
    assert {"name", "base_path"} <= set(entry["config"])
    assert all(isinstance(value, allowed[key]) for key, value in entry["config"].items())


def test_the_folder_has_the_servers_layout(folder):
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [".multibox-export.json", "config.json", "picky/1/model.bin", "picky/1/model.xml"]
    (entry,) = json.loads((folder / "config.json").read_text())["model_config_list"]
    assert entry["config"]["base_path"] == f"/models/{entry['config']['name']}" == "/models/picky"


@pytest.mark.slow
def test_the_model_equals_predict_in_batches_of_any_size(folder, picky_file, images):
    model = openvino_core().read_model(folder / "picky/1/model.xml")
    assert [port.get_names() for port in model.inputs] == [{"images"}]
    assert model.inputs[0].get_node().layout.to_string() == "[N,H,W,C]"
    assert model.inputs[0].partial_shape.to_string() == "[?,?,?,3]"
    run = compile_openvino(model, None, "float32")
    detector = open_exported(picky_file, precision="float32")
    total = 0
    for image in images:
        batch = np.stack([image, image[::-1, ::-1], image // 16])
        outputs = {port.get_any_name(): np.array(values) for port, values in run({"images": batch}).items()}
        height, width = image.shape[:2]
        outputs["boxes"] = outputs.pop("bboxes") * np.float32([width, height] * 2)
        for got, each in zip(detections_of(outputs, detector.names), batch, strict=True):
            wanted = detector.predict(each)
            assert np.array_equal(got.labels, wanted.labels)
            assert np.allclose(got.scores, wanted.scores, atol=1e-5)
            assert np.allclose(got.boxes, wanted.boxes, atol=1e-2)
            total += len(wanted)
    assert total > 20


def test_multibox_says_that_it_does_not_open_such_a_file(folder):
    with pytest.raises(WeightsError, match="dialect 'ovms'"):
        open_exported(folder / "picky/1/model.xml")


def test_names_with_spaces_stay_one_label_each():
    about = {"names": ["traffic light", "dog", "  "], "input_size": [300, 320], "post": {"nms_threshold": 0.6}}
    info = model_info(about, np.float32([0.5, 0.4, 0.3]))
    assert info["labels"].split() == ["traffic_light", "dog", "_"]
    assert (
        float(info["confidence_threshold"])
        < np.float32(0.3)
        <= np.nextafter(np.float32(info["confidence_threshold"]), np.float32(1))
    )
    assert (info["orig_height"], info["orig_width"]) == ("300", "320")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"half": True}], ids=["fp32", "fp16"])
def test_an_ir_that_was_exported_before_is_taken(options, tiny, tmp_path, images):
    from multibox.exporting import ExportOptions, export

    export(tiny, tmp_path / "tiny.xml", ExportOptions(**options))
    out = write(tmp_path / "tiny.xml", tmp_path / "models")
    run = compile_openvino(openvino_core().read_model(out / "tiny/1/model.xml"), None, "float32")
    results = {port.get_any_name(): np.array(values) for port, values in run({"images": images[0][None]}).items()}
    wanted = open_exported(tmp_path / "tiny.xml", precision="float32").predict(images[0])
    assert np.array_equal(results["labels"][0], wanted.labels)
    assert np.allclose(results["scores"][0], wanted.scores, atol=1e-4)
    smaller = (out / "tiny/1/model.bin").stat().st_size / (tmp_path / "tiny.bin").stat().st_size
    assert 0.9 < smaller < 1.2


@pytest.mark.slow
def test_a_model_that_differs_is_not_written(picky_file, tmp_path, monkeypatch):
    broken = fixed_limits._FILTER.replace("GreaterOrEqual ({p}scores", "Less ({p}scores")
    monkeypatch.setattr(fixed_limits, "_FILTER", broken)
    with pytest.raises(WeightsError, match="other detections"):
        write(picky_file, tmp_path / "models")
    assert not (tmp_path / "models").exists()


ASK = """
import json, sys
import numpy as np
from model_api.models import Model

model = Model.create_model(sys.argv[1], device="CPU", preload=False)
model.inference_adapter.plugin_config = {"INFERENCE_PRECISION_HINT": "f32"}
model.load()
found = []
for file in sys.argv[2:]:
    result = model(np.load(file))
    found.append([result.bboxes.tolist(), result.scores.tolist(), result.labels.tolist(), list(result.label_names)])
print(json.dumps({"kind": type(model).__name__, "found": found}))
"""


@pytest.fixture
def ask_model_api(tmp_path, venv_with):
    """Return a function that opens a model in Model API and runs it on images."""
    python = venv_with("model-api", "openvino-model-api==0.4.7") / "bin/python"

    def ask(model, images):
        files = [tmp_path / f"{number}.npy" for number in range(len(images))]
        for file, image in zip(files, images, strict=True):
            np.save(file, image)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([python, "-c", ASK, model, *files], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return ask


def check_in_model_api(answer, detector, images):
    """Model API rounds corners to whole pixels and leaves out boxes of at most one pixel."""
    assert answer["kind"] == "SSD"
    total = 0
    for (boxes, scores, labels, names), image in zip(answer["found"], images, strict=True):
        wanted = detector.predict(image)
        corners = np.round(wanted.boxes)
        wanted = wanted[(corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]) > 1]
        assert labels == wanted.labels.tolist()
        assert names == [detector.names[label].replace(" ", "_") for label in labels]
        assert np.allclose(scores, wanted.scores, atol=1e-4)
        assert np.abs(np.reshape(boxes, (-1, 4)) - wanted.boxes).max(initial=0) <= 0.51
        total += len(wanted)
    return total


@pytest.mark.slow
def test_model_api_opens_the_model_and_finds_what_predict_finds(folder, picky_file, images, ask_model_api):
    images.append(images[0] // 16)
    detector = open_exported(picky_file, precision="float32")
    assert check_in_model_api(ask_model_api(folder / "picky/1/model.xml", images), detector, images) > 20


@pytest.mark.slow
def test_model_api_finds_what_the_builtin_model_finds_in_photos(tmp_path, shared, ask_model_api):
    from PIL import Image

    files = sorted((shared / "data/tiny_coco").rglob("*.jpg"))[:20]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    out = write(FOLDER / "coco.onnx", tmp_path / "models")
    detector = open_exported(FOLDER / "coco.onnx", precision="float32")
    assert check_in_model_api(ask_model_api(out / "coco/1/model.xml", images), detector, images) > 20


@pytest.mark.slow
def test_the_page_shows_model_api_as_it_works(tmp_path, shared, venv_with):
    photo = sorted((shared / "data/tiny_coco").rglob("*.jpg"))[0]
    write(FOLDER / "coco.onnx", tmp_path / "coco-ovms")
    (tmp_path / "photo.jpg").write_bytes(photo.read_bytes())
    python = venv_with("model-api", "openvino-model-api==0.4.7") / "bin/python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", shown_block("python", "model_api")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    names = [name.replace(" ", "_") for *_, name in multibox.load("coco", precision="float32").predict(photo)]
    assert done.stdout.rstrip().endswith(str(names))
