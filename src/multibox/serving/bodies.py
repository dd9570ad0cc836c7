"""Images in the body of a request: as they are, as JSON with base64, or several as multipart/form-data."""

import binascii
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from multibox.errors import one_line
from multibox.serving.answers import Refused

MOST_PARTS = 64
"""Images of one request."""
MOST_HEADERS = 16
"""Headers of a part."""
MOST_HEADER_BYTES = 8192
"""Of the headers of a part."""
WANTED = (
    'expected an image as body with its type (content-type: image/jpeg), JSON {"image": base64} with '
    "application/json, or multipart/form-data with one file per image"
)


WANTED_JSON = 'expected {"image": "BASE64"}, the bytes of one image file in base64'
NO_URL = "an image is never fetched by URL; send its bytes"


class Upload(NamedTuple):
    """One image as it came."""

    where: str
    """Names it in messages."""
    data: bytes | NDArray[np.uint8]
    """An encoded file, or RGB pixels [H, W, 3]."""


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    image: str


_decode = msgspec.json.Decoder(_Asked).decode


async def read_images(request: Request) -> tuple[list[Upload], bool]:
    """Return the images of a request, and whether it may hold several.

    Raises:
        Refused: The body is of another kind (415) or malformed (400).
    """
    headers = request.headers
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "the body is compressed (content-encoding); send it as it is: images are compressed already")
    kind = headers.get("content-type", "")
    plain = kind.partition(";")[0].strip().lower()
    if plain.startswith("image/") or plain == "application/octet-stream":
        data = await request.body()
        if not data:
            raise Refused(400, "the body is empty, expected an image")
        return [Upload("the image", data)], False
    if plain == "application/json":
        return [Upload("the image", image_of_json(await request.body()))], False
    if plain == "multipart/form-data":
        return await read_parts(request.stream(), kind), True
    told = f"content-type {one_line(kind[:100])!r}" if kind else "no content-type"
    raise Refused(415, f"{told}: {WANTED}")


def image_of_json(body: bytes) -> bytes:
    """Return the image in `{"image": base64}`.

    Raises:
        Refused: It is something else.
    """
    try:
        text = _decode(body).image
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, _json_problem(error)) from None
    if text[:8].lower().startswith(("http:", "https:", "file:", "ftp:")):
        raise Refused(400, f"image: {NO_URL}")
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Refused(400, "image: expected data:image/...;base64, and the image in base64")
    try:
        data = binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError as error:
        raise Refused(400, f"image: expected the image in base64 ({error})") from None
    if not data:
        raise Refused(400, "image: it is empty, expected an image in base64")
    return data


def _json_problem(error: Exception) -> str:
    """Return a sentence about a body that is not `{"image": base64}`, without the words of the parser."""
    text = str(error)
    if unknown := re.search("unknown field `(.*)`", text, re.DOTALL):
        name = one_line(unknown[1][:100])
        if re.search("ur[il]|link|href", name, re.IGNORECASE):
            return f'{name!r}: {NO_URL}, as in {{"image": "BASE64"}}'
        return f"field {name!r} is unknown; {WANTED_JSON}, and nothing else"
    if "missing required field" in text:
        return f"field 'image' is missing; {WANTED_JSON}"
    if isinstance(error, msgspec.ValidationError):
        what = "image is no text" if "$.image" in text else "the body is JSON, but no object"
        return f"{what}; {WANTED_JSON}"
    place = re.search(r"\(byte \d+\)", text)
    return f"the body is not valid JSON{f' {place[0]}' if place else ''}; {WANTED_JSON}"


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    data: bytearray = field(default_factory=bytearray)


class _Parts:
    """Collects parts from the callbacks of python-multipart."""

    def __init__(self) -> None:
        self.uploads: list[Upload] = []
        self.ended = False
        self._part = _Part()
        self._name, self._value = bytearray(), bytearray()
        self._header_bytes = 0

    def callbacks(self) -> dict[str, Any]:
        return {f"on_{name}": getattr(self, name) for name in _CALLBACKS}

    def part_begin(self) -> None:
        if len(self.uploads) == MOST_PARTS:
            raise Refused(413, f"more than {MOST_PARTS} images in one request; send several requests")
        self._part, self._header_bytes = _Part(), 0

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self._part.data += memoryview(data)[start:end]

    def part_end(self) -> None:
        part, number = self._part, len(self.uploads) + 1
        _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        name = one_line((options.get(b"filename") or options.get(b"name") or b"")[:200].decode("utf-8", "replace"))
        where = f"image {number} ({name})" if name else f"image {number}"
        is_image = part.headers.get(b"content-type", b"").lower().startswith(b"image/")
        if not is_image and b"filename" not in options:
            raise Refused(
                400, f"part {number} ({name}) is no file; parameters stand in the address: /predict?threshold=0.3"
            )
        if not part.data:
            raise Refused(422, f"{where} is empty (0 bytes), expected an image")
        self.uploads.append(Upload(where, bytes(part.data)))

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += self._counted(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._counted(data[start:end])

    def _counted(self, text: bytes) -> bytes:
        self._header_bytes += len(text)
        if self._header_bytes > MOST_HEADER_BYTES:
            raise Refused(400, f"a part has headers of more than {MOST_HEADER_BYTES} bytes")
        return text

    def header_end(self) -> None:
        if len(self._part.headers) == MOST_HEADERS:
            raise Refused(400, f"a part has more than {MOST_HEADERS} headers")
        self._part.headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def end(self) -> None:
        self.ended = True


_CALLBACKS = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")


async def read_parts(stream: AsyncIterator[bytes], kind: str) -> list[Upload]:
    """Return the files of a multipart body, in order.

    Args:
        stream: The body as it comes.
        kind: The request's content type, which tells the boundary.

    Raises:
        Refused: The body is malformed, has a part that is no file, or too many parts.
    """
    _, options = parse_options_header(kind)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise Refused(400, "multipart/form-data without a boundary in its content-type")
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # pyright: ignore[reportArgumentType]
        async for chunk in stream:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise Refused(400, f"multipart/form-data is malformed: {error}") from None
    if not parts.ended:
        raise Refused(400, "multipart/form-data ends before its last boundary")
    if not parts.uploads:
        raise Refused(400, "multipart/form-data without a file, expected one file per image")
    return parts.uploads
