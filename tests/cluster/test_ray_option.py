"""The option --ray: with and without an address, and mistakes told before Ray starts."""

import importlib.util
import socket
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from multibox.cli.predict_ray import with_address
from multibox.cluster.block_worker import BlockWorker
from multibox.cluster.ray_job import _as_ours, choose_pool
from multibox.errors import ConfigError, DataError, WeightsError


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


class FakeRay:
    """Tells resources, and runs the question about the GPU with a fixed answer."""

    def __init__(self, usable=False, **resources):
        self.usable, self.resources = usable, resources

    def cluster_resources(self):
        return self.resources

    def remote(self, **_):
        return lambda _: SimpleNamespace(remote=lambda: self.usable)

    def get(self, answer):
        return answer


@pytest.mark.parametrize(
    ("ray", "device", "pool"),
    [
        (FakeRay(CPU=6.0), "auto", (6, 1, "cpu")),
        (FakeRay(CPU=6.0, GPU=2.0, usable=True), "auto", (2, 3, "cuda")),
        (FakeRay(CPU=6.0, GPU=2.0), "auto", (6, 1, "cpu")),
        (FakeRay(CPU=6.0, GPU=2.0, usable=True), "cpu", (6, 1, "cpu")),
        (FakeRay(CPU=1.0, GPU=2.0), "cuda", (2, 1, "cuda")),
    ],
)
def test_actors_take_a_core_or_a_gpu(ray, device, pool):
    assert choose_pool(ray, device) == pool


@pytest.mark.parametrize(("ray", "device"), [(FakeRay(CPU=2.0), "cuda"), (FakeRay(CPU=2.0), "mps"), (FakeRay(), "cpu")])
def test_devices_that_the_cluster_lacks(ray, device):
    with pytest.raises(ConfigError):
        choose_pool(ray, device)


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


def test_ctrl_c_counts_the_parts_on_the_disk(run, images, tmp_path, monkeypatch):
    out = tmp_path / "found.parquet"

    def interrupted(_, blocks, files, task, pool):
        # The actor has written its part when Ctrl-C comes, and nothing of it came back yet
        worker = BlockWorker(task, lambda: files)
        worker({"number": [blocks[0][0]], "block": [blocks[0][1].encode()]})
        raise KeyboardInterrupt

    monkeypatch.setattr("multibox.cluster.ray_job.choose_address", lambda _: "local")
    monkeypatch.setattr("multibox.cluster.ray_job.cluster", lambda _: nullcontext(FakeRay(CPU=1.0)))
    monkeypatch.setattr("multibox.cluster.ray_job.do_blocks", interrupted)
    code, told, _ = run("predict", "face", images, "--ray", "--out", out)
    assert code == 130 and (out / "part-00000.parquet").is_file()
    assert "stopped: 1 image with 0 objects" in told and "(1 part) of 1" in told
