"""`--to triton`: the repository against Triton's own schema, the model against `predict`, and a real Triton."""

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import multibox
from multibox.builtin import FOLDER
from multibox.errors import WeightsError
from multibox.exporting import fixed_limits
from multibox.exporting.fixed_limits import fix_limits, open_bytes, served_name
from multibox.exporting.folders import write_folder
from multibox.exporting.triton import MOST, config
from multibox.inference.load import detections_of, open_exported

from .conftest import shown_block


def write(model, out):
    write_folder("triton", model, out, export=lambda file: None)
    return out


@pytest.fixture(scope="module")
def repository(picky_file, tmp_path_factory):
    return write(picky_file, tmp_path_factory.mktemp("triton") / "repository")


@pytest.fixture
def float32(monkeypatch):
    """Open exported files in onnxruntime, as Triton does."""
    monkeypatch.setattr("multibox.inference.engines.find_spec", lambda name: None)


def same(got, wanted):
    assert np.array_equal(got.labels, wanted.labels)
    assert np.allclose(got.scores, wanted.scores, atol=1e-5)
    assert np.allclose(got.boxes, wanted.boxes, atol=1e-2)
    return True


def test_the_repository_has_tritons_layout(repository):
    files = sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file())
    assert files == [".multibox-export.json", "picky/1/model.onnx", "picky/config.pbtxt"]


def test_the_config_obeys_tritons_schema_and_names_the_graphs_tensors(repository):
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
    from google.protobuf import text_format

    text = (repository / "picky/config.pbtxt").read_text("utf-8")
    parsed = text_format.Parse(text, schema.ModelConfig())
    graph = onnx.load(repository / "picky/1/model.onnx").graph
    types = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}
    types[onnx.TensorProto.INT64] = "TYPE_INT64"
    for tensors, values in ((parsed.input, graph.input), (parsed.output, graph.output)):
        assert [tensor.name for tensor in tensors] == [value.name for value in values]
        for tensor, value in zip(tensors, values, strict=True):
            assert schema.DataType.Name(tensor.data_type) == types[value.type.tensor_type.elem_type]
            first, *rest = value.type.tensor_type.shape.dim
            assert first.dim_param, "Triton refuses to batch where the first dimension is fixed"
            # What the backend compares with the model: the dims, or what they are reshaped to
            dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
            assert list(dims) == [each.dim_value or -1 for each in rest]
    assert parsed.name == "picky"
    assert parsed.max_batch_size == MOST
    assert parsed.HasField("dynamic_batching")
    assert [each.batch_size for each in parsed.model_warmup] == [1, MOST]
    assert json.loads(parsed.parameters["names"].string_value) == ["a", "b", "c"]


def test_a_name_with_any_letters_survives_the_text_format():
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
    from google.protobuf import text_format

    names = ['a "b" \\ c', "猫", "tab\tline\n"]
    about = {"names": names, "post": {"thresholds": [0.3] * 3}}
    parsed = text_format.Parse(config("x", about), schema.ModelConfig())
    assert json.loads(parsed.parameters["names"].string_value) == names
    assert json.loads(parsed.parameters["thresholds"].string_value) == [0.3] * 3
    assert [served_name(name) for name in ("a b/c", "猫", "v1.2_x-y", ".hidden")] == [
        "a-b-c",
        "model",
        "v1.2_x-y",
        "hidden",
    ]


def test_requests_joined_along_the_batch_equal_predict(repository, picky_file, float32):
    """Triton joins requests of one image size along dimension 0 and hands back each one's rows."""
    detector = open_exported(picky_file)
    rng = np.random.default_rng(3)
    requests = [rng.integers(0, 256, (count, 40, 56, 3), np.uint8) for count in (1, 2, 3, 1)]
    requests[3][:] = 7  # without detections: only padding
    run = open_bytes((repository / "picky/1/model.onnx").read_bytes())
    outputs = run({"images": np.concatenate(requests)})
    rows = np.cumsum([0, *map(len, requests)])
    total = 0
    for first, request in zip(rows, requests, strict=False):
        own = {name: values[first : first + len(request)] for name, values in outputs.items()}
        for got, image in zip(detections_of(own, detector.names), request, strict=True):
            wanted = detector.predict(image)
            assert same(got, wanted)
            total += len(wanted)
        padding = np.arange(own["labels"].shape[1]) >= own["counts"][:, None]
        assert (own["labels"][padding] == -1).all()
        assert not own["scores"][padding].any()
        assert not own["boxes"][padding].any()
    assert total > 20
    assert {str(values.dtype) for values in outputs.values()} == {"float32", "int64"}


