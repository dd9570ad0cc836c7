import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multibox.data.formats import find_splits, locate, open_dataset
from multibox.data.images import load_image, size_of
from multibox.data.unpacking import Allowance
from multibox.errors import DataError, ImageError, MissingExtraError
from multibox.structures import Size

pa = pytest.importorskip("pyarrow", reason="needs multibox[hub]")
pq = pytest.importorskip("pyarrow.parquet", reason="needs multibox[hub]")
AnyImage = Callable[..., Path]
NAMES = ["zebra", "ant"]
OLD = {"feature": {"category": {"names": NAMES, "_type": "ClassLabel"}, "bbox": {"_type": "Sequence"}}}
NEW = {"category": {"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": "List"}, "bbox": {"_type": "List"}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "multibox"


@pytest.fixture
def pixels(tmp_path: Path, image: AnyImage) -> tuple[bytes, bytes]:
    return tuple(image(tmp_path / "in" / name).read_bytes() for name in ("a.jpg", "b.png"))  # pyright: ignore


def write(path: Path, rows: list[Any], features: Any = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if features is not None:
        info = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "objects": features}}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path, **options)
    return path


def row(data: bytes | None, path: str | None, *boxes: list[float], category: Any = 1, **more: Any) -> dict[str, Any]:
    objects = {"id": [7] * len(boxes), "bbox": list(boxes), "category": [category] * len(boxes)}
    return {
        "image_id": 3,
        "image": {"bytes": data, "path": path},
        "width": 100,
        "height": 50,
        "objects": objects,
    } | more


@pytest.mark.parametrize("features", [OLD, {"feature": NEW, "_type": "Sequence"}, NEW, [NEW]], ids=str)
def test_shards_as_the_hub_has_them(tmp_path: Path, pixels: tuple[bytes, bytes], features: Any, cache: Path) -> None:
    root = tmp_path / "set"
    one, two = pixels
    write(root / "data" / "train-00000-of-00002.parquet", [row(one, "a.jpg", [1, 2, 3, 4.5])], features)
    write(root / "data" / "train-00001-of-00002-0a1b2c3d4e5f.parquet", [row(two, None, category=0)], features)
    write(root / "data" / "validation-00000-of-00001.parquet", [row(two, "x/b.png", [1, 2, 3, 4])], features)
    assert find_splits(root) == ["train", "validation"] and locate(root, None).format == "parquet"
    held = open_dataset(root, "train")
    assert held.class_names == ("zebra", "ant") and held.notes == () and held.sizes == [Size(50, 100)] * 2
    assert held.boxes_xyxy.tolist() == [[1, 2, 4, 6.5]] and held.labels.tolist() == [1]
    assert held.image_names == ["a.jpg", "3.png"]
    assert [path.read_bytes() for path in held.paths] == [one, two]
    assert all(path.is_relative_to(cache) for path in held.paths) and size_of(load_image(held[1])) == Size(50, 100)
    times = [path.stat().st_mtime_ns for path in held.paths]
    assert [path.stat().st_mtime_ns for path in open_dataset(root, "train").paths] == times
    assert open_dataset(root, "val").image_names == ["b.png"]
    (root / "data" / "train-00000-of-00002.parquet").unlink()
    assert open_dataset(root, "train").notes == ("1 shard of the split is not here: train, 0 of 2",)


@pytest.mark.parametrize("place", ["train.parquet", "default/train/0000.parquet", "train/0000.parquet"])
def test_other_places_and_kinds_of_columns(tmp_path: Path, pixels: tuple[bytes, bytes], place: str) -> None:
    root = tmp_path / "set"
    objects = [{"bbox": [1.0, 2, 3, 4], "label": "cat", "is_crowd": True}]
    path = write(root / place, [{"jpg": pixels[0], "objects": objects}, {"jpg": pixels[1], "objects": []}])
    for held in (open_dataset(root), open_dataset(path)):
        assert held.split == "train" and held.class_names == ("cat",) and held.crowd.tolist() == [True]
        assert held.boxes_xyxy.tolist() == [[1, 2, 4, 6]]
        assert held.image_names == [f"{path.stem}-000000.jpg", f"{path.stem}-000001.png"]


