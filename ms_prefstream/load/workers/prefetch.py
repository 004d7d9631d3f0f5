"""Prefetch of rows: worker processes load what comes next while the current batches are used."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from ms_prefstream.load.records import RecordAccess
from ms_prefstream.load.workers.pool import LEAST, LoaderPool
from ms_prefstream.load.workers.task_queue import Task
from ms_prefstream.sample import Block

Unit = TypeVar("Unit", bound=Hashable)

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
    """The rows of a unit in a job: how many, and where they begin."""

    job: _Job
    begin: int
    rows: int
    key: bytes


class Prefetch:
    """A `Load` that takes hints about what comes next. Not thread-safe: its owner holds a lock.

        hint([window 3, window 4, ...])     both are under way
        load(rows of window 3)              waits for it alone
        hint([window 4, window 5, ...])     5 is new; units that are not named any more are cancelled

    Hints change when rows are loaded, never what is loaded. As many rows wait as keep the workers busy, and at least
    one unit. With a length index a unit is a step, perhaps of 8 rows: the first that a hint names is loaded at once,
    and those after it together.

    Args:
        pool: The workers.
        records: For one-pass sources: records are read here and workers only encode them. Such rows get no hints.
    """

    def __init__(self, pool: LoaderPool, records: RecordAccess | None = None) -> None:
        self._pool = pool
        self._records = records
        self._enough = ROWS_AHEAD * pool.workers
        self._parts: dict[Hashable, _Part] = {}  # units under way, in the order of the last hint
        self._rows = 0  # theirs

    def hint(self, units: Iterable[Unit], rows_of: Callable[[Unit], Sequence[int]]) -> None:
        """Starts to load units, the next first; there may be no end of them. `load` must request exactly their rows."""
        kept: dict[Hashable, _Part] = {}
        new: dict[Hashable, Sequence[int]] = {}
        ahead = together = 0  # rows after the first unit; those of new units
        for position, unit in enumerate(units):
            part = self._parts.get(unit)
            if not position and part is not None and self._is_enough_after(unit):
                return
            if part is None and not new and position > 1 and ahead >= self._enough:
                break
            if part is None:
                new[unit] = rows_of(unit)
                together += len(new[unit])
            else:
                kept[unit] = part
            if position:
                ahead += len(new[unit]) if part is None else part.rows
            if new and (not position or together >= ROWS_AHEAD):
                kept |= self._begin(new, ROWS_AHEAD if position else LEAST)
                new, together = {}, 0
        if new:
            kept |= self._begin(new, ROWS_AHEAD)
        wanted = {id(part.job) for part in kept.values()}
        for part in self._parts.values():
            if id(part.job) not in wanted:
                self._pool.cancel(part.job.tasks)
        self._parts, self._rows = kept, sum(part.rows for part in kept.values())

    def load(self, rows: Sequence[int]) -> Block:
        """Returns the samples of these rows, in this order; at once if a hint named them early enough."""
        key = _key(rows)
        unit = next((unit for unit, part in self._parts.items() if part.key == key), None)
        if unit is None:
            pool, records = self._pool, self._records
            return pool.collect(pool.spread(rows) if records is None else pool.spread_records(records.read(rows)))
        part = self._parts.pop(unit)
        self._rows -= part.rows
        try:
            return part.job.block().take(slice(part.begin, part.begin + part.rows))
        except Exception:  # perhaps of a row that was not requested; where it was, the error comes again
            self._parts = {unit: other for unit, other in self._parts.items() if other.job is not part.job}
            self._rows = sum(other.rows for other in self._parts.values())
            return self._pool.load(rows)

    def _is_enough_after(self, unit: Hashable) -> bool:
        """Returns whether the last hint named this unit first of all that are left, and enough others behind it."""
        return unit == next(iter(self._parts)) and self._rows - self._parts[unit].rows >= self._enough

    def _begin(self, units: Mapping[Hashable, Sequence[int]], least: int) -> dict[Hashable, _Part]:
        """Starts to load units together, in tasks of at least so many rows."""
        job = _Job(self._pool, self._pool.spread(list(itertools.chain.from_iterable(units.values())), least))
        ends = itertools.accumulate(map(len, units.values()))
        return {
            unit: _Part(job, end - len(rows), len(rows), _key(rows))
            for (unit, rows), end in zip(units.items(), ends, strict=True)
        }


def _key(rows: Sequence[int]) -> bytes:
    return np.array(rows, np.int64).tobytes()
