"""Steps with a length index: each step loads its own rows, and all ranks pad it alike."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import StateError
from ms_prefstream.plan.budget import BudgetPlan
from ms_prefstream.plan.indexed import IndexedPlan
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.runtime.ledger import Ledger
from ms_prefstream.runtime.loader import Loaded
from ms_prefstream.runtime.steps import Batch, Load
from ms_prefstream.tasks.sample import Sample

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
        ledger: Ledger,
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
