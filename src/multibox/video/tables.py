"""Rows of results, written as the video goes: JSON lines, a JSON list, CSV."""

import contextlib
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from multibox.inference.results import CSV_COLUMNS, ImageResult, csv_lines, csv_rows, json_entry, list_of_objects
from multibox.structures import Detections
from multibox.video.reading import Frame

Entry: TypeAlias = dict[str, Any]
AddEntry: TypeAlias = Callable[[Entry], None]


def frame_entry(shown: str, frame: Frame, found: Detections, tracks: Sequence[int | None] | None = None) -> Entry:
    """Return the object that stands for one frame in our JSON.

    It is that of an image with `frame` and `time` in seconds besides, and `track` in each detection if `tracks` is
    given.
    """
    wide, high = frame.size
    image = json_entry(ImageResult(shown, wide, high, found))
    for detection, track in zip(image["detections"], tracks or (), strict=False):
        detection["track"] = track
    return {"file": shown, "frame": frame.number, "time": round(frame.time, 6), **image}


@contextmanager
def open_tables(
    json_file: Path | BinaryIO | None = None, csv_file: Path | None = None
) -> Generator[AddEntry, None, None]:
    """Yield a function that writes the object of an image or frame to each file named.

    JSON lines (`.jsonl`) and CSV are written row by row, so that they hold everything up to the last frame whatever
    happens. A JSON list appears as a whole when the block ends well; standard output gets it object by object.

    Args:
        json_file: a name that ends in .jsonl gets an object on each line, another one a list; a file opened in binary
            mode gets a list.
        csv_file: gets a row for each detection.

    Raises:
        OSError: a file cannot be written.
    """
    with ExitStack() as stack:
        sinks: list[AddEntry] = []
        if isinstance(json_file, Path) and json_file.suffix.lower() == ".jsonl":
            lines = stack.enter_context(_growing(json_file))
            sinks.append(lambda entry: lines(json.dumps(entry, allow_nan=False).encode() + b"\n"))
        elif json_file is not None:
            add_all = stack.enter_context(list_of_objects(json_file))
            sinks.append(lambda entry: add_all([entry]))
        if csv_file is not None:
            table = stack.enter_context(_growing(csv_file))
            table(csv_lines([CSV_COLUMNS]))
            sinks.append(lambda entry: table(csv_lines(csv_rows(entry))))

        def add(entry: Entry) -> None:
            for sink in sinks:
                sink(entry)
            if sinks and json_file is not None and not isinstance(json_file, Path):
                json_file.flush()

        yield add


@contextmanager
def _growing(path: Path) -> Generator[Callable[[bytes], None], None, None]:
    """Yield a function that writes to a file at once; an error names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("wb", buffering=0))

        def write(data: bytes) -> None:
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error

        yield write
