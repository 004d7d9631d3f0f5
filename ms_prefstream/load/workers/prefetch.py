"""Prefetch of rows: worker processes load what comes next while the current batches are used."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from ms_prefstream.errors import TemplateError
from ms_prefstream.load.records import RecordAccess
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.load.workers.task_queue import Task
from ms_prefstream.sample import Block

Unit = TypeVar("Unit", bound=Hashable)

_ROWS_AHEAD = 256  # per worker


class _Job(NamedTuple):
    """Rows that are being loaded."""

    key: bytes
    rows: int
    tasks: list[Task]


class Prefetch:
    """A `Load` that takes hints about what comes next. Not thread-safe: its owner holds a lock.

        hint([window 3, window 4, ...])     both are under way
        load(rows of window 3)              waits for it alone
        hint([window 4, window 5, ...])     5 is new; units that are not named any more are cancelled

    Hints change when rows are loaded, never what is loaded. As many rows wait as keep the workers busy, and at least
    one unit.

    Args:
        pool: The workers.
        records: For one-pass sources: records are read here and workers only encode them. Such rows get no hints.
    """

    def __init__(self, pool: LoaderPool, records: RecordAccess | None = None) -> None:
        self._pool = pool
        self._records = records
        self._enough = _ROWS_AHEAD * pool.workers
        self._jobs: dict[Hashable, _Job] = {}

    def hint(self, units: Iterable[Unit], rows_of: Callable[[Unit], Sequence[int]]) -> None:
        """Starts to load units, the next first; there may be no end of them. `load` must request exactly their rows."""
        kept: dict[Hashable, _Job] = {}
        ahead = 0
        for position, unit in enumerate(units):
            if position > 1 and ahead >= self._enough:
                break
            job = self._jobs.pop(unit, None)
            if job is None:
                job = self._begin(rows_of(unit))
            kept[unit] = job
            if position:
                ahead += job.rows
        for job in self._jobs.values():
            self._pool.cancel(job.tasks)
        self._jobs = kept

    def load(self, rows: Sequence[int]) -> Block:
        """Returns the samples of these rows, in this order; at once if a hint named them early enough."""
        key = _key(rows)
        for unit, job in self._jobs.items():
            if job.key == key:
                del self._jobs[unit]
                return self._collect(job, rows)
        return self._collect(self._begin(rows), rows)

    def _collect(self, job: _Job, rows: Sequence[int]) -> Block:
        try:
            return self._pool.collect(job.tasks)
        except TemplateError as error:
            records = self._records
            raise (error if records is None else error.at(lambda at: records.origin(rows[at]))) from None

    def _begin(self, rows: Sequence[int]) -> _Job:
        if self._records is None:
            return _Job(_key(rows), len(rows), self._pool.spread(rows))
        return _Job(_key(rows), len(rows), self._pool.spread_records(self._records.read(rows)))


def _key(rows: Sequence[int]) -> bytes:
    return np.array(rows, np.int64).tobytes()
