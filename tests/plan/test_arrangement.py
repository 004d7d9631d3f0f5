from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream.errors import NoUsableRowsError
from ms_prefstream.plan.windows import arrange


def test_stand_ins_by_hand() -> None:
    #        slot     0   1   2   3   4   5   6   7
    rows = np.array([70, 10, 50, 20, 60, 40, 30, 80])
    lengths = np.array([9, -1, 5, -1, 9, 5, -1, -1])
    # Good slots by (length, row id): 5 (5, 40), 2 (5, 50), 4 (9, 60), 0 (9, 70). Bad slots in order: 1 3 6 7.
    batches, filled_by = arrange(lengths, rows, 4)
    assert filled_by.tolist() == [0, 5, 2, 2, 4, 5, 4, 0]
    # Filled lengths 9 5 5 5 9 5 9 9; within 5: rows 10 20 40 50; within 9: rows 30 60 70 80.
    assert batches.tolist() == [[1, 3, 5, 2], [6, 4, 0, 7]]


def test_more_bad_than_good_goes_round() -> None:
    _, filled_by = arrange(np.array([-1, 7, -1, -1, 3, -1]), np.arange(6), 2)
    assert filled_by.tolist() == [4, 1, 1, 4, 4, 1]


def test_without_sorting_slots_stay_and_bad_ones_are_still_filled() -> None:
    batches, filled_by = arrange(np.array([9, -1, 4, 7]), np.array([30, 10, 20, 40]), 2, sort=False)
    assert batches.tolist() == [[0, 1], [2, 3]]
    assert filled_by.tolist() == [0, 2, 2, 3]


def test_the_same_row_twice_keeps_slot_order() -> None:
    batches, _ = arrange(np.array([4, 2, 4, 4]), np.array([5, 9, 5, 1]), 2)
    assert batches.tolist() == [[1, 3], [0, 2]]


def test_no_good_row_is_an_error_that_names_rows() -> None:
    with pytest.raises(NoUsableRowsError, match=r"All 6 rows .*row ids 10, 11, 12, 13, 14, ….*stream\.build_index"):
        arrange(np.full(6, -1), np.arange(10, 16), 3)


@pytest.mark.parametrize(("lengths", "rows"), [(3, 4), (5, 5)])
def test_windows_that_do_not_fit_are_refused(lengths: int, rows: int) -> None:
    with pytest.raises(ValueError, match="do not fill"):
        arrange(np.ones(lengths, np.int64), np.arange(rows), 2)


@given(st.data())
def test_arrangement_is_what_its_definition_says(data: st.DataObject) -> None:
    batch, steps = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    count = batch * steps
    lengths = np.array(data.draw(st.lists(st.integers(-1, 6), min_size=count, max_size=count)), dtype=np.int32)
    rows = np.array(data.draw(st.lists(st.integers(0, 40), min_size=count, max_size=count, unique=False)))
    good = [slot for slot in range(count) if lengths[slot] >= 0]
    if not good:
        with pytest.raises(NoUsableRowsError):
            arrange(lengths, rows, batch)
        return
    batches, filled_by = arrange(lengths, rows, batch)
    by_key = sorted(good, key=lambda slot: (lengths[slot], rows[slot]))
    bad = [slot for slot in range(count) if lengths[slot] < 0]
    expected = list(range(count))
    for place, slot in enumerate(bad):
        expected[slot] = by_key[place % len(by_key)]
    assert filled_by.tolist() == expected
    assert batches.shape == (steps, batch)
    assert batches.dtype == filled_by.dtype == np.int64
    order = sorted(range(count), key=lambda slot: (lengths[expected[slot]], rows[slot]))
    assert batches.reshape(-1).tolist() == order
    # Conservation: each good slot delivers its own row, and each bad slot is one counted repeat.
    delivered = Counter(filled_by[batches].reshape(-1).tolist())
    assert set(delivered) == set(good)
    assert sum(delivered.values()) - len(good) == len(bad)
    assert max(delivered.values()) - min(delivered.values()) <= 1
