"""README's Python as scripts without a `__main__` guard, under the start methods of Windows, macOS and new Pythons."""

import re
import sys

import pytest
from PIL import Image

METHODS = ["spawn", pytest.param("forkserver", marks=pytest.mark.skipif(sys.platform == "win32", reason="Unix only"))]
HEAD = "import multiprocessing\nmultiprocessing.set_start_method({!r})\n"
SHORT = 'preset="tinyssd", epochs=1, changes={"model.input_size": [64, 64], "train.batch_size": 4}, device="cpu"'


def python_blocks(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    # Ten minutes are too long for a test
    return [re.sub(r"minutes=\d+", SHORT, block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.fixture
def place(squares, tmp_path):
    """A folder with the data and the photo that README's blocks name."""
    squares.rename(tmp_path / "my-data")
    Image.open(tmp_path / "my-data" / "JPEGImages" / "000.png").resize((200, 200)).save(tmp_path / "photo.jpg")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_readme_runs_as_a_script(multibox, place, root, method):
    blocks = python_blocks(root)
    assert any("multibox.train(" in block for block in blocks)
    assert any("multibox.evaluate(" in block for block in blocks)
    (place / "script.py").write_text(HEAD.format(method) + "\n".join(blocks), encoding="utf-8")
    code, out, err = multibox("script.py", cwd=place, script=True)
    assert code == 0, err
    assert out.count("mAP@0.5 ") >= 1
    assert "bootstrapping" not in err and "Traceback" not in err
    assert (place / "drawn.jpg").is_file()
    assert (place / "runs" / "tinyssd-1" / "best.safetensors").is_file()


@pytest.mark.slow
def test_worker_processes_train_without_a_main_guard(multibox, place):
    workers = SHORT.replace("4}", '4, "train.workers": 2}')
    script = HEAD.format("spawn") + (
        "import multibox\n"
        "from multibox.training import splits\n"
        # As on a GPU, beside which images are prepared by processes
        "splits.use_processes = lambda workers, device: True\n"
        f'detector = multibox.train("my-data", out="run", {workers})\n'
        'print("trained", detector.names)\n'
    )
    (place / "script.py").write_text(script, encoding="utf-8")
    code, out, err = multibox("script.py", cwd=place, script=True)
    assert code == 0, err
    # The script ran once, and not again in each worker
    assert re.findall("^trained.*", out, re.MULTILINE) == ["trained ('blue', 'red')"], out + err


def test_a_script_catches_mistakes_as_one_kind_of_error(place, monkeypatch):
    import multibox

    monkeypatch.chdir(place)
    for mistake in (
        lambda: multibox.load("cocoo"),
        lambda: multibox.train("my-dat"),
        lambda: multibox.train("my-data", changes={"train.lr": -1}),
        lambda: multibox.train("my-data", preset="tinysd"),
        lambda: multibox.evaluate(multibox.load("face"), "my-data", split="val"),
        lambda: multibox.create("tinyssd", []),
    ):
        with pytest.raises(multibox.MultiboxError):
            mistake()
    assert not (place / "runs").exists()
