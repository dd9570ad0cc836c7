"""Rows of a table: those that count on a CPU, all with a mark where the host must not look."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multibox.ops.rows import first_largest, may_read, rows_of, without_reading

COUNTS = torch.tensor([[False, True, True], [False, False, False], [True, False, False]])


@pytest.mark.parametrize("fixed", [False, True])
def test_taking_and_putting_by_hand(fixed):
    rows = rows_of(COUNTS, fixed)
    assert rows.every == fixed
    table = torch.arange(9).view(3, 3)
    assert rows.take(table)[rows.valid].tolist() == [1, 2, 6]
    assert (rows.image * 3 + rows.anchor).tolist() == rows.take(table).tolist()
    put = rows.put(torch.zeros(3, 3), torch.where(rows.valid, rows.anchor + 10, 99))
    assert put.tolist() == [[0, 11, 12], [0, 0, 0], [10, 0, 0]]


def test_tables_of_vectors_and_tables_without_entries():
    boxes = torch.rand(3, 3, 4)
    assert torch.equal(rows_of(COUNTS).take(boxes), boxes[COUNTS])
    for shape in ((0, 4), (2, 0)):
        for fixed in (False, True):
            rows = rows_of(torch.zeros(shape, dtype=torch.bool), fixed)
            assert len(rows.image) == 0 and rows.put(torch.zeros(shape), torch.zeros(0)).shape == shape


def test_only_a_cpu_may_be_read_and_not_inside_the_context():
    values = torch.zeros(1, 1, dtype=torch.bool)
    assert may_read(values) and not may_read(values.to("meta"))
    with without_reading():
        assert not may_read(values)
        assert rows_of(values).every
    assert may_read(values)


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, float("nan")]), min_size=3, max_size=3), min_size=1, max_size=4)
)
def test_the_first_of_equals_is_the_largest(table):
    values = torch.tensor(table)
    expected = values.max(dim=1)
    largest, place = first_largest(values)
    assert torch.equal(place, expected.indices)
    assert torch.allclose(largest, expected.values, equal_nan=True)
