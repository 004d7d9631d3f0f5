"""Hints change when rows are loaded, never what is loaded, and keep no more than they should."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from ms_prefstream.errors import PrefStreamError
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.load.workers.prefetch import Prefetch
from tests.pools import pairs, plain, recipe, wait_ready

COUNT, WINDOW = 640, 160


@pytest.fixture(scope="module")
def pool() -> Iterator[LoaderPool]:
    with LoaderPool(recipe(pairs(COUNT)), 2) as pool:
        wait_ready(pool)
        yield pool


class Breaking:
    """Rows in memory, one of which cannot be read."""

    def __init__(self, rows: list[dict[str, Any]], bad: int) -> None:
        self.rows, self.bad = rows, bad

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row == self.bad:
            raise OSError(f"row {row} is not there")
        return self.rows[row]


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


def test_the_first_window_is_shared_out_and_those_behind_it_are_loaded_together(pool: LoaderPool) -> None:
    ahead = Prefetch(pool)
    asked: list[int] = []

    def noted(window: int) -> range:
        asked.append(window)
        return rows_of(window)

    def jobs() -> list[tuple[list[int], list[int]]]:
        """Returns the windows of each job, and the rows of its tasks."""
        found = {id(part.job): part.job for part in ahead._parts.values()}
        windows = [[unit for unit, part in ahead._parts.items() if part.job is job] for job in found.values()]
        return [
            (some, [len(task.argument) for task in job.tasks])
            for some, job in zip(windows, found.values(), strict=True)  # type: ignore[arg-type]  # windows are numbers
        ]

    ahead.hint(itertools.count(), noted)
    # 512 rows and more of four windows are a task; two such tasks are 2 workers * 512 rows and more.
    assert jobs() == [([0], [80, 80]), ([1, 2, 3, 4], [512, 128]), ([5, 6, 7, 8], [512, 128])]
    for window in range(9):
        expected = plain(recipe(pairs(COUNT)).loader().load(rows_of(window)))
        ahead.hint(itertools.count(window), noted)
        assert plain(ahead.load(rows_of(window))) == expected
        assert window not in ahead._parts
        assert sum(part.rows for part in ahead._parts.values()) == ahead._rows >= (2 * 512 if window else 0)
    assert asked == [*range(asked[-1] + 1)]  # each window once
    ahead.hint([], rows_of)


def test_units_of_a_job_that_are_not_named_any_more_are_cancelled_with_the_last_of_them(pool: LoaderPool) -> None:
    ahead = Prefetch(pool)
    ahead.hint(range(9), rows_of)
    job = ahead._parts[8].job
    ahead.hint([7], rows_of)
    assert list(ahead._parts) == [7]
    assert not any(task.cancelled() for task in job.tasks)
    ahead.hint([], rows_of)
    assert not pool._tasks._waiting
    assert not ahead._parts
    assert all(task.cancelled() or task.done() or task.running() for task in job.tasks)


def test_an_error_of_a_row_that_was_not_requested_comes_with_that_row() -> None:
    """A step is loaded together with those behind it, whose rows may not be readable."""
    rows = pairs(COUNT)
    with LoaderPool(recipe(Breaking(rows, bad=200)), 1) as pool:
        wait_ready(pool)
        ahead = Prefetch(pool)

        def step(number: int) -> range:
            return range(10 * number, 10 * number + 10)

        for number in range(20):
            ahead.hint(itertools.count(number), step)
            assert len(ahead.load(step(number))) == 10
        ahead.hint(itertools.count(20), step)
        with pytest.raises(PrefStreamError, match="row 200 is not there"):
            ahead.load(step(20))
        ahead.hint(itertools.count(21), step)
        assert len(ahead.load(step(21))) == 10


@pytest.mark.slow
def test_a_large_unit_is_hinted_at_alone(pool: LoaderPool) -> None:
    ahead = Prefetch(pool)
    ahead.hint(itertools.count(), lambda unit: [*range(COUNT)] * 2)
    assert list(ahead._parts) == [0, 1]
    ahead.hint([], rows_of)
