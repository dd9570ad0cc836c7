"""Anchors of a run against the boxes of its data: coverage, a better input size, better anchors as a config."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from multibox import __version__
from multibox.analysis.advice import LARGEST, MANY, STRIDE, WANTED, enlarged_size, median_side
from multibox.analysis.anchor_fit import (
    LevelShapes,
    best_on_grid,
    box_shapes,
    cluster_by_iou,
    evolve,
    fitted_as_asked,
    level_shapes,
    score,
    see_grid,
    with_shapes,
)
from multibox.analysis.coverage import (
    IOU50,
    Floats,
    Objects,
    cover,
    describe_cover,
    gather_objects,
    is_reached,
    some_objects,
)
from multibox.config import Config
from multibox.data.choosing import choose_classes
from multibox.data.formats import DataPaths, find_splits, open_dataset, split_for
from multibox.data.formats.text import OnBad
from multibox.data.left_out import drop_difficult
from multibox.errors import DataError
from multibox.structures import Flags, Size

AREAS = (1.0, 1.5, 2.0, 3.0, 4.0)
"""Inputs that are tried, as multiples of the present one's pixels; a step takes about as many times as long."""
ENOUGH = 0.01
"""A smaller input is as good as a larger one if it sees at most this share of the boxes less."""
TRIED = 2000
"""Boxes that every input size is tried on."""
HELD_OUT, FEWEST_IMAGES, FEWEST_BOXES = 0.2, 10, 250
"""Share of the images whose boxes choose between the fits; with fewer images or boxes all of them fit and choose."""
OWN, ASKED, KMEANS, EVOLUTION = "the preset's own", "anchors.fit", "k-means on 1 - IoU", "differential evolution"


class Fit(NamedTuple):
    """The anchors that cover boxes best."""

    config: Config
    best_iou: Floats
    """[N] largest IoU of each box."""
    report: dict[str, Any]
    """What was tried, as plain data."""


class Anchors(NamedTuple):
    """A data set's boxes, and the anchors that a run would have and could have."""

    objects: Objects
    class_names: tuple[str, ...]
    before: Config
    """With the anchors and the input that a run would have."""
    before_iou: Floats
    """[N] largest IoU of each box with these."""
    fit: Fit | None
    """Fitted anchors, where they were asked for."""
    report: dict[str, Any]
    """Plain data, as `multibox anchors --json` writes it."""


def examine_anchors(
    data: DataPaths,
    config: Config,
    *,
    split: str | None = None,
    format: str | None = None,
    on_bad: OnBad = "stop",
    classes: Sequence[str] = (),
    merge: Sequence[str] = (),
    fit: bool = False,
    seed: int = 0,
) -> Anchors:
    """Measure how a run's anchors cover the boxes of a split, and look for a better input size and better anchors.

    Args:
        data: One data set or several.
        config: The run's settings. Where training would enlarge the input or fit the anchors, so does this.
        split: None takes the training split, else the only one.
        format: The data set's format; None recognises it.
        on_bad: "stop" at a broken file, or "skip" it.
        classes: Those to look at, after merging; none takes all.
        merge: Rules such as `car=truck,bus`.
        fit: Look for better anchors, too.
        seed: Of the search.

    Raises:
        DataError: Data that cannot be read, or without a box.
        ConfigError: An unknown class.
    """
    split = split or split_for(find_splits(data, format), "train")
    dataset = open_dataset(data, split, format=format, on_bad=on_bad)
    (dataset,) = choose_classes([dataset], classes, merge)
    if config.train.difficult == "drop":
        dataset = drop_difficult(dataset)
    objects, names = gather_objects(dataset), tuple(dataset.class_names)
    where = ", ".join(map(str, data if isinstance(data, list | tuple) else [data]))
    if not len(objects.labels):
        raise DataError(f"{where} (split {dataset.split}) has no box that anchors could be compared with")
    # Decided by the very functions that training asks
    larger = enlarged_size(config, median_side(dataset, config.model.input_size))
    notes = list(dataset.notes)
    if larger != config.model.input_size:
        notes.append(f"training enlarges the input to {larger.height}x{larger.width} here, so that is measured")
    own = config.updated({"model.input_size": larger})
    before = fitted_as_asked(own, box_shapes(dataset)) if own.anchors.fit != "none" else own
    if before is not own:
        notes.append(f"{config.preset} fits its anchors to the training boxes (anchors.fit={own.anchors.fit})")
    found = cover(objects, before)
    report: dict[str, Any] = {
        "data": where,
        "split": dataset.split,
        "images": len(dataset),
        **describe_cover(objects, before, names, found),
        "notes": notes,
    }
    fitted = search(objects, own, before, seed) if fit else None
    if fitted is not None:
        report["fit"] = fitted.report
    suggested = suggest_input(objects, own if fitted is None else fitted.config)
    unfitted: dict[str, Any] = {"fitted_seen": None, "fit_first": False}
    tried = _try_fit(objects, own, before, suggested["tried"][0], seed) if fitted is None else unfitted
    report["suggested"] = suggested | tried
    return Anchors(objects, names, before, found.best_iou, fitted, report)


