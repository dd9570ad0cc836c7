"""Decoded images in a store: what is kept, where, for whom, and that it equals what is decoded anew."""

import dataclasses
import itertools
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multibox.data import decoded as module
from multibox.data.decoded import DecodedImages, decode_once
from multibox.data.images import load_at_most, load_image, read_image, resize_image, shrunk_size
from multibox.data.store import Decoded, ImageStore, Room, _lay_out, folder_store, memory_store
from multibox.structures import Sample, Size, pack

NET = Size(48, 64)


def picture(height, width, seed=0):
    """Return a smooth scene, as a camera sees one."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def sample_of(path, size=None):
    none = np.zeros(0, np.bool_)
    return Sample(path.name, path, np.zeros((0, 4)), np.zeros(0, np.int64), none, none, size)


@pytest.fixture
def photos(tmp_path):
    """Five images: two JPEG photographs far above the network's size, one of them turned, and three small ones."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1200, 1600).save(folder / "a.jpg", quality=95)
    picture(1200, 1600, 1).save(folder / "b.jpg", quality=95, exif=exif)
    picture(40, 50, 2).save(folder / "c.png")
    picture(96, 128, 3).save(folder / "d.jpg")
    picture(48, 64, 4).save(folder / "e.png")
    return dataset_of(folder)


def dataset_of(folder):
    samples = [sample_of(path) for path in sorted(folder.iterdir())]
    return pack(samples, root=folder, format="csv", split="train", class_names=("a",))


def levels(first, second):
    return np.abs(np.asarray(first, np.int64) - np.asarray(second, np.int64))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 10**6))
def test_a_shrunk_size_fits_and_keeps_the_aspect(height, width, pixels):
    small = shrunk_size(Size(height, width), pixels)
    assert small.height * small.width <= pixels
    assert 1 <= small.height <= height and 1 <= small.width <= width
    if height * width <= pixels:
        assert small == (height, width)
    elif min(small) > 20:
        assert abs(small.height / small.width * width / height - 1) < 0.1


@pytest.mark.parametrize("name", ["a.jpg", "b.jpg"])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(photos, name):
    sample = sample_of(photos.root / name)
    whole = load_image(sample)
    small, original = load_at_most(sample, 4 * NET.height * NET.width)
    assert original == Size(whole.height, whole.width) == ((1200, 1600) if name == "a.jpg" else (1600, 1200))
    assert small.width * small.height <= 4 * NET.height * NET.width
    direct = resize_image(whole, Size(small.height, small.width))
    assert levels(direct, small).mean() < 1 and levels(direct, small).max() <= 6


def test_small_images_stay_as_they_are(photos):
    for name in ("c.png", "d.jpg", "e.png"):
        image, original = load_at_most(sample_of(photos.root / name), 4 * NET.height * NET.width)
        whole = read_image(photos.root / name)
        assert np.array_equal(image, whole) and original == (whole.height, whole.width)


def test_validation_gets_what_prediction_sees_bit_for_bit(photos):
    splits = decode_once(photos, photos, NET)
    for _ in range(2):
        for index, sample in enumerate(photos):
            image = splits.validation[index]
            whole = load_image(sample)
            assert np.array_equal(image.pixels, resize_image(whole, NET))
            assert image.original == (whole.height, whole.width)
    assert splits.validation.store.filled == 5


def test_the_background_shows_through_whether_stored_or_not(tmp_path):
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    dataset = dataset_of(tmp_path)
    for colour in ((255, 255, 255), (9, 8, 7)):
        splits = decode_once(dataset, dataset, NET, background=colour, folder=tmp_path / "cache")
        for _ in range(2):
            assert (splits.training[0].pixels == colour).all() and (splits.validation[0].pixels == colour).all()
        splits.close()


def test_each_image_is_decoded_once_and_is_the_same_without_a_store(photos, monkeypatch):
    splits = decode_once(photos, photos, NET)
    plain = DecodedImages(photos, NET)
    first = [splits.training[i] for i in range(5)] + [splits.validation[i] for i in range(5)]
    for one, other in zip(first, map(plain.__getitem__, range(5)), strict=False):
        assert np.array_equal(one.pixels, other.pixels) and one.original == other.original
    for name in ("load_at_most", "load_image"):
        monkeypatch.setattr(module, name, None)
    again = [splits.training[i] for i in range(5)] + [splits.validation[i] for i in range(5)]
    assert all(
        np.array_equal(a.pixels, b.pixels) and a.original == b.original for a, b in zip(first, again, strict=True)
    )
    splits.close()
    assert splits.training.store.filled == 0
    # What was handed out stays valid
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again, strict=True))


