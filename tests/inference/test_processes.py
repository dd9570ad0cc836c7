"""A detector in other processes, and what it leaves behind in this one."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import multibox
from multibox.errors import ConfigError, WeightsError
from multibox.exporting import export
from multibox.inference import engines
from multibox.models.checkpoint import Checkpoint, save_checkpoint
from multibox.structures import Detections

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def predict(detector) -> Detections:
    return detector.predict(PIXELS, 0.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint and two exported files of one detector."""
    folder = tmp_path_factory.mktemp("files")
    made = multibox.create("tinyssd", ["cat", "dog"], device="cpu")
    save_checkpoint(folder / "model.safetensors", Checkpoint(made.model.state_dict(), made.config, made.names))
    for name in ("model.onnx", "model.xml"):
        export(made, folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "model.xml"])
def test_a_detector_can_be_pickled(files, name, monkeypatch):
    monkeypatch.chdir(files)
    # A relative path, and options that another process must get, too
    detector = multibox.load(name, device="cpu", threads=1, precision="float32")
    monkeypatch.chdir("/")
    wanted = predict(detector)
    for same in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        assert predict(same) == wanted


@pytest.mark.slow
def test_a_detector_can_be_sent_to_a_process(files):
    detector = multibox.load(files / "model.onnx", device="cpu", threads=1, precision="float32")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(predict, detector).result(timeout=120) == predict(detector)


def test_a_file_that_is_gone_is_named(files, tmp_path):
    file = tmp_path / "gone.onnx"
    file.write_bytes((files / "model.onnx").read_bytes())
    pickled = pickle.dumps(multibox.load(file, device="cpu"))
    file.unlink()
    with pytest.raises(WeightsError, match=r"gone\.onnx does not exist"):
        pickle.loads(pickled)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx"])
def test_a_forked_process_answers(files, name):
    """PyTorch's threads are not forked; without `single_threaded_forks` the child waits for them forever."""
    code = """
import multiprocessing, sys
import numpy as np, torch
import multibox
torch.set_num_threads(4)
detector = multibox.load(sys.argv[1], device="cpu")
pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
wanted = detector.predict(pixels, 0.0)
with multiprocessing.get_context("fork").Pool(1) as pool:
    found = pool.apply_async(detector.predict, (pixels, 0.0)).get(timeout=60)
assert len(found) == len(wanted)
assert torch.get_num_threads() == 4
print("fine")
"""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(files / name)],
        capture_output=True, text=True, check=False, timeout=120, env=environment,
    )  # fmt: skip
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_evaluate_needs_no_main_guard(files, draw_squares, tmp_path, method):
    data = draw_squares(tmp_path / "squares", 8)
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        f"multiprocessing.set_start_method({method!r})\n"
        "import multibox\n"
        f"detector = multibox.load({str(files / 'model.safetensors')!r})\n"
        f"metrics = multibox.evaluate(detector, {str(data)!r}, split='val', rename={{'red': 'cat', 'blue': 'dog'}})\n"
        "print('fine', sorted(metrics)[0], len(multiprocessing.active_children()))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "fine coco 0\n", done.stderr


def test_threads_are_those_of_the_forward_pass_only(files):
    before = torch.get_num_threads()
    detector = multibox.load(files / "model.safetensors", device="cpu", threads=before + 2)
    seen = []
    detector.model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    detector.quicken()
    wanted = predict(detector)
    assert seen == [before + 2]
    assert torch.get_num_threads() == before
    assert len(wanted) > 0
    for threads in (0, -1, "2", 1.5, True):
        for name in ("model.safetensors", "model.onnx"):
            with pytest.raises(ConfigError, match=r"threads=.*: expected a whole number of at least 1"):
                multibox.load(files / name, threads=threads)


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx"])
def test_load_and_create_within_inference_mode(files, name):
    with torch.inference_mode():
        detector = multibox.load(files / name, device="cpu")
        inside = predict(detector)
    assert predict(detector) == inside


@pytest.mark.slow
def test_what_was_made_within_inference_mode_can_be_trained(files):
    with torch.inference_mode():
        detectors = [multibox.create("ssdlite320-mobilenetv3", ["a"], device="cpu")]
        detectors.append(multibox.load(files / "model.safetensors", device="cpu"))
        for detector in detectors:
            predict(detector)
    for detector in detectors:
        detector.model.train()
        outputs = detector.model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
        (outputs.logits.sum() + outputs.offsets.sum()).backward()
        with torch.no_grad():
            for parameter in detector.model.parameters():
                parameter.sub_(0.01)
        detector.model.eval()
        assert len(predict(detector)) >= 0


def test_devices(files, monkeypatch):
    checkpoint, exported, openvino = (files / name for name in ("model.safetensors", "model.onnx", "model.xml"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert multibox.load(checkpoint).device == "cpu"
    assert multibox.create("tinyssd", ["a"]).device == "cpu"
    for device in ("cuda", "mps", "tpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device {device} cannot be used here"):
            multibox.load(checkpoint, device=device)
    with pytest.raises(ConfigError, match=r"bfloat16.*mps computes in float32 only"):
        from multibox.models.prediction import quick_copy

        quick_copy(multibox.load(checkpoint, device="cpu").model, "bfloat16", "mps")
    assert len(predict(multibox.load(exported, device="auto"))) > 0
    monkeypatch.setattr(engines, "_cuda_driver", lambda: False)
    for file, device, sentence in (
        (exported, "cuda", "'cuda' needs onnxruntime-gpu and an NVIDIA GPU"),
        (exported, "mps", "device 'mps', expected cpu, cuda or auto"),
        (exported, "cuda:1", "expected cpu, cuda or auto"),
        (openvino, "cuda", "on cuda only .onnx files run"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            multibox.load(file, device=device)


def test_an_exported_file_runs_on_cuda_where_onnxruntime_has_it(files, monkeypatch):
    import onnxruntime

    asked = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers):
            asked.append(providers)
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return asked[-1]

    monkeypatch.setattr(engines, "_cuda_driver", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_device", lambda: "GPU")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    for device in ("auto", "cuda"):
        detector = multibox.load(files / "model.onnx", device=device)
        assert detector.engine.name == "onnxruntime"
        assert len(predict(detector)) > 0
    assert asked == [["CUDAExecutionProvider", "CPUExecutionProvider"]] * 2
    assert multibox.load(files / "model.onnx", device="cpu").engine.name != "onnxruntime"
    monkeypatch.setattr(Session, "get_providers", lambda self: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match="cannot start CUDA here"):
        multibox.load(files / "model.onnx", device="cuda")


def test_prediction_meets_no_float64(files):
    """Apple's MPS has none; anchors are made in it once, on the CPU."""

    class Narrow(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, func
            return out

    loaded = multibox.load(files / "model.safetensors", device="cpu")
    for detector in (loaded, multibox.create("ssdlite320-mobilenetv3", ["a"], device="cpu")):
        predict(detector)
        with Narrow():
            assert len(predict(detector)) >= 0
