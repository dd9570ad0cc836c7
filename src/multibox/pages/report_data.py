"""The report as plain data: every number and list that its page shows."""

import contextlib
import csv
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from multibox import __version__
from multibox.analysis.calibration import describe_calibration, scored_detections
from multibox.analysis.confusion import describe_confusions, find_confusions
from multibox.analysis.error_kinds import KINDS, MEANINGS, count_errors, error_costs, find_errors, match
from multibox.analysis.image_scores import (
    certain_mistakes,
    describe_files,
    found_objects,
    tally_images,
    worst_images,
)
from multibox.analysis.ledger import Ledger, read_ledger
from multibox.analysis.relabel import is_untouched, renew_relabel
from multibox.analysis.slices import describe_slices
from multibox.analysis.suspects import find_suspects
from multibox.analysis.temperature import Calibrated, write_calibrated
from multibox.builtin import MODELS, about
from multibox.config import Config
from multibox.data.checking import fingerprint
from multibox.data.images import shown_size
from multibox.doctor.examine import find_twins
from multibox.errors import DataError
from multibox.evaluation.report import Metrics, evaluate
from multibox.evaluation.table import columns
from multibox.evaluation.voc_metrics import Curve, precision_recall
from multibox.files import write_text_whole
from multibox.inference.detector import Detector, find_all
from multibox.inference.load import ExportedDetector
from multibox.limits import available_cores, processor_name
from multibox.pages.page import plain
from multibox.pages.report_page import write_report_page
from multibox.structures import Dataset, Detections, Size
from multibox.thresholds import class_thresholds

Report: TypeAlias = dict[str, Any]
"""docs/report.md names every entry."""
Counting = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], object]]]
"""Begins to tell how far something is, given what and how many; what it yields takes how many are done so far."""
POINTS = 200
"""Of a curve, at most."""
MOST_TWINS = 20_000
"""Images above which only the reported split is searched for images that are there twice."""
PACKAGES = ("numpy", "torch", "torchvision", "onnxruntime", "openvino", "hotcoco", "pillow")


@contextlib.contextmanager
def silence(what: str, total: int) -> Any:
    """Tell nothing."""
    yield lambda done: None  # pyright: ignore[reportUnknownLambdaType]


@dataclass(frozen=True)
class Subject:
    """What a report is about."""

    detector: Detector | ExportedDetector
    dataset: Dataset
    """Its classes in the detector's order."""
    model: str
    """As the user named it."""
    data: Sequence[str]
    """Likewise."""
    format: str | None = None
    max_detections: int = 100
    bootstrap: int = 300
    """Resamples of the images for intervals."""
    command: str = ""
    """That makes the report."""
    counting: Counting = field(default=silence)

    @property
    def lowest(self) -> tuple[float, ...]:
        """The lowest score that the model reports of each class."""
        return class_thresholds(self.detector.thresholds, self.detector.names)

    @property
    def run(self) -> Path | None:
        """The run folder that the model is in, if it is in one."""
        if not self.model or self.model in MODELS:
            return None
        path = Path(self.model)
        folder = path if path.is_dir() else path.parent
        return folder if (folder / "metrics.csv").is_file() else None


def predict(subject: Subject) -> list[Detections]:
    """Return the detections in every image."""
    with subject.counting("images predicted", len(subject.dataset)) as progress:
        return find_all(subject.detector, subject.dataset, subject.max_detections, progress)