def suggest_input(objects: Objects, config: Config) -> dict[str, Any]:
    """Return the present input if it sees about as many boxes as larger ones, else the smallest that does.

    All that were tried are returned with it. A box is seen if it has at least 12 pixels of the input (square root of
    its area) and an anchor from IoU 0.5 on. Inputs have the present aspect or that of the images, and at most 4 times
    the present pixels.
    """
    some = some_objects(objects, TRIED)
    present = Size(*config.model.input_size)
    aspect = float(np.median(objects.image_wh[:, 0] / objects.image_wh[:, 1]))
    sizes = [present]
    for times in AREAS:
        for ratio in (present.width / present.height, aspect):
            height = np.sqrt(times * present.height * present.width / ratio)
            size = Size(*(max(2, round(float(side) / STRIDE)) * STRIDE for side in (height, height * ratio)))
            # A smaller one of the present aspect comes of rounding alone
            larger = size.height > present.height or size.width > present.width
            if larger and max(size) <= max(LARGEST, *present):
                sizes.append(size)
    tried = [_try_input(some, config, size, present) for size in dict.fromkeys(sizes)]
    best = max(row["seen"] for row in tried)
    good = [row for row in tried if row["seen"] >= best - ENOUGH]
    # Another aspect at about the same cost is no reason to leave the present one
    chosen = tried[0] if tried[0] in good else min(good, key=lambda row: (row["cost"], -row["seen"]))
    largest = max(tried, key=lambda row: (row["seen"], -row["cost"]))
    height, width = chosen["input"]
    why = f"{_percent(chosen['seen'])} of the boxes have {WANTED:g} pixels and an anchor from IoU 0.5 on"
    if chosen["input"] != [*present]:
        why += f", at {present.height}x{present.width} {_percent(tried[0]['seen'])}; a step takes {chosen['cost']:.1f}x"
    elif largest["input"] != chosen["input"]:
        why += f"; the best of the larger ones, {largest['input'][0]}x{largest['input'][1]}, has "
        why += f"{_percent(largest['seen'])} at {largest['cost']:.1f} times the work"
    if best < 1 - MANY:
        why += "; many boxes stay too small or without an anchor, so cut the images into tiles, or fit the anchors"
    return {
        "input": [height, width],
        "aspect": width / height,
        "image_aspect": aspect,
        "setting": f"model.input_size=[{height},{width}]",
        "why": why,
        "tried": tried,
    }


def _try_input(objects: Objects, config: Config, size: Size, present: Size) -> dict[str, Any]:
    here = fitted_as_asked(config.updated({"model.input_size": size}), objects.wh)
    best, sides = best_on_grid(see_grid(objects, here), level_shapes(here)), objects.sides(size)
    large = sides >= WANTED
    return {
        "input": [size.height, size.width],
        "cost": size.height * size.width / (present.height * present.width),
        "median_side": float(np.median(sides)),
        "large_enough": float(large.mean()),
        "reached50": float((best >= IOU50).mean()),
        "seen": float((large & (best >= IOU50)).mean()),
    }


