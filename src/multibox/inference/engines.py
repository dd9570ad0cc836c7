"""Exported files opened in onnxruntime or OpenVINO. No torch here."""

import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ConfigError, MissingExtraError, WeightsError
from multibox.privacy import import_onnxruntime, import_openvino

KEY = "multibox"
"""Name of the metadata entry that describes an exported file, as JSON."""
FORMAT_VERSION = 1
LIMITS = ("score_threshold", "nms_threshold", "max_detections")
"""Inputs beside the images; every call gives them. In files of version 0.1 they have defaults."""
OUTPUTS = ("boxes", "scores", "labels", "counts")
SUFFIXES = (".onnx", ".xml")
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""Names of precisions here and in OpenVINO."""
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

_FIRST = Lock()

Feeds = Mapping[str, NDArray[Any]]


def limits(score_threshold: float, nms_threshold: float, max_detections: int) -> dict[str, NDArray[Any]]:
    """Return the inputs `LIMITS` of a call."""
    values = (np.float32(score_threshold), np.float32(nms_threshold), np.int64(max_detections))
    return {name: np.array(value) for name, value in zip(LIMITS, values, strict=True)}


class Engine(NamedTuple):
    """An opened file."""

    run: Callable[[Feeds], dict[str, NDArray[Any]]]
    """`images` uint8 [b, h, w, 3] and `LIMITS` -> `boxes`, `scores`, `labels`, `counts`."""
    about: dict[str, Any]
    """The file's description of itself."""
    name: str
    """Name of the runtime."""
    opened: tuple[Path, int | None, str | None, str]
    """The arguments of `open_engine`, with an absolute path, for another process to open the same file."""
    on_gpu: bool = False


def open_engine(path: Path, threads: int | None = None, precision: str | None = None, device: str = "auto") -> Engine:
    """Open a .onnx or .xml file: on CUDA if onnxruntime has it, else in OpenVINO if it is installed.

    Args:
        path: the file.
        threads: CPU threads; None leaves it to the runtime.
        precision: "float32" or "bfloat16"; None takes bfloat16 in OpenVINO on processors that multiply it in hardware.
        device: "cpu", "cuda" (.onnx, with onnxruntime-gpu) or "auto": CUDA if it can be had, else the CPU.

    Raises:
        WeightsError: the file is missing, broken, foreign, or of a newer version.
        MissingExtraError: .xml, and OpenVINO is not installed.
        ConfigError: an unknown precision, bfloat16 without OpenVINO, or a device that cannot run this file.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; expected a .safetensors, .onnx or .xml file, or a run folder")
    if precision not in (None, *PRECISIONS):
        raise ConfigError(f"precision={precision!r}: expected {' or '.join(PRECISIONS)}")
    opened = (path.absolute(), threads, precision, device)
    on_gpu = _on_cuda(path, precision, device)
    fast = find_spec("openvino") is not None and not on_gpu
    if precision == "bfloat16" and not fast:
        raise ConfigError("precision='bfloat16' needs OpenVINO (pip install openvino); onnxruntime computes in float32")
    if path.suffix == ".xml" and not fast:
        raise MissingExtraError(str(path), "export")
    try:
        return _openvino(path, opened) if fast else _onnxruntime(path, opened, on_gpu)
    except RuntimeError as error:
        raise _unreadable(path, error) from None


def _on_cuda(path: Path, precision: str | None, device: str) -> bool:
    """Return whether a file runs on CUDA.

    Raises:
        ConfigError: `device` names a device that cannot run the file.
    """
    kind, _, number = str(device).partition(":")
    if device not in ("auto", "cpu") and not (kind == "cuda" and number in ("", "0")):
        raise ConfigError(f"{path}: device {device!r}, expected cpu, cuda or auto for an exported file")
    possible = path.suffix == ".onnx" and precision != "bfloat16"
    if device == "cpu" or (device == "auto" and not possible):
        return False
    if not possible:
        raise ConfigError(f"{path}: on cuda only .onnx files run, in float32; give cpu or auto")
    onnxruntime = import_onnxruntime()
    # A build with CUDA also lists it on machines without a GPU
    usable = _CUDA in onnxruntime.get_available_providers() and onnxruntime.get_device() == "GPU" and _cuda_driver()
    if device != "auto" and not usable:
        raise ConfigError(
            f"{path}: device {device!r} needs onnxruntime-gpu and an NVIDIA GPU, which are not both here; give cpu or "
            "auto"
        )
    return usable


def _cuda_driver() -> bool:
    """Return whether NVIDIA's driver is loaded and has a GPU."""
    import ctypes

    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


def _onnxruntime(path: Path, opened: tuple[Path, int | None, str | None, str], on_gpu: bool) -> Engine:
    onnxruntime = import_onnxruntime()
    _, threads, _, device = opened
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of inputs that have defaults, as in files of version 0.1
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = [_CUDA, _CPU] if on_gpu else [_CPU]
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
    # onnxruntime's exceptions have no other common base
    except Exception as error:
        raise _unreadable(path, error) from None
    # onnxruntime falls back to the CPU when it cannot load a library such as cuDNN
    if on_gpu and device != "auto" and _CUDA not in session.get_providers():
        raise ConfigError(f"{path}: onnxruntime cannot start CUDA here (its log says why); give cpu or auto")
    names = [output.name for output in session.get_outputs()]
    about = _about(path, session.get_modelmeta().custom_metadata_map.get(KEY))

    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        return dict(zip(names, session.run(None, dict(feeds)), strict=True))

    return Engine(run, about, "onnxruntime", opened, _CUDA in session.get_providers())


