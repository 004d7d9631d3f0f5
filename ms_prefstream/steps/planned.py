"""Steps on demand: any step of any epoch as a finished batch, computed from the plan and one window of rows."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import NoUsableRowsError, StateError
from ms_prefstream.load.loader import Load
from ms_prefstream.plan.bin_packing import Fitted
from ms_prefstream.plan.budget import BudgetPlan
from ms_prefstream.plan.indexed import IndexedPlan
from ms_prefstream.plan.packed import PackedPlan, PackedWindows
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.windows import WindowedPlan
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.sample import Batch, Loaded, Sample

WINDOWS_KEPT = 2  # two iterators that are interleaved do not push out each other's window


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
        ledger: BadRows,
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


STEPS_KEPT = 4  # two iterators that are interleaved, and a step that is looked at again


class IndexedSteps:
    """Random access to the batches of one rank, with a length index.

    Args:
        plan: Which rows form which step; made from the index.
        ranks: Whose share of it.
        keys: (N,) the key length of each row by the index, to prove that rows are what they were.
        loader: Rows to samples.
        ledger: Keeps the report.
        origin: Row id to origin.
        collate: Samples, and tokens of the longest sequence in the whole global step, to a batch.
        column_names: The names of the arrays `collate` gives.
    """

    def __init__(
        self,
        plan: IndexedPlan | BudgetPlan,
        ranks: Ranks,
        keys: NDArray[np.integer[Any]],
        loader: Load,
        ledger: BadRows,
        origin: Callable[[int], str],
        collate: Callable[[list[Sample], int], Batch],
        column_names: Sequence[str],
    ) -> None:
        self.plan = plan
        self.column_names = list(column_names)
        self.steps_per_epoch = plan.steps_per_epoch
        self._ranks = ranks
        self._keys = keys
        self._loader = loader
        self._hint = getattr(loader, "hint", None)
        self._ledger = ledger
        self._origin = origin
        self._collate = collate
        self._steps: OrderedDict[int, list[Sample]] = OrderedDict()
        self._lock = threading.RLock()

    def __getitem__(self, step: int) -> Batch:
        """The batch of an absolute step (epoch * steps_per_epoch + step in the epoch), as fresh arrays.

        Raises:
            StateError: A row is not what it was when the index was built.
        """
        with self._lock:
            samples = self._samples(step)
        return self._collate(samples, self.plan.step_length(*divmod(step, self.steps_per_epoch)))

    def rows(self, epoch: int, step: int, resolved: bool = False) -> NDArray[np.int64]:
        """The row ids of a step of this rank, int64. Nothing stands in for a row, `resolved` or not."""
        return self.plan.rows(epoch, step, self._ranks.rank, self._ranks.world)

    def _samples(self, step: int) -> list[Sample]:
        if step not in self._steps:
            if self._hint is not None:
                self._hint(itertools.count(step), self._rows_at)
            rows = self._rows_at(step)
            samples = self._settle(rows, self._loader.load(rows))
            while len(self._steps) >= STEPS_KEPT:
                self._steps.popitem(last=False)
            self._steps[step] = samples
        self._steps.move_to_end(step)
        return self._steps[step]

    def _rows_at(self, step: int) -> list[int]:
        rows: list[int] = self.rows(*divmod(step, self.steps_per_epoch)).tolist()
        return rows

    def _settle(self, rows: list[int], loaded: list[Loaded]) -> list[Sample]:
        """The samples of rows that the index calls good, once they are found to be so."""
        for row, one, tokens in zip(rows, loaded, self._keys[rows].tolist(), strict=True):
            problem = ""
            if one.sample is None:
                problem = f"cannot be used now ({one.error})"
            elif one.sample.length != tokens:
                problem = f"has {one.sample.length} tokens now"
            if problem:
                raise StateError(
                    f"{self._origin(row)}: the length index says that the row is good and has {tokens} tokens, but it "
                    f"{problem}. The data or a format function changed after the index was built: build it anew with "
                    "stream.build_index() or `ms-prefstream index`, or restore the data."
                )
        return self._ledger.settle(rows, loaded)  # type: ignore[return-value]  # every row has a sample


class PackLedger(Protocol):
    """What a `BadRows` does for packed windows."""

    def settle(self, rows: Sequence[int], loaded: Sequence[Loaded]) -> list[Sample | None]:
        """The samples, None for dropped rows."""

    def nothing_left(self, rows: int) -> NoUsableRowsError:
        """The error for a window without a good row."""

    def packed(self, made: int, wanted: int, left_out: int, repeats: int) -> None:
        """Count a window whose last step was delivered: the packs that its rows filled and that its steps took, the
        rows that were left out and those that came again."""


class _PackedShardWindow(NamedTuple):
    """One logical shard's window, packed.

    Attributes:
        rows: (n,) ids of the rows that are good.
        samples: (n) their samples.
        packs: Which of them share a packed row.
    """

    rows: NDArray[np.int64]
    samples: list[Sample]
    packs: Fitted


class PackedSteps:
    """Random access to the batches of packed rows of one rank, without a length index.

    Bad rows need no stand-ins here: they are not packed. A window without a good row is an error.

    Args:
        plan: Which rows form which window, and how it is packed.
        ranks: Whose share of it.
        loader: Rows to samples.
        ledger: Decides about bad rows and keeps the report.
        collate: The samples of each packed row to a batch.
        column_names: The names of the arrays `collate` gives.
    """

    def __init__(
        self,
        plan: PackedWindows,
        ranks: Ranks,
        loader: Load,
        ledger: PackLedger,
        collate: Callable[[list[list[Sample]]], Batch],
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
        self._windows: OrderedDict[tuple[int, int], list[_PackedShardWindow]] = OrderedDict()
        self._lock = threading.RLock()

    def __getitem__(self, step: int) -> Batch:
        """The batch of an absolute step (epoch * steps_per_epoch + step in the epoch), as fresh arrays."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        with self._lock:
            packs = [
                [shard.samples[place] for place in places.tolist()] for shard, places in self._places(epoch, inside)
            ]
            self._count(epoch, inside)
        return self._collate(packs)

    def rows(self, epoch: int, step: int, resolved: bool = False) -> NDArray[np.int64]:
        """The row ids of a step of this rank, packed row by packed row, int64; tokenises the step's window.

        A dropped row stands in no step, so these are the rows that the batch holds, `resolved` or not.
        """
        return np.concatenate(self.packs(epoch, step))

    def packs(self, epoch: int, step: int) -> list[NDArray[np.int64]]:
        """The row ids in each packed row of a step of this rank."""
        with self._lock:
            return [shard.rows[places] for shard, places in self._places(epoch, step)]

    def _places(self, epoch: int, step: int) -> list[tuple[_PackedShardWindow, NDArray[np.int64]]]:
        """For each packed row of the step: its shard's window, and the places of its samples there."""
        window, inside = self.plan.locate(step)
        share = self.plan.options.shard_batch
        return [
            (shard, shard.packs.bins.of(number))
            for shard in self._window(epoch, window)
            for number in range(inside * share, (inside + 1) * share)
        ]

    def _count(self, epoch: int, step: int) -> None:
        """With its last step a window is counted: once an epoch, wherever a run was resumed."""
        window, inside = self.plan.locate(step)
        steps = self.plan.steps_in(window)
        if inside + 1 < steps:
            return
        for shard in self._window(epoch, window):
            packs = shard.packs
            self._ledger.packed(packs.made, steps * self.plan.options.shard_batch, packs.left_out, packs.repeats)

    def _window(self, epoch: int, window: int) -> list[_PackedShardWindow]:
        key = (epoch, window)
        if key not in self._windows:
            while len(self._windows) >= WINDOWS_KEPT:
                self._windows.popitem(last=False)
            self._windows[key] = self._load(epoch, window)
        self._windows.move_to_end(key)
        return self._windows[key]

    def _load(self, epoch: int, window: int) -> list[_PackedShardWindow]:
        number = epoch * self.plan.windows_per_epoch + window
        if self._hint is not None:
            self._hint(itertools.count(number), self._window_rows)
        flat = self._window_rows(number)
        samples = self._ledger.settle(flat, self._loader.load(flat))
        packed = []
        begin = 0
        for shard in self._ranks.shards:
            rows = self.plan.shard_rows(epoch, window, shard)
            mine = samples[begin : begin + len(rows)]
            begin += len(rows)
            good = [place for place, sample in enumerate(mine) if sample is not None]
            if not good:
                raise self._ledger.nothing_left(len(rows))
            kept = [sample for sample in mine if sample is not None]
            sizes = np.array([sample_tokens(sample) for sample in kept], np.int64)
            packed.append(_PackedShardWindow(rows[good], kept, self.plan.pack(sizes, epoch, window, shard)))
        return packed

    def _window_rows(self, window: int) -> list[int]:
        """The rows of an absolute window (epoch * windows_per_epoch + window in the epoch), shard behind shard."""
        place = divmod(window, self.plan.windows_per_epoch)
        rows: list[int] = np.concatenate([self.plan.shard_rows(*place, shard) for shard in self._ranks.shards]).tolist()
        return rows


