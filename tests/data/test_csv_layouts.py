"""Tables that tools and people write, each read to the right boxes; choices are said."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multibox.data.formats import find_splits, open_dataset, read_raw
from multibox.errors import DataError, ImageError
from multibox.structures import Size

AnyImage = Callable[..., Path]
Case = Callable[[str], Path]
HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax"
BOX = [10, 5, 60, 45]
OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)


def row(name: str, label: str = "cat") -> str:
    return f"{name},100,50,{label},10,5,60,45"


def open_images(name: str, label: str, group: int = 0, depiction: int = 0) -> str:
    return f"{name},xclick,{label},1,0.1,0.6,0.1,0.9,0,0,{group},{depiction},0"


def table(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


@pytest.mark.parametrize("name", ["k01_tf", "k01b_tf_data"])
def test_the_tables_of_the_tensorflow_tutorial(case: Case, name: str) -> None:
    root = case("csv-pictures-in-split-folders") / name
    assert find_splits(root) == ["train", "test"]
    train, test = open_dataset(root, "train"), open_dataset(root, "test")
    assert (len(train), len(train.labels), len(test), len(test.labels)) == (3, 4, 2, 2)
    assert all(path.parent.name == "train" for path in train.paths) and train.sizes[0] == Size(120, 160)
    given = open_dataset(next(root.rglob("train_labels.csv")))
    assert given.split == "train" and given.boxes_xyxy.tolist() == train.boxes_xyxy.tolist() and given.notes == ()


@pytest.mark.parametrize(
    ("tables", "pictures"),
    [
        ("annotations/{}-annotations-bbox.csv", "images/{}"),  # Open Images v6, as datumaro writes it
        ("{}-annotations-bbox.csv", "{}"),
        ("csv/oidv6-{}-annotations-bbox.csv", "images/{}"),
        ("{}_labels.csv", "images/{}"),
        ("images/{}_labels.csv", "images/{}"),
        ("{}/_annotations.csv", "{}"),  # Roboflow
        ("{}_zip/{}/labels.csv", "{}_zip/{}/images"),
        ("{}.csv", "{}/images"),
    ],
)
@pytest.mark.parametrize("words", [("train", "validation", "test"), ("train", "valid", "test")])
def test_images_of_each_split_lie_in_its_folder(
    tmp_path: Path, image: AnyImage, tables: str, pictures: str, words: tuple[str, ...]
) -> None:
    for shade, word in enumerate(words):
        image(tmp_path / pictures.format(word, word) / "1.jpg", shade=shade)
        table(tmp_path / tables.format(word, word), HEADER, row("1.jpg"))
    assert len(find_splits(tmp_path)) == 3
    for word in words:
        held = open_dataset(tmp_path, word)
        assert held.boxes_xyxy.tolist() == [BOX] and held.notes == ()
        assert word in held.paths[0].relative_to(tmp_path).as_posix()
    (tmp_path / pictures.format("train", "train") / "1.jpg").unlink()
    with pytest.raises(ImageError, match=r"image '1\.jpg' is missing"):  # that of another split is not taken
        open_dataset(tmp_path, "train")


def test_open_images(tmp_path: Path, image: AnyImage) -> None:
    lines = [open_images("0a", "/m/02"), open_images("0a", "/m/01", group=1), open_images("0b", "/m/09", depiction=1)]
    table(tmp_path / "train-annotations-bbox.csv", OPEN_IMAGES, *lines)
    table(tmp_path / "validation-annotations-bbox.csv", OPEN_IMAGES, open_images("0c", "/m/03"))
    for path in ("train/0a.jpg", "train/0b.jpg", "validation/0c.jpg"):
        image(tmp_path / path)
    assert open_dataset(tmp_path, "train").class_names == ("/m/01", "/m/02", "/m/03", "/m/09")
    names = ["/m/03,Tree", "/m/02,Cat", "/m/01,Dog", "/m/07,Unused"]
    table(tmp_path / "class-descriptions-boxable.csv", *names)
    held = open_dataset(tmp_path, "train")
    assert held.class_names == ("Tree", "Cat", "Dog", "/m/09") and held.labels.tolist() == [1, 2, 3]
    np.testing.assert_allclose(held.boxes_xyxy, [[10, 5, 60, 45]] * 3, atol=1e-5)
    assert held.crowd.tolist() == [False, True, False] and held.image_names == ["0a.jpg", "0b.jpg"]
    assert set(held.notes) == {
        "1 class is in no class-descriptions file: /m/09",
        "1 depiction was kept as an object: line 4",
    }
    assert open_dataset(tmp_path, "val", format="Open-Images").class_names == held.class_names


@pytest.mark.parametrize("place", ["metadata/class-descriptions.csv", "../oidv7-class-descriptions-boxable.csv"])
def test_descriptions_lie_above_or_in_metadata(tmp_path: Path, image: AnyImage, place: str) -> None:
    root = tmp_path / "set"
    image(root / "train/a.jpg")
    table(root / "train-annotations-bbox.csv", OPEN_IMAGES, open_images("a", "/m/02"))
    table(root / place, "LabelName,DisplayName", "/m/02,Cat")
    assert open_dataset(root).class_names == ("Cat",)


def test_tables_without_header(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "images/a.jpg")
    image(tmp_path / "images/b.jpg")
    table(tmp_path / "annotations.csv", "images/a.jpg,10,5,60,45,cat", "images/b.jpg,,,,,", "images/a.jpg,1,2,3,4,dog")
    held = open_dataset(tmp_path)
    assert held.boxes_xyxy.tolist() == [BOX, [1, 2, 3, 4]] and len(held) == 2 and held.class_names == ("cat", "dog")
    assert held.notes == (
        "annotations.csv has no header; its columns were read as image, xmin, ymin, xmax, ymax, class",
    )
    table(tmp_path / "annotations.csv", "cat,10,5,50,40,a.jpg,100,50", "cat,1,2,3,4,b.jpg,100,50")
    held = open_dataset(tmp_path)
    assert held.boxes_xyxy.tolist() == [BOX, [1, 2, 4, 6]] and held.sizes == [Size(50, 100)] * 2
    assert held.notes == (
        "annotations.csv has no header; its columns were read as class, x, y, width, height, image, image's width, "
        "image's height",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("filename;label;xmin;ymin;xmax;ymax\na.jpg;cat;10,5;5;60,25;45", [10.5, 5, 60.25, 45]),
        ('filename,label,xmin,ymin,xmax,ymax\na.jpg,cat,"1,125","0,125",60,45', [1.125, 0.125, 60, 45]),
        ("filename\tlabel\txmin\tymin\txmax\tymax\na.jpg\tcat\t10\t5\t60\t45", BOX),
        ("sep=;\r\nfilename;label;xmin;ymin;xmax;ymax\r\na.jpg;cat;10;5;60;45\r\n", BOX),
        ("filename,label,xmin,ymin,xmax,ymax\na.jpg,cat,10.0, 5.0 ,6e1,45", BOX),
    ],
)
def test_numbers_and_delimiters(tmp_path: Path, image: AnyImage, text: str, expected: list[float]) -> None:
    image(tmp_path / "a.jpg")
    table(tmp_path / "x.csv", text)
    held = open_dataset(tmp_path)
    assert held.boxes_xyxy.tolist() == [expected]
    assert bool(held.notes) == ("," in text.partition("cat")[2].replace(",6e1", "") and expected != BOX)


@pytest.mark.parametrize(
    "cells",
    ['"1,234",5,"2,000",45', '"1,234.5",5,"2,000",45', '"1,000,000",5,"0,5",45', "1;234;2;5", '"1,5",5.5,60,45'],
)
def test_a_comma_that_may_stand_for_thousands_is_refused(tmp_path: Path, image: AnyImage, cells: str) -> None:
    image(tmp_path / "a.jpg")
    table(tmp_path / "x.csv", "filename,label,xmin,ymin,xmax,ymax", f"a.jpg,cat,{cells}")
    with pytest.raises(DataError, match=r"x\.csv, line 2: xmin, ymin, xmax, ymax should be numbers, got") as error:
        open_dataset(tmp_path)
    assert error.value.kind == "not-a-number"
    assert ("may mean thousands" in str(error.value)) == ("," in cells)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "gbk", "gb18030", "cp1252"])
def test_tables_in_other_encodings(tmp_path: Path, image: AnyImage, encoding: str) -> None:
    name = "größe" if encoding == "cp1252" else "红绿灯"
    image(tmp_path / f"set/{name}.jpg")
    table(tmp_path / "set/x.csv", HEADER, row(f"{name}.jpg", name), encoding=encoding)
    held = open_dataset(tmp_path / "set")
    assert held.class_names == (name,) and held.boxes_xyxy.tolist() == [BOX]
    guessed = encoding in ("gbk", "gb18030", "cp1252", "utf-16-le")
    assert bool(held.notes) == guessed and bool(read_raw(tmp_path / "set", "all").problems) == guessed


def test_utf16_that_misses_a_byte_is_refused(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    whole = f"{HEADER}\n{row('a.jpg')}\n".encode("utf-16")
    # Without one byte no later character is what it was
    (tmp_path / "x.csv").write_bytes(whole[:-40] + whole[-39:])
    with pytest.raises(DataError):
        open_dataset(tmp_path)


def test_vott_encodes_names(case: Case) -> None:
    held = open_dataset(case("url-encoded-names") / "k07_vott")
    assert (len(held), len(held.labels)) == (5, 6)
    assert held.notes[0].startswith("5 image names were decoded, as in a web address: images%20(0).jpg")


def test_a_name_that_fits_two_images_is_said(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    image(tmp_path / "a.png")
    table(tmp_path / "x.csv", HEADER, row("a"))
    held = open_dataset(tmp_path)
    assert held.image_names == ["a.jpg"]
    assert held.notes == ("1 image name fits two files; the first was taken: a (a.jpg, not a.png)",)


def test_broken_lines_make_no_classes(case: Case, tmp_path: Path, image: AnyImage) -> None:
    root = case("silent-choices") / "k27_nofind_01"
    held = open_dataset(root, on_bad="skip")
    assert held.class_names == ("cat", "dog") and len(held) == 6
    assert held.notes == ("2 lines name images without objects: line 8, line 9",)
    image(tmp_path / "a.jpg")
    lines = [row("a.jpg"), "a.jpg,9,9,ghost,x,1,2,3", "a.jpg,9,9,spirit,9,9,1,1", "a.jpg,9,9,nan,1,1,2,2"]
    table(tmp_path / "x.csv", HEADER, *lines)
    held = open_dataset(tmp_path, on_bad="skip")
    assert held.class_names == ("cat",) and held.left_out == {"broken_box": 3}
    assert held.notes[0] == "names that only broken lines have were not taken for classes: ghost, spirit"


def test_raw_values_are_kept_as_written(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "set/a.jpg")
    rows = ["0.1,0.2,0.5,0.6", "nan,1,2,3", "inf,1,2,3", "x,1,2,3", "9,9,1,1"]
    table(tmp_path / "set/x.csv", "filename,label,xmin,ymin,xmax,ymax", *(f"a.jpg,cat,{one}" for one in rows))
    with pytest.raises(DataError, match=r"finite|numbers"):
        open_dataset(tmp_path / "set")
    raw = read_raw(tmp_path / "set", "all")
    assert raw.boxes_xyxy[0].tolist() == [0.1, 0.2, 0.5, 0.6] and raw.lines.tolist() == [2, 3, 4, 6]
    assert [(one.kind, one.subject, one.source.name) for one in raw.problems] == [("not-a-number", "line 5", "x.csv")]


def test_only_the_head_is_read_to_recognise(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "set/a.jpg")
    path = table(tmp_path / "set/x.csv", HEADER, *[row("a.jpg")] * 5_000)
    path.write_bytes(path.read_bytes() + b"\n\x81\0\x8d")  # no text in any encoding
    assert find_splits(tmp_path / "set") == ["all"]
    with pytest.raises(DataError, match="is not UTF-8 text") as error:
        open_dataset(tmp_path / "set")
    assert error.value.kind == "unknown-encoding"