def make_report_data(subject: Subject, detections: Sequence[Detections]) -> Report:
    """Return all that the page shows, as JSON can hold it.

    Raises:
        DataError: An image cannot be read.
        MissingExtraError: hotcoco is not installed.
    """
    dataset, names = subject.dataset, subject.detector.names
    limit = subject.max_detections
    metrics = evaluate(detections, dataset, names, max_detections=limit, bootstrap=subject.bootstrap)
    curves = precision_recall(detections, dataset, names)
    table = columns(detections, dataset, names)
    lowest = np.array(subject.lowest)
    matches = match(table, limit)
    errors = find_errors(table, matches)
    mistakes, examples = certain_mistakes(table, errors)
    sizes = _image_sizes(dataset)
    tally = tally_images(table, matches, lowest)
    counts, costs = count_errors(errors), error_costs(table, matches, errors)
    report: Report = {
        "model": subject.model,
        "data": list(subject.data),
        "split": dataset.split,
        "images": len(dataset),
        "objects": int(table.gt_scored.sum()),
        "classes": list(names),
        "made": _made(subject),
        "metrics": metrics,
        "curves": {name: _thinned(curve) for name, curve in curves.items()},
        "thresholds": _thresholds(metrics, subject),
        "confusion": describe_confusions(find_confusions(table, lowest), names, lowest),
        "errors": {
            "ap50": metrics["coco"]["AP50"],
            "kinds": [
                {
                    "kind": kind,
                    "count": counts[kind],
                    "ap_cost": costs[kind],
                    "meaning": MEANINGS[kind],
                    "examples": examples[kind],
                }
                for kind in KINDS
            ],
        },
        "slices": describe_slices(table, matches, found_objects(table, matches, lowest), sizes, _config(subject)),
        "calibration": describe_calibration(scored_detections(table, matches.right, matches.wrong), names),
        "files": describe_files(dataset, sizes, tally),
        "worst": worst_images(tally),
        "mistakes": mistakes,
        "suspects": find_suspects(detections, dataset, names, ledger=_ledger(subject.run)),
        "relabel": None,
        "duplicates": _duplicates(subject),
        "training": _training(subject.run),
        "training_run": _training_run(subject.run),
    }
    return plain(report)


def _config(subject: Subject) -> Config | None:
    """Return the network's config; None for an exported file, which does not say what its anchors are."""
    detector = subject.detector
    if not isinstance(detector, ExportedDetector):
        return getattr(detector, "config", None)
    name = detector.about.get("builtin")
    return None if name is None else Config.from_dict(about(name)["config"])


def _image_sizes(dataset: Dataset) -> list[Size]:
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(shown_size, dataset))


def _thinned(curve: Curve) -> dict[str, Any]:
    """Return a curve of at most `POINTS` points: its best F1, its end, and places even in recall and in score."""
    real = np.flatnonzero(curve.f1 >= 0)  # between equal scores no threshold can stand
    chosen = real
    if len(real) > POINTS:
        recall, scores = curve.recall[real], curve.scores[real]
        half = POINTS // 2 - 1
        by_recall = np.searchsorted(recall, np.linspace(float(recall[0]), float(recall[-1]), half))
        by_score = np.searchsorted(-scores, np.linspace(float(-scores[0]), float(-scores[-1]), half))
        best = np.array([curve.f1[real].argmax(), len(real) - 1])
        chosen = real[np.unique(np.concatenate([by_recall, by_score, best]))]
    parts = {"recall": curve.recall, "precision": curve.precision, "scores": curve.scores, "f1": curve.f1}
    thinned = {name: values[chosen].tolist() for name, values in parts.items()}
    return thinned | {"detections": (chosen + 1).tolist(), "objects": curve.objects}


def _thresholds(metrics: Metrics, subject: Subject) -> dict[str, Any]:
    own = dict(zip(subject.detector.names, subject.lowest, strict=True))
    best = metrics["thresholds"]
    return {name: None if found is None else {**found, "model": own[name]} for name, found in best.items()}


