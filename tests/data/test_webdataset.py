import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multibox.data.convert import convert
from multibox.data.formats import find_splits, locate, open_dataset, read_raw
from multibox.data.images import load_image, sample_size, size_of
from multibox.errors import DataError, ImageError
from multibox.structures import Size

AnyImage = Callable[..., Path]
YOLO = b"1 0.5 0.5 0.2 0.4\n0 0.1 0.1 0.3 0.1 0.3 0.5\n"
XML = (
    b"<annotation><object><name>cat</name><bndbox><xmin>40</xmin><ymin>15</ymin><xmax>60</xmax><ymax>35</ymax>"
    b"</bndbox></object></annotation>"
)
BOX, CORNERS = [40, 15, 20, 20], [[40, 15, 60, 35]]


@pytest.fixture
def pixels(tmp_path: Path, image: AnyImage) -> bytes:
    return image(tmp_path / "in" / "a.jpg").read_bytes()


def shard(path: Path, **members: bytes | Any) -> Path:
    """Write a tar file; `a__jpg` is a.jpg, and what is no bytes is written as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "content",
    [
        {"objects": {"bbox": [BOX], "category": [1]}},
        {"objects": [{"bbox": BOX, "category_id": 1}], "width": 100, "height": 50},
        {"annotations": [{"bbox": BOX, "label": "bee", "iscrowd": 0}], "caption": "bees"},
        {"bbox": [BOX], "categories": ["bee"]},
        {"boxes": CORNERS, "labels": [1]},
        {"objects": [{"xmin": 40, "ymin": 15, "xmax": 60, "ymax": 35, "label": "bee"}]},
        [{"bbox": BOX, "category": 1}],
    ],
)
def test_json_dialects(tmp_path: Path, pixels: bytes, content: Any) -> None:
    root = tmp_path / "set"
    name = "a__objects__json" if "labels" in content else "a__json"
    shard(root / "train-000000.tar", a__jpg=pixels, **{name: content})
    (root / "classes.txt").write_text("ant\nbee\n")
    held = open_dataset(root)
    assert held.format == "webdataset" and held.split == "train" and held.class_names == ("ant", "bee")
    assert held.boxes_xyxy.tolist() == CORNERS and held.labels.tolist() == [1] and held.image_names == ["a.jpg"]
    assert size_of(load_image(held[0])) == sample_size(held[0]) == Size(50, 100)
    assert held.paths[0] == root / "train-000000.tar" and held[0].offset is not None and held[0].length == len(pixels)
    assert [("corners" in note) for note in held.notes] == (
        [True] if "boxes" in content or "xmin" in str(content) else []
    )


def test_shards_splits_and_other_labels(tmp_path: Path, pixels: bytes) -> None:
    root = tmp_path / "set"
    objects = {"objects": {"bbox": [BOX], "category": ["cat"]}}
    shard(root / "my-train-000000.tar", **{"deep/a.jpg": pixels, "deep/a.json": objects, "__key__": b"x"})
    shard(root / "my-train-000001.tar", b__jpg=pixels, b__xml=XML, b__cls=b"3", c__png=pixels)
    shard(root / "my-val-000000.tar", d__JPEG=pixels, d__json={"objects": [{"bbox": BOX, "label": "ant"}]})
    assert find_splits(root) == ["train", "val"]
    held = open_dataset(root, "train")
    assert held.class_names == ("ant", "cat") and held.image_names == ["deep/a.jpg", "b.jpg", "c.png"]
    assert held.boxes_xyxy.tolist() == CORNERS * 2 and held.labels.tolist() == [1, 1]
    assert held.notes == ("1 image has no label beside it and shows no objects: c.png",)
    assert open_dataset(root / "my-val-000000.tar").image_names == ["d.JPEG"]
    done = convert(root, tmp_path / "voc", "voc")
    assert done.boxes == 3 and (tmp_path / "voc" / "JPEGImages" / "b.jpg").read_bytes() == pixels


def test_lines_of_yolo_and_a_folder_for_each_split(tmp_path: Path, pixels: bytes) -> None:
    for split in ("train", "val"):
        shard(tmp_path / split / "00000.tar", a__jpg=pixels, a__txt=YOLO)
    held = open_dataset(tmp_path, "val")
    assert held.boxes_xyxy.tolist() == [[40, 15, 60, 35], [10, 5, 30, 25]] and held.class_names == ("0", "1")
    assert held.left_out == {"outline": 1} and "classes.txt" in held.notes[-2] + held.notes[-1] + held.notes[0]
    assert read_raw(tmp_path, "val").lines.tolist() == [1, 2]


def test_a_compressed_shard_is_unpacked_once(tmp_path: Path, pixels: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain = shard(tmp_path / "in" / "x.tar", a__jpg=pixels, a__json={"objects": {"bbox": [BOX], "category": ["cat"]}})
    root = tmp_path / "set"
    root.mkdir()
    (root / "train-0.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    held = open_dataset(root)
    assert held.boxes_xyxy.tolist() == CORNERS and held.paths[0].is_relative_to(tmp_path / "cache")
    assert size_of(load_image(held[0])) == Size(50, 100) and list(root.iterdir()) == [root / "train-0.tar.gz"]
    (root / "train-0.tar.gz").write_bytes(gzip.compress(plain.read_bytes() + bytes(90 << 20), 6))
    with pytest.raises(DataError, match="unpacks to more than"):
        open_dataset(root)
    (root / "train-0.tar.gz").write_bytes(gzip.compress(plain.read_bytes())[:-30])
    with pytest.raises(DataError, match="is no gzip file that can be read"):
        open_dataset(root)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"b__jpg": b"", "b__json": {"label": 3}}, 'train.tar, b: expected {"objects"'),
        ({"b__jpg": b"", "b__json": b"{"}, "its .json is no JSON"),
        ({"b__jpg": b"", "b__json": b"[" * 100_000}, "its .json is no JSON"),
        ({"b__jpg": b"", "b__json": {"objects": {"bbox": [["x", 1, 2, 3]], "category": [1]}}}, "expected four numbers"),
        ({"b__jpg": b"", "b__txt": b"0 0.5 0.5 0.1\n"}, "line 1 of its .txt: expected class cx cy w h"),
        ({"b__jpg": b"", "b__xml": b"<a/>"}, "expected <annotation>"),
        ({"b__jpg": b"", "b__xml": b"<annotation>"}, "is no XML"),
        ({"b__jpg": b"", "b__cls": b"3"}, "a class of the whole image"),
        ({"b__jpg": b"", "b__png": b"", "b__json": {"objects": []}}, "expected one image"),
        ({"b__json": {"objects": []}}, "its image is missing"),
    ],
)
def test_a_broken_sample(tmp_path: Path, pixels: bytes, members: dict[str, Any], expected: str) -> None:
    members = {name: pixels if content == b"" else content for name, content in members.items()}
    good = {"objects": {"bbox": [BOX], "category": [1]}}
    shard(tmp_path / "set" / "train.tar", a__jpg=pixels, a__json=good, **members)
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path / "set")
    assert expected in str(error.value) and "train.tar, b" in str(error.value) and "\n" not in str(error.value)
    held = open_dataset(tmp_path / "set", on_bad="skip")
    assert held.image_names[0] == "a.jpg" and len(held.labels) == 1 and sum(held.left_out.values()) == 1


def test_hostile_members(tmp_path: Path, pixels: bytes) -> None:
    good = json.dumps({"objects": {"bbox": [BOX], "category": [1]}}).encode()
    path = tmp_path / "set" / "train.tar"
    shard(path, **{"../../etc/a.jpg": pixels, "../../etc/a.json": good, "/root/b.jpg": pixels, "/root/b.json": good})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    held = open_dataset(path)
    assert held.image_names == ["etc/a.jpg", "root/b.jpg"] and len(held.labels) == 2
    data = bytearray(path.read_bytes())
    lying = tarfile.TarInfo("../../etc/a.jpg")
    lying.size = 1 << 40
    data[:512] = lying.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(data)
    with pytest.raises(DataError, match="is cut off"):
        open_dataset(path)
    with pytest.raises(DataError, match="is no data set"):
        open_dataset(tmp_path / "set")


def test_a_tar_of_something_else(tmp_path: Path, pixels: bytes) -> None:
    shard(tmp_path / "set" / "backup.tar", **{"photos/a.jpg": pixels, "notes.txt": b"hello"})
    with pytest.raises(DataError, match="is no data set"):
        locate(tmp_path / "set", None)


def test_a_missing_image_is_counted_as_such(tmp_path: Path, pixels: bytes) -> None:
    good = {"objects": {"bbox": [BOX], "category": [1]}}
    shard(tmp_path / "train.tar", a__jpg=pixels, a__json=good, b__json=good)
    with pytest.raises(ImageError, match=r"train\.tar, b: its image is missing, beside json"):
        open_dataset(tmp_path / "train.tar")
    assert open_dataset(tmp_path / "train.tar", on_bad="skip").left_out == {"missing_image": 1}


@pytest.mark.parametrize("content", [{"a__txt": b"0 0.5 0.5 0.2 0.4\n"}, {"a__json": {"bbox": [BOX], "category": [0]}}])
def test_numbers_count_names_that_are_numbers(tmp_path: Path, pixels: bytes, content: Any) -> None:
    shard(tmp_path / "set" / "train-000000.tar", a__jpg=pixels, **content)
    (tmp_path / "set" / "classes.txt").write_text("1\n0\n")
    held = open_dataset(tmp_path / "set")
    assert held.class_names == ("1", "0") and held.labels.tolist() == [0]
