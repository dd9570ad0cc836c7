import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multibox.data.formats import find_splits, open_dataset, read_raw
from multibox.errors import ConfigError, DataError, ImageError

AnyImage = Callable[..., Path]


def box(label: Any = "ant", **more: Any) -> dict[str, Any]:
    return {"label": label, "coordinates": {"x": 20, "y": 15, "width": 20, "height": 10} | more}


def createml(path: Path, *entries: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(entries)), encoding="utf-8")
    return path


@pytest.mark.parametrize("key", ["image", "imagefilename"])
def test_boxes_are_given_by_their_centre(tmp_path: Path, image: AnyImage, key: str) -> None:
    for name in ("a.jpg", "B.JPG"):
        image(tmp_path / name)
    createml(
        tmp_path / "annotations.json",
        {key: "a.jpg", "annotations": [box("zebra"), box(x=30.5)]},
        {key: "C:\\photos\\b.jpg", "annotations": []},
    )
    held = open_dataset(tmp_path)
    assert held.class_names == ("ant", "zebra") and held.paths[1].name == "B.JPG" and held.format == "createml"
    assert held.boxes_xyxy.tolist() == [[10, 10, 30, 20], [20.5, 10, 40.5, 20]] and held.labels.tolist() == [1, 0]
    assert read_raw(tmp_path, "all").lines.tolist() == [1, 2]
    assert open_dataset(tmp_path / "annotations.json").image_names == held.image_names


def test_roboflow_and_its_splits(tmp_path: Path, image: AnyImage) -> None:
    for split, label in (("train", "ant"), ("valid", "bee")):
        image(tmp_path / split / "a_jpg.rf.0123.jpg")
        entry = {"image": "a_jpg.rf.0123.jpg", "annotations": [box(label)]}
        createml(tmp_path / split / "_annotations.createml.json", entry)
    (tmp_path / "README.roboflow.txt").write_text("hello")
    assert find_splits(tmp_path) == ["train", "valid"]
    held = open_dataset(tmp_path, "val")
    assert held.class_names == ("ant", "bee") and held.labels.tolist() == [1]
    assert held.paths == [tmp_path / "valid" / "a_jpg.rf.0123.jpg"]


def test_labelimg_writes_a_file_for_each_image(tmp_path: Path, image: AnyImage) -> None:
    for name in "ab":
        image(tmp_path / f"{name}.jpg")
        createml(tmp_path / f"{name}.json", {"image": f"{name}.jpg", "verified": False, "annotations": [box(name)]})
    held = open_dataset(tmp_path)
    assert held.image_names == ["a.jpg", "b.jpg"] and held.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (box(x="one"), "entry 1 (a.jpg), box 2 (ant): expected coordinates x, y, width and height in numbers"),
        (box(x=None), "expected coordinates"),
        (box(x=float("inf")), "not a finite number"),
        ({"label": "ant"}, "expected coordinates"),
        (box(label=""), 'expected an object with "label"'),
        ([], 'expected an object with "label"'),
    ],
)
def test_a_broken_box(tmp_path: Path, image: AnyImage, broken: Any, expected: str) -> None:
    image(tmp_path / "a.jpg")
    createml(tmp_path / "x.json", {"image": "a.jpg", "annotations": [box(), broken]})
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    assert expected in str(error.value) and "x.json" in str(error.value)
    held = open_dataset(tmp_path, on_bad="skip")
    assert len(held.labels) == 1 and held.left_out == {"broken_box": 1}


def test_a_broken_entry(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    createml(tmp_path / "x.json", {"image": "a.jpg", "annotations": []}, {"image": 3, "annotations": []})
    with pytest.raises(DataError, match="entry 2: expected an object with"):
        open_dataset(tmp_path)
    createml(tmp_path / "x.json", {"image": "zz.jpg", "annotations": []})
    with pytest.raises(ImageError, match=r"x\.json, entry 1: image 'zz\.jpg' is missing"):
        open_dataset(tmp_path)


def test_it_is_read_not_written(tmp_path: Path, image: AnyImage) -> None:
    from multibox.data.convert import convert

    image(tmp_path / "in" / "a.jpg")
    createml(tmp_path / "in" / "x.json", {"image": "a.jpg", "annotations": [box()]})
    assert convert(tmp_path / "in", tmp_path / "out", "voc").boxes == 1
    with pytest.raises(ConfigError, match="format 'createml' is read, not written; give one of voc, coco"):
        convert(tmp_path / "in", tmp_path / "out2", "createml")
