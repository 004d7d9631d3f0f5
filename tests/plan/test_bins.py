"""Bins and their arithmetic: grouping, choosing, and exactly as many as are wanted."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream.plan.bin_packing import Bins, exactly, grouped
from ms_prefstream.sample import runs

KEY = np.random.SeedSequence([1, 2, 3])


def made(*groups):
    sizes = [len(group) for group in groups]
    return Bins(np.array([row for group in groups for row in group]), np.concatenate([[0], np.cumsum(sizes)]))


def groups(bins):
    return [bins.of(number).tolist() for number in range(bins.count)]


@st.composite
def some_bins(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    return Bins(np.arange(sum(sizes)), np.concatenate([[0], np.cumsum(sizes)]))


def test_bins_are_grouped_in_the_order_of_their_first_rows():
    assert groups(grouped(np.array([2, 0, 2, 1, 0]), 3)) == [[0, 2], [1, 4], [3]]


def test_runs_count_on_from_each_first_number():
    assert runs(np.array([5, 0, 9]), np.array([3, 2, 0])).tolist() == [5, 6, 7, 0, 1]


def test_bins_can_be_taken_in_any_order_and_twice():
    taken = made([0, 1], [2], [3, 4, 5]).take(np.array([2, 0, 2]))
    assert groups(taken) == [[3, 4, 5], [0, 1], [3, 4, 5]]


def test_the_rows_of_a_bin_are_memory_of_their_own():
    bins = made([0, 1], [2])
    bins.of(0)[:] = 9
    assert bins.rows.tolist() == [0, 1, 2]


def test_enough_bins_stay_as_they_are():
    fitted = exactly(made([0, 1], [2]), 2, KEY)
    assert (groups(fitted.bins), fitted.left_out, fitted.repeats) == ([[0, 1], [2]], 0, 0)


def test_too_few_bins_are_split_evenly_the_fullest_first():
    fitted = exactly(made([0, 1, 2, 3, 4], [5, 6]), 4, KEY)
    assert groups(fitted.bins) == [[0, 1], [2, 3], [4], [5, 6]]
    assert (fitted.left_out, fitted.repeats) == (0, 0)


def test_only_single_rows_come_again():
    fitted = exactly(made([0, 1], [2]), 5, KEY)
    assert (groups(fitted.bins), fitted.left_out, fitted.repeats) == ([[0], [1], [2], [0], [1]], 0, 2)


def test_what_is_left_out_is_chosen_by_the_key_and_the_rest_keeps_its_order():
    bins = made(*[[row] for row in range(40)])
    found = [groups(exactly(bins, 30, np.random.SeedSequence([seed])).bins) for seed in (1, 2)]
    assert found[0] != found[1]
    for kept in found:
        assert kept == sorted(kept)
    assert exactly(bins, 30, KEY).left_out == 10


@given(some_bins(), st.integers(1, 80))
def test_there_are_as_many_bins_as_wanted_and_none_is_empty(bins, wanted):
    found = exactly(bins, wanted, KEY).bins
    assert found.count == wanted
    assert (np.diff(found.starts) >= 1).all()
    assert found.starts[-1] == found.rows.size


@given(some_bins(), st.integers(1, 80))
def test_rows_are_conserved(bins, wanted):
    fitted = exactly(bins, wanted, KEY)
    rows = Counter(fitted.bins.rows.tolist())
    assert set(rows) <= set(range(bins.rows.size))
    assert len(rows) == bins.rows.size - fitted.left_out
    assert sum(rows.values()) - len(rows) == fitted.repeats
    assert fitted.left_out == 0 or bins.count > wanted
    assert fitted.repeats == 0 or bins.rows.size < wanted
