"""The actor that does blocks: it holds the model, looks at the images of a block and writes its part. No torch."""

import hashlib
import io
import json
import platform
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from multibox import __version__
from multibox.builtin import FOLDER
from multibox.cluster.block_images import Named, images_of
from multibox.cluster.places import is_address, join, write_whole
from multibox.cluster.plan import KEY, Block, Part, Plan
from multibox.errors import DataError, ImageError, WeightsError
from multibox.inference.load import load
from multibox.inference.streaming import predict_stream
from multibox.structures import Detections

if TYPE_CHECKING:
    from multibox.inference.detector import Detector
    from multibox.inference.load import ExportedDetector

STORE_READERS = 16
"""Threads that read from a store for one actor: it answers late, so many requests are to be under way."""

ModelFiles = Mapping[str, Any]
"""Names and bytes of a model's files, the one to open first."""


class Task(NamedTuple):
    """What every block of a job shares."""

    plan: Plan
    out: str
    """Folder of the parts: an address, or an absolute path."""
    base: str
    """Folder at which relative paths of images start."""
    device: str
    """"cpu" or "cuda"."""
    cores: int
    """Threads that decode; on a CPU the network has one besides."""
    stop_on_bad: bool


class Row(NamedTuple):
    """The result of one image."""

    file: str
    width: int | None
    height: int | None
    found: Detections | None
    error: str | None


class BlockWorker:
    """A class for `Dataset.map_batches`: takes blocks as JSON, gives what is known of their parts.

    The model is opened by the first block, not before: Ray reports an error of a block with its own words and class.

    Args:
        task: what every block shares.
        model: returns the model's files; they lie in Ray's object store, so nodes need no common file system for them.
    """

    def __init__(self, task: Task, model: Callable[[], ModelFiles]) -> None:
        self._task, self._model = task, model
        self._detector: Detector | ExportedDetector | None = None

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Do the blocks of a batch; return a `Part` as JSON for each."""
        self._detector = self._detector or self._open()
        parts: list[str] = []
        for number, data in zip(batch["number"], batch["block"], strict=True):
            parts.append(json.dumps(do_block(self._detector, int(number), Block.decode(bytes(data)), self._task)))
        return {"part": parts}

    def _open(self) -> "Detector | ExportedDetector":
        plan = self._task.plan
        if __version__ != plan.multibox:
            raise DataError(
                f"node {platform.node()} has multibox {__version__}, the command {plan.multibox}: install one version"
            )
        return open_shipped(self._model(), self._task.device, plan.flip, plan.background)


def model_files(file: Path) -> dict[str, bytes]:
    """Return the names and bytes of a model's files, the one to open first.

    Raises:
        WeightsError: the file is missing.
    """
    files = [file]
    if file.suffix == ".xml":
        files.append(file.with_suffix(".bin"))
    elif file.parent == FOLDER and file.suffix == ".onnx":
        # The graph of a built-in model reads its weights from there
        files.append(file.with_suffix(".safetensors"))
    for each in files:
        if not each.is_file():
            raise WeightsError(f"{each} does not exist; expected a .safetensors, .onnx or .xml file, or a run folder")
    return {each.name: each.read_bytes() for each in files}


def model_hash(files: ModelFiles) -> str:
    """Return the SHA-256 of a model's files."""
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{Path(name).suffix} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def open_shipped(
    files: ModelFiles, device: str, flip: bool = False, background: tuple[int, ...] | None = None
) -> "Detector | ExportedDetector":
    """Open a model from its files' bytes, with one thread on a CPU: an actor has one core."""
    # The files may go at once: what reads them keeps them open
    with tempfile.TemporaryDirectory(prefix="multibox-", ignore_cleanup_errors=True) as folder:
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
        detector = load(
            Path(folder, next(iter(files))), device=device, threads=1 if device == "cpu" else None, flip=flip
        )
    if background is not None:
        detector.background = (background[0], background[1], background[2])
    return detector


def do_block(detector: "Detector | ExportedDetector", number: int, block: Block, task: Task) -> Part:
    """Look at the images of a block and write its part.

    Raises:
        DataError: images cannot be reached from this node, or one is unreadable and the task is to stop then.
        OSError: the part cannot be written.
    """
    rows = list(_look(detector, block, task))
    bad = [row.error for row in rows if row.error is not None]
    objects = sum(len(row.found) for row in rows if row.found is not None)
    part = Part(task.plan.digest, number, len(rows), objects, len(bad), bad[0] if bad else "")
    write_whole(join(task.out, task.plan.part(number)), as_parquet(rows, detector.names, part))
    return part


def _look(detector: "Detector | ExportedDetector", block: Block, task: Task) -> Iterator[Row]:
    names: deque[Named] = deque()

    def sources() -> Iterator[Any]:
        for named in images_of(block, task.base):
            names.append(named)
            yield named.source

    threads = max(task.cores, STORE_READERS if any(map(is_address, block.files)) else 1)
    for seen in predict_stream(detector, sources(), task.plan.threshold, decoders=threads):
        named = names.popleft()
        if isinstance(seen.found, Detections) and seen.image is not None:
            yield Row(named.name, seen.image.width, seen.image.height, seen.found, None)
            continue
        _check_reachable(named)
        if task.stop_on_bad and isinstance(seen.found, ImageError):
            raise seen.found
        yield Row(named.name, None, None, None, str(seen.found))


def _check_reachable(named: Named) -> None:
    """Refuse to call a block done because its node lacks the disk with the images.

    Raises:
        DataError: the folder of a local image is missing here.
    """
    if isinstance(named.source, Path) and not named.source.parent.is_dir():
        raise DataError(
            f"node {platform.node()} has no folder {named.source.parent}, which holds {named.source.name}: all nodes "
            "need the same folders, or images in a store such as s3"
        )


def as_parquet(rows: Sequence[Row], class_names: Sequence[str], part: Part) -> bytes:
    """Return rows as a Parquet file: `file`, `width`, `height`, `detections`, `error`; see docs/cluster.md."""
    pa: Any = import_module("pyarrow")
    found = [row.found for row in rows]
    counts = [0 if each is None else len(each) for each in found]
    some = [each for each in found if each is not None]
    boxes = np.concatenate([each.boxes for each in some] or [np.zeros((0, 4))]).astype(np.float32)
    scores = np.concatenate([each.scores for each in some] or [np.zeros(0)]).astype(np.float32)
    labels = np.concatenate([each.labels for each in some] or [np.zeros(0)]).astype(np.int32)
    box = pa.FixedSizeListArray.from_arrays(pa.array(boxes.ravel()), 4)
    names = pa.array([class_names[label] for label in labels.tolist()], pa.string())
    objects = pa.StructArray.from_arrays(
        [pa.array(labels), names, pa.array(scores), box], ["label", "name", "score", "box"]
    )
    columns = {
        "file": pa.array([as_text(row.file) for row in rows], pa.string()),
        "width": pa.array([row.width for row in rows], pa.int32()),
        "height": pa.array([row.height for row in rows], pa.int32()),
        "detections": pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), objects),
        "error": pa.array([row.error for row in rows], pa.string()),
    }
    table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(part).encode()})
    buffer = io.BytesIO()
    import_module("pyarrow.parquet").write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def as_text(name: str) -> str:
    """Return a file name as valid text: bytes that are none become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
