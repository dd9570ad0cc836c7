"""Image files of a data set: finding those that a label file names, placing them where a data set is written."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from multibox.data.formats.text import (
    canonical,
    child,
    files_below,
    fit_text,
    folders_in,
    is_split_name,
    safe_name,
    split_in,
    stem_of,
    tails,
)
from multibox.data.image_listing import IMAGE_SUFFIXES, suffix_by_content
from multibox.data.images import image_bytes, image_head, shown_size
from multibox.data.left_out import Reason, counted
from multibox.errors import DataError, ImageError
from multibox.files import same_name
from multibox.structures import Boxes, Dataset, Flags, Sample

ROUNDING_PX = 0.01
"""Less than this over the edge of an image is rounding in a label file, not worth a note."""
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "img", "imgs", "")


class ImageFinder:
    """Looks images up in a row of folders, each of which is listed once: the disk is not asked per image.

    The exact path comes first, then its last parts, then other capitals, another suffix or a decoded %20. Last comes
    its name anywhere below the root, if it is there once and not in the folder of another split. Everything but an
    exact path is a guess, which `take_guesses` returns with the words to say it.
    """

    def __init__(self, root: Path, folders: Iterable[Path] = (), split: str = "") -> None:
        nearby = [root / name for name in IMAGE_FOLDERS]
        above = [up / name for up in (root.parent, root.parent.parent) for name in ("JPEGImages", "images")]
        self.root = root
        self.folders = list(dict.fromkeys(str(path) for path in (*folders, *nearby, *above)))
        self._elsewhere = frozenset(map(str, above)) - {str(path) for path in (*folders, *nearby)}
        self._split = _split_words([split])
        self._listings: dict[str, frozenset[str]] = {}
        self._loose: dict[str, dict[str, list[str]]] = {}
        self._below: dict[str, list[str]] | None = None
        self._guesses: list[tuple[Reason, str]] = []

    def find(self, listed: str) -> Path | None:
        """Return the file of the image that a label file calls `listed`, or None."""
        name = safe_name(listed)
        if not name:
            return None
        if os.path.isabs(listed) and os.path.isfile(listed):  # noqa: PTH113, PTH117
            return Path(listed)
        found = self._find_exact(name) or self._find_alike(name)
        if found is None and "%" in name and (plain := safe_name(unquote(name))):
            found = self._find_exact(plain) or self._find_alike(plain)
            if found is not None:
                self._guesses.append((_DECODED, name))
        return found or self._find_below(name)

    def find_stem(self, stem: str, prefer: str = "") -> Path | None:
        """Return the image with this path less its suffix, one that ends in `prefer` first, or None."""
        head, _, tail = stem.rpartition("/")
        places = [os.path.join(folder, head) if head else folder for folder in self.folders]  # noqa: PTH118
        for place in places:
            if prefer and tail + prefer in self._listing(place):
                return self._at(place, tail + prefer)
        for place in places:
            hits = self._alike(place).get(same_name(tail), [])
            exact = [hit for hit in hits if stem_of(hit) == tail]
            if len(exact) > 1:
                self._guesses.append((_FITS_TWO, f"{tail} ({exact[0]}, not {' or '.join(exact[1:])})"))
            if exact or len(hits) == 1:
                if not exact:
                    same = same_name(stem_of(hits[0])) == same_name(tail)
                    self._guesses.append((_OTHER_CAPITALS if same else _DECODED, f"{tail} ({hits[0]})"))
                return self._at(place, (exact or hits)[0])
        return None

    def holds(self, listed: str) -> bool:
        """Return whether a listed image lies in one of the folders under exactly this name."""
        return any(self._holds(folder, name) for name in tails(safe_name(listed)) for folder in self.folders)

    def take_guesses(self) -> list[tuple[Reason, str]]:
        """Return what was guessed since the last call: the words for one and many, and the image."""
        taken, self._guesses = self._guesses, []
        return taken

    def places(self) -> str:
        """Return the existing folders that were searched, for an error message."""
        return ", ".join(folder for folder in self.folders if os.path.isdir(folder))  # noqa: PTH112

    def _find_exact(self, name: str) -> Path | None:
        for wanted in tails(name):
            for folder in self.folders:
                if self._holds(folder, wanted):
                    return self._at(folder, wanted)
        return None

    def _find_alike(self, name: str) -> Path | None:
        stem, base = stem_of(name), name.rpartition("/")[2]
        found = self.find_stem(stem) or (self.find_stem(stem_of(base)) if base != name else None)
        if found is not None and stem != name and found.suffix.lower() != os.path.splitext(name)[1].lower():  # noqa: PTH122
            self._guesses.append((_OTHER_SUFFIX, f"{name} ({found.name})"))
        return found

    def _at(self, folder: str, name: str) -> Path:
        if folder in self._elsewhere:
            place = os.path.relpath(folder, self.root)
            self._guesses.append((Reason(f"image was taken from {place}", f"images were taken from {place}"), name))
        return Path(folder, name)

    def _holds(self, folder: str, name: str) -> bool:
        head, _, tail = name.rpartition("/")
        return tail in self._listing(os.path.join(folder, head) if head else folder)  # noqa: PTH118

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(os.listdir(folder))  # noqa: PTH208
            except OSError:
                self._listings[folder] = frozenset()
        return self._listings[folder]

    def _alike(self, folder: str) -> dict[str, list[str]]:
        """Return the images of a folder by their stems, without regard to capitals."""
        if folder not in self._loose:
            images = (name for name in sorted(self._listing(folder)) if name.lower().endswith(IMAGE_SUFFIXES))
            stems = [(stem_of(name), name) for name in images if name[0] != "."]
            encoded = [(unquote(stem), name) for stem, name in stems if "%" in stem]
            self._loose[folder] = _grouped((same_name(stem), name) for stem, name in stems + encoded)
        return self._loose[folder]

    def _find_below(self, name: str) -> Path | None:
        if self._below is None:
            names = files_below(self.root, *IMAGE_SUFFIXES)
            self._below = _grouped((same_name(name.rpartition("/")[2]), name) for name in names)
        # With its suffix: VOC's SegmentationClass holds a .png of the same stem, which is no photograph.
        hits = self._below.get(same_name(name.rpartition("/")[2]), [])
        if len(hits) != 1:
            return None
        wanted = _split_words(name.split("/")[:-1]) or self._split
        there = _split_words(hits[0].split("/")[:-1])
        if wanted and there and not wanted & there:
            return None  # val/1.jpg is not the 1.jpg that train lists
        self._guesses.append((_ELSEWHERE, f"{name} ({hits[0]})"))
        return self.root / hits[0]


_DECODED = Reason("image name was decoded, as in a web address", "image names were decoded, as in a web address")
_OTHER_CAPITALS = Reason(
    "image was found under a name that is spelt differently", "images were found under names that are spelt differently"
)
_FITS_TWO = Reason(
    "image name fits two files; the first was taken", "image names fit two files each; the first was taken"
)
_OTHER_SUFFIX = Reason("image was found under another suffix", "images were found under another suffix")
_ELSEWHERE = Reason("image was found in another folder than listed", "images were found in other folders than listed")


def _split_words(names: Iterable[str]) -> set[str]:
    """Return the splits that names of folders tell; trainval tells both."""
    words = {canonical(split_in(name)) for name in names if is_split_name(split_in(name))} - {"all", "default"}
    return words | ({"train", "val"} if "trainval" in words else set())


def folders_of_split(bases: Iterable[Path], split: str) -> list[Path]:
    """Return where a split's images usually lie: train2017, images/train or train/images for `train`, if they exist."""
    places = [base / name for base in dict.fromkeys(bases) for name in IMAGE_FOLDERS]
    parts = [part for place in places for part in folders_in(place) if _holds_split(part, split)]
    inside = [folder for part in parts for name in ("", "images") if (folder := child(part, name)) is not None]
    # Of train and train2017, which both are train, the one that is called like the split comes first.
    return sorted(inside, key=lambda folder: split not in (folder.name, folder.parent.name))


