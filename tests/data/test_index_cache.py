"""The cached index equals the one read anew, and is not used when a label file changed or a byte of it is damaged."""

import dataclasses
import multiprocessing
import os
import pickle
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multibox.columns import Texts
from multibox.data import footprint
from multibox.data.column_file import read_columns, write_columns
from multibox.data.convert import write_dataset
from multibox.data.footprint import stamp_of
from multibox.data.formats import find_splits, index_cache, open_dataset
from multibox.data.formats.index_cache import share
from multibox.errors import DataError
from multibox.structures import Dataset

FORMATS = ("voc", "coco", "yolo", "csv", "recordio")


def content(dataset: Dataset) -> dict:
    """Return a data set in comparable values."""
    values = {one.name: getattr(dataset, one.name) for one in dataclasses.fields(dataset)}
    return {
        key: (value.dtype.str, value.tolist()) if isinstance(value, np.ndarray)
        else list(value) if not isinstance(value, str | Path | dict) else value
        for key, value in values.items()
    }  # fmt: skip


class Reads:
    """Counts how often label files are read, not the cache."""

    def __init__(self, monkeypatch) -> None:
        self.count = 0
        original = index_cache.take_footprint

        def counted(*arguments):
            self.count += 1
            return original(*arguments)

        monkeypatch.setattr(index_cache, "take_footprint", counted)

    def by(self, act) -> int:
        before = self.count
        act()
        return self.count - before


@pytest.fixture
def reads(monkeypatch) -> Reads:
    monkeypatch.setattr(footprint, "_TICK_NS", 5_000_000)
    return Reads(monkeypatch)


@pytest.fixture(scope="session")
def made(tmp_path_factory, draw_squares) -> Path:
    """One data set in every format."""
    folder = tmp_path_factory.mktemp("made")
    draw_squares(folder / "voc", 16)
    splits = {name: open_dataset(folder / "voc", name) for name in ("train", "val")}
    for name in FORMATS[1:]:
        write_dataset(splits, folder / name, name)
    return folder


@pytest.fixture
def tree(made, tmp_path) -> Callable[[str], Path]:
    """Return a copy of the data set in a format, the same at every call."""

    def copy(name: str) -> Path:
        folder = tmp_path / "sets" / name
        return folder if folder.exists() else shutil.copytree(made / name, folder)

    return copy


@pytest.mark.parametrize("name", FORMATS)
def test_the_cached_index_equals_the_one_read_anew(tree, name, tmp_path, reads):
    cache = tmp_path / "runs" / ".cache"
    for split in find_splits(tree(name)):
        fresh = content(open_dataset(tree(name), split))
        opened = [open_dataset(tree(name), split, cache=cache) for _ in range(2)]
        assert [content(one) for one in opened] == [fresh, fresh]
        assert not opened[0].boxes_xyxy.flags.writeable, "columns are mapped from the first reading on"
    assert reads.count == 2
    assert open_dataset(tree(name), "val", cache=cache, class_names=["blue", "red"]).class_names == ("blue", "red")
    assert reads.count == 3, "other options are another index"


def test_notes_counts_and_odd_names_are_kept(tmp_path, image, reads):
    names = ["ü b.jpg", os.fsdecode(b"\xff\xfe.jpg"), "new\nline.jpg", "c.jpg"]
    for name in names:
        image(tmp_path / "set" / "images" / name)
        (tmp_path / "set" / "labels").mkdir(exist_ok=True)
        (tmp_path / "set" / "labels" / (name[:-4] + ".txt")).write_text("0 .5 .5 1.5 .5\n0 .5 .5 0 0\n")
    (tmp_path / "set" / "data.yaml").write_text("train: images\nnames: ['ä']\n")
    fresh = open_dataset(tmp_path / "set", on_bad="skip")
    for _ in range(2):
        held = open_dataset(tmp_path / "set", on_bad="skip", cache=tmp_path / "cache")
        assert content(held) == content(fresh) and sorted(held.image_names) == sorted(names)
        assert held.left_out and held.notes == fresh.notes
    assert reads.count == 1


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


