import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from multibox.data import loading
from multibox.data.augmentation import AUGMENTATIONS
from multibox.data.augmented import collate_items
from multibox.data.decoded import decode_once
from multibox.data.formats import open_dataset
from multibox.data.loading import (
    AugmentedImages,
    choose_workers,
    in_order,
    load_batches,
    prepares_between,
    use_processes,
)
from multibox.data.mixing import Mosaic, Scene
from multibox.data.sampling import EpochBatches, Key
from multibox.errors import ImageError, MultiboxError
from multibox.structures import Size


def test_batches_of_an_epoch_are_a_permutation_and_epochs_differ():
    batches = list(EpochBatches(10, 5, 6, seed=1))
    assert len(batches) == 6
    epochs = [[key.place for batch in batches[2 * e : 2 * e + 2] for key in batch] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [key[0] for batch in batches for key in batch] == [0] * 10 + [1] * 10 + [2] * 10


def test_a_resumed_order_is_the_tail_of_the_whole():
    whole = list(EpochBatches(10, 3, 12, seed=1))
    for start in range(len(whole)):
        tail = EpochBatches(10, 3, 12, seed=1, start_step=start)
        assert list(tail) == whole[start:]
        assert len(tail) == len(whole) - start


def test_fewer_images_than_a_batch_make_one_smaller_batch():
    assert [len(batch) for batch in EpochBatches(3, 32, 2)] == [3, 3]


def test_in_order_covers_everything_once():
    assert [index for batch in in_order(7, 3) for _, index in batch] == list(range(7))


def test_collate_pads_and_empty_images_are_all_padding():
    pixels = np.zeros((4, 6, 3), np.uint8)
    items = [
        (
            Scene(pixels, np.array([[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]]), np.array([1, 0]), np.array([5, 7]), 2),
            "a",
            Size(4, 6),
        ),
        (Scene(pixels, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.int64), 1), "b", Size(4, 6)),
    ]
    batch = loading._to_batch(collate_items(items, [3, 2]), False)
    assert batch.images.shape == (2, 3, 4, 6)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.gt_labels.tolist() == [[1, 0], [-1, -1]]
    assert (batch.gt_xyxy[1] == -1).all()
    assert batch.gt_rows.tolist() == [[5, 7], [-1, -1]] and batch.image_rows.tolist() == [3, 2]
    assert loading._to_batch(collate_items(items[1:], [2]), False).gt_labels.tolist() == [[-1]]
    assert batch.lost_boxes == 3


def make(dataset, recipe="default", most_gb=None):
    decoded = decode_once(dataset, None, Size(64, 64), most_gb=most_gb).training
    return AugmentedImages(dataset, Size(64, 64), AUGMENTATIONS[recipe], seed=3, decoded=decoded)


def same(batches, others):
    return all(
        a.image_names == b.image_names and torch.equal(a.images, b.images) and torch.equal(a.gt_xyxy, b.gt_xyxy)
        for a, b in zip(batches, others, strict=True)
    )


KEYS = [[(0, 1), (0, 4), (0, 2)], [(5, 2), (5, 0), (5, 1)]]


@pytest.mark.parametrize(
    ("workers", "way"),
    [
        (1, {}),
        (3, {}),
        (1, {"between": True}),
        (3, {"between": True}),
        pytest.param(2, {"processes": True}, marks=pytest.mark.slow),
    ],
)
def test_items_do_not_depend_on_order_workers_or_store(squares, workers, way):
    dataset = open_dataset(squares, "train")
    stored, plain = make(dataset), make(dataset, most_gb=0)
    alone = list(load_batches(stored, KEYS, 0, pin=False))
    assert stored.decoded.store.filled == 4
    assert plain.decoded.store is None
    assert same(alone, load_batches(plain, KEYS, 0, pin=False))
    worked = make(dataset)
    assert same(alone, load_batches(worked, KEYS, workers, pin=False, tell=pytest.fail, **way))
    # What one worker decoded is there for all
    assert worked.decoded.store.filled == 4
    assert same(alone, load_batches(worked, KEYS, workers, pin=False, tell=pytest.fail, **way))
    assert not torch.equal(alone[0].images[2], alone[1].images[0])


