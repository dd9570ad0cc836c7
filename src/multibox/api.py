"""The verbs as functions: what `import multibox` offers beside `load`."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from multibox.analysis.anchor_search import examine_anchors
from multibox.builtin import NO_WEIGHTS, find_model
from multibox.data.checking import Counting, check_images, silence
from multibox.data.choosing import check_renamed, in_use, merges_known
from multibox.data.formats import DataPaths, open_dataset
from multibox.data.formats.text import OnBad
from multibox.data.left_out import kept_difficult
from multibox.errors import ConfigError
from multibox.evaluation.report import Metrics
from multibox.evaluation.report import evaluate as measure
from multibox.files import check_outputs
from multibox.inference.detector import Detector, find_all, open_checkpoint
from multibox.inference.engines import SUFFIXES
from multibox.inference.load import ExportedDetector, load
from multibox.models.build import build_model
from multibox.models.weights import choose_network, load_weights
from multibox.presets import resolve
from multibox.structures import Dataset, checked_class_names
from multibox.training.run import RunOptions, prepare, resolve_options, training_images
from multibox.training.step import compute_loss

if TYPE_CHECKING:
    from multibox.exporting.graph import Dialect

WORST = 8
"""Images that `inspect_matches` shows unless told otherwise."""


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
        preset: Such as "tinyssd"; `multibox list presets` shows all.
        names: Class names, each once, without background.
        recipe: Sets input normalisation and anchors.
        weights: A built-in model's name, a detector (rows of classes that both know are kept by name) or the weights of
            a backbone to start from; None or "none" starts from nothing.
        seed: The same seed gives the same weights.
        device: "cpu", "cuda" or "mps"; "auto" takes CUDA if there is one, else the CPU.

    Raises:
        ConfigError: An unknown preset or recipe, unusable class names, or a device that this machine lacks.
        WeightsError: Weights that do not fit.
    """
    class_names = checked_class_names(names)
    _, network = choose_network(weights, preset, recipe)
    config = resolve(preset, recipe, {"anchors.fit": "none"} | network)
    # Weights made within `torch.inference_mode` could not be trained
    with torch.inference_mode(False):
        model = build_model(config, len(class_names), seed)
        if weights not in (None, NO_WEIGHTS):
            load_weights(model, weights, class_names)
        return Detector(model, config, class_names, device)


