"""Bodies of the Open Inference Protocol v2: JSON with tensors in it, or as bytes behind it.

Sources: KServe's `open-inference-protocol` (HTTP/REST) and Triton's extension `binary_tensor_data`.
"""

import base64
import binascii
import difflib
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from multibox.errors import one_line
from multibox.serving.answers import Refused
from multibox.serving.bodies import MOST_PARTS

Parameters: TypeAlias = dict[str, bool | int | float | str | None]
Kind = TypeVar("Kind")

_MOST_DESCRIPTION = 65_536
"""Bytes of the parameters, or of the requested outputs, of one request."""
MOST_INPUTS = 16
_MOST_OBJECTS = 1000
_MOST_DIMENSIONS = 8
_LENGTH = 4
"""Bytes of the length in front of each element of a BYTES tensor."""
_DTYPES = {"UINT8": "u1", "INT64": "<i8", "FP32": "<f4"}
_BYTE = Annotated[int, msgspec.Meta(ge=0, le=255)]
_WHOLE = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_VALUES: dict[str, Any] = {"UINT8": _BYTE, "INT64": _WHOLE, "FP32": float}
_SYNONYMS = {"threshold": "score_threshold", "iou_threshold": "nms_threshold"}
"""Names that are nearer in letters to another input than to the one that is meant."""
_AXES = "batch", "height", "width"
_WANTED = '{"inputs": [{"name": "images", "shape": [1, height, width, 3], "datatype": "UINT8", "data": [...]}]}'
_WINDOWS = {"gzip": 31, "deflate": 15}
"""What zlib calls the two kinds of compression."""


class Port(NamedTuple):
    """An input or output of a model."""

    datatype: str
    shape: tuple[int, ...]
    """-1 is any size."""
    about: str = ""


class Tensors(NamedTuple):
    """An inference request."""

    inputs: dict[str, Any]
    """Arrays by name; `list[bytes]` for BYTES."""
    outputs: dict[str, bool | None]
    """Requested outputs in their order, and whether each is wanted as bytes; empty asks for all."""
    parameters: Parameters
    id: str | None


class _Input(msgspec.Struct):
    name: str
    shape: msgspec.Raw
    datatype: str
    parameters: msgspec.Raw = msgspec.Raw(b"null")
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters | None = None


class _Request(msgspec.Struct):
    # `Raw` is decoded later, once it is known to be small: nested lists take twenty times the memory of their text
    inputs: list[_Input]
    id: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"null")
    outputs: msgspec.Raw = msgspec.Raw(b"null")


def inflate(body: bytes, encoding: str, most: int) -> bytes:
    """Return a body without its compression, gzip or deflate.

    Raises:
        Refused: Another compression, damaged data, or more than `most` bytes.
    """
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() not in _WINDOWS:
        raise Refused(415, f"Content-Encoding {encoding!r}: expected gzip, deflate or none")
    unpacking = zlib.decompressobj(_WINDOWS[encoding.lower()])
    try:
        data = unpacking.decompress(body, most + 1)
    except zlib.error as error:
        raise Refused(400, f"the body is not compressed as its Content-Encoding {encoding!r} says: {error}") from None
    if len(data) > most:
        raise Refused(413, f"the body unpacks to more than {most} bytes; send fewer or smaller images")
    if not unpacking.eof or unpacking.unused_data:
        raise Refused(400, f"the body is truncated, or goes on behind its end as {encoding}")
    return data


def read_request(body: bytes, header_length: str | None, inputs: Mapping[str, Port]) -> Tensors:
    """Return the tensors of an inference request.

    Args:
        body: JSON, and bytes of tensors behind it.
        header_length: The header Inference-Header-Content-Length, the bytes of the JSON; None where all is JSON.
        inputs: What the model takes.

    Raises:
        Refused: The request breaks the protocol, or does not fit the model.
    """
    length = length_of_json(header_length, len(body))
    # Small objects take eight times the memory of their text
    if body.count(b"{", 0, length) > _MOST_OBJECTS:
        raise Refused(
            413, f"the request has more than {_MOST_OBJECTS} JSON objects; expected 1 to {MOST_INPUTS} inputs"
        )
    request = _decode(memoryview(body)[:length], _Request, "the request", f"; expected {_WANTED}")
    if not 1 <= len(request.inputs) <= MOST_INPUTS:
        raise Refused(400, f"the request has {len(request.inputs)} inputs, expected 1 to {MOST_INPUTS}")
    tensors: dict[str, Any] = {}
    start = length
    for each in request.inputs:
        port = _port_of(each, inputs)
        if each.name in tensors:
            raise Refused(400, f"input {each.name} is given twice")
        size = _binary_size(each)
        shape = _shape_of(each, port)
        if size is None:
            tensors[each.name] = _from_json(each, port, shape)
            continue
        if start + size > len(body):
            raise Refused(
                400,
                f"input {each.name}: binary_data_size {size}, but {len(body) - start} bytes are left behind the JSON",
            )
        tensors[each.name] = _from_bytes(each.name, port, shape, memoryview(body)[start : start + size])
        start += size
    if start < len(body):
        raise Refused(
            400, f"{len(body) - start} bytes behind the JSON belong to no input; give each its binary_data_size"
        )
    return Tensors(tensors, _outputs_of(request), _small(request.parameters, "parameters"), request.id)