def test_a_key_says_whether_its_image_is_mixed(squares):
    dataset = open_dataset(squares, "train")
    strong, default = make(dataset, "mosaic"), make(dataset)
    strong.mixing = [Mosaic(1.0)]
    assert np.array_equal(strong[Key(0, 1, mixed=False)][0].pixels, default[(0, 1)][0].pixels)
    assert not np.array_equal(strong[Key(0, 1)][0].pixels, default[(0, 1)][0].pixels)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_becomes_longer_or_shorter_while_it_is_loaded(squares, workers):
    dataset = open_dataset(squares, "train")
    whole = list(load_batches(make(dataset), EpochBatches(len(dataset), 2, steps=9), 0, pin=False))
    for change, end in ((9, 9), (4, 4), (1, 3)):
        order = EpochBatches(len(dataset), 2, steps=5)
        seen = []
        for batch in load_batches(make(dataset), order, workers, pin=False):
            seen.append(batch)
            if len(seen) == 3:
                order.steps = change
        assert len(seen) == end
        assert same(seen, whole[:end])


@pytest.mark.slow
def test_threads_go_on_with_the_same_batches_where_a_worker_process_is_killed(squares, capfd):
    dataset = open_dataset(squares, "train")
    whole = list(load_batches(make(dataset), EpochBatches(len(dataset), 2, steps=40), 0, pin=False))
    said, seen = [], []
    order = EpochBatches(len(dataset), 2, steps=40)
    for batch in load_batches(make(dataset), order, 2, pin=False, processes=True, tell=said.append):
        seen.append(batch)
        if len(seen) == 1:
            workers = [child for child in multiprocessing.active_children() if child.is_alive()]
            os.kill(workers[0].pid, signal.SIGKILL)
            os.kill(workers[-1].pid, signal.SIGKILL)
    assert same(seen, whole)
    assert len(said) == 1
    assert "was killed" in said[0]
    assert capfd.readouterr() == ("", "")


def test_threads_load_where_processes_cannot_be_started(squares, monkeypatch):
    dataset = open_dataset(squares, "train")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loading, "ProcessPoolExecutor", full)
    said = []
    loaded = load_batches(make(dataset), KEYS, 2, pin=False, processes=True, tell=said.append)
    assert same(loaded, load_batches(make(dataset), KEYS, 0, pin=False))
    assert len(said) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_that_runs_out_is_a_sentence(squares, monkeypatch, workers):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(AugmentedImages, "batch", full)
    with pytest.raises(MultiboxError, match=r"train\.batch_size"):
        list(load_batches(make(open_dataset(squares, "train")), KEYS, workers, pin=False))


@pytest.mark.slow
def test_a_script_without_main_guard_loads_in_processes(squares, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from multibox.data.loading import *\n"
        "from multibox.data.formats import open_dataset\n"
        f"images = AugmentedImages(open_dataset({str(squares)!r}, 'train'), (64, 64), ())\n"
        "batches = load_batches(images, in_order(5, 2), 2, pin=False, processes=True, tell=print)\n"
        "print(sum(len(batch.image_names) for batch in batches))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "processes"), [(0, False), (1, False), (1, True)])
def test_a_bad_image_is_named_in_one_line_whichever_worker_met_it(squares, workers, processes):
    dataset = open_dataset(squares, "train")
    dataset.paths[1].write_bytes(b"")
    with pytest.raises(ImageError) as error:
        list(load_batches(make(dataset), in_order(3, 3), workers, pin=False, processes=processes))
    assert "001.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_crowds_are_not_asked_for(squares):
    dataset = open_dataset(squares, "train")
    dataset.crowd[0] = True
    images = AugmentedImages(dataset, Size(64, 64), ())
    assert len(images[(0, 0)][0].labels) == 0
    assert len(images[(0, 1)][0].labels) == 1


@pytest.mark.parametrize(("cores", "threads", "processes"), [(1, 1, 1), (3, 3, 2), (5, 4, 4), (64, 4, 8)])
def test_workers_are_the_cores_that_this_process_may_use(monkeypatch, cores, threads, processes):
    monkeypatch.setattr(loading, "available_cores", lambda: cores)
    assert choose_workers("auto") == threads
    assert choose_workers("auto", "cuda") == processes
    assert choose_workers(0) == 0
    assert prepares_between("auto", "cpu") == (cores < 5)
    assert not prepares_between("auto", "cuda")
    assert not prepares_between(2, "cpu")
    assert not use_processes(8, "cpu")
    assert use_processes(processes, "cuda") == (processes > 2)


def test_images_are_made_without_further_threads_and_the_step_keeps_its_own(squares, monkeypatch):
    dataset, seen, batch = open_dataset(squares, "train"), [], AugmentedImages._items
    monkeypatch.setattr(AugmentedImages, "_items", lambda *a: seen.append(torch.get_num_threads()) or batch(*a))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for workers, between in ((0, False), (2, False), (2, True)):
            assert len(list(load_batches(make(dataset), KEYS, workers, pin=False, between=between))) == 2
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
