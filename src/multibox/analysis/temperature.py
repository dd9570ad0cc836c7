"""A copy of a checkpoint whose scores are calibrated: its last class layers are divided by a temperature.

So every score changes as the temperature says wherever the weights go: in prediction, evaluation and exported files.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multibox import __version__
from multibox.analysis.calibration import Floats, Scored, calibration_error, fit_temperature, scored_detections, warmed
from multibox.analysis.drift import summarize
from multibox.analysis.error_kinds import match
from multibox.builtin import find_model
from multibox.errors import ConfigError, DataError
from multibox.evaluation.coco_metrics import coco_metrics
from multibox.evaluation.table import Columns, columns
from multibox.inference.detector import Detector
from multibox.models.build import build_model
from multibox.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from multibox.models.ssd import SSD
from multibox.structures import Dataset, Detections
from multibox.thresholds import class_thresholds

SUFFIX = ".safetensors"
ROUNDS, CLOSE = 3, 0.02
"""Times that a temperature is fitted to what the copy detects, and its change after which that ends."""

Predict = Callable[[Detector], list[Detections]]


class Measured(NamedTuple):
    """Scores and AP of a model on the data."""

    ece: float | None
    ap: float | None


class Calibrated(NamedTuple):
    """What `write_calibrated` wrote."""

    temperature: float
    before: Measured
    after: Measured
    """Of the copy, detecting anew."""


def check_calibrated(model: str | Path, new: Path) -> Path:
    """Return the checkpoint of a model, or refuse what has none and a new name that is none of a checkpoint.

    Raises:
        ConfigError: `model` is an exported file, or `new` does not end in .safetensors.
        WeightsError: There is no such model.
    """
    file = find_model(model)
    if file.suffix != SUFFIX:
        raise ConfigError(
            f"{model} is an exported file, whose weights cannot be changed: give the checkpoint or run folder that it "
            "was exported from, and export the calibrated copy"
        )
    if new.suffix != SUFFIX:
        raise ConfigError(f"--temperature {new}: expected a file name that ends in {SUFFIX}")
    return file


def write_calibrated(
    file: Path, new: Path, dataset: Dataset, detections: Sequence[Detections], predict: Predict, device: str = "cpu"
) -> Calibrated:
    """Fit a temperature to all detections, write the calibrated copy and measure it on what it detects itself.

    With several softmax classes a score does not say what it becomes, so the copy detects, and the temperature is
    fitted again, until it stays. The thresholds are moved so that as many detections of each class are reported as
    before: the same ones, where the scores keep their order.

    Args:
        file: The checkpoint.
        new: The file to write.
        dataset: Labelled images, in the order of the model's classes.
        detections: What the model detects in them.
        predict: Returns what a detector detects in them.
        device: Where the copy computes.

    Raises:
        DataError: There are too few right or wrong detections to fit a temperature.
    """
    checkpoint = load_checkpoint(file)
    names = checkpoint.class_names
    before, found = _measure(columns(detections, dataset, names))
    temperature = fit_temperature(found.scores, found.right)
    if temperature is None:
        raise DataError(
            f"{dataset.root} ({dataset.split}) has too few right or too few wrong detections to fit a temperature; "
            "give a split with more images"
        )

    def detect(copy: Checkpoint) -> Columns:
        # As `load` opens it: thresholds belong to the very scores that prediction gives
        detector = Detector(_network(copy), copy.config, names, device).quicken()
        return columns(predict(detector), dataset, names)

    temperature, copy, table = _settle(checkpoint, temperature, detect)
    after, _ = _measure(table)
    lowest = _moved_thresholds(copy, columns(detections, dataset, names), table, checkpoint)
    notes = {
        "temperature": temperature,
        "ece": after.ece,
        "ece_before": before.ece,
        "images": len(dataset),
        "measured_by": f"multibox {__version__} report --temperature",
    }
    config = copy.config.updated({"post.thresholds": lowest})
    save_checkpoint(new, replace(copy, config=config, metrics={**checkpoint.metrics, "calibration": notes}))
    return Calibrated(temperature, before, after)


def _settle(
    checkpoint: Checkpoint, temperature: float, detect: Callable[[Checkpoint], Columns]
) -> tuple[float, Checkpoint, Columns]:
    """Return the temperature that a copy's own detections ask for, the copy and what it detects."""
    model = _network(checkpoint)
    exact = checkpoint.config.model.score == "sigmoid" or len(checkpoint.class_names) == 1
    rounds = 1 if exact else ROUNDS
    while True:
        copy = calibrated_copy(model, checkpoint, temperature)
        table = detect(copy)
        rounds -= 1
        more = fit_temperature(*_measure(table)[1][:2])
        if not rounds or more is None or abs(np.log(more)) < CLOSE:
            return temperature, copy, table
        temperature *= more


