"""Steps from a source that can only be read from the front: the same plan, one window of rows in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from ms_prefstream.errors import RowError, SourceError
from ms_prefstream.formats.base import Format
from ms_prefstream.formats.record import Record
from ms_prefstream.plan.packed_windows import PackedWindows
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.windowed import WindowedPlan
from ms_prefstream.runtime.ledger import Ledger
from ms_prefstream.runtime.packed import PackedSteps
from ms_prefstream.runtime.steps import Batch, WindowedSteps
from ms_prefstream.sources.passes import no_rows
from ms_prefstream.tasks.sample import Ready

Found: TypeAlias = tuple[str, Any, Record | Ready | RowError]
"""(origin, raw row, record)."""


class Front(Protocol):
    """Records that can only be read from the front; see `ms_prefstream.runtime.front`."""

    name: str

    def start(self, first: int) -> Iterator[Found]:
        """The records from number `first` on."""

    def ended(self) -> str:
        """Why the last pass ended, as the end of a sentence; empty if there is nothing to say."""


class PassRecords:
    """Records of one pass, by position in the epoch; those of the window in hand are kept, earlier ones are gone.

    Args:
        front: Where the records come from.
        window_rows: Rows of a window of the plan; 1 where windows differ in size. `read` is then asked for all rows of
            a window in one call, and only what stands before the first of them is gone.
        first: Position of the first record that will be asked for, a window's beginning.
        before: Records of earlier epochs, for sources whose epochs go on in the data.
    """

    def __init__(self, front: Front, window_rows: int, first: int, before: int = 0) -> None:
        self._front = front
        self._window_rows = window_rows
        self._kept: dict[int, Found] = {}
        self._next = first
        self.before = before
        self._records = front.start(before + first)

    def __len__(self) -> int:
        return self._next

    def read(self, rows: Sequence[int]) -> list[Record | Ready | RowError]:
        """The records at these positions, all of one window.

        Raises:
            SourceError: If the source ends before them.
        """
        begin = min(rows) // self._window_rows * self._window_rows
        for position in [position for position in self._kept if position < begin]:
            del self._kept[position]
        last = max(rows)
        for found in itertools.islice(self._records, max(0, last + 1 - self._next)):
            if self._next >= begin:
                self._kept[self._next] = found
            self._next += 1
        if self.before + self._next == 0:
            raise no_rows(self._front.name)
        if self._next <= last:
            raise SourceError(
                f"{self._front.name} ended after {self.before + self._next} rows{self._front.ended()}, but the plan "
                f"needs row {self.before + last + 1}. The source gave fewer rows than before, or steps_per_epoch is "
                "larger than it allows; lower it."
            )
        return [self._kept[row][2] for row in rows]

    def origin(self, row: int) -> str:
        return self._kept[row][0]

    def raw(self, row: int) -> Any:
        return self._kept[row][1]


def records_of(rows: Iterator[tuple[str, Any]], fmt: Format) -> Iterator[Found]:
    """(origin, raw row, record) for each record of a pass."""
    many = hasattr(fmt, "count")
    for origin, raw in rows:
        if isinstance(raw, (RowError, Ready)):
            yield origin, None, raw
            continue
        try:
            found = fmt(raw)
        except RowError as error:
            yield origin, raw, error
            continue
        if not many:
            yield origin, raw, found  # type: ignore[misc]  # one record
        else:
            records: Sequence[Record] = found  # type: ignore[assignment]  # a tuple of records
            for index, record in enumerate(records, 1):
                yield f"{origin}#{index}" if len(records) > 1 else origin, raw, record


class OnePassSteps:
    """The batches of one rank, epoch by epoch, from the front.

    Every rank reads all rows and uses its share; resuming skips rows without formatting or tokenising them.

    Args:
        plan: Made with ``one_pass=True``, so that a window's rows stand together in the source.
        ranks: Whose share of it.
        records: Opens a pass: (position in the epoch, records of earlier epochs) -> records.
        continues: Whether an epoch goes on in the data where the one before ended.
        loader: Makes the loader of a pass.
        ledger: Makes the ledger of a pass.
        collate: Samples, or packs of them, to a batch.
        column_names: The names of the arrays `collate` gives.
        steps: Makes the random access to the steps of a pass.
    """

    def __init__(
        self,
        plan: WindowedPlan | PackedWindows,
        ranks: Ranks,
        records: Callable[[int, int], PassRecords],
        continues: bool,
        loader: Callable[[PassRecords], Any],
        ledger: Callable[[PassRecords], Ledger],
        collate: Callable[[Any], Batch],
        column_names: Sequence[str],
        steps: Callable[..., WindowedSteps | PackedSteps] = WindowedSteps,
    ) -> None:
        self.plan = plan
        self.column_names = list(column_names)
        self.steps_per_epoch = plan.steps_per_epoch
        self._ranks = ranks
        self._records = records
        self._continues = continues
        self._loader = loader
        self._ledger = ledger
        self._collate = collate
        self._steps = steps

    def start(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from a step on."""
        first = self.plan.window_start(self.plan.locate(step)[0])
        before = epoch * self.steps_per_epoch * self.plan.options.global_batch if self._continues else 0
        records = self._records(first, before)
        steps = self._steps(
            self.plan, self._ranks, self._loader(records), self._ledger(records), self._collate, self.column_names
        )
        for index in range(step, self.steps_per_epoch):
            yield steps[epoch * self.steps_per_epoch + index]
