import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multibox.data.formats import find_splits, open_dataset, read_raw, split_for
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
        (content(images=[]), "holds no images"),
    ],
)
def test_a_file_that_cannot_be_used(tree: Path, what: Any, expected: str) -> None:
    write(tree, what | {"annotations": []} if isinstance(what, dict) else what)
    for on_bad in ("stop", "skip"):
        with pytest.raises(DataError, match=expected):
            open_dataset(tree, "train", on_bad=on_bad)  # pyright: ignore[reportArgumentType]


def test_ids_that_are_used_twice(tree: Path) -> None:
    first, second = content()["images"]
    for images, names, what in (
        ([first, first, second], ["a.jpg", "b.jpg"], "1 second labelling of an image was skipped: a.jpg"),
        ([first, second, first | {"file_name": "c.jpg"}], ["b.jpg"], "2 broken label files were skipped: a.jpg, c.jpg"),
    ):
        write(tree, content(images=images))
        with pytest.raises(DataError, match=r"a\.jpg\): id 7 is used twice") as error:
            open_dataset(tree, "train")
        assert error.value.kind == "duplicate-id"
        held = open_dataset(tree, "train", on_bad="skip")
        assert held.image_names == names and len(held.labels) == 2 and held.notes == (what,)
    write(tree, content(categories=[*content()["categories"], {"id": 2, "name": "car"}, {"id": 5}]))
    with pytest.raises(DataError, match="category 'car' has the id 2 of another"):
        open_dataset(tree, "train")
    assert open_dataset(tree, "train", on_bad="skip").class_names == ("bicycle", "toothbrush")
    assert [one.kind for one in read_raw(tree, "train").problems] == ["duplicate-id", "missing-category"]


def test_boxes_of_outlines_and_masks(tree: Path) -> None:
    mask = {"size": [50, 100], "counts": [500 * 10 // 10 + 5, 3, 47, 4, 4441]}  # column 10: rows 5 to 7; 11: 5 to 8
    packed = {"size": [4, 4], "counts": "52203"}
    things: list[dict[str, Any]] = [
        {"segmentation": [[10, 20, 30, 20, 20, 45], [5, 30, 6, 31, 7, 30]], "bbox": None},
        {"segmentation": mask},
        {"segmentation": {"size": [50, 100], "counts": [90, 20, 4890]}, "bbox": []},  # over the end of a column
        {"segmentation": [[1, 2, 3]]},
        {"segmentation": {"size": [50, 100], "counts": [0, 10**12]}, "iscrowd": 1},
        {"segmentation": [], "keypoints": [1, 2, 2]},
        {"segmentation": packed | {"size": [1, 10**9]}},
    ]
    rows = [{"id": n, "image_id": 3, "category_id": 2, **one} for n, one in enumerate(things, 1)]
    write(tree, content(annotations=rows))
    with pytest.raises(DataError, match="annotation id 4: expected image_id, category_id and bbox"):
        open_dataset(tree, "train")
    held = open_dataset(tree, "train", on_bad="skip")
    assert held.boxes_xyxy.tolist() == [[5, 20, 30, 45], [10, 5, 12, 9], [1, 0, 3, 50]]
    assert held.left_out == {"outline": 3, "broken_box": 4}


def test_packed_run_lengths(tree: Path) -> None:
    pytest.importorskip("hotcoco")
    from hotcoco import mask

    rng = np.random.default_rng(0)
    for _ in range(20):
        pixels = np.zeros((50, 100), np.uint8)
        x, y = rng.integers(0, 90), rng.integers(0, 40)
        pixels[y : y + rng.integers(1, 10), x : x + rng.integers(1, 10)] = rng.integers(0, 2, 1) | 1
        packed = mask.encode(np.asfortranarray(pixels))
        counts = packed["counts"]
        text = counts.decode() if isinstance(counts, bytes) else counts
        write(tree, box(bbox=None, segmentation={"size": [50, 100], "counts": text}))
        rows, columns = np.nonzero(pixels)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert open_dataset(tree, "train").boxes_xyxy.tolist() == [expected]


def test_ids_that_are_text(tree: Path) -> None:
    images = [{"id": "10", "file_name": "a.jpg"}, {"id": "9", "file_name": "b.jpg"}]
    things = [{"id": "x", "image_id": "9", "category_id": "10", "bbox": [1, 2, 3, 4]}]
    categories = [{"id": "10", "name": "dog"}, {"id": "9", "name": "cat"}]
    write(tree, {"images": images, "annotations": things, "categories": categories})
    held = open_dataset(tree, "train")
    assert held.class_names == ("cat", "dog") and held[1].labels.tolist() == [1]
    assert held.notes == ("3 lists have ids that are text, compared as they are: images, annotations, categories",)
    write(tree, {"images": images, "annotations": [things[0] | {"image_id": 9}], "categories": categories})
    with pytest.raises(DataError, match="image_id 9 is the id of no image") as error:
        open_dataset(tree, "train")
    assert error.value.kind == "dangling-id"


def test_a_category_without_name(case: Callable[[str], Path], tree: Path) -> None:
    held = open_dataset(case("silent-choices") / "c38_null_id_in_class")
    assert held.class_names == ("cat", "2") and len(held.labels) == 6
    assert held.notes == ("1 category has no name and is called by its id: id 2",)
    write(tree, content(categories=[*content()["categories"], {"id": 3, "name": None}]))
    held = open_dataset(tree, "train")
    assert held.class_names == ("bicycle", "toothbrush")
    assert held.notes == ("1 category without name and boxes was not taken for a class: id 3",)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "gbk"])
