"""What a preset cannot see, on boxes whose fate is worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import ReadOptions
from multibox.doctor import preset_fit
from multibox.doctor.preset_fit import check_preset, elongated, fitted, gather, least_side, sides, unreached
from multibox.doctor.survey import Survey
from multibox.errors import ConfigError
from multibox.presets import PRESETS, resolve
from multibox.structures import Size


@pytest.fixture(autouse=True)
def few_presets(monkeypatch):
    """Others are measured where many objects are missed: two of them are enough here."""
    monkeypatch.setattr(preset_fit, "PRESETS", {name: PRESETS[name] for name in ("tinyssd", "ssd512-vgg16")})


def survey(boxes_per_image, size=(640, 640)):
    """Return a split of images of one size, without files."""
    held = []
    index = IndexBuilder(Path("set"), "csv", "train", ReadOptions(raw=held, on_bad="skip"), shared=True)
    for number, boxes in enumerate(boxes_per_image):
        image = index.add_image(f"{number}.jpg", Path(f"set/{number}.jpg"), Path("set/labels.csv"))
        for line, box in enumerate(boxes, 1):
            index.add_box(image, box, 0, line=line)
    index.finish(["cat"])
    return {"train": Survey(held[0], np.tile(np.array(size, float), (len(boxes_per_image), 1)))}


def square(side, at=100):
    return [at, at, at + side, at + side]


def kinds(surveys, preset="ssd300-vgg16"):
    return {one.kind: one for one in check_preset(surveys, preset)}


def test_objects_that_fit_are_no_finding():
    assert kinds(survey([[square(200)], [square(300, 50)], [[100, 100, 420, 300]]])) == {}


def test_objects_below_two_cells():
    found = kinds(survey([[square(20)], [square(25, 300)], [square(22, 400)], [square(300)]]))
    assert set(found) == {"below-feature-cell", "unreachable-by-anchors"}
    one = found["below-feature-cell"]
    # 640 pixels become 300, so 20 become 9.4
    assert one.severity == "warning" and one.what.startswith("3 of 4 objects (75 %) are smaller than 21 pixels")
    assert "--set model.input_size=[" in one.fix and one.where == "preset ssd300-vgg16"


@pytest.mark.slow
def test_tiles_where_no_input_would_do():
    found = kinds(survey([[square(10)], [square(12)]], size=(4000, 3000)))
    assert "Cut the images into tiles of about" in found["below-feature-cell"].fix


def test_an_elongated_object():
    found = kinds(survey([[[20, 300, 620, 330]], *[[square(200)]] * 3]))
    assert set(found) == {"too-elongated", "unreachable-by-anchors"}
    assert found["too-elongated"].what.startswith("1 of 4 objects (25 %) is too elongated")


@pytest.mark.parametrize(("width", "expected"), [(300, False), (660, False), (690, True), (900, True)])
def test_the_limit_of_elongation(width, expected):
    # Caffe's anchors reach 3 to 1, and 2.25 times that still overlaps one of the same area by 0.5
    objects = gather(survey([[[50, 50, 50 + width, 150]]], size=(1000, 1000)))
    assert elongated(objects, resolve("ssd300-vgg16")).tolist() == [expected]


def test_more_objects_than_are_reported():
    boxes = [square(200, at) for at in range(201)]
    found = kinds(survey([boxes, [square(200)]]))
    assert set(found) == {"too-many-objects"}
    assert found["too-many-objects"].what == "0.jpg has 201 objects, ssd300-vgg16 reports at most 200"
    assert found["too-many-objects"].fix == "--set post.max_detections=300"


def test_every_anchor_is_tried_at_its_place():
    config = resolve("ssd300-vgg16")
    # Caffe's first anchors are squares of 30 pixels, 8 apart, the first with its centre at 4
    centre = 4 + 8 * 10
    exact = np.array([centre - 15, centre - 15, centre + 15, centre + 15]) / 300 * 640
    objects = gather(survey([[exact, square(8)]]))
    assert unreached(objects, config).tolist() == [False, True]


def test_anchors_are_fitted_where_a_run_would_fit_them():
    rng = np.random.default_rng(0)
    boxes = [[[x, y, x + 300 + d, y + 40]] for x, y, d in rng.integers(0, 200, (200, 3)).tolist()]
    objects = gather(survey(boxes))
    plain = resolve("tinyssd", "default", {"anchors.fit": "none"})
    assert unreached(objects, plain).mean() > 0.9
    after = fitted(resolve("tinyssd"), objects)
    assert after.anchors.style == "shapes"
    assert unreached(objects, after).mean() < 0.7
    assert fitted(plain, objects) is plain


def test_sides_are_those_of_the_input():
    objects = gather(survey([[[0, 0, 320, 160]]]))
    assert sides(objects, Size(300, 300)).tolist() == pytest.approx([np.sqrt(150 * 75)])
    assert least_side(resolve("tinyssd")) >= 16


def test_broken_boxes_and_images_twice_take_no_part():
    surveys = survey([[square(200), [np.nan, 0, 1, 1], [50, 50, 50, 60]]])
    assert len(gather({"train": surveys["train"], "trainval": surveys["train"]}).where) == 1


def test_no_objects_is_no_finding():
    assert kinds(survey([[], []])) == {}


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="unknown preset"):
        kinds(survey([[square(9)]]), "tinysd")


def test_another_preset_is_named_if_it_reaches_more():
    # 45 of 640 pixels are 21 of 300 but 36 of 512, and the smallest anchors have 30 and 36
    found = kinds(survey([[square(45, 20 * k)] for k in range(12)]))
    assert found["unreachable-by-anchors"].fix.startswith("--preset ssd512-vgg16: ")
