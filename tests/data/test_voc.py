from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multibox.data.formats import find_splits, open_dataset
from multibox.errors import DataError, ImageError
from multibox.structures import Size

AnyImage = Callable[..., Path]
BOX = "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def thing(name: str = "cat", box: tuple = (10, 5, 60, 45), difficult: object = 0) -> str:
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return BOX.format(name=name, difficult=difficult, corners=corners)


def annotation(filename: str, *things: str, size: str = "<width>100</width><height>50</height>") -> str:
    return f"<annotation><filename>{filename}</filename><size>{size}</size>{''.join(things)}</annotation>"


@pytest.fixture
def tree(tmp_path: Path, image: AnyImage) -> Path:
    root = tmp_path / "cats"
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for stem in ("a", "b", "c"):
        image(root / "JPEGImages" / f"{stem}.jpg")
    (root / "Annotations" / "a.xml").write_text(annotation("a.jpg", thing("dog"), thing("cat", (0, 0, 3.5, 4), 1)))
    (root / "Annotations" / "b.xml").write_text(annotation("b.jpg", thing("cat")))
    (root / "Annotations" / "c.xml").write_text(annotation("c.jpg"))
    (root / "ImageSets" / "Main" / "train.txt").write_text("b\nc\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    return root


def xml(tree: Path, text: str | bytes, stem: str = "b") -> Path:
    path = tree / "Annotations" / f"{stem}.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_reads_what_the_files_say(tree: Path) -> None:
    val = open_dataset(tree, "val")
    assert val.class_names == ("cat", "dog") and val.format == "voc" and val.split == "val"
    sample = val[0]
    assert sample.name == "a.jpg" and sample.path == tree / "JPEGImages" / "a.jpg" and sample.size == Size(50, 100)
    assert sample.boxes_xyxy.tolist() == [[10, 5, 60, 45], [0, 0, 3.5, 4]]
    assert sample.labels.tolist() == [1, 0] and sample.difficult.tolist() == [False, True]
    train = open_dataset(tree, "train")
    assert (
        train.image_names == ["b.jpg", "c.jpg"] and len(train[1].labels) == 0 and train.class_names == val.class_names
    )


def test_one_based_corners_move_by_one(tree: Path) -> None:
    xml(tree, annotation("b.jpg", thing(box=(7, 7, 7, 7))))
    assert open_dataset(tree, "train", one_based=True).boxes_xyxy.tolist() == [[6, 6, 7, 7]]
    plain = open_dataset(tree, "train")
    assert len(plain.labels) == 0 and plain.notes == ("1 box without area was dropped: b.xml",)


def test_boxes_over_the_edge_are_kept_as_written_and_counted(tree: Path) -> None:
    xml(tree, annotation("b.jpg", thing(box=(90, 5, 101, 45)), thing(box=(0, 0, 100, 50))))
    held = open_dataset(tree, "train")
    assert held.boxes_xyxy.tolist() == [[90, 5, 101, 45], [0, 0, 100, 50]]
    assert held.notes == ("1 box ran out of its image and was kept as written: b.xml",)
    xml(tree, annotation("b.jpg", thing(box=(90, 5, 101, 45)), size="<width>0</width><height>0</height>"))
    (note,) = open_dataset(tree, "train").notes
    assert note == "1 image has a size in its labels that is none, such as 0, and was passed over: b.xml"


def test_class_names_map_by_name_and_a_strange_class_names_its_file(tree: Path) -> None:
    assert open_dataset(tree, "val", class_names=["dog", "horse", "cat"]).labels.tolist() == [0, 2]
    with pytest.raises(DataError) as error:
        open_dataset(tree, "val", class_names=["dog", "cats"])
    assert all(part in sentence(error) for part in ("a.xml", "'cat'", "did you mean 'cats'", "--rename"))
    renamed = open_dataset(tree, "val", class_names=["dog", "cats"], rename={"cat": "cats"})
    assert renamed.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<annotation><object>", "no XML"),
        (b"\xff\xd8\xff\xe0 JFIF", "no XML"),
        ("", "no XML"),
        ('<!DOCTYPE a [<!ENTITY e "x">]><annotation>&e;</annotation>', "no XML that is taken: it declares entities"),
        ("<svg/>", "expected <annotation>"),
        (annotation("b.jpg", thing(box=(60, 5, 10, 45))), "object 1: xmin is above xmax"),
        (annotation("b.jpg", thing(), thing(box=(1, 50, 9, 45))), "object 2: ymin is above ymax"),
        (annotation("b.jpg", thing(box=("nan", 5, 10, 45))), "object 1: a coordinate is not a finite number"),
        (annotation("b.jpg", thing(box=("", 5, 10, 45))), "<xmin> should be a number"),
        (annotation("b.jpg", thing().replace("xmin", "left")), "object 1: <bndbox> has no <xmin>"),
        (annotation("b.jpg", "<object><name>cat</name></object>"), "object 1: no <bndbox>"),
        (annotation("b.jpg", thing(name=" ")), "object 1: no <name>"),
    ],
)
def test_a_broken_file_stops_with_its_name_or_is_skipped(tree: Path, text: str | bytes, expected: str) -> None:
    path = xml(tree, text)
    with pytest.raises(DataError) as error:
        open_dataset(tree, "train")
    assert str(path) in sentence(error) and expected in sentence(error) and "--on-bad skip" in sentence(error)
    held = open_dataset(tree, "train", on_bad="skip")
    assert len(held.notes) == 1 and "b.xml" in held.notes[0] and "skipped" in held.notes[0]
    assert "c.jpg" in held.image_names


