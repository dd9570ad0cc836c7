import numpy as np
import pytest
import torch

from multibox.data import loading
from multibox.data.augmentation import AUGMENTATIONS
from multibox.data.formats import open_dataset
from multibox.data.loading import AugmentedPictures, choose_workers, collate, in_order, load_batches
from multibox.data.sampling import EpochBatches
from multibox.errors import PictureError


def test_batches_of_an_epoch_are_a_permutation_and_epochs_differ():
    batches = list(EpochBatches(10, 5, 3, seed=1))
    assert len(batches) == 6
    epochs = [[index for batch in batches[2 * e : 2 * e + 2] for _, index in batch] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [key[0] for batch in batches for key in batch] == [0] * 10 + [1] * 10 + [2] * 10


def test_a_resumed_order_is_the_tail_of_the_whole():
    whole = list(EpochBatches(10, 3, 4, seed=1))
    for start in range(len(whole)):
        tail = EpochBatches(10, 3, 4, seed=1, start_step=start)
        assert list(tail) == whole[start:]
        assert len(tail) == len(whole) - start


def test_fewer_pictures_than_a_batch_make_one_smaller_batch():
    assert [len(batch) for batch in EpochBatches(3, 32, 2)] == [3, 3]


def test_in_order_covers_everything_once():
    assert [index for batch in in_order(7, 3) for _, index in batch] == list(range(7))


def test_collate_pads_and_empty_pictures_are_all_padding():
    pixels = np.zeros((4, 6, 3), np.uint8)
    items = [
        (pixels, np.array([[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]]), np.array([1, 0]), "a", (6, 4)),
        (pixels, np.zeros((0, 4)), np.zeros(0, np.int64), "b", (6, 4)),
    ]
    batch = collate(items)
    assert batch.images.shape == (2, 3, 4, 6)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.gt_labels.tolist() == [[1, 0], [-1, -1]]
    assert (batch.gt_xyxy[1] == -1).all()
    assert collate(items[1:]).gt_labels.tolist() == [[-1]]


# Where this process has one core, torch warns of the second worker
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_items_do_not_depend_on_order_workers_or_cache(squares):
    dataset = open_dataset(squares, "train")
    make = lambda cache: AugmentedPictures(dataset, (64, 64), AUGMENTATIONS["default"], seed=3, cache_bytes=cache)  # noqa: E731
    cached, plain = make(1 << 30), make(0)
    keys = [[(0, 1), (0, 4), (0, 2)], [(5, 2), (5, 0), (5, 1)]]
    alone = [list(load_batches(cached, keys, 0, pin=False)), list(load_batches(plain, keys, 0, pin=False))]
    worked = list(load_batches(make(1 << 30), keys, 2, pin=False))
    for batches in (alone[1], worked):
        for a, b in zip(alone[0], batches, strict=True):
            assert a.names == b.names
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.gt_xyxy, b.gt_xyxy)
    assert not torch.equal(alone[0][0].images[2], alone[0][1].images[0])
    assert len(cached.cache) == 4
    assert not plain.cache


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_is_named_in_one_line_whichever_process_met_it(squares, workers):
    dataset = open_dataset(squares, "train")
    dataset.paths[1].write_bytes(b"")
    with pytest.raises(PictureError) as error:
        list(load_batches(AugmentedPictures(dataset, (64, 64), ()), in_order(3, 3), workers, pin=False))
    assert "001.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_crowds_are_not_asked_for(squares):
    dataset = open_dataset(squares, "train")
    dataset.crowd[0] = True
    pictures = AugmentedPictures(dataset, (64, 64), ())
    assert len(pictures[(0, 0)][2]) == 0
    assert len(pictures[(0, 1)][2]) == 1


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (3, 2), (64, 8)])
def test_workers_are_the_cores_that_this_process_may_use(monkeypatch, cores, workers):
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert choose_workers("auto") == workers
    assert choose_workers(0) == 0
