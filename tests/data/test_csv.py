from collections.abc import Callable
from pathlib import Path

import pytest

from multibox.data.formats import find_splits, open_dataset
from multibox.errors import DataError, ImageError

AnyImage = Callable[..., Path]
HEADER = "img_name,label,xmin,ymin,xmax,ymax"


@pytest.fixture
def bananas(tmp_path: Path, image: AnyImage) -> Path:
    for split, names in (("train", ("0.png", "1.png")), ("val", ("0.png",))):
        for name in names:
            image(tmp_path / f"bananas_{split}" / "images" / name)
        lines = [HEADER, *(f"{name},0,10,5,60,45" for name in names)]
        (tmp_path / f"bananas_{split}" / "label.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def table(tmp_path: Path, image: AnyImage) -> Callable[[str], Path]:
    for name in ("a.jpg", "b.jpg"):
        image(tmp_path / "images" / name)

    def write(text: str) -> Path:
        (tmp_path / "labels.csv").write_bytes(text.encode())
        return tmp_path

    return write


def test_bananas(bananas: Path) -> None:
    assert find_splits(bananas) == ["train", "val"]
    train, val = open_dataset(bananas, "train"), open_dataset(bananas, "val")
    assert train.image_names == ["0.png", "1.png"] and train.class_names == ("0",) and val.format == "csv"
    assert val.paths == [bananas / "bananas_val" / "images" / "0.png"] and val.boxes_xyxy.tolist() == [[10, 5, 60, 45]]
    assert open_dataset(bananas / "bananas_train").split == "train"
    (bananas / "classes.txt").write_text("banana\n")
    assert open_dataset(bananas, "train", class_names=["apple", "banana"]).labels.tolist() == [1, 1]


def test_columns_are_taken_by_name(table: Callable[[str], Path]) -> None:
    root = table(
        "\ufeffFileName;Cell_Type;XMin;XMax;YMin;YMax;IsCrowd\r\nb.jpg;dog;1;11;2;22;1\r\na.jpg;cat;3;13;4;24;0\r\n\r\n"
    )
    held = open_dataset(root)
    assert (
        held.image_names == ["b.jpg", "a.jpg"] and held.class_names == ("cat", "dog") and held.labels.tolist() == [1, 0]
    )
    assert held.boxes_xyxy.tolist() == [[1, 2, 11, 22], [3, 4, 13, 24]] and held.crowd.tolist() == [True, False]


def test_width_and_height_of_the_box_are_not_those_of_the_image(table: Callable[[str], Path]) -> None:
    held = open_dataset(table(f"\n{HEADER},width,height\na.jpg,cat,40,5,60,45,20,40\n"))
    assert held.boxes_xyxy.tolist() == [[40, 5, 60, 45]] and held.sizes == [None]


def test_negatives_scattered_rows_and_numbers_in_order(table: Callable[[str], Path]) -> None:
    held = open_dataset(table(f"{HEADER}\na.jpg,10,1,1,9,9\nb.jpg\na.jpg,9,2,2,8,8\n"))
    assert held.image_names == ["a.jpg", "b.jpg"] and held.class_names == ("9", "10")
    assert held[0].labels.tolist() == [1, 0] and len(held[1].labels) == 0


def test_a_split_column(table: Callable[[str], Path]) -> None:
    root = table(f"{HEADER},split\na.jpg,x,1,1,9,9,val\nb.jpg,y,1,1,9,9,train\nb.jpg,z,1,1,9,9,train\n")
    assert find_splits(root) == ["train", "val"]
    assert open_dataset(root, "train").labels.tolist() == [1, 2] and open_dataset(root, "val").image_names == ["a.jpg"]
    with pytest.raises(DataError, match="several splits"):
        open_dataset(root)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a.jpg,cat,9,1,1,9", "image a.jpg, object 2: xmin is above xmax"),
        ("a.jpg,cat,one,1,1,9", "line 4: xmin, ymin, xmax, ymax should be numbers"),
        ("a.jpg,cat,1,1,9", "line 4: xmin, ymin, xmax, ymax should be numbers"),
        ("a.jpg,cat,1,1,9,nan", "object 2: a coordinate is not a finite number"),
        (",cat,1,1,9,9", "line 4: no file name"),
    ],
)
def test_a_broken_line(table: Callable[[str], Path], row: str, expected: str) -> None:
    root = table(f"{HEADER}\nb.jpg,cat,1,1,9,9\na.jpg,cat,1,1,9,9\n{row}\n")
    with pytest.raises(DataError) as error:
        open_dataset(root)
    assert "labels.csv" in str(error.value) and expected in str(error.value) and "--on-bad skip" in str(error.value)
    held = open_dataset(root, on_bad="skip")
    assert len(held.labels) == 2 and len(held.notes) == 1 and "1 broken box was skipped" in held.notes[0]


