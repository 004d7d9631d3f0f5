"""The k best widths: optimal against every possible choice, and quick where there are many."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ms_prefstream.batch.best_widths import best_widths, cheapest_ends, round_up


def padded_tokens(lengths, widths):
    """Columns of all rows together, each padded to the smallest width that holds it."""
    return int(np.array(widths)[np.searchsorted(widths, lengths)].sum())


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    beyond=st.integers(0, 20),
    max_shapes=st.integers(1, 9),
    round_to=st.integers(5, 11),
)
@example(lengths=[1], beyond=0, max_shapes=1, round_to=5)
@example(lengths=[60] * 5 + [1], beyond=20, max_shapes=2, round_to=8)
@settings(settings.get_profile("cheap"))
def test_no_other_choice_of_widths_pads_less(lengths, beyond, max_shapes, round_to):
    longest = max(lengths) + beyond
    widths = best_widths(np.array(lengths), longest, max_shapes, round_to)
    last = -(-longest // round_to) * round_to
    assert widths[-1] == last
    assert len(widths) <= max_shapes
    allowed = range(round_to, last, round_to)
    cheapest = min(
        padded_tokens(lengths, (*some, last))
        for count in range(max_shapes)
        for some in itertools.combinations(allowed, count)
    )
    assert padded_tokens(lengths, widths) == cheapest


def dense(sizes, counts, groups):
    """The same program with a plain table over every pair of places: the least cost for at most `groups` runs."""
    before = [0, *itertools.accumulate(int(count) for count in counts)]
    cost = [0, *(int(size) * rows for size, rows in zip(sizes, before[1:], strict=True))]
    for _ in range(groups - 1):
        longer = [0]
        for i in range(1, len(cost)):
            split = (cost[p] + int(sizes[i - 1]) * (before[i] - before[p]) for p in range(i))
            longer.append(min(cost[i], *split))
        cost = longer
    return cost[-1]


@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=24),
    gaps=st.lists(st.integers(1, 9), min_size=24, max_size=24),
    groups=st.integers(1, 26),
)
@settings(settings.get_profile("cheap"))
def test_runs_cost_the_least_at_uneven_sizes_with_zero_counts(counts, gaps, groups):
    sizes, counts = np.cumsum(gaps[: len(counts)]), np.array(counts)
    ends = cheapest_ends(sizes, counts, groups)
    assert ends[-1] == len(sizes) - 1
    assert (np.diff(ends) > 0).all()
    assert len(ends) == min(groups, len(sizes))
    cost = int((counts * sizes[ends[np.searchsorted(ends, np.arange(len(sizes)))]]).sum())
    assert cost == dense(sizes, counts, groups)


def test_more_shapes_than_lengths_need_gives_each_its_own():
    assert best_widths(np.array([3, 16, 17, 40]), 40, 8, 16) == (16, 32, 48)
    assert best_widths(np.array([3, 16]), 40, 8, 16) == (16, 48)
    assert best_widths(np.array([16]), 16, 8, 16) == (16,)  # aligned already: nothing on top


@pytest.mark.parametrize(("length", "multiple", "up"), [(1, 8, 8), (8, 8, 8), (9, 8, 16), (16, 8, 16), (5, 1, 5)])
def test_round_up_is_a_ceiling(length, multiple, up):
    assert round_up(length, multiple) == up


def test_512_candidates_and_64_shapes_are_quick_and_better_than_even_steps():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(6.5, 0.9, 200_000), 1, 8192).astype(np.int64)
    began = time.process_time()
    widths = best_widths(lengths, 8192, 64, 16)
    assert time.process_time() - began < 2  # about 0.04 s; an n x n table a layer in plain Python takes minutes
    assert len(widths) == 64
    assert padded_tokens(lengths, widths) < 0.97 * padded_tokens(lengths, np.arange(128, 8193, 128))
