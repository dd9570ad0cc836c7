"""Every combination of some choices, each trained with the same seeds: what each part contributes."""

import dataclasses
import itertools
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multibox.config import SIGMOID_LOSSES, LossConfig, MatchingConfig
from multibox.errors import ConfigError, did_you_mean
from multibox.experiments.seeds import METRICS, Run, Spread, Train, repeat, spread
from multibox.files import write_text_whole
from multibox.training.folder import CACHE
from multibox.training.metric_files import csv_text
from multibox.training.reporter import Reporter
from multibox.training.run import Data, RunOptions, resolve_options

Settings = dict[str, Any]
Grid = dict[str, tuple[str, ...]]
"""The values to combine, by axis."""


def loss_settings(classification: str) -> Settings:
    """Return a classification loss with its kind of score, and with mining unless the loss weighs anchors itself."""
    return {
        "model.score": "sigmoid" if classification in SIGMOID_LOSSES else "softmax",
        "loss.classification": classification,
        "loss.negative_ratio": 3.0 if "cross_entropy" in classification else "all",
        "loss.hard_examples": "none",
    }


def matcher_settings(matcher: str) -> Settings:
    """Return a matcher with the negatives that mining may take.

    Caffe's matching keeps anchors near objects out; the other matchers choose the negatives themselves.
    """
    return {
        "matching.matcher": matcher,
        "loss.negative_overlap": 0.5 if matcher == "bipartite" else "any",
    }


def _choices(section: type, field: str) -> tuple[str, ...]:
    return typing.get_args(typing.get_type_hints(section)[field])


AXES: dict[str, dict[str, Settings]] = {
    "loss": {
        "cross_entropy": loss_settings("cross_entropy"),
        # 64 is Caffe's sample_size
        "ohem": loss_settings("cross_entropy") | {"loss.negative_ratio": "all", "loss.hard_examples": 64},
        **{name: loss_settings(name) for name in ("focal", "sigmoid_focal", "quality_focal", "varifocal")},
    },
    "localization": {name: {"loss.localization": name} for name in _choices(LossConfig, "localization")},
    "matcher": {name: matcher_settings(name) for name in _choices(MatchingConfig, "matcher")},
}
"""By axis and value the settings that belong together."""


@dataclass(frozen=True)
class Cell:
    """One combination."""

    values: dict[str, str]
    """By axis."""
    settings: Settings

    @property
    def name(self) -> str:
        """Return the values joined, which names the cell's folder."""
        return "-".join(self.values.values())


@dataclass(frozen=True)
class CellRuns:
    """A combination and its runs."""

    cell: Cell
    runs: list[Run]

    def spread(self, metric: str) -> Spread | None:
        """Return mean and interval of a metric over the runs that did not fail."""
        return spread([run.metrics.get(metric) for run in self.runs])


def parse_axes(text: str) -> Grid:
    """Read axes and, after "=", which of their values: "loss,matcher" or "loss=focal/varifocal,matcher".

    Raises:
        ConfigError: an unknown axis or value, or one named twice.
    """
    grid: Grid = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        axis, _, chosen = (piece.strip() for piece in part.partition("="))
        if axis not in AXES:
            raise ConfigError(
                f"--ablate {text}: unknown axis {axis!r}{did_you_mean(axis, AXES)}; known: {', '.join(AXES)}"
            )
        values = tuple(chosen.split("/")) if chosen else tuple(AXES[axis])
        for value in values:
            if value not in AXES[axis]:
                raise ConfigError(
                    f"--ablate {text}: {axis} has no {value!r}{did_you_mean(value, AXES[axis])}; known: "
                    f"{', '.join(AXES[axis])}"
                )
        if axis in grid or len(set(values)) < len(values):
            raise ConfigError(f"--ablate {text}: name each axis and value once, such as loss=focal/varifocal,matcher")
        grid[axis] = values
    if not grid:
        raise ConfigError(f"--ablate {text}: name an axis, such as loss,matcher; known: {', '.join(AXES)}")
    return grid


def make_grid(grid: Grid) -> list[Cell]:
    """Return every combination of the axes' values."""
    cells: list[Cell] = []
    for values in itertools.product(*grid.values()):
        named = dict(zip(grid, values, strict=True))
        settings = {key: value for axis, name in named.items() for key, value in AXES[axis][name].items()}
        cells.append(Cell(named, settings))
    return cells


