"""Two detectors on the same images: whether one is worse, by how much, where, and whether chance explains it."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import csv
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.analysis.error_kinds import match
from multibox.analysis.image_scores import found_objects, tally_images
from multibox.builtin import find_model
from multibox.data.checking import Counting, check_images, silence
from multibox.data.choosing import check_renamed, in_use, merges_known
from multibox.data.formats import DataPaths, open_dataset
from multibox.data.formats.text import OnBad
from multibox.data.images import load_image
from multibox.data.left_out import counted
from multibox.errors import ConfigError, DataError
from multibox.evaluation.bootstrap import class_precisions, draw_images, interval_of, mean_of_rows
from multibox.evaluation.coco_metrics import coco_metrics
from multibox.evaluation.table import Columns, columns
from multibox.inference.detector import Detector, find_all
from multibox.inference.load import ExportedDetector, load
from multibox.structures import Dataset, Detections, Flags
from multibox.thresholds import class_thresholds

Floats = NDArray[np.float64]

MARGIN = 0.01
"""AP that B may lose; about what two runs with different seeds differ by."""
RESAMPLES = 1000
"""Of the images: a p-value of 0.05 is then known to about 0.007."""
SHOWN = 20
"""Images named, at most."""
TIMED = 20
"""Images that both predict in turn for the speed."""
FEW = 10
"""Images; of fewer, draws with replacement are too alike for intervals and p-values to be trusted."""
LEAST_STEPS = 100
"""Of training; after fewer, most learning rates have hardly warmed up."""
NOISE = 1e-9
"""Differences of AP below it are rounding."""


class Side(NamedTuple):
    """One detector with what it detected."""

    detector: Detector | ExportedDetector
    model: str
    """As the user named it."""
    detections: Sequence[Detections]
    """One per image."""


class _Found(NamedTuple):
    table: Columns
    objects: Flags
    """[M] which objects a reported detection matches."""
    per_image: NDArray[np.int64]
    """[I] objects that are found."""
    false: NDArray[np.int64]
    """[I] reported detections that match nothing."""


def compare(
    a: str | Path | Detector | ExportedDetector,
    b: str | Path | Detector | ExportedDetector,
    data: DataPaths,
    *,
    split: str | None = None,
    margin: float = MARGIN,
    bootstrap: int = RESAMPLES,
    speed: int = TIMED,
    rename: Mapping[str, str] | None = None,
    max_detections: int = 100,
    format: str | None = None,
    on_bad: OnBad = "stop",
    device: str = "auto",
    seed: int = 0,
    counting: Counting = silence,
) -> dict[str, Any]:
    """Compare detector B with detector A on a split, as `multibox compare --json` writes it; docs/compare.md explains.

    Classes are matched by name: objects and detections of a class that only one of the two knows are left out.

    Args:
        a: What was before: anything that `load` takes, or a detector.
        b: What is to be judged.
        data: A data set in any known format, or several. Classes that one of the runs joined are joined.
        split: The split; None takes the only one.
        margin: AP that B may lose before `["worse"]` is True.
        bootstrap: Resamples of the images, the same for both, for 95 % intervals and p-values; 0 leaves them out.
        speed: Images on which both are timed in turn; 0 leaves it out.
        rename: From the data set's class names to the detectors'; "" leaves a class out.
        max_detections: Detections kept per image, best first.
        format: The data set's format; None recognises it.
        on_bad: "stop" at a broken file, or "skip" it.
        device: Where models given by their paths compute.
        seed: Of the resamples.
        counting: Tells how far the predictions are.

    Raises:
        ConfigError: The detectors share no class, or `rename` leads to one that neither has.
        DataError: Data that cannot be read, or that has no object of the classes that both know.
        WeightsError: A model that cannot be opened.
    """
    one, other = (load(model, device=device) if isinstance(model, str | Path) else model for model in (a, b))
    dataset = _open_for_both(one, other, data, split, rename, format, on_bad)
    with counting("images predicted by A", len(dataset)) as progress:
        found = find_all(one, dataset, max_detections, progress)
    # Not looked at twice: on a GPU two looks may differ in the last digits
    again = found
    if not _same(a, b):
        with counting("images predicted by B", len(dataset)) as progress:
            again = find_all(other, dataset, max_detections, progress)
    named = [str(model) if isinstance(model, str | Path) else "" for model in (a, b)]
    sides = Side(one, named[0], found), Side(other, named[1], again)
    result = compare_sides(
        *sides, dataset, margin=margin, resamples=bootstrap, max_detections=max_detections, seed=seed
    )
    result["notes"] += _hardly_trained(named)
    result["data"] = [str(path) for path in (data if isinstance(data, list | tuple) else [data])]
    result["speed"] = time_in_turn(one, other, dataset, speed) if speed else None
    return result


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, str | Path) and isinstance(b, str | Path):
        return find_model(a).samefile(find_model(b))
    return a is b


def _hardly_trained(models: Sequence[str]) -> list[str]:
    """Return a note for each model whose run folder says that it took fewer than 100 steps."""
    notes: list[str] = []
    for letter, model in zip("AB", models, strict=True):
        place = find_model(model).parent if model else None
        steps = None if place is None else _steps_of(place / "metrics.csv")
        if steps is not None and steps < LEAST_STEPS:
            notes.append(
                f"{letter} has trained for {counted(steps, 'step', 'steps')} alone: this compares two states of "
                "training, and tells nothing about settings"
            )
    return notes


def _steps_of(metrics: Path) -> int | None:
    """Return the last step in a run's metrics.csv; None if it says none."""
    try:
        with metrics.open(encoding="utf-8", newline="") as file:
            return max(int(row["step"]) for row in csv.DictReader(file))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open_for_both(
    a: Detector | ExportedDetector, b: Detector | ExportedDetector, data: DataPaths, split: str | None,
    rename: Mapping[str, str] | None, format: str | None, on_bad: OnBad,
) -> Dataset:  # fmt: skip
    """Return a split with the classes that both know, in A's order; its notes name the others."""
    shared = [name for name in a.names if name in b.names]
    if not shared:
        raise ConfigError(
            f"A and B share no class name, so there is nothing to compare: A has {_some(a.names)}, B has "
            f"{_some(b.names)}"
        )
    check_renamed(rename, list(dict.fromkeys((*a.names, *b.names))))
    dataset = open_dataset(
        data, split, format=format, class_names=shared, on_bad=on_bad, rename=rename,
        merge=merges_known(dict.fromkeys((*a.merge, *b.merge)), shared), unknown="drop",
    )  # fmt: skip
    both = ("A", in_use(a.names)), ("B", in_use(b.names))
    only = [(letter, [name for name in names if name not in shared]) for letter, names in both]
    notes = [f"left out, as {letter} alone knows them: {_some(names)}" for letter, names in only if names]
    dataset = replace(dataset, notes=(*dataset.notes, *notes))
    return check_images(dataset, on_bad) if on_bad == "skip" else dataset


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def compare_sides(
    a: Side,
    b: Side,
    dataset: Dataset,
    *,
    margin: float = MARGIN,
    resamples: int = RESAMPLES,
    max_detections: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how B differs from A as plain data; docs/compare.md names every entry.

    Args:
        a: What was before.
        b: What is to be judged.
        dataset: The images; its classes are those that are compared.
        margin: AP that B may lose.
        resamples: Of the images, the same for both, for intervals and p-values; 0 leaves these out.
        max_detections: COCO's limit per image and class.
        seed: The same one draws the same images.

    Raises:
        DataError: There is no object of these classes.
        MissingExtraError: hotcoco is not installed.
    """
    names = dataset.class_names
    found = [_find(side, dataset, max_detections) for side in (a, b)]
    exact = [coco_metrics(one.table, max_detections=max_detections) for one in found]
    if exact[0]["AP"] is None:
        raise DataError(
            f"no image of split {dataset.split} has an object of the classes that both detectors know "
            f"({', '.join(names[:8])}), so there is nothing to compare"
        )
    drawn = _drawn([one.table for one in found], resamples, max_detections, seed)
    metrics = {name: _difference([one[name] for one in exact], drawn[name]) for name in ("AP", "AP50")}
    per_class = {
        name: {
            kind: _difference([one["per_class"][name][kind] for one in exact], drawn[f"{kind} {name}"])
            for kind in ("AP", "AP50")
        }
        for name in names
    }
    few = len(dataset) < FEW
    worse, certain, verdict = judge(metrics["AP"], margin, trusted=not few)
    notes = list(dataset.notes)
    if few and resamples:
        notes.append(
            f"{counted(len(dataset), 'image is', 'images are')} too few: intervals and p-values would be far too sure; "
            f"take {FEW} or more, better 50"
        )
    return {
        "a": _describe(a),
        "b": _describe(b),
        "split": dataset.split,
        "images": len(dataset),
        "objects": int(found[0].table.gt_scored.sum()),
        "classes": list(names),
        "margin": margin,
        "worse": worse,
        "certain": certain,
        "verdict": verdict,
        "metrics": metrics,
        "per_class": per_class,
        "detections": _count_found(found[0], found[1], names),
        "differing": _differing(found[0], found[1], dataset),
        "bootstrap": resamples,
        "notes": notes,
    }


def judge(
    difference: Mapping[str, float | None], margin: float, *, trusted: bool = True
) -> tuple[bool, bool | None, str]:
    """Return whether B fails, whether the interval agrees, and the verdict in a sentence.

    B fails if its AP on these images is below A's by more than `margin`. The interval does not decide: with few images
    it is so wide that it would fail every B or none. It says whether other images might decide otherwise; None without
    one.

    Args:
        difference: Of the AP, as in the result of `compare_sides`.
        margin: AP that B may lose.
        trusted: Whether there are enough images for the interval to say something.
    """
    loss = -float(difference["difference"] or 0.0)
    low, high = difference["low"], difference["high"]
    spread = "" if low is None or high is None else f" (95 % {_span(loss, -high, -low)})"
    fails = loss > margin + NOISE
    certain = None
    if trusted and low is not None and high is not None:
        certain = -high > margin if fails else -low <= margin + NOISE
    if abs(loss) <= NOISE:
        words = f"B and A have the same AP{spread}: within the margin of {margin:g}"
    elif loss > 0:
        what = "fails" if fails else "within"
        words = f"B is worse by {_digits(loss)} AP{spread}: {what} the margin of {margin:g}"
    else:
        spread = "" if low is None or high is None else f" (95 % {_span(loss, low, high)})"
        words = f"B is better by {_digits(-loss)} AP{spread}"
    if certain is False:
        words += "; the interval reaches to the other side of the margin, so other images might decide otherwise"
    elif certain and fails:
        words += "; the whole interval lies beyond it"
    return fails, certain, words


def _span(loss: float, low: float, high: float) -> str:
    digits = 3 if abs(loss) >= 0.001 or abs(loss) <= NOISE else 4
    # Adding 0 turns -0 into 0
    return f"{round(low, digits) + 0.0:.{digits}f} to {round(high, digits) + 0.0:.{digits}f}"


def _digits(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.4f}"


def _find(side: Side, dataset: Dataset, max_detections: int) -> _Found:
    table = columns(side.detections, dataset, dataset.class_names)
    own = dict(zip(side.detector.names, class_thresholds(side.detector.thresholds, side.detector.names), strict=True))
    # Scores are float32
    lowest = np.array([np.float32(own[name]) for name in dataset.class_names], np.float64)
    matches = match(table, max_detections)
    tally = tally_images(table, matches, lowest)
    return _Found(table, found_objects(table, matches, lowest), tally.found, tally.false)


def _drawn(tables: Sequence[Columns], resamples: int, max_detections: int, seed: int) -> dict[str, Floats]:
    """Return by metric the differences B - A of the resamples, [B]; both detectors see the same images of each."""
    weights = draw_images(tables[0].images, resamples, seed)
    a, b = (class_precisions(table, weights, max_detections=max_detections) for table in tables)

    def flat(precisions: Floats) -> Floats:
        return precisions.reshape(resamples, precisions.shape[1] * precisions.shape[2])

    drawn = {
        "AP": mean_of_rows(flat(b)) - mean_of_rows(flat(a)),
        "AP50": mean_of_rows(b[..., 0]) - mean_of_rows(a[..., 0]),
    }
    for label, name in enumerate(tables[0].class_names):
        drawn[f"AP {name}"] = b[:, label].mean(-1) - a[:, label].mean(-1)
        drawn[f"AP50 {name}"] = b[:, label, 0] - a[:, label, 0]
    return drawn


def _difference(values: Sequence[float | None], drawn: Floats) -> dict[str, float | None]:
    """Return a metric of both, B - A, its 95 % interval and a two-sided p-value."""
    a, b = values
    real = drawn[~np.isnan(drawn)]
    ends = interval_of(real)
    # The share of resamples on the far side of 0, twice; the one counted on top keeps it above 0 (Davison, Hinkley)
    rarer = min(int((real <= 0).sum()), int((real >= 0).sum()))
    return {
        "a": a,
        "b": b,
        "difference": None if a is None or b is None else b - a,
        "low": ends[0] if ends else None,
        "high": ends[1] if ends else None,
        "p": min(1.0, 2 * (rarer + 1) / (len(real) + 1)) if len(real) else None,
    }


def _count_found(a: _Found, b: _Found, names: Sequence[str]) -> dict[str, Any]:
    """Count the objects that both, one or none of the detectors found, and test the difference (McNemar, 1947)."""
    scored, labels = a.table.gt_scored, a.table.gt_labels

    def count(chosen: Flags) -> dict[str, Any]:
        only_a, only_b = int((a.objects & ~b.objects & chosen).sum()), int((b.objects & ~a.objects & chosen).sum())
        both = int((a.objects & b.objects & chosen).sum())
        return {
            "objects": int(chosen.sum()),
            "both": both,
            "only_a": only_a,
            "only_b": only_b,
            "neither": int(chosen.sum()) - both - only_a - only_b,
            "p": mcnemar(only_a, only_b),
        }

    return {
        **count(scored),
        "false_a": int(a.false.sum()),
        "false_b": int(b.false.sum()),
        "per_class": {name: count(scored & (labels == label)) for label, name in enumerate(names)},
    }


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p-value of McNemar's test: of the objects that one found, half would be each's."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _differing(a: _Found, b: _Found, dataset: Dataset) -> list[dict[str, Any]]:
    """Return the images in which most objects and false detections belong to one of the two, the most first."""
    image, objects = a.table.gt_image, np.diff(dataset.starts)
    only = [np.bincount(image[one.objects & ~other.objects], minlength=len(dataset)) for one, other in ((a, b), (b, a))]
    unlike = only[0] + only[1] + np.abs(a.false - b.false)
    order = np.argsort(-unlike, kind="stable")[:SHOWN]
    return [
        {
            "file": dataset.image_names[row],
            "path": str(dataset.paths[row]),
            "objects": int(objects[row]),
            "found_a": int(a.per_image[row]),
            "found_b": int(b.per_image[row]),
            "only_a": int(only[0][row]),
            "only_b": int(only[1][row]),
            "false_a": int(a.false[row]),
            "false_b": int(b.false[row]),
        }
        for row in order[unlike[order] > 0].tolist()
    ]


def _describe(side: Side) -> dict[str, Any]:
    return {"model": side.model, "engine": engine_name(side.detector), "classes": list(side.detector.names)}


def engine_name(detector: Detector | ExportedDetector) -> str:
    """Return what computes, such as "OpenVINO" or "PyTorch, float32 on cpu"."""
    if isinstance(detector, ExportedDetector):
        return detector.engine.name
    return f"PyTorch, {detector.precision} on {detector.device}"


def time_in_turn(
    a: Detector | ExportedDetector, b: Detector | ExportedDetector, dataset: Dataset, most: int = TIMED
) -> dict[str, Any]:
    """Return the median milliseconds of both per image, decoded before; they take turns on up to `most` images."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(np.int64)).tolist()
    spent: tuple[list[float], list[float]] = ([], [])
    for turn, row in enumerate((rows[0], *rows)):
        for detector, times in zip((a, b), spent, strict=True):
            pixels = np.asarray(load_image(dataset[row], detector.background))
            # The other one has filled the caches, so the first run does not count
            detector.predict(pixels)
            started = time.perf_counter()
            detector.predict(pixels)
            if turn:
                times.append(1000 * (time.perf_counter() - started))
    medians = [statistics.median(times) for times in spent]
    return {
        "images": len(rows),
        "a_ms": medians[0],
        "b_ms": medians[1],
        "ratio": medians[1] / medians[0],
        "a_engine": engine_name(a),
        "b_engine": engine_name(b),
    }
