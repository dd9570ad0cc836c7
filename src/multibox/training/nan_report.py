"""The folder `nan-STEP` of a run: everything to make a bad step again, without the data and the run's other files."""

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec import Struct
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from multibox.config import Config
from multibox.errors import WeightsError
from multibox.files import whole_folder, write_bytes_whole, write_text_whole
from multibox.plots.overlays import Outline, draw_outlines, fitted, write_numbers
from multibox.structures import Size
from multibox.tensors import Batch
from multibox.training.folder import CONFIG, save_state
from multibox.training.nan_causes import Cause, Evidence
from multibox.training.nan_measures import Measured, Number
from multibox.training.step import Stepper

REPORT, TEXT, BATCH = "report.json", "report.md", "batch-{}.safetensors"
FORMAT = 1
"""Version of report.json; a reader refuses a newer one."""
MOST_LAYERS = 8
"""Layers listed in the text, those with the largest gradients; report.json has all."""
_BOX = Outline("#d55e00", 2, halo="#ffffff")
_UNSAFE = re.compile(r"[^\w.-]+")


class Report(Struct, frozen=True):
    """What is known of a bad step; `null` stands for numbers that are not finite."""

    format: int
    step: int
    loss: str
    """As the run computed it, such as nan or inf."""
    gradient: str
    """Length of the whole gradient, likewise."""
    seed: int
    """Step and seed determine every draw."""
    device: str
    precision: str
    threads: int
    """CPU threads of the step."""
    rates: tuple[float, ...]
    """Learning rate of each parameter group."""
    class_names: tuple[str, ...]
    images: tuple[tuple[str, ...], ...]
    """Names, per process."""
    measured: Measured | None
    """By the step when it was repeated; None where a class index is out of range, which no step survives."""
    evidence: Evidence
    cause: Cause

    @property
    def trouble(self) -> str:
        """What went wrong at which step, in words."""
        if self.cause.kind == "class index":
            return f"step {self.step} cannot be made"
        if not math.isfinite(float(self.loss)):
            return f"the loss became {self.loss} at step {self.step}"
        return f"the gradient became {self.gradient} at step {self.step}"


def write_report(run: Path, stepper: Stepper, config: Config, report: Report, batches: Sequence[Batch]) -> Path:
    """Write the folder of a step whole, and return it; one that is there is replaced.

    Args:
        run: The run folder.
        stepper: Of before the step.
        config: Of the run, with its data.
        report: What was found out.
        batches: On the host, one per process.

    Raises:
        OSError: There is no room, or the folder cannot be written to; nothing is left behind.
    """
    target = run / f"nan-{report.step}"
    # Left by a process that was killed after it, or by a run that was resumed and met it again
    shutil.rmtree(target, ignore_errors=True)
    with whole_folder(target) as folder:
        write_text_whole(folder / CONFIG, config.to_toml(with_data=True))
        notes: dict[str, Any] = {"pace": {}, "thawed": not stepper.frozen}
        save_state(folder, stepper, notes, {})
        for rank, batch in enumerate(batches):
            write_bytes_whole(folder / BATCH.format(rank), _pack(batch))
            _draw(folder / "images", batch, rank * len(batches[0].image_names))
        write_bytes_whole(folder / REPORT, msgspec.json.format(msgspec.json.encode(report), indent=1))
        write_text_whole(folder / TEXT, describe(report))
    return target


def read_report(folder: Path) -> tuple[Report, list[Batch]]:
    """Return what `write_report` wrote beside the state.

    Raises:
        WeightsError: There is no such folder, a file of it is broken, or a newer version wrote it.
    """
    if not (folder / REPORT).is_file():
        raise WeightsError(
            f"{folder} has no {REPORT}, so there is no step to repeat; give a folder such as runs/NAME-1/nan-120"
        )
    try:
        plain = json.loads((folder / REPORT).read_bytes())
        if isinstance(plain, dict) and plain.get("format", 0) > FORMAT:  # pyright: ignore[reportUnknownMemberType]
            raise WeightsError(f"{folder / REPORT} is of a newer multibox; install that version to repeat the step")
        report = msgspec.convert(plain, Report)
        return report, [_unpack(folder / BATCH.format(rank)) for rank in range(len(report.images))]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, msgspec.ValidationError) as error:
        raise WeightsError(
            f"{folder} cannot be read ({error}); it was changed or damaged since the run wrote it"
        ) from None


