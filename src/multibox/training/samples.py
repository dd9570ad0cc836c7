"""A few validation images with what the network finds in them, drawn at every validation as one small sheet."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.files import write_bytes_whole
from multibox.plots.detections import contact_sheet, draw_detections
from multibox.structures import Dataset, Detections, Size
from multibox.tensors import Batch
from multibox.thresholds import drop_low_scores

MOST = 8
"""Images on a sheet."""
COLUMNS, SIDE = 4, 320
"""Images per row, and the longer side of each in pixels."""
MOST_BOXES = 30
"""Drawn in an image, the best; a network that has learned nothing yet finds hundreds."""
QUALITY = 85
FOLDER = "images"
_NAME = re.compile(r"step-(\d+)\.jpg")


class Samples:
    """Up to 8 images of a split, the same ones in each validation of a run and of its resumed parts.

    Their pixels are those that the network sees, kept from the first validation, so nothing is decoded for them.

    Args:
        dataset: The validation split.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.rows = _choose(dataset)
        self.pixels: dict[int, tuple[NDArray[np.uint8], Size]] = {}

    def take(self, batch: Batch) -> None:
        """Keep the pixels of the chosen images; the batch must be on the host."""
        if batch.image_rows is None or len(self.pixels) == len(self.rows):
            return
        for place, row in enumerate(map(int, batch.image_rows)):
            if row in self.rows and row not in self.pixels:
                pixels = batch.images[place].permute(1, 2, 0).numpy().copy()
                self.pixels[row] = pixels, batch.sizes[place]

    def sheet(self, detections: Sequence[Detections], thresholds: Sequence[float]) -> Image.Image:
        """Return the images with the detections that reach their class's threshold.

        Args:
            detections: Of every image of the split, in order.
            thresholds: Lowest score of each class.
        """
        tiles: list[Image.Image] = []
        captions: list[str] = []
        lowest = np.array(thresholds, np.float32)
        for row in self.rows:
            pixels, size = self.pixels[row]
            scale = SIDE / max(size)
            small = Image.fromarray(pixels).resize(
                (max(1, round(size.width * scale)), max(1, round(size.height * scale)))
            )
            found = drop_low_scores(detections[row], lowest)
            factors = np.array([small.width / size.width, small.height / size.height] * 2, np.float32)
            best = found[:MOST_BOXES]
            tiles.append(draw_detections(small, Detections(best.boxes * factors, best.scores, best.labels, best.names)))
            labelled = int(self.dataset.starts[row + 1] - self.dataset.starts[row])
            captions.append(f"{Path(self.dataset.image_names[row]).name}: {len(found)} found, {labelled} labelled")
        return contact_sheet(tiles, COLUMNS, SIDE, captions)


def write_samples(run: Path, step: int, sheet: Image.Image) -> str:
    """Write the sheet of a validation; return its place below the run folder."""
    name = f"{FOLDER}/step-{step:06}.jpg"
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=QUALITY)
    write_bytes_whole(run / name, data.getvalue())
    return name


def remove_later_samples(run: Path, step: int) -> None:
    """Remove the sheets of validations after `step`, from which the run goes on."""
    for path in (run / FOLDER).glob("step-*.jpg"):
        found = _NAME.fullmatch(path.name)
        if found and int(found[1]) > step:
            path.unlink(missing_ok=True)


def _choose(dataset: Dataset) -> list[int]:
    """Return images spread over the split, those with objects if there are enough."""
    counts = np.diff(dataset.starts)
    with_objects = np.flatnonzero(counts)
    among = with_objects if len(with_objects) >= min(MOST, len(dataset)) else np.arange(len(dataset))
    places = np.linspace(0, len(among) - 1, min(MOST, len(among)))
    return among[np.unique(np.rint(places).astype(np.int64))].tolist()
