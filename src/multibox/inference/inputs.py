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

from multibox.data.images import decode_image, read_image, upright_rgb
from multibox.errors import ImageError
from multibox.limits import decoding_threads

if TYPE_CHECKING:
    from torch import Tensor

AnyImage = Union[str, "os.PathLike[str]", Image.Image, NDArray[np.uint8], "Tensor", bytes, BufferedIOBase]
"""A path, a PIL image, a uint8 RGB array [H, W, 3], a uint8 RGB tensor [3, H, W] or [H, W, 3], or an encoded file as
bytes or as a file opened in binary mode."""
Images = Iterable[AnyImage]
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


def is_one(image: Any) -> bool:
    """Return whether this is one image; False means several.

    Raises:
        ImageError: it is neither an image nor a list or generator.
    """
    if _tensor(image) is not None or isinstance(image, Image.Image | np.ndarray | bytearray | memoryview):
        return True
    if isinstance(image, _SLOW_TO_OPEN) or hasattr(image, "read"):
        return True
    if not isinstance(image, Iterable) or isinstance(image, dict):
        raise _no_image(image)
    return False


def open_image(image: Any) -> Image.Image:
    """Return any accepted form of an image (`AnyImage`) as a PIL image in RGB, upright.

    Raises:
        ImageError: a file that is missing, truncated or no image, an array or tensor of another shape or type, or
            something else.
    """
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if isinstance(image, np.ndarray) or _tensor(image) is not None:
        return Image.fromarray(_array(image))
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image), "the image given as bytes")
    if hasattr(image, "read"):
        data = image.read()
        if not isinstance(data, bytes):
            raise ImageError(f"the file given as {image!r} gives text; open it in binary mode (open(path, 'rb'))")
        return decode_image(data, str(getattr(image, "name", "the image given as a file")))
    raise _no_image(image)


def pixels_of(image: Any) -> NDArray[np.uint8]:
    """Return any accepted form of an image (`AnyImage`) as uint8 RGB [H, W, 3], without a copy where possible.

    Raises:
        ImageError: as `open_image` does.
    """
    is_array = isinstance(image, np.ndarray) or _tensor(image) is not None
    return _array(image) if is_array else np.asarray(open_image(image))


def several(
    images: Any, open_one: Callable[[Any], Opened], work: Callable[[list[Opened]], list[Found]]
) -> list[Found] | Iterator[Found]:
    """Apply `work` to batches of opened images; an iterator gives a generator, a list or another collection a list."""
    found = (one for batch in in_batches(images, open_one) for one in work(batch))
    return found if isinstance(images, Iterator) else list(found)


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


def _array(image: Any) -> NDArray[np.uint8]:
    """Return the pixels of an array or tensor as [H, W, 3].

    Raises:
        ImageError: it has another shape or type.
    """
    kind, shape, dtype = "array", tuple(image.shape), str(image.dtype).removeprefix("torch.")
    tensor = _tensor(image)
    if tensor is not None:
        kind = "tensor"
        if dtype == "uint8" and len(shape) == 3 and shape[0] == shape[2] == 3:
            raise ImageError(
                f"a tensor of shape {list(shape)} may be [3, H, W] or [H, W, 3]; give tensor.permute(1, 2, 0).numpy() "
                "if channels come first, else tensor.numpy()"
            )
        image = tensor.detach().cpu()
        image = (image.permute(1, 2, 0) if len(shape) == 3 and shape[0] == 3 else image).numpy()
    if dtype == "uint8" and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    expected = "uint8 RGB [H, W, 3]" if kind == "array" else "uint8 RGB [3, H, W] or [H, W, 3]"
    raise ImageError(
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


def _tensor(image: Any) -> "Tensor | None":
    """Return a torch tensor as such, and None for everything else, without importing torch."""
    torch = sys.modules.get("torch")
    return image if torch is not None and isinstance(image, torch.Tensor) else None


def _no_image(image: Any) -> ImageError:
    what = "None, which cv2.imread returns for a file that it cannot read" if image is None else type(image).__name__
    return ImageError(f"an image given as {what}: {_FORMS}")
