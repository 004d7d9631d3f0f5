"""Prefetch of rows: worker processes load what comes next while the current batches are used."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ms_prefstream.errors import TemplateError
from ms_prefstream.load.loader import Unit
from ms_prefstream.load.records import RecordAccess
from ms_prefstream.load.workers.pool import LEAST, LoaderPool
from ms_prefstream.load.workers.task_queue import Task
from ms_prefstream.sample import Block

ROWS_AHEAD = 512  # per worker; units of fewer rows are loaded together


class _Job:
    """Rows that are loaded together: those of one unit, or of several that come one after the other."""

    def __init__(self, pool: LoaderPool, tasks: list[Task]) -> None:
        self._pool, self.tasks = pool, tasks
        self._block: Block | None = None

    def block(self) -> Block:
        """Waits for the samples of all rows and returns them, unit after unit."""
        if self._block is None:
            self._block = self._pool.collect(self.tasks)
        return self._block


class _Part(NamedTuple):
    """A unit's rows, and where they begin in a job."""

    job: _Job
    begin: int
    rows: list[int]


class Prefetch:
    """A `LoadNext` that loads the units that come next while the current one is used.

        load_next([window 3, window 4, ...])    both begin; waits for 3 alone
        load_next([window 4, window 5, ...])    5 begins, too
        load_next([window 9, window 10, ...])   loads 9 alone
        load_next([window 10, window 11, ...])  10 and 11 begin; those that are not named any more are cancelled

    As many rows wait as keep the workers busy, and at least one unit. With a length index a unit is a step, perhaps of
    8 rows: the first one is loaded at once, and those behind it together. Not thread-safe: its owner holds a lock.

    Args:
        pool: The workers.
        records: For one-pass sources: records are read here and workers only encode them. Such rows have no next.
    """

    def __init__(self, pool: LoaderPool, records: RecordAccess | None = None) -> None:
        self._pool = pool
        self._records = records
        self._enough = ROWS_AHEAD * pool.workers
        self._parts: dict[Hashable, _Part] = {}  # units under way, in the order in which they were named
        self._waiting = 0  # rows of these units
        self._follows: Hashable = None  # the unit after one that was out of order

    def load(self, rows: Sequence[int]) -> Block:
        """Returns the samples of these rows, in this order."""
        pool, records = self._pool, self._records
        if records is None:
            return pool.collect(pool.spread(rows))
        try:
            return pool.collect(pool.spread_records(records.read(rows)))
        except TemplateError as error:  # only this process knows where its records come from
            raise error.at(lambda at: records.origin(rows[at])) from None

    def load_next(self, units: Iterable[Unit], rows_of: Callable[[Unit], list[int]]) -> tuple[list[int], Block]:
        """Returns the rows of the first unit and their samples; see `LoadNext`."""
        named = iter(units)
        first = next(named)
        if self._parts and first not in self._parts and first != self._follows:
            # Perhaps of another iterator. Its units are loaded alone until it is the only one that asks.
            self._follows, rows = next(named, None), rows_of(first)
            return rows, self.load(rows)
        self._follows = None
        if not self._is_enough_after(first):
            self._begin_all(itertools.chain((first,), named), rows_of)
        job, begin, rows = self._parts.pop(first)
        self._waiting -= len(rows)
        try:
            return rows, job.block().take(slice(begin, begin + len(rows)))
        except Exception:  # perhaps of a row of another unit; where it is one of these, the error comes again
            self._parts = {unit: part for unit, part in self._parts.items() if part.job is not job}
            self._waiting = sum(len(part.rows) for part in self._parts.values())
            return rows, self.load(rows)

    def _is_enough_after(self, unit: Hashable) -> bool:
        """Returns whether this unit was named before all others that are left, and these are enough."""
        is_first = next(iter(self._parts), None) == unit and unit in self._parts
        return is_first and self._waiting - len(self._parts[unit].rows) >= self._enough

    def _begin_all(self, units: Iterable[Unit], rows_of: Callable[[Unit], list[int]]) -> None:
        """Begins the units that come next, and cancels those that are not named."""
        kept: dict[Hashable, _Part] = {}
        new: dict[Hashable, list[int]] = {}
        ahead = together = 0  # rows behind the first unit; those of new units
        for position, unit in enumerate(units):
            part = self._parts.get(unit)
            if part is None and not new and position > 1 and ahead >= self._enough:
                break
            rows = rows_of(unit) if part is None else part.rows
            ahead += len(rows) if position else 0
            if part is not None:
                kept[unit] = part
                continue
            new[unit] = rows
            together += len(rows)
            if not position or together >= ROWS_AHEAD:
                kept |= self._begin(new, ROWS_AHEAD if position else LEAST)
                new, together = {}, 0
        if new:
            kept |= self._begin(new, ROWS_AHEAD)
        wanted = {id(part.job) for part in kept.values()}
        for part in self._parts.values():
            if id(part.job) not in wanted:
                self._pool.cancel(part.job.tasks)
        self._parts, self._waiting = kept, sum(len(part.rows) for part in kept.values())

    def _begin(self, units: Mapping[Hashable, list[int]], least: int) -> dict[Hashable, _Part]:
        """Begins units that are loaded together, in tasks of at least so many rows."""
        job = _Job(self._pool, self._pool.spread(list(itertools.chain.from_iterable(units.values())), least))
        begins = itertools.accumulate(map(len, units.values()), initial=0)
        return {unit: _Part(job, begin, rows) for (unit, rows), begin in zip(units.items(), begins, strict=False)}
