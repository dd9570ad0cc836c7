"""The loss ledger of a run: what every object and image cost in every epoch, in two files of RUN/ledger.

`objects.safetensors` is written once: names of the training images, boxes and labels of their objects. `epochs.bin`
grows by one record per epoch. All records have one size, and each carries a checksum. So half a record at the end, or
what a power cut left of one, is recognised and ignored. Reading needs numpy alone.

A record is a head of 16 bytes, then, in this order: for each object the classification loss and the localisation loss
(float16), for each image the loss of its background (float16), for each object the number of its anchors, its best IoU
and its best score (bytes). That is 7 bytes per object and 2 per image.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from multibox.columns import Texts
from multibox.errors import DataError
from multibox.files import sync_file, write_bytes_whole
from multibox.structures import Boxes, Dataset, Labels

FOLDER, OBJECTS, EPOCHS = "ledger", "objects.safetensors", "epochs.bin"
VERSION = 1
_HEAD = struct.Struct("<4sIII")
"""Mark, epoch, step, and the CRC-32 of epoch, step and what follows."""
_MARK = b"mbl1"
_LARGEST = float(np.finfo(np.float16).max)

Halves = NDArray[np.float16]
Bytes = NDArray[np.uint8]


class Record(NamedTuple):
    """What an epoch cost, as views of one block of bytes."""

    block: Bytes
    class_loss: Halves
    box_loss: Halves
    background_loss: Halves
    matched: Bytes
    best_iou: Bytes
    score: Bytes

    def note_objects(self, rows: Labels, values: NDArray[np.float32]) -> None:
        """Note objects by their rows [n]; of a row given twice the last counts.

        Args:
            rows: Of the training split.
            values: [5, n]; classification loss, localisation loss, number of anchors, best IoU, best score.
        """
        self.class_loss[rows], self.box_loss[rows] = np.minimum(values[:2], _LARGEST)
        self.matched[rows] = np.minimum(values[2], 255)
        self.best_iou[rows], self.score[rows] = np.rint(255 * np.clip(values[3:5], 0, 1))

    def note_images(self, rows: Labels, losses: NDArray[np.float32]) -> None:
        """Note the loss of the background of images [n]."""
        self.background_loss[rows] = np.minimum(losses, _LARGEST)


@dataclass(frozen=True, eq=False)
class Ledger:
    """What every object and image cost in every epoch; losses are NaN in an epoch that did not show it.

    An epoch that shows an object several times counts its last time. Losses are sums over the object's anchors, those
    that the matcher gave it, before the loss's weights and divisor.
    """

    class_names: tuple[str, ...]
    image_names: Texts
    """[I] of the training split."""
    starts: Labels
    """[I + 1]; image i owns the objects starts[i] .. starts[i + 1]."""
    boxes_xyxy: Boxes
    """[N, 4] in pixels of the image, as the label file wrote them."""
    labels: Labels
    """[N]; places in `class_names`, as learned: after merges."""
    epochs: Labels
    """[E], counted from 1; the last one of a run may be part of one, which a prolonged run then has twice."""
    steps: Labels
    """[E] after which each record was written."""
    class_loss: Halves
    """[E, N]"""
    box_loss: Halves
    """[E, N]"""
    matched: Bytes
    """[E, N] anchors matched to the object, at most 255; 0 if not shown."""
    best_iou: Bytes
    """[E, N] largest IoU of the object with one of these anchors, times 255."""
    score: Bytes
    """[E, N] largest score of the object's class among these anchors, times 255."""
    background_loss: Halves
    """[E, I]; loss of the anchors learned as background in the image; of images mixed into one, noted at the first."""


def new_record(objects: int, images: int, block: Bytes | None = None) -> Record:
    """Return a record in which nothing was shown yet, or what `block` holds."""
    record = Record(
        *_columns(np.zeros(7 * objects + 2 * images, np.uint8) if block is None else block, objects, images)
    )
    if block is None:
        for losses in (record.class_loss, record.box_loss, record.background_loss):
            losses[...] = np.nan
    return record


def _columns(block: Bytes, objects: int, images: int) -> tuple[Bytes, Halves, Halves, Halves, Bytes, Bytes, Bytes]:
    """Return blocks [..., bytes] and views of their parts, in the order of `Record`."""
    sides = (2 * objects, 2 * objects, 2 * images, objects, objects, objects)
    a, b, c, matched, best_iou, score = np.split(block, np.cumsum(sides)[:-1], axis=-1)
    return block, a.view(np.float16), b.view(np.float16), c.view(np.float16), matched, best_iou, score


