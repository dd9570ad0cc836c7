"""The same training with several seeds: how much chance alone changes the metrics."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multibox.errors import ConfigError, MultiboxError
from multibox.evaluation.report import evaluate
from multibox.files import write_text_whole
from multibox.inference.detector import find_all, open_checkpoint
from multibox.training.distributed import refuse_several
from multibox.training.folder import CACHE, STATE
from multibox.training.metric_files import csv_text
from multibox.training.reporter import Reporter
from multibox.training.run import Data, RunOptions, in_a_list, resolve_options
from multibox.training.trainer import Trainer

METRICS = ("AP", "AP50", "AP75", "mAP")
"""COCO's three and VOC 2012's mAP@0.5, of a run's last weights on its validation split."""
CONFIDENCE = 0.95
ASKED, RESULT = "settings.json", "figures.json"

Train = Callable[[Data, RunOptions], Trainer]
"""Prepares a run, or resumes it, and trains it to its end."""


@dataclass(frozen=True)
class Run:
    """One seed's result."""

    seed: int
    metrics: dict[str, float | None]
    """By `METRICS`, 0 to 1; empty where the run failed."""
    problem: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class Spread:
    """One metric over several runs."""

    runs: int
    mean: float
    deviation: float | None
    """Standard deviation (divided by runs - 1); None of a single run, as are the ends."""
    low: float | None
    """Ends of the t-interval of the mean, at 95 %."""
    high: float | None


