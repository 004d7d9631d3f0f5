"""Hints change when rows are loaded, never what is loaded, and keep no more than they should."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.load.workers.prefetch import Prefetch
from tests.pools import pairs, plain, recipe, wait_ready

COUNT, WINDOW = 640, 160


@pytest.fixture(scope="module")
def pool() -> Iterator[LoaderPool]:
    with LoaderPool(recipe(pairs(COUNT)), 2) as pool:
        wait_ready(pool)
        yield pool


def rows_of(window: int) -> range:
    return range(window % 4 * WINDOW, (window % 4 + 1) * WINDOW)


def test_any_order_of_hints_and_loads_gives_the_same(pool: LoaderPool) -> None:
    expected = [plain(recipe(pairs(COUNT)).loader().load(rows_of(window))) for window in range(4)]
    ahead, draw = Prefetch(pool), random.Random(3)
    for _ in range(12):
        window = draw.randrange(4)
        if draw.random() < 0.7:
            ahead.hint(itertools.count(draw.randrange(4)), rows_of)
        assert plain(ahead.load(rows_of(window))) == expected[window]
    ahead.hint([], rows_of)
    assert not pool._tasks._waiting


def test_a_window_is_shared_out_and_the_next_one_begins_at_once(pool: LoaderPool) -> None:
    ahead = Prefetch(pool)
    asked: list[int] = []

    def noted(window: int) -> range:
        asked.append(window)
        return rows_of(window)

    for window in range(3):
        ahead.hint(itertools.count(window), noted)
        assert asked == list(range(window + 5))  # four windows of 160 rows are 2 workers * 256 rows and more
        assert {unit: len(job.tasks) for unit, job in ahead._jobs.items()} == {
            unit: pool.workers for unit in range(window, window + 5)
        }
        ahead.load(rows_of(window))
        assert window not in ahead._jobs
    ahead.hint([], rows_of)


@pytest.mark.slow
def test_a_large_unit_is_hinted_at_alone(pool: LoaderPool) -> None:
    ahead = Prefetch(pool)
    ahead.hint(itertools.count(), lambda unit: range(COUNT))
    assert list(ahead._jobs) == [0, 1]
    ahead.hint([], rows_of)
