"""The forms in which a detector takes images, and their decoding ahead of the network."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.data.images import decode_picture, read_picture, upright_rgb
from multibox.errors import PictureError
from multibox.limits import decoding_threads

if TYPE_CHECKING:
    from torch import Tensor

Picture = Union[str, "os.PathLike[str]", Image.Image, NDArray[np.uint8], "Tensor", bytes, BufferedIOBase]
"""A path, a PIL image, a uint8 RGB array [H, W, 3], a uint8 RGB tensor [3, H, W] or [H, W, 3], or an encoded file as
bytes or as a file opened in binary mode."""
Pictures = Iterable[Picture]
BATCH = 16
"""Images of a list that go through the network together."""

_FORMS = (
    "expected a path, a PIL image, a uint8 RGB array [H, W, 3], a uint8 RGB tensor [3, H, W] or [H, W, 3], the bytes "
    "of an image file, or a list or generator of those"
)
_SLOW_TO_OPEN = (str, os.PathLike, bytes, BufferedIOBase)

Asked = TypeVar("Asked")
Opened = TypeVar("Opened")
Found = TypeVar("Found")


def is_one(picture: Any) -> bool:
    """Return whether this is one image; False means several.

    Raises:
        PictureError: it is neither an image nor a list or generator.
    """
    if _tensor(picture) is not None or isinstance(picture, Image.Image | np.ndarray | bytearray | memoryview):
        return True
    if isinstance(picture, _SLOW_TO_OPEN) or hasattr(picture, "read"):
        return True
    if not isinstance(picture, Iterable) or isinstance(picture, dict):
        raise _no_picture(picture)
    return False


def open_picture(picture: Any) -> Image.Image:
    """Return any accepted form of an image (`Picture`) as a PIL image in RGB, upright.

    Raises:
        PictureError: a file that is missing, truncated or no image, an array or tensor of another shape or type, or
            something else.
    """
    if isinstance(picture, Image.Image):
        return upright_rgb(picture)
    if isinstance(picture, np.ndarray) or _tensor(picture) is not None:
        return Image.fromarray(_array(picture))
    if isinstance(picture, str | os.PathLike):
        return read_picture(Path(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        return decode_picture(bytes(picture), "the image given as bytes")
    if hasattr(picture, "read"):
        data = picture.read()
        if not isinstance(data, bytes):
            raise PictureError(f"the file given as {picture!r} gives text; open it in binary mode (open(path, 'rb'))")
        return decode_picture(data, str(getattr(picture, "name", "the image given as a file")))
    raise _no_picture(picture)


def pixels_of(picture: Any) -> NDArray[np.uint8]:
    """Return any accepted form of an image (`Picture`) as uint8 RGB [H, W, 3], without a copy where it is that already.

    Raises:
        PictureError: as `open_picture` does.
    """
    is_array = isinstance(picture, np.ndarray) or _tensor(picture) is not None
    return _array(picture) if is_array else np.asarray(open_picture(picture))


def several(
    pictures: Any, open_one: Callable[[Any], Opened], work: Callable[[list[Opened]], list[Found]]
) -> list[Found] | Iterator[Found]:
    """Apply `work` to batches of opened images; an iterator gives a generator, a list or another collection a list."""
    found = (one for batch in in_batches(pictures, open_one) for one in work(batch))
    return found if isinstance(pictures, Iterator) else list(found)


def in_batches(items: Iterable[Asked], open_one: Callable[[Asked], Opened]) -> Iterator[list[Opened]]:
    """Yield up to BATCH items at a time, opened by `open_one`.

    Items that come as files are opened in threads while the caller works on the batch before. Reads at most two batches
    ahead, so a generator of any length needs little memory.
    """
    source = iter(items)
    first = list(islice(source, BATCH))
    # Threads cost more than they save where the pixels are there already
    if not any(not isinstance(item, Image.Image | np.ndarray) and _tensor(item) is None for item in first):
        while first:
            yield [open_one(item) for item in first]
            first = list(islice(source, BATCH))
        return
    pool = ThreadPoolExecutor(decoding_threads())
    try:
        ahead: list[Future[Opened]] = [pool.submit(open_one, item) for item in first]
        while ahead:
            ready, ahead = ahead, [pool.submit(open_one, item) for item in islice(source, BATCH)]
            yield [future.result() for future in ready]
    finally:
        # The caller may stop half-way
        pool.shutdown(cancel_futures=True)


def _array(picture: Any) -> NDArray[np.uint8]:
    """Return the pixels of an array or tensor as [H, W, 3].

    Raises:
        PictureError: it has another shape or type.
    """
    kind, shape, dtype = "array", tuple(picture.shape), str(picture.dtype).removeprefix("torch.")
    tensor = _tensor(picture)
    if tensor is not None:
        kind = "tensor"
        if dtype == "uint8" and len(shape) == 3 and shape[0] == shape[2] == 3:
            raise PictureError(
                f"a tensor of shape {list(shape)} may be [3, H, W] or [H, W, 3]; give tensor.permute(1, 2, 0).numpy() "
                "if channels come first, else tensor.numpy()"
            )
        picture = tensor.detach().cpu()
        picture = (picture.permute(1, 2, 0) if len(shape) == 3 and shape[0] == 3 else picture).numpy()
    if dtype == "uint8" and picture.ndim == 3 and picture.shape[2] == 3 and picture.size:
        return picture
    expected = "uint8 RGB [H, W, 3]" if kind == "array" else "uint8 RGB [3, H, W] or [H, W, 3]"
    raise PictureError(
        f"an image given as {'an array' if kind == 'array' else 'a tensor'} must be {expected}, got {dtype} "
        f"{list(shape)}{_advice(kind, dtype, shape)}"
    )


def _advice(kind: str, dtype: str, shape: Sequence[int]) -> str:
    """Return how to make an image of an array that is none, where that can be guessed."""
    if dtype.startswith(("float", "bfloat")) and len(shape) == 3:
        return "; values from 0 to 1 become uint8 as (image * 255).round()" + (
            ".astype('uint8')" if kind == "array" else ".to(torch.uint8)"
        )
    if dtype != "uint8" or 0 in shape:
        return ""
    if len(shape) == 4:
        return "; give a batch as list(images)"
    if len(shape) == 2 or shape[-1] == 1:
        return "; a grey image becomes RGB by repeating it three times along the last axis"
    if kind == "array" and len(shape) == 3 and shape[0] == 3:
        return "; give image.transpose(1, 2, 0)"
    if len(shape) == 3 and shape[-1] == 4:
        return "; leave out the fourth channel: image[..., :3]"
    return ""


def _tensor(picture: Any) -> "Tensor | None":
    """Return a torch tensor as such, and None for everything else, without importing torch."""
    torch = sys.modules.get("torch")
    return picture if torch is not None and isinstance(picture, torch.Tensor) else None


def _no_picture(picture: Any) -> PictureError:
    what = (
        "None, which cv2.imread returns for a file that it cannot read" if picture is None else type(picture).__name__
    )
    return PictureError(f"an image given as {what}: {_FORMS}")