def repeat(data: Data, options: RunOptions, seeds: int, *, train: Train, reporter: Reporter) -> list[Run]:
    """Train with train.seed 0, 1 ... in OUT/seed-0, OUT/seed-1 ... and score each run's last weights.

    The same call goes on where it was stopped: it keeps the runs that have their metrics and resumes an interrupted
    one. A run whose loss is not finite is a result as well.

    Args:
        data: the data set, or several that are joined.
        options: of every run; `out` is the folder for all of them.
        seeds: how many.
        train: does one run.
        reporter: gets a line for each run.

    Raises:
        ConfigError: no folder, no validation, or runs of other settings in the folder.
    """
    out, options = _checked(data, options)
    _remember(out, data, options)
    runs: list[Run] = []
    for seed in range(seeds):
        folder = out / f"seed-{seed}"
        known = _read(folder / RESULT, seed)
        reporter.note(f"run {seed + 1} of {seeds}: {folder}" + (", finished before" if known else ""))
        try:
            runs.append(known or _run(data, options, folder, seed, train))
        except MultiboxError:
            _forget(out)
            raise
    write_text_whole(out / "seeds.csv", seeds_csv(runs))
    return runs


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return mean, deviation and interval of the values that exist; None without any."""
    real = np.array([value for value in values if value is not None])
    runs = len(real)
    if not runs:
        return None
    mean = float(real.mean())
    if runs == 1:
        return Spread(runs, mean, None, None, None)
    deviation = float(real.std(ddof=1))
    half = student_t(runs - 1) * deviation / math.sqrt(runs)
    return Spread(runs, mean, deviation, mean - half, mean + half)


def student_t(degrees: int) -> float:
    """Return t such that Student's distribution with so many degrees of freedom lies within -t to t at CONFIDENCE.

    With t = sqrt(degrees) tan(angle) its density becomes cos(angle)^(degrees - 1), which sums well.
    """
    angle = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angle) ** (degrees - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(math.sqrt(degrees) * np.tan(np.interp(CONFIDENCE, area / area[-1], angle)))


def seeds_csv(runs: Sequence[Run]) -> str:
    """Return a row for each run, then mean, deviation and the ends of the interval."""
    rows: list[dict[str, Any]] = [{"run": f"seed-{run.seed}", **run.metrics, "problem": run.problem} for run in runs]
    spreads = {name: spread([run.metrics.get(name) for run in runs]) for name in METRICS}
    for field in ("mean", "deviation", "low", "high"):
        rows.append({"run": field, **{name: getattr(one, field) for name, one in spreads.items() if one}})
    return csv_text(("run", *METRICS, "problem"), rows)


def _checked(data: Data, options: RunOptions) -> tuple[Path, RunOptions]:
    """Return the folder and the options with their preset and recipe named."""
    refuse_several("--seeds and --ablate train")
    if options.out is None:
        raise ConfigError("several runs need --out, the folder for all of them; the same command then goes on with it")
    if options.resume is not None:
        raise ConfigError("several runs go on by themselves when the command is given again; leave --resume away")
    if options.val_split == "none":
        raise ConfigError("several runs are compared by their validation metrics; give another --val-split than none")
    if "train.seed" in options.changes:
        raise ConfigError("several runs count train.seed up from 0; leave --set train.seed away")
    config, _ = resolve_options(data, options)
    cache = options.cache or options.out.parent / CACHE
    return options.out, dataclasses.replace(options, preset=config.preset, recipe=config.recipe, cache=cache)


def _remember(out: Path, data: Data, options: RunOptions) -> None:
    """Write down what the runs of this folder are, or refuse to mix them with others."""
    names = [field.name for field in dataclasses.fields(options)]
    names = [name for name in names if name not in ("out", "resume", "device", "on_bad", "started", "cache")]
    paths = [path.resolve() for path in in_a_list(data)]
    asked = {"data": paths[0] if len(paths) == 1 else paths, **{name: getattr(options, name) for name in names}}
    asked = json.loads(json.dumps(asked, default=str))
    path = out / ASKED
    if not path.is_file() and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no runs of this kind; give another --out")
    if path.is_file() and (before := json.loads(path.read_text(encoding="utf-8"))) != asked:
        key = next(key for key in before | asked if before.get(key) != asked.get(key))
        raise ConfigError(
            f"the runs in {out} were made with {key} = {json.dumps(before.get(key))}, "
            f"now it is {json.dumps(asked.get(key))}; give another --out"
        )
    write_text_whole(path, json.dumps(asked, indent=1) + "\n")


def _forget(out: Path) -> None:
    """Leave nothing that would forbid the corrected command, if a mistake was found before anything was trained."""
    folders = list(out.glob("seed-*"))
    if not any(any(folder.iterdir()) for folder in folders):
        (out / ASKED).unlink()
        for folder in (*folders, out):
            folder.rmdir()


def _run(data: Data, options: RunOptions, folder: Path, seed: int, train: Train) -> Run:
    """Begin one run, or go on with it where it has a state, and write down its result."""
    if (folder / STATE).is_file():
        options = RunOptions(resume=folder, device=options.device, cache=options.cache)
    else:
        options = dataclasses.replace(options, out=folder, changes={**options.changes, "train.seed": seed})
    try:
        run = Run(seed, _score(train(data, options)))
    except MultiboxError as error:
        # Its subclasses are mistakes in what was asked for; it itself is a run that went wrong
        if type(error) is not MultiboxError:
            raise
        run = Run(seed, {}, str(error))
    write_text_whole(folder / RESULT, json.dumps({"figures": run.metrics, "problem": run.problem}, indent=1) + "\n")
    return run


def _score(trainer: Trainer) -> dict[str, float | None]:
    if trainer.validation is None:
        raise ConfigError("several runs are compared by their validation metrics, and this data set gives none")
    detector = open_checkpoint(trainer.folder / "last.safetensors", device=trainer.device)
    dataset = trainer.validation.dataset
    metrics = evaluate(find_all(detector, dataset), dataset, detector.names)
    coco = metrics["coco"]
    return {"AP": coco["AP"], "AP50": coco["AP50"], "AP75": coco["AP75"], "mAP": metrics["voc12"]["mAP"]}


def _read(path: Path, seed: int) -> Run | None:
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return Run(seed, values["figures"], values["problem"])
