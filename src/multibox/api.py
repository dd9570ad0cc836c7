"""The verbs as functions: what `import multibox` offers beside `load`, and what the command line calls."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multibox.data.checking import check_pictures
from multibox.data.formats import open_dataset
from multibox.data.formats.common import OnBad
from multibox.evaluation.report import Figures
from multibox.evaluation.report import evaluate as measure
from multibox.inference.datasets import find_all
from multibox.inference.detector import Detector, load
from multibox.inference.exported import ExportedDetector
from multibox.models.build import build_model
from multibox.models.weights import choose_network, load_weights
from multibox.presets import resolve
from multibox.structures import Dataset
from multibox.training.run import RunOptions, prepare


def create(
    preset: str, names: list[str], *, recipe: str = "default", weights: str | Path | None = None, seed: int = 0
) -> Detector:
    """Return a detector with fresh weights, or started from the file `weights`.

    Args:
        preset: such as "tinyssd"; `multibox list presets` shows all.
        names: class names, without background.
        recipe: settles input normalisation and anchors.
        weights: a detector (class rows that both know are kept by name) or the weights of a body to start from.
        seed: the same seed gives the same weights.

    Raises:
        ConfigError: an unknown preset or recipe.
        WeightsError: weights that do not fit.
    """
    path = Path(weights) if weights is not None else None
    _, network = choose_network(path, preset, recipe)
    config = resolve(preset, recipe, {"anchors.fit": 0} | network)
    model = build_model(config, len(names), seed)
    if path is not None:
        load_weights(model, path, tuple(names))
    return Detector(model, config, tuple(names))


def train(data: str | Path, *, preset: str | None = None, recipe: str | None = None, **options: Any) -> Detector:
    """Train a detector and return it with its best weights; the run folder is `out`, or below `runs/`.

    Args:
        data: a data set in any known format.
        preset: the network; None takes that of the weights, or TinySSD.
        recipe: how to train it; None takes `default`, and the run's own where one is resumed.
        options: `epochs`, `out`, `weights`, `train_split`, `val_split`, `on_bad`, `device`, `resume`, and `changes`
            (a dict of dotted settings), as `multibox train` has them.

    Raises:
        ConfigError: an unknown name or setting.
        DataError: data that cannot be read.
    """
    for name in ("out", "weights"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    trainer = prepare(Path(data), RunOptions(preset=preset, recipe=recipe, **options))
    trainer.fit()
    return load(trainer.folder)


def evaluate(
    detector: Detector | ExportedDetector,
    data: str | Path,
    *,
    split: str | None = None,
    rename: Mapping[str, str] | None = None,
    max_detections: int = 100,
    format: str | None = None,
    on_bad: OnBad = "stop",
    bootstrap: int = 0,
) -> Figures:
    """Score a detector on a split: VOC 2007, VOC 2012 and COCO figures, also per class; what `eval --json` writes.

    Args:
        detector: the detector.
        data: a data set in any known format; its classes are matched to the detector's by name. Objects of other
            classes are left out and counted in the notes of `open_for`'s data set.
        split: which split; None takes the only one.
        rename: the data set's class names to the detector's; "" leaves a class out.
        max_detections: detections kept per picture, best first.
        format: the data set's format, where it cannot be told.
        on_bad: "stop" at a broken file, or "skip" it.
        bootstrap: resamples of the pictures for 95 % intervals; 0 leaves them out.

    Raises:
        DataError: data that cannot be read, or that shares no class with the detector.
    """
    dataset = open_for(detector, data, split=split, rename=rename, format=format, on_bad=on_bad)
    found = find_all(detector, dataset, max_detections)
    return measure(found, dataset, detector.names, max_detections=max_detections, bootstrap=bootstrap)


def open_for(
    detector: Detector | ExportedDetector,
    data: str | Path,
    *,
    split: str | None = None,
    rename: Mapping[str, str] | None = None,
    format: str | None = None,
    on_bad: OnBad = "stop",
) -> Dataset:
    """Return a split with its classes in the detector's order; the arguments are those of `evaluate`.

    Its notes say which classes are scored and which objects were left out.
    """
    dataset = open_dataset(
        data, split, format=format, class_names=detector.names, on_bad=on_bad, rename=rename, unknown="drop"
    )
    dataset = dataclasses.replace(dataset, notes=(*dataset.notes, *_scored_classes(dataset)))
    # To stop at a bad picture, meeting it is soon enough
    return check_pictures(dataset, on_bad) if on_bad == "skip" else dataset


def _scored_classes(dataset: Dataset) -> tuple[str, ...]:
    """Return a note about the detector's classes of which the data has no object, if there are any."""
    there = [dataset.class_names[label] for label in np.unique(dataset.labels)]
    missing = len(dataset.class_names) - len(there)
    if not missing:
        return ()
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    return (f"scored on {len(there)} of the detector's {len(dataset.class_names)} classes: {shown or 'none'}; the "
            f"data has no object of the other {missing}",)  # fmt: skip


def export(detector: Detector, out: str | Path, **options: Any) -> dict[str, Any]:
    """Write a detector as one file that runs without PyTorch, and return the report of its verification.

    Args:
        detector: the detector.
        out: a name that ends in .onnx, or in .xml for OpenVINO.
        options: `dialect`, `half`, `int8`, `calibrate`, `data`, `split`, `opset`, `license`, `source`, as
            `multibox.exporting.ExportOptions` has them.

    Raises:
        MissingExtraError: the packages of the extra `export` are not installed.
        VerificationError: the file would compute something else; nothing is written.
    """
    from multibox.exporting import ExportOptions
    from multibox.exporting import export as write

    for name in ("calibrate", "data"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    return write(detector, Path(out), ExportOptions(**options))
