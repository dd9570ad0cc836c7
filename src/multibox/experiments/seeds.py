"""The same training with several seeds: what chance alone does to the figures."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multibox.errors import ConfigError, MultiboxError
from multibox.evaluation.report import evaluate
from multibox.files import write_text_whole
from multibox.inference.detector import find_all, load
from multibox.training import folder as state
from multibox.training.run import RunOptions, resolve_options
from multibox.training.trainer import Trainer

FIGURES = ("AP", "AP50", "AP75", "mAP")
"""COCO's three and VOC 2012's mAP@0.5, of a run's last weights on its validation split."""
CONFIDENCE = 0.95
ASKED, RESULT = "settings.json", "figures.json"

Train = Callable[[Path, RunOptions], Trainer]
"""Prepares a run, or resumes it, and trains it to its end."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One seed's result."""

    seed: int
    figures: dict[str, float | None]
    """By `FIGURES`, 0 to 1; empty where the run failed."""
    problem: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class Spread:
    """One figure over several runs."""

    runs: int
    mean: float
    deviation: float | None
    """Standard deviation (divided by runs - 1); None of a single run, as are the ends."""
    low: float | None
    """Ends of the t-interval of the mean, at 95 %."""
    high: float | None


def repeat(data: Path, options: RunOptions, seeds: int, *, train: Train, say: Say) -> list[Run]:
    """Train with train.seed 0, 1 ... in OUT/seed-0, OUT/seed-1 ... and score each run's last weights.

    A run that has its figures is not repeated and one that was interrupted is resumed, so the same call goes on where
    it was stopped. A run whose loss is no number any more is a result as well.

    Args:
        data: the data set.
        options: of every run; `out` is the folder for all of them.
        seeds: how many.
        train: does one run.
        say: gets a line for each run.

    Raises:
        ConfigError: no folder, no validation, or runs of other settings in the folder.
    """
    out, options = _checked(data, options)
    _remember(out, data, options)
    found: list[Run] = []
    for seed in range(seeds):
        folder = out / f"seed-{seed}"
        known = _read(folder / RESULT, seed)
        say(f"run {seed + 1} of {seeds}: {folder}" + (", finished before" if known else ""))
        try:
            found.append(known or _run(data, options, folder, seed, train))
        except MultiboxError:
            _forget(out)
            raise
    write_text_whole(out / "seeds.csv", seeds_csv(found))
    return found


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return mean, deviation and interval of the figures that exist; None without any."""
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
    rows: list[dict[str, Any]] = [{"run": f"seed-{run.seed}", **run.figures, "problem": run.problem} for run in runs]
    spreads = {name: spread([run.figures.get(name) for run in runs]) for name in FIGURES}
    for field in ("mean", "deviation", "low", "high"):
        rows.append({"run": field, **{name: getattr(one, field) for name, one in spreads.items() if one}})
    return csv_text(("run", *FIGURES, "problem"), rows)


def csv_text(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, numbers to six digits; what a row does not have stays empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows({n: f"{v:.6g}" if isinstance(v, float) else v for n, v in row.items()} for row in rows)
    return text.getvalue()


def _checked(data: Path, options: RunOptions) -> tuple[Path, RunOptions]:
    """Return the folder and the options with their preset and recipe named."""
    if options.out is None:
        raise ConfigError("several runs need --out, the folder for all of them; the same command then goes on with it")
    if options.resume is not None:
        raise ConfigError("several runs go on by themselves when the command is given again; leave --resume away")
    if options.val_split == "none":
        raise ConfigError("several runs are compared by their validation figures; give another --val-split than none")
    if "train.seed" in options.changes:
        raise ConfigError("several runs count train.seed up from 0; leave --set train.seed away")
    config, _ = resolve_options(data, options)
    return options.out, dataclasses.replace(options, preset=config.preset, recipe=config.recipe)


def _remember(out: Path, data: Path, options: RunOptions) -> None:
    """Write down what the runs of this folder are, or refuse to mix them with others."""
    asked = {
        field.name: str(value) if isinstance(value, Path) else value
        for field in dataclasses.fields(options)
        if field.name not in ("out", "resume", "device", "on_bad", "started")
        for value in [getattr(options, field.name)]
    }
    asked = json.loads(json.dumps({"data": str(data.resolve()), **asked}))
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
    """After a mistake that was found before anything was trained, leave nothing that would forbid to mend it."""
    folders = list(out.glob("seed-*"))
    if not any(any(folder.iterdir()) for folder in folders):
        (out / ASKED).unlink()
        for folder in (*folders, out):
            folder.rmdir()


def _run(data: Path, options: RunOptions, folder: Path, seed: int, train: Train) -> Run:
    try:
        run = Run(seed, _score(train(data, _options(options, folder, seed))))
    except MultiboxError as error:
        # Its subclasses are mistakes in what was asked for; it itself is a run that went wrong
        if type(error) is not MultiboxError:
            raise
        run = Run(seed, {}, str(error))
    write_text_whole(folder / RESULT, json.dumps({"figures": run.figures, "problem": run.problem}, indent=1) + "\n")
    return run


def _options(options: RunOptions, folder: Path, seed: int) -> RunOptions:
    """Return one run's options: to begin it, or to go on with it where it has a state."""
    if (folder / "state" / state.FILE).is_file():
        return RunOptions(resume=folder, device=options.device)
    return dataclasses.replace(options, out=folder, changes={**options.changes, "train.seed": seed})


def _score(trainer: Trainer) -> dict[str, float | None]:
    if trainer.validation is None:
        raise ConfigError("several runs are compared by their validation figures, and this data set gives none")
    detector = load(trainer.folder / "last.safetensors", device=trainer.device)
    dataset = trainer.validation.dataset
    figures = evaluate(find_all(detector, dataset), dataset, detector.names)
    coco = figures["coco"]
    return {"AP": coco["AP"], "AP50": coco["AP50"], "AP75": coco["AP75"], "mAP": figures["voc12"]["mAP"]}


def _read(path: Path, seed: int) -> Run | None:
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return Run(seed, values["figures"], values["problem"])
