import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnxscript import GraphBuilder

from multibox import api
from multibox.exporting import graph, network
from multibox.exporting.network import OPSET
from multibox.exporting.verify import run_onnx, run_openvino
from multibox.inference.engines import adapt, openvino_core

RUNTIMES = ("onnxruntime", "openvino")


def build(add):
    """Make an ONNX model of what `add(builder)` returns: outputs by name."""
    builder = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="test"))
    for name, value in add(builder).items():
        builder.add_output(value, name)
    proto = ir.to_proto(ir.Model(builder.graph, ir_version=10))
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def open_in(runtime, data, tmp_path):
    if runtime == "onnxruntime":
        return run_onnx(data)
    path = tmp_path / "test.onnx"
    path.write_bytes(data)
    model = openvino_core().read_model(path)
    adapt(model)
    return run_openvino(model)


def make_detector(preset, size, names=("a", "b", "c"), **changes):
    """Make a detector whose untrained answers differ enough to be told apart."""
    detector = api.create(preset, list(names))
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    detector.config = detector.config.updated({"model.input_size": (size, size), **changes})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in detector.model.heads.class_layers():
            layer.weight.normal_(0, 0.3, generator=generator)
            layer.bias.zero_()
        images = torch.randint(0, 256, (2, 3, size, size), generator=generator).float()
        spread = detector.model(images).logits.std()
        for _, layer in detector.model.heads.class_layers():
            layer.weight.mul_(2 / spread)
    return detector


@pytest.fixture(scope="session", autouse=True)
def _each_network_is_traced_once():
    """Tracing takes seconds, and the files of one detector share it."""
    traced = WeakKeyDictionary()

    def once(model, size):
        if model not in traced:
            traced[model] = network.trace(model, size)
        return traced[model].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", once)
        yield


@pytest.fixture(scope="session")
def tiny():
    return make_detector("tinyssd", 64)


@pytest.fixture(scope="session")
def lite():
    return make_detector("ssdlite320-mobilenetv3", 96)


@pytest.fixture
def noise():
    rng = np.random.default_rng(0)
    return lambda *size: rng.integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture(scope="session")
def picky_file(tmp_path_factory):
    """An exported detector whose classes have thresholds of their own, each of which drops some detections."""
    from multibox.exporting.export import export

    found = make_detector("tinyssd", 64)
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 56, 3), np.uint8)
    every = found.predict(list(images), 0.01)
    thresholds = [
        float(np.quantile(np.concatenate([each.scores[each.labels == label] for each in every]), share))
        for label, share in enumerate((0.3, 0.8, 0.6))
    ]
    found.config = found.config.updated({"post.thresholds": tuple(thresholds)})
    path = tmp_path_factory.mktemp("picky") / "picky.onnx"
    export(found, path)
    return path


@pytest.fixture(scope="session")
def venv_with():
    """Return a function that makes a venv with packages, once per machine, below MULTIBOX_VENVS or a temporary folder.

    It returns the venv's folder. Such packages need other versions of our own packages, or are needed by one test.
    """

    from filelock import FileLock  # torch needs it, so it is there

    def make(name, *packages):
        folder = Path(os.environ.get("MULTIBOX_VENVS") or tempfile.gettempdir()) / f"multibox-{name}-venv"
        ready = folder / "ready"
        with FileLock(f"{folder}.lock"):
            if not ready.exists():
                try:
                    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, timeout=120)
                    install = [folder / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
                    subprocess.run([*install, *packages], check=True, capture_output=True, timeout=900)
                except (subprocess.SubprocessError, OSError) as error:
                    pytest.skip(f"pip cannot install {' '.join(packages)} here: {getattr(error, 'stderr', error)!r}")
                ready.touch()
        return folder

    return make


def shown_block(language, word, page="deploy.md"):
    """Return the code block of a page of docs that contains a word."""
    text = (Path(__file__).resolve().parents[2] / "docs" / page).read_text("utf-8")
    return next(block for block in re.findall(f"```{language}\n(.*?)```", text, re.DOTALL) if word in block)