def train(
    data: str | Path | Sequence[str | Path] | None = None,
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
    on_nan: OnBad | None = None,
    classes: Sequence[str] | None = None,
    merge: Mapping[str, Sequence[str]] | None = None,
    background: str | None = None,
    cache_gb: float | None = None,
    cache_dir: str | Path | None = None,
    config: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
    device: str = "auto",
) -> Detector:
    """Train a detector and return it with its best weights; prints a line now and then.

    Args:
        data: A data set in any known format, or several, which are joined by class name; with `resume`, where the same
            data lies now.
        preset: The network; None takes the weights' own, or multibox-fine.
        recipe: How to train it; None takes `default`.
        minutes: Length of the run in minutes, start-up and validation included.
        epochs: Passes over the images instead of minutes.
        weights: What to start from: "coco", "none", a detector's file or run folder, or a backbone's weights. None
            leaves it to the preset.
        out: The run folder; None takes the next free runs/PRESET-N.
        train_split: Split to learn from; None takes `train`.
        val_split: Split to validate on; None takes `val` or holds out a tenth of the training images, "none" does not
            validate.
        format: The data set's format; None recognises it.
        on_bad: "stop" at a broken file (the default), or "skip" it and count.
        on_nan: "stop" at a loss or gradient that is not finite (the default), or "skip" its batch, 10 times at most.
        classes: The classes to learn, by name after merging; None takes all.
        merge: New class names with the classes that each joins, such as {"car": ["truck", "bus"]}.
        background: Colour that shows through transparent pixels, such as "white" (the default), "#808080" or
            "128,128,128"; prediction uses it, too.
        cache_gb: Most GB of decoded images that are kept; None is half of the free memory, or of the free disk of
            `cache_dir`.
        cache_dir: Folder in which decoded images are kept for later runs; None keeps them in memory, for this run.
        config: A TOML file with settings.
        changes: Settings by dotted key, such as {"train.lr": 0.001}; they override `config`.
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
        out=_path(out),
        train_split=train_split,
        val_split=val_split,
        format=format,
        on_bad=on_bad,
        on_nan=on_nan,
        classes=None if classes is None else tuple(classes),
        merge=None if merge is None else tuple(f"{new}={','.join(old)}" for new, old in merge.items()),
        background=background,
        cache_gb=cache_gb,
        cache_dir=_path(cache_dir),
        config=_path(config),
        changes=dict(changes or {}),
        resume=_path(resume),
        device=device,
    )
    several = None if data is None else [data] if isinstance(data, str | Path) else data
    trainer = prepare(None if several is None else [Path(one) for one in several], options)
    trainer.fit()
    return open_checkpoint(trainer.folder, device=trainer.device)


def evaluate(
    detector: Detector | ExportedDetector,
    data: DataPaths,
    *,
    split: str | None = None,
    rename: Mapping[str, str] | None = None,
    max_detections: int = 100,
    format: str | None = None,
    on_bad: OnBad = "stop",
    bootstrap: int = 0,
) -> Metrics:
    """Score a detector on a split: VOC 2007, VOC 2012 and COCO metrics, also per class, as `eval --json` writes them.

    Args:
        detector: The detector.
        data: A data set in any known format, or several. Classes that the detector's run joined are joined; then they
            are matched to the detector's by name, and objects of other classes are left out; the notes of `open_for`'s
            data set count them.
        split: The split; None takes the only one.
        rename: From the data set's class names to the detector's; "" leaves a class out.
        max_detections: Detections kept per image, best first.
        format: The data set's format; None recognises it.
        on_bad: "stop" at a broken file, or "skip" it.
        bootstrap: Resamples of the images for 95 % intervals; 0 leaves them out.

    Raises:
        ConfigError: `rename` leads to a class that the detector does not have.
        DataError: Data that cannot be read, or that shares no class with the detector.
    """
    dataset = open_for(detector, data, split=split, rename=rename, format=format, on_bad=on_bad)
    detections = find_all(detector, dataset, max_detections)
    return measure(detections, dataset, detector.names, max_detections=max_detections, bootstrap=bootstrap)


def open_for(
    detector: Detector | ExportedDetector,
    data: DataPaths,
    *,
    split: str | None = None,
    rename: Mapping[str, str] | None = None,
    format: str | None = None,
    on_bad: OnBad = "stop",
) -> Dataset:
    """Return a split with its classes in the detector's order; the arguments are those of `evaluate`.

    Its notes name the classes that are scored and count the objects that were left out.

    Raises:
        ConfigError: `rename` leads to a class that the detector does not have.
        DataError: Data that cannot be read, or that shares no class with the detector.
    """
    check_renamed(rename, detector.names)
    dataset = open_dataset(
        data, split, format=format, class_names=detector.names, on_bad=on_bad, rename=rename,
        merge=merges_known(detector.merge, detector.names), unknown="drop",
    )  # fmt: skip
    dataset = dataclasses.replace(dataset, notes=(*dataset.notes, *_scored_classes(dataset)))
    # With "stop" the first use of a broken image raises early enough
    return check_images(dataset, on_bad) if on_bad == "skip" else dataset


def _scored_classes(dataset: Dataset) -> tuple[str, ...]:
    """Return a note if the data has no object of some of the detector's classes."""
    present = set[int](dataset.labels.tolist())
    there = [name for label, name in enumerate(dataset.class_names) if label in present]
    known = in_use(dataset.class_names)
    missing = len(set(known) - set(there))
    if not missing:
        return ()
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    return (f"scored on {len(there)} of the detector's {len(known)} classes: {shown or 'none'}; the "
            f"data has no object of the other {missing}",)  # fmt: skip


