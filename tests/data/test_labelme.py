import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multibox.data.formats import find_splits, locate, open_dataset, read_raw
from multibox.data.images import load_image, size_of
from multibox.errors import DataError, ImageError
from multibox.structures import Size

AnyImage = Callable[..., Path]


def shape(label: str, points: Any, kind: str | None = "rectangle", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def labelme(path: Path, *shapes: Any, image: str | None = None, **more: Any) -> Path:
    content = {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": f"{path.stem}.jpg" if image is None else image,
        "imageData": None,
        "imageHeight": 50,
        "imageWidth": 100,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | more), encoding="utf-8")
    return path


def test_every_shape(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    labelme(
        tmp_path / "a.json",
        shape("car", [[30, 40], [10, 20]]),
        shape("bus", [[1, 2], [9, 3], [5, 8]], "polygon"),
        shape("sun", [[50, 25], [53, 29]], "circle"),
        shape("row", [[0, 0], [9, 9]], "line"),
        shape("dot", [[5, 5]], "point"),
        shape("hat", [[2, 3], [8, 9]], "mask", mask="iVBORw0KGgo="),
        shape("old", [[1, 1], [4, 1], [4, 6]], None),
        shape("car", [[1, 2], [9, 2], [9, 7], [1, 7]], difficult=True, description="", attributes={}),
        shape("tilted", [[5, 0], [10, 5], [5, 10], [0, 5]], "rotation", direction=0.78),
    )
    held = open_dataset(tmp_path)
    assert held.class_names == ("bus", "car", "hat", "old", "sun", "tilted") and held.sizes == [Size(50, 100)]
    boxes = {(held.class_names[label], *box) for label, box in zip(held.labels, held.boxes_xyxy.tolist(), strict=True)}
    assert boxes == {
        ("car", 10, 20, 30, 40),
        ("bus", 1, 2, 9, 8),
        ("sun", 45, 20, 55, 30),
        ("hat", 2, 3, 8, 9),
        ("old", 1, 1, 4, 6),
        ("car", 1, 2, 9, 7),
        ("tilted", 0, 0, 10, 10),
    }
    assert held.difficult.tolist() == [False, False, False, False, False, True, False]
    assert held.left_out == {"outline": 5, "not_a_box": 2} and len(held.notes) == 2
    raw = read_raw(tmp_path, "all")
    assert raw.lines.tolist() == [1, 2, 3, 6, 7, 8, 9] and raw.sources == [tmp_path / "a.json"]


@pytest.mark.parametrize(
    ("label", "picture", "listed"),
    [
        ("a.json", "a.jpg", "a.jpg"),
        ("json/a.json", "images/a.jpg", "..\\images\\a.jpg"),
        ("json/a.json", "images/a.jpg", "../images/a.jpg"),
        ("a.json", "a.jpg", "C:\\Users\\me\\set\\a.jpg"),
        ("a.json", "A.JPG", "/home/me/a.jpg"),
        ("labels/a.json", "images/a.png", "a.jpg"),
        ("a.json", "a.jpg", "before renaming.jpg"),
        ("annotations/train/a.json", "images/train/a.jpg", "a.jpg"),
        ("train/labels/a.json", "train/images/a.jpg", "../images/a.jpg"),
        ("train/a.json", "train/a.jpg", ""),
        ("train/deep/a.json", "train/deep/a.jpg", "a.jpg"),
    ],
)
def test_where_the_image_is(tmp_path: Path, image: AnyImage, label: str, picture: str, listed: str) -> None:
    root = tmp_path / "set"
    image(root / picture)
    labelme(root / label, shape("x", [[1, 2], [3, 4]]), image=listed)
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    held = open_dataset(root)
    assert held.paths == [root / picture] and held.boxes_xyxy.tolist() == [[1, 2, 3, 4]]
    assert held.split == ("train" if "train" in label else "all") and held.format == "labelme"
    assert held.image_names == ["deep/a.jpg" if "deep" in label else Path(picture).name]


def test_an_image_inside_the_json(tmp_path: Path, image: AnyImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = image(tmp_path / "b.png").read_bytes()
    root = tmp_path / "set"
    labelme(root / "a.json", shape("x", [[1, 2], [3, 4]]), imageData=base64.b64encode(data).decode())
    held = open_dataset(root)
    assert held.image_names == ["a.jpg"] and held.notes == ("1 image is missing and was taken from imageData: a.json",)
    assert size_of(load_image(held[0])) == Size(50, 100) and held.paths[0].is_relative_to(tmp_path / "cache")
    assert [path.name for path in root.iterdir()] == ["a.json"] and open_dataset(root).paths == held.paths
    labelme(root / "c.json", shape("x", [[1, 2], [3, 4]]), imageData=base64.b64encode(data).decode())
    assert open_dataset(root).image_names == ["a.jpg", "c.jpg"], "the same bytes twice are two images"
    labelme(root / "b.json", shape("x", [[1, 2], [3, 4]]), imageData="/" * 5)
    with pytest.raises(DataError, match=r"b\.json: imageData is no base64"):
        open_dataset(root)
    labelme(root / "b.json", shape("x", [[1, 2], [3, 4]]))
    with pytest.raises(ImageError, match=r"b\.json: image 'b\.jpg' is missing"):
        open_dataset(root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_labels_txt_orders_the_classes(tmp_path: Path, image: AnyImage, encoding: str) -> None:
    for split, label in (("train", "zebra"), ("val", "ant")):
        image(tmp_path / split / "a.jpg")
        path = labelme(tmp_path / split / "a.json", shape(label, [[1, 2], [3, 4]]))
        path.write_text(path.read_text(), encoding=encoding)
    assert find_splits(tmp_path) == ["train", "val"]
    for split in ("train", "val"):
        assert open_dataset(tmp_path, split).class_names == ("ant", "zebra")
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nzebra\nyak\nant\n")
    held = open_dataset(tmp_path, "val")
    assert held.class_names == ("zebra", "yak", "ant") and held.labels.tolist() == [2]
    assert any("utf-16" in note for note in held.notes) == (encoding == "utf-16-le")
    (tmp_path / "labels.txt").write_text("zebra\n")
    held = open_dataset(tmp_path, "val")
    assert held.class_names == ("zebra", "ant")
    assert "labels.txt lacks ant: put after the classes that it names" in held.notes


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (shape("x", [[1, 2], ["a", 4]]), "shape 2 (x): expected points of two numbers"),
        (shape("x", [[1, 2], [3, 4], [5, 6]], "circle"), "shape 2 (x): expected points"),
        (shape("x", []), "shape 2 (x): expected points"),
        (shape("x", [[1, 2], [float("nan"), 4]]), "not a finite number"),
        (shape("x", [[1, 2], [10**400, 4]]), "expected points"),
        (shape("x", None), "expected points"),
        (shape("", [[1, 2], [3, 4]]), "it has no label"),
        ({"points": [[1, 2], [3, 4]]}, "it has no label"),
        (7, "expected an object"),
    ],
)
def test_a_broken_shape(tmp_path: Path, image: AnyImage, broken: Any, expected: str) -> None:
    image(tmp_path / "a.jpg")
    labelme(tmp_path / "a.json", shape("x", [[1, 2], [3, 4]]), broken)
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    assert expected in str(error.value) and "a.json" in str(error.value) and "\n" not in str(error.value)
    held = open_dataset(tmp_path, on_bad="skip")
    assert held.boxes_xyxy.tolist() == [[1, 2, 3, 4]] and held.left_out == {"broken_box": 1}


def test_other_json_beside(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "b.jpg")
    labelme(tmp_path / "b.json", shape("x", [[1, 2], [3, 4]]))
    (tmp_path / "a.json").write_text('{"some": "setting"}')
    assert locate(tmp_path, None).evidence == "b.json"
    assert open_dataset(tmp_path).notes == ("1 JSON file that is no LabelMe was passed over: a.json",)
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"c\.json is nested too deep"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, on_bad="skip")) == 1
    assert open_dataset(tmp_path / "b.json").image_names == ["b.jpg"]


def test_voc100_as_labelme_writes_it(shared: Path) -> None:
    held = open_dataset(shared / "voc100" / "gts" / "labelme_format")
    voc = open_dataset(shared / "voc100" / "gts" / "pascalvoc_format")
    assert held.class_names == voc.class_names and held.image_names == voc.image_names and held.notes == voc.notes
    assert sorted(held.boxes_xyxy.tolist()) == sorted(voc.boxes_xyxy.tolist()) and held.paths == voc.paths
