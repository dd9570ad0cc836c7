"""`multibox export --to web` without a browser: what the folder holds, and what is refused before any work."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from multibox.builtin import FOLDER
from multibox.errors import ConfigError
from multibox.exporting import export
from multibox.exporting.folders import copy_whole
from multibox.exporting.web_folder import check_runtime, write_web
from multibox.files import LISTING
from multibox.inference.detector import Detector
from multibox.inference.load import load
from multibox.models.checkpoint import Checkpoint, save_checkpoint

FILES = ["LICENSES.txt", "index.html", "model.onnx", "multibox.js"]
RUNTIME = ["ort-wasm-simd-threaded.js", "ort-wasm-simd-threaded.wasm", "ort.wasm.min.js"]


@pytest.fixture(scope="module")
def face(tmp_path_factory):
    return copy_whole(FOLDER / "face.onnx", tmp_path_factory.mktemp("face"))


@pytest.fixture
def folder(face, tmp_path, fake_runtime):
    folder = tmp_path / "page"
    folder.mkdir()
    write_web(face, folder, name="face", runtime=fake_runtime)
    return folder


def data_of(folder):
    page = (folder / "index.html").read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_it_holds_the_model_the_page_its_script_and_the_runtime(folder, face, fake_runtime):
    assert sorted(each.name for each in folder.iterdir()) == sorted(FILES + RUNTIME)
    assert (folder / "model.onnx").read_bytes() == face.read_bytes()
    for name in RUNTIME:
        source = fake_runtime / name.replace("threaded.js", "threaded.mjs")
        assert (folder / name).read_bytes() == source.read_bytes()


def test_the_page_knows_the_model(folder, face):
    data, model = data_of(folder), load(face)
    post = model.about["post"]
    assert data["names"] == list(model.names)
    assert data["thresholds"] == list(model.thresholds)
    assert (data["nms"], data["most"], data["inclusive"]) == (post["nms_threshold"], post["max_detections"], False)
    assert data["licence"] == "MIT"
    files = {name.partition("?")[0] for name in data["web"]["files"].values()}
    assert files == {"model.onnx", *RUNTIME}
    assert data["web"]["bytes"] == sum((folder / f).stat().st_size for f in ("model.onnx", RUNTIME[1]))


@pytest.mark.slow
def test_boxes_of_low_thresholds_are_looked_for(tiny, tmp_path, fake_runtime):
    low = Detector(tiny.model, tiny.config.updated({"post.thresholds": (0.3, 0.01, 0.5)}), tiny.names)
    export(low, tmp_path / "low.onnx")
    (tmp_path / "page").mkdir()
    write_web(tmp_path / "low.onnx", tmp_path / "page", name="low", runtime=fake_runtime)
    # The graph drops scores at its threshold, `predict` those below it
    assert 0.00999 < data_of(tmp_path / "page")["web"]["score"] < np.float32(0.01)


def test_the_page_loads_nothing_from_elsewhere(folder):
    page = (folder / "index.html").read_text()
    rules = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in rules and "script-src 'self' 'wasm-unsafe-eval';" in rules
    assert "http" not in rules and "*" not in rules and "unsafe-eval';" in rules
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(re.match(r"multibox\.js\?\w+$|data:,$|#main$", each) for each in addresses)
    assert len(re.findall('<script(?! type="application/json")', page)) == 1


def test_a_new_model_gets_a_new_address(folder, tiny, tmp_path, fake_runtime):
    export(tiny, tmp_path / "tiny.onnx")
    other = tmp_path / "other"
    other.mkdir()
    write_web(tmp_path / "tiny.onnx", other, name="tiny", runtime=fake_runtime)
    one, two = (data_of(each)["web"]["files"] for each in (folder, other))
    assert one["model"] != two["model"] and one["wasm"] == two["wasm"]
    assert data_of(other)["thresholds"] == [0.3] * 3


def test_the_script_is_valid(folder):
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    subprocess.run(["node", "--check", folder / "multibox.js"], check=True, timeout=60)


def test_licences_of_all_parts_are_kept(folder, face, tmp_path, fake_runtime):
    text = (folder / "LICENSES.txt").read_text()
    for words in ("Apache-2.0", "face, licence: MIT", "ONNX Runtime Web 1.99.0", "Copyright (c) Microsoft"):
        assert words in text
    (fake_runtime.parent / "LICENSE").write_text("the package's own licence")
    assert not check_runtime(fake_runtime).licences  # it may be any folder of the user's
    (fake_runtime.parent / "package.json").write_text("{}")
    other = tmp_path / "other"
    other.mkdir()
    write_web(face, other, name="face", runtime=fake_runtime)
    text = (other / "LICENSES.txt").read_text()
    assert "the package's own licence" in text and "Copyright (c) Microsoft" not in text


def test_the_command_writes_a_built_in_model(run, tmp_path, fake_runtime):
    code, out, err = run("export", "coco", "--to", "web", "--runtime", fake_runtime, "--out", tmp_path / "page")
    assert code == 0, err
    assert "python -m http.server" in out and "coco" in out
    assert sorted(each.name for each in (tmp_path / "page").iterdir()) == sorted([LISTING, *FILES, *RUNTIME])
    # The built-in graph keeps 8-bit weights, and they are inside
    assert 4e6 < (tmp_path / "page" / "model.onnx").stat().st_size < 5e6
    assert load(tmp_path / "page" / "model.onnx").names == load("coco").names
    code, _, err = run("export", "coco", "--to", "web", "--runtime", fake_runtime, "--opset", 17)
    assert code == 2 and "--opset" in err


@pytest.mark.parametrize("meant", ["dist", "package", "project"])
def test_the_folder_around_the_runtime_is_understood(fake_runtime, meant):
    place = {"dist": fake_runtime, "package": fake_runtime.parent, "project": fake_runtime.parents[2]}[meant]
    found = check_runtime(place)
    assert found.version == "1.99.0" and found.files["script"].parent == fake_runtime


def test_what_is_no_runtime_is_refused_with_the_way_to_get_it(tmp_path, fake_runtime):
    with pytest.raises(ConfigError, match=r"needs --runtime.*npm install onnxruntime-web"):
        check_runtime(None)
    for place in (tmp_path / "absent", fake_runtime / "ort.wasm.min.js"):
        with pytest.raises(ConfigError, match=r"is no folder.*npm install onnxruntime-web"):
            check_runtime(place)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"ort\.wasm\.min\.js.*npm install"):
        check_runtime(tmp_path / "empty")
    (fake_runtime / "ort-wasm-simd-threaded.wasm").write_bytes(b"version https://git-lfs")
    with pytest.raises(ConfigError, match=r"threaded\.wasm is no WebAssembly"):
        check_runtime(fake_runtime)
    (fake_runtime / "ort-wasm-simd-threaded.mjs").unlink()
    with pytest.raises(ConfigError, match=r"threaded\.mjs, which onnxruntime-web has since version 1\.19"):
        check_runtime(fake_runtime)


def test_a_wrong_runtime_is_refused_before_any_work(run, tiny, tmp_path, monkeypatch):
    weights = tmp_path / "model.safetensors"
    save_checkpoint(weights, Checkpoint(tiny.model.state_dict(), tiny.config, tiny.names))
    monkeypatch.setattr("multibox.inference.detector.open_checkpoint", lambda *_, **__: pytest.fail("it was opened"))
    for given in ([], ["--runtime", tmp_path]):
        code, out, err = run("export", weights, "--to", "web", "--out", tmp_path / "page", *given)
        assert code == 2 and out == "" and "npm install onnxruntime-web" in err
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_of_another_dialect_is_refused(run, tiny, tmp_path, fake_runtime):
    from multibox.exporting import ExportOptions

    export(tiny, tmp_path / "raw.onnx", ExportOptions(dialect="raw"))
    out = tmp_path / "page"
    code, _, err = run("export", tmp_path / "raw.onnx", "--to", "web", "--runtime", fake_runtime, "--out", out)
    assert code == 2 and "dialect 'raw'" in err and not out.exists()
