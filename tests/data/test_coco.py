import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multibox.data.formats import find_splits, open_dataset, split_for
from multibox.errors import DataError, ImageError

AnyImage = Callable[..., Path]


def content(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 100, "height": 50},
            {"id": 3, "file_name": "b.jpg", "width": 100, "height": 50},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 90, "bbox": [10, 5, 20, 30], "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0.5, 1.5, 10, 10], "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 2, "name": "bicycle"}],
    }
    return whole | changes


@pytest.fixture
def tree(tmp_path: Path, image: AnyImage) -> Path:
    root = tmp_path / "set"
    for split in ("train2017", "val2017"):
        for name in ("a.jpg", "b.jpg"):
            image(root / split / name)
        write(root, content(), split)
    return root


def write(root: Path, what: Any, split: str = "train2017") -> Path:
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(what if isinstance(what, str) else json.dumps(what))
    return path


def box(**changes: Any) -> dict[str, Any]:
    return content(annotations=[{"id": 5, "image_id": 3, "category_id": 2, "bbox": [1, 1, 5, 5]} | changes])


def test_reads_gaps_in_ids_crowds_and_negatives(tree: Path) -> None:
    (tree / "annotations" / "captions_train2017.json").write_text(json.dumps({"images": [], "annotations": []}))
    assert find_splits(tree) == ["train2017", "val2017"]
    assert [split_for(find_splits(tree), word) for word in ("train", "val", "test")] == ["train2017", "val2017", None]
    held = open_dataset(tree, "train")
    assert held.image_names == ["a.jpg", "b.jpg"] and held.class_names == ("bicycle", "toothbrush")
    assert held.paths[0] == tree / "train2017" / "a.jpg" and open_dataset(tree, "val").paths[0].parent.name == "val2017"
    assert len(held[0].labels) == 0 and held[1].labels.tolist() == [1, 0] and held[1].crowd.tolist() == [False, True]
    assert held[1].boxes_xyxy.tolist() == [[10, 5, 30, 35], [0.5, 1.5, 10.5, 11.5]]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (box(image_id=99), "annotation id 5: image_id 99 is the id of no image"),
        (box(category_id=4), "annotation id 5: category_id 4 is not among the categories"),
        (box(bbox=[1, 2, 3]), "annotation id 5: expected"),
        (box(bbox=None), "annotation id 5: expected"),
        (box(bbox=[20, 1, -5, 5]), "image b.jpg, object 1: xmin is above xmax"),
        (box(bbox=[float("nan"), 1, 5, 5]), "object 1: a coordinate is not a finite number"),
        (content(images=[*content()["images"], {"id": 8}], annotations=[]), "image entry 3: expected"),
        (
            content(images=[*content()["images"], {"id": 8, "file_name": "a.jpg"}], annotations=[]),
            "a.jpg is labelled by",
        ),
    ],
)
def test_a_broken_entry_stops_with_its_name_or_is_skipped(tree: Path, what: Any, expected: str) -> None:
    path = write(tree, what)
    with pytest.raises(DataError) as error:
        open_dataset(tree, "train")
    assert str(path) in str(error.value) and expected in str(error.value) and "--on-bad skip" in str(error.value)
    held = open_dataset(tree, "train", on_bad="skip")
    assert held.image_names == ["a.jpg", "b.jpg"] and len(held.labels) == 0 and len(held.notes) == 1


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ('{"images": [', "is no JSON"),
        ("", "is no JSON"),
        ("[]", "not COCO's"),
        (content(categories=None), "expected categories"),
        (content(categories=[{"id": 1}]), "expected categories"),
        (content(images=[]), "holds no images"),
        (content(images=[content()["images"][0]] * 2), "id 7 is used twice"),
    ],
)
def test_a_file_that_cannot_be_used(tree: Path, what: Any, expected: str) -> None:
    write(tree, what | {"annotations": []} if isinstance(what, dict) else what)
    for on_bad in ("stop", "skip"):
        with pytest.raises(DataError, match=expected):
            open_dataset(tree, "train", on_bad=on_bad)  # pyright: ignore[reportArgumentType]


def test_a_missing_image(tree: Path) -> None:
    (tree / "train2017" / "b.jpg").unlink()
    (tree / "val2017" / "b.jpg").unlink()
    with pytest.raises(ImageError, match=r"instances_train2017\.json: image 'b\.jpg' is missing; looked in"):
        open_dataset(tree, "train")
    held = open_dataset(tree, "train", on_bad="skip")
    assert held.image_names == ["a.jpg"] and held.notes == ("1 image without a file was skipped: b.jpg",)