YOLO_CHANGES = {
    "a label file edited": lambda root: rewrite(root / "labels/train/000.txt", "0.", "0.0"),
    "a label file edited to the same length": lambda root: rewrite(root / "labels/train/000.txt", "0.", ".1"),
    "a label file removed": lambda root: (root / "labels/train/001.txt").unlink(),
    "a label file added": lambda root: (root / "labels/train/new.txt").write_text(""),
    "an image added": lambda root: shutil.copy(root / "images/train/000.png", root / "images/train/new.png"),
    "an image renamed": lambda root: (root / "images/train/000.png").rename(root / "images/train/x.png"),
    "class names edited": lambda root: rewrite(root / "data.yaml", "blue", "bleu"),
}


@pytest.mark.parametrize("change", YOLO_CHANGES)
def test_a_change_of_the_labels_is_noticed(tree, change, tmp_path, reads):
    root, cache = tree("yolo"), tmp_path / "cache"

    def read() -> None:
        expected = content(open_dataset(root, "train", on_bad="skip"))
        assert content(open_dataset(root, "train", on_bad="skip", cache=cache)) == expected

    read()
    assert reads.by(read) == 0
    YOLO_CHANGES[change](root)
    assert reads.by(read) == 1
    assert reads.by(read) == 0


@pytest.mark.parametrize("name", ["coco", "csv", "recordio"])
def test_a_change_of_the_one_label_file_is_noticed(tree, name, tmp_path, reads):
    cache = tmp_path / "cache"
    (file,) = (
        path for path in (tree(name)).rglob("*") if path.suffix in (".json", ".csv", ".rec") and "val" in str(path)
    )

    def read() -> None:
        open_dataset(file, cache=cache)

    assert [reads.by(read), reads.by(read)] == [1, 0]
    data = bytearray(file.read_bytes())
    file.write_bytes(bytes(data))
    assert [reads.by(read), reads.by(read)] == [1, 0], "the same content, but a new time"
    stranger = file.parent / "stranger.txt"
    stranger.write_text("something else beside it")
    assert reads.by(read) == 1


def test_lists_outside_the_data_set_are_watched(tree, tmp_path, reads):
    root, cache = tree("yolo"), tmp_path / "cache"
    given, lists = tmp_path / "given", tmp_path / "lists"
    given.mkdir()
    lists.mkdir()
    (lists / "some.txt").write_text(f"{root}/images/train/000.png\n")
    (given / "data.yaml").write_text(f"path: {root}\ntrain: {lists}/some.txt\nnames: [blue, red]\n")

    def read() -> int:
        return len(open_dataset(given / "data.yaml", "train", cache=cache))

    assert read() == 1 and reads.by(read) == 0
    (lists / "some.txt").write_text(f"{root}/images/train/000.png\n{root}/images/train/001.png\n")
    assert read() == 2 and reads.by(read) == 0


def test_runs_inside_the_data_set_do_not_count(tree, reads):
    cache = tree("yolo") / "runs" / ".cache"

    def read() -> None:
        open_dataset(tree("yolo"), "train", cache=cache)

    assert [reads.by(read), reads.by(read)] == [1, 0]
    (cache.parent / "tinyssd-1").mkdir()
    (cache.parent / "tinyssd-1" / "metrics.csv").write_text("epoch\n")
    assert reads.by(read) == 0


def test_data_beside_the_cache_is_not_taken_for_runs(tree, reads):
    def read() -> None:
        open_dataset(tree("yolo").parent, "train", format="yolo", cache=tree("yolo") / ".cache")

    assert [reads.by(read), reads.by(read)] == [1, 1], "not cached, as its changes would not be noticed"


def test_errors_and_unwritable_places_are_as_without_a_cache(tree, tmp_path):
    for _ in range(2):
        with pytest.raises(DataError, match="does not exist"):
            open_dataset(tmp_path / "nowhere", "train", cache=tmp_path / "cache")
        with pytest.raises(DataError, match="has no split"):
            open_dataset(tree("voc"), "tran", cache=tmp_path / "cache")
    (tmp_path / "file").write_text("in the way")
    held = open_dataset(tree("voc"), "train", cache=tmp_path / "file")
    assert content(held) == content(open_dataset(tree("voc"), "train"))
    assert share(held, tmp_path / "file", "training") is held