def test_a_missing_image_says_where_it_was_looked_for(tree: Path) -> None:
    (tree / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(ImageError) as error:
        open_dataset(tree, "train")
    assert "b.xml" in sentence(error) and "'b.jpg' is missing" in sentence(error) and "JPEGImages" in sentence(error)
    held = open_dataset(tree, "train", on_bad="skip")
    assert held.image_names == ["c.jpg"] and held.notes == ("1 image without a file was skipped: b.xml",)


def test_a_segmentation_mask_is_not_taken_for_the_photograph(tree: Path, image: AnyImage) -> None:
    (tree / "JPEGImages" / "b.jpg").unlink()
    image(tree / "SegmentationClass" / "b.png")
    with pytest.raises(ImageError):
        open_dataset(tree, "train")


def test_a_listed_name_without_xml(tree: Path) -> None:
    (tree / "ImageSets" / "Main" / "train.txt").write_text("b\nzz\n")
    with pytest.raises(DataError, match=r"train\.txt lists 'zz', but .*zz\.xml is missing"):
        open_dataset(tree, "train")
    assert open_dataset(tree, "train", on_bad="skip").image_names == ["b.jpg"]


def test_lists_as_people_write_them(tree: Path) -> None:
    lines = "\ufeffb.jpg\r\n\r\n  c  \r\nb\r\n\r\n"
    (tree / "ImageSets" / "Main" / "train.txt").write_bytes(lines.encode())
    held = open_dataset(tree, "train")
    assert held.image_names == ["b.jpg", "c.jpg"] and held.notes == ("1 image is listed twice and was taken once: b",)


def test_class_lists_are_no_splits_but_can_be_opened_by_their_second_column(tree: Path) -> None:
    lists = tree / "ImageSets" / "Main"
    (lists / "cat_train.txt").write_text("b  1\nc -1\n")
    assert find_splits(tree) == ["train", "val"]
    (lists / "train.txt").write_text("b  1\nc -1\na  0\n")
    assert open_dataset(tree, "train").image_names == ["b.jpg", "a.jpg"]


def test_a_name_that_ends_in_a_blank_and_a_digit(tree: Path, image: AnyImage) -> None:
    image(tree / "JPEGImages" / "my cat 1.JPG")
    xml(tree, annotation("my cat 1.JPG", thing()), "my cat 1")
    (tree / "ImageSets" / "Main" / "train.txt").write_text("my cat 1\n")
    assert open_dataset(tree, "train").image_names == ["my cat 1.JPG"]


def test_an_empty_list_is_an_empty_split(tree: Path) -> None:
    (tree / "ImageSets" / "Main" / "train.txt").write_text("\n")
    with pytest.raises(DataError, match="split 'train' holds no images"):
        open_dataset(tree, "train")
    (tree / "ImageSets" / "Main" / "train.txt").write_text("b\n")
    xml(tree, "<a")
    with pytest.raises(DataError, match=r"holds no images \(1 broken label file was skipped: b\.xml\)"):
        open_dataset(tree, "train", on_bad="skip")


def test_two_label_files_for_one_image(tree: Path) -> None:
    (tree / "ImageSets" / "Main" / "train.txt").unlink()
    (tree / "ImageSets" / "Main" / "val.txt").unlink()
    xml(tree, annotation("b.jpg", thing()), "b (1)")
    with pytest.raises(DataError, match=r"image b\.jpg is labelled by .* and .*b \(1\)|b \(1\).*and") as error:
        open_dataset(tree)
    assert "b.xml" in sentence(error) and "b (1).xml" in sentence(error)
    assert len(open_dataset(tree, on_bad="skip")) == 3


def test_one_image_under_two_names(tree: Path) -> None:
    (tree / "Annotations" / "copies").mkdir()
    xml(tree, annotation("b.jpg", thing()), "copies/b")
    (tree / "ImageSets" / "Main" / "train.txt").write_text("b\ncopies/b\n")
    with pytest.raises(DataError, match=r"copies/b\.jpg is labelled by .*Annotations/b\.xml and .*copies/b\.xml"):
        open_dataset(tree, "train")
    assert open_dataset(tree, "train", on_bad="skip").image_names == ["b.jpg"]


def test_a_single_file_that_is_no_xml_is_still_a_voc_tree(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text("hello")
    with pytest.raises(DataError, match=r"a\.xml is no XML"):
        open_dataset(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text("<?xml version='1.0'?><notes><image/></notes>")
    with pytest.raises(DataError, match="is no data set"):
        open_dataset(tmp_path, format="voc")  # it is CVAT's
    (tmp_path / "Annotations" / "a.xml").write_bytes(annotation("a.jpg", thing("Ü")).encode("utf-16"))
    assert open_dataset(tmp_path).class_names == ("Ü",)


def test_a_stale_filename_inside_does_not_mislead(tree: Path) -> None:
    xml(tree, annotation("C:\\photos\\a.jpg", thing()), "b")
    assert open_dataset(tree, "train").image_names == ["b.jpg", "c.jpg"]
    xml(tree, annotation("c", thing()), "zz")
    (tree / "ImageSets" / "Main" / "train.txt").write_text("zz\n")
    assert open_dataset(tree, "train").paths == [tree / "JPEGImages" / "c.jpg"]


def test_roboflow_and_flat_and_nested_trees(tmp_path: Path, image: AnyImage) -> None:
    for split in ("train", "valid"):
        image(tmp_path / "robo" / split / "x.rf.1a2b.jpg")
        (tmp_path / "robo" / split / "x.rf.1a2b.xml").write_text(annotation("x.rf.1a2b.jpg", thing(split)))
    assert find_splits(tmp_path / "robo") == ["train", "valid"]
    val = open_dataset(tmp_path / "robo", "val")
    assert val.image_names == ["x.rf.1a2b.jpg"] and val.class_names == ("train", "valid")
    assert val.paths[0].parent.name == "valid"
    (tmp_path / "pets" / "annotations" / "xmls" / "deep").mkdir(parents=True)
    (tmp_path / "pets" / "annotations" / "xmls" / "deep" / "y.xml").write_text(annotation("y.PNG", thing()))
    (tmp_path / "pets" / "annotations" / "xmls" / "._y.xml").write_bytes(b"\x00\x05\x16\x07")
    image(tmp_path / "pets" / "images" / "y.PNG")
    assert open_dataset(tmp_path / "pets").paths == [tmp_path / "pets" / "images" / "y.PNG"]


def test_names_that_differ_in_capitals_only(tree: Path, image: AnyImage) -> None:
    image(tree / "JPEGImages" / "B.jpg")
    xml(tree, annotation("B.jpg", thing()), "B")
    (tree / "ImageSets" / "Main" / "train.txt").write_text("b\nB\n")
    assert open_dataset(tree, "train").paths == [tree / "JPEGImages" / "b.jpg", tree / "JPEGImages" / "B.jpg"]
    (tree / "JPEGImages" / "c.jpg").rename(tree / "JPEGImages" / "C.JPG")
    (tree / "ImageSets" / "Main" / "train.txt").write_text("C\n")
    assert open_dataset(tree, "train").paths == [tree / "JPEGImages" / "C.JPG"]


def test_bccd(shared: Path) -> None:
    root = shared / "bccd" / "BCCD"
    assert find_splits(root) == ["train", "val", "trainval", "test"]
    trainval, test = open_dataset(root, "trainval"), open_dataset(root, "test")
    assert (len(trainval), len(test)) == (292, 72)
    assert len(trainval.labels) + len(test.labels) == 4888 - 2
    assert trainval.notes == ("2 boxes without area were dropped: BloodImage_00338.xml, BloodImage_00343.xml",)
    assert trainval.class_names == test.class_names == ("Platelets", "RBC", "WBC")


def test_voc100_without_images_beside(shared: Path) -> None:
    held = open_dataset(shared / "voc100" / "gts" / "pascalvoc_format")
    assert (len(held), len(held.labels), int(held.difficult.sum()), len(held.class_names)) == (100, 273, 38, 20)
    assert list(held.class_names) == sorted(held.class_names)
    assert np.all(held.boxes_xyxy[:, 2:] > held.boxes_xyxy[:, :2])
