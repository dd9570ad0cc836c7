"""NVIDIA Triton: a model repository with dynamic batching and warm-up. No torch here.

Where Triton forms batches, each input and output has a batch dimension, and a request that leaves out an input is
refused. So the model takes images alone, with the limits built in. Triton joins requests whose images have one size;
each gets its own rows back, padded to the most detections of the batch, and `counts` says how many are real.
"""
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multibox.exporting.fixed_limits import fix_limits, served_name, told

MOST, DELAY = 8, 1000
"""Images that one pass may join, and microseconds for which a request waits for others."""
WARM = (480, 640)
"""Height and width of the images of the warm-up: the first pass allocates memory and, on GPUs, chooses algorithms."""
_CONFIG = """\
# Written by `multibox export --to triton`. Requests: images uint8 RGB [n, height, width, 3] of any one size.
# Answers: boxes as x1, y1, x2, y2 in pixels, best first; `counts` says how many rows of each image are detections.
name: {name}
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: {most}
input [
  {{ name: "images" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }}
]
output [
  {{ name: "boxes" data_type: TYPE_FP32 dims: [ -1, 4 ] }},
  {{ name: "scores" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "labels" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "counts" data_type: TYPE_INT64 dims: [ 1 ] reshape {{ shape: [ ] }} }}
]
# Images of different sizes run one after another. KIND_AUTO: on each GPU, or on the CPU if there is none
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
instance_group [ {{ count: 1 kind: KIND_AUTO }} ]
model_warmup [
{warmups}
]
# JSON: names of the labels, and the lowest score reported of each
parameters {{ key: "names" value {{ string_value: {names} }} }}
parameters {{ key: "thresholds" value {{ string_value: {thresholds} }} }}
"""
_WARMUP = """\
  {{
    name: "batch of {batch}"
    batch_size: {batch}
    inputs {{
      key: "images"
      value {{ data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] random_data: true }}
    }}
  }}"""


def write_triton(model: Path, folder: Path, *, name: str, threshold: float | None = None) -> list[str]:
    """Write NAME/config.pbtxt and NAME/1/model.onnx, and return lines to print.

    Args:
        model: a .onnx file of dialect plain.
        folder: the model repository.
        name: what the server calls the model, after `served_name`.
        threshold: lowest score that the model reports; None takes each class's own.

    Raises:
        MissingExtraError: the package onnx is not installed.
        WeightsError: the model with its limits built in differs from the plain one.
    """
    name = served_name(name)
    fixed, about = fix_limits(model, "triton", threshold)
    place = folder / name / "1"
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(fixed.SerializeToString())
    (place.parent / "config.pbtxt").write_text(config(name, about), "utf-8")
    return [f"{name}: images of one size are joined, {MOST} at most; {told(about)}"]


def config(name: str, about: Mapping[str, Any]) -> str:
    """Return the text of config.pbtxt.

    Args:
        name: the model's name on the server.
        about: the model's description of itself.
    """
    height, width = WARM
    warmups = ",\n".join(_WARMUP.format(batch=batch, height=height, width=width) for batch in (1, MOST))
    return _CONFIG.format(
        name=_text(name),
        most=MOST,
        delay=DELAY,
        warmups=warmups,
        names=_text(json.dumps(about["names"], ensure_ascii=False)),
        thresholds=_text(json.dumps(about["post"]["thresholds"])),
    )


def _text(value: str) -> str:
    """Return a string as protobuf's text format writes it: JSON's escapes are among those that it knows."""
    return json.dumps(value, ensure_ascii=False)
