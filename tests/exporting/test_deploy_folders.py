"""`multibox export --to` a folder: what is refused, what is written over, and what the writers are given."""

import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from typer.testing import CliRunner

from multibox.builtin import FOLDER
from multibox.cli.main import app
from multibox.errors import ConfigError, WeightsError
from multibox.exporting import folders
from multibox.files import LISTING
from multibox.inference.load import load
from multibox.models.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Put a writer that copies the model in place of every target's."""
    calls = []

    def write(model, folder, **options):
        calls.append((model.name, load(model).names, options))
        shutil.copy(model, folder / model.name)
        (folder / "deep").mkdir()
        (folder / "deep" / "note.txt").write_text("a note")
        return ["a line"]

    module = types.ModuleType("multibox.exporting.stand_in")
    module.write = write
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(folders, "_WRITERS", dict.fromkeys(folders.FOLDERS, (module.__name__, "write")))
    return calls


@pytest.fixture
def exported(tiny_file, tmp_path):
    return shutil.copy(tiny_file, tmp_path / "cells.onnx")


@pytest.fixture(scope="module")
def tiny_file(tiny, tmp_path_factory):
    from multibox.exporting import export

    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    export(tiny, path)
    return path


def run(*arguments):
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if isinstance(result.exception, ConfigError | WeightsError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_a_checkpoint_is_exported_and_verified_first(tiny, tmp_path, calls):
    weights = tmp_path / "cells" / "best.safetensors"
    weights.parent.mkdir()
    save_checkpoint(weights, Checkpoint(tiny.model.state_dict(), tiny.config, tiny.names))
    output = run(weights.parent, "--to", "triton")
    assert "verified with onnxruntime" in output
    assert "a line" in output
    assert calls == [("model.onnx", tiny.names, {"name": "cells", "threshold": None})]
    folder = weights.parent / "cells-triton"
    assert sorted(each.name for each in folder.iterdir()) == [LISTING, "deep", "model.onnx"]


def test_an_exported_file_is_taken_as_it_is_and_folders_are_numbered(exported, calls):
    for _ in range(2):
        run(exported, "--to", "kserve")
    places = [exported.with_name(name) for name in ("cells-kserve", "cells-kserve-2")]
    assert [(place / "model.onnx").read_bytes() for place in places] == [exported.read_bytes()] * 2
    assert [options for *_, options in calls] == [{"name": "cells", "threshold": None}] * 2


@pytest.mark.slow
def test_weights_in_another_file_are_taken_in(tmp_path):
    run(FOLDER / "face.onnx", "--to", "triton", "--out", tmp_path / "out")
    file = tmp_path / "out" / "model.onnx"
    assert file.stat().st_size > 1e6
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    one, other = (load(each).predict(image, 0.0) for each in (file, FOLDER / "face.onnx"))
    assert np.array_equal(one.boxes, other.boxes)


def test_the_browser_gets_its_runtime(exported, tmp_path, calls, fake_runtime):
    run(exported, "--to", "web", "--runtime", fake_runtime, "--out", tmp_path / "page")
    assert calls[0][2] == {"name": "cells", "runtime": fake_runtime}
    with pytest.raises(ConfigError, match="npm install onnxruntime-web"):
        run(exported, "--to", "web")
    for to in ("triton", "onnx"):
        with pytest.raises(ConfigError, match="--runtime is for --to web"):
            run(exported, "--to", to, "--runtime", fake_runtime)


def test_only_a_folder_that_an_export_wrote_is_replaced(exported, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    run(exported, "--to", "triton", "--out", out)
    with pytest.raises(ConfigError, match="not empty"):
        run(exported, "--to", "triton", "--out", out)
    before = (out / "model.onnx").stat().st_ino
    run(exported, "--to", "triton", "--out", out, "--overwrite")
    assert (out / "model.onnx").stat().st_ino != before
    (out / "deep" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"deep/mine\.txt"):
        run(exported, "--to", "triton", "--out", out, "--overwrite")
    assert (out / "deep" / "mine.txt").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cells.onnx", "out"]


def test_a_file_that_the_user_changed_is_never_replaced(exported, tmp_path, calls):
    out, again = tmp_path / "out", (exported, "--to", "triton", "--out", tmp_path / "out", "--overwrite")
    run(*again)
    note = out / "deep" / "note.txt"
    note.write_text("a note, changed")
    with pytest.raises(ConfigError, match=r"out/deep/note\.txt was changed since the export.*move.*give another --out"):
        run(*again)
    assert len(calls) == 1  # before any work
    assert note.read_text() == "a note, changed"
    (out / "model.onnx").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"note\.txt \(and 1 more\) was changed"):
        run(*again)
    (out / "model.onnx").unlink()
    note.rename(tmp_path / "note.txt")  # as the message says
    run(*again)
    assert note.read_text() == "a note"


def test_an_old_list_without_hashes_tells_added_files_only(exported, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("changed?")
    (out / LISTING).write_text('["a.txt"]')
    run(exported, "--to", "triton", "--out", out, "--overwrite")
    assert not (out / "a.txt").exists()


def test_a_folder_of_the_users_is_never_replaced(exported, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").touch()
    for listing in (None, "not JSON", "[1, {}]", '{"a": 1}'):
        if listing is not None:
            (photos / LISTING).write_text(listing)
        with pytest.raises(ConfigError, match=r"a\.jpg"):
            run(exported, "--to", "triton", "--out", photos, "--overwrite")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="no folder"):
        run(exported, "--to", "triton", "--out", file, "--overwrite")


def test_an_input_is_never_replaced(exported, tmp_path):
    out = tmp_path / "out"
    run(exported, "--to", "triton", "--out", out)
    with pytest.raises(ConfigError, match="holds the input"):
        run(out / "model.onnx", "--to", "triton", "--out", out, "--overwrite")


def test_a_writer_that_fails_leaves_the_old_folder(exported, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(exported, "--to", "triton", "--out", out)
    before = sorted(out.rglob("*"))

    def fail(model, folder, **options):
        raise WeightsError("broken")

    monkeypatch.setattr(sys.modules["multibox.exporting.stand_in"], "write", fail)
    with pytest.raises(WeightsError):
        run(exported, "--to", "triton", "--out", out, "--overwrite")
    assert sorted(out.rglob("*")) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_options_that_have_no_use_are_refused(exported, tiny, tmp_path):
    weights = tmp_path / "a.safetensors"
    save_checkpoint(weights, Checkpoint(tiny.model.state_dict(), tiny.config, tiny.names))
    for model, *options in (
        (weights, "--to", "triton", "--fp16"),
        (weights, "--to", "ovms", "--opset", "15"),
        (weights, "--to", "triton", "--raw"),
        (weights, "--to", "ovms", "--dialect", "jetson"),
        (exported, "--to", "triton", "--data", tmp_path),
        (exported, "--to", "ovms", "--fp16"),
    ):
        with pytest.raises(ConfigError, match="leave"):
            run(model, *options)


def test_the_threshold_reaches_servers_and_nothing_else(exported, calls, tmp_path):
    run(exported, "--to", "ovms", "--threshold", "0.25", "--out", tmp_path / "out")
    assert calls[0][2] == {"name": "cells", "threshold": 0.25}
    for arguments in (["--to", "onnx"], ["--to", "web", "--runtime", tmp_path]):
        with pytest.raises(ConfigError):
            run(exported, *arguments, "--threshold", "0.25")
    with pytest.raises(ConfigError, match="from 0 to 1"):
        run(exported, "--to", "triton", "--threshold", "25")


@pytest.mark.slow
def test_a_file_of_another_dialect_is_refused(tiny, tmp_path):
    from multibox.exporting import ExportOptions, export

    export(tiny, tmp_path / "raw.onnx", ExportOptions(dialect="raw"))
    with pytest.raises(WeightsError, match="dialect 'raw'"):
        run(tmp_path / "raw.onnx", "--to", "triton")
    assert [each.name for each in tmp_path.iterdir()] == ["raw.onnx"]


NO_TORCH = """
import sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "jaxtyping"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from multibox.exporting.folders import write_folder
for to in ("triton", "kserve", "ovms"):
    write_folder(to, Path(sys.argv[1]), Path(sys.argv[2]) / to, export=None)
assert "torch" not in sys.modules
sys.argv = ["multibox", "export", "coco"]
from multibox.cli.main import main
main()
"""


@pytest.mark.slow
def test_a_file_exported_before_needs_no_torch(exported, tmp_path):
    arguments = [sys.executable, "-c", NO_TORCH, str(exported), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "pip install 'multibox[" in done.stderr
    assert "Traceback" not in done.stderr
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"triton/cells/1/model.onnx", "kserve/models/cells/1/model.onnx", "ovms/cells/1/model.xml"} <= written
