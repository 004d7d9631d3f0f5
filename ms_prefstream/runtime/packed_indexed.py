"""Steps of packed rows with a length index: each step loads the rows of its own packs."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import StateError
from ms_prefstream.plan.packed import PackedPlan
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.runtime.ledger import Ledger
from ms_prefstream.runtime.loader import Loaded
from ms_prefstream.runtime.packed import sample_tokens
from ms_prefstream.runtime.steps import Batch, Load
from ms_prefstream.tasks.sample import Sample

STEPS_KEPT = 4  # two iterators that are interleaved, and a step that is looked at again


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
        ledger: Ledger,
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
