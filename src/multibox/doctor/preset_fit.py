"""Whether a preset's network can see the objects of a data set: its cells, its anchors, its limit of detections."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.analysis.anchor_fit import fitted_as_asked
from multibox.analysis.coverage import best_overlaps, is_reached
from multibox.config import Config
from multibox.doctor.findings import Finding, Severity, finding
from multibox.doctor.survey import Survey
from multibox.models.anchor_layout import cell_shapes, make_anchors
from multibox.models.build import measure
from multibox.presets import PRESETS, resolve
from multibox.structures import Boxes, Flags, Size

FEW, MANY = 0.05, 0.25
"""Share of the objects from which a misfit is a warning, and from which other presets are tried."""
CELLS = 2
"""Cells of the finest feature map that an object should cover along a side."""
LARGEST = 1024
"""Side of the input up to which a larger one is advised; beyond it images should be cut into tiles."""
SAMPLED = 4000
"""Objects compared with every anchor, evenly spaced."""
TRIED = 500
"""The same for each other preset."""
_BETTER = 0.1
"""Share of the objects that another preset must reach more than this one to be named."""


class Objects(NamedTuple):
    """Objects of all splits, without crowds and broken boxes."""

    fractions_xyxy: Boxes
    """[N, 4] of their images."""
    image_wh: NDArray[np.float64]
    """[N, 2]"""
    where: list[tuple[str, str]]
    """Label file and place of each."""


def check_preset(surveys: Mapping[str, Survey], preset: str) -> Iterator[Finding]:
    """Yield what of the data set a preset's network cannot see or report."""
    config = resolve(preset)
    objects = gather(surveys)
    yield from _too_many(surveys, config, preset)
    if not len(objects.where):
        return
    config = fitted(config, objects)
    small, long = below_cells(objects, config), elongated(objects, config)
    missed = unreached(objects, config)
    root, where = next(iter(surveys.values())).raw.root, f"preset {preset}"
    height, width = config.model.input_size
    if small.any():
        side = float(np.median(sides(objects, config.model.input_size)[small]))
        cell = finest_cell(config)
        what = (
            f"{_share(small)} smaller than {least_side(config):.0f} pixels at the input of {width} x {height} (median "
            f"{side:.2g}; a cell of the finest feature map has {cell:.2g}), such as {_example(objects, small)}"
        )
        advice = larger_input(objects, small, config)
        yield finding("below-feature-cell", root, what, where, severity=_severity(small), fix=advice)
    if long.any():
        what = (
            f"{_share(long)} too elongated for the anchors, whose sides are at most {_most_elongated(config):.2g} to "
            f"1, such as {_example(objects, long)}"
        )
        yield finding("too-elongated", root, what, where, severity=_severity(long), fix=_anchor_advice(config))
    if missed.mean() > FEW:
        what = f"{_share(missed)} reached by no anchor with the overlap of {config.matching.threshold:g} of matching"
        advice = _coverage_advice(objects, config, preset, float(missed.mean()))
        severity: Severity = "warning" if missed.mean() > MANY else "note"
        yield finding("unreachable-by-anchors", root, what, where, severity=severity, fix=advice)


def gather(surveys: Mapping[str, Survey]) -> Objects:
    """Return the objects of all splits, cut at their images' edges."""
    boxes: list[Boxes] = [np.zeros((0, 4))]
    sizes: list[NDArray[np.float64]] = [np.zeros((0, 2))]
    where: list[tuple[str, str]] = []
    seen: set[tuple[str, int | None]] = set()
    for survey in surveys.values():
        keys = list(zip(map(str, survey.raw.paths), survey.raw.offsets, strict=True))
        fresh = np.array([key not in seen for key in keys], np.bool_)  # VOC's trainval holds train and val
        seen.update(keys)
        edges = np.tile(survey.box_wh, 2)
        with np.errstate(invalid="ignore", divide="ignore"):
            inside: Boxes = np.clip(survey.boxes_xyxy / edges, 0, 1)
            usable = np.isfinite(inside).all(axis=1) & (inside[:, 2:] > inside[:, :2]).all(axis=1) & ~survey.raw.crowd
            usable &= fresh[survey.raw.owners]
        rows = np.flatnonzero(usable).tolist()
        boxes.append(inside[usable])
        sizes.append(survey.box_wh[usable])
        where += [(survey.file_of(row), survey.where_of(row)) for row in rows]
    return Objects(np.concatenate(boxes), np.concatenate(sizes), where)


def fitted(config: Config, objects: Objects) -> Config:
    """Return the config with its anchors fitted to the objects, if a run with it would do so."""
    return fitted_as_asked(config, objects.fractions_xyxy[:, 2:] - objects.fractions_xyxy[:, :2])


def sides(objects: Objects, size: Size) -> NDArray[np.float64]:
    """Return the square root of each object's area in pixels of the input, [N]."""
    spans = objects.fractions_xyxy[:, 2:] - objects.fractions_xyxy[:, :2]
    return np.sqrt((spans * (size.width, size.height)).prod(axis=1))


def finest_cell(config: Config) -> float:
    """Return the side of a cell of the finest feature map, in pixels of the input."""
    (height, width), shape = config.model.input_size, measure(config, 1).feature_shapes[0]
    return math.sqrt(height / shape.height * width / shape.width)


