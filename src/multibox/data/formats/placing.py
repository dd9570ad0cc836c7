"""Putting pictures into a data set that is being written: byte for byte, never encoded again."""

import os
import shutil
from pathlib import Path

from multibox.data.formats.picture_bytes import bytes_of, file_name
from multibox.errors import DataError, PictureError
from multibox.structures import Dataset, Sample


class Placer:
    """Copies pictures, or links them where that is asked for and the file system can."""

    def __init__(self, *, link: bool) -> None:
        self.link = link

    def put(self, sample: Sample, target: Path) -> None:
        """Put a sample's picture at `target`.

        Raises:
            PictureError: when it cannot be read.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        if sample.offset is not None:
            target.write_bytes(bytes_of(sample))
            return
        if self.link:
            try:
                os.link(sample.path.resolve(), target)
                return
            except OSError:
                pass  # another disk, or a file system without links: copy
        try:
            shutil.copyfile(sample.path, target)
        except OSError as error:
            raise PictureError(f"{sample.path} cannot be copied to {target} ({error.strerror})") from None


def target_names(dataset: Dataset) -> list[str]:
    """Return the file name of each picture in a written data set.

    Raises:
        DataError: when two would share a label file, as a.jpg and a.png do.
    """
    names = [file_name(sample) for sample in dataset]
    stems: dict[str, str] = {}
    for name in names:
        stem = str(Path(name).with_suffix(""))
        if stem in stems:
            raise DataError(
                f"{dataset.root}: pictures {stems[stem]} and {name} of split {dataset.split!r} would share "
                "one label file; rename one of them"
            )
        stems[stem] = name
    return names
