"""The forms in which a detector takes pictures."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.data.pictures import read_picture, upright_rgb
from multibox.errors import PictureError

Picture = str | Path | Image.Image | NDArray[np.uint8]
"""A path, a PIL picture or a uint8 RGB array [H, W, 3]."""
BATCH = 16
"""Pictures of a list that are looked at together."""


def open_picture(picture: Picture) -> Image.Image:
    """Return any accepted form of a picture as RGB.

    Raises:
        PictureError: a file that is missing, truncated or no picture, or an array of another shape or type.
    """
    if isinstance(picture, Image.Image):
        return upright_rgb(picture)
    if isinstance(picture, np.ndarray):
        return Image.fromarray(checked_array(picture))
    return read_picture(picture)


def checked_array(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the array itself.

    Raises:
        PictureError: it is no picture.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise PictureError(
            f"a picture given as an array must be uint8 RGB [H, W, 3], got {picture.dtype} {list(picture.shape)}"
        )
    return picture