def describe(report: Report) -> str:
    """Return the report as text in Markdown."""
    lines = [
        f"# {report.trouble[0].upper()}{report.trouble[1:]}",
        "",
        f"Likely cause ({report.cause.kind}): {report.cause.sentence}.",
        "",
        f"What to do: {report.cause.advice}.",
        "",
        f"Learning rate {max(report.rates, default=0):g}, {report.precision} on {report.device}, seed {report.seed}.",
        f"Images: {', '.join(name for names in report.images for name in names)}.",
    ]
    if report.measured is not None:
        lines += ["", *_tables(report.measured)]
    if report.evidence.history:
        steps = report.evidence.history[-10:]
        lines += ["", "Losses before: " + ", ".join(f"step {n} {loss:.4g}" for n, loss, _ in steps) + "."]
    return "\n".join(lines) + "\n"


def _tables(measured: Measured) -> list[str]:
    lines = ["| feature map | positives | class loss | box loss | outputs not finite |", "|---|---|---|---|---|"]
    for level in measured.levels:
        losses = f"{_cell(level.class_loss)} | {_cell(level.box_loss)}"
        lines.append(f"| {level.cells[0]} x {level.cells[1]} | {level.positives} | {losses} | {level.not_finite} |")
    odd = [layer for layer in measured.layers if layer.gradient is None or layer.not_finite]
    rest = sorted((layer for layer in measured.layers if layer not in odd), key=lambda one: -(one.gradient or 0))
    lines += ["", "| layer | gradient | largest weight | weights not finite |", "|---|---|---|---|"]
    lines += [
        f"| {layer.name} | {_cell(layer.gradient)} | {_cell(layer.largest)} | {layer.not_finite} |"
        for layer in (odd + rest)[:MOST_LAYERS]
    ]
    others = len(measured.layers) - MOST_LAYERS
    return [*lines, f"| {others} more: {REPORT} | | | |"] if others > 0 else lines


def _cell(number: Number) -> str:
    return "not finite" if number is None else f"{number:.4g}"


def _pack(batch: Batch) -> bytes:
    tensors = {"images": batch.images, "gt_xyxy": batch.gt_xyxy, "gt_labels": batch.gt_labels}
    tensors |= {} if batch.gt_rows is None else {"gt_rows": batch.gt_rows}
    tensors |= {} if batch.image_rows is None else {"image_rows": batch.image_rows}
    notes: dict[str, Any] = {"image_names": batch.image_names, "sizes": batch.sizes, "lost_boxes": batch.lost_boxes}
    # The memory order decides which kernels compute, and so the last bits
    channels_last = batch.images.is_contiguous(memory_format=torch.channels_last)
    notes["channels_last"] = channels_last
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"notes": json.dumps(notes)})


def _unpack(path: Path) -> Batch:
    opener: Any = safe_open  # safetensors has no types
    with opener(path, framework="pt") as file:
        notes = json.loads(file.metadata()["notes"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if notes["channels_last"]:
        tensors["images"] = tensors["images"].contiguous(memory_format=torch.channels_last)
    return Batch(
        **tensors,
        image_names=notes["image_names"],
        sizes=[Size(*size) for size in notes["sizes"]],
        lost_boxes=notes["lost_boxes"],
    )


def _draw(folder: Path, batch: Batch, first: int) -> None:
    """Draw each image with its boxes as PNG; the numbers of the boxes are those of the report."""
    folder.mkdir(exist_ok=True)
    for place, name in enumerate(batch.image_names):
        pixels = batch.images[place].permute(1, 2, 0).contiguous().numpy()
        image, scale = fitted(Image.fromarray(pixels))
        sides = np.array([pixels.shape[1], pixels.shape[0]] * 2)
        shown = batch.gt_xyxy[place][batch.gt_labels[place] >= 0].numpy()
        # Pillow fails on what is not finite
        boxes = np.clip(np.nan_to_num(shown * sides), -1e6, 1e6)
        draw_outlines(image, boxes.tolist(), scale, _BOX)
        write_numbers(image, np.clip(boxes, 0, sides).tolist(), scale, _BOX.colour)
        image.save(folder / f"{first + place:03}-{_UNSAFE.sub('_', Path(name).stem)[:60]}.png")
