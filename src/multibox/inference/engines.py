"""Exported files opened by what runs them: onnxruntime or OpenVINO. No torch here."""

import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ConfigError, MissingExtraError, WeightsError
from multibox.privacy import import_onnxruntime

KEY = "multibox"
"""Under which an exported file says of itself, as JSON, what it is."""
FORMAT_VERSION = 1
LIMITS = ("score_threshold", "nms_threshold", "max_detections")
"""Inputs beside the images; every call gives them. In files of version 0.1 they have defaults."""
OUTPUTS = ("boxes", "scores", "labels", "counts")
SUFFIXES = (".onnx", ".xml")
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""Ours by OpenVINO's names."""
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

Feeds = Mapping[str, NDArray[Any]]


class Engine(NamedTuple):
    """An opened file."""

    run: Callable[[Feeds], dict[str, NDArray[Any]]]
    """`images` uint8 [b, h, w, 3] and `LIMITS` -> `boxes`, `scores`, `labels`, `counts`."""
    about: dict[str, Any]
    """What the file says of itself."""
    name: str
    """Of the runtime."""
    opened: tuple[Path, int | None, str | None, str]
    """The arguments of `open_engine`, with an absolute path: another process opens the same file by them."""


def open_engine(path: Path, threads: int | None = None, precision: str | None = None, device: str = "auto") -> Engine:
    """Open a .onnx or .xml file: on CUDA where onnxruntime has it, else in OpenVINO where it is installed.

    Args:
        path: the file.
        threads: of the processor to use; None leaves it to the runtime.
        precision: "float32" or "bfloat16"; None takes bfloat16 in OpenVINO on processors that multiply it in hardware.
        device: "cpu", "cuda" (.onnx, with onnxruntime-gpu) or "auto": CUDA where it can be had, else the CPU.

    Raises:
        WeightsError: the file is missing, broken, no model of ours, or of a newer version.
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
        ConfigError: it is asked to and cannot.
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
    # A build with CUDA lists it on machines without a GPU, too
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
    options.log_severity_level = 3  # of files of version 0.1 it warns: their limits have defaults
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = [_CUDA, _CPU] if on_gpu else [_CPU]
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
    # Its exceptions have no common base but this
    except Exception as error:
        raise _unreadable(path, error) from None
    # It goes on without what it cannot load, such as cuDNN
    if on_gpu and device != "auto" and _CUDA not in session.get_providers():
        raise ConfigError(f"{path}: onnxruntime cannot start CUDA here (its log says why); give cpu or auto")
    names = [output.name for output in session.get_outputs()]
    about = _about(path, session.get_modelmeta().custom_metadata_map.get(KEY))
    return Engine(
        lambda feeds: dict(zip(names, session.run(None, dict(feeds)), strict=True)), about, "onnxruntime", opened
    )


@cache
def openvino_core() -> Any:
    """Return OpenVINO's one core of this process.

    On AMX machines each core lays an alternate signal stack and, when it goes, puts back the one that it found. Of two
    that go in the order of their coming, the second puts back the first one's, which is unmapped by then: the next
    signal that Python handles, such as that of a child's end, kills the process without a word (OpenVINO 2026.4).
    """
    _import_openvino()
    import openvino

    return openvino.Core()


def _import_openvino() -> None:
    """Import OpenVINO without its converter of other formats, which brings a package that reports to its makers.

    That also takes two thirds of the import, 0.15 s. Whoever asks for `openvino.convert_model` later gets it.
    """
    converter = "openvino.tools.ovc"
    if "openvino" in sys.modules or converter in sys.modules:
        return
    # What stands there as None is missing to an import, and OpenVINO does without
    sys.modules[converter] = None  # pyright: ignore[reportArgumentType]
    try:
        import openvino
    finally:
        sys.modules.pop(converter, None)

    def late(name: str) -> Any:
        if name != "convert_model":
            raise AttributeError(f"module 'openvino' has no attribute {name!r}")
        return import_module(converter).convert_model

    openvino.__getattr__ = late


def _openvino(path: Path, opened: tuple[Path, int | None, str | None, str]) -> Engine:
    _, threads, precision, _ = opened
    core = openvino_core()
    import openvino

    model = core.read_model(path)
    about = _about(path, _rt_info(model))
    adapt(model)
    turn = Lock()

    @cache
    def request_for(alone: bool) -> tuple[Any, dict[str, NDArray[Any]]]:
        """Compile for one image, for which fixing the batch saves some 8 % of a small network's time, or for any.

        Returns the request, and the arrays from which it reads `LIMITS`.
        """
        request = compile_openvino(for_one(model) if alone else model, threads, precision).create_infer_request()
        limits = {name: np.zeros((), request.get_tensor(name).data.dtype) for name in LIMITS}
        for name, value in limits.items():
            request.set_tensor(name, openvino.Tensor(value, shared_memory=True))
        return request, limits

    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        images = unlocked(np.ascontiguousarray(feeds["images"]))
        # A request holds one caller's tensors, and callers may be threads
        with turn:
            request, limits = request_for(len(images) == 1)
            for name, value in limits.items():
                value[...] = feeds[name]
            request.set_tensor("images", openvino.Tensor(images, shared_memory=True))
            request.infer()
            return {name: np.array(request.get_tensor(name).data) for name in OUTPUTS}

    return Engine(run, about, "OpenVINO", opened)


class _Unlocked:
    """Says of an array's memory that it may be written to."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        theirs = array.__array_interface__
        self.__array_interface__ = {**theirs, "data": (theirs["data"][0], False)}


def unlocked(array: NDArray[Any]) -> NDArray[Any]:
    """Return the same memory as writable, for OpenVINO takes nothing else, though it only reads. Pillow's is not."""
    return array if array.flags.writeable else np.asarray(_Unlocked(array))


def for_one(model: Any) -> Any:
    """Return a copy of an openvino.Model whose inputs, scalars apart, hold one image."""
    one = model.clone()
    for port in one.inputs:
        shape = port.partial_shape
        if len(shape) > 0:
            shape[0] = 1
            # Not `reshape`, which takes a tenth of a second more
            port.get_node().set_partial_shape(shape)
    one.validate_nodes_and_infer_types()
    return one


def compile_openvino(model: Any, threads: int | None, precision: str | None) -> Any:
    """Compile an openvino.Model for one caller who waits; arguments are those of `open_engine`."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = PRECISIONS[precision]
    return openvino_core().compile_model(model, "CPU", settings)


def adapt(model: Any) -> None:
    """Make inputs of what OpenVINO took for constants, in place: ONNX inputs that have a default."""
    import openvino

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
            f"{path} says nothing of multibox, so it is someone else's model; `multibox export` makes ours"
        )
    about: dict[str, Any] = json.loads(text)
    if about.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format version {about.get('format_version')}, this multibox reads {FORMAT_VERSION}; update "
            "multibox to open it"
        )
    if about.get("dialect") != "plain":
        raise WeightsError(
            f"{path} was exported for other software (dialect {about.get('dialect')!r}); export without --dialect and "
            "--raw to open it here"
        )
    return about


def _unreadable(path: Path, error: Exception) -> WeightsError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return WeightsError(f"{path} is no readable model ({lines[-1] if lines else error!r}); was it copied whole?")