@cache
def openvino_core() -> Any:
    """Return OpenVINO's one core of this process.

    On AMX machines each core installs an alternate signal stack and, when deleted, restores the one before it. If two
    are deleted in the order of their creation, the second restores the first one's, which is unmapped by then. The next
    signal that Python handles, such as that of a child's end, then kills the process silently (OpenVINO 2026.4).
    """
    openvino = import_openvino()
    # The first tensor of a process fills a table of types. Two threads that do so at once wait for each other for ever:
    # one holds the table's lock and wants Python's, the other the reverse (seen in OpenVINO 2026.4).
    _ = openvino.Tensor(np.zeros(1, np.float32)).data
    return openvino.Core()


def _openvino(path: Path, opened: tuple[Path, int | None, str | None, str]) -> Engine:
    _, threads, precision, _ = opened
    openvino = import_openvino()
    # `cache` lets several threads make a first call each
    with _FIRST:
        core = openvino_core()
    model = core.read_model(path)
    about = _about(path, _rt_info(model))
    adapt(model)
    turn = Lock()

    @cache
    def request_for(alone: bool) -> tuple[Any, dict[str, NDArray[Any]]]:
        """Return a request for one image, or for any number, and the arrays from which it reads `LIMITS`.

        A fixed batch of one saves some 8 % of a small network's time.
        """
        request = compile_openvino(for_one(model) if alone else model, threads, precision).create_infer_request()
        limits = {name: np.zeros((), request.get_tensor(name).data.dtype) for name in LIMITS}
        for name, value in limits.items():
            request.set_tensor(name, openvino.Tensor(value, shared_memory=True))
        return request, limits

    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        images = unlocked(np.ascontiguousarray(feeds["images"]))
        # A request holds the tensors of one caller, and callers may be threads
        with turn:
            request, limits = request_for(len(images) == 1)
            for name, value in limits.items():
                value[...] = feeds[name]
            request.set_tensor("images", openvino.Tensor(images, shared_memory=True))
            request.infer()
            return {name: np.array(request.get_tensor(name).data) for name in OUTPUTS}

    return Engine(run, about, "OpenVINO", opened)


class _Unlocked:
    """Memory of an array, declared writable."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def unlocked(array: NDArray[Any]) -> NDArray[Any]:
    """Return the same memory as a writable array: OpenVINO refuses Pillow's read-only one, though it only reads."""
    return array if array.flags.writeable else np.asarray(_Unlocked(array))


def for_one(model: Any) -> Any:
    """Return a copy of an openvino.Model whose inputs, except scalars, hold one image."""
    one = model.clone()
    for port in one.inputs:
        shape = port.partial_shape
        if len(shape) > 0:
            shape[0] = 1
            # `reshape` would take 0.1 s more
            port.get_node().set_partial_shape(shape)
    one.validate_nodes_and_infer_types()
    return one


def compile_openvino(model: Any, threads: int | None, precision: str | None) -> Any:
    """Compile an openvino.Model for the least latency; arguments are those of `open_engine`."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        # Pinned threads of several copies, even of several processes, would all share the first cores
        settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = PRECISIONS[precision]
    return openvino_core().compile_model(model, "CPU", settings)


def adapt(model: Any) -> None:
    """Turn constants named in `LIMITS` into inputs, in place: OpenVINO reads inputs with a default as constants."""
    openvino = import_openvino()
    for operation in model.get_ordered_ops():
        name = operation.get_friendly_name()
        if operation.get_type_name() == "Constant" and name in LIMITS:
            parameter = openvino.opset13.parameter([], operation.get_element_type(), name)
            parameter.output(0).get_tensor().set_names({name})
            for target in operation.output(0).get_target_inputs():
                target.replace_source_output(parameter.output(0))
            model.add_parameters([parameter])
    model.validate_nodes_and_infer_types()


def _rt_info(model: Any) -> str | None:
    for place in ([KEY], ["framework", KEY]):
        if model.has_rt_info(place):
            return str(model.get_rt_info(place).astype(str))
    return None


def _about(path: Path, text: str | None) -> dict[str, Any]:
    if text is None:
        raise WeightsError(
            f"{path} says nothing of multibox, so it is a foreign model; expected a file that `multibox export` wrote"
        )
    about: dict[str, Any] = json.loads(text)
    if about.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format version {about.get('format_version')}, this multibox reads {FORMAT_VERSION}; update "
            "multibox to open it"
        )
    dialect = about.get("dialect")
    if dialect != "plain":
        # Other names are those of servers, whose folders `--to` writes
        how = {"raw": "without --raw", "ultralytics": "without --dialect", "jetson": "without --dialect"}
        raise WeightsError(
            f"{path} was exported for other software (dialect {dialect!r}); export "
            f"{how.get(str(dialect), 'with --to onnx')} to open it here"
        )
    return about


def _unreadable(path: Path, error: Exception) -> WeightsError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return WeightsError(f"{path} is no readable model ({lines[-1] if lines else error!r}); was it copied whole?")
