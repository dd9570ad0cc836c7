import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from multibox.data.formats import find_splits, open_dataset, read_raw
from multibox.errors import DataError, ImageError

AnyImage = Callable[..., Path]


def region(value: dict[str, Any], kind: str = "rectanglelabels", label: str | None = "ant", **more: Any) -> Any:
    named = {} if label is None else {kind: [label]}
    where = {
        "original_width": 100,
        "original_height": 50,
        "image_rotation": 0,
        "from_name": "label",
        "to_name": "image",
    }
    return {"id": "x" + str(len(json.dumps(value))), "type": kind, "value": value | named, **where, **more}


def rect(x: float = 10, y: float = 20, width: float = 30, height: float = 40, **more: Any) -> dict[str, Any]:
    return {"x": x, "y": y, "width": width, "height": height, "rotation": 0, **more}


def task(image: str, *regions: Any, **more: Any) -> dict[str, Any]:
    annotation = {"id": 5, "completed_by": 1, "result": list(regions), "was_cancelled": False, "ground_truth": False}
    return {"id": 1, "annotations": [annotation], "drafts": [], "predictions": [], "data": {"image": image}} | more


def studio(path: Path, *tasks: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(tasks)), encoding="utf-8")
    return path


def test_every_region(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "images" / "a.jpg")
    studio(
        tmp_path / "project-1-at-2026-11-28.json",
        task(
            "/data/upload/1/0a1b2c3d-a.jpg",
            region(rect()),
            region(rect(50, 50, 20, 20, rotation=90)),
            region({"points": [[10, 20], [90, 30], [50, 80]], "closed": True}, "polygonlabels", "bee"),
            region({"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 0}, "ellipselabels", "cat"),
            region({"format": "rle", "rle": [0, 1, 1]}, "brushlabels"),
            region({"x": 1, "y": 2, "width": 0.5}, "keypointlabels"),
            {"id": "c", "type": "choices", "value": {"choices": ["good"]}, "from_name": "c", "to_name": "image"},
            {"id": "pair", "type": "rectangle", "value": rect(0, 0, 10, 10), "original_width": 100},
            {"id": "pair", "type": "labels", "value": rect(0, 0, 10, 10, labels=["dog"]), "original_width": 100},
            {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right"},
        ),
    )
    held = open_dataset(tmp_path)
    assert held.class_names == ("ant", "bee", "cat", "dog") and held.image_names == ["a.jpg"]
    assert held.boxes_xyxy.tolist() == [
        [10, 10, 40, 30],
        [40, 25, 50, 45],
        [10, 10, 90, 40],
        [40, 15, 60, 35],
        [0, 0, 10, 5],
    ]
    assert held.labels.tolist() == [0, 0, 1, 2, 3] and held.left_out == {"outline": 3, "not_a_box": 2}
    assert "1 image was found under the name before Label Studio's upload" in held.notes
    assert read_raw(tmp_path, "all").lines.tolist() == [1, 2, 3, 4, 7]


@pytest.mark.parametrize(
    ("listed", "picture", "name"),
    [
        ("/data/upload/1/0a1b2c3d-my%20cat.jpg", "images/0a1b2c3d-my cat.jpg", "0a1b2c3d-my cat.jpg"),
        ("/data/upload/0a1b2c3d-a.jpg", "a.jpg", "a.jpg"),
        ("/data/local-files/?d=photos/cats/a%20b.jpg", "photos/cats/a b.jpg", "photos/cats/a b.jpg"),
        ("https://example.com/set/a.jpg?token=1&d=b.jpg", "images/a.jpg", "a.jpg"),
        ("s3://bucket/deep/a.jpg", "images/deep/a.jpg", "deep/a.jpg"),
        ("C:\\photos\\a.jpg", "a.jpg", "a.jpg"),
        ("images/a.jpg", "images/a.jpg", "a.jpg"),
    ],
)
def test_where_the_image_is(tmp_path: Path, image: AnyImage, listed: str, picture: str, name: str) -> None:
    image(tmp_path / picture)
    studio(tmp_path / "x.json", task(listed, region(rect())))
    held = open_dataset(tmp_path)
    assert held.paths == [tmp_path / picture] and held.image_names == [name] and held.format == "labelstudio"


def test_other_keys_of_the_image(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    odd = task("", region(rect()), data={"source": "notes", "photo": "/data/upload/1/a.jpg"})
    odd |= {"file_upload": "0a1b2c3d-a.jpg"}
    studio(tmp_path / "x.json", odd, {"image": "b.jpg", "id": 2, "annotator": 1, "annotation_id": 3})
    assert open_dataset(tmp_path).image_names == ["a.jpg", "b.jpg"]
    studio(tmp_path / "x.json", task("", data={"text": "good"}))
    with pytest.raises(DataError, match=r"x\.json, task 1: nothing in it names an image"):
        open_dataset(tmp_path)
    studio(tmp_path / "x.json", task("/data/upload/1/zz.jpg"))
    with pytest.raises(ImageError, match=r"task 1: image '/data/upload/1/zz\.jpg' is missing"):
        open_dataset(tmp_path)


def test_annotators_predictions_and_unfinished_tasks(tmp_path: Path, image: AnyImage) -> None:
    for name in "abc":
        image(tmp_path / f"{name}.jpg")
    cancelled = {"result": [region(rect(90))], "was_cancelled": True}
    done = [{"result": [region(rect(x), label=label)], "was_cancelled": False} for x, label in ((1, "yes"), (2, "no"))]
    predicted = [{"result": [region(rect(70))], "model_version": "1"}]
    studio(
        tmp_path / "x.json",
        task("a.jpg", annotations=[cancelled, *done], predictions=predicted),
        task("b.jpg", annotations=[], predictions=predicted),
        {"id": 9, "data": {"image": "c.jpg"}, "completions": [{"result": [region(rect(5))]}]},
    )
    held = open_dataset(tmp_path)
    assert held.boxes_xyxy[:, 0].tolist() == [1, 5] and held.class_names == ("ant", "yes")
    assert set(held.notes) == {
        "1 task has several annotations, of which the first was taken",
        "1 task has no finished annotation and was left out",
    }


def test_regions_of_one_id_stay_apart(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    studio(tmp_path / "x.json", task("a.jpg", region(rect(), id="r"), region(rect(50), label="bee", id="r")))
    assert open_dataset(tmp_path).boxes_xyxy.tolist() == [[10, 10, 40, 30], [50, 10, 80, 30]]


def test_json_min(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    flat = {"original_width": 100, "original_height": 50}
    studio(
        tmp_path / "x.json",
        {
            "image": "/data/upload/1/0a1b2c3d-a.jpg",
            "id": 1,
            "label": [rect(**flat, rectanglelabels=["ant"])],
            "shape": [{"points": [[0, 0], [10, 0], [10, 10]], **flat, "polygonlabels": ["bee"]}],
            "quality": {"choices": ["good", "sharp"]},
            "annotator": 1,
            "annotation_id": 1,
            "lead_time": 9.5,
        },
    )
    held = open_dataset(tmp_path)
    assert held.boxes_xyxy.tolist() == [[10, 10, 40, 30], [0, 0, 10, 5]] and held.class_names == ("ant", "bee")


def test_percentages_are_of_the_image_that_is_there(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg", (200, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50)).save(tmp_path / "turned.jpg", exif=exif)
    shown = region(rect()) | {"original_width": 50, "original_height": 100}
    studio(tmp_path / "x.json", task("a.jpg", region(rect())), task("turned.jpg", shown))
    assert open_dataset(tmp_path).boxes_xyxy.tolist() == [[20, 20, 80, 60], [5, 20, 20, 60]]


def test_label_config_orders_the_classes(tmp_path: Path, image: AnyImage) -> None:
    for split, label in (("train", "zebra"), ("val", "ant")):
        image(tmp_path / "images" / split / "a.jpg")
        studio(tmp_path / f"{split}.json", task("a.jpg", region(rect(), label=label)))
    assert find_splits(tmp_path) == ["train", "val"]
    assert open_dataset(tmp_path, "val").class_names == ("ant", "zebra")
    assert open_dataset(tmp_path, "val").paths == [tmp_path / "images" / "val" / "a.jpg"]
    (tmp_path / "label_config.xml").write_text('<View><RectangleLabels><Label value="zebra"/><Label value="ant"/></R>')
    assert open_dataset(tmp_path, "val").class_names == ("ant", "zebra")  # broken XML says nothing
    text = '<View><RectangleLabels><Label value="zebra"/><Label value="yak"/></RectangleLabels></View>'
    (tmp_path / "label_config.xml").write_text(text)
    assert open_dataset(tmp_path, "val").class_names == ("zebra", "yak", "ant")


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (region(rect(x="left")), "region 2: expected its place in percent"),
        (region({"x": 1, "y": 2, "height": 4}), "expected its place in percent"),
        (region({"points": [[1]]}, "polygonlabels"), "expected its place in percent"),
        (region(rect(x=float("nan"))), "not a finite number"),
        (region(rect(), label=None), "it has no label"),
        (region(rect(), image_rotation=90), "the image was turned in Label Studio"),
    ],
)
def test_a_broken_region(tmp_path: Path, image: AnyImage, broken: Any, expected: str) -> None:
    image(tmp_path / "a.jpg")
    studio(tmp_path / "x.json", task("a.jpg", region(rect(), id="first"), broken))
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    assert expected in str(error.value) and "x.json" in str(error.value) and "\n" not in str(error.value)
    held = open_dataset(tmp_path, on_bad="skip")
    assert len(held.labels) == 1 and held.left_out == {"broken_box": 1}


def test_a_broken_task(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    studio(tmp_path / "x.json", task("a.jpg", region(rect())), 7)
    with pytest.raises(DataError, match=r"x\.json, task 2: expected an object"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, on_bad="skip").left_out == {"broken_file": 1}


def test_predictions_alone_are_no_labels(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    studio(tmp_path / "x.json", task("a.jpg", annotations=[], predictions=[{"result": [region(rect())]}]))
    with pytest.raises(DataError, match=r"x\.json: none of the 1 tasks has a finished annotation, and predictions"):
        open_dataset(tmp_path)