def _holds_split(folder: Path, split: str) -> bool:
    return is_split_name(split_in(folder.name)) and canonical(split_in(folder.name)) == canonical(split)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return groups


def place_image(sample: Sample, target: Path, *, link: bool) -> None:
    """Put a sample's image at `target`: a copy, or a hard link if `link` is set and the file system can.

    Raises:
        ImageError: it cannot be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if sample.offset is not None:
        target.write_bytes(image_bytes(sample))
        return
    if link:
        try:
            os.link(sample.path.resolve(), target)
            return
        except OSError:
            pass  # another disk, or a file system without links: copy
    try:
        shutil.copyfile(sample.path, target)
    except OSError as error:
        raise ImageError(f"{sample.path} cannot be copied to {target} ({error.strerror})") from None


def own_places(dataset: Dataset) -> list[str]:
    """Return the absolute path of each image, for label files that refer to images where they are."""
    return [path.absolute().as_posix() for path in dataset.paths]


def target_names(dataset: Dataset, *, share_stems: bool = False) -> list[str]:
    """Return the file name of each image in a written data set.

    `share_stems` says that a.jpg and a.png can stand side by side, as in a format that has one label file for all.

    Raises:
        DataError: two would share a label file or a name.
    """
    names = [_file_name(sample) for sample in dataset]
    seen: dict[str, str] = {}
    for name in names:
        key = name if share_stems else str(Path(name).with_suffix(""))
        if key in seen:
            raise DataError(
                f"{dataset.root}: images {seen[key]} and {name} of split {dataset.split!r} would share "
                f"one {'name' if share_stems else 'label file'}; rename one of them",
                kind="name-collision",
            )
        seen[key] = name
    return names


def _file_name(sample: Sample) -> str:
    """Return the sample's name as a relative file name with the suffix of an image, by its content if it has none."""
    name = fit_name(sample.name)
    if Path(name).suffix.lower() in IMAGE_SUFFIXES:
        return name
    return name + image_suffix(image_head(sample))


