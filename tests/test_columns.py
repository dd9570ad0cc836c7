"""Columns give back what went in, whatever it is, and are pickled as a place in their file."""

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibox.columns import Numbers, Paths, Texts, local, map_file, portable, ragged
from multibox.errors import DataError
from multibox.structures import Sample, Size, Sizes, pack

TEXTS = st.lists(st.text(st.characters(codec=None), max_size=9))  # surrogates included
FILES = st.lists(st.binary(max_size=9).map(lambda name: os.fsdecode(name.replace(b"\0", b"") or b"x")))


@given(TEXTS, st.data())
def test_texts_give_back_what_went_in(texts, data):
    column = Texts.of(texts)
    assert list(column) == texts and column == texts and column == Texts.of(tuple(texts)) and len(column) == len(texts)
    assert [column[i] for i in range(-len(texts), len(texts))] == texts + texts
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1))) if texts else []
    assert column.take(np.array(rows, np.int64)) == [texts[row] for row in rows]
    part = data.draw(st.slices(len(texts)))
    assert column[part] == texts[part] and column[part][:2] == texts[part][:2]
    assert pickle.loads(pickle.dumps(column)) == texts
    assert column != [*texts, "x"] and (not texts or column != [texts[0] + "x", *texts[1:]])


@given(FILES, st.lists(st.sampled_from(["", "/", "a", "/a/b", "../c", "d\udcff"]), min_size=1))
def test_paths_give_back_what_went_in(names, folders):
    paths = [Path(folders[i % len(folders)], name) for i, name in enumerate(names)]
    column = Paths.of(paths)
    assert list(column) == paths and column == paths and list(column.texts()) == [str(path) for path in paths]
    assert column[::-1] == paths[::-1] and [column[i] for i in range(len(paths))] == paths
    assert len(column.folders) <= len({path.parent for path in paths}) + 1


@given(
    st.lists(st.none() | st.integers(0, 2**62)),
    st.lists(st.none() | st.builds(Size, st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))),
)
def test_numbers_and_sizes_give_back_what_went_in(numbers, sizes):
    assert Numbers.of(numbers) == numbers and Sizes.of(sizes) == sizes
    assert Numbers.of(numbers)[1:] == numbers[1:] and list(reversed(Sizes.of(sizes))) == sizes[::-1]
    assert pickle.loads(pickle.dumps(Sizes.of(sizes))) == sizes


def test_an_absurd_side_becomes_the_largest_one():
    assert Sizes.of([Size(10**30, 3)]) == [Size(2**31 - 1, 3)]


def test_rows_outside_a_column_are_refused():
    for row in (-3, 2):
        with pytest.raises(IndexError):
            Texts.of(["a", "b"])[row]
    assert "b" in Texts.of(["a", "b"]) and Texts.of(["a", "b"]).index("b") == 1


def test_ragged_rows_by_hand():
    starts, places = ragged(np.array([0, 2, 2, 5]), np.array([2, 0, 1, 2]))
    assert starts.tolist() == [0, 3, 5, 5, 8] and places.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]


def samples(count: int) -> list[Sample]:
    return [
        Sample(
            f"{i}.jpg", Path("images", f"{i}.jpg"), np.arange(4.0 * (i % 3)).reshape(-1, 4) + i, np.arange(i % 3),
            np.arange(i % 3) > 0, np.zeros(i % 3, bool), Size(i, 7) if i % 2 else None, i * 3 if i % 5 else None,
        )
        for i in range(count)
    ]  # fmt: skip


def rows(dataset) -> list[tuple]:
    def plain(value):
        return value.tolist() if isinstance(value, np.ndarray) else value

    return [tuple(plain(value) for value in dataclasses.astuple(sample)) for sample in dataset]


@given(st.lists(st.integers(0, 10)))
def test_a_subset_holds_the_chosen_samples(chosen):
    every = samples(11)
    dataset = pack(every, root=Path("r"), format="voc", split="s", class_names=("a", "b"), notes=["n"])
    assert rows(dataset.subset(chosen)) == rows(every[i] for i in chosen) and dataset.subset(chosen).notes == ("n",)


def test_an_array_of_a_mapped_file_is_pickled_as_its_place(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.arange(100_000).tobytes())
    whole = np.frombuffer(map_file(path), np.int64)
    part = whole[1000:].reshape(-1, 9)[5:]
    assert len(pickle.dumps(portable(part))) < 300
    again = local(pickle.loads(pickle.dumps(portable(part))))
    assert np.array_equal(again, part) and not again.flags.writeable
    assert portable(whole[::2]) is not whole and isinstance(portable(whole[::2]), np.ndarray)
    assert portable(np.arange(3)).tolist() == [0, 1, 2]
    state = portable(part)
    del whole, part, again
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match="written anew"):
        local(state)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        local(state)