def ablate(
    data: Data, options: RunOptions, grid: Grid, seeds: int, *, train: Train, reporter: Reporter
) -> list[CellRuns]:
    """Train every combination with every seed in OUT/VALUE-VALUE/seed-k; keep ablation.csv and .md in OUT up to date.

    As with `repeat`, the same call goes on where it was stopped, and a run that fails is a result.

    Args:
        data: the data set, or several that are joined.
        options: of every run; `out` is the folder for all of them.
        grid: from `parse_axes`.
        seeds: runs per combination.
        train: does one run.
        reporter: gets a line for each combination and each run.

    Raises:
        ConfigError: settings that do not go together, or that an axis sets itself.
    """
    cells, axes = make_grid(grid), tuple(grid)
    _check(data, options, cells, axes)
    out = options.out
    if out is None:
        raise ConfigError("--ablate needs --out, the folder for all runs; the same command then goes on with it")
    options = dataclasses.replace(options, cache=options.cache or out.parent / CACHE)
    results: list[CellRuns] = []
    for number, cell in enumerate(cells, start=1):
        reporter.note(f"combination {number} of {len(cells)}: {cell.name}")
        of_cell = dataclasses.replace(options, out=out / cell.name, changes={**options.changes, **cell.settings})
        results.append(CellRuns(cell, repeat(data, of_cell, seeds, train=train, reporter=reporter)))
        write_text_whole(out / "ablation.csv", ablation_csv(results, axes))
        write_text_whole(out / "ablation.md", ablation_markdown(results, axes))
    return results


def _check(data: Data, options: RunOptions, cells: Sequence[Cell], axes: Sequence[str]) -> None:
    """Refuse before the first run what would stop a later one."""
    taken = sorted({key for cell in cells for key in cell.settings} & options.changes.keys())
    if taken:
        raise ConfigError(f"--ablate {','.join(axes)} sets {taken[0]} itself; leave --set {taken[0]} away")
    for cell in cells:
        resolve_options(data, dataclasses.replace(options, changes={**options.changes, **cell.settings}))


def ranked(results: Sequence[CellRuns]) -> list[CellRuns]:
    """Return the combinations by mean AP, best first, those without one last."""
    return sorted(results, key=lambda one: -(s.mean if (s := one.spread("AP")) else -1.0))


def ablation_csv(results: Sequence[CellRuns], axes: Sequence[str]) -> str:
    """Return one row per run."""
    rows = [
        {**one.cell.values, "seed": run.seed, **run.metrics, "problem": run.problem}
        for one in results
        for run in one.runs
    ]
    return csv_text((*axes, "seed", *METRICS, "problem"), rows)


def ablation_markdown(results: Sequence[CellRuns], axes: Sequence[str]) -> str:
    """Return a table sorted by AP, the best of each metric in bold."""
    lines = ["| " + " | ".join((*axes, *METRICS, "runs")) + " |", "|" + "---|" * (len(axes) + len(METRICS) + 1)]
    lines += ["| " + " | ".join((*values, *metrics, runs)) + " |" for values, metrics, runs in ablation_rows(results)]
    note = (
        "Mean over the runs, and the 95 % t-interval of that mean where there are several; COCO AP, AP50, AP75 and VOC "
        "2012's mAP@0.5 of the last weights on the validation split. Best in bold. The interval says what other seeds "
        "would do, not what other images would."
    )
    return "\n".join([*lines, "", note]) + "\n"


def ablation_rows(
    results: Sequence[CellRuns], bold: tuple[str, str] = ("**", "**")
) -> list[tuple[list[str], list[str], str]]:
    """Return for each combination, best first: its values, its metrics as text, and how many runs they are of."""
    results = ranked(results)
    spreads = [{name: one.spread(name) for name in METRICS} for one in results]
    best = {name: max((one.mean for s in spreads if (one := s[name])), default=None) for name in METRICS}
    rows: list[tuple[list[str], list[str], str]] = []
    for one, of_cell in zip(results, spreads, strict=True):
        texts: list[str] = []
        for name, metric in of_cell.items():
            text = describe(metric)
            texts.append(f"{bold[0]}{text}{bold[1]}" if metric and metric.mean == best[name] else text)
        failed = [run.problem.partition(";")[0] for run in one.runs if run.problem]
        count = f"{len(one.runs)}" + (f", {len(failed)} failed: {failed[0]}" if failed else "")
        rows.append((list(one.cell.values.values()), texts, count))
    return rows


def describe(metric: Spread | None) -> str:
    """Return a mean with its interval."""
    if metric is None:
        return "-"
    return f"{metric.mean:.3f}" + ("" if metric.low is None else f" ({metric.low:.3f} to {metric.high:.3f})")
