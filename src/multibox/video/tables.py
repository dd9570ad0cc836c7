"""Rows of results, written as the video goes: JSON lines, a JSON list, CSV."""

import contextlib
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
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
    happens. They begin with the first object, or when the block ends well: an older file of that name stays until then.
    A JSON list appears as a whole when the block ends well; standard output gets it object by object.

    Args:
        json_file: a name that ends in .jsonl gets an object on each line, another one a list; a file opened in binary
            mode gets a list.
        csv_file: gets a row for each detection.

    Raises:
        OSError: a file cannot be written.
    """
    with ExitStack() as stack:
        sinks: list[AddEntry] = []
        begins: list[Callable[[], None]] = []
        if isinstance(json_file, Path) and json_file.suffix.lower() == ".jsonl":
            lines = stack.enter_context(_growing(json_file))
            begins.append(lambda: lines(b""))
            sinks.append(lambda entry: lines(json.dumps(entry, allow_nan=False).encode() + b"\n"))
        elif json_file is not None:
            if not isinstance(json_file, Path):
                # Called after the list has its end, which then precedes whatever goes to stderr
                stack.callback(json_file.flush)
            add_all = stack.enter_context(list_of_objects(json_file))
            sinks.append(lambda entry: add_all([entry]))
        if csv_file is not None:
            table = stack.enter_context(_growing(csv_file))
            begins.append(lambda: table(csv_lines([CSV_COLUMNS])))
            sinks.append(lambda entry: table(csv_lines(csv_rows(entry))))

        def begin() -> None:
            while begins:
                begins.pop()()

        def add(entry: Entry) -> None:
            begin()
            for sink in sinks:
                sink(entry)
            if sinks and json_file is not None and not isinstance(json_file, Path):
                json_file.flush()

        yield add
        begin()


@contextmanager
def _growing(path: Path) -> Generator[Callable[[bytes], None], None, None]:
    """Yield a function that writes to a file at once, opened by the first call; an error names the file."""
    with contextlib.ExitStack() as stack:
        opened: list[FileIO] = []

        def write(data: bytes) -> None:
            if not opened:
                path.parent.mkdir(parents=True, exist_ok=True)
                opened.append(stack.enter_context(path.open("wb", buffering=0)))
            (file,) = opened
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error

        yield write
