from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream.plan import KeyedPermutation
from ms_prefstream.plan.shuffle import SeedUse, epoch_sequence, keyed_order, window_sequence


def permutation(n: int, seed: int = 0, epoch: int = 0) -> KeyedPermutation:
    return KeyedPermutation(n, epoch_sequence(seed, epoch))


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 999, 4096, 40_001])
def test_every_row_once(n: int) -> None:
    shuffled = permutation(n, seed=n)
    positions = np.arange(n)
    rows = shuffled.row_of(positions)
    assert rows.dtype == np.int64
    assert np.array_equal(np.sort(rows), positions)


@given(n=st.integers(1, 2**48) | st.integers(2**48, 2**60), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 9))
def test_huge_domains_stay_inside_and_give_no_row_twice(n: int, seed: int, epoch: int) -> None:
    shuffled = permutation(n, seed, epoch)
    ends = {*range(min(n, 40)), *range(max(0, n - 40), n), *(n // 7 * k for k in range(7))}
    positions = np.array(sorted(ends))
    rows = shuffled.row_of(positions)
    assert rows.min() >= 0
    assert rows.max() < n
    assert np.unique(rows).size == positions.size


def test_a_part_or_another_shape_gives_the_same_rows() -> None:
    shuffled = permutation(50_000)
    whole = shuffled.row_of(np.arange(50_000))
    assert np.array_equal(shuffled.row_of(np.array([31_000, 2, 49_999])), whole[[31_000, 2, 49_999]])
    assert np.array_equal(shuffled.row_of(np.arange(6, dtype=np.int32).reshape(2, 3)), whole[:6].reshape(2, 3))
    assert shuffled.row_of(np.array([], dtype=np.int64)).shape == (0,)


def test_rows_go_to_every_place_equally_often() -> None:
    n, keys = 41, 1200
    table = np.stack([permutation(n, seed).row_of(np.arange(n)) for seed in range(keys)])  # (keys, n)
    counts = np.stack([np.bincount(table[:, place], minlength=n) for place in range(n)])
    expected = keys / n
    # Chi-square over its degrees of freedom: 1 with a standard deviation of 0.035.
    assert abs(((counts - expected) ** 2 / expected).sum() / (n - 1) ** 2 - 1) < 0.12
    for gap in (1, 2, 7):  # no fixed step between neighbours (7 x 6 cells: 7 is the side of the rectangle)
        steps = np.bincount(((table[:, gap:] - table[:, :-gap]) % n).ravel(), minlength=n)[1:]
        expected_steps = steps.sum() / (n - 1)
        assert ((steps - expected_steps) ** 2 / expected_steps).sum() / (n - 2) < 1.8


def test_all_orders_of_four_rows_are_equally_likely() -> None:
    keys = 1200
    seen = [tuple(permutation(4, 3, epoch).row_of(np.arange(4)).tolist()) for epoch in range(keys)]
    counts = np.array([seen.count(order) for order in itertools.permutations(range(4))])
    assert counts.min() > 25
    assert counts.max() < 80


def test_seeds_and_epochs_share_nothing() -> None:
    n = 2000
    orders = {(s, e): permutation(n, s, e).row_of(np.arange(n)) for s in range(4) for e in range(4)}
    same = [np.count_nonzero(a == b) for a, b in itertools.combinations(orders.values(), 2)]
    # Two independent permutations agree in one place on average; seed + epoch as the key would agree in all of them.
    assert max(same) < 10
    assert 0.6 < float(np.mean(same)) < 1.4
    lag = np.corrcoef(orders[0, 0][:-1], orders[0, 0][1:])[0, 1]
    assert abs(lag) < 0.1


def test_memory_does_not_depend_on_the_number_of_rows() -> None:
    def held(n: int) -> int:
        values = vars(permutation(n)).values()
        return sum(v.nbytes if isinstance(v, np.ndarray) else sys.getsizeof(v) for v in values)

    assert held(2**48) <= held(1000) + 64


@pytest.mark.parametrize("positions", [[-1], [10], [0, 99]])
def test_positions_outside_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.9"):
        permutation(10).row_of(np.array(positions))


@pytest.mark.parametrize("n", [0, -3, 2**60 + 1])
def test_a_permutation_needs_rows(n: int) -> None:
    with pytest.raises(ValueError, match="rows"):
        permutation(n)


def test_keys_of_windows_uses_and_epochs_are_all_different() -> None:
    words = {tuple(epoch_sequence(s, e).generate_state(2)) for s in range(4) for e in range(4)}
    for seed, epoch, window, use in itertools.product(range(4), range(4), (0, 1, 2, 2**33), SeedUse):
        words.add(tuple(window_sequence(seed, epoch, window, use).generate_state(2)))
    assert len(words) == 16 + 16 * 4 * len(SeedUse)


def test_orders_of_few_items_are_permutations_and_even() -> None:
    orders = np.stack([keyed_order(8, window_sequence(0, e, 1, SeedUse.BATCH_ORDER)) for e in range(800)])
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(8), (800, 1)))
    first = np.bincount(orders[:, 0], minlength=8)
    assert first.min() > 65
    assert first.max() < 140
