"""The verbs as functions: what `import multibox` offers beside `load`, and what the command line calls."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from multibox.builtin import NO_WEIGHTS
from multibox.data.checking import check_images
from multibox.data.formats import open_dataset
from multibox.data.formats.text import OnBad
from multibox.errors import ConfigError
from multibox.evaluation.report import Metrics
from multibox.evaluation.report import evaluate as measure
from multibox.inference.detector import Detector, find_all, load
from multibox.inference.load import ExportedDetector
from multibox.models.build import build_model
from multibox.models.weights import choose_network, load_weights
from multibox.presets import resolve
from multibox.structures import Dataset, checked_class_names
from multibox.training.run import RunOptions, prepare

if TYPE_CHECKING:
    from multibox.exporting.graph import Dialect


def create(
    preset: str,
    names: Sequence[str],
    *,
    recipe: str = "default",
    weights: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Detector:
    """Return a detector with fresh weights, or started from `weights`.

    Args:
        preset: such as "tinyssd"; `multibox list presets` shows all.
        names: class names, each once, without background.
        recipe: settles input normalisation and anchors.
        weights: a built-in model's name, a detector (class rows that both know are kept by name) or the weights of a
            backbone to start from; None or "none" starts from nothing.
        seed: the same seed gives the same weights.
        device: "cpu", "cuda" or "mps"; "auto" takes CUDA where it is present, else the CPU.

    Raises:
        ConfigError: an unknown preset or recipe, class names that are none, or a device that this machine lacks.
        WeightsError: weights that do not fit.
    """
    classes = checked_class_names(names)
    _, network = choose_network(weights, preset, recipe)
    config = resolve(preset, recipe, {"anchors.fit": "none"} | network)
    # Weights made within `torch.inference_mode` could not be trained
    with torch.inference_mode(False):
        model = build_model(config, len(classes), seed)
        if weights not in (None, NO_WEIGHTS):
            load_weights(model, weights, classes)
        return Detector(model, config, classes, device)


def train(
    data: str | Path | None = None,
    *,
    preset: str | None = None,
    recipe: str | None = None,
    minutes: float | None = None,
    epochs: int | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    train_split: str | None = None,
    val_split: str | None = None,
    format: str | None = None,
    on_bad: OnBad | None = None,
    config: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
    device: str = "auto",
) -> Detector:
    """Train a detector and return it with its best weights; prints a line now and then.

    Args:
        data: A data set in any known format; with `resume`, where the same data lies now.
        preset: The network; None takes the weights' own, or multibox-fine.
        recipe: How to train it; None takes `default`.
        minutes: Train for so many minutes, start-up and validation included.
        epochs: Passes over the images instead of minutes.
        weights: What to start from: "coco", "none", a detector's file or run folder, or a backbone's weights. None
            leaves it to the preset.
        out: The run folder; None takes the next free runs/PRESET-N.
        train_split: Split to learn from; None takes `train`.
        val_split: Split to validate on; None takes `val` or holds out a tenth of the training images, "none" does
            without.
        format: The data set's format, where it cannot be told.
        on_bad: "stop" at a broken file (the default), or "skip" it and count.
        config: A TOML file with settings.
        changes: Settings by dotted key, such as {"train.lr": 0.001}; they go above `config`.
        resume: A run folder to go on with; it needs nothing else, and `minutes` or `epochs` prolong it.
        device: "cpu", "cuda" or "auto".

    Raises:
        ConfigError: An unknown name, a setting out of range, or settings that exclude each other.
        DataError: Data that cannot be read.
        WeightsError: Weights that do not fit.
    """
    options = RunOptions(
        preset=preset,
        recipe=recipe,
        minutes=minutes,
        epochs=epochs,
        weights=None if weights is None else str(weights),
        out=None if out is None else Path(out),
        train_split=train_split,
        val_split=val_split,
        format=format,
        on_bad=on_bad,
        config=None if config is None else Path(config),
        changes=dict(changes or {}),
        resume=None if resume is None else Path(resume),
        device=device,
    )
    trainer = prepare(None if data is None else Path(data), options)
    trainer.fit()
    return load(trainer.folder, device=trainer.device)


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
) -> Metrics:
    """Score a detector on a split: VOC 2007, VOC 2012 and COCO figures, also per class; what `eval --json` writes.

    Args:
        detector: the detector.
        data: a data set in any known format; its classes are matched to the detector's by name. Objects of other
            classes are left out and counted in the notes of `open_for`'s data set.
        split: which split; None takes the only one.
        rename: the data set's class names to the detector's; "" leaves a class out.
        max_detections: detections kept per image, best first.
        format: the data set's format, where it cannot be told.
        on_bad: "stop" at a broken file, or "skip" it.
        bootstrap: resamples of the images for 95 % intervals; 0 leaves them out.

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
    # To stop at a bad image, meeting it is soon enough
    return check_images(dataset, on_bad) if on_bad == "skip" else dataset


def _scored_classes(dataset: Dataset) -> tuple[str, ...]:
    """Return a note about the detector's classes of which the data has no object, if there are any."""
    there = [dataset.class_names[label] for label in np.unique(dataset.labels)]
    missing = len(dataset.class_names) - len(there)
    if not missing:
        return ()
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    return (f"scored on {len(there)} of the detector's {len(dataset.class_names)} classes: {shown or 'none'}; the "
            f"data has no object of the other {missing}",)  # fmt: skip


def export(
    detector: Detector | ExportedDetector,
    out: str | Path,
    *,
    dialect: "Dialect" = "plain",
    half: bool = False,
    int8: bool = False,
    calibrate: str | Path | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    license: str = "",
    source: str = "",
    opset: int | None = None,
) -> dict[str, Any]:
    """Write a detector as one file that runs without PyTorch, and return the report of its verification.

    Args:
        detector: the detector; of those that run without PyTorch, only a built-in model.
        out: a name that ends in .onnx, or in .xml for OpenVINO.
        dialect: "plain"; "raw" for logits and offsets instead of boxes; "ultralytics" or "jetson" for other software.
        half: weights as float16; OpenVINO only.
        int8: the network in INT8, calibrated on `calibrate`; OpenVINO only.
        calibrate: a data set or folder of images like those that the detector will see.
        data: a data set or folder of images to verify on; None takes synthetic ones.
        split: which split of `data`.
        license: of the weights; kept in the metadata, as is the source.
        source: of the weights.
        opset: version of the ONNX operators; None takes an old one that most runtimes read.

    Raises:
        MissingExtraError: the packages of the extra `export` are not installed.
        ConfigError: arguments that do not go together, or a detector from an exported file.
        DataError: images that cannot be read.
        VerificationError: the file would compute something else; nothing is written.
    """
    from multibox.exporting import ExportOptions
    from multibox.exporting import export as write

    if isinstance(detector, ExportedDetector):
        license, source = license or detector.about["license"], source or detector.about["source"]
        detector = _in_torch(detector)
    options = ExportOptions(
        dialect=dialect,
        half=half,
        int8=int8,
        calibrate=None if calibrate is None else Path(calibrate),
        data=None if data is None else Path(data),
        split=split,
        license=license,
        source=source,
        opset=opset,
    )
    return write(detector, Path(out), options)


def _in_torch(detector: ExportedDetector) -> Detector:
    """Return a built-in model's detector in PyTorch."""
    name = detector.about.get("builtin")
    if name is None:
        raise ConfigError("this detector comes from an exported file: export the checkpoint behind that file instead")
    return load(name)