def test_the_bound_holds_and_is_told(photos):
    said = []
    # Two validation images of 48 x 64 x 3 and nothing else
    splits = decode_once(photos, photos, NET, most_gb=20e-6, tell=said.append)
    for _ in range(2):
        assert [splits.validation[i].pixels.shape for i in range(5)] == [(*NET, 3)] * 5
        assert [splits.training[i].original for i in range(5)][2] == (40, 50)
    store = splits.training.store
    assert store.rooms == store.filled == 2
    assert os.fstat(store._files[0]).st_size <= 20_000
    assert said[0].startswith("2 of 10 images fit decoded into memory (data.cache_gb)")
    assert decode_once(photos, photos, NET, most_gb=0).training.store is None


def test_images_of_which_hardly_any_fit_are_left_to_the_file_cache(photos, monkeypatch):
    said = []
    # Three images of 96 x 128 or as many pixels, one of 40 x 50 and one of 48 x 64, in three colours
    assert DecodedImages(photos, NET).estimate() == pytest.approx(3 * (3 * 96 * 128 + 40 * 50 + 48 * 64), rel=0.01)
    monkeypatch.setattr(module, "available_memory", lambda: 25_000)
    splits = decode_once(photos, photos, NET, tell=said.append)
    assert splits.training.store is None
    assert splits.validation.store.rooms == 1 and len(splits.validation.store) == 5
    assert said[0].startswith("training images are decoded in every epoch: decoded they would take 0 GB, and of the")
    assert said[1].startswith("1 of 5 images fit decoded into memory")
    assert decode_once(photos, None, NET, tell=said.append).training.store is None
    monkeypatch.setattr(module, "available_memory", lambda: 26_000)
    assert decode_once(photos, photos, NET).training.store is not None
    assert decode_once(photos, None, NET, most_gb=12e-6).training.store is not None


def test_a_folder_is_used_again_and_a_changed_image_is_noticed(photos, tmp_path, monkeypatch):
    cache, read = tmp_path / "cache", []
    load = load_at_most
    monkeypatch.setattr(module, "load_at_most", lambda sample, *more: read.append(sample.name) or load(sample, *more))

    def run(dataset=photos, size=NET):
        splits = decode_once(dataset, None, size, folder=cache, tell=pytest.fail)
        images = [splits.training[i].pixels.copy() for i in range(len(dataset))]
        splits.close()
        return images

    first = run()
    assert len(read) == 5
    assert all(np.array_equal(a, b) for a, b in zip(first, run(), strict=True))
    assert len(read) == 5
    picture(40, 50, 9).save(photos.root / "c.png")
    changed = run()
    assert read[5:] == ["c.png"] and not np.array_equal(changed[2], first[2])
    # One image more, and the others are found at other places in the list
    picture(30, 30).save(photos.root / "0.png")
    assert len(run(dataset_of(photos.root))) == 6 and read[6:] == ["0.png"]
    run(size=Size(64, 64))
    assert len(read) == 12
    assert {path.suffix for path in cache.iterdir()} == {".pixels", ".table", ".lock"}


def test_damage_to_a_kept_file_is_noticed(photos, tmp_path):
    cache = tmp_path / "cache"

    def run():
        splits = decode_once(photos, None, NET, folder=cache, tell=pytest.fail)
        images = [splits.training[i].pixels.copy() for i in range(len(photos))]
        splits.close()
        return images

    first = run()
    pixels, table = next(cache.glob("*.pixels")), next(cache.glob("*.table"))
    for path, damaged in ((pixels, bytes(100)), (pixels, b""), (table, b"x" * 50), (table, os.urandom(550))):
        path.write_bytes(damaged)
        assert all(np.array_equal(a, b) for a, b in zip(first, run(), strict=True))


def test_a_second_run_leaves_the_folder_of_the_first_alone(photos, tmp_path):
    said = []
    first = decode_once(photos, None, NET, folder=tmp_path)
    second = decode_once(photos, None, NET, folder=tmp_path, tell=said.append)
    assert "another run" in said[0]
    assert second.training.store.paths != first.training.store.paths
    first.close()
    third = decode_once(photos, None, NET, folder=tmp_path, tell=pytest.fail)
    assert third.training.store.paths == first.training.store.paths