def _made(subject: Subject) -> dict[str, Any]:
    device = getattr(subject.detector, "device", "cpu")
    return {
        "command": subject.command,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "multibox": __version__,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {
            "processor": processor_name(),
            "cores": available_cores(),
            "device": device,
            "gpu": _gpu(device),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "fingerprint": fingerprint(subject.dataset, None),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu(device: str) -> str | None:
    torch: Any = sys.modules.get("torch")
    return torch.cuda.get_device_name(device) if device.startswith("cuda") and torch is not None else None


def _duplicates(subject: Subject) -> list[dict[str, str]]:
    """Return what the doctor says of images that are there twice, in the reported split and in other splits."""
    paths = [Path(text) for text in subject.data]
    split, format = subject.dataset.split, subject.format
    with _counted(subject, "images compared") as progress:
        found = find_twins(paths, split=split, most=MOST_TWINS, format=format, progress=progress)
    return [one.to_dict() for one in found]


@contextlib.contextmanager
def _counted(subject: Subject, what: str) -> Generator[Callable[[int, int], None]]:
    """Yield a function of how many are done and how many there are, which begins to tell them when first called."""
    with contextlib.ExitStack() as stack:
        reports: list[Callable[[int], object]] = []

        def progress(done: int, total: int) -> None:
            if not reports:
                reports.append(stack.enter_context(subject.counting(what, total)))
            reports[0](done)

        yield progress


def _ledger(run: Path | None) -> Ledger | None:
    """Return what the labels cost in the run that trained the model; None where that is not known."""
    with contextlib.suppress(DataError):
        return None if run is None else read_ledger(run)
    return None


def _training(run: Path | None) -> list[dict[str, float | None]]:
    """Return the rows of a run's metrics.csv as numbers, None for an empty cell."""
    if run is None:
        return []
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{name: _number(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def _training_run(run: Path | None) -> dict[str, Any] | None:
    """Return steps, learning rates as they were used, how the run ended and why, from metrics.jsonl and status.json.

    None where MODEL is no run folder or the run wrote neither.
    """
    if run is None or not (run / "metrics.jsonl").is_file():
        return None
    rates: list[tuple[int, float]] = []
    ended: str | None = None
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            event: Any = json.loads(line)
            if event["kind"] == "step":
                rates.append((int(event["step"]), float(event["lr"])))
            elif event["kind"] == "note" and "(train.patience)" in event["text"]:
                ended = "patience"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads((run / "status.json").read_text(encoding="utf-8"))["state"]
        ended = "stopped" if state == "stopped" else ended
    shown = np.unique(np.linspace(0, max(0, len(rates) - 1), POINTS).round().astype(np.int64))
    thinned = [rates[int(place)] for place in shown] if rates else []
    step, rate = [one[0] for one in thinned], [one[1] for one in thinned]
    return {"learning_rate": {"step": step, "value": rate}, "ended": ended}


def _number(cell: str | None) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return float(cell)  # pyright: ignore[reportArgumentType]
    return None


def report_files(folder: Path) -> list[Path]:
    """Return the files that `write_report` writes beside the relabel list, which gets a folder of its own."""
    return [folder / "index.html", folder / "report.json"]


def write_report(
    report: Report, subject: Subject, detections: Sequence[Detections], folder: Path, *, overwrite: bool = False
) -> None:
    """Write the page, the report as JSON and the relabel list into a folder.

    A relabel list that is there may hold corrections. It is replaced if `overwrite` says so and no file in it was
    changed, added or removed since it was written; else it stays, and the new one gets the next number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place, kept = _relabel_place(folder / "relabel", subject.data, overwrite=overwrite)
    written = renew_relabel(report["suspects"], subject.dataset, place)
    notes = [f"{name}/ may hold corrections, so it stays" for name in kept if overwrite]
    report["relabel"] = {"folder": place.name, **written._replace(notes=notes + written.notes)._asdict()}
    write_text_whole(folder / "report.json", json.dumps(report, ensure_ascii=False, separators=(",", ":")) + "\n")
    with _counted(subject, "images drawn") as progress:
        write_report_page(report, subject.dataset, detections, folder, progress=progress)


def _relabel_place(first: Path, data: Sequence[str], *, overwrite: bool) -> tuple[Path, list[str]]:
    """Return the folder of the relabel list, which may be there, and the names of earlier ones that stay."""
    kept: list[str] = []
    inputs = [Path(text).resolve() for text in data]
    while os.path.lexists(place := first if not kept else first.with_name(f"{first.name}-{len(kept) + 1}")):
        is_read = any(one.is_relative_to(place.resolve()) for one in inputs)
        if overwrite and not is_read and is_untouched(place):
            break
        kept.append(place.name)
    return place, kept


def calibrate(subject: Subject, detections: Sequence[Detections], checkpoint: Path, new: Path) -> Calibrated:
    """Write a calibrated copy of the model's checkpoint; errors are those of `write_calibrated`."""

    def again(detector: Detector) -> list[Detections]:
        if isinstance(subject.detector, Detector):
            detector.config = detector.config.updated({"post.flip": subject.detector.config.post.flip})
        return predict(replace(subject, detector=detector))

    device = getattr(subject.detector, "device", "cpu")
    return write_calibrated(checkpoint, new, subject.dataset, detections, again, device)