def test_a_missing_image_is_named_once(table: Callable[[str], Path]) -> None:
    root = table(f"{HEADER}\na.jpg,cat,1,1,9,9\nzz.jpg,cat,1,1,9,9\nzz.jpg,cat,2,2,9,9\n")
    with pytest.raises(ImageError, match=r"labels\.csv, line 3: image 'zz\.jpg' is missing; looked in .*images"):
        open_dataset(root)
    assert open_dataset(root, on_bad="skip").notes == ("1 image without a file was skipped: zz.jpg",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,kind,left,up\n", "its header names no column for label, ymin, xmax, ymax; .*found file, kind, left, up"),
        ("cat,a.jpg,1,1,9,9\n", "has no header: its first line is cat, a.jpg, 1, 1, 9, 9; put a line"),
        ("a.jpg,10,10,9,9,cat\n", "has no header: its first line is a.jpg, 10,"),  # x, y, width, height?
        ("cat,10,20,90,30,a.jpg,80,60\n", "has no header"),  # corners?
        ("file,kind,x1,y1,x2,y2\n", "names no column for label;"),
        ("", "is empty"),
        (f"{HEADER}\na.jpg,cat,0.1,0.1,0.9,0.9\n", "corners are fractions of the image"),
        (f"{HEADER}\n", "holds no images"),
    ],
)
def test_a_table_that_cannot_be_used(table: Callable[[str], Path], text: str, expected: str) -> None:
    root = table(text)
    for path in (root, root / "labels.csv"):
        with pytest.raises(DataError, match=expected) as error:
            open_dataset(path)
        assert "\n" not in str(error.value)


def test_bccd_table_beside_the_tree(shared: Path) -> None:
    held = open_dataset(shared / "bccd" / "test.csv")
    assert (len(held), len(held.labels)) == (364, 4886) and held.class_names == ("Platelets", "RBC", "WBC")
    voc = open_dataset(shared / "bccd" / "BCCD", "test")
    sample = held[held.image_names.index(voc.image_names[0])]
    assert sorted(sample.boxes_xyxy.tolist()) == sorted(voc[0].boxes_xyxy.tolist())


def test_a_number_beside_class_names_that_are_numbers_is_a_name(table: Callable[[str], Path]) -> None:
    root = table("filename,xmin,ymin,xmax,ymax,label\na.jpg,1,2,3,4,1\n")
    (root / "classes.txt").write_text("2\n1\n")
    assert open_dataset(root).labels.tolist() == [1]
    (root / "classes.txt").write_text("2\n3\n")
    with pytest.raises(DataError, match=r"class '1' is not in classes\.txt"):
        open_dataset(root)


def test_a_label_of_a_missing_image_does_not_move_the_classes_of_a_list(table: Callable[[str], Path]) -> None:
    """It was given the first free place, under which the boxes of images that exist then got another class."""
    root = table(f"{HEADER}\nmissing.jpg,dog,1,2,30,40\na.jpg,dog,1,2,30,40\na.jpg,cat,1,2,30,40\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    held = open_dataset(root, on_bad="skip")
    assert held.class_names == ("cat", "dog") and held.labels.tolist() == [1, 0]


def test_an_empty_list_of_classes_holds_no_class(table: Callable[[str], Path]) -> None:
    root = table(f"{HEADER}\nmissing.jpg,dog,1,2,30,40\na.jpg,dog,1,2,30,40\n")
    (root / "classes.txt").write_text("")
    held = open_dataset(root, on_bad="skip")
    assert held.image_names == ["a.jpg"] and held.class_names == () and not len(held.labels)
    (root / "labels.csv").write_text(f"{HEADER}\na.jpg,dog,1,2,30,40\n")
    with pytest.raises(DataError, match=r"class 'dog' is not in classes\.txt, which names 0 classes"):
        open_dataset(root)
