"""Steps in any order: the plan names the rows of a step, the loader makes samples of them, `collate` makes the batch.

without a length index     unit = a window: loaded, then sorted or packed here; a step takes its share of it
with a length index        unit = a step: its rows are planned, and must still be what the index says
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import NoUsableRowsError, RowError, StateError
from ms_prefstream.load.loader import Load
from ms_prefstream.plan.bin_packing import Fitted
from ms_prefstream.plan.budget import BudgetPlan
from ms_prefstream.plan.indexed import IndexedPlan
from ms_prefstream.plan.latest import Latest
from ms_prefstream.plan.options import MASK
from ms_prefstream.plan.packed import PackedPlan, PackedWindows
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.windows import WindowedPlan
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.sample import Batch, Block

RowIds = NDArray[np.int64]

ROW_MASK = "row_mask"
"""The column with 0 for slots that only fill a step."""


class PlannedSteps:
    """Random access to the batches of one rank. Each kind of plan overrides the methods marked "per kind".

    Args:
        plan: Which rows form which step.
        ranks: Which share of each step is loaded here.
        loader: Row ids to samples.
        bad_rows: Decides about bad rows and keeps the report.
        collate: Samples to a batch.
        column_names: The names of the arrays that `collate` returns.
    """

    units_kept = 2  # two interleaved iterators do not evict each other's window

    def __init__(
        self,
        plan: Any,
        ranks: Ranks,
        loader: Load,
        bad_rows: BadRows,
        collate: Callable[..., Batch],
        column_names: Sequence[str],
    ) -> None:
        self.plan, self.column_names, self.steps_per_epoch = plan, list(column_names), plan.steps_per_epoch
        self._ranks, self._loader, self._bad_rows, self._collate = ranks, loader, bad_rows, collate
        # A one-pass source is not read ahead: whoever writes its rows may be waiting for this step.
        self._load_next = None if getattr(plan.options, "one_pass", False) else getattr(loader, "load_next", None)
        self._units: OrderedDict[int, Any] = OrderedDict()
        self._rows_of: Latest[int, list[RowIds]] = Latest(8)
        self._lock = threading.RLock()

    def __getitem__(self, step: int) -> Batch:
        """The batch of an absolute step (epoch * steps_per_epoch + step in the epoch), as fresh arrays.

        Raises:
            StateError: A row differs from what the length index says of it.
        """
        with self._lock:
            samples = self._samples(step)
            if self._ranks.rank == 0 and (step + 1) % self.steps_per_epoch == 0:
                held = self.plan.left_out_and_repeated(step // self.steps_per_epoch)
                self._bad_rows.report.epoch(self.plan.options.rows, *held)
        return self._collate(samples, *self._collate_options(step))

    def start(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch in order, from a step on."""
        first = epoch * self.steps_per_epoch
        return map(self.__getitem__, range(first + step, first + self.steps_per_epoch))

    def rows(self, epoch: int, step: int, resolved: bool = False) -> RowIds:
        """The row ids of a step of this rank, int64; per kind.

        Args:
            epoch: From 0.
            step: Step in the epoch.
            resolved: Return the stand-ins of dropped rows instead of the dropped rows.
        """
        raise NotImplementedError

    def source_state(self, step: int) -> dict[str, Any] | None:
        """Returns None: a source with random access has no state of its own."""
        return None

    def resume_source(self, state: Mapping[str, Any]) -> None:
        """Does nothing, see `source_state`."""

    def _samples(self, step: int) -> Any:
        """The samples of a step, or of each of its packed rows; per kind."""
        raise NotImplementedError

    def _unit_rows(self, unit: int) -> list[int]:
        """The rows that are loaded together; per kind."""
        raise NotImplementedError

    def _make_unit(self, unit: int, rows: list[int], loaded: Block) -> Any:
        """What is kept of a unit; per kind."""
        raise NotImplementedError

    def _collate_options(self, step: int) -> tuple[Any, ...]:
        """Arguments of `collate` after the samples."""
        return ()

    def _mark(self, samples: Block, is_real: Callable[[], NDArray[np.bool_]]) -> Block:
        """Adds the row mask, if the last step is masked: 1 for the row of a slot itself, (B,)."""
        if self.plan.options.drop_remainder == MASK:
            samples.columns[ROW_MASK] = is_real().astype(np.int32)
        return samples

    @property
    def _prefetches_units(self) -> bool:
        """Whether workers load the units after the current one; False where they load steps ahead instead."""
        return True

    def _unit(self, unit: int) -> Any:
        if unit not in self._units:
            while len(self._units) >= self.units_kept:
                self._units.popitem(last=False)
            self._units[unit] = self._make_unit(unit, *self._load(unit, self._unit_rows, self._prefetches_units))
        self._units.move_to_end(unit)
        return self._units[unit]

    def _load(self, unit: int, rows_of: Callable[[int], list[int]], prefetch: bool = True) -> tuple[list[int], Block]:
        """Loads a unit, or a step, and perhaps begins those after it."""
        if self._load_next is not None and prefetch:
            found: tuple[list[int], Block] = self._load_next(itertools.count(unit), rows_of)
            return found
        rows = rows_of(unit)
        return rows, self._loader.load(rows)