def write_objects(run: Path, dataset: Dataset) -> None:
    """Write the objects of the training split, unless they are there; records of other objects are removed.

    Raises:
        OSError: the folder cannot be written to.
    """
    blob, starts = Texts.of(dataset.image_names).arrays()
    arrays: dict[str, NDArray[Any]] = {
        "image_names": np.ascontiguousarray(blob),
        "name_starts": np.ascontiguousarray(starts, np.int64),
        "starts": np.ascontiguousarray(dataset.starts, np.int64),
        "boxes_xyxy": np.ascontiguousarray(dataset.boxes_xyxy, np.float64),
        "labels": np.ascontiguousarray(dataset.labels, np.int64),
    }
    about = {"version": VERSION, "class_names": list(dataset.class_names)}
    path = run / FOLDER / OBJECTS
    try:
        known, before = _read_objects(path)
    except (OSError, SafetensorError, KeyError, ValueError):
        # Lost to a power cut perhaps; the records are of these objects if they have their size
        pass
    else:
        if known == about and all(np.array_equal(before[name], value) for name, value in arrays.items()):
            return
        cut_epochs(run, 0, 0)
    write_bytes_whole(path, save(arrays, {"multibox": json.dumps(about)}), durable=True)


def append_epoch(run: Path, epoch: int, step: int, record: Record) -> None:
    """Append one epoch, by one write.

    Raises:
        OSError: the file cannot be written to.
    """
    body = record.block.tobytes()
    checksum = zlib.crc32(body, zlib.crc32(struct.pack("<II", epoch, step)))
    with (run / FOLDER / EPOCHS).open("ab", buffering=0) as file:
        file.write(_HEAD.pack(_MARK, epoch, step, checksum) + body)


def sync_epochs(run: Path) -> None:
    """Wait until the records are on the disk, before a state is written that counts them."""
    sync_file(run / FOLDER / EPOCHS)


def cut_epochs(run: Path, count: int, size: int) -> int:
    """Remove all records but the first `count`, and what is none; return how many there are.

    Args:
        run: The run folder.
        count: Of the records that belong to the state from which the run goes on.
        size: Bytes of a record without its head.
    """
    path = run / FOLDER / EPOCHS
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        kept = 0
        while kept < count and _record(file.read(_HEAD.size + size), size) is not None:
            kept += 1
        file.truncate(kept * (_HEAD.size + size))
    return kept


def read_ledger(run: Path) -> Ledger:
    """Return the ledger of a run folder, also while the run goes on.

    Raises:
        DataError: the run has no ledger, or one that cannot be read.
    """
    path = run / FOLDER / OBJECTS
    if not path.is_file():
        raise DataError(f"{run} has no loss ledger ({FOLDER}/{OBJECTS}); runs of older versions kept none")
    try:
        about, arrays = _read_objects(path)
        objects, images = len(arrays["labels"]), len(arrays["starts"]) - 1
        class_names = tuple(about["class_names"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); was it copied whole?") from None
    if about["version"] != VERSION:
        raise DataError(f"{path} has version {about['version']}, this multibox reads {VERSION}; update multibox")
    epochs, steps, blocks = _read_epochs(run / FOLDER / EPOCHS, 7 * objects + 2 * images)
    _, class_loss, box_loss, background_loss, matched, best_iou, score = _columns(blocks, objects, images)
    return Ledger(
        class_names, Texts(arrays["image_names"], arrays["name_starts"]), arrays["starts"], arrays["boxes_xyxy"],
        arrays["labels"], epochs, steps, class_loss, box_loss, matched, best_iou, score, background_loss,
    )  # fmt: skip


def _read_objects(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    with cast(Any, safe_open(path, framework="np")) as file:
        metadata: dict[str, str] = file.metadata() or {}
        about: dict[str, Any] = json.loads(metadata["multibox"])
        return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def _read_epochs(path: Path, size: int) -> tuple[Labels, Labels, Bytes]:
    """Return epochs [E], steps [E] and blocks [E, size], which stay in the file until they are used."""
    heads: list[tuple[int, int]] = []
    if path.exists():
        with path.open("rb") as file:
            while (found := _record(file.read(_HEAD.size + size), size)) is not None:
                heads.append(found)
    epochs, steps = np.array(heads, np.int64).reshape(-1, 2).T
    if not heads:
        return epochs, steps, np.zeros((0, size), np.uint8)
    rows = np.memmap(path, np.uint8, "r", shape=(len(heads), _HEAD.size + size))
    return epochs, steps, rows[:, _HEAD.size :]


def _record(data: bytes, size: int) -> tuple[int, int] | None:
    """Return epoch and step of a record with its head; None for what is none, such as half of one."""
    if len(data) < _HEAD.size + size or not size:
        return None
    mark, epoch, step, checksum = _HEAD.unpack_from(data)
    whole = mark == _MARK and checksum == zlib.crc32(data[_HEAD.size :], zlib.crc32(data[4:12]))
    return (epoch, step) if whole else None
