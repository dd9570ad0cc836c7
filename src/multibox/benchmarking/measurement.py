"""The whole of `multibox bench`: open, compare, time in turns, report."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from multibox.benchmarking import clock as machine
from multibox.benchmarking.clock import SIDE, WHOLE, Spread, Work, as_work, peak_memory, take_turns
from multibox.benchmarking.subjects import PARTS, Subject, exported_subject
from multibox.benchmarking.workload import (
    LOADS,
    Images,
    Pixels,
    as_jpeg,
    count_candidates,
    folder_images,
    synthetic_images,
    synthetic_outputs,
)
from multibox.builtin import find_model, runnable
from multibox.data.images import decode_image
from multibox.errors import ConfigError
from multibox.inference.engines import SUFFIXES
from multibox.inference.load import checked_threads
from multibox.structures import Size

BATCHES = (1, 8)
DECODE = "decode"

Tick = Callable[[str], None]
"""Called with what was done."""


class Row(NamedTuple):
    """One line of the table: a part, and its spread for each subject (None: not measured)."""

    part: str
    batch: int
    times: tuple[Spread | None, ...]


class Report(NamedTuple):
    """Results of a measurement."""

    subjects: tuple[str, ...]
    rows: list[Row]
    notes: list[str]
    """Machine, method, agreement, memory and ceilings."""


def bench(
    path: str | Path,
    *,
    against: str | None = None,
    images: Path | None = None,
    threads: int | None = None,
    precision: str | None = None,
    rounds: int = 10,
    tick: Tick = lambda _: None,
) -> Report:
    """Measure a detector on this machine's CPU, part by part.

    Args:
        path: the name of a built-in model, a checkpoint, a run folder, or an exported file.
        against: "torchvision" measures its network with the same weights beside it; only for checkpoints.
        images: folder of images to use; None takes synthetic ones of 500x375.
        threads: CPU threads; None leaves it to the engine.
        precision: "float32" or "bfloat16"; None takes the engine's own.
        rounds: turns of each side.
        tick: called after each stage.

    Raises:
        ConfigError: settings that do not go together, or a network that torchvision does not have.
        DisagreementError: the sides gave different detections.
        WeightsError: the model cannot be opened.
    """
    shown = folder_images(images, max(BATCHES)) if images else synthetic_images(max(BATCHES))
    if against is None:
        subjects, notes = [open_subject(path, threads, precision)], []
    else:
        subjects, notes = _sides(path, against, threads, precision, tick)
    tick("compared" if against else "opened")
    source = str(images) if images else "synthetic"
    notes = [machine.describe(), *notes, f"images: {source}, {shown[0].shape[1]}x{shown[0].shape[0]}"]
    notes += list(dict.fromkeys(subject.how for subject in subjects))
    rows = [_decode_row(shown, len(subjects), rounds)]
    for batch in BATCHES:
        rows += _rows(subjects, shown[:batch], rounds)
        notes.append(_memory(batch))
        tick(f"batch of {batch}")
    more, candidates = _post_rows(subjects, shown[0], rounds)
    tick("post-processing")
    return Report(
        tuple(subject.name for subject in subjects),
        rows + more,
        [*notes, *candidates, *_limits(subjects, rows)],
    )


def open_subject(path: str | Path, threads: int | None, precision: str | None) -> Subject:
    """Open any model as a subject."""
    path = runnable(find_model(path))
    if path.suffix in SUFFIXES:
        return exported_subject(path, threads, precision)
    from multibox.benchmarking.torchvision_peer import eager_subject
    from multibox.inference.detector import open_checkpoint

    _use_threads(threads)
    return eager_subject(open_checkpoint(path, device="cpu"), precision or "float32")


def _use_threads(threads: int | None) -> None:
    """Set PyTorch's threads of this process, which only measures, so that peers have as many."""
    import torch

    if (count := checked_threads(threads)) is not None:
        torch.set_num_threads(count)


def _sides(
    path: str | Path, against: str, threads: int | None, precision: str | None, tick: Tick
) -> tuple[list[Subject], list[str]]:
    """Return torchvision's and our subjects with the same weights, and notes on their agreement."""
    if against != "torchvision":
        raise ConfigError(f"--against {against}: expected torchvision")
    path = find_model(path)
    if path.suffix in SUFFIXES:
        raise ConfigError(f"{path}: --against needs the checkpoint, whose weights torchvision's network takes as well")
    from multibox.benchmarking.torchvision_peer import compare, torchvision_sides
    from multibox.inference.detector import open_checkpoint

    _use_threads(threads)
    detector = open_checkpoint(path, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        subjects = torchvision_sides(detector, Path(folder) / "model.onnx", threads, precision)
    tick("opened")
    return subjects, compare(subjects, detector.config.model.input_size)


def _decode_row(images: Images, subjects: int, rounds: int) -> Row:
    """Time the decoding of a JPEG in memory, which is the same for every side."""
    data = as_jpeg(images[0])
    found = take_turns({DECODE: as_work(lambda: decode_image(data, "memory"))}, rounds)[DECODE][WHOLE]
    return Row(DECODE, 1, (found,) * subjects)


def _rows(subjects: Sequence[Subject], images: Images, rounds: int) -> list[Row]:
    works: dict[str, Work] = {subject.name: partial(subject.run, images) for subject in subjects}
    found = take_turns(works, rounds)
    parts = [part for part in (*PARTS, WHOLE) if any(part in times for times in found.values())]
    return [Row(part, len(images), tuple(found[each.name].get(part) for each in subjects)) for part in parts]


def _post_rows(subjects: Sequence[Subject], image: Pixels, rounds: int) -> tuple[list[Row], list[str]]:
    """Time post-processing alone, with few and with many candidates."""
    known = [subject for subject in subjects if subject.post and subject.outputs]
    if not known:
        return [], []
    first = known[0]
    assert first.outputs is not None
    rows: list[Row] = []
    notes: list[str] = []
    for load in LOADS:
        outputs = synthetic_outputs(load, (1, *first.outputs), first.score, first.threshold)
        size = Size(*image.shape[:2])
        works: dict[str, Work] = {each.name: as_work(each.post(outputs, size)) for each in known if each.post}
        times = take_turns(works, rounds)
        rows.append(Row(f"post-process, {load}", 1, tuple(times.get(each.name, {}).get(WHOLE) for each in subjects)))
        count = count_candidates(outputs, first.score, first.threshold)
        notes.append(f"{load} load: {count:.0f} candidates per image ({first.outputs[0]} anchors, {first.threshold:g})")
    return rows, notes


def _memory(batch: int) -> str:
    most = peak_memory()
    return f"memory of this process at most, up to batch {batch}: " + (f"{most / 1e6:.0f} MB" if most else "unknown")


def _limits(subjects: Sequence[Subject], rows: Sequence[Row]) -> list[str]:
    """Return notes on how near each network comes to the machine's ceiling."""
    notes: list[str] = []
    for index, subject in enumerate(subjects):
        ceiling = subject.ceiling()
        line = f"{subject.name}: ceiling {ceiling / 1e12:.2f} TFLOP/s (a {SIDE}x{SIDE} matrix product)"
        for row in rows:
            times = row.times[index]
            if row.part == "network" and times and subject.flops:
                rate = subject.flops * row.batch / times.median
                line += f"; network, batch {row.batch}: {rate / 1e12:.2f} TFLOP/s, {rate / ceiling:.0%} of it"
        notes.append(line)
    return notes