def least_side(config: Config) -> float:
    """Return the side below which an object covers under `CELLS` cells, or overlaps no anchor enough."""
    smallest = math.sqrt(float(_anchor_spans(config).prod(axis=1).min()))
    return max(CELLS * finest_cell(config), math.sqrt(config.matching.threshold) * smallest)


def below_cells(objects: Objects, config: Config) -> Flags:
    """Return which objects are smaller than two cells of the finest map or than the smallest anchor, [N]."""
    return sides(objects, config.model.input_size) < least_side(config)


def elongated(objects: Objects, config: Config) -> Flags:
    """Return which objects no anchor could match at its best size and place, being too square, [N]."""
    height, width = config.model.input_size
    spans = (objects.fractions_xyxy[:, 2:] - objects.fractions_xyxy[:, :2]) * (width, height)
    anchors = _anchor_spans(config)
    ratios = np.log(spans[:, 0] / spans[:, 1])
    known = np.log(anchors[:, 0] / anchors[:, 1])
    beyond = np.maximum(ratios - known.max(), known.min() - ratios)
    # Two boxes of one centre and area whose aspects differ by a factor k overlap by x / (2 - x), x = k ** -0.5
    shared = np.exp(-np.maximum(beyond, 0) / 2)
    return np.asarray((beyond > 0) & (shared / (2 - shared) < config.matching.threshold))


def unreached(objects: Objects, config: Config, most: int = SAMPLED) -> Flags:
    """Return which of up to `most` objects no anchor overlaps by the matching threshold, as training matches."""
    count = len(objects.where)
    rows = np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))
    anchors = make_anchors(config.anchors, measure(config, 1).feature_shapes, config.model.input_size)
    return ~is_reached(best_overlaps(objects.fractions_xyxy[rows], anchors)[0], config.matching)


def larger_input(objects: Objects, small: Flags, config: Config) -> str:
    """Return the input size, or the tiles, at which most of the small objects are large enough."""
    height, width = config.model.input_size
    found = sides(objects, config.model.input_size)
    factor = least_side(config) / max(float(np.quantile(found[small], 0.25)), 1e-6)
    larger = [math.ceil(side * factor / 32) * 32 for side in (height, width)]
    if max(larger) <= LARGEST:
        return f"A larger input, such as --set model.input_size={larger}; or cut the images into tiles."
    across = float(np.median(np.sqrt(objects.image_wh[small].prod(axis=1))))
    tile = max(32, round(across / factor / 32) * 32)
    return f"Cut the images into tiles of about {tile} pixels: an input of {larger} is too large."


def _too_many(surveys: Mapping[str, Survey], config: Config, preset: str) -> Iterator[Finding]:
    most = config.post.max_detections
    for survey in surveys.values():
        raw = survey.raw
        counts = np.bincount(raw.owners[~raw.crowd], minlength=len(raw.image_names))
        for row in np.flatnonzero(counts > most).tolist():
            what = f"{raw.image_names[row]} has {counts[row]} objects, {preset} reports at most {most}"
            advice = f"--set post.max_detections={math.ceil(int(counts.max()) / 100) * 100}"
            yield finding("too-many-objects", raw.sources[row], what, raw.image_names[row], fix=advice)


def _anchor_spans(config: Config) -> NDArray[np.float64]:
    """Return width and height of every anchor shape in pixels of the input, [N, 2]."""
    height, width = config.model.input_size
    shapes = [shape for level in cell_shapes(config.anchors, config.model.input_size) for shape in level]
    return np.array(shapes, np.float64).reshape(-1, 2) * (width, height)


def _most_elongated(config: Config) -> float:
    spans = _anchor_spans(config)
    return float((spans.max(axis=1) / spans.min(axis=1)).max())


def _anchor_advice(config: Config) -> str:
    return "--set anchors.fit=6, with more such objects" if config.anchors.style == "shapes" else "--set anchors.fit=4"


def _coverage_advice(objects: Objects, config: Config, preset: str, missed: float) -> str:
    """Name what was measured to reach more objects: fitted anchors, or another preset."""
    if config.anchors.style != "shapes":
        after = float(unreached(objects, fitted(resolve(preset, "default", {"anchors.fit": 4}), objects)).mean())
        if after < missed - _BETTER:
            return f"--set anchors.fit=4: {100 * after:.0f} % would not be reached"
    if missed > MANY:
        others = {name: float(unreached(objects, fitted(resolve(name), objects), TRIED).mean()) for name in PRESETS}
        best = min(others, key=lambda name: others[name])
        if others[best] < missed - _BETTER:
            return f"--preset {best}: {100 * others[best]:.0f} % would not be reached"
    return "A larger model.input_size, or tiles, if the objects are small; else more of such objects to fit anchors to."


def _severity(chosen: Flags) -> Severity:
    return "warning" if chosen.mean() > FEW else "note"


def _share(chosen: Flags) -> str:
    count = int(chosen.sum())
    return f"{count} of {len(chosen)} objects ({100 * chosen.mean():.2g} %) {'is' if count == 1 else 'are'}"


def _example(objects: Objects, chosen: Flags) -> str:
    _, where = objects.where[int(np.argmax(chosen))]
    return where
