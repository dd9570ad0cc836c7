"""The verbs as functions: what `import multibox` offers beside `load`, and what the command line calls."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multibox.data.checking import check_pictures
from multibox.data.formats import open_dataset
from multibox.data.formats.common import OnBad
from multibox.errors import ConfigError
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
    """Return a detector with fresh weights, or started from `weights`.

    Args:
        preset: such as "tinyssd"; `multibox list presets` shows all.
        names: class names, without background.
        recipe: settles input normalisation and anchors.
        weights: a built-in model's name, a detector (class rows that both know are kept by name) or the weights of a
            backbone to start from; None or "none" starts from nothing.
        seed: the same seed gives the same weights.

    Raises:
        ConfigError: an unknown preset or recipe.
        WeightsError: weights that do not fit.
    """
    _, network = choose_network(weights, preset, recipe)
    config = resolve(preset, recipe, {"anchors.fit": 0} | network)
    model = build_model(config, len(names), seed)
    if weights is not None:
        load_weights(model, weights, tuple(names))
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
        data: a data set in any known format; its classes are matched to the detector's by name.
        split: which split; None takes the only one.
        rename: the data set's class names to the detector's.
        max_detections: detections kept per picture, best first.
        format: the data set's format, where it cannot be told.
        on_bad: "stop" at a broken file, or "skip" it.
        bootstrap: resamples of the pictures for 95 % intervals; 0 leaves them out.

    Raises:
        DataError: data that cannot be read, or a class the detector does not know.
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
    """Return a split with its classes in the detector's order; the arguments are those of `evaluate`."""
    dataset = open_dataset(data, split, format=format, class_names=detector.names, on_bad=on_bad, rename=rename)
    # To stop at a bad picture, meeting it is soon enough
    return check_pictures(dataset, on_bad) if on_bad == "skip" else dataset


def export(detector: Detector | ExportedDetector, out: str | Path, **options: Any) -> dict[str, Any]:
    """Write a detector as one file that runs without PyTorch, and return the report of its verification.

    Args:
        detector: the detector; of those that run without PyTorch, only a built-in model.
        out: a name that ends in .onnx, or in .xml for OpenVINO.
        options: `dialect`, `half`, `int8`, `calibrate`, `data`, `split`, `license`, `source`, as
            `multibox.exporting.ExportOptions` has them.

    Raises:
        ConfigError: options that do not go together, or a detector from an exported file.
        MissingExtraError: the packages of the extra `export` are not installed.
        VerificationError: the file would compute something else; nothing is written.
    """
    from multibox.exporting import ExportOptions
    from multibox.exporting import export as write

    for name in ("calibrate", "data"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    if isinstance(detector, ExportedDetector):
        options = {name: detector.about[name] for name in ("license", "source")} | options
        detector = _in_torch(detector)
    return write(detector, Path(out), ExportOptions(**options))


def _in_torch(detector: ExportedDetector) -> Detector:
    """Return a built-in model's detector in PyTorch."""
    name = detector.about.get("builtin")
    if name is None:
        raise ConfigError("this detector comes from an exported file: export the checkpoint behind that file instead")
    return load(name)
