"""Whose turn it is: exact shares at every prefix, and any position without the ones before it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream.plan.mixture import LARGEST_TOTAL, Schedule, whole_weights

WEIGHTS = st.lists(st.one_of(st.integers(1, 12), st.integers(1, 2000), st.integers(1, 10**8)), min_size=1, max_size=9)


def turns(schedule: Schedule, count: int) -> np.ndarray:
    """(count, parts) how many turns each part had after each position, by walking."""
    parts, numbers = schedule.locate(np.arange(count))
    had = np.cumsum(parts[:, None] == np.arange(len(schedule.weights)), axis=0)
    assert np.array_equal(numbers, had[np.arange(count), parts] - 1)  # a part's turns are numbered without a gap
    return had


@given(WEIGHTS)
def test_shares_are_exact_at_every_prefix(weights: list[int]) -> None:
    schedule = Schedule(weights)
    had = turns(schedule, 700)
    shares = np.array([Fraction(weight, sum(weights)) for weight in weights], np.float64)
    errors = np.abs(had - np.arange(1, 701)[:, None] * shares)
    assert errors.max() <= schedule.error_bound + 1e-9
    assert schedule.error_bound < {1: 0.1, 2: 0.51, 3: 1, 4: 1}.get(len(weights), 1.7)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(0, 10**12))
def test_after_each_sum_of_weights_every_part_had_exactly_its_weight(weights: list[int], periods: int) -> None:
    schedule = Schedule(weights)
    period = sum(schedule.weights)
    assert turns(schedule, period)[-1].tolist() == list(schedule.weights)
    assert schedule.counts(periods * period) == [periods * weight for weight in schedule.weights]
    first, again = schedule.locate(np.arange(period)), schedule.locate(np.arange(period) + periods * period)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(again[1] - first[1], periods * np.array(schedule.weights)[first[0]])


@given(WEIGHTS, st.integers(0, 2**40), st.randoms(use_true_random=False))
def test_any_position_is_known_without_the_others(weights: list[int], begin: int, numbers: object) -> None:
    schedule = Schedule(weights)
    positions = begin + np.arange(200)
    parts, counts = schedule.locate(positions)
    order = np.random.default_rng(begin).permutation(200)
    shuffled = schedule.locate(positions[order])
    assert np.array_equal(shuffled[0], parts[order])
    assert np.array_equal(shuffled[1], counts[order])
    for position, part, count in list(zip(positions.tolist(), parts.tolist(), counts.tolist(), strict=True))[::17]:
        assert schedule.position(part, count) == position
        had = schedule.counts(position)
        assert sum(had) == position
        assert had[part] == count


def test_an_example() -> None:
    parts, numbers = Schedule([3, 2]).locate(np.arange(10))
    assert parts.tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 1, 0]
    assert numbers.tolist() == [0, 0, 1, 1, 2, 3, 2, 4, 3, 5]
    assert Schedule([6, 4]).weights == (3, 2)


def test_four_parts_stay_within_a_row_of_their_shares_also_where_weights_double() -> None:
    assert Schedule([1000, 1, 1001, 2002]).error_bound < 1


def test_many_parts_with_the_worst_weights_stay_near_their_shares() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 25:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert Schedule(fibonacci).error_bound < 1.7
    assert Schedule([1] * 64).error_bound < 1


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.7, 0.3], (7, 3)),
        ([0.1, 0.2, 0.7], (1, 2, 7)),
        ([1 / 3, 2 / 3], (1, 2)),
        ([2.5, 1], (5, 2)),
        ([Fraction(1, 7), Fraction(6, 7)], (1, 6)),
        ([3_000_000_000, 1_000_000_000], (3, 1)),
        ([10_000_000, 12_345_678], (5_000_000, 6_172_839)),
        ([5], (1,)),
        ([1e-3, 1], (1, 1000)),
    ],
)
def test_weights_are_taken_as_they_are_written(weights: list[float | Fraction], expected: tuple[int, ...]) -> None:
    assert whole_weights(weights) == expected


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6))
def test_other_weights_keep_their_proportions(weights: list[float]) -> None:
    found = whole_weights(weights)
    assert min(found) >= 1
    assert sum(found) <= LARGEST_TOTAL + len(found)
    for weight, whole in zip(weights, found, strict=True):
        assert abs(whole / sum(found) - weight / sum(weights)) < 2e-9 * len(weights)
