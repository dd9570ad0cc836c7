"""Built-in models by their names: wherever a model or weights are taken, with the core alone, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import multibox
from multibox import api
from multibox.builtin import FOLDER, MODELS, find_model, runnable
from multibox.errors import ConfigError, WeightsError
from multibox.inference.detector import Detector
from multibox.inference.load import ExportedDetector
from multibox.models.checkpoint import load_checkpoint
from multibox.models.weights import choose_network, load_weights

CORE_ONLY = """
import sys

class Absent:
    names = {"torch", "torchvision", "jaxtyping", "onnx", "onnx_ir", "onnxscript", "openvino", "matplotlib", "yaml"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.util
there = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in Absent.names else there(name, package)
sys.argv = ["multibox", *sys.argv[1:]]
from multibox.cli.main import main
main()
"""


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def multibox_core(folder, *arguments):
    command = [sys.executable, "-c", CORE_ONLY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_core_alone_predicts_without_a_word_on_stderr(name, photo, tmp_path):
    done = multibox_core(tmp_path, "predict", name, photo, "--json", "found.json", "--threshold", "0.05")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert (row["width"], row["height"]) == (80, 60)


@pytest.mark.slow
def test_the_core_alone_finds_the_original_objects(shared, tmp_path):
    done = multibox_core(tmp_path, "predict", "coco", shared / "data/photos/cats_and_dogs.jpg", "--json", "found.json")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads((tmp_path / "found.json").read_text())
    listed = json.loads((shared / "weights/ssd_mobilenet_v1_coco/reference_detections.json").read_text())
    wanted = [e for e in listed["images"]["data/photos/cats_and_dogs.jpg"]["detections"] if e["score"] > 0.6]
    found = [each["name"] for each in row["detections"]]
    assert len(wanted) >= 2
    assert all(each["label"] in found for each in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda", "cpu --flip"])
def test_what_needs_pytorch_names_the_package(device, photo, tmp_path):
    done = multibox_core(tmp_path, "predict", "coco", photo, "--device", *device.split())
    assert done.returncode == 2
    assert "pip install 'multibox[train]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", MODELS)
def test_plain_onnxruntime_opens_the_graph_without_a_warning(name):
    code = "import onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(FOLDER / f"{name}.onnx")], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_a_name_opens_the_graph_and_a_device_or_mirror_images_open_pytorch():
    assert isinstance(multibox.load("face"), ExportedDetector)
    assert isinstance(multibox.load("face", device="auto"), ExportedDetector)
    flipped = multibox.load("face", flip=True)
    assert isinstance(flipped, Detector)
    assert flipped.config.post.flip
    meta = multibox.load("face", device="cpu:0")
    assert isinstance(meta, Detector)
    assert meta.thresholds == multibox.load("face").thresholds == (0.7,)


def test_a_built_in_name_wins_with_a_note_and_a_path_is_a_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert find_model("coco") == FOLDER / "coco.safetensors"
    assert capsys.readouterr().err == ""
    Path("coco").mkdir()
    Path("coco/last.safetensors").touch()
    assert find_model("coco") == FOLDER / "coco.safetensors"
    assert capsys.readouterr().err == "note: coco is the built-in model; for the folder here write ./coco\n"
    find_model("coco")
    assert capsys.readouterr().err == ""
    for path in ("./coco", Path("coco"), tmp_path / "coco"):
        assert find_model(path).resolve() == tmp_path / "coco/last.safetensors"
    Path("coco/best.safetensors").touch()
    assert find_model("./coco").name == "best.safetensors"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("cocoo", r"^cocoo does not exist: no such file; built-in models are coco and face, did you mean 'coco'\?$"),
        ("runs/cells", r"^runs/cells does not exist: no such file; built-in models are coco and face$"),
        (".", r"holds neither best\.safetensors nor last\.safetensors; give a run folder or a model file$"),
    ],
)
def test_what_is_no_model_is_refused(model, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (multibox.load, find_model, lambda name: choose_network(name, None)):
        with pytest.raises(WeightsError, match=message):
            use(model)


def test_training_starts_from_a_name():
    assert choose_network("coco", None) == ("multibox-fine", {})
    preset, changes = choose_network("coco", "ssd300-mobilenetv1")
    assert (preset, changes["model.width"], changes["post.thresholds"]) == ("ssd300-mobilenetv1", 0.75, ())
    for nothing in (None, "none"):
        assert choose_network(nothing, None)[1] == {}
    detector = api.create(preset, ["cat", "unicorn"], weights="coco")
    fresh = api.create(preset, ["cat", "unicorn"])
    note, known = load_weights(fresh.model, "none", fresh.names)
    assert "every tensor is fresh" in note
    assert not known
    fresh = api.create("multibox-coco", ["cat", "unicorn"])
    note, known = load_weights(fresh.model, "coco", fresh.names)
    assert note.startswith("coco: ")
    assert not known
    original = load_checkpoint(find_model("coco"))
    row = original.state["heads.classification.0.bias"].view(3, 90)[:, original.class_names.index("cat")]
    found = detector.model.heads.state_dict()["classification.0.bias"].view(3, 2)[:, 0]
    np.testing.assert_array_equal(found, row)


def test_a_run_folder_gives_its_weights_to_training(tmp_path):
    from multibox.models.checkpoint import Checkpoint, save_checkpoint

    old = api.create("tinyssd", ["cat"], seed=3)
    save_checkpoint(tmp_path / "last.safetensors", Checkpoint(old.model.state_dict(), old.config, old.names))
    new = api.create("tinyssd", ["cat"])
    assert load_weights(new.model, tmp_path, new.names).known
    assert choose_network(tmp_path, None)[0] == "tinyssd"


@pytest.mark.slow
def test_a_built_in_model_is_exported_and_an_exported_file_is_not(tmp_path):
    report = multibox.export(multibox.load("face"), tmp_path / "face.onnx")
    assert report["matched"] + report["swapped"] >= report["detections"] - 1
    exported = multibox.load(tmp_path / "face.onnx")
    assert (exported.about["license"], exported.thresholds) == ("MIT", (0.7,))
    with pytest.raises(ConfigError, match="comes from an exported file: export the checkpoint behind that file"):
        multibox.export(exported, tmp_path / "again.onnx")


@pytest.mark.slow
def test_bench_counts_the_same_work_in_every_engine(engine):
    from multibox.benchmarking.measurement import open_subject
    from multibox.benchmarking.torchvision_peer import eager_subject
    from multibox.inference.detector import open_checkpoint

    if engine == "PyTorch":
        subject = eager_subject(open_checkpoint("coco"), "float32")
    else:
        subject = open_subject("coco", 1, None)
        assert engine.lower() in subject.name.lower()
    assert subject.outputs == (1917, 90)
    assert subject.flops == pytest.approx(1.44e9, rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_stored_once_and_read_from_its_place(name):
    import onnx
    from safetensors import numpy as safetensors

    path = runnable(find_model(name))
    graph = onnx.load(path, load_external_data=False).graph
    weights = safetensors.load_file(find_model(name))
    data = find_model(name).read_bytes()
    names = {tensor.name for tensor in graph.initializer}
    assert not names & {value.name for value in graph.input}
    used = 0
    for tensor in graph.initializer:
        if not tensor.external_data:
            assert len(tensor.raw_data) < 1000
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        start, length = int(where["offset"]), int(where["length"])
        assert where["location"] == f"{name}.safetensors"
        assert data[start : start + length] == weights[tensor.name].tobytes()
        used += length
    assert used > 0.95 * len(data) - 150_000
    whole = sum(file.stat().st_size for file in FOLDER.glob("*.*"))
    assert whole < 6_500_000  # The wheel stays under 10 MB


def test_models_are_listed_with_size_licence_and_source():
    done = subprocess.run(
        [sys.executable, "-m", "multibox", "list", "models"], capture_output=True, text=True, check=True
    )
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert all(part in lines["coco"] for part in ("80", "300x300", "4.5 MB", "Apache-2.0"))
    assert all(part in lines["face"] for part in ("320x240", "1.4 MB", "MIT"))
    assert "coco: weights from https://storage.googleapis.com/download.tensorflow.org/" in done.stdout
    assert "face: weights from https://github.com/Linzaer/" in done.stdout


def test_an_image_in_the_place_of_the_model_asks_for_no_torch(photo):
    done = multibox_core(photo.parent, "predict", "photo.png", "photo.png")
    assert done.returncode == 2, done.stderr
    assert "photo.png is no model; expected a .safetensors, .onnx or .xml file, or a run folder" in done.stderr