def test_an_image_without_detections_has_outputs_of_no_rows(repository, float32):
    run = open_bytes((repository / "picky/1/model.onnx").read_bytes())
    outputs = run({"images": np.full((2, 8, 9, 3), 7, np.uint8)})
    assert outputs["boxes"].shape == (2, outputs["counts"].max(), 4)


def test_the_thresholds_of_every_class_are_those_of_predict(picky_file, float32):
    model, _ = fix_limits(picky_file, "triton")
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    detector = open_exported(picky_file)
    assert np.array_equal(values["filter_lowest"], np.float32(detector.thresholds))
    assert values["score_threshold"] < min(np.float32(detector.thresholds))


def test_another_threshold_is_for_all_classes(picky_file, tmp_path, float32):
    write_folder("triton", picky_file, tmp_path / "out", export=lambda file: None, threshold=0.5)
    image = np.random.default_rng(3).integers(0, 256, (1, 40, 56, 3), np.uint8)
    got = open_bytes((tmp_path / "out/picky/1/model.onnx").read_bytes())({"images": image})
    wanted = open_exported(picky_file).predict(image[0], 0.5)
    assert len(wanted)
    assert same(detections_of(got, wanted.names)[0], wanted)
    assert "[0.5, 0.5, 0.5]" in (tmp_path / "out/picky/config.pbtxt").read_text()


