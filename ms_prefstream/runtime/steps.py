"""Steps on demand: any step of any epoch as a finished batch, computed from the plan and one window of rows."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import NoUsableRowsError
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.windowed import WindowedPlan
from ms_prefstream.runtime.ledger import Ledger
from ms_prefstream.runtime.loader import Loaded
from ms_prefstream.tasks.sample import Sample

WINDOWS_KEPT = 2  # two iterators that are interleaved do not push out each other's window

Batch = dict[str, NDArray[Any]]


class Load(Protocol):
    """Rows to samples, in order. One that works ahead also has a method ``hint(units, rows_of)``, see `Ahead`."""

    def load(self, rows: Sequence[int]) -> list[Loaded]: ...


class _ShardWindow(NamedTuple):
    """One logical shard's window, arranged.

    Attributes:
        rows: (s * b,) planned row ids.
        samples: The sample of each slot, None where the row is bad.
        batches: (s, b) slots of each batch.
        filled_by: (s * b,) the slot whose sample each slot delivers.
    """

    rows: NDArray[np.int64]
    samples: list[Sample | None]
    batches: NDArray[np.int64]
    filled_by: NDArray[np.int64]


class WindowedSteps:
    """Random access to the batches of one rank, without a length index.

    Args:
        plan: Which rows form which step.
        ranks: Whose share of it.
        loader: Rows to samples.
        ledger: Decides about bad rows and keeps the report.
        collate: Samples to a batch.
        column_names: The names of the arrays `collate` gives.
    """

    def __init__(
        self,
        plan: WindowedPlan,
        ranks: Ranks,
        loader: Load,
        ledger: Ledger,
        collate: Callable[[list[Sample]], Batch],
        column_names: Sequence[str],
    ) -> None:
        self.plan = plan
        self.column_names = list(column_names)
        self.steps_per_epoch = plan.steps_per_epoch
        self._ranks = ranks
        self._loader = loader
        # Sources that are read from the front are not read ahead: who writes the rows may wait for this step.
        self._hint = None if plan.options.one_pass else getattr(loader, "hint", None)
        self._ledger = ledger
        self._collate = collate
        self._windows: OrderedDict[tuple[int, int], list[_ShardWindow]] = OrderedDict()
        self._lock = threading.RLock()

    def __getitem__(self, step: int) -> Batch:
        """The batch of an absolute step (epoch * steps_per_epoch + step in the epoch), as fresh arrays."""
        with self._lock:
            samples = self._samples(*divmod(step, self.steps_per_epoch))
        return self._collate(samples)

    def rows(self, epoch: int, step: int, resolved: bool = False) -> NDArray[np.int64]:
        """The row ids of a step of this rank, (B,) int64: as planned, or with stand-ins for dropped rows."""
        planned = self.plan.rows(epoch, step, self._ranks.rank, self._ranks.world)
        if planned is not None and not resolved:
            return planned
        with self._lock:
            parts = []
            for shard, slots in self._slots(epoch, step):
                parts.append(shard.rows[shard.filled_by[slots] if resolved else slots])
            return np.concatenate(parts)

    def _samples(self, epoch: int, step: int) -> list[Sample]:
        known = not self.plan.options.sorts
        planned = self.plan.rows(epoch, step, self._ranks.rank, self._ranks.world) if known else None
        if planned is not None and (epoch, self.plan.locate(step)[0]) not in self._windows:
            if self._hint is not None:
                self._hint(itertools.count(epoch * self.steps_per_epoch + step), self._step_rows)
            samples = self._ledger.settle(planned.tolist(), self._loader.load(planned.tolist()))
            if None not in samples:
                return samples  # type: ignore[return-value]  # nothing is sorted and no row is bad: no window needed
        found: list[Sample | None] = []
        for shard, slots in self._slots(epoch, step):
            filled = shard.filled_by[slots]
            self._ledger.repeated(int(np.count_nonzero(filled != slots)))
            found.extend([shard.samples[slot] for slot in filled.tolist()])
        return found  # type: ignore[return-value]  # a slot is filled by a slot that has a sample

    def _slots(self, epoch: int, step: int) -> list[tuple[_ShardWindow, NDArray[np.int64]]]:
        """For each of this rank's logical shards: its window, and the slots that the step takes."""
        window, inside = self.plan.locate(step)
        batch = int(self.plan.batch_order(epoch, window)[inside])
        return [(shard, shard.batches[batch]) for shard in self._window(epoch, window)]

    def _window(self, epoch: int, window: int) -> list[_ShardWindow]:
        key = (epoch, window)
        if key not in self._windows:
            while len(self._windows) >= WINDOWS_KEPT:
                self._windows.popitem(last=False)
            self._windows[key] = self._load(epoch, window)
        self._windows.move_to_end(key)
        return self._windows[key]

    def _load(self, epoch: int, window: int) -> list[_ShardWindow]:
        if self._hint is not None and self.plan.options.sorts:
            self._hint(itertools.count(epoch * self.plan.windows_per_epoch + window), self._window_rows)
        shards = [self.plan.shard_rows(epoch, window, shard) for shard in self._ranks.shards]
        flat = np.concatenate(shards).tolist()
        samples = self._ledger.settle(flat, self._loader.load(flat))
        arranged = []
        for index, rows in enumerate(shards):
            mine = samples[index * len(rows) : (index + 1) * len(rows)]
            lengths = np.array([-1 if sample is None else sample.length for sample in mine], np.int64)
            try:
                batches, filled_by = self.plan.arrange(lengths, rows)
            except NoUsableRowsError:
                raise self._ledger.nothing_left(len(rows)) from None
            arranged.append(_ShardWindow(rows, mine, batches, filled_by))
        return arranged

    def _step_rows(self, step: int) -> list[int]:
        """The rows of an absolute step, where they are known without lengths."""
        planned = self.plan.rows(*divmod(step, self.steps_per_epoch), self._ranks.rank, self._ranks.world)
        assert planned is not None  # nothing is sorted
        rows: list[int] = planned.tolist()
        return rows

    def _window_rows(self, window: int) -> list[int]:
        """The rows of an absolute window (epoch * windows_per_epoch + window in the epoch), shard behind shard."""
        place = divmod(window, self.plan.windows_per_epoch)
        rows: list[int] = np.concatenate([self.plan.shard_rows(*place, shard) for shard in self._ranks.shards]).tolist()
        return rows
