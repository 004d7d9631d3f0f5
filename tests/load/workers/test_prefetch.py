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


def rows_of(window: int) -> list[int]:
    return [*range(window % 4 * WINDOW, (window % 4 + 1) * WINDOW)]


def test_units_in_any_order_have_their_rows(pool: LoaderPool) -> None:
    expected = [plain(recipe(pairs(COUNT)).loader().load(rows_of(window))) for window in range(4)]
    ahead, draw = Prefetch(pool), random.Random(3)
    for _ in range(16):
        window = draw.randrange(4)
        if draw.random() < 0.3:
            assert plain(ahead.load(rows_of(window))) == expected[window]
        else:
            units = draw.choice([itertools.count(window), range(window, window + 2), [window, window + 9, window + 3]])
            rows, loaded = ahead.load_next(units, rows_of)
            assert (rows, plain(loaded)) == (rows_of(window), expected[window])
        assert ahead._waiting == sum(len(part.rows) for part in ahead._parts.values())


def test_the_first_window_is_shared_out_and_those_behind_it_are_loaded_together(pool: LoaderPool) -> None:
    ahead, asked = Prefetch(pool), list[int]()
    jobs: dict[int, list[int]] = {}  # the rows of each task of the job that a window is in

    def noted(window: int) -> list[int]:
        asked.append(window)
        return rows_of(window)

    begin = ahead._begin

    def begun(units: Any, least: int) -> Any:
        parts = begin(units, least)
        jobs.update({unit: [len(task.argument) for task in part.job.tasks] for unit, part in parts.items()})
        return parts

    ahead._begin = begun  # type: ignore[method-assign]
    for window in range(9):
        rows, loaded = ahead.load_next(itertools.count(window), noted)
        assert plain(loaded) == plain(recipe(pairs(COUNT)).loader().load(rows))
        assert list(ahead._parts) == [*range(window + 1, len(jobs))]
        assert ahead._waiting >= 2 * 512
        if not window:  # two jobs of four windows are 2 workers * 512 rows and more
            assert jobs == {0: [80, 80]} | {window: [512, 128] for window in range(1, 9)}
    assert asked == [*range(len(jobs))]  # each window once


def test_units_that_are_not_named_any_more_are_cancelled(pool: LoaderPool) -> None:
    ahead = Prefetch(pool)
    ahead.load_next(range(13), rows_of)
    jobs = {id(part.job): part.job for part in ahead._parts.values()}.values()
    first, *others = jobs
    before = dict(ahead._parts)
    ahead.load_next([50, 51], rows_of)  # out of order
    assert ahead._parts == before
    ahead.load_next([4, 100], rows_of)
    assert list(ahead._parts) == [100]
    waiting = set(pool._tasks._waiting)
    assert not any(task.cancelled() for task in first.tasks)  # it holds 4
    assert not any(waiting & {*job.tasks} for job in others)


def test_an_error_of_a_row_that_was_not_requested_comes_with_that_row() -> None:
    """A step is loaded together with those behind it, whose rows may not be readable."""
    with LoaderPool(recipe(Breaking(pairs(COUNT), bad=200)), 1) as pool:
        wait_ready(pool)
        ahead = Prefetch(pool)

        def step(number: int) -> list[int]:
            return [*range(10 * number, 10 * number + 10)]

        for number in [*range(20), 20, *range(21, 40)]:
            if number == 20:
                with pytest.raises(PrefStreamError, match="row 200 is not there"):
                    ahead.load_next(itertools.count(number), step)
            else:
                rows, loaded = ahead.load_next(itertools.count(number), step)
                assert len(loaded) == 10 == len(rows)


def test_small_steps_are_named_anew_only_when_few_wait(pool: LoaderPool) -> None:
    """A step of one row must not look through all that wait."""
    ahead, named = Prefetch(pool), list[int]()

    def units(first: int) -> Iterator[int]:
        for unit in itertools.count(first):
            named.append(unit)
            yield unit

    for number in range(COUNT):
        ahead.load_next(units(number), lambda unit: [unit % COUNT])
    assert len(named) < 8 * COUNT


def test_two_iterators_by_turns_do_not_cancel_what_the_other_waits_for(
    pool: LoaderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, begun, steps = Prefetch(pool), list[int](), 100
    post = pool._post

    def posted(tasks: list[Any]) -> list[Any]:
        begun.extend(len(task.argument) for task in tasks)
        return post(tasks)

    monkeypatch.setattr(pool, "_post", posted)
    for number in range(steps):
        for unit in (number, 1000 + number):
            ahead.load_next(itertools.count(unit), lambda unit: [unit % COUNT] * 8)
    assert sum(begun) <= 2 * 8 * steps + 3 * 512  # nothing was begun twice
    for number in range(1000 + steps, 1003 + steps):  # the second goes on alone
        ahead.load_next(itertools.count(number), lambda unit: [unit % COUNT] * 8)
    assert 1003 + steps in ahead._parts


@pytest.mark.slow
def test_a_large_unit_is_begun_alone(pool: LoaderPool) -> None:
    ahead = Prefetch(pool)
    ahead.load_next(itertools.count(), lambda unit: [*range(COUNT)] * 2)
    assert list(ahead._parts) == [1]