def make_report(
    model: str | Path | Detector | ExportedDetector,
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    split: str | None = None,
    rename: Mapping[str, str] | None = None,
    max_detections: int = 100,
    format: str | None = None,
    on_bad: OnBad = "stop",
    device: str = "auto",
    bootstrap: int = 300,
    temperature: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Return all that a detector does well and badly on a split, as docs/report.md describes it.

    Args:
        model: What `load` takes, or a detector. Training curves are those of a run folder.
        data: A data set in any known format, or several; classes are treated as `evaluate` treats them.
        out: A folder for the page (`index.html`), `report.json` and the relabel lists; None writes nothing.
        split: The split; None takes the only one.
        rename: From the data set's class names to the detector's; "" leaves a class out.
        max_detections: Detections kept per image, best first.
        format: The data set's format; None recognises it.
        on_bad: "stop" at a broken file, or "skip" it.
        device: Where a model that is given by its path computes.
        bootstrap: Resamples of the images for 95 % intervals; 0 leaves them out.
        temperature: A .safetensors file to write: a copy of the model, given by its path, with calibrated scores.
        overwrite: Replace the files of an earlier report in `out`, and `temperature`.

    Raises:
        DataError: Data that cannot be read, or that shares no class with the detector.
        WeightsError: A model that cannot be opened.
        ConfigError: `out` holds a report already, or `temperature` exists.
    """
    from multibox.analysis.temperature import check_calibrated
    from multibox.pages.report_data import Subject, calibrate, make_report_data, predict, report_files, write_report

    paths = [Path(one) for one in ([data] if isinstance(data, str | Path) else data)]
    how = "overwrite=True"
    named = model if isinstance(model, str | Path) else None
    files = [] if out is None else report_files(Path(out))
    files += [] if temperature is None else [Path(temperature)]
    inputs = [*paths, *([Path(named)] if named is not None else [])]
    check_outputs(files, overwrite=overwrite, inputs=inputs, how=how)
    if temperature is not None and named is None:
        raise ConfigError("a calibrated copy needs the model's file; give its path instead of a detector")
    checkpoint = None if temperature is None or named is None else check_calibrated(named, Path(temperature))
    detector = load(model, device=device) if isinstance(model, str | Path) else model
    dataset = open_for(detector, paths, split=split, rename=rename, format=format, on_bad=on_bad)
    subject = Subject(
        detector, dataset, str(named or ""), [str(one) for one in paths], format, max_detections, bootstrap,
        command="multibox.make_report",
    )  # fmt: skip
    detections = predict(subject)
    report = make_report_data(subject, detections)
    if out is not None:
        write_report(report, subject, detections, Path(out), overwrite=overwrite)
    if checkpoint is not None:
        calibrate(subject, detections, checkpoint, Path(str(temperature)))
    return report


def coverage(
    data: DataPaths,
    preset: str | None = None,
    *,
    split: str | None = None,
    format: str | None = None,
    on_bad: OnBad = "stop",
    classes: Sequence[str] = (),
    merge: Mapping[str, Sequence[str]] | None = None,
    config: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    fit: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how well a preset's anchors cover the boxes of a data set, as `multibox anchors --json` writes it.

    Args:
        data: A data set in any known format, or several.
        preset: The network; None takes multibox-fine.
        split: The split; None takes `train`, or the only one.
        format: The data set's format; None recognises it.
        on_bad: "stop" at a broken file, or "skip" it.
        classes: The classes to look at, by name after merging; none takes all.
        merge: New class names with the classes that each joins, as in `train`.
        config: A TOML file with settings, such as one that `multibox anchors --fit` wrote.
        changes: Settings by dotted key, such as {"model.input_size": (256, 448)}.
        fit: Look for better anchors, too; takes seconds. `["fit"]["shapes"]` are those of `anchors.shapes`.
        seed: Of that search.

    Raises:
        ConfigError: An unknown preset, class or setting.
        DataError: Data that cannot be read, or that has no box.
    """
    options = RunOptions(preset=preset, config=_path(config), changes=dict(changes or {}))
    settings, _ = resolve_options(None, options)
    rules = [f"{new}={','.join(old)}" for new, old in (merge or {}).items()]
    return examine_anchors(
        data, settings, split=split, format=format, on_bad=on_bad, classes=classes, merge=rules, fit=fit, seed=seed
    ).report


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
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a detector as one file that runs without PyTorch, and return the report of its verification.

    Args:
        detector: The detector; of those that run without PyTorch, only a built-in model.
        out: A name that ends in .onnx, or in .xml for OpenVINO.
        dialect: "plain"; "raw" for logits and offsets instead of boxes; "ultralytics" or "jetson" for other software.
        half: Weights as float16; OpenVINO only.
        int8: The network in INT8, calibrated on `calibrate`; OpenVINO only.
        calibrate: A data set or folder of images like those that the detector will see.
        data: A data set or folder of images to verify on; None takes synthetic ones.
        split: The split of `data`.
        license: Licence of the weights; kept in the metadata.
        source: Source of the weights; kept in the metadata.
        opset: Version of the ONNX operators; None takes an old one that most runtimes read.
        overwrite: Replace `out` if it exists.

    Raises:
        MissingExtraError: The packages of the extra `export` are not installed.
        ConfigError: Arguments that exclude each other, a detector from an exported file, or `out` exists.
        DataError: Images that cannot be read.
        VerificationError: The file would give other detections; nothing is written.
    """
    from multibox.exporting import ExportOptions
    from multibox.exporting import export as write

    out = Path(out)
    files = [out, out.with_suffix(".bin")] if out.suffix == ".xml" else [out]
    inputs = [path for path in (data, calibrate) if path is not None]
    check_outputs(files, overwrite=overwrite, inputs=inputs, how="overwrite=True")
    if isinstance(detector, ExportedDetector):
        name = detector.about.get("builtin")
        if name is None:
            raise ConfigError(
                "this detector comes from an exported file: export the checkpoint behind that file instead"
            )
        license, source = license or detector.about["license"], source or detector.about["source"]
        detector = open_checkpoint(name)
    options = ExportOptions(
        dialect=dialect,
        half=half,
        int8=int8,
        calibrate=_path(calibrate),
        data=_path(data),
        split=split,
        license=license,
        source=source,
        opset=opset,
    )
    return write(detector, out, options)


def inspect_matches(
    model: Detector | ExportedDetector | str | Path,
    data: DataPaths,
    *,
    images: Sequence[str] | None = None,
    worst: int | None = None,
    split: str | None = None,
    threshold: float | None = None,
    rename: Mapping[str, str] | None = None,
    format: str | None = None,
    on_bad: OnBad = "stop",
    explain: bool = False,
    training: str | Path | Sequence[str | Path] | None = None,
    device: str = "auto",
    counting: Counting = silence,
) -> list[dict[str, Any]]:
    """Return what matching, mining, losses and suppression made of images, and why objects were missed: plain data.

    docs/inspect.md describes the dicts, one per image. Losses, matches and mined negatives are those of the training
    step on the image as it is; detections are those of `predict`.

    Args:
        model: A detector, or the path or built-in name of one; a checkpoint or run folder, not an exported file.
        data: A data set in any known format, or several.
        images: Names of images: whole, or the end of a path that only one image has.
        worst: So many images with the most missed objects, false detections and loss, added up; they follow `images`.
            Without either, the 8 worst.
        split: The split; None takes the only one.
        threshold: Lowest score that counts as a detection; None takes the model's of each class.
        rename: As for `evaluate`, as are the next two.
        format: The data set's format; None recognises it.
        on_bad: "stop" at a broken file, or "skip" it.
        explain: Explain up to 6 detections of each image, about a second each: what the network looked at, and the
            nearest objects that it learnt from.
        training: The data that it learnt from, for `explain`; None takes that of a run folder, if it still lies there.
        device: Where a model given by name computes.
        counting: Tells how far it is.

    Raises:
        ConfigError: An exported file, which holds no logits, or a number out of range.
        DataError: Data that cannot be read, or an image that it does not have.
    """
    from multibox.analysis.explanation import Explainer
    from multibox.analysis.inspection import Inspector, find_images

    if worst is not None and worst < 1:
        raise ConfigError(f"worst={worst}: expected a number of images of at least 1")
    detector = _with_logits(model, device)
    dataset = open_for(detector, data, split=split, rename=rename, format=format, on_bad=on_bad)
    learnt = ~dataset.crowd
    if detector.config.train.difficult == "drop":
        learnt &= kept_difficult(dataset)
    compute = partial(compute_loss, config=detector.config)
    inspector = Inspector(detector, dataset, learnt, compute, threshold)
    chosen = find_images(dataset, images or ())
    if worst is not None or not images:
        ranked = inspector.worst(WORST if worst is None else worst, counting)
        chosen += [index for index in ranked if index not in chosen]
    named = model if isinstance(model, str | Path) else None
    explainer = Explainer(detector, training_images(named, training), counting) if explain else None
    described: list[dict[str, Any]] = []
    for seen, one in inspector.describe(chosen, counting):
        described.append(one | ({"explanations": explainer.explain(seen, one)} if explainer else {}))
    return described


def _with_logits(model: Detector | ExportedDetector | str | Path, device: str) -> Detector:
    """Return a detector in PyTorch, as `load` opens it.

    Raises:
        ConfigError: It is an exported file.
    """
    if isinstance(model, Detector):
        return model
    if isinstance(model, ExportedDetector):
        name = model.about.get("builtin")
        file = Path(name or "the detector")
    else:
        name, file = model, find_model(model)
    if name is None or file.suffix in SUFFIXES:
        raise ConfigError(
            f"{file} is an exported file, which holds no logits, so nothing can be matched or explained; give the "
            "checkpoint or run folder that it was exported from"
        )
    return open_checkpoint(name, device=device).quicken()


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