class IndexedSteps(PlannedSteps):
    """Batches with a length index. A unit is a step, and no row needs a stand-in.

    Args:
        sizes: Row ids to their tokens by the index, to detect rows that have changed since.
        origin: Row id to origin.
        longest: Row ids of a global step to the tokens that all ranks pad for; None if the plan says them.
        plan, ranks, loader, bad_rows, collate, column_names: As for `PlannedSteps`. `collate` also gets the tokens of
            the longest sequence of the global step, so that all ranks pad it alike.
    """

    units_kept = 4
    plan: IndexedPlan | BudgetPlan | PackedPlan

    def __init__(
        self,
        plan: Any,
        ranks: Ranks,
        sizes: Callable[[list[int]], NDArray[np.integer[Any]]],
        loader: Load,
        bad_rows: BadRows,
        origin: Callable[[int], str],
        collate: Callable[..., Batch],
        column_names: Sequence[str],
        longest: Callable[[RowIds], int] | None = None,
    ) -> None:
        super().__init__(plan, ranks, loader, bad_rows, collate, column_names)
        self._longest = longest
        self._sizes = sizes
        self._origin = origin

    def rows(self, epoch: int, step: int, resolved: bool = False) -> RowIds:
        """The row ids of a step of this rank, int64; nothing stands in for a row, `resolved` or not."""
        return self.plan.rows(epoch, step, self._ranks.rank, self._ranks.world)  # type: ignore[return-value]

    def _samples(self, step: int) -> Any:
        return self._unit(step)

    def _unit_rows(self, unit: int) -> list[int]:
        found: list[int] = self.rows(*divmod(unit, self.steps_per_epoch)).tolist()
        return found

    def _make_unit(self, unit: int, rows: list[int], loaded: Block) -> Any:
        now, tokens = self._size(loaded).tolist(), self._sizes(rows).tolist()
        if now != tokens:  # a bad row has no token
            at = next(at for at in range(len(rows)) if now[at] != tokens[at])
            is_bad = at in loaded.errors
            problem = f"cannot be used now ({loaded.errors[at]})" if is_bad else f"has {now[at]} tokens now"
            raise StateError(
                f"{self._origin(rows[at])}: the length index says that the row is good and has {tokens[at]} tokens, "
                f"but it {problem}. The data or a format function changed after the index was built: rebuild it with "
                "stream.build_index() or `ms-prefstream index`, or restore the data."
            )
        epoch, step = divmod(unit, self.steps_per_epoch)
        samples, ranks, plan = self._bad_rows.settle(rows, loaded), self._ranks, self.plan
        return self._mark(samples, lambda: ~plan.filling(epoch, step, ranks.rank, ranks.world))  # type: ignore[union-attr]  # of packs

    def _size(self, loaded: Block) -> NDArray[np.int64]:
        return loaded.longest

    def _collate_options(self, step: int) -> tuple[Any, ...]:
        epoch, inside = divmod(step, self.steps_per_epoch)
        if self._longest is not None:
            return (self._longest(self.plan.rows(epoch, inside, 0, 1)),)  # type: ignore[arg-type]  # not packed
        return (self.plan.step_length(epoch, inside),)  # type: ignore[union-attr]