def test_older_files_go_but_not_those_a_run_may_use(tree, tmp_path, reads):
    cache, root = tmp_path / "cache", tree("yolo")
    open_dataset(root, "train", cache=cache)
    (first,) = cache.iterdir()
    rewrite(root / "data.yaml", "blue", "bleu")
    open_dataset(root, "train", cache=cache)
    assert len(list(cache.iterdir())) == 2
    os.utime(first, (1, 1))
    rewrite(root / "data.yaml", "bleu", "blau")
    open_dataset(root, "train", cache=cache)
    assert first not in cache.iterdir() and len(list(cache.iterdir())) == 2


@pytest.fixture(scope="session")
def file(tmp_path_factory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("columns")
    arrays = {
        "a": np.arange(30.0).reshape(-1, 5), "b": np.arange(7) > 3, "c": np.zeros(0, np.int64),
        "d": np.arange(3, dtype=np.uint8), "e": np.zeros((0, 4)),
    }  # fmt: skip
    path = write_columns(folder, "x", {"names": ["ü", "\udcff"]}, arrays)
    assert write_columns(folder, "x", {"names": ["ü", "\udcff"]}, arrays) == path
    held = read_columns(path)
    assert held is not None and held.about == {"names": ["ü", "\udcff"]}
    for name, values in arrays.items():
        assert held.arrays[name].dtype == values.dtype and np.array_equal(held.arrays[name], values)
        assert held.arrays[name].shape == values.shape and not (values.size and held.arrays[name].flags.writeable)
    return path, path.read_bytes()


@given(st.randoms(use_true_random=False))
def test_damage_anywhere_is_noticed_or_harmless(file, random):
    path, sound = file
    data = bytearray(sound)
    kind = random.randrange(4)
    if kind == 0:
        data[random.randrange(len(data))] ^= random.randrange(1, 256)
    elif kind == 1:
        del data[random.randrange(len(data)) :]
    elif kind == 2:
        data += b"x" * random.randrange(1, 100)
    else:
        at = random.randrange(len(data))
        data[at : at + 64] = random.randbytes(64)
    damaged = path.with_suffix(".damaged")
    damaged.unlink(missing_ok=True)  # never written over: that is what a mapping relies on
    damaged.write_bytes(data)
    held, whole = read_columns(damaged), read_columns(path)
    if held is not None:
        # Only the gaps between arrays carry no checksum
        assert held.about == whole.about
        assert all(np.array_equal(held.arrays[name], whole.arrays[name]) for name in whole.arrays)


@pytest.mark.slow
def test_damage_of_every_byte_is_noticed_or_harmless(file):
    path, sound = file
    for at in range(len(sound)):
        damaged = path.with_suffix(f".{at}")
        damaged.write_bytes(sound[:at] + bytes([sound[at] ^ 255]) + sound[at + 1 :])
        held, whole = read_columns(damaged), read_columns(path)
        assert held is None or all(np.array_equal(held.arrays[name], whole.arrays[name]) for name in whole.arrays)
        damaged.unlink()


def test_a_damaged_cache_is_written_anew(tree, tmp_path, reads):
    cache, root = tmp_path / "cache", tree("coco")
    fresh = content(open_dataset(root, "train", cache=cache))
    (file,) = cache.iterdir()
    sound = file.read_bytes()
    for damage in (b"", b"{}", sound[:-1], sound[:100] + b"\0" + sound[101:]):
        file.unlink()
        file.write_bytes(damage)
        held = open_dataset(root, "train", cache=cache)
        assert content(held) == fresh and file.read_bytes() == sound
    assert reads.count == 5


def test_a_header_that_lies_is_no_cache(file, tmp_path):
    """A header whose own checksum is right, as of another version or of someone's making."""
    import hashlib
    import struct

    for header in (
        b"[]", b"{}", b"null", b'{"about": {}, "arrays": {"a": {"type": "|O8"}}, "end": 0}',
        b'{"about": {}, "arrays": {"a": {"type": "<f8", "shape": [-1], "start": 0, "crc": 0}}, "end": 0}',
        b'{"about": {}, "arrays": {"a": {"type": "<f8", "shape": [9999], "start": 0, "crc": 0}}, "end": 0}',
        b'{"about": {}, "arrays": {"a": {"type": "<f8", "shape": ["x"], "start": 0, "crc": 0}}, "end": 0}',
        b'{"about": {}, "arrays": {"a": {"type": "<f8", "shape": [1], "start": -200, "crc": 0}}, "end": 0}',
        b'{"about": {}, "arrays": [], "end": 0}', b"[" * 100_000,
    ):  # fmt: skip
        path = tmp_path / "lies"
        path.unlink(missing_ok=True)
        path.write_bytes(
            struct.pack("<16sQ32s", b"multibox-columns", len(header), hashlib.sha256(header).digest()) + header
        )
        assert read_columns(path) is None


@pytest.mark.slow
def test_a_worker_process_maps_the_same_file(tree, tmp_path):
    dataset = open_dataset(tree("voc"), "train", cache=tmp_path / "cache")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        sample = pool.submit(Dataset.__getitem__, dataset, 3).result(60)
        mapped = pool.submit(index_cache.dataset_arrays, dataset).result(60)[1]
    assert (sample.name, sample.path) == (dataset[3].name, dataset[3].path)
    assert np.array_equal(sample.boxes_xyxy, dataset[3].boxes_xyxy) and np.array_equal(
        mapped["boxes"], dataset.boxes_xyxy
    )


def test_what_is_pickled_does_not_grow_with_the_data(tree, tmp_path, monkeypatch):
    dataset = open_dataset(tree("voc"), "train", cache=tmp_path / "cache")
    assert share(dataset.subset([2, 0, 2]), tmp_path / "cache", "training").boxes_xyxy.flags.writeable, (
        "small: as it is"
    )
    monkeypatch.setattr(index_cache, "SMALL_BYTES", 1)
    many = dataset.subset([i % 12 for i in range(2000)])
    assert len(pickle.dumps(many)) > 100_000
    shared = share(many, tmp_path / "cache", "training")
    assert len(pickle.dumps(shared)) < 3000 and content(shared) == content(many)
    assert content(pickle.loads(pickle.dumps(shared))) == content(many)
    part = shared.subset(range(700, 1900))
    assert len(pickle.dumps(part)) < 8 * 1200 + 3000 and content(pickle.loads(pickle.dumps(part))) == content(part)
    assert share(shared, tmp_path / "cache", "training") is shared, "mapped already"
    assert share(dataset, tmp_path / "cache", "training") is dataset


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-1, 15)), st.integers(0, 3))
def test_any_part_of_a_data_set_comes_back_from_its_file(squares, tmp_path, rows, seed):
    every = open_dataset(squares, "train")
    part = every.subset([row % 12 for row in rows])
    part = part.keep_boxes(np.array([random.Random(seed).random() < 0.7 for _ in part.labels], np.bool_))
    about, arrays = index_cache.dataset_arrays(part)
    held = read_columns(write_columns(tmp_path / "cache", "part", about, arrays))
    assert content(index_cache.dataset_of(held.about, held.arrays)) == content(part)


def test_a_footprint_waits_out_the_tick_of_the_clock(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_text("1")
    first = footprint.take_footprint([tmp_path / "set"], tmp_path / "cache")
    (tmp_path / "set" / "a.txt").write_text("2")
    assert not first.is_current() and stamp_of(tmp_path / "nothing") == (-1, -1)
    assert Texts.of(first.folders) == [str(tmp_path / "set")] and first.extended(first.folders) is first


def test_links_in_a_circle_end(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "back").symlink_to(tmp_path / "set")
    assert len(footprint.take_footprint([tmp_path / "set"], tmp_path / "cache").folders) == 2
