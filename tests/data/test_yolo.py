from collections.abc import Callable
from pathlib import Path

import pytest

from multibox.data.formats import find_splits, open_dataset
from multibox.errors import DataError, ImageError
from multibox.structures import Size

AnyImage = Callable[..., Path]
YAML = "path: ../datasets/cats\ntrain: images/train\nval: images/val\ntest:\nnc: 2\nnames: [cat, no]\n"


@pytest.fixture
def tree(tmp_path: Path, image: AnyImage) -> Path:
    root = tmp_path / "cats"
    for split, stems in (("train", "ab"), ("val", "c")):
        for stem in stems:
            image(root / "images" / split / f"{stem}.png")
        (root / "labels" / split).mkdir(parents=True)
    (root / "data.yaml").write_text(YAML)
    label(root, "0 0.5 0.5 0.2 0.4\n1 0.1 0.2 0.2 0.4\n")
    (root / "labels" / "val" / "c.txt").write_text("1 0.5 0.5 1 1\n")
    return root


def label(root: Path, text: str, name: str = "train/a") -> Path:
    path = root / "labels" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_reads_fractions_into_pixels(tree: Path) -> None:
    assert find_splits(tree) == ["train", "val"]
    held = open_dataset(tree, "train")
    assert held.class_names == ("cat", "no") and held.image_names == ["a.png", "b.png"]
    assert held[0].boxes_xyxy.tolist() == [[40, 15, 60, 35], [0, 0, 20, 20]] and held[0].size == Size(50, 100)
    assert len(held[1].labels) == 0 and held.notes == ()
    assert open_dataset(tree / "data.yaml", "valid").labels.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 0.5 0.5 0.2 0.4", "object 1: class 2 is not among the 2 classes"),
        ("0 0.5 0.5 0.1 0.1\n-1 0.5 0.5 0.2 0.4", "object 2: class -1 is not among"),
        ("0 0.5 0.5 -0.2 0.4", "object 1: xmin is above xmax"),
        ("0 nan 0.5 0.2 0.4", "object 1: a coordinate is not a finite number"),
        ("0 320 240 20 40", "line 1: expected fractions of the image from 0 to 1, got 320"),
        ("\n0 0.5 0.5 0.2", "line 2: expected class cx cy w h, got 4 values"),
        ("0 0.5 0.5 0.2 0.1 0.9", "line 1: expected class cx cy w h, got 6 values"),
        ("cat 0.5 0.5 0.2 0.1", "line 1: expected a class number"),
        ("0.5 0.5 0.5 0.2 0.1", "line 1: expected a class number"),
    ],
)
def test_a_broken_line_stops_with_its_file_or_is_skipped(tree: Path, text: str, expected: str) -> None:
    path = label(tree, text)
    with pytest.raises(DataError) as error:
        open_dataset(tree, "train")
    assert str(path) in str(error.value) and expected in str(error.value) and "\n" not in str(error.value)
    held = open_dataset(tree, "train", on_bad="skip")
    assert held.image_names == ["a.png", "b.png"] and held.notes == ("1 broken box was skipped: a.txt",)


def test_outlines_become_boxes_and_flat_ones_go(tree: Path) -> None:
    label(tree, "1 0.1 0.2 0.5 0.4 0.3 0.8\r\n0 0.5 0.5 0 0.1\r\n\r\n")
    held = open_dataset(tree, "train")
    assert held.boxes_xyxy.tolist() == [[10, 10, 50, 40]]
    assert held.notes == (
        "1 outline was replaced by the box around it: a.txt",
        "1 box without area was dropped: a.txt",
    )


