"""Layouts that tools write and people make of VOC XML, each read to the right boxes; choices are said."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multibox.data.formats import find_splits, open_dataset, read_raw
from multibox.errors import DataError

AnyImage = Callable[..., Path]
Case = Callable[[str], Path]
BOX = [10, 5, 60, 45]


def thing(name: str = "cat", box: str = "", extra: str = "") -> str:
    corners = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True))
    return f"<object><name>{name}</name>{box or f'<bndbox>{corners}</bndbox>'}{extra}</object>"


def voc(root: Path, image: AnyImage, xml: str, picture: str, *things: str, filename: str = "") -> None:
    image(root / picture)
    (root / xml).parent.mkdir(parents=True, exist_ok=True)
    name = filename or Path(picture).name
    (root / xml).write_text(f"<annotation><filename>{name}</filename>{''.join(things or (thing(),))}</annotation>")


def names(root: Path, split: str) -> list[str]:
    held = open_dataset(root, split, format="voc")
    assert all(sample.boxes_xyxy.tolist() == [BOX] for sample in held)
    return list(held.image_names)


@pytest.mark.parametrize(
    ("case_name", "note"),
    [
        (
            "v26b_two_pictures_noext",
            r"6 image names fit two files each; the first was taken: a0 \(a0\.jpg, not a0\.png\)",
        ),
        (
            "v40_stem_vs_filename",
            r"6 label files name other images, which exist too; .*: 0\.xml \(0\.jpg, not photo_0\.jpg\)",
        ),
        ("v51_neighbour/ds", r"6 images were taken from \.\./images: 000000\.jpg"),
        ("v24_two_bndbox", r"1 object has a second <bndbox>; the first was taken: img0\.xml"),
    ],
)
def test_choices_are_said(case: Case, case_name: str, note: str) -> None:
    held = open_dataset(case("silent-choices") / case_name)
    assert len(held) == 6 and held.labels.tolist() and len(held.notes) == 1
    with pytest.raises(AssertionError, match=note):
        raise AssertionError(held.notes[0])


def test_the_kaggle_folders_two_levels_deep(case: Case) -> None:
    root = case("train-and-val-folders-one-format") / "k40_kaggle_two_levels"
    assert find_splits(root) == ["train", "test"]
    assert [len(open_dataset(root, split)) for split in ("train", "test")] == [4, 2]


def test_a_devkit_joins_its_years(tmp_path: Path, image: AnyImage) -> None:
    root = tmp_path / "VOCdevkit"
    for year, stem in ((2007, "000001"), (2007, "000002"), (2012, "2008_000001"), (2012, "000002")):
        voc(root / f"VOC{year}", image, f"Annotations/{stem}.xml", f"JPEGImages/{stem}.jpg")
    lists = {
        2007: {"trainval": "000001", "test": "000002", "cat_trainval": "000001  1"},
        2012: {"trainval": "000002\n2008_000001"},
    }
    for year, held in lists.items():
        for name, text in held.items():
            (root / f"VOC{year}" / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
            (root / f"VOC{year}" / "ImageSets/Main" / f"{name}.txt").write_text(text)
    assert find_splits(root) == ["trainval", "test"] and find_splits(tmp_path) == ["trainval", "test"]
    assert names(root, "trainval") == ["VOC2007/000001.jpg", "VOC2012/000002.jpg", "VOC2012/2008_000001.jpg"]
    assert names(root, "test") == ["VOC2007/000002.jpg"]
    assert names(root / "VOC2012", "trainval") == ["000002.jpg", "2008_000001.jpg"]


def test_the_archives_of_voc_unpacked_beside_each_other(tmp_path: Path, image: AnyImage) -> None:
    for archive, stem, split in (("VOCtrainval_06-Nov-2007", "1", "trainval"), ("VOCtest_06-Nov-2007", "2", "test")):
        year = tmp_path / archive / "VOCdevkit/VOC2007"
        voc(year, image, f"Annotations/{stem}.xml", f"JPEGImages/{stem}.jpg")
        (year / "ImageSets/Main").mkdir(parents=True)
        (year / "ImageSets/Main" / f"{split}.txt").write_text(stem)
    assert names(tmp_path, "trainval") == ["VOC2007/1.jpg"] and names(tmp_path, "test") == ["VOC2007/2.jpg"]


@pytest.mark.parametrize(
    ("xml", "picture"),
    [
        ("images/train", "images/train"),  # TensorFlow's tutorial
        ("train", "train"),  # Roboflow
        ("cats_train", "cats_train"),
        ("train_zip/train", "train_zip/train"),
        ("train/Annotations", "train/JPEGImages"),
        ("train/annotations", "train/images"),
        ("Annotations/train", "JPEGImages/train"),
        ("annotations/train", "images/train"),
        ("labels/train", "images/train"),
        ("Annotations/CLS-LOC/train", "Data/CLS-LOC/train"),  # ImageNet
        ("Annotations/CLS-LOC/train/n01", "Data/CLS-LOC/train/n01"),
    ],
)
def test_splits_by_folder(tmp_path: Path, image: AnyImage, xml: str, picture: str) -> None:
    for split, name in (("train", "a"), ("test", "a")):
        folders = [folder.replace("train", split) for folder in (xml, picture)]
        # The two splits' images have one name, so each must come from its own folder.
        voc(tmp_path, image, f"{folders[0]}/{name}.xml", f"{folders[1]}/{name}.JPEG", thing(split))
    assert find_splits(tmp_path, "voc") == ["train", "test"]
    for split in ("train", "test"):
        held = open_dataset(tmp_path, split, format="voc")
        assert held.boxes_xyxy.tolist() == [BOX] and held.class_names == ("test", "train")
        assert held.class_names[held.labels[0]] == split and split in held.paths[0].as_posix() and not held.notes


def test_an_image_of_another_split_is_not_taken(tmp_path: Path, image: AnyImage) -> None:
    for split in ("train", "val"):
        voc(tmp_path, image, f"Annotations/{split}/a.xml", f"images/{split}/a.jpg")
    (tmp_path / "images/train/a.jpg").unlink()
    with pytest.raises(DataError, match=r"image 'a\.jpg' is missing"):
        open_dataset(tmp_path, "train")


def test_a_labelmap_gives_the_order_of_classes(tmp_path: Path, image: AnyImage) -> None:
    voc(tmp_path, image, "Annotations/a.xml", "JPEGImages/a.jpg", thing("cat"), thing("ant"), thing("dog"))
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:1,1,1::\ncat:2,2,2::\n"
    )
    held = open_dataset(tmp_path)
    assert held.class_names == ("dog", "cat", "ant") and held.labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("encoding", "declared", "guess"),
    [
        ("gbk", "GB2312", ""),
        ("gb18030", "gb18030", ""),
        ("utf-16", "utf-16", ""),
        ("utf-16", "utf-8", ""),
        ("utf-8-sig", "utf-8", ""),
        ("cp1252", "iso-8859-1", ""),
        ("cp1252", "utf-8", "cp1252"),
        ("cp1252", "", "cp1252"),
        ("gbk", "", "gb18030"),
        ("utf-16-le", "", ""),
    ],
)
def test_xml_in_other_encodings(tmp_path: Path, image: AnyImage, encoding: str, declared: str, guess: str) -> None:
    name = "größe" if encoding == "cp1252" else "红绿灯"
    voc(tmp_path, image, "Annotations/a.xml", "JPEGImages/a.jpg", thing(name))
    path = tmp_path / "Annotations/a.xml"
    text = (f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else "") + path.read_text(encoding="utf-8")
    path.write_bytes(text.encode(encoding))
    held = open_dataset(tmp_path)
    assert held.class_names == (name,) and held.boxes_xyxy.tolist() == [BOX]
    if guess or not held.notes:
        assert held.notes == ((f"1 file is not UTF-8 and was read as {guess}: a.xml",) if guess else ())
        assert [one.kind for one in read_raw(tmp_path, "all").problems] == ["unknown-encoding"] * bool(guess)


def test_an_attack_in_another_encoding_is_refused(tmp_path: Path, image: AnyImage) -> None:
    voc(tmp_path, image, "Annotations/a.xml", "JPEGImages/a.jpg")
    bomb = '<?xml version="1.0" encoding="gbk"?><!DOCTYPE a [<!ENTITY b "x">]><annotation>红&b;</annotation>'
    for encoding in ("gbk", "utf-16", "utf-8"):
        (tmp_path / "Annotations/a.xml").write_bytes(bomb.encode(encoding))
        with pytest.raises(DataError, match=r"a\.xml is no XML"):
            open_dataset(tmp_path)


def test_polygons_and_turned_boxes(tmp_path: Path, image: AnyImage) -> None:
    outline = "<polygon><x1>1</x1><y1>2</y1><x2>9</x2><y2>4</y2><x3>5</x3><y3>30</y3></polygon>"
    points = "<polygon><pt><x>3</x><y>4</y></pt><pt><x>8</x><y>6</y></pt></polygon>"
    turned = "<robndbox><cx>50</cx><cy>20</cy><w>20</w><h>10</h><angle>1.5707963267948966</angle></robndbox>"
    things = [thing(box=box) for box in (outline, points, turned)] + [thing(extra=outline)]
    voc(tmp_path, image, "a.xml", "a.jpg", *things)
    held = open_dataset(tmp_path)
    np.testing.assert_allclose(held.boxes_xyxy, [[1, 2, 9, 30], [3, 4, 8, 6], [45, 10, 55, 30], BOX])
    assert held.notes == ("3 outlines were replaced by the boxes around them: a.xml",)


def test_one_broken_object_leaves_the_others(tmp_path: Path, image: AnyImage) -> None:
    broken = thing(box="<bndbox><xmin>x</xmin><ymin>1</ymin><xmax>2</xmax><ymax>3</ymax></bndbox>")
    wild = thing(box="<bndbox><xmin>nan</xmin><ymin>0.1</ymin><xmax>inf</xmax><ymax>3</ymax></bndbox>")
    voc(tmp_path, image, "Annotations/a.xml", "JPEGImages/a.jpg", broken, thing(), wild, "<object><name/></object>")
    (tmp_path / "Annotations/b.xml").write_text("<annotation></annotation>")
    (tmp_path / "Annotations/c.xml").write_text("<annotation>")
    held = open_dataset(tmp_path, on_bad="skip")
    assert held.boxes_xyxy.tolist() == [BOX] and held.left_out == {
        "broken_box": 3,
        "missing_image": 1,
        "broken_file": 1,
    }
    raw = read_raw(tmp_path, "all")
    assert raw.lines.tolist() == [2, 3] and np.isnan(raw.boxes_xyxy[1, 0]) and np.isinf(raw.boxes_xyxy[1, 2])
    assert [(one.kind, one.source.name) for one in raw.problems] == [
        ("not-a-number", "a.xml"),
        ("unreadable-label", "a.xml"),
        ("label-without-image", "b.xml"),
        ("", "c.xml"),
    ]


def test_the_first_files_may_be_empty(tmp_path: Path, image: AnyImage) -> None:
    for number in range(10):
        voc(tmp_path, image, f"{number}.xml", f"{number}.jpg")
        (tmp_path / f"{number}.xml").write_bytes(b"")
    voc(tmp_path, image, "x.xml", "x.jpg")
    assert open_dataset(tmp_path, on_bad="skip").image_names == ["x.jpg"]


def test_names_that_are_spelt_differently_are_said(tmp_path: Path, image: AnyImage) -> None:
    voc(tmp_path, image, "Annotations/IMG_1.xml", "images/img_1.JPG")
    voc(tmp_path, image, "Annotations/my%20cat.xml", "images/my cat.jpg", filename="my%20cat.jpg")
    held = open_dataset(tmp_path)
    assert [path.name for path in held.paths] == ["img_1.JPG", "my cat.jpg"]
    assert held.notes == (
        "1 image was found under a name that is spelt differently: IMG_1 (img_1.JPG)",
        "1 image name was decoded, as in a web address: my%20cat.jpg",
    )
