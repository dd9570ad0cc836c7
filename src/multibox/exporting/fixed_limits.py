"""A plain ONNX model with its limits built in, for servers that give each input a batch dimension. No torch here.

Triton's onnxruntime backend refuses scalars and optional inputs where it forms batches, so such a model takes images
alone. It returns what `predict` reports by default: the detections that reach their class's threshold.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data.sprites import render
from multibox.errors import MissingExtraError, WeightsError
from multibox.inference.engines import KEY, LIMITS, OUTPUTS, Feeds, limits
from multibox.inference.load import detections_of
from multibox.privacy import import_onnxruntime
from multibox.structures import Detections
from multibox.thresholds import drop_low_scores, just_below, lowest_scores

PREFIX = "unfiltered_"
"""Before the names of the plain model's outputs."""
LOW, WANTED = 0.001, 20
"""Score threshold, and number of detections per image, at which the model is compared with the plain one."""
SCORE, BOX = 1e-5, 1e-2
"""Largest difference of the scores and corners of a pair, the latter in pixels."""
# What drops the detections below their class's threshold and closes the gaps, in operators that opsets 13 to 20 share.
# The padding of one row serves images without detections: some runtimes fail on empty tensors
_FILTER = """
filter (float[b, n, 4] {p}boxes, float[b, n] {p}scores, int64[b, n] {p}labels)
    => (float[b, m, 4] boxes, float[b, m] scores, int64[b, m] labels, int64[b] counts) {{
  filter_zero = Constant <value = float {{0}}> ()
  filter_first = Constant <value = int64 {{0}}> ()
  filter_one = Constant <value = int64[1] {{1}}> ()
  filter_two = Constant <value = int64[1] {{2}}> ()
  filter_start = Constant <value = int64[1] {{0}}> ()
  filter_row = Constant <value = int64[4] {{0, 0, 0, 1}}> ()
  filter_rows = Constant <value = int64[6] {{0, 0, 0, 0, 1, 0}}> ()
  filter_none = Constant <value = int64 {{-1}}> ()
  filter_known = Max ({p}labels, filter_first)
  filter_bar = Gather (filter_lowest, filter_known)
  filter_high = GreaterOrEqual ({p}scores, filter_bar)
  filter_real = GreaterOrEqual ({p}labels, filter_first)
  filter_kept = And (filter_high, filter_real)
  filter_ranked = Where (filter_kept, {p}scores, filter_zero)
  filter_ones = Cast <to = 7> (filter_kept)
  counts = ReduceSum <keepdims = 0> (filter_ones, filter_one)
  filter_longest = ReduceMax <keepdims = 1> (counts)
  filter_width = Max (filter_longest, filter_one)
  filter_padded = Pad (filter_ranked, filter_row)
  filter_top, filter_place = TopK <axis = 1> (filter_padded, filter_width)
  scores = Slice (filter_top, filter_start, filter_longest, filter_one)
  filter_near = Slice (filter_place, filter_start, filter_longest, filter_one)
  filter_good = Greater (scores, filter_zero)
  filter_all = Shape ({p}scores)
  filter_last = Gather (filter_all, filter_one)
  filter_source = Where (filter_good, filter_near, filter_last)
  filter_index = Unsqueeze (filter_source, filter_two)
  filter_boxes = Pad ({p}boxes, filter_rows)
  boxes = GatherND <batch_dims = 1> (filter_boxes, filter_index)
  filter_labels = Pad ({p}labels, filter_row, filter_none)
  labels = GatherND <batch_dims = 1> (filter_labels, filter_index)
}}
"""


def fix_limits(file: Path, dialect: str, threshold: float | None = None) -> tuple[Any, dict[str, Any]]:
    """Return an onnx.ModelProto with the input `images` alone and the plain outputs, and its description of itself.

    Args:
        file: a model of dialect plain, with its weights inside.
        dialect: name of the new dialect for the description; multibox itself does not open it.
        threshold: lowest score that the model reports; None takes each class's own.

    Raises:
        MissingExtraError: the package onnx is not installed.
        WeightsError: the new model does not give the detections that the plain one gives.
    """
    if find_spec("onnx") is None:
        raise MissingExtraError(f"Writing a model for {dialect}", "export")
    import onnx

    plain: Any = onnx.load(file)
    about = json.loads(next(entry.value for entry in plain.metadata_props if entry.key == KEY))
    lowest = lowest_scores(threshold, about["post"]["thresholds"], about["names"])
    _prove(plain, about)
    fixed = _fixed(plain, about["post"], lowest)
    about = fixed_about(about, dialect, lowest)
    next(entry for entry in fixed.metadata_props if entry.key == KEY).value = json.dumps(
        about, ensure_ascii=False, sort_keys=True
    )
    return fixed, about


def fixed_about(about: Mapping[str, Any], dialect: str, lowest: NDArray[np.float32]) -> dict[str, Any]:
    """Return the description of a model with fixed thresholds [C], written as decimal fractions."""
    thresholds = [float(np.format_float_positional(score)) for score in lowest]
    return {**about, "dialect": dialect, "post": {**about["post"], "thresholds": thresholds}}