class IndexedPackedSteps(IndexedSteps):
    """Batches of packed rows with a length index."""

    def packs(self, epoch: int, step: int) -> list[RowIds]:
        """The row ids in each packed row of a step of this rank."""
        return self.plan.rows(epoch, step, self._ranks.rank, self._ranks.world)  # type: ignore[return-value]

    def rows(self, epoch: int, step: int, resolved: bool = False) -> RowIds:
        """The row ids of a step of this rank, packed row by packed row, int64."""
        return np.concatenate(self.packs(epoch, step))

    def _make_unit(self, unit: int, rows: list[int], loaded: Block) -> Any:
        samples = super()._make_unit(unit, rows, loaded)
        ends = np.cumsum([len(pack) for pack in self.packs(*divmod(unit, self.steps_per_epoch))])[:-1]
        return [samples.take(places) for places in np.split(np.arange(len(rows)), ends)]

    def _size(self, loaded: Block) -> NDArray[np.int64]:
        return loaded.totals

    def _collate_options(self, step: int) -> tuple[Any, ...]:
        return ()


class _ShardWindow(NamedTuple):
    """One logical shard's window.

    Attributes:
        rows: (n,) row ids: of all slots, or where rows are packed of the good ones.
        samples: Their samples.
        batches: (s, b) slots of each batch; or the packs.
        filled_by: (s * b,) the slot whose sample each slot delivers; None where rows are packed.
        is_filling: (s * b,) whether a slot only fills the last step; None where rows are packed.
        errors: Why the rows of slots are dropped, by slot; where rows are packed by their place in the window.
    """

    rows: RowIds
    samples: Block
    batches: Any
    filled_by: Any = None
    is_filling: Any = None
    errors: Mapping[int, RowError] = MappingProxyType({})


