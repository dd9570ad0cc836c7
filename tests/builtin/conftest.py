"""The built-in models in each of their engines."""

import pytest

import multibox
from multibox.builtin import find_model, runnable
from multibox.inference import detector

ENGINES = ("onnxruntime", "OpenVINO", pytest.param("PyTorch", marks=pytest.mark.slow))
"""PyTorch's are the weights of the importers to the bit, which tests/importers compare with the originals."""


def without_openvino(monkeypatch):
    monkeypatch.setattr("multibox.inference.engines.find_spec", lambda name: None)


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    if request.param == "onnxruntime":
        without_openvino(monkeypatch)
    return request.param


@pytest.fixture
def opened(engine):
    """Open a built-in model in one of the engines, in float32."""

    def load(name):
        if engine == "PyTorch":
            return detector.open_checkpoint(name)
        found = multibox.load(name, threads=1, precision="float32")
        assert found.engine.name == engine
        return found

    return load


@pytest.fixture
def raw(engine):
    """Return a function from a model's name and uint8 images of its input size to logits and offsets."""

    def run(name, images):
        if engine == "PyTorch":
            import torch

            with torch.inference_mode():
                outputs = detector.open_checkpoint(name).model(torch.from_numpy(images).permute(0, 3, 1, 2))
            return outputs.logits.numpy(), outputs.offsets.numpy()
        found = staged(engine, runnable(find_model(name)))({"images": images, **limits()})
        return found["logits"], found["offsets"]

    return run


def limits():
    import numpy as np

    return {
        "score_threshold": np.array(0.3, np.float32),
        "nms_threshold": np.array(0.5, np.float32),
        "max_detections": np.array(100, np.int64),
    }


def staged(engine, path):
    import onnx

    from multibox.exporting.verify import run_onnx, run_openvino
    from multibox.inference.engines import openvino_core

    if engine == "onnxruntime":
        return run_onnx(onnx.load(path).SerializeToString(), stages=True)
    return run_openvino(openvino_core().read_model(path), stages=True)
