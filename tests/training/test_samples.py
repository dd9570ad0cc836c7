"""The sheet of validation images that every validation draws."""

import dataclasses
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from multibox.data.formats import open_dataset
from multibox.plots.detections import PALETTE
from multibox.structures import Detections, Size
from multibox.tensors import Batch
from multibox.training.run import RunOptions, prepare
from multibox.training.samples import Samples, remove_later_samples, write_samples

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


def batch_of(rows, size):
    images = torch.full((len(rows), 3, 20, 20), 128, dtype=torch.uint8)
    return Batch(images, torch.zeros(len(rows), 1, 4), torch.zeros(len(rows), 1, dtype=torch.long), [""] * len(rows),
                 [size] * len(rows), image_rows=torch.tensor(rows))  # fmt: skip


def test_images_are_spread_over_the_split_and_have_objects(draw_squares, tmp_path):
    dataset = open_dataset(draw_squares(tmp_path / "s", 40), "train")
    assert Samples(dataset).rows == [0, 4, 8, 12, 17, 21, 25, 29]
    starts = dataset.starts.copy()
    starts[1:11] = 0
    samples = Samples(dataclasses.replace(dataset, starts=starts))
    assert min(samples.rows) == 10 and len(samples.rows) == 8
    assert Samples(dataset.subset(range(3))).rows == [0, 1, 2]


def test_boxes_are_drawn_where_they_are_in_the_original(draw_squares, tmp_path):
    """A photograph of 400 x 200, seen by the network as a square, is drawn 320 x 160, its boxes with it."""
    dataset = open_dataset(draw_squares(tmp_path / "s", 4), "val")
    samples = Samples(dataset)
    samples.take(batch_of([0], Size(200, 400)))
    boxes = np.array([[100, 50, 300, 150], [0, 0, 390, 190]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.2], np.float32), np.array([0, 0]), ("a", "b"))
    sheet = np.asarray(samples.sheet([found], [0.5, 0.5]))
    blue = np.array([int(PALETTE[0][i : i + 2], 16) for i in (1, 3, 5)])
    ys, xs = np.nonzero((np.abs(sheet.astype(int) - blue) < 3).all(-1))
    # Only the certain one, and of it the lower edge, below which no label stands
    assert (
        sheet.shape[1] < 400
        and xs.min() - 10 == pytest.approx(80, abs=2)
        and xs.max() - 10 == pytest.approx(240, abs=2)
    )
    assert ys.max() - 10 - (320 - 160) / 2 == pytest.approx(120, abs=2)


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_images_and_removes_later_sheets(squares, tmp_path):
    folder = tmp_path / "run"
    options = RunOptions(preset="tinyssd", epochs=2, out=folder, changes=SMALL)
    trainer = prepare(squares, options)
    trainer.reporter.step = lambda trainer, parts: trainer.pace.step == 4 and signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    for name in ("step-000006.jpg", "step-000123.jpg", "mine.jpg"):
        (folder / "images" / name).write_bytes(b"")
    again = prepare(None, RunOptions(resume=folder))
    names = {path.name for path in (folder / "images").iterdir()}
    assert names == {"step-000003.jpg", "mine.jpg"} and again.validation.samples.rows == trainer.validation.samples.rows
    again.fit()
    with Image.open(folder / "images" / "step-000006.jpg") as sheet:
        assert sheet.width > 600


def test_sheets_are_named_by_their_step(tmp_path):
    assert write_samples(tmp_path, 1234567, Image.new("RGB", (8, 8))) == "images/step-1234567.jpg"
    remove_later_samples(tmp_path, 1234566)
    assert not list((tmp_path / "images").iterdir())
