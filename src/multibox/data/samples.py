"""A sample's pixels, wherever they are."""

from PIL import Image

from multibox.data.pictures import decode_picture, picture_size, read_picture
from multibox.structures import Sample


def load_picture(sample: Sample) -> Image.Image:
    """Return the sample's picture as 8-bit RGB, from its file or its record.

    Raises:
        PictureError: the picture is missing, truncated or no picture.
    """
    if sample.offset is None:
        return read_picture(sample.path)
    from multibox.data.formats.recordio import read_record_picture

    return decode_picture(read_record_picture(sample.path, sample.offset), f"{sample.path}, record {sample.name}")


def sample_size(sample: Sample) -> tuple[int, int]:
    """Return width and height of the sample's picture: from its label, else from the picture's header."""
    if sample.size is not None:
        return sample.size
    return picture_size(sample.path) if sample.offset is None else load_picture(sample).size