def _measure(table: Columns) -> tuple[Measured, Scored]:
    matches = match(table)
    found = scored_detections(table, matches.right, matches.wrong)
    return Measured(calibration_error(found.scores, found.right), coco_metrics(table)["AP"]), found


def _network(checkpoint: Checkpoint) -> SSD:
    model = build_model(checkpoint.config, len(checkpoint.class_names))
    model.load_state_dict(dict(checkpoint.state))
    return model


def calibrated_copy(model: SSD, checkpoint: Checkpoint, temperature: float) -> Checkpoint:
    """Return a checkpoint whose logits are those of `checkpoint` over the temperature.

    Thresholds move with the scores, as `warmed` says; so does the lowest score that enters suppression.

    Args:
        model: The network of the checkpoint.
        checkpoint: What to copy.
        temperature: Above 1 makes the scores less extreme.
    """
    state: dict[str, Tensor] = dict(checkpoint.state)
    for name, layer in model.heads.class_layers():
        for part in ("weight", "bias"):
            if getattr(layer, part) is not None:
                key = f"heads.{name}.{part}"
                # In float64, so that the only rounding is that of the result
                state[key] = (state[key].double() / temperature).to(torch.float32)
    post = checkpoint.config.post
    own = class_thresholds(post.thresholds, checkpoint.class_names)
    values = warmed(np.array([post.score_threshold, *own]), temperature).tolist()
    floor = values[0] if post.score_threshold > 0 else 0.0
    config = checkpoint.config.updated({"post.score_threshold": floor, "post.thresholds": tuple(values[1:])})
    return replace(checkpoint, state=state, config=config, statistics=_warmed(checkpoint.statistics, temperature))


def _warmed(statistics: dict[str, Any], temperature: float) -> dict[str, Any]:
    """Return the statistics of training with those of the scores as the temperature changes them."""
    if "score" not in statistics:
        return statistics
    scores = statistics["score"]
    known: Floats = np.array(scores["quantiles"], np.float64)
    # Evenly spread between the quantiles that are known
    spread = np.interp(np.linspace(0, 1, 1001), np.linspace(0, 1, len(known)), known)
    return {**statistics, "score": {**summarize(warmed(spread, temperature)), "count": scores["count"]}}


def _moved_thresholds(copy: Checkpoint, old: Columns, new: Columns, checkpoint: Checkpoint) -> tuple[float, ...]:
    """Return thresholds under which the copy reports as many detections of each class as the model.

    A threshold is often the score of a detection itself; computed from the old one it could miss it by a rounding.
    """
    thresholds: list[float] = []
    lowest = class_thresholds(checkpoint.config.post.thresholds, checkpoint.class_names)
    for label, (own, computed) in enumerate(zip(lowest, copy.config.post.thresholds, strict=True)):
        # As prediction compares
        reported = int((old.scores[old.labels == label] >= np.float32(own)).sum())
        scores: Floats = np.sort(new.scores[new.labels == label])[::-1]
        thresholds.append(float(scores[reported - 1]) if 0 < reported <= len(scores) else computed)
    return tuple(thresholds)