def test_boxes_over_the_edge_are_clipped_and_counted(tree: Path) -> None:
    boxes = [[90, 40, 20, 20], [0, 0, 100.004, 50], [200, 10, 5, 5], [3, 3, 0, 4]]
    things = [{"id": n, "image_id": 3, "category_id": 2, "bbox": one} for n, one in enumerate(boxes)]
    write(tree, content(annotations=things))
    held = open_dataset(tree, "train")
    assert held.boxes_xyxy.tolist() == [[90, 40, 100, 50], [0, 0, 100, 50]]
    assert held.notes == (
        "1 box without area was dropped: b.jpg",
        "1 box outside its image was dropped: b.jpg",
        "1 box ran out of its image and was clipped: b.jpg",
    )


def test_roboflow_with_its_group_as_category_zero(tmp_path: Path, image: AnyImage) -> None:
    groups = [{"id": 0, "name": "pets", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "pets"}]
    things = [{"id": 0, "image_id": 7, "category_id": 1, "bbox": [1, 1, 5, 5]}]
    for split in ("train", "valid", "test"):
        image(tmp_path / split / "a.jpg")
        image(tmp_path / split / "b.jpg")
        text = json.dumps(content(categories=groups, annotations=things))
        (tmp_path / split / "_annotations.coco.json").write_text("\ufeff" + text, encoding="utf-8")
    assert find_splits(tmp_path) == ["train", "valid", "test"]
    held = open_dataset(tmp_path, "val")
    assert held.class_names == ("cat",) and held.labels.tolist() == [0] and "'pets'" in held.notes[0]
    assert held.paths[0] == tmp_path / "valid" / "a.jpg"
    assert open_dataset(tmp_path / "test").split == "test"


def test_paths_from_elsewhere_and_a_single_file(tmp_path: Path, image: AnyImage) -> None:
    images = [{"id": 1, "file_name": "C:\\work\\sub\\a.jpg"}, {"id": 2, "file_name": "/data/x/images/My Cat.JPG"}]
    (tmp_path / "labels.json").write_text(json.dumps(content(images=images, annotations=[])))
    image(tmp_path / "images" / "sub" / "a.jpg")
    image(tmp_path / "images" / "my cat.jpg")
    held = open_dataset(tmp_path / "labels.json")
    assert held.paths == [tmp_path / "images" / "sub" / "a.jpg", tmp_path / "images" / "my cat.jpg"]
    assert held.sizes == [None, None] and held.split == "all"
    assert not any(name.startswith("/") or ".." in name for name in held.image_names)


def test_a_size_that_is_none_is_left_out(tree: Path) -> None:
    images = [
        {"id": 1, "file_name": "a.jpg", "width": float("inf"), "height": 5},
        {"id": 3, "file_name": "b.jpg", "width": 0},
    ]
    write(tree, content(images=images))
    assert open_dataset(tree, "train").sizes == [None, None]


def test_classes_by_name(tree: Path) -> None:
    held = open_dataset(tree, "train", class_names=["toothbrush", "bicycle"])
    assert held.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"image b\.jpg: class 'toothbrush' is not among .* \(bicycle\)"):
        open_dataset(tree, "train", class_names=["bicycle"])


def test_tiny_coco(shared: Path) -> None:
    train, val = (open_dataset(shared / "tiny_coco", split) for split in ("train", "val2017"))
    assert (len(train), len(train.labels), len(val), len(val.labels)) == (50, 470, 50, 382)
    assert int(train.crowd.sum()) == int(val.crowd.sum()) == 5
    assert (
        train.class_names == val.class_names and len(train.class_names) == 80 and train.class_names[-1] == "toothbrush"
    )
    assert any(len(sample.labels) == 0 for sample in (*train, *val))


def test_mediapipe_without_sizes(shared: Path) -> None:
    held = open_dataset(shared / "mediapipe" / "coco_data")
    assert (len(held), len(held.labels)) == (5, 57) and set(held.sizes) == {None}


def test_the_same_labels_in_five_formats(shared: Path) -> None:
    gts = shared / "voc100" / "gts"
    names = (
        "pascalvoc_format",
        "imagenet_format",
        "coco_format_v1",
        "coco_format_v2",
        "yolo_format",
        "openimages_format",
    )
    voc, *others = (open_dataset(gts / name) for name in names)
    expected = {sample.name: _sorted_rows(sample) for sample in voc}
    for other in others:
        table = np.array([voc.class_names.index(name) for name in other.class_names])
        assert len(other) == 100 and len(other.labels) == 273
        for sample in other:
            boxes, labels = _sorted_rows(sample, table)
            assert labels.tolist() == expected[sample.name][1].tolist(), sample.name
            np.testing.assert_allclose(boxes, expected[sample.name][0], atol=1e-3)


def _sorted_rows(sample: Any, table: Any = None) -> tuple[Any, Any]:
    labels = sample.labels if table is None else table[sample.labels]
    order = np.lexsort((*np.round(sample.boxes_xyxy).T, labels))
    return sample.boxes_xyxy[order], labels[order]