class WindowedSteps(PlannedSteps):
    """Batches without a length index. A unit is a window: it is loaded, then sorted."""

    plan: WindowedPlan

    def rows(self, epoch: int, step: int, resolved: bool = False) -> RowIds:
        """The row ids of a step of this rank, (B,) int64: as planned, or with stand-ins for dropped rows."""
        planned = self.plan.rows(epoch, step, self._ranks.rank, self._ranks.world)
        if planned is not None and not resolved:
            return planned
        with self._lock:
            places = self._places(epoch * self.steps_per_epoch + step)
            return np.concatenate([w.rows[w.filled_by[slots] if resolved else slots] for w, slots in places])

    def _samples(self, step: int) -> Any:
        epoch, inside = divmod(step, self.steps_per_epoch)
        if not self.plan.options.sorts and self._window_of(epoch, inside)[0] not in self._units:
            samples = self._bad_rows.settle(*self._load(step, self._step_rows))
            if not samples.errors:  # nothing is sorted and no row is bad: the window is not needed
                return self._mark(
                    samples, lambda: ~self.plan.filling(epoch, inside, self._ranks.rank, self._ranks.world)
                )
        found, places = list[Block](), self._places(step)
        for window, slots in places:
            filled = window.filled_by[slots]
            given = slots[filled != slots]
            turns = given[~window.is_filling[given]].tolist()
            self._bad_rows.report.stand_in(len(given), [window.errors[slot] for slot in turns])
            found.append(window.samples.take(filled))
        real = ((window.filled_by[slots] == slots) & ~window.is_filling[slots] for window, slots in places)
        return self._mark(Block.join(found), lambda: np.concatenate([*real]))

    @property
    def _prefetches_units(self) -> bool:
        return self.plan.options.sorts

    def _places(self, step: int) -> list[tuple[_ShardWindow, RowIds]]:
        """The window of each logical shard of this rank, with the slots that the step takes of it."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        unit, at = self._window_of(epoch, inside)
        batch = int(self.plan.batch_order(epoch, self.plan.locate(inside)[0])[at])
        return [(window, window.batches[batch]) for window in self._unit(unit)]

    def _window_of(self, epoch: int, step: int) -> tuple[int, int]:
        """(absolute window, step in that window)."""
        window, inside = self.plan.locate(step)
        return epoch * self.plan.windows_per_epoch + window, inside

    def _step_rows(self, step: int) -> list[int]:
        epoch, inside = divmod(step, self.steps_per_epoch)
        planned = self.plan.rows(epoch, inside, self._ranks.rank, self._ranks.world)
        assert planned is not None  # nothing is sorted
        found: list[int] = planned.tolist()
        return found

    def _shards(self, unit: int) -> list[RowIds]:
        """The rows of each shard of this rank: computed once, to load a window and to make its batches."""
        place = divmod(unit, self.plan.windows_per_epoch)
        return self._rows_of.get(unit, lambda: [self.plan.shard_rows(*place, shard) for shard in self._ranks.shards])

    def _unit_rows(self, unit: int) -> list[int]:
        found: list[int] = np.concatenate(self._shards(unit)).tolist()
        return found

    def _make_unit(self, unit: int, rows: list[int], loaded: Block) -> list[_ShardWindow]:
        samples, windows, begin = self._bad_rows.settle(rows, loaded), [], 0
        for shard, mine in zip(self._ranks.shards, self._shards(unit), strict=True):
            own = samples if len(mine) == len(rows) else samples.take(range(begin, begin + len(mine)))
            try:
                window = self._arranged(unit, shard, mine, own)
            except NoUsableRowsError:
                masked = self.plan.options.drop_remainder == MASK
                found = self._of_other_shards(unit, shard, mine) if masked else None
                if found is None:
                    raise self._bad_rows.nothing_left(len(mine)) from None
                window = found
            windows.append(window._replace(errors=own.errors))
            begin += len(mine)
        return windows

    def _of_other_shards(self, unit: int, shard: int, rows: RowIds) -> _ShardWindow | None:
        """Returns the window of a shard without a good row: a row of another shard stands in, and none is counted."""
        place = divmod(unit, self.plan.windows_per_epoch)
        shards = range(self.plan.options.logical_shards)
        others = np.concatenate([self.plan.shard_rows(*place, shard) for shard in shards])
        loaded = self._loader.load(others.tolist())
        good, slots = np.flatnonzero(loaded.good), np.arange(len(rows))
        if not len(good):
            return None
        samples = loaded.take(np.full(len(rows) + 1, good[0]))
        batches = slots.reshape(-1, self.plan.options.shard_batch)
        filled_by, is_filling = np.full_like(slots, len(rows)), self.plan.shard_filling(*place, shard)
        return _ShardWindow(np.append(rows, others[good[0]]), samples, batches, filled_by, is_filling)

    def _arranged(self, unit: int, shard: int, rows: RowIds, samples: Block) -> _ShardWindow:
        lengths = np.where(samples.good, samples.longest, -1)
        is_filling = self.plan.shard_filling(*divmod(unit, self.plan.windows_per_epoch), shard)
        return _ShardWindow(rows, samples, *self.plan.arrange(lengths, rows), is_filling)


class PackedSteps(WindowedSteps):
    """Batches of packed rows without a length index. Bad rows need no stand-ins: they are not packed."""

    plan: PackedWindows  # type: ignore[assignment]

    def rows(self, epoch: int, step: int, resolved: bool = False) -> RowIds:
        """The row ids of a step of this rank, packed row by packed row, int64; tokenises the step's window."""
        return np.concatenate(self.packs(epoch, step))

    def packs(self, epoch: int, step: int) -> list[RowIds]:
        """The row ids in each packed row of a step of this rank."""
        with self._lock:
            return [window.rows[places] for window, places in self._places(epoch * self.steps_per_epoch + step)]

    def _samples(self, step: int) -> Any:
        found = [window.samples.take(places) for window, places in self._places(step)]
        epoch, inside = divmod(step, self.steps_per_epoch)
        unit, at = self._window_of(epoch, inside)
        steps = self.plan.steps_in(self.plan.locate(inside)[0])
        if at + 1 == steps:  # a window is counted with its last step: once an epoch, wherever a run was resumed
            for window in self._unit(unit):
                wanted = steps * self.plan.options.shard_batch
                self._bad_rows.report.packed_window(window.batches, wanted, window.errors.values())
        return found

    @property
    def _prefetches_units(self) -> bool:
        return True

    def _places(self, step: int) -> list[tuple[_ShardWindow, RowIds]]:
        unit, inside = self._window_of(*divmod(step, self.steps_per_epoch))
        share = self.plan.options.shard_batch
        return [
            (window, window.batches.bins.of(number))
            for window in self._unit(unit)
            for number in range(inside * share, (inside + 1) * share)
        ]

    def _arranged(self, unit: int, shard: int, rows: RowIds, samples: Block) -> _ShardWindow:
        good = np.flatnonzero(samples.good)
        if not len(good):
            raise NoUsableRowsError("no good row")
        kept = samples.take(good)
        packs: Fitted = self.plan.pack(kept.totals, *divmod(unit, self.plan.windows_per_epoch), shard)
        return _ShardWindow(rows[good], kept, packs)