def test_json_in_other_encodings(tree: Path, encoding: str) -> None:
    what = content(categories=[{"id": 90, "name": "红"}, {"id": 2, "name": "绿灯"}])
    path = write(tree, "")
    path.write_bytes(json.dumps(what, ensure_ascii=False).encode(encoding))
    held = open_dataset(tree, "train")
    assert held.class_names == ("绿灯", "红") and len(held.labels) == 2
    assert bool(held.notes) == (encoding in ("utf-16-le", "gbk"))


def test_names_as_in_a_web_address(case: Callable[[str], Path]) -> None:
    held = open_dataset(case("url-encoded-names") / "c10_urlenc")
    assert len(held) == 6 and "decoded, as in a web address" in held.notes[0]


def test_an_image_of_the_same_name_in_another_split_is_not_taken(tree: Path) -> None:
    (tree / "train2017" / "b.jpg").unlink()
    with pytest.raises(ImageError, match=r"image 'b\.jpg' is missing"):
        open_dataset(tree, "train")


@pytest.mark.parametrize(
    ("file", "pictures"),
    [
        ("annotations/instances_{}.json", "images/{}"),
        ("annotations/{}.json", "{}2017"),
        ("annotations/person_keypoints_{}2017.json", "{}2017"),
        ("{}/_annotations.coco.json", "{}"),
        ("{}/annotations.json", "{}/images"),
        ("{}/annotations/instances_default.json", "{}/images/default"),
        ("{}_zip/{}/labels.json", "{}_zip/{}"),
        ("{}.json", "images/{}"),
    ],
)
def test_layouts(tmp_path: Path, image: AnyImage, file: str, pictures: str) -> None:
    for split in ("train", "val"):
        for name in ("a.jpg", "b.jpg"):
            image(tmp_path / pictures.format(split, split) / name)
        path = tmp_path / file.format(split, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content()))
    assert len(find_splits(tmp_path)) == 2
    for split in ("train", "val"):
        held = open_dataset(tmp_path, split)
        assert len(held.labels) == 2 and split in held.paths[0].relative_to(tmp_path).as_posix() and not held.notes


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


def test_flags_written_as_text_and_a_size_that_is_none(tree: Path) -> None:
    boxes = [
        {"id": 1, "image_id": 3, "category_id": 2, "bbox": [1, 1, 5, 5], "iscrowd": flag} for flag in ("0", "1", 1)
    ]
    images = [{"id": 3, "file_name": "b.jpg", "width": 0, "height": 50}]
    write(tree, content(images=images, annotations=boxes))
    held = open_dataset(tree, "train")
    assert held.crowd.tolist() == [False, True, True]
    assert "1 image has a size in its labels that is none, such as 0, and was passed over: b.jpg" in held.notes
