import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multibox.data.formats import find_splits, open_dataset, read_raw
from multibox.data.images import image_bytes
from multibox.data.records import ImageRecord, read_record, scan, write_record
from multibox.errors import DataError, ImageError
from multibox.structures import Size

MAGIC = bytes.fromhex("0a23d7ce")


def encoded(size: tuple[int, int] = (256, 128), format: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (200, 180, 20)).save(stream, format)
    return stream.getvalue()


def by_hand(label: list[float], image: bytes, key: int = 0) -> bytes:
    """A record as MXNet's documentation describes it, made without our writer."""
    payload = struct.pack("<IfQQ", len(label), 0.0, key, 0) + struct.pack(f"<{len(label)}f", *label) + image
    return MAGIC + struct.pack("<I", len(payload)) + payload + b"\0" * (-len(payload) % 4)


@pytest.fixture
def pikachu(tmp_path: Path) -> Path:
    # Two records; train has its index, val has none, as in the original files.
    records = [
        by_hand([2, 5, 0, 0.25, 0.5, 0.75, 1.0], encoded(), 11),
        by_hand([2, 5, 0, 0.1, 0.1, 0.3, 0.3], encoded(), 4),
    ]
    (tmp_path / "train.rec").write_bytes(b"".join(records))
    (tmp_path / "train.idx").write_text(f"11\t0\n4\t{len(records[0])}\n")
    (tmp_path / "val.rec").write_bytes(records[1] + records[0])
    return tmp_path


def test_the_layout_of_the_pikachu_files(pikachu: Path) -> None:
    assert find_splits(pikachu) == ["train", "val"]
    train, val = open_dataset(pikachu, "train"), open_dataset(pikachu / "val.rec")
    assert train.image_names == ["11", "4"] and val.image_names == ["4", "11"] and train.class_names == ("0",)
    assert train[0].boxes_xyxy.tolist() == [[64, 64, 192, 128]] and train[0].size == Size(128, 256)
    assert train.offsets[0] == 0 and train.paths[0] == pikachu / "train.rec"
    assert image_bytes(train[1]) == encoded()
    (pikachu / "classes.txt").write_text("pikachu\n")
    assert open_dataset(pikachu, "val", class_names=["bird", "pikachu"]).labels.tolist() == [1, 1]


def test_wider_objects_longer_headers_and_filled_up_rows(tmp_path: Path) -> None:
    label = [4, 6, 256, 128, 2, 0.0, 0.0, 0.5, 0.5, 1, -1, -1, -1, -1, -1, -1]
    (tmp_path / "a.rec").write_bytes(by_hand(label, encoded(format="PNG")) + by_hand([2, 5], encoded()))
    held = open_dataset(tmp_path)
    assert held.labels.tolist() == [2] and held.difficult.tolist() == [True] and held.class_names == ("0", "1", "2")
    assert held.boxes_xyxy.tolist() == [[0, 0, 128, 64]] and len(held[1].labels) == 0
    assert len(set(held.image_names)) == 2  # both have key 0


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ([3.0], "expected a detection label"),
        ([2, 5, 0, 0.1, 0.1, 0.3], "expected a detection label"),
        ([2, 5, 0, 10, 10, 30, 30], "expected corners as fractions"),
        ([2, 5, 0, 0.5, 0.1, 0.3, 0.3], "object 1: xmin is above xmax"),
        ([2, 5, 1, 0.1, 0.1, 0.3, 0.3], "object 1: class 1 is not among the 1 classes"),
        ([2, 5, 0.5, 0.1, 0.1, 0.3, 0.3], "object 1: class 0.5 is not"),
        ([2, 5, 0, float("nan"), 0.1, 0.3, 0.3], "object 1: a coordinate is not a finite number"),
    ],
)
def test_a_broken_label(pikachu: Path, label: list[float], expected: str) -> None:
    (pikachu / "classes.txt").write_text("pikachu\n")
    (pikachu / "val.rec").write_bytes(
        by_hand([2, 5, 0, 0.1, 0.1, 0.3, 0.3], encoded(), 1) + by_hand(label, encoded(), 2)
    )
    with pytest.raises(DataError) as error:
        open_dataset(pikachu, "val")
    assert "val.rec" in str(error.value) and expected in str(error.value)
    held = open_dataset(pikachu, "val", on_bad="skip")
    assert len(held.labels) == 1 and len(held.notes) == 1


def test_a_record_that_holds_no_image(pikachu: Path) -> None:
    (pikachu / "val.rec").write_bytes(by_hand([2, 5, 0, 0.1, 0.1, 0.3, 0.3], b"no image"))
    with pytest.raises(ImageError, match=r"val\.rec, record 0 at byte 0 is no image"):
        open_dataset(pikachu, "val")


def test_damaged_files(pikachu: Path) -> None:
    whole = (pikachu / "val.rec").read_bytes()
    for broken, expected in (
        (whole[:-50], "is cut off at byte"),
        (whole[:4], "is cut off"),
        (b"PK" + whole, "no RecordIO"),
    ):
        (pikachu / "val.rec").write_bytes(broken)
        with pytest.raises(DataError, match=expected):
            open_dataset(pikachu, "val")
    (pikachu / "val.rec").write_bytes(b"")
    with pytest.raises(DataError, match="split 'val' holds no images"):
        open_dataset(pikachu, "val")
    (pikachu / "train.idx").write_text("11\t3\n")
    with pytest.raises(DataError, match=r"train\.idx does not fit .*train\.rec .*delete the \.idx"):
        open_dataset(pikachu, "train")
    (pikachu / "train.idx").write_text("11\n")
    with pytest.raises(DataError, match=r"train\.idx, line 1: expected a key and a position"):
        open_dataset(pikachu, "train")


