"""Boxes whose label files describe an image of another size or orientation; objects are solid on grey."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox.data.formats import open_dataset, read_raw
from multibox.data.formats.sizes import KEPT, SAME, SCALED, TURNED, fit_boxes
from multibox.data.images import load_image

CASES = Path(__file__).parents[2].parent / "shared" / "cases"
BOXES = [(10, 20, 60, 80), (30, 40, 110, 100), (80, 10, 150, 60), (40, 50, 90, 110), (5, 60, 65, 115)]
RED = (220, 20, 20)


def make(folder, sizes_declared, *, size=(160, 120), orientations=(1,) * 5, drawn=(160, 120), boxes=BOXES):
    """Write a COCO set of one red box per image, drawn on `drawn` and shrunk or enlarged to `size`."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, (box, orientation, declared) in enumerate(zip(boxes, orientations, sizes_declared, strict=True), 1):
        image = Image.new("RGB", drawn, (128, 128, 128))
        image.paste(RED, box)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.resize(size).save(folder / "images" / f"{number}.jpg", quality=95, exif=exif)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": declared[0], "height": declared[1]})
        x1, y1, x2, y2 = box
        entry = {"id": number, "image_id": number, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        annotations.append(entry)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "red"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def boxes_are_right(dataset):
    for sample in dataset:
        pixels = np.asarray(load_image(sample)).astype(int)
        red = (pixels[..., 0] > 170) & (pixels[..., 1] < 90)
        ys, xs = np.nonzero(red)
        seen = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert sample.size == pixels.shape[:2]
        np.testing.assert_allclose(sample.boxes_xyxy[0], seen, atol=1.01)
    return True


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_any_exif_orientation(tmp_path, orientation):
    # One image lies on its side, so that the tool is known to show images as stored
    data = open_dataset(make(tmp_path, [(160, 120)] * 5, orientations=(6, *[orientation] * 4)))
    assert boxes_are_right(data)
    assert len(data.notes) == 1 and "the boxes were turned with the image" in data.notes[0]
    assert data.notes[0].startswith(f"{1 if orientation == 1 else 5} image")


def test_images_upside_down_alone_tell_nothing(tmp_path):
    data = open_dataset(make(tmp_path, [(160, 120)] * 5, orientations=(3,) * 5))
    assert not data.notes
    np.testing.assert_array_equal(data.boxes_xyxy, np.array(BOXES, float))


def test_labels_that_follow_the_shown_orientation_are_untouched(tmp_path):
    boxes = [(10, 20, 60, 80), (30, 40, 110, 100), (10, 100, 60, 150), (40, 50, 90, 110), (5, 60, 65, 115)]
    make(tmp_path, [(120, 160)] * 5, orientations=(6,) * 5)
    content = json.loads((tmp_path / "annotations.json").read_text())
    for entry, (x1, y1, x2, y2) in zip(content["annotations"], boxes, strict=True):
        entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    data = open_dataset(tmp_path)
    assert not data.notes
    np.testing.assert_array_equal(data.boxes_xyxy, np.array(boxes, float))


def test_a_stored_size_with_boxes_of_the_shown_frame_is_kept(tmp_path):
    # A script took width and height from the file, but the tool showed the image upright
    make(tmp_path, [(160, 120)] * 5, orientations=(6,) * 5)
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["annotations"][2]["bbox"] = [10, 90, 50, 65]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    data = open_dataset(tmp_path)
    assert "kept as written" in data.notes[0]
    assert data.boxes_xyxy[2].tolist() == [10, 90, 60, 155]


@pytest.mark.parametrize("size", [(80, 60), (320, 240), (61, 46), (100, 100)])
def test_boxes_of_resized_images_are_scaled(tmp_path, size):
    data = open_dataset(make(tmp_path, [(160, 120)] * 5, size=size))
    assert boxes_are_right(data)
    assert data.notes == (
        f"5 images have another size than their label files say (1.jpg is {size[0]} x {size[1]}, the label says "
        "160 x 120); the boxes were scaled to the image's own size",
    )


@pytest.mark.parametrize("declared", [(80, 60), (120, 160), (1, 1), (100, 75), (161, 121), (2000, 1000)])
def test_a_wrong_size_in_the_label_file_does_not_move_boxes(tmp_path, declared):
    data = open_dataset(make(tmp_path, [declared] * 5))
    assert boxes_are_right(data)
    assert len(data.notes) == 1 and "kept as written, and the image's own size counts" in data.notes[0]
    np.testing.assert_array_equal(data.boxes_xyxy, np.array(BOXES, float))


def test_turned_and_resized(tmp_path):
    data = open_dataset(make(tmp_path, [(160, 120)] * 5, size=(80, 60), orientations=(6, 8, 5, 7, 6)))
    assert boxes_are_right(data)
    assert "turned with the image" in data.notes[0]


def test_only_the_resized_images_are_scaled(tmp_path):
    make(tmp_path, [(160, 120)] * 5)
    for number in (2, 3):
        path = tmp_path / "images" / f"{number}.jpg"
        Image.open(path).resize((80, 60)).save(path, quality=95)
    data = open_dataset(tmp_path)
    assert boxes_are_right(data)
    assert data.notes[0].startswith("2 images have another size")


def test_boxes_that_fit_both_sizes_are_kept(tmp_path):
    boxes = [(2, 3, 40, 50), (5, 5, 30, 20)]
    data = open_dataset(make(tmp_path, [(320, 240)] * 2, orientations=(1, 1), boxes=boxes))
    np.testing.assert_array_equal(data.boxes_xyxy, np.array(boxes, float))
    assert "2 images have another size" in data.notes[0] and "kept" in data.notes[0]


def test_raw_labels_stay_as_written(tmp_path):
    raw = read_raw(make(tmp_path, [(160, 120)] * 5, size=(80, 60)), "all")
    np.testing.assert_array_equal(raw.boxes_xyxy, np.array(BOXES, float))
    assert raw.sizes[0] == (120, 160)


def test_unreadable_images_keep_what_the_label_says(tmp_path):
    make(tmp_path, [(160, 120)] * 5)
    (tmp_path / "images" / "1.jpg").write_bytes(b"")
    data = open_dataset(tmp_path)
    assert not data.notes and data.sizes[0] == (120, 160)


def test_each_image_by_its_own_evidence():
    declared = np.array([[160, 120]] * 4 + [[50, 50]], float)
    shown = np.array([[80, 60], [80, 60], [160, 120], [0, 0], [50, 50]], float)
    boxes = np.array([[0, 0, 150, 100], [0, 0, 170, 10], [1, 2, 3, 4], [0, 0, 9, 9], [np.nan, 0, 1, 1]])
    fit = fit_boxes(boxes, np.arange(5), declared, shown, np.ones(5, np.int64), list("abcde"))
    assert fit.done.tolist() == [SCALED, SCALED, SAME, SAME, SAME]
    assert fit.boxes_xyxy[0].tolist() == [0, 0, 75, 50]
    np.testing.assert_array_equal(fit.boxes_xyxy[2:], boxes[2:])


def test_broken_boxes_stay_broken_when_turned():
    boxes = np.array([[60, 20, 10, 80], [np.nan, 1, 2, 3], [np.inf, 0, 1, 1]])
    one = np.zeros(3, np.int64)
    size = np.array([[160.0, 120.0]])
    fit = fit_boxes(boxes, one, size, size[:, ::-1], np.array([6]), ["a"])
    assert fit.done.tolist() == [TURNED]
    assert fit.boxes_xyxy[0].tolist() == [40, 60, 100, 10]
    assert not np.isfinite(fit.boxes_xyxy[1:]).all(1).any()


def test_a_box_far_beyond_any_frame_is_no_evidence():
    declared, shown = np.array([[160.0, 120.0]]), np.array([[80.0, 60.0]])
    fit = fit_boxes(np.array([[0, 0, 1e9, 10.0]]), np.zeros(1, np.int64), declared, shown, np.ones(1, np.int64), ["a"])
    assert fit.done.tolist() == [KEPT]


@pytest.mark.parametrize(
    ("case", "done"),
    [
        ("exif-labels-as-stored/c17_exif", "turned"),
        ("exif-labels-as-stored/v15a_exif_stored", "turned"),
        ("label-size-is-not-picture-size/v16_resized", "scaled"),
        ("label-size-is-not-picture-size/c36_json_size_wrong", "kept"),
    ],
)
def test_the_cases_found_by_trying(case, done):
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not here")
    data = open_dataset(CASES / case)
    assert len(data.notes) == 1 and data.notes[0].startswith("6 images") and f"boxes were {done}" in data.notes[0]
    for sample in data:
        pixels = np.asarray(load_image(sample)).astype(float)
        for x1, y1, x2, y2 in np.rint(sample.boxes_xyxy).astype(int):
            assert pixels[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].std((0, 1)).max() < 4, sample.name
