import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multibox.data import sprites
from multibox.data.formats import open_dataset
from multibox.data.images import load_image
from multibox.data.sprites import make_sprites, paste, render
from multibox.data.sprites_figures import Lamp, cast, class_name, figure, turn
from multibox.errors import ConfigError, DataError

WHITE = Lamp(np.array([0, 0, 1], np.float32), np.ones(3, np.float32), np.ones(3, np.float32) / 2)


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_bytes_every_time_and_others_for_another_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_sprites(tmp_path / name, images=6, size=64, classes=2, objects=(1, 3), seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_nine_tenths_are_for_training(tmp_path):
    make_sprites(tmp_path / "s", images=20, size=64)
    train, val = open_dataset(tmp_path / "s", "train"), open_dataset(tmp_path / "s", "val")
    assert (len(train), len(val)) == (18, 2)
    assert train.class_names == val.class_names == (class_name(0),)
    assert load_image(train[0]).size == (64, 64)
    pixels, boxes, labels = render(0, size=64)
    assert np.array_equal(np.asarray(load_image(train[0])), pixels)
    assert np.array_equal(train[0].boxes_xyxy, boxes)
    assert np.array_equal(train[0].labels, labels)


@pytest.mark.parametrize("format", ["voc", "coco", "yolo", "csv", "recordio"])
def test_every_format_holds_the_same(format, tmp_path):
    make_sprites(tmp_path / "s", images=4, size=64, classes=3, objects=(1, 4), format=format)
    dataset = open_dataset(tmp_path / "s", "train")
    assert dataset.format == format
    _, boxes, labels = render(1, size=64, classes=3, objects=(1, 4))
    assert np.allclose(dataset[1].boxes_xyxy, boxes, atol=1e-4)
    assert [dataset.class_names[i] for i in dataset[1].labels] == [class_name(i) for i in labels]


@given(index=st.integers(0, 10_000), classes=st.integers(1, 20), most=st.integers(0, 6))
def test_boxes_are_whole_pixels_inside_and_hide_each_other_little(index, classes, most):
    pixels, boxes, labels = render(index, classes=classes, objects=(min(1, most), most), size=96)
    assert pixels.shape == (96, 96, 3)
    assert pixels.dtype == np.uint8
    assert len(boxes) == len(labels) <= most
    assert (boxes == boxes.round()).all()
    assert (boxes >= 0).all()
    assert (boxes <= 96).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert ((labels >= 0) & (labels < classes)).all()


def test_the_box_is_tight_around_the_figure(monkeypatch):
    """What laying the figure over the scene changed strongly touches all four sides of the box and nothing beyond."""
    laid = []

    def watch(canvas, colour, cover, x, y):
        before = canvas.copy()
        paste(canvas, colour, cover, x, y)
        laid.append(np.abs(canvas - before).max(axis=-1))

    monkeypatch.setattr(sprites, "clutter", lambda *_: None)
    monkeypatch.setattr(sprites, "shadow", lambda *_: None)
    monkeypatch.setattr(sprites, "paste", watch)
    for index in range(20):
        laid.clear()
        _, boxes, _ = render(index, size=128)
        rows, columns = np.nonzero(laid[0] > 0.15)
        outline = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(outline - boxes[0]).max() <= 6
        inside = np.zeros((128, 128), bool)
        x1, y1, x2, y2 = boxes[0].astype(int)
        inside[y1:y2, x1:x2] = True
        assert laid[0][~inside].max() < 0.55


def test_the_longer_side_is_what_was_asked_for():
    _, cover = cast(figure(0), turn(0, 0, 0), 60, WHITE)
    assert cover.max() == 1
    assert max(cover.shape) == pytest.approx(60, abs=2)


def test_classes_have_different_outlines():
    outlines = [cast(figure(label), turn(0, 0, 0), 48, WHITE)[1] > 0.5 for label in range(8)]
    for i, a in enumerate(outlines):
        for b in outlines[:i]:
            height, width = max(a.shape[0], b.shape[0]), max(a.shape[1], b.shape[1])
            canvas = np.zeros((2, height, width), bool)
            canvas[0, : a.shape[0], : a.shape[1]] = a
            canvas[1, : b.shape[0], : b.shape[1]] = b
            assert (canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum() < 0.85
    assert len({class_name(i) for i in range(100)}) == 100


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="images >= 2"):
        make_sprites(tmp_path / "s", images=1)
    with pytest.raises(ConfigError, match="6-1"):
        make_sprites(tmp_path / "s", objects=(6, 1))
    (tmp_path / "full").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "full" / "mine.png")
    with pytest.raises(DataError, match="full"):
        make_sprites(tmp_path / "full", images=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]
