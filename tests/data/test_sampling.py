import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibox.data.augmentation import AUGMENTATIONS
from multibox.data.formats import open_dataset
from multibox.data.loading import AugmentedImages
from multibox.data.sampling import EpochBatches, repeat_factors
from multibox.structures import Sample, Size, pack


def labelled(images, crowd=()):
    """Pack images given as lists of labels; those of `crowd` hold crowds only."""
    samples = [
        Sample(
            str(i),
            Path(str(i)),
            np.tile([0.0, 0, 1, 1], (len(labels), 1)),
            np.array(labels, int),
            np.zeros(len(labels), bool),
            np.full(len(labels), i in crowd),
        )
        for i, labels in enumerate(images)
    ]
    return pack(samples, root=Path(), format="voc", split="train", class_names=["a", "b", "c"])


def plain(batches):
    return [[key[:2] for key in batch] for batch in batches]


def test_the_uniform_order_is_what_it_always_was():
    expected = [[(0, 1), (0, 4), (0, 2)], [(0, 3), (0, 6), (0, 5)], [(1, 4), (1, 2), (1, 0)], [(1, 6), (1, 5), (1, 3)]]
    assert plain(EpochBatches(7, 3, 4, seed=5)) == expected
    text = repr(plain(EpochBatches(205, 32, 18, seed=0)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "89b6907a79a0d650"


def test_a_rare_class_raises_its_images():
    # Shares: a 8 of 8, b 4 of 8, c 1 of 8; the middle one is b's
    images = [[0, 1]] * 4 + [[0]] * 3 + [[0, 2]]
    assert repeat_factors(labelled(images)).tolist() == [1.0] * 7 + [2.0]


def test_equal_shares_empty_images_and_crowds_repeat_nothing():
    assert repeat_factors(labelled([[0], [1], [2], []])).tolist() == [1.0] * 4
    assert repeat_factors(labelled([[], []])).tolist() == [1.0] * 2
    # A class that occurs in crowds only is not learnt, so its image is not called for
    assert repeat_factors(labelled([[0], [0], [0], [1]], crowd={3})).tolist() == [1.0] * 4


@given(
    repeats=st.lists(st.floats(1, 4), min_size=3, max_size=20),
    size=st.integers(1, 6),
    start=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_balanced_keeps_the_length_resumes_and_bounds_the_copies(repeats, size, start, seed):
    count = len(repeats)
    steps = count // min(size, count)
    whole = list(EpochBatches(count, size, 4 * steps, seed=seed, repeats=np.array(repeats)))
    assert len(whole) == 4 * steps
    assert {len(batch) for batch in whole} == {min(size, count)}
    assert [key[0] for batch in whole for key in batch] == sorted(key[0] for batch in whole for key in batch)
    tail = list(EpochBatches(count, size, 4 * steps, seed=seed, start_step=start, repeats=np.array(repeats)))
    assert tail == whole[start:]
    keys = [key for batch in whole for key in batch]
    assert len(set(keys)) == len(keys)
    assert all(key.copy < np.ceil(repeats[key.place]) for key in keys)


@given(
    images=st.integers(1, 12),
    size=st.integers(1, 14),
    steps=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    start=st.integers(0, 9),
)
def test_a_batch_does_not_depend_on_the_length_of_the_run(images, size, steps, start):
    long = EpochBatches(images, size, steps=1000, seed=2)
    order = EpochBatches(images, size, steps=steps[0], seed=2, start_step=start)
    walk, seen = iter(order), []
    for total in steps:
        # Re-planned while it is walked through, as --minutes does
        order.steps = total
        seen += [batch for _, batch in zip(range(3), walk, strict=False)]
    assert seen == [long.batch(start + k) for k in range(len(seen))]
    assert start + len(seen) <= max(start, *steps)
    assert {len(batch) for batch in seen} <= {min(size, images)}


def test_a_run_has_exactly_its_steps_and_mixing_ends_where_it_is_told():
    order = EpochBatches(7, 3, steps=5, seed=1)
    assert (len(order), len(list(order)), order.steps_per_epoch) == (5, 5, 2)
    order.mixed_steps = 3
    mixed = [[key.mixed for key in batch] for batch in order]
    assert mixed == [[True] * 3] * 3 + [[False] * 3] * 2
    assert plain(order) == plain(EpochBatches(7, 3, steps=5, seed=1))


def test_balanced_shows_images_in_proportion():
    repeats = np.ones(20)
    repeats[3] = 2.5
    keys = [key for batch in EpochBatches(20, 4, 20_000, seed=1, repeats=repeats) for key in batch]
    counts = np.bincount([key[1] for key in keys], minlength=20)
    assert counts[3] / np.delete(counts, 3).mean() == pytest.approx(2.5, rel=0.03)


def test_a_second_copy_is_augmented_in_another_way(squares):
    dataset = open_dataset(squares, "train")
    images = AugmentedImages(dataset, Size(64, 64), AUGMENTATIONS["default"], seed=3)
    first, again, copy = (images[key][0].pixels for key in ((2, 1), (2, 1), (2, 1, 1)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, copy)


def test_every_object_is_kept_or_counted_as_lost(squares):
    dataset = open_dataset(squares, "train")
    images = AugmentedImages(dataset, Size(64, 64), AUGMENTATIONS["caffe"], seed=3)
    scenes = [images[epoch, index][0] for epoch in range(20) for index in range(len(dataset))]
    assert sum(len(scene.labels) + scene.lost for scene in scenes) == 20 * int((~dataset.crowd).sum())
    assert sum(scene.lost for scene in scenes) > 0