def _try_fit(objects: Objects, own: Config, before: Config, present: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the share of the boxes that fitted anchors see at the present input, and whether that is worth a fit."""
    if present["large_enough"] - present["seen"] <= ENOUGH:
        return {"fitted_seen": None, "fit_first": False}
    some = some_objects(objects, TRIED)
    size = Size(*own.model.input_size)
    seen = _try_input(some, search(some, own, before, seed).config, size, size)["seen"]
    return {"fitted_seen": seen, "fit_first": seen > present["seen"] + ENOUGH}


def search(objects: Objects, own: Config, before: Config, seed: int = 0) -> Fit:
    """Return the anchors that cover the boxes best, and what each kind of anchors reached.

    K-means and differential evolution fit to four fifths of the images, and the others' boxes choose: the highest
    `anchor_fit.score` among those that reach no fewer boxes at IoU 0.5 than the run's anchors. With few boxes all of
    them fit and choose. Each feature map keeps its number of anchors, so that weights still fit the heads.

    Args:
        objects: The boxes.
        own: With the preset's own anchors.
        before: With the anchors that a run would have.
        seed: Of the choice of images and of the search.
    """
    held = _hold_out(objects, seed)
    judging = held if held.any() else ~held
    fitting = objects.take(~held)
    base = with_shapes(own, level_shapes(before)) if before is not own else own
    kmeans = cluster_by_iou(fitting, base)
    starts: list[LevelShapes] = [level_shapes(base), kmeans]
    grid = see_grid(fitting, base)
    start = max(starts, key=lambda shapes: float(score(best_on_grid(grid, shapes), own)))
    tried = {OWN: own}
    if before is not own:
        # What a run would have, fitted to all boxes
        tried[f"{ASKED}={own.anchors.fit}"] = before
    present = list(tried)[-1]
    tried |= {KMEANS: with_shapes(own, kmeans), EVOLUTION: with_shapes(own, evolve(fitting, base, start, seed))}
    best = {name: cover(objects, config).best_iou for name, config in tried.items()}
    least = (best[present][judging] >= IOU50).mean()
    eligible = [name for name, values in best.items() if (values[judging] >= IOU50).mean() >= least]
    method = max(eligible, key=lambda name: float(score(best[name][judging], own)))
    rows = {
        name: {
            "anchors": name,
            **_shares(values, own),
            "held_out": _shares(values[held], own) if held.any() else None,
        }
        for name, values in best.items()
    }
    return Fit(
        tried[method],
        best[method],
        {
            "method": method,
            "boxes": len(fitting.labels),
            "held_out": int(held.sum()),
            "before": rows[present],
            "after": rows[method],
            "tried": list(rows.values()),
            "shapes": [[list(shape) for shape in level] for level in level_shapes(tried[method])],
            "seed": seed,
        },
    )


def _hold_out(objects: Objects, seed: int) -> Flags:
    """Return which boxes belong to the images held out of fitting; none where there are too few."""
    images = np.unique(objects.image)
    if len(images) < FEWEST_IMAGES or len(objects.labels) < FEWEST_BOXES:
        return np.zeros(len(objects.labels), np.bool_)
    held = np.random.default_rng(seed).permutation(images)[: max(1, round(HELD_OUT * len(images)))]
    return np.isin(objects.image, held)


def _shares(best_iou: Floats, config: Config) -> dict[str, float]:
    return {
        "best_iou": float(best_iou.mean()),
        "reached": float(is_reached(best_iou, config.matching).mean()),
        "reached50": float((best_iou >= IOU50).mean()),
    }


def config_text(found: Anchors, command: str, given: Mapping[str, Any]) -> str:
    """Return fitted anchors as the text of a TOML file that `multibox train --config` takes as it is.

    Args:
        found: With fitted anchors.
        command: What made it, for a comment.
        given: Settings by dotted key that were measured with, such as those of `--set`; they are written, too.
    """
    assert found.fit is not None
    after, report, fit = found.fit.config, found.report, found.fit.report
    before, held = fit["before"], fit["after"]["held_out"]
    reached = f"before {_percent(before['reached50'])}, now {_percent(fit['after']['reached50'])}"
    if held is not None:
        reached += f"; on {fit['held_out']} held-out boxes {_percent(before['held_out']['reached50'])} and "
        reached += _percent(held["reached50"])
    comments = [
        f"Anchors of {after.preset} fitted to {report['data']} (split {report['split']}: {report['boxes']} boxes),",
        f"made by multibox {__version__}, {datetime.date.today().isoformat()}: {command}",
        f"Method: {fit['method']}. Boxes that an anchor overlaps by 0.5 or more: {reached}.",
        f"Mean of each box's largest overlap: before {before['best_iou']:.3f}, now {fit['after']['best_iou']:.3f}.",
        "Widths and heights are shares of the input; each feature map keeps its number of anchors.",
        "Use: multibox train DATA --config THIS-FILE",
    ]
    values: dict[str, Any] = {key: value for key, value in given.items() if key.partition(".")[0] != "data"}
    for name in ("style", "shapes", "sizes", "ratios", "fit"):
        values[f"anchors.{name}"] = getattr(after.anchors, name)
    values["model.input_size"] = list(after.model.input_size)
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    lines = [f"# {' '.join(line.split())}" for line in comments]
    lines += [f"preset = {json.dumps(after.preset)}", f"recipe = {json.dumps(after.recipe)}"]
    for section, settings in sorted(sections.items()):
        # Numbers, texts and nested lists are written alike in JSON and TOML
        lines += ["", f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
