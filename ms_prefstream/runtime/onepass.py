"""Steps from a source that can only be read from the front: the same plan, one window of rows in memory."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

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

_POSITIONS = 64  # windows that may be read ahead of the step that a state is taken for

Found: TypeAlias = tuple[str, Any, Record | Ready | RowError]
"""(origin, raw row, record)."""


class Position(NamedTuple):
    """Where a source with a state of its own stands.

    Attributes:
        first: The number of the next record.
        state: What the source's `state_dict` returned.
    """

    first: int
    state: Any


class Front(Protocol):
    """Records that can only be read from the front; see `ms_prefstream.runtime.front`."""

    name: str

    def start(self, first: int, known: Position | None = None) -> Iterator[Found]:
        """The records from number `first` on, from a position that is known at or before it."""

    def position(self) -> Position | None:
        """The source's own state behind the record given last, or None."""

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
        known: A position of the source at or before the first record, or None.
        passed: Told the source's position wherever a window begins, if it has a state of its own.
    """

    def __init__(
        self,
        front: Front,
        window_rows: int,
        first: int,
        before: int = 0,
        known: Position | None = None,
        passed: Callable[[Position], None] = lambda position: None,
    ) -> None:
        self._front = front
        self._passed = passed
        self._window_rows = window_rows
        self._kept: dict[int, Found] = {}
        self._first = self._next = first
        self.before = before
        self._records = front.start(before + first, known)

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
        if self._next <= begin:
            self._take(begin, begin)
            # Before its first record the pass has not begun, and the source stands where another one left it.
            stands = self._front.position() if self._next > self._first else None
            if stands is not None and stands.first == self.before + begin:
                self._passed(stands)
        self._take(last + 1, begin)
        if self.before + self._next == 0:
            raise no_rows(self._front.name, self._front.ended())
        if self._next <= last:
            raise SourceError(
                f"{self._front.name} ended after {self.before + self._next} rows{self._front.ended()}, but the plan "
                f"needs row {self.before + last + 1}. The source gave fewer rows than before, or steps_per_epoch is "
                "larger than it allows; lower it."
            )
        return [self._kept[row][2] for row in rows]

    def _take(self, until: int, begin: int) -> None:
        """Go on to a position, and keep what lies in the window that begins at `begin`."""
        for found in itertools.islice(self._records, max(0, until - self._next)):
            if self._next >= begin:
                self._kept[self._next] = found
            self._next += 1

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
        records: Opens a pass: (position in the epoch, records of earlier epochs, known, passed) -> records; see
            `PassRecords`.
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
        records: Callable[..., PassRecords],
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
        self._positions: deque[tuple[int, Position]] = deque(maxlen=_POSITIONS)  # (epoch, where its windows began)
        self._resumed: tuple[int, Position] | None = None

    def start(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from a step on."""
        first = self.plan.window_start(self.plan.locate(step)[0])
        before = self._before(epoch)
        known = None
        if self._resumed is not None and self._resumed[0] == epoch and self._resumed[1].first <= before + first:
            known = self._resumed[1]
        records = self._records(first, before, known, lambda position: self._positions.append((epoch, position)))
        steps = self._steps(
            self.plan, self._ranks, self._loader(records), self._ledger(records), self._collate, self.column_names
        )
        for index in range(step, self.steps_per_epoch):
            yield steps[epoch * self.steps_per_epoch + index]

    def source_state(self, step: int) -> dict[str, Any] | None:
        """The source's own state at the beginning of the window of an absolute step, or the last one known before it.

        Plain values for JSON; None where the source has no state of its own, or one that JSON cannot hold: its rows
        are skipped then.
        """
        epoch, inside = divmod(step, self.steps_per_epoch)
        first = self._before(epoch) + self.plan.window_start(self.plan.locate(inside)[0])
        known = [*self._positions] if self._resumed is None else [self._resumed, *self._positions]
        usable = [position for at, position in known if at == epoch and position.first <= first]
        if not usable:
            return None
        nearest = max(usable, key=lambda position: position.first)
        found = {"epoch": epoch, "first": nearest.first, "state": nearest.state}
        try:
            return found if json.loads(json.dumps(found)) == found else None
        except (TypeError, ValueError):
            return None

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Begin the pass of an epoch where `source_state`, which returned this, was taken."""
        self._resumed = state["epoch"], Position(state["first"], state["state"])

    def _before(self, epoch: int) -> int:
        """Records of earlier epochs, for sources whose epochs go on in the data."""
        return epoch * self.steps_per_epoch * self.plan.options.global_batch if self._continues else 0