def test_boxes_as_columns_and_images_as_paths(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "set" / "images" / "a.jpg")
    rows = [{"image": "images/a.jpg", "bbox": [[1, 2, 3, 4]], "category": [5]}]
    write(tmp_path / "set" / "x.parquet", rows)
    held = open_dataset(tmp_path / "set")
    assert held.image_names == ["a.jpg"] and held.class_names == ("5",) and "classes.txt" in held.notes[0]
    rows[0]["image"] = "zz.jpg"
    write(tmp_path / "set" / "x.parquet", rows)
    with pytest.raises(ImageError, match=r"x\.parquet, row 0: image 'zz\.jpg' is missing"):
        open_dataset(tmp_path / "set")


def test_a_broken_box_and_names_that_repeat(tmp_path: Path, pixels: tuple[bytes, bytes]) -> None:
    rows = [row(pixels[0], "a.jpg", [1, 2, 3, 4], [1, 2, float("nan"), 4]), row(pixels[1], "a.jpg", [1, 2, 3, 4])]
    write(tmp_path / "set" / "x.parquet", rows, NEW)
    with pytest.raises(DataError, match=r"x\.parquet: image a\.jpg, object 2: a coordinate is not a finite number"):
        open_dataset(tmp_path / "set")
    held = open_dataset(tmp_path / "set", on_bad="skip")
    assert held.image_names == ["a.jpg", "x-000001.png"] and held.left_out == {"broken_box": 1}
    write(tmp_path / "set" / "x.parquet", [row(pixels[0], "a.jpg", [1, 2, 3], category=9)], NEW)
    with pytest.raises(DataError, match=r"row 0 \(a\.jpg\), object 1: expected four numbers"):
        open_dataset(tmp_path / "set")
    write(tmp_path / "set" / "x.parquet", [row(pixels[0], "a.jpg", [1, 2, 3, 4], category=9)], NEW)
    with pytest.raises(DataError, match="category 9 is not among the 2 named classes"):
        open_dataset(tmp_path / "set")


def test_what_is_no_parquet_of_ours(tmp_path: Path, pixels: tuple[bytes, bytes]) -> None:
    write(tmp_path / "table" / "x.parquet", [{"a": 1, "b": "c"}])
    whole = write(tmp_path / "cut" / "x.parquet", [row(pixels[0], "a.jpg", [1, 2, 3, 4])]).read_bytes()
    (tmp_path / "cut" / "x.parquet").write_bytes(whole[:-9])
    for name in ("table", "cut"):
        with pytest.raises(DataError, match="is no data set"):
            open_dataset(tmp_path / name)
    held = bytearray(whole)
    held[40:90] = bytes(50)
    (tmp_path / "cut" / "x.parquet").write_bytes(held)
    with pytest.raises(DataError, match=r"x\.parquet"):
        open_dataset(tmp_path / "cut")


def test_a_bomb_is_not_unpacked(tmp_path: Path, cache: Path) -> None:
    data = b"\xff\xd8" + bytes(1 << 20)
    rows = [row(data, f"{number}.jpg", [1, 2, 3, 4]) for number in range(100)]
    path = write(tmp_path / "set" / "x.parquet", rows, compression="zstd")
    assert path.stat().st_size < 1 << 19
    with pytest.raises(DataError, match=r"x\.parquet unpacks to more than .* MiB, .*; unpack it yourself"):
        open_dataset(tmp_path / "set")
    assert not list(cache.rglob("*.jpg"))
    with pytest.raises(DataError):
        Allowance(path, 10).take(11)


def test_without_pyarrow(tmp_path: Path, pixels: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set" / "train.parquet", [row(pixels[0], "a.jpg", [1, 2, 3, 4])])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"multibox\[hub\]"):
        open_dataset(tmp_path / "set")


def test_numbers_count_names_that_are_numbers(tmp_path: Path, pixels: tuple[bytes, bytes]) -> None:
    features = {"category": {"feature": {"names": ["1", "0"], "_type": "ClassLabel"}, "_type": "List"}}
    write(tmp_path / "set" / "train-00000-of-00001.parquet", [row(pixels[0], "a.jpg", [1, 2, 3, 4])], features)
    held = open_dataset(tmp_path / "set")
    assert held.class_names == ("1", "0") and held.labels.tolist() == [1]
