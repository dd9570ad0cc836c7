import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multibox.data.formats import find_splits, locate, open_dataset, read_raw
from multibox.errors import DataError, ImageError
from multibox.structures import Size

AnyImage = Callable[..., Path]
CARD = """---
license: mit
dataset_info:
  features:
  - name: image
    dtype: image
  - name: objects
    struct:
    - name: bbox
      list:
        list: float32
        length: 4
    - name: {key}
      list:
        class_label:
          names:
            '0': no
            '1': "007"
  splits:
  - name: train
---
# Cells
"""


def objects(*boxes: list[Any], categories: list[Any] | None = None, key: str = "categories") -> dict[str, Any]:
    return {"bbox": list(boxes), key: [1] * len(boxes) if categories is None else categories}


def metadata(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("key", ["categories", "category", "category_id", "label"])
def test_a_folder_for_each_split_and_names_in_the_card(tmp_path: Path, image: AnyImage, key: str) -> None:
    for split in ("train", "validation"):
        image(tmp_path / split / "a.jpg")
        image(tmp_path / split / "b.jpg")
        rows = [
            {"file_name": "a.jpg", "width": 100, "height": 50, "objects": objects([10, 20, 30, 25.5], key=key)},
            {"file_name": "b.jpg", "objects": objects(key=key)},
        ]
        metadata(tmp_path / split / "metadata.jsonl", *rows)
    (tmp_path / "README.md").write_text(CARD.format(key=key))
    assert find_splits(tmp_path) == ["train", "validation"] and locate(tmp_path, None).format == "imagefolder"
    held = open_dataset(tmp_path, "val")
    assert held.class_names == ("no", "007") and held.image_names == ["a.jpg", "b.jpg"] and held.notes == ()
    assert held.boxes_xyxy.tolist() == [[10, 20, 40, 45.5]] and held.labels.tolist() == [1]
    assert held.sizes[0] == Size(50, 100) and held.paths[0] == tmp_path / "validation" / "a.jpg"


@pytest.mark.parametrize("place", ["", "data", "train", "data/train"])
def test_one_file_and_its_places(tmp_path: Path, image: AnyImage, place: str) -> None:
    root = tmp_path / "set"
    image(root / place / "deep" / "a.jpg")
    row = {"file_name": "deep/a.jpg", "objects": objects([1, 2, 3, 4], categories=["cat"])}
    path = metadata(root / place / "metadata.jsonl", row)
    assert find_splits(root) == ["train" if "train" in place else "all"]
    for held in (open_dataset(root), open_dataset(path)):
        assert held.class_names == ("cat",) and held.image_names == ["deep/a.jpg"]


def test_splits_in_the_file_names_and_numbers_without_names(tmp_path: Path, image: AnyImage) -> None:
    rows: list[Any] = []
    for split, category in (("train", 10), ("test", 9)):
        image(tmp_path / split / "a.jpg")
        one = {"bbox": [1, 2, 3, 4], "category": category, "iscrowd": 1, "difficult": True, "area": 12.0}
        rows.append({"file_name": f"{split}/a.jpg", "objects": [one]})
    metadata(tmp_path / "metadata.jsonl", *rows)
    assert find_splits(tmp_path) == ["train", "test"]
    held = open_dataset(tmp_path, "test")
    assert held.class_names == ("9", "10") and held.labels.tolist() == [0] and held.image_names == ["a.jpg"]
    assert held.crowd.tolist() == [True] and held.difficult.tolist() == [True] and "classes.txt" in held.notes[0]
    (tmp_path / "classes.txt").write_text("\n".join(f"kind {number}" for number in range(11)))
    assert open_dataset(tmp_path, "test").labels.tolist() == [9] and open_dataset(tmp_path, "test").notes == ()


def test_csv_and_parquet_as_metadata(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "csv" / "a.jpg")
    text = json.dumps(objects([1, 2, 3, 4], categories=["cat"])).replace('"', '""')
    (tmp_path / "csv" / "metadata.csv").write_text(f'file_name,objects\na.jpg,"{text}"\n')
    pyarrow = pytest.importorskip("pyarrow")
    image(tmp_path / "parquet" / "a.jpg")
    table = pyarrow.table({"file_name": ["a.jpg"], "objects": [objects([1, 2, 3, 4], categories=["cat"])]})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "parquet" / "metadata.parquet")
    for name in ("csv", "parquet"):
        held = open_dataset(tmp_path / name)
        assert held.format == "imagefolder" and held.boxes_xyxy.tolist() == [[1, 2, 4, 6]]
        assert held.class_names == ("cat",)


