"""Layouts that tools write and people make of YOLO data sets, each read to the right boxes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multibox.data.formats import find_splits, open_dataset, read_raw
from multibox.errors import DataError, ImageError

AnyImage = Callable[..., Path]
Case = Callable[[str], Path]
LINE = "0 0.5 0.5 0.2 0.4\n"
BOX = [40, 15, 60, 35]
"""`LINE` on an image of 100 x 50."""


def files(root: Path, image: AnyImage, entries: dict[str, str | bytes | None]) -> Path:
    """Write files: text as given, None as an image of 100 x 50."""
    for name, content in entries.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            image(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def boxes(root: Path, split: str | None = None) -> dict[str, list[list[float]]]:
    return {sample.name: sample.boxes_xyxy.tolist() for sample in open_dataset(root, split, format="yolo")}


def test_cvat_exports_under_a_relative_path(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = case("yolo-list-relative-path")
    monkeypatch.chdir(folder.parent)
    for name, images, held in (("y16_cvat11", 6, 6), ("y17_cvat_ultra", 4, 4), ("y06_abs_lists", 4, 4)):
        ways = [open_dataset(Path(folder.name) / name, "train"), open_dataset(folder / name, "train")]
        monkeypatch.chdir(folder / name)
        ways += [open_dataset(".", "train")]
        monkeypatch.chdir(folder.parent)
        for one in ways:
            assert (len(one), len(one.labels)) == (images, held) and one.class_names == ("cat", "dog")
            np.testing.assert_array_equal(one.boxes_xyxy, ways[0].boxes_xyxy)


def test_lists_of_darknet_without_obj_data(tmp_path: Path, image: AnyImage, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"train.txt": "data/obj/a.jpg\n", "valid.txt": "C:\\darknet\\data\\obj\\b.jpg\r\n", "coco.names": "cat\n"}
    files(tmp_path / "set", image, {"obj/a.jpg": None, "obj/a.txt": LINE, "obj/b.jpg": None, "obj/b.txt": "", **listed})
    monkeypatch.chdir(tmp_path)
    assert find_splits("set") == ["train", "valid"] and boxes(Path("set"), "train") == {"data/obj/a.jpg": [BOX]}
    assert open_dataset("set", "train").class_names == ("cat",)
    with pytest.raises(DataError, match="none of the 1 images"):  # its label file is gone
        Path("set/obj/a.txt").rename("set/obj/c.txt")
        open_dataset("set", "train")


def test_a_list_takes_no_label_of_another_split(tmp_path: Path, image: AnyImage) -> None:
    entries = {
        "images/train/1.jpg": None,
        "images/val/1.jpg": None,
        "labels/val/1.txt": LINE,
        "images/train/2.jpg": None,
    }
    root = files(tmp_path, image, entries | {"labels/train/2.txt": ""})
    files(
        root,
        image,
        {"data.yaml": "train: train.txt\nnames: [cat]\n", "train.txt": "images/train/1.jpg\nimages/train/2.jpg\n"},
    )
    assert boxes(root) == {"1.jpg": [], "2.jpg": []}
    (root / "images/train/1.jpg").unlink()
    with pytest.raises(ImageError, match=r"image 'images/train/1\.jpg' is missing") as error:
        open_dataset(root)
    assert error.value.kind == "list-names-missing-file"


@pytest.mark.parametrize("name", ["y15_first_empty", "y15b_first_empty_split"])
def test_the_first_label_files_may_be_empty(case: Case, name: str) -> None:
    root = case("yolo-first-20-labels-empty") / name
    sets = [open_dataset(root, split) for split in find_splits(root)]
    assert all((len(one), len(one.labels)) == (31, 6) for one in sets)


def test_a_split_without_any_object_is_a_split(tmp_path: Path, image: AnyImage) -> None:
    entries = {"train/images/a.jpg": None, "train/labels/a.txt": LINE, "val/images/b.jpg": None, "val/labels/b.txt": ""}
    root = files(tmp_path / "parts", image, {**entries, "classes.txt": "cat\n"})
    assert find_splits(root) == ["train", "val"] and boxes(root, "val") == {"b.jpg": []}
    alone = files(tmp_path / "alone", image, {"images/a.jpg": None, "labels/a.txt": "", "classes.txt": "cat\n"})
    assert boxes(alone) == {"a.jpg": []}


def test_splits_with_labels_beside_the_images(case: Case) -> None:
    root = case("train-and-val-folders-one-format") / "y25b_flat_splits"
    assert find_splits(root) == ["train", "val"]
    assert [len(open_dataset(root, split).labels) for split in ("train", "val")] == [4, 2]
    assert open_dataset(root, "val").class_names == ("cat", "dog")


@pytest.mark.parametrize("inside", ["images/train", "train/images", "cats_train", "train_zip/train", "train/train"])
def test_more_folders_with_labels_beside_the_images(tmp_path: Path, image: AnyImage, inside: str) -> None:
    other = inside.replace("train", "valid")
    root = files(
        tmp_path,
        image,
        {
            f"{inside}/a.JPG": None,
            f"{inside}/a.txt": LINE,
            f"{other}/b.png": None,
            f"{other}/b.txt": LINE,
            "classes.txt": "cat\n",
        },
    )
    assert len(find_splits(root)) == 2
    assert boxes(root, "train") == {"a.JPG": [BOX]} and boxes(root, "val") == {"b.png": [BOX]}


def test_class_lists_that_differ_are_refused(tmp_path: Path, image: AnyImage) -> None:
    root = files(tmp_path, image, {f"{part}/a.jpg": None for part in ("train", "val")})
    files(
        root, image, {"train/a.txt": LINE, "val/a.txt": LINE, "train/classes.txt": "cat\n", "val/classes.txt": "dog\n"}
    )
    with pytest.raises(DataError, match=r"train/classes\.txt and .*val/classes\.txt name different classes"):
        open_dataset(root, "train")


@pytest.mark.parametrize("name", ["y13_pose_2d", "y13b_pose_3d_vis1", "guessed"])
def test_key_points_are_no_outlines(case: Case, name: str, tmp_path: Path) -> None:
    guessed = name == "guessed"
    root = case("yolo-pose-labels-as-outlines") / name.replace("guessed", "y13b_pose_3d_vis1")
    if guessed:
        root = shutil.copytree(root, tmp_path / "set")
        text = (root / "data.yaml").read_text()
        (root / "data.yaml").write_text("\n".join(line for line in text.splitlines() if "kpt_shape" not in line))
    held = open_dataset(root, "train")
    expected = [[10, 20, 60, 80], [30, 40, 110, 100], [2, 2, 25, 30], [80, 10, 150, 60]]
    np.testing.assert_allclose(held.boxes_xyxy, expected, atol=0.001)
    assert not held.left_out and bool(held.notes) == guessed
    if guessed:
        assert "2 key points, as they look; say kpt_shape" in held.notes[0]
        assert [one.kind for one in read_raw(root, "train").problems] == ["keypoints-as-outline"]


def test_rotated_boxes_and_outlines_stay_outlines(tmp_path: Path, image: AnyImage) -> None:
    rotated = "0 0.5 0.2 0.7 0.4 0.5 0.6 0.3 0.4\n0 0.8 0.8 0.9 0.8 0.9 0.9 0.8 0.9\n0 .1 .1 .2 .1 .2 .2 .1 .2\n"
    root = files(tmp_path, image, {"images/a.jpg": None, "labels/a.txt": rotated, "classes.txt": "ship\n"})
    held = open_dataset(root)
    np.testing.assert_allclose(held.boxes_xyxy, [[30, 10, 70, 30], [80, 40, 90, 45], [10, 5, 20, 10]], atol=1e-6)
    assert held.notes == ("3 outlines were replaced by the boxes around them: a.txt",)


@pytest.mark.parametrize("name", ["y20_upper_txt", "y51_label_case"])
def test_label_files_in_other_capitals(case: Case, name: str) -> None:
    root = case("label-file-in-other-capitals") / name
    held = open_dataset(root, "train")
    assert [len(sample.labels) for sample in held] == [1, 2, 0, 1]
    assert any("spelt differently: IMG0.txt (img0.jpg)" in note for note in held.notes) == (name == "y51_label_case")


def test_capitals_do_not_take_the_label_of_another_image(tmp_path: Path, image: AnyImage) -> None:
    entries = {"images/a.jpg": None, "images/A.jpg": None, "labels/a.txt": LINE, "classes.txt": "cat\n"}
    root = files(tmp_path, image, entries)
    assert boxes(root) == {"A.jpg": [], "a.jpg": [BOX]}
    (root / "labels/a.txt").rename(root / "labels/Ä.txt")
    files(root, image, {"images/Ä.jpg": None, "labels/IMG.txt": LINE, "images/img.jpg": None, "images/Img.jpg": None})
    with pytest.raises(ImageError, match=r"IMG\.txt: its image is missing") as error:  # img or Img?
        open_dataset(root)
    assert error.value.kind == "label-without-image"


def test_encoded_names_of_label_studio(tmp_path: Path, image: AnyImage) -> None:
    entries = {"images/my cat.jpg": None, "labels/my%20cat.txt": LINE, "classes.txt": "cat\n", "notes.json": "{}"}
    assert boxes(files(tmp_path, image, entries)) == {"my cat.jpg": [BOX]}


def test_one_label_file_for_two_images_is_said(tmp_path: Path, image: AnyImage) -> None:
    entries = {"images/a.jpg": None, "images/a.png": None, "labels/a.txt": LINE, "classes.txt": "cat\ncat\n"}
    held = open_dataset(files(tmp_path, image, entries))
    assert [len(sample.labels) for sample in held] == [1, 1] and held.class_names == ("cat",)
    assert held.notes == (
        "class 'cat' stands in classes.txt more than once; its boxes were joined",
        "1 label file serves several images: a.txt (a.jpg and a.png)",
    )


@pytest.mark.parametrize(
    ("path", "train"),
    [
        ("path: .\n", "images/train"),
        ("", "[images/train]"),
        ("path: {root}\n", "images/train"),
        ("path: /home/other/cats\n", "images/train"),
        ("path: ../cats\n", "./images/train"),
        ("path: C:\\data\\cats\n", "C:\\data\\cats\\images\\train"),
        ("path: ../datasets/cats\n", "train.txt"),
        ("", "/home/other/cats/images/train/"),
    ],
)
def test_data_yaml_given_directly(tmp_path: Path, image: AnyImage, path: str, train: str) -> None:
    root = tmp_path / "cats"
    text = f"{path.format(root=root)}train: {train}\nval: images/val\nnames:\n  0: cat\n"
    entries = {"images/train/a.jpg": None, "labels/train/a.txt": LINE, "images/val/b.jpg": None, "data.yaml": text}
    files(root, image, {**entries, "train.txt": "./images/train/a.jpg\n"})
    for way in (root, root / "data.yaml"):
        assert boxes(way, "train") == {"a.jpg": [BOX]}, way


def test_data_yaml_beside_or_far_from_its_folder(tmp_path: Path, image: AnyImage) -> None:
    entries = {"cats/images/train/a.jpg": None, "cats/labels/train/a.txt": LINE}
    files(tmp_path, image, {**entries, "cats.yaml": "path: cats\ntrain: images/train\nnames: [cat]\n"})
    assert boxes(tmp_path / "cats.yaml") == {"a.jpg": [BOX]}
    text = f"path: {tmp_path / 'cats'}\ntrain: [images/train]\nnames: [cat]\n"
    files(tmp_path, image, {"configs/cats.yaml": text})
    assert boxes(tmp_path / "configs/cats.yaml") == {"a.jpg": [BOX]}


@pytest.mark.parametrize("path", ["classes.txt", "labels/classes.txt", "labels/a.txt"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "gbk", "gb18030", "cp1252"])
def test_text_in_other_encodings(tmp_path: Path, image: AnyImage, path: str, encoding: str) -> None:
    name = "größe" if encoding == "cp1252" else "红绿灯"
    entries = {"images/a.jpg": None, "labels/a.txt": LINE, "labels/._a.txt": b"\0\5", "images/._a.jpg": b"\0\5"}
    files(tmp_path, image, {**entries, "images/.DS_Store": b"\0", "images/Thumbs.db": b"\0", "__MACOSX/a.txt": LINE})
    files(tmp_path, image, {"classes.txt": name} if path == "labels/a.txt" else {})
    text = LINE if path == "labels/a.txt" else f"{name}\r\n"
    (tmp_path / path).write_bytes(text.encode(encoding))
    held = open_dataset(tmp_path)
    assert held.class_names == (name,) and [sample.boxes_xyxy.tolist() for sample in held] == [[BOX]]
    guessed = (encoding in ("gbk", "gb18030", "cp1252") and path != "labels/a.txt") or encoding == "utf-16-le"
    assert any("is not UTF-8 and was read as" in note for note in held.notes) == guessed
    assert any(one.kind == "unknown-encoding" for one in read_raw(tmp_path, "all").problems) == guessed


def test_raw_values_are_kept_as_written(tmp_path: Path, image: AnyImage) -> None:
    text = (
        "0 50 25 20 20\n0 nan 0.5 0.1 0.1\n0 0.5 0.5 inf 0.1\ncat 0.5 0.5 0.1 0.1\n7 0.5 0.5 0.2 0.4\n0 0.5 0.5 0.1\n"
    )
    entries = {"images/a.jpg": None, "labels/a.txt": text + LINE, "labels/zz.txt": LINE, "classes.txt": "cat\n"}
    raw = read_raw(files(tmp_path, image, entries), "all")
    assert raw.lines.tolist() == [1, 2, 3, 7] and raw.fractions
    assert raw.boxes_xyxy[0].tolist() == [4000, 750, 6000, 1750] and np.isnan(raw.boxes_xyxy[1]).any()
    kinds = {one.kind: one.source.name for one in raw.problems}
    assert kinds == {
        "label-without-image": "zz.txt",
        "not-a-number": "a.txt",
        "unreadable-label": "a.txt",
        "class-out-of-range": "a.txt",
    }


@pytest.mark.parametrize(
    "folders", ["images labels", "Images labels", "IMAGES LABELS", "images Labels", "JPEGImages labels"]
)
def test_folders_in_other_capitals(tmp_path: Path, image: AnyImage, folders: str) -> None:
    pictures, labels = folders.split()
    entries = {f"{pictures}/train/a.jpg": None, f"{labels}/train/a.txt": LINE}
    root = files(tmp_path, image, {**entries, "data.yaml": f"train: {pictures}/train\nnames: [cat]\n"})
    assert boxes(root) == {"a.jpg": [BOX]}
    (root / "data.yaml").unlink()
    assert pictures == "JPEGImages" or boxes(root) == {"a.jpg": [BOX]}


def test_choices_between_files_are_said(tmp_path: Path, image: AnyImage) -> None:
    text = "train: images/train\nnames: [cat]\nkpt_shape: [2, 3]\n"
    entries = {"images/train/a.jpg": None, "labels/train/a.txt": LINE.strip() + " 0.1 0.2 1\n", "classes.txt": "dog\n"}
    root = files(tmp_path, image, {**entries, "images/train/a.txt": LINE + LINE, "data.yaml": text})
    held = open_dataset(root)
    assert held.boxes_xyxy.tolist() == [BOX] and held.class_names == ("cat",)
    assert held.notes == (
        "classes.txt names other classes than data.yaml, which was taken",
        "1 image has a second label file beside it, which was not taken: a.txt",
        "1 line has another number of key points than kpt_shape says; its box was taken: a.txt, line 1",
    )


def test_data_yaml_given_by_a_relative_path(tmp_path: Path, image: AnyImage, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "path: .\ntrain: train.txt\nval: images\nnames: [cat]\n"
    entries = {"images/a.jpg": None, "labels/a.txt": LINE, "train.txt": "images/a.jpg\n", "data.yaml": text}
    files(tmp_path / "set", image, entries)
    monkeypatch.chdir(tmp_path)
    for path in ("set/data.yaml", "set", "./set/"):
        assert boxes(Path(path), "train") == boxes(Path(path), "val") == {"a.jpg": [BOX]}
    monkeypatch.chdir(tmp_path / "set")
    assert boxes(Path("data.yaml"), "train") == boxes(Path("../set"), "train") == {"a.jpg": [BOX]}


_KINDS: list[tuple[str, str, str | None]] = [("images", ".jpg", None), ("labels", ".txt", LINE)]


@pytest.mark.parametrize("listed", [False, True])
def test_a_data_yaml_without_names_gives_its_splits_and_says_so(tmp_path: Path, image: AnyImage, listed: bool) -> None:
    images, labels = ({f"{kind}/{part}/{part}{end}": what for part in "ab"} for kind, end, what in _KINDS)
    root = files(tmp_path, image, {**images, **labels, "data.yaml": "train: images/a\nval: images/b\n"})
    if listed:
        (root / "classes.txt").write_text("cat\n")
    held = open_dataset(root, "val")
    assert find_splits(root) == ["train", "val"] and held.class_names == (("cat",) if listed else ("0",))
    what = "they were taken from classes.txt" if listed else "classes are called by their numbers"
    assert held.notes == (f"data.yaml has no names: for the classes, so {what}; add it",)


def test_a_data_yaml_of_many_open_brackets_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    """PyYAML takes seconds for each time that it is read."""
    (tmp_path / "data.yaml").write_text("train: images\nnames: " + "[" * 20_000)
    with pytest.raises(DataError, match=r"data\.yaml is no YAML of a data set \(20000 brackets are open at once\)"):
        open_dataset(tmp_path)
