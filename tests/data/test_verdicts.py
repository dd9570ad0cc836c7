"""Each image is decoded once: what was found is remembered until its file changes."""

import hashlib
import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox.data import checking
from multibox.data.checking import check_images, fingerprint, look_at_images, open_checked, silence
from multibox.data.convert import write_dataset
from multibox.data.formats import open_dataset
from multibox.data.images import load_image
from multibox.errors import ImageError
from multibox.training.reporter import Reporter


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the images that were decoded."""
    names: list[str] = []

    def noted(sample):
        names.append(sample.name)
        return load_image(sample)

    monkeypatch.setattr(checking, "load_image", noted)
    return names


def test_an_image_is_decoded_once_and_again_when_its_file_changes(squares, tmp_path, decoded):
    cache = tmp_path / ".multibox-cache"
    dataset = open_dataset(squares, "train")
    first = look_at_images(dataset, cache)
    assert sorted(decoded) == sorted(dataset.image_names) and set(first.sizes) == {(96, 96)} and not first.problems
    decoded.clear()
    assert look_at_images(dataset, cache).sizes == first.sizes and not decoded
    assert look_at_images(dataset.subset([5, 1]), cache).sizes == first.sizes[:2] and not decoded
    Image.new("RGB", (30, 20)).save(dataset.paths[4])
    os.utime(dataset.paths[7])
    found = look_at_images(dataset, cache)
    assert sorted(decoded) == [dataset.image_names[4], dataset.image_names[7]] and found.sizes[4] == (20, 30)
    decoded.clear()
    assert look_at_images(dataset, cache).sizes == found.sizes and not decoded
    assert look_at_images(dataset).sizes == found.sizes and len(decoded) == 12, "without a cache each time"


def test_what_is_wrong_is_remembered_too(squares, tmp_path, decoded):
    cache = tmp_path / ".multibox-cache"
    dataset = open_dataset(squares, "train")
    dataset.paths[2].write_bytes(b"no image")
    dataset.paths[9].unlink()
    for _ in range(2):
        with pytest.raises(ImageError, match=r"002.png.*mend or remove it"):
            check_images(dataset, "stop", cache=cache)
        kept = check_images(dataset, "skip", cache=cache)
        assert len(kept) == 10 and kept.left_out["unreadable_image"] == 2 and "2 images that cannot" in kept.notes[-1]
    assert decoded.count(dataset.image_names[2]) == 1 and decoded.count(dataset.image_names[9]) == 4, (
        "nothing to compare"
    )
    Image.new("RGB", (96, 96)).save(dataset.paths[2])
    Image.new("RGB", (96, 96)).save(dataset.paths[9])
    assert check_images(dataset, "stop", cache=cache) is dataset


def test_records_are_known_by_their_place(squares, tmp_path, decoded):
    write_dataset({"train": open_dataset(squares, "train")}, tmp_path / "rec", "recordio")
    dataset = open_dataset(tmp_path / "rec", "train")
    look_at_images(dataset, tmp_path / ".multibox-cache")
    decoded.clear()
    backwards = dataset.subset(range(11, -1, -1))
    assert look_at_images(backwards, tmp_path / ".multibox-cache").looked_at.all() and not decoded


def test_a_damaged_file_of_verdicts_is_made_anew(squares, tmp_path, decoded):
    cache = tmp_path / ".multibox-cache"
    dataset = open_dataset(squares, "train")
    look_at_images(dataset, cache)
    (file,) = cache.iterdir()
    sound = file.read_bytes()
    decoded.clear()
    file.unlink()
    file.write_bytes(sound[:-3] + b"abc")
    assert look_at_images(dataset, cache).sizes == [(96, 96)] * 12 and len(decoded) == 12
    assert file.read_bytes() == sound


@pytest.mark.parametrize("format", ["yolo", "coco"])
def test_an_image_of_another_size_makes_the_index_read_anew(squares, tmp_path, format):
    """Boxes of YOLO are fractions: they change with the image, though no label file does."""
    cache, root = tmp_path / ".multibox-cache", tmp_path / "set"
    write_dataset({"train": open_dataset(squares, "train")}, root, format)

    def read():
        return open_checked(root, "train", on_bad="stop", cache=cache, counting=silence)

    before = read()
    with Image.open(before.paths[3]) as image:
        image.resize((192, 192)).save(before.paths[3])
    for _ in range(2):
        after, fresh = read(), open_dataset(root, "train")
        assert np.array_equal(after.boxes_xyxy, fresh.boxes_xyxy) and after.sizes == fresh.sizes
        assert after.sizes[3] == (192, 192)
        # One COCO image gives no evidence which size its boxes belong to: they are kept as written
        assert np.array_equal(after[3].boxes_xyxy, before[3].boxes_xyxy * (2 if format == "yolo" else 1))


def test_ctrl_c_is_heard_and_what_was_seen_is_remembered(squares, tmp_path, monkeypatch, request):
    # Another test may have left it ignored, as a worker process does
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    dataset = open_dataset(squares, "train").subset([i % 12 for i in range(2000)])
    slow = threading.Event()

    def look(sample):
        if slow.is_set():
            time.sleep(0.02)
        return load_image(sample)

    monkeypatch.setattr(checking, "load_image", look)
    seen = 0

    @contextmanager
    def counting(what, total):
        def advance(more):
            nonlocal seen
            seen += more
            if seen == 100:
                slow.set()
                signal.raise_signal(signal.SIGINT)

        yield advance

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        look_at_images(dataset, tmp_path / ".multibox-cache", counting)
    assert time.monotonic() - started < 3, "2000 slow images would take 20 seconds"
    totals = []

    @contextmanager
    def count_total(what, total):
        totals.append(total)
        yield lambda more: None

    slow.clear()
    assert look_at_images(dataset, tmp_path / ".multibox-cache", count_total).looked_at.all()
    assert not totals or totals[0] <= 1900


def test_a_log_says_how_far_the_check_is(monkeypatch):
    lines, clock = [], [0.0]
    monkeypatch.setattr("multibox.training.reporter.time.monotonic", lambda: clock[0])
    with Reporter(lines.append).counting("images checked", 4000) as advance:
        for _ in range(4):
            clock[0] += 15
            advance(1000)
    assert lines == ["2,000 of 4,000 images checked, 30 s left", "4,000 of 4,000 images checked, 0 s left"]


def test_the_fingerprint_is_the_one_that_older_runs_have(squares):
    """Spelled out as it was before it was made by columns: a run has to know its data again."""
    dataset = open_dataset(squares, "train").subset([3, 1, 2, 0, 7])
    digest = hashlib.sha256(b"\0training\0")
    order = sorted(range(5), key=lambda i: dataset[i].name)
    samples = [dataset[i] for i in order]
    texts = ["\0".join(dataset.class_names), *(sample.name for sample in samples)]
    digest.update("\n".join(f"{len(text)} {text}" for text in texts).encode())
    columns = (
        [sample.path.stat().st_size for sample in samples],
        [len(sample.labels) for sample in samples],
        np.rint(np.concatenate([sample.boxes_xyxy for sample in samples]) * 100),
        np.concatenate([sample.labels for sample in samples]),
    )
    for column in columns:
        digest.update(np.asarray(column, "<i8").tobytes())
    for flag in ("difficult", "crowd"):
        digest.update(np.concatenate([getattr(sample, flag) for sample in samples]).astype(np.uint8).tobytes())
    digest.update(b"\0validation\0")
    assert fingerprint(dataset, None) == digest.hexdigest()


SHORT_RUN = ("--preset=tinyssd", "--weights=none", "--epochs=1", "--set=train.batch_size=4", "--device=cpu")


@pytest.mark.slow
def test_runs_share_what_was_found(squares, tmp_path, call, decoded, monkeypatch):
    """A second run, and a resumed one, decode no image to check it."""
    monkeypatch.chdir(tmp_path)
    assert call("train", squares, *SHORT_RUN) == 0
    kinds = {path.name.split("-")[0] for path in (tmp_path / "runs" / ".multibox-cache").iterdir()}
    assert kinds >= {"images", "index", "layout"}
    assert len(decoded) == 16
    assert call("train", squares, *SHORT_RUN, "--set", "train.seed=3") == 0 and len(decoded) == 16
    assert call("train", "--resume", next(Path("runs").glob("*-1")), "--epochs", "2") == 0 and len(decoded) == 16
    shutil.rmtree(tmp_path / "runs" / ".multibox-cache")
    assert call("train", "--resume", next(Path("runs").glob("*-1")), "--epochs", "3") == 0 and len(decoded) == 32


@pytest.mark.slow
def test_seeds_and_combinations_share_one_cache_beside_their_folder(squares, tmp_path, call, decoded, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("train", squares, *SHORT_RUN, "--out", "grid", "--seeds", "2", "--ablate", "loss=focal/ohem") == 0
    assert (
        len(decoded) == 16
        and (tmp_path / ".multibox-cache").is_dir()
        and not list(Path("grid").rglob(".multibox-cache"))
    )