def test_a_label_without_its_image_and_a_image_that_is_none(tree: Path) -> None:
    orphan = label(tree, "0 0.5 0.5 0.1 0.1", "train/zz")
    with pytest.raises(ImageError, match=r"zz\.txt: its image is missing from"):
        open_dataset(tree, "train")
    assert open_dataset(tree, "train", on_bad="skip").image_names == ["a.png", "b.png"]
    orphan.unlink()
    (tree / "images" / "train" / "a.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"a\.png"):
        open_dataset(tree, "train")
    assert open_dataset(tree, "train", on_bad="skip").notes == ("1 unreadable image was skipped: a.png",)


def test_labels_that_are_all_somewhere_else(tree: Path) -> None:
    (tree / "labels").rename(tree / "lables")
    with pytest.raises(DataError, match=r"none of the 2 images of split 'train' has a label file; looked for .*labels"):
        open_dataset(tree, "train")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: images/train\nnames: [a\n", "is no YAML"),
        ("train: images/train\nnc: 3\nnames: [a, b]\n", "says nc: 3 but names 2"),
        ("train: images/trian\nnames: [a, b]\n", "says train: images/trian, which does not exist"),
        ("train: images/train\nnames: 5\n", "names should be a list"),
    ],
)
def test_a_data_yaml_that_does_not_fit(tree: Path, text: str, expected: str) -> None:
    (tree / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=expected) as error:
        open_dataset(tree, "train")
    assert "data.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_data_yaml_from_windows_and_from_roboflow(tree: Path, image: AnyImage) -> None:
    text = "\ufefftrain: ..\\images\\train\nval: C:/x/images/val\ntest: ../test/images\nnames:\n  3: cat\n  1: dog\n"
    (tree / "data.yaml").write_bytes(text.replace("\n", "\r\n").encode())
    label(tree, "3 0.5 0.5 0.1 0.1")
    held = open_dataset(tree, "train")
    assert held.class_names == ("dog", "cat") and held.labels.tolist() == [1] and find_splits(tree) == ["train", "val"]


def test_list_files(tree: Path) -> None:
    (tree / "train.txt").write_text(
        "./images/train/a.png\r\n/content/cats/images/val/c.png\r\n\r\n./images/train/a.png\n"
    )
    (tree / "data.yaml").write_text("train: train.txt\nnames: {0: cat, 1: dog}\n")
    held = open_dataset(tree)
    assert held.image_names == ["a.png", "c.png"] and len(held.labels) == 3
    assert held.notes == ("1 image is listed twice and was taken once: a.png",)
    (tree / "train.txt").write_text("images/train/a.png\nimages/train/q.png\n")
    with pytest.raises(ImageError, match=r"train\.txt: image 'images/train/q\.png' is missing"):
        open_dataset(tree)
    assert len(open_dataset(tree, on_bad="skip")) == 1


def test_without_data_yaml(tree: Path, image: AnyImage) -> None:
    (tree / "data.yaml").unlink()
    assert open_dataset(tree, "train").class_names == ("0", "1")  # class 1 is in val only
    (tree / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n\r\n")
    assert open_dataset(tree, "val").class_names == ("cat", "dog")
    flat = image(tree.parent / "flat" / "IMG 1.JPG").parent
    (flat / "IMG 1.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (flat / "classes.txt").write_text("cat\ndog\n")
    held = open_dataset(flat)
    assert held.image_names == ["IMG 1.JPG"] and held.labels.tolist() == [1]


def test_label_studio_and_coco128(tree: Path) -> None:
    (tree / "data.yaml").unlink()
    (tree / "classes.txt").write_text("cat\ndog\n")
    (tree / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2024}}')
    for kind in ("images", "labels"):
        (tree / kind / "train").rename(tree / kind / "train2017")
    assert find_splits(tree) == ["train2017", "val"] and len(open_dataset(tree.parent, "train")) == 2


def test_darknet(shared: Path) -> None:
    held = open_dataset(shared / "voc100" / "gts" / "yolo_format", "train")
    assert (len(held), len(held.labels), len(held.class_names)) == (100, 273, 20)
    assert held.image_names[0] == "2007_001585.jpg" and held.paths[0].parent.name == "images"