@pytest.mark.slow
def test_equal_thresholds_need_no_filter(tiny, tmp_path, float32):
    from multibox.exporting import export

    export(tiny, tmp_path / "tiny.onnx")
    model, _ = fix_limits(tmp_path / "tiny.onnx", "triton")
    assert not any(node.op_type == "GatherND" and "filter_index" in node.input for node in model.graph.node)
    image = np.random.default_rng(0).integers(0, 256, (1, 30, 40, 3), np.uint8)
    found = detections_of(open_bytes(model.SerializeToString())({"images": image}), tiny.names)[0]
    assert same(found, open_exported(tmp_path / "tiny.onnx").predict(image[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco", "face"])
def test_a_builtin_models_file_holds_its_weights(name, tmp_path, float32):
    repository = write(FOLDER / f"{name}.onnx", tmp_path / "repository")
    image = np.random.default_rng(0).integers(0, 256, (1, 60, 80, 3), np.uint8)
    detector = multibox.load(name)
    got = open_bytes((repository / name / "1/model.onnx").read_bytes())({"images": image})
    assert same(detections_of(got, detector.names)[0], detector.predict(image[0]))


def test_multibox_says_that_it_does_not_open_such_a_file(repository):
    with pytest.raises(WeightsError, match="dialect 'triton'"):
        open_exported(repository / "picky/1/model.onnx")


def test_a_model_that_differs_is_not_written(picky_file, tmp_path, monkeypatch):
    broken = fixed_limits._FILTER.replace("GreaterOrEqual ({p}scores", "Less ({p}scores")
    monkeypatch.setattr(fixed_limits, "_FILTER", broken)
    with pytest.raises(WeightsError, match="other detections"):
        write(picky_file, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


STAND_IN = """
import json, os, sys
import numpy, onnxruntime
import triton_python_backend_utils as pb

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        file = json.loads(args["model_config"])["default_model_filename"]
        path = os.path.join(args["model_repository"], args["model_version"], file)
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def execute(self, requests):
        inputs = [pb.get_input_tensor_by_name(each, "images").as_numpy() for each in requests]
        print("batch of", sum(map(len, inputs)), flush=True)
        outputs = self.session.run(None, {"images": numpy.concatenate(inputs)})
        ends = numpy.cumsum([len(each) for each in inputs])
        return [
            pb.InferenceResponse([
                pb.Tensor(name, numpy.ascontiguousarray(values[end - len(each) : end]))
                for name, values in zip(self.names, outputs)
            ])
            for each, end in zip(inputs, ends)
        ]
"""
"""In place of Triton's onnxruntime backend, which no package carries: the same steps in Triton's Python backend."""


@pytest.fixture
def triton(tmp_path, venv_with):
    """Start a real Triton on a repository; return the address and the log."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("nvidia-pytriton, which carries Triton's server, exists for Linux on x86-64 alone")
    place = venv_with("triton", "nvidia-pytriton==0.7.0", "onnxruntime", "numpy<2")
    packages = next(place.glob("lib/python3*/site-packages"))
    version = packages.parent.name.removeprefix("python")
    server, libraries = packages / "pytriton/tritonserver", packages / "nvidia_pytriton.libs"
    backends = tmp_path / "site/backends"
    (backends / "onnxruntime").mkdir(parents=True)
    path = f"import sys; sys.path.insert(0, {str(packages)!r})\n"
    (backends / "onnxruntime/model.py").write_text(path + STAND_IN)
    shutil.copytree(server / "backends/python", backends / "python")
    stub = server / f"python_backend_stubs/{version}/triton_python_backend_stub"
    if not stub.exists():
        pytest.skip(f"nvidia-pytriton has nothing for Python {version}")
    copied = backends / "python" / stub.name
    copied.write_bytes(stub.read_bytes())
    copied.chmod(0o755)
    program = server / "bin/tritonserver"
    program.chmod(0o755)
    started = []

    def start(repository):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = tmp_path / "log"
        command = [program, f"--model-repository={repository}", f"--backend-directory={backends}",
                   "--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false",
                   "--exit-timeout-secs=5"]  # fmt: skip
        environment = {"LD_LIBRARY_PATH": str(libraries), "PATH": os.environ["PATH"]}
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        started.append(process)
        return process, f"127.0.0.1:{port}", log

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.mark.slow
def test_a_real_triton_serves_the_repository_in_batches(triton, tmp_path, shared, float32):
    """Triton's own server reads the config, warms up, joins requests; its answers equal predict's."""
    http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    process, address, log = triton(write(FOLDER / "coco.onnx", tmp_path / "repository"))
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if http.InferenceServerClient(address, network_timeout=5).is_model_ready("coco"):
                break
        except Exception:  # refused until it listens
            time.sleep(0.3)
    detector = multibox.load("coco", precision="float32")
    files = sorted((shared / "data/tiny_coco").rglob("*.jpg"))[:6]
    photos = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    images = [np.ascontiguousarray(np.roll(photos[0], 13 * shift, 1)) for shift in range(12)] + photos

    def ask(batch):
        client = http.InferenceServerClient(address, network_timeout=30)
        tensor = http.InferInput("images", batch.shape, "UINT8")
        tensor.set_data_from_numpy(batch)
        result = client.infer("coco", [tensor])
        outputs = {name: result.as_numpy(name) for name in ("boxes", "scores", "labels", "counts")}
        return detections_of(outputs | {"counts": outputs["counts"].reshape(-1)}, detector.names)

    found = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: ask(images[n][None])[0]})) for n in range(18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert all(same(found[number], detector.predict(image)) for number, image in enumerate(images))
    assert all(map(same, ask(np.stack(images[:3])), map(detector.predict, images[:3])))
    assert ask(np.zeros((1, 30, 40, 3), np.uint8)) is not None
    with pytest.raises(Exception, match="batch-size must be <= 8"):
        ask(np.zeros((9, 30, 40, 3), np.uint8))
    shutil.copy(files[0], tmp_path / "photo.jpg")
    shown = shown_block("python", "tritonclient").replace("localhost:8000", address)
    done = subprocess.run([sys.executable, "-c", shown], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    best = detector.predict(photos[0])
    assert str(best.labels) in done.stdout
    batches = [int(line.split()[-1]) for line in log.read_text().splitlines() if line.startswith("batch of")]
    assert batches[:2] == [1, 8], "the warm-up"
    assert max(batches[2:]) > 1, "requests were joined"