def _fixed(plain: Any, post: dict[str, Any], lowest: NDArray[np.float32]) -> Any:
    """Return a copy whose limits are constants and which reports what reaches the lowest score [C] of its class."""
    from onnx import ModelProto, checker, numpy_helper

    model = ModelProto()
    model.CopyFrom(plain)
    graph = model.graph
    # Files of version 0.1 have initialisers of these names: defaults of the inputs
    places: tuple[Any, Any] = (graph.input, graph.initializer)
    for values in places:
        for entry in [entry for entry in values if entry.name in LIMITS]:
            values.remove(entry)
    above = limits(just_below(float(lowest.min())), post["nms_threshold"], post["max_detections"])
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in above.items())
    if lowest.min() < lowest.max():
        _add_filter(graph, lowest)
    checker.check_model(model)
    return model


def _add_filter(graph: Any, lowest: NDArray[np.float32]) -> None:
    """Add what drops the detections below the lowest score [C] of their class."""
    for node in graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                if name in OUTPUTS:
                    values[index] = PREFIX + name
    added = _filter_graph(lowest)
    graph.node.extend(added.node)
    graph.initializer.extend(added.initializer)


def _filter_graph(lowest: NDArray[np.float32]) -> Any:
    from onnx import numpy_helper, parser

    graph: Any = parser.parse_graph(_FILTER.format(p=PREFIX))
    graph.initializer.append(numpy_helper.from_array(lowest, "filter_lowest"))
    return graph


def filter_model(lowest: NDArray[np.float32]) -> bytes:
    """Return an ONNX model of its own that filters the plain outputs, named with `PREFIX`.

    Raises:
        MissingExtraError: the package onnx is not installed.
    """
    if find_spec("onnx") is None:
        raise MissingExtraError("Thresholds per class inside a model", "export")
    from onnx import helper

    model = helper.make_model(_filter_graph(lowest), opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    return model.SerializeToString()


def _prove(plain: Any, about: dict[str, Any]) -> None:
    """Compare the plain model's detections with those of a twin with other limits built in.

    Raises:
        WeightsError: they differ.
    """
    names, images = tuple(about["names"]), proof_images()
    wanted, lowest = filtered_twin(open_bytes(plain.SerializeToString()), about, images)
    got = open_bytes(_fixed(plain, about["post"], lowest).SerializeToString())({"images": images})
    if not same_detections(detections_of(got, names), wanted):
        raise WeightsError("the model with limits built in gives other detections than the plain one; please report it")


def proof_images() -> NDArray[np.uint8]:
    """Return synthetic images [b, h, w, 3] to compare two models on."""
    return np.stack([render(index, seed=5, classes=3, objects=(2, 4), size=192)[0] for index in range(3)])


def filtered_twin(
    run: Callable[[Feeds], dict[str, NDArray[Any]]], about: Mapping[str, Any], images: NDArray[np.uint8]
) -> tuple[list[Detections], NDArray[np.float32]]:
    """Return a plain model's detections at thresholds low enough to have some, and these thresholds [C].

    They differ from class to class, so that a model built with them needs the filter.

    Args:
        run: the plain model.
        about: its description of itself.
        images: of one size.
    """
    names, post = tuple(about["names"]), about["post"]

    def detect(above: float) -> list[Detections]:
        feeds = {"images": images, **limits(above, post["nms_threshold"], post["max_detections"])}
        return detections_of(run(feeds), names)

    scores = np.sort(np.concatenate([each.scores for each in detect(LOW)]))[::-1]
    low, high = (float(scores[min(rank, len(scores) - 1)]) if len(scores) else LOW for rank in (WANTED * 3, WANTED))
    lowest = np.where(np.arange(len(names)) % 2 == 0, np.float32(low), np.float32(high)).astype(np.float32)
    return [drop_low_scores(each, lowest) for each in detect(just_below(low))], lowest


def same_detections(some: Sequence[Detections], others: Sequence[Detections]) -> bool:
    """Return whether two models found the same in each image. Detections of equal scores may change places."""
    return all(map(_same, some, others))


def _same(some: Detections, others: Detections) -> bool:
    if len(some) != len(others):
        return False
    distance = np.abs(some.boxes[:, None] - others.boxes).max(2)
    apart = (some.labels[:, None] != others.labels) | (np.abs(some.scores[:, None] - others.scores) > SCORE)
    near = np.where(apart, np.inf, distance) <= BOX
    # Each has a partner, on either side; several partners only where boxes lie upon each other
    return bool(near.any(0).all() and near.any(1).all())


def open_bytes(data: bytes) -> Callable[[Feeds], dict[str, NDArray[Any]]]:
    """Return a function from inputs to outputs by name that runs an ONNX model in onnxruntime on the CPU."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, dict(feeds)), strict=True))


def told(about: Mapping[str, Any]) -> str:
    """Return words about the thresholds inside a model."""
    low, high = min(about["post"]["thresholds"]), max(about["post"]["thresholds"])
    return f"it reports scores from {low:g}" + (f" to {high:g} on, by class" if high > low else " on")


def served_name(name: str) -> str:
    """Return a name of letters, digits, hyphens, dots and underscores, as servers and their URLs take it."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in name)
    return kept.strip("-.") or "model"