def fit_name(name: str) -> str:
    """Return an image's name as a written data set has it: without what a line of a label file cannot hold."""
    head, slash, tail = fit_text(safe_name(name)).rpartition("/")
    stem = stem_of(tail)
    return f"{head}{slash}{stem.strip() or '_'}{tail[len(stem) :].strip()}"


def image_suffix(data: bytes) -> str:
    """Return the suffix that fits the beginning of an image's bytes; .jpg where they tell nothing."""
    return suffix_by_content(data) or ".jpg"


class Fractions:
    """Turns boxes into fractions of their images, and counts those that do not fit between 0 and 1."""

    def __init__(self) -> None:
        self.clipped, self.outside = 0, 0

    def of(self, sample: Sample) -> tuple[Boxes, Flags]:
        """Return the boxes xyxy as fractions, and which of them still have an area."""
        if not len(sample.labels):
            return np.zeros((0, 4)), np.zeros(0, np.bool_)
        height, width = shown_size(sample)
        edges = np.array([width, height, width, height], dtype=np.float64)
        inside: NDArray[np.float64] = np.clip(sample.boxes_xyxy, 0.0, edges)
        keep = np.asarray((inside[:, 2:] > inside[:, :2]).all(axis=1))
        self.clipped += int(((np.abs(inside - sample.boxes_xyxy) > ROUNDING_PX).any(axis=1) & keep).sum())
        self.outside += int((~keep).sum())
        return inside / edges, keep

    def sentences(self, format: str) -> list[str]:
        """Return what has to be said about it."""
        because = f", as {format} holds fractions of the image"
        cut = f"{counted(self.clipped, 'box was', 'boxes were')} clipped at the image's edge{because}"
        out = f"{counted(self.outside, 'box', 'boxes')} outside the image left out{because}"
        return [cut] * bool(self.clipped) + [out] * bool(self.outside)