def test_a_folder_that_cannot_be_written_is_told(photos, tmp_path):
    said = []
    (tmp_path / "file").write_text("")
    assert decode_once(photos, None, NET, folder=tmp_path / "file", tell=said.append).training.store is not None
    assert "cannot hold decoded images" in said[0]


def test_a_full_disk_ends_keeping_and_nothing_else(photos, monkeypatch):
    splits = decode_once(photos, None, NET)
    splits.training[0]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    images = [splits.training[i] for i in range(5)]
    assert [image.original for image in images][2] == (40, 50)
    assert splits.training.store.filled == 1


def test_another_process_reads_and_writes_the_same_store(photos):
    splits = decode_once(photos, None, NET)
    splits.training[0]
    code = (
        "import pickle, sys; images = pickle.load(sys.stdin.buffer)\n"
        "images.dataset = None if images.store.filled == 1 else 1 / 0\n"
        "print(images[0].pixels.sum())\n"
        "images.store.put(4, images[0])"
    )
    data = pickle.dumps(splits.training)
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) == splits.training[0].pixels.sum()
    # Too large for row 4, whose room is that of its own image
    assert splits.training.store.filled == 1


def test_where_the_files_cannot_be_opened_nothing_is_kept(photos):
    splits = decode_once(photos, None, NET)
    splits.training[0]
    splits.training.store.paths = ("/nowhere/pixels", "/nowhere/table")
    copy = pickle.loads(pickle.dumps(splits.training))
    assert np.array_equal(copy[0].pixels, splits.training[0].pixels)
    assert copy.store.filled == 0


def test_half_written_images_are_not_taken():
    store = memory_store([Room(12)], 1000)
    store.put(0, Decoded(np.full((2, 2, 3), 7, np.uint8), Size(4, 4)))
    other = pickle.loads(pickle.dumps(store))
    os.pwrite(store._files[0], b"\0", 5)
    assert other.get(0) is None
    os.pwrite(store._files[0], b"\7", 5)
    assert other.get(0).original == (4, 4)


def test_stores_without_images():
    assert memory_store([], 1000).get(0) is None
    store = memory_store([Room(0), Room(0)], 0)
    store.put(1, Decoded(np.zeros((1, 1, 3), np.uint8), Size(1, 1)))
    assert store.get(1) is None and len(store) == 2


@given(st.lists(st.integers(0, 300), max_size=12), st.lists(st.integers(0, 300), max_size=12), st.integers(0, 2000))
def test_places_never_overlap_and_stay_within_the_bound(before, after, most):
    key = lambda size: f"{size:016d}".encode()  # noqa: E731
    first = [Room(size, key(size)) for size in dict.fromkeys(before)]
    second = [Room(size, key(size)) for size in dict.fromkeys(after)]
    old, _ = _lay_out(first, most)
    table, length = _lay_out(second, most, old)
    assert length <= most
    spans = sorted((offset, offset + room) for offset, room in table[:, :2].tolist() if room)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert all(room == 0 or room >= asked.size for room, asked in zip(table[:, 1], second, strict=False))
    if second and sum(-(-size // 64) * 64 for size in dict.fromkeys(after)) <= most:
        assert all(table[:, 1] >= [room.size for room in second])


def test_room_is_made_for_new_images_where_old_ones_went(tmp_path):
    rooms = [[Room(64, bytes([k]) * 16) for k in range(n, n + 4)] for n in (0, 4)]
    for some in rooms:
        store = folder_store(tmp_path, "x", some, 256)
        assert store.rooms == 4
        store.put(3, Decoded(np.zeros((4, 4, 3), np.uint8), Size(4, 4)))
        assert store.filled == 1
        store.close()


def test_memory_without_nameless_files_takes_a_temporary_one(photos, monkeypatch):
    monkeypatch.setattr(sys, "platform", "other")
    splits = decode_once(photos, None, NET)
    assert np.array_equal(splits.training[2].pixels, splits.training[2].pixels)
    assert splits.training.store.filled == 1
    assert isinstance(splits.training.store, ImageStore)
    assert dataclasses.is_dataclass(photos)