@pytest.mark.parametrize(
    ("broken", "reason", "expected"),
    [
        (objects([1, 2, 3, 4], ["a", 2, 3, 4]), "broken_box", "(a.jpg), object 2: expected four numbers"),
        (objects([1, 2, 3, 4], [1, 2, 3]), "broken_box", "object 2: expected four numbers"),
        (objects([1, 2, 3, 4], [float("nan"), 2, 3, 4]), "broken_box", "not a finite number"),
        (objects([1, 2, 3, 4], [1, 2, 3, 4], categories=[0, 7]), "broken_box", "category 7 is not among the 2 named"),
        (objects([1, 2, 3, 4], [1, 2, 3, 4], categories=[0, None]), "broken_box", "expected a category's name"),
    ],
)
def test_a_broken_box(tmp_path: Path, image: AnyImage, broken: Any, reason: str, expected: str) -> None:
    image(tmp_path / "a.jpg")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    metadata(tmp_path / "metadata.jsonl", {"file_name": "a.jpg", "objects": broken})
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    assert expected in str(error.value) and "metadata.jsonl" in str(error.value) and "\n" not in str(error.value)
    held = open_dataset(tmp_path, on_bad="skip")
    assert len(held.labels) == 1 and held.left_out == {reason: 1}
    assert read_raw(tmp_path, "all").lines.tolist()[0] == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"file_name": "a.jpg"', "line 2: expected a JSON object"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"objects": {}}', "line 2: it has no file_name"),
        ('{"file_name": "b.jpg", "objects": {"bbox": [[1, 2, 3, 4]]}}', "as many categories as bbox"),
        ('{"file_name": "b.jpg", "objects": 7}', "expected objects with bbox and categories"),
    ],
)
def test_a_broken_line(tmp_path: Path, image: AnyImage, line: str, expected: str) -> None:
    for name in "ab":
        image(tmp_path / f"{name}.jpg")
    path = metadata(tmp_path / "metadata.jsonl", {"file_name": "a.jpg", "objects": objects()})
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    assert expected in str(error.value)
    assert sum(open_dataset(tmp_path, on_bad="skip").left_out.values()) == 1


def test_missing_images_and_corners(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    corners = {"boxes": [[1, 2, 3, 4]], "labels": ["cat"]}
    path = metadata(tmp_path / "metadata.jsonl", {"file_name": "a.jpg", "objects": corners})
    held = open_dataset(tmp_path)
    assert held.boxes_xyxy.tolist() == [[1, 2, 3, 4]] and "read as corners" in held.notes[0]
    metadata(path, {"file_name": "zz.jpg", "objects": objects()})
    with pytest.raises(ImageError, match=r"metadata\.jsonl, line 1: image 'zz\.jpg' is missing"):
        open_dataset(tmp_path)


def test_metadata_without_boxes_is_none_of_ours(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    metadata(tmp_path / "metadata.jsonl", {"file_name": "a.jpg", "label": 1})
    with pytest.raises(DataError, match="is no data set"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("names", "categories", "expected"),
    [
        ("1\n2\n0\n", [0, 1.0, 2], ["1", "2", "0"]),
        ("1\n2\n0\n", ["0", "1", "2"], ["0", "1", "2"]),
        ("ant\nbee\n", [1, "1", "bee"], ["bee"] * 3),
        ("1\n", [0], ["1"]),
    ],
)
def test_a_number_counts_the_names_and_a_text_is_one(
    tmp_path: Path, image: AnyImage, names: str, categories: list[Any], expected: list[str]
) -> None:
    image(tmp_path / "a.jpg")
    boxes = [[place, 0, 5, 5] for place in range(len(categories))]
    metadata(tmp_path / "metadata.jsonl", {"file_name": "a.jpg", "objects": objects(*boxes, categories=categories)})
    (tmp_path / "classes.txt").write_text(names)
    held = open_dataset(tmp_path)
    assert held.class_names == tuple(names.split())
    assert [held.class_names[label] for label in held.labels] == expected


def test_a_text_of_digits_beside_names_of_digits_counts_nothing(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    row = {"file_name": "a.jpg", "objects": objects([1, 2, 3, 4], categories=["0"])}
    metadata(tmp_path / "metadata.jsonl", row)
    (tmp_path / "classes.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match="category '0' is not among the 2 named classes"):
        open_dataset(tmp_path)


def test_flags_written_as_text(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    flags = {"difficult": ["1", "0"], "iscrowd": ["0", True]}
    held = {**objects([1, 2, 3, 4], [5, 6, 7, 8], categories=["a", "a"]), **flags}
    metadata(tmp_path / "metadata.jsonl", {"file_name": "a.jpg", "objects": held})
    read = open_dataset(tmp_path)
    assert read.difficult.tolist() == [True, False] and read.crowd.tolist() == [False, True]
