"""The option --ray: with and without an address, and mistakes told before Ray starts."""

import importlib.util
import socket

import pytest

from multibox.cli.predict_ray import with_address
from multibox.cluster.ray_job import _as_ours
from multibox.errors import DataError, WeightsError


@pytest.mark.parametrize(
    ("given", "full"),
    [
        (["coco", "photos", "--ray"], ["coco", "photos", "--ray", ""]),
        (["coco", "--ray", "photos"], ["coco", "--ray", "", "photos"]),
        (["--ray", "--out", "a"], ["--ray", "", "--out", "a"]),
        (["--ray", "auto", "photos"], ["--ray", "auto", "photos"]),
        (["--ray", "head.example:6379"], ["--ray", "head.example:6379"]),
        (["--ray", "[::1]:6379"], ["--ray", "[::1]:6379"]),
        (["--ray", "ray://head:10001"], ["--ray", "ray://head:10001"]),
        (["--ray=auto", "photos"], ["--ray=auto", "photos"]),
        (["--", "--ray"], ["--", "--ray"]),
        (["photos"], ["photos"]),
    ],
)
def test_the_value_is_optional(given, full):
    assert with_address(given) == full


@pytest.fixture
def images(tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "--out", "new", "--json", "a.json"], "--json does not go with --ray"),
        (["--ray"], "--ray needs --out"),
        (["--ray", "ray://127.0.0.1:10001", "--out", "new"], "expected HOST:PORT of the cluster's head"),
        (["--ray", "local", "--out", "new", "--threshold", "2"], "--threshold 2"),
    ],
)
def test_wrong_use_is_told_before_anything_starts(run, images, arguments, message):
    code, _, told = run("predict", "face", images, *arguments)
    assert code == 2 and message in told


def test_an_address_at_which_nothing_answers(run, images, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        code, _, told = run(
            "predict", "face", images, "--ray", f"127.0.0.1:{unused.getsockname()[1]}", "--out", tmp_path / "o"
        )
    assert code == 2 and "nothing answers there" in told
    assert not (tmp_path / "o").exists()


def test_without_ray_the_extra_is_named(run, images, monkeypatch):
    monkeypatch.setattr("multibox.cluster.ray_job.find_spec", lambda name: None if name == "ray" else importlib.util)
    code, _, told = run("predict", "face", images, "--ray", "--out", "new")
    assert code == 2 and "pip install 'multibox[ray]'" in told


def test_what_a_worker_says_comes_through():
    class Wrapped(Exception):
        cause = WeightsError("model.onnx is broken")

    assert str(_as_ours(Wrapped("a long traceback"))) == "model.onnx is broken"
    text = "ray::Worker\n  File x\nmultibox.errors.ImageError: 5.jpg is truncated\n"
    assert isinstance(_as_ours(RuntimeError(text)), DataError)
    assert str(_as_ours(RuntimeError(text))) == "5.jpg is truncated"
    assert "lacks multibox" in str(_as_ours(RuntimeError("ModuleNotFoundError: No module named 'multibox.cluster'")))
    other = RuntimeError("something else")
    assert _as_ours(other) is other