def sample_tokens(sample: Sample) -> int:
    """What a sample takes of a packed row."""
    return sum(len(sequence.ids) for sequence in sample.sequences)


class IndexedPackedSteps:
    """Random access to the batches of packed rows of one rank, with a length index.

    Args:
        plan: Which rows share which packed row, and which of these form which step.
        ranks: Whose share of it.
        sizes: Row ids to the tokens that each takes in a pack by the index, to prove that rows are what they were.
        loader: Rows to samples.
        ledger: Keeps the report.
        origin: Row id to origin.
        collate: The samples of each packed row to a batch.
        column_names: The names of the arrays `collate` gives.
    """

    def __init__(
        self,
        plan: PackedPlan,
        ranks: Ranks,
        sizes: Callable[[list[int]], NDArray[np.integer[Any]]],
        loader: Load,
        ledger: BadRows,
        origin: Callable[[int], str],
        collate: Callable[[list[list[Sample]]], Batch],
        column_names: Sequence[str],
    ) -> None:
        self.plan = plan
        self.column_names = list(column_names)
        self.steps_per_epoch = plan.steps_per_epoch
        self._ranks = ranks
        self._sizes = sizes
        self._loader = loader
        self._hint = getattr(loader, "hint", None)
        self._ledger = ledger
        self._origin = origin
        self._collate = collate
        self._steps: OrderedDict[int, list[list[Sample]]] = OrderedDict()
        self._lock = threading.RLock()

    def __getitem__(self, step: int) -> Batch:
        """The batch of an absolute step (epoch * steps_per_epoch + step in the epoch), as fresh arrays.

        Raises:
            StateError: A row is not what it was when the index was built.
        """
        with self._lock:
            packs = self._packs(step)
        return self._collate(packs)

    def rows(self, epoch: int, step: int, resolved: bool = False) -> NDArray[np.int64]:
        """The row ids of a step of this rank, packed row by packed row, int64. Nothing stands in for a row."""
        return np.concatenate(self.packs(epoch, step))

    def packs(self, epoch: int, step: int) -> list[NDArray[np.int64]]:
        """The row ids in each packed row of a step of this rank."""
        return self.plan.rows(epoch, step, self._ranks.rank, self._ranks.world)

    def _packs(self, step: int) -> list[list[Sample]]:
        if step not in self._steps:
            if self._hint is not None:
                self._hint(itertools.count(step), self._rows_at)
            rows = self._rows_at(step)
            samples = iter(self._settle(rows, self._loader.load(rows)))
            packs = self.packs(*divmod(step, self.steps_per_epoch))
            while len(self._steps) >= STEPS_KEPT:
                self._steps.popitem(last=False)
            self._steps[step] = [list(itertools.islice(samples, len(pack))) for pack in packs]
        self._steps.move_to_end(step)
        return self._steps[step]

    def _rows_at(self, step: int) -> list[int]:
        rows: list[int] = self.rows(*divmod(step, self.steps_per_epoch)).tolist()
        return rows

    def _settle(self, rows: list[int], loaded: list[Loaded]) -> list[Sample]:
        """The samples of rows that the index calls good, once they are found to be so."""
        for row, one, tokens in zip(rows, loaded, self._sizes(rows).tolist(), strict=True):
            problem = ""
            if one.sample is None:
                problem = f"cannot be used now ({one.error})"
            elif sample_tokens(one.sample) != tokens:
                problem = f"has {sample_tokens(one.sample)} tokens now"
            if problem:
                raise StateError(
                    f"{self._origin(row)}: the length index says that the row is good and has {tokens} tokens, but it "
                    f"{problem}. The data or a format function changed after the index was built: build it anew with "
                    "stream.build_index() or `ms-prefstream index`, or restore the data."
                )
        return self._ledger.settle(rows, loaded)  # type: ignore[return-value]  # every row has a sample