def length_of_json(header: str | None, size: int) -> int:
    """Return the bytes of the JSON in a body of a size, given the header Inference-Header-Content-Length.

    Raises:
        Refused: The header is no length, or larger than the body.
    """
    if header is None:
        return size
    digits = header.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) <= size):
        raise Refused(
            400,
            f"Inference-Header-Content-Length {header!r}: expected the bytes of the JSON, at most the body's {size}",
        )
    return int(digits)


def meant_name(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the known name that is probably meant, or an empty string."""
    names = {each: each for each in known}
    names |= {other: each for other, each in _SYNONYMS.items() if each in names}
    near = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean {names[near[0]]!r}?" if near else ""


def _decode(data: Any, kind: type[Kind], where: str, wanted: str = "") -> Kind:
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"{where}: {one_line(str(error))}{wanted}") from None


def _small(raw: msgspec.Raw, where: str) -> Parameters:
    _check_small(raw, where)
    return {} if bytes(raw) == b"null" else _decode(raw, Parameters, where)


def _check_small(raw: msgspec.Raw, where: str) -> None:
    if len(memoryview(raw)) > _MOST_DESCRIPTION:
        raise Refused(413, f"{where} takes more than {_MOST_DESCRIPTION} bytes of the request")


def _outputs_of(request: _Request) -> dict[str, bool | None]:
    _check_small(request.outputs, "outputs")
    outputs = [] if bytes(request.outputs) == b"null" else _decode(request.outputs, list[_Output], "outputs")
    wanted: dict[str, bool | None] = {}
    for output in outputs:
        if output.name in wanted:
            raise Refused(400, f"output {output.name} is requested twice")
        parameters = output.parameters or {}
        _refuse_shared_memory(f"output {output.name}", parameters)
        if "classification" in parameters:
            raise Refused(400, f"output {output.name}: classification is not answered; scores and labels are outputs")
        wanted[output.name] = _flag(parameters, "binary_data", f"output {output.name}")
    return wanted


def wants_bytes(request: Tensors) -> bool:
    """Return whether outputs go as bytes unless they say otherwise."""
    return bool(_flag(request.parameters, "binary_data_output", "parameters"))


def _flag(parameters: Parameters, name: str, where: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(400, f"{where}: {name} is {value!r}, expected true or false")
    return value


def _refuse_shared_memory(where: str, parameters: Parameters) -> None:
    if any(name.startswith("shared_memory") for name in parameters):
        raise Refused(400, f"{where}: shared memory is not answered here; send the tensor as bytes or as JSON")


def _port_of(given: _Input, inputs: Mapping[str, Port]) -> Port:
    port = inputs.get(given.name)
    if port is None:
        hint = meant_name(given.name[:100], inputs) or f"; expected {', '.join(inputs)}"
        raise Refused(400, f"input {given.name!r} is unknown{hint}")
    if given.datatype != port.datatype:
        floats = port.datatype == "UINT8" and given.datatype.startswith(("FP", "BF"))
        hint = "; values from 0 to 1 become UINT8 as (images * 255).round().astype('uint8')" if floats else ""
        raise Refused(400, f"input {given.name} has datatype {given.datatype}, expected {port.datatype}{hint}")
    return port


def _shape_of(given: _Input, port: Port) -> tuple[int, ...]:
    where = f"shape of input {given.name}"
    _check_small(given.shape, where)
    shape = tuple(_decode(given.shape, list[_WHOLE], where))
    single = port.shape == () and shape == (1,)
    fits = len(shape) == len(port.shape) and all(
        size >= 1 and wanted in (-1, size) for size, wanted in zip(shape, port.shape, strict=True)
    )
    if not (fits or single):
        sizes = (str(wanted) if wanted >= 0 else axis for wanted, axis in zip(port.shape, (*_AXES, ""), strict=False))
        expected = f"[{', '.join(sizes)}], each at least 1" if port.shape else "[] or [1]"
        raise Refused(400, f"input {given.name} has shape {_shown(shape)}, expected {expected}")
    if port.shape and shape[0] > MOST_PARTS:
        raise Refused(413, f"input {given.name} has {shape[0]} images, expected at most {MOST_PARTS}")
    return shape


def _shown(shape: tuple[int, ...]) -> str:
    if len(shape) > _MOST_DIMENSIONS:
        return f"of {len(shape)} dimensions"
    return str(list(shape))


def _binary_size(given: _Input) -> int | None:
    where = f"parameters of input {given.name}"
    parameters = _small(given.parameters, where)
    _refuse_shared_memory(f"input {given.name}", parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**63:
        raise Refused(400, f"{where}: binary_data_size is no number of bytes; expected a whole number from 0")
    if bytes(given.data) != b"null":
        raise Refused(400, f"input {given.name} has both data and binary_data_size; give one of them")
    return size


def _from_bytes(name: str, port: Port, shape: tuple[int, ...], data: memoryview) -> Any:
    """Return a tensor that came as bytes, without a copy of its pixels."""
    if port.datatype == "BYTES":
        return _elements(name, shape[0], data)
    dtype = np.dtype(_DTYPES[port.datatype])
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(data):
        raise Refused(
            400, f"input {name}: {port.datatype} of shape {_shown(shape)} takes {expected} bytes, got {len(data)}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _elements(name: str, count: int, data: memoryview) -> list[bytes]:
    """Return the elements of a BYTES tensor, each behind its length."""
    elements: list[bytes] = []
    start = 0
    for number in range(1, count + 1):
        begin = start + _LENGTH
        start = begin + int.from_bytes(data[start:begin], "little")
        if begin > len(data) or start > len(data):
            raise Refused(
                400,
                f"input {name}: element {number} of {count} goes beyond the {len(data)} bytes; expected for each its "
                "length as 4 bytes, little-endian, and then the file",
            )
        elements.append(bytes(data[begin:start]))
    if start < len(data):
        raise Refused(400, f"input {name}: {len(data) - start} bytes are left behind its {count} elements")
    return elements


def _from_json(given: _Input, port: Port, shape: tuple[int, ...]) -> Any:
    text = bytes(given.data)
    where = f"data of input {given.name}"
    if text == b"null":
        raise Refused(400, f"input {given.name} has neither data nor binary_data_size")
    if port.datatype == "BYTES":
        return _decoded(given.name, _strings(text, shape[0], where))
    count = math.prod(shape)
    if not text.startswith(b"["):
        text = b"[" + text + b"]"
    depth = len(text) - len(text.lstrip(b"[ \t\r\n"))
    depth = text[:depth].count(b"[")
    # Counted before anything is decoded: what was sent decides over the memory, not what was promised
    commas, brackets = text.count(b","), sum(math.prod(shape[:level]) for level in range(depth))
    if commas != count - 1:
        raise Refused(400, f"{where} has {commas + 1} values, its shape {_shown(shape)} takes {count}")
    if depth not in (1, len(shape)) or text.count(b"[") != brackets:
        raise _uneven(where, shape)
    kind: Any = _VALUES[port.datatype]
    for _ in range(depth):
        kind = list[kind]
    values: list[Any] = _decode(text, kind, where)
    if depth > 1:
        values = _flattened(values, shape, where)
    # Several times as fast as numpy
    if port.datatype == "UINT8":
        return np.frombuffer(bytes(values), np.uint8).reshape(shape)
    with np.errstate(over="ignore"):
        return np.array(values, _DTYPES[port.datatype]).reshape(shape)


def _uneven(where: str, shape: tuple[int, ...]) -> Refused:
    return Refused(400, f"{where} is neither flat nor nested as its shape {_shown(shape)}")


def _flattened(values: list[Any], shape: tuple[int, ...], where: str) -> list[Any]:
    level: list[Any] = [values]
    for size in shape:
        if any(len(each) != size for each in level):
            raise _uneven(where, shape)
        level = list(chain.from_iterable(level))
    return level


def _strings(text: bytes, count: int, where: str) -> list[str]:
    # Nested strings would pass through a type that this list does not have
    values = _decode(text, list[str], where)
    if len(values) != count:
        raise Refused(400, f"{where} has {len(values)} strings, its shape takes {count}")
    return values


def _decoded(name: str, values: Sequence[str]) -> list[bytes]:
    """Return files that came as base64, with or without `data:...;base64,` in front."""
    files: list[bytes] = []
    for number, value in enumerate(values, 1):
        text = value.partition(",")[2] if value.startswith("data:") else value
        try:
            files.append(base64.b64decode(text.encode("ascii"), validate=True))
        except (binascii.Error, UnicodeEncodeError):
            raise Refused(
                400, f"input {name}: string {number} of {len(values)} is no base64; JSON carries files as base64"
            ) from None
    return files


def write_answer(
    head: Mapping[str, Any], outputs: Sequence[tuple[str, str, Any, bool]]
) -> tuple[bytes, dict[str, str]]:
    """Return the body of an answer, and its headers.

    Args:
        head: What stands beside the outputs.
        outputs: Name, datatype, array, and whether it goes as bytes, of each; BYTES are arrays of `str` objects.
    """
    described: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for name, datatype, array, binary in outputs:
        one: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
        if binary:
            behind.append(_as_bytes(array, datatype))
            one["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            one["data"] = array.ravel().tolist()
        described.append(one)
    text = msgspec.json.encode({**head, "outputs": described})
    if not behind:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(text))}
    return b"".join([text, *behind]), headers


def _as_bytes(array: NDArray[Any], datatype: str) -> bytes:
    if datatype != "BYTES":
        return np.ascontiguousarray(array, _DTYPES[datatype]).tobytes()
    encoded = [text.encode() for text in array.ravel().tolist()]
    return b"".join(len(one).to_bytes(_LENGTH, "little") + one for one in encoded)