def test_a_list_file_with_images_beside(tmp_path: Path, image: Callable[..., Path]) -> None:
    image(tmp_path / "images" / "a.png")
    (tmp_path / "train.lst").write_text("0\t2\t5\t1\t0.1\t0.2\t0.5\t0.6\timages/a.png\n")
    held = open_dataset(tmp_path)
    assert held.paths == [tmp_path / "images" / "a.png"] and held.offsets == [None]
    assert held.boxes_xyxy.tolist() == [[10, 10, 50, 30]] and held.labels.tolist() == [1]
    (tmp_path / "train.lst").write_text("0 2 5 1 images/a.png\n")
    with pytest.raises(DataError, match=r"train\.lst, line 1: expected a number, the label and an image"):
        open_dataset(tmp_path)


def test_a_list_beside_names_the_records_if_it_can(pikachu: Path) -> None:
    (pikachu / "train.lst").write_text("4\t2\t5\t0\t0.1\t0.1\t0.3\t0.3\tsub/b.jpg\n11\t0\ta.jpg\n")
    assert open_dataset(pikachu, "train").image_names == ["a.jpg", "sub/b.jpg"]
    (pikachu / "train.lst").write_text("whatever\n")
    assert open_dataset(pikachu, "train").image_names == ["11", "4"]


@given(
    pieces=st.lists(st.one_of(st.just(MAGIC), st.binary(max_size=9)), max_size=6),
    label=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=7),
)
def test_any_bytes_come_back_even_the_magic_number(tmp_path_factory: pytest.TempPathFactory, pieces, label) -> None:
    path = tmp_path_factory.mktemp("records") / "a.rec"
    records = [ImageRecord(key, np.array(label, np.float32), b"".join(pieces)) for key in (5, 6)]
    with path.open("wb") as file:
        positions = [write_record(file, record) for record in records]
    for (offset, got), at, record in zip(scan(path), positions, records, strict=True):
        assert (offset, got.key, got.image) == (at, record.key, record.image)
        assert np.array_equal(got.label, record.label)
        assert read_record(path, at).image == record.image


def test_a_magic_number_inside_splits_the_record_as_dmlc_does(tmp_path: Path) -> None:
    with (tmp_path / "a.rec").open("wb") as file:
        write_record(file, ImageRecord(0, np.zeros(1, np.float32), b"abcd" + MAGIC + b"xyz"))
    data = (tmp_path / "a.rec").read_bytes()
    head = 24 + 4 + 4  # header, one float, "abcd"
    assert struct.unpack_from("<II", data) == (0xCED7230A, 1 << 29 | head)
    assert struct.unpack_from("<II", data, 8 + head) == (0xCED7230A, 3 << 29 | 3) and data[16 + head :] == b"xyz\0"


def test_one_damaged_record_or_line_leaves_the_others(pikachu: Path, image: Callable[..., Path]) -> None:
    path = pikachu / "train.rec"
    path.write_bytes(b"xx" + path.read_bytes()[2:])
    with pytest.raises(DataError, match=r"train\.idx does not fit"):
        open_dataset(pikachu, "train")
    held = open_dataset(pikachu, "train", on_bad="skip")
    assert held.image_names == ["4"] and held.left_out == {"broken_file": 1}
    whole = (pikachu / "val.rec").read_bytes()
    (pikachu / "val.rec").write_bytes(whole[:-50])  # without .idx nothing is found behind the damage
    assert open_dataset(pikachu, "val", on_bad="skip").image_names == ["4"]
    lines = ["0\t2\t5\t1\t0.1\t0.2\t0.5\t0.6\tC:\\set\\a.png", "whatever", "1\t2\t5\t1\t0\t0\t1\t1\tzz.png"]
    for split in ("train", "test"):
        image(pikachu / "lists" / "images" / split / "a.png")
    (pikachu / "lists" / "train.lst").write_text("\n".join(lines))
    held = open_dataset(pikachu / "lists", on_bad="skip")
    assert held.paths == [pikachu / "lists/images/train/a.png"] and held.boxes_xyxy.tolist() == [[10, 10, 50, 30]]
    assert held.left_out == {"broken_file": 1, "missing_image": 1}
    kinds = [one.kind for one in read_raw(pikachu / "lists", "train").problems]
    assert kinds == ["", "list-names-missing-file"]


def test_raw_values_are_kept_as_written(pikachu: Path) -> None:
    nan = float("nan")
    label = [2, 5, 0, 10, 20, 30, 40, nan, 0.1, 0.1, 0.3, 0.3, 0, nan, 0.1, 0.3, 0.3, 0, 0.1, 0.1, 0.5, 0.5]
    (pikachu / "val.rec").write_bytes(by_hand(label, encoded((100, 50))))
    assert open_dataset(pikachu, "val", on_bad="skip").boxes_xyxy.tolist() == [[10, 5, 50, 25]]
    raw = read_raw(pikachu, "val")
    assert raw.lines.tolist() == [1, 3, 4] and raw.boxes_xyxy[0].tolist() == [1000, 1000, 3000, 2000]
    assert [one.kind for one in raw.problems] == ["not-a-number"] and raw.problems[0].source == pikachu / "val.rec"
