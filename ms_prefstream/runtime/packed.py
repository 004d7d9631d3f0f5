"""Steps of packed rows without a length index: a window is tokenised, packed, and dealt out to its steps."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import NoUsableRowsError
from ms_prefstream.plan.packed_windows import PackedWindows, WindowPacks
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.runtime.loader import Loaded
from ms_prefstream.runtime.steps import WINDOWS_KEPT, Batch, Load
from ms_prefstream.tasks.sample import Sample


class PackLedger(Protocol):
    """What a `Ledger` does for packed windows."""

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
    packs: WindowPacks


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
