"""Forms in which a detector takes images, and decoding ahead of the network."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.data.images import decode_image, read_image, upright_rgb
from multibox.data.pixels import WHITE, Colour
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
AHEAD = 2 * BATCH
"""Images decoded ahead of the network, at most."""

_FORMS = (
    "expected a path, a PIL image, a uint8 RGB array [H, W, 3], a uint8 RGB tensor [3, H, W] or [H, W, 3], the bytes "
    "of an image file, or a list or generator of those"
)

Item = TypeVar("Item")
Opened = TypeVar("Opened")
Result = TypeVar("Result")


def is_one(image: Any) -> bool:
    """Return True for one image, False for several.

    Raises:
        ImageError: it is neither an image nor a list or generator.
    """
    if _has_pixels(image) or isinstance(image, str | os.PathLike | bytes | bytearray | memoryview):
        return True
    if hasattr(image, "read"):
        return True
    if not isinstance(image, Iterable) or isinstance(image, dict):
        raise _no_image(image)
    return False


def open_image(image: Any, background: Colour = WHITE) -> Image.Image:
    """Return any accepted form of an image (`AnyImage`) as a PIL image in RGB, upright.

    Raises:
        ImageError: a file that is missing, truncated or no image, an array or tensor of another shape or type, or
            something else.
    """
    if isinstance(image, Image.Image):
        return upright_rgb(image, background=background)
    if _has_pixels(image):
        return Image.fromarray(_array(image))
    if isinstance(image, str | os.PathLike):
        return read_image(Path(cast("str", image)), background)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(cast("bytes", image)), "the image given as bytes", background)
    if hasattr(image, "read"):
        data = image.read()
        if not isinstance(data, bytes):
            raise ImageError(f"the file given as {image!r} gives text; open it in binary mode (open(path, 'rb'))")
        return decode_image(data, str(getattr(image, "name", "the image given as a file")), background)
    raise _no_image(image)


def pixels_of(image: Any, background: Colour = WHITE) -> NDArray[np.uint8]:
    """Return any accepted form of an image (`AnyImage`) as uint8 RGB [H, W, 3], without a copy where possible.

    Raises:
        ImageError: as `open_image` does.
    """
    in_memory = _has_pixels(image) and not isinstance(image, Image.Image)
    return _array(image) if in_memory else np.asarray(open_image(image, background))


def several(
    images: Any, open_one: Callable[[Any], Opened], work: Callable[[list[Opened]], list[Result]]
) -> list[Result] | Iterator[Result]:
    """Apply `work` to batches of opened images; an iterator gives a generator, a list or another collection a list."""
    results = (one for batch in in_batches(images, open_one) for one in work(batch))
    return results if isinstance(images, Iterator) else list(results)


def in_batches(items: Iterable[Item], open_one: Callable[[Item], Opened]) -> Iterator[list[Opened]]:
    """Yield up to BATCH items at a time, opened by `open_one`; files are opened ahead in threads.

    Memory does not grow with the number of items.
    """
    source = iter(items)
    first = list(islice(source, BATCH))
    if all(_has_pixels(item) for item in first):
        # Nothing to decode: threads would cost more than they save
        while first:
            yield [open_one(item) for item in first]
            first = list(islice(source, BATCH))
        return
    opened = ahead(open_one, chain(first, source))
    while batch := list(islice(opened, BATCH)):
        yield batch


def ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    room: Callable[[Result], int] = lambda _: AHEAD,
    threads: int | None = None,
) -> Iterator[Result]:
    """Yield `work(item)` for each item, in order, computed ahead in threads.

    Args:
        work: what the threads do.
        items: may be endless.
        room: how many items to work on ahead, given the last result; a result's size is not known before.
        threads: how many work; None takes one per core.
    """
    source, threads = iter(items), threads or decoding_threads()
    pool = ThreadPoolExecutor(threads, "multibox-decode")
    try:
        waiting = deque(pool.submit(work, item) for item in islice(source, threads))
        while waiting:
            done = waiting.popleft().result()
            more = max(0, room(done) - len(waiting))
            waiting.extend(pool.submit(work, item) for item in islice(source, more))
            yield done
    finally:
        # The caller may stop half-way
        pool.shutdown(cancel_futures=True)


def _has_pixels(image: Any) -> bool:
    return isinstance(image, Image.Image | np.ndarray) or _tensor(image) is not None


def _array(image: Any) -> NDArray[np.uint8]:
    """Return the pixels of an array or tensor as [H, W, 3].

    Raises:
        ImageError: it has another shape or type.
    """
    kind, expected, shape = "an array", "uint8 RGB [H, W, 3]", tuple(image.shape)
    dtype = str(image.dtype).removeprefix("torch.")
    tensor = _tensor(image)
    if tensor is not None:
        kind, expected = "a tensor", "uint8 RGB [3, H, W] or [H, W, 3]"
        if dtype == "uint8" and len(shape) == 3 and shape[0] == shape[2] == 3:
            raise ImageError(
                f"a tensor of shape {list(shape)} may be [3, H, W] or [H, W, 3]; give tensor.permute(1, 2, 0).numpy() "
                "if channels come first, else tensor.numpy()"
            )
        tensor = tensor.detach().cpu()
        image = (tensor.permute(1, 2, 0) if len(shape) == 3 and shape[0] == 3 else tensor).numpy()
    if dtype == "uint8" and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    advice = _advice(tensor is None, dtype, shape)
    raise ImageError(f"an image given as {kind} must be {expected}, got {dtype} {list(shape)}{advice}")


def _advice(is_array: bool, dtype: str, shape: Sequence[int]) -> str:
    """Return how to make an image of this shape and type, if that can be guessed."""
    if dtype.startswith(("float", "bfloat")) and len(shape) == 3:
        return "; values from 0 to 1 become uint8 as (image * 255).round()" + (
            ".astype('uint8')" if is_array else ".to(torch.uint8)"
        )
    if dtype != "uint8" or 0 in shape:
        return ""
    if len(shape) == 4:
        return "; give a batch as list(images)"
    if len(shape) == 2 or shape[-1] == 1:
        return "; a grey image becomes RGB by repeating it three times along the last axis"
    if is_array and len(shape) == 3 and shape[0] == 3:
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
