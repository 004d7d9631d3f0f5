"""Records in one pass, of one source or of a mix, and the window of them that is in memory."""

from __future__ import annotations

import copy
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from ms_prefstream.errors import OptionError, RowError, SourceError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.formats.base import Format
from ms_prefstream.formats.record import Record
from ms_prefstream.load.records import part_reports
from ms_prefstream.plan.mixture import Mixture, Schedule, whole_weights
from ms_prefstream.report.report import PartReport
from ms_prefstream.sample import Ready
from ms_prefstream.sources.base import RandomAccess, RawPass, Source, no_rows, skip_items
from ms_prefstream.sources.concat import begin_pass
from ms_prefstream.sources.content_hash import rows_hash
from ms_prefstream.sources.mix import Mix

ROWS_CHECKED = 8
"""Rows after a position by which it is checked, at most."""

RecordWithOrigin: TypeAlias = tuple[str, Any, Record | Ready | RowError]


class Position(NamedTuple):
    """Where a source with a state of its own says that it stands.

    Attributes:
        first: The number of the next record.
        state: What the source's `state_dict` returned.
        rows: The number of rows after the position that `digest` covers.
        digest: A hash of these raw rows, by which the position is checked when a run resumes; "" in a state that an
            earlier version saved.
    """

    first: int
    state: Any
    rows: int = 0
    digest: str = ""


class PassWindow:
    """The records of one pass by position in the epoch; only those of the current window are kept.

    Args:
        one_pass: The records.
        window_rows: Rows of a window of the plan; 1 where windows differ in size. `read` is then called once with all
            rows of a window, and drops only what precedes the first of them.
        first: Position of the first record that `read` will be called with: the beginning of a window.
        before: Records of earlier epochs, for sources that continue over epochs.
        known: A position of the source at or before the first record, or None.
        passed: Called with the source's position at the beginning of each window, if it has a state of its own.
    """

    def __init__(
        self,
        one_pass: OnePassRecords,
        window_rows: int,
        first: int,
        before: int = 0,
        known: Position | None = None,
        passed: Callable[[Position], None] = lambda position: None,
    ) -> None:
        self._one_pass = one_pass
        self._passed = passed
        self._window_rows = window_rows
        self._kept: dict[int, RecordWithOrigin] = {}
        self._first = self._next = first
        self.before = before
        self._records = one_pass.start(before + first, known)

    def __len__(self) -> int:
        return self._next

    def read(self, rows: Sequence[int]) -> list[Record | Ready | RowError]:
        """Returns the records at these positions, all of one window.

        Raises:
            SourceError: The source ends before them.
        """
        begin = min(rows) // self._window_rows * self._window_rows
        for position in [position for position in self._kept if position < begin]:
            del self._kept[position]
        last = max(rows)
        stands = None
        if self._next <= begin:
            self._take(begin, begin)
            # Before its first record the pass has not begun: the position is that of an earlier pass.
            stands = self._one_pass.position() if self._next > self._first else None
        self._take(last + 1, begin)
        if stands is not None and stands.first == self.before + begin < self.before + self._next:
            ahead = [self._kept[row][1] for row in range(begin, min(begin + ROWS_CHECKED, self._next))]
            self._passed(stands._replace(rows=len(ahead), digest=rows_hash(ahead)))
        if self.before + self._next == 0:
            raise no_rows(self._one_pass.name, self._one_pass.ended())
        if self._next <= last:
            raise SourceError(
                f"{self._one_pass.name} ended after {self.before + self._next} rows{self._one_pass.ended()}, but the "
                f"plan needs row {self.before + last + 1}. The source gave fewer rows than before, or steps_per_epoch "
                "is larger than it allows; lower it."
            )
        return [self._kept[row][2] for row in rows]

    def _take(self, until: int, begin: int) -> None:
        """Read up to a position and keep the records of the window that begins at `begin`."""
        for found in itertools.islice(self._records, max(0, until - self._next)):
            if self._next >= begin:
                self._kept[self._next] = found
            self._next += 1

    def origin(self, row: int) -> str:
        return self._kept[row][0]

    def raw(self, row: int) -> Any:
        return self._kept[row][1]


def records_of(rows: Iterator[tuple[str, Any]], fmt: Format) -> Iterator[RecordWithOrigin]:
    """Yields (origin, raw row, record) for each record of a pass."""
    many = hasattr(fmt, "count")
    for origin, raw in rows:
        if isinstance(raw, (RowError, Ready)):
            yield origin, None, raw
            continue
        try:
            found = fmt(raw)
        except RowError as error:
            yield origin, raw, error.as_value()
            continue
        if not many:
            yield origin, raw, found  # type: ignore[misc]  # one record
        else:
            records: Sequence[Record] = found  # type: ignore[assignment]  # a tuple of records
            for index, record in enumerate(records, 1):
                yield f"{origin}#{index}" if len(records) > 1 else origin, raw, record


_BLOCK = 1024  # positions whose parts are computed together


class OnePassRecords(Protocol):
    """Records that can only be read in one pass, from first to last."""

    @property
    def name(self) -> str:
        """The source's name, for people."""

    @property
    def continues(self) -> bool:
        """Whether an epoch continues where the previous one ended, instead of starting again."""

    def start(self, first: int, known: Position | None = None) -> Iterator[RecordWithOrigin]:
        """Yields the records from number `first` on; earlier ones are not formatted nor, if possible, parsed.

        Args:
            first: Number of the first record.
            known: A result of `position` at or before it, to continue from.
        """

    def position(self) -> Position | None:
        """Returns the source's own state after the latest record; None if the source has none."""

    def count(self) -> int:
        """Returns the number of records of an epoch; reads all of them unless the source states the number."""

    def ended(self) -> str:
        """Returns why the last pass ended, as the end of a sentence, or an empty string."""


def open_one_pass(
    source: Any, formats: Sequence[Format], warn: Callable[[str], None] = lambda problem: None
) -> SingleOnePassRecords | MixedOnePassRecords:
    """Returns the records of a mix or of any other source, in one pass.

    Args:
        source: A mix or an opened source.
        formats: The format of each part; a single one where there are no parts.
        warn: Called with what the user should hear about.
    """
    if isinstance(source, Mix):
        return MixedOnePassRecords(source, formats)
    return SingleOnePassRecords(source, formats[0], warn)


class SingleOnePassRecords:
    """The records of one source.

    Args:
        source: The source; one with random access is read in order.
        fmt: Raw row to records.
        warn: Called with what the user should hear about.

    Attributes:
        name: The source's name.
        continues: Whether the source gives each row once over all epochs (`mps.follow`).
        once: Whether the source can be read only once, so that its rows can be neither counted nor probed first.
        ends_by_time: Whether the data end with a timeout, so that ranks would not end at the same row.
    """

    def __init__(self, source: Source, fmt: Format, warn: Callable[[str], None] = lambda problem: None) -> None:
        self.name = source.name
        self.continues = bool(getattr(source, "continues", False))
        self.once = bool(getattr(source, "once", False))
        self.ends_by_time = bool(getattr(source, "ends_by_time", False))
        self._source, self._format, self._warn = source, fmt, warn

    def start(self, first: int, known: Position | None = None) -> Iterator[RecordWithOrigin]:
        """See `OnePassRecords`.

        Raises:
            SourceError: There are fewer records; raised by the first `next`.
        """
        if known is None:
            skipped, records = self.begin(first)
        else:
            skipped, rows = self._resumed(known)
            skipped += skip_items(rows, first - known.first)
            records = records_of(rows, self._format)
        if skipped < first:
            why = "The data got shorter since the position was saved: restore it, or start a new run."
            if self.continues:
                why = (
                    "It gives each row once in all epochs together: train fewer epochs or steps, or pass the finished "
                    "files as a plain source to train on their rows again."
                )
            raise SourceError(
                f"{self.name}: {first} rows were to be skipped, but there are only {skipped}{self.ended()}. {why}"
            )
        yield from records

    def position(self) -> Position | None:
        """See `OnePassRecords`. None for formats that make several records of a row: a state lies between rows."""
        if hasattr(self._format, "count"):
            return None
        state = _state_of(self._source)
        row = state.get("row") if isinstance(state, dict) else None
        return Position(row, state) if isinstance(row, int) else None

    def _resumed(self, known: Position) -> tuple[int, RawPass]:
        """Returns the number of rows before a position, and the raw rows from it on.

        The state of the source is used only if the rows that follow are those of the saved digest. `IterableDataset`
        behind ``map``, for instance, may state a position hundreds of rows ahead. Otherwise rows are skipped by
        number: in a copy from before the state was loaded, or in the source, set back to the state that it had then.
        """
        source, first = self._source, known.first
        by_number = f"The run resumes by skipping {first:,} rows."
        copies, began = [_copied(source), _copied(source)], _state_of(source)
        if not known.digest:
            self._warn(f"{self.name}: a position that an earlier version saved is not used. {by_number}")
            return begin_pass(source, first)
        if (rows := _checked(known, source, known.state, 0)) is not None:
            return first, rows
        for self._source, state in ((copies[0], None), (source, began)):
            if (rows := _checked(known, self._source, state, first)) is not None:
                self._warn(f"{self.name}: other rows follow the position that it saved. {by_number}")
                return first, rows
        self._warn(
            f"{self.name} does not give the rows again that it gave when the state was saved. {by_number} Make its "
            "order reproducible, or start a new run."
        )
        self._source = copies[1]
        return begin_pass(self._source, first)

    def begin(self, skip: int) -> tuple[int, Iterator[RecordWithOrigin]]:
        """Returns how many records were skipped, at most `skip`, and the records after them."""
        many = hasattr(self._format, "count")  # rows may give any number of records
        skipped, rows = begin_pass(self._source, 0 if many else skip)
        records = records_of(rows, self._format)
        return skip_items(records, skip) if many else skipped, records

    def count(self) -> int:
        """See `OnePassRecords`.

        Raises:
            OptionError: The source can be read only once.
        """
        known = getattr(self._source, "rows", None)
        many = hasattr(self._format, "count")
        if isinstance(known, int) and not many:
            return known
        if isinstance(self._source, RandomAccess) and not many:
            return len(self._source)
        if self.once:
            raise OptionError(
                f"{self.name} can be read only once, so its rows cannot be counted first. Pass steps_per_epoch=<n>, a "
                "list, or a function that returns a new iterator each time."
            )
        return self.begin(sys.maxsize)[0]

    def fingerprint(self) -> str:
        """Returns the fingerprint of the source."""
        return self._source.fingerprint()

    def ended(self) -> str:
        """See `OnePassRecords`."""
        return str(getattr(self._source, "ended", ""))


def _state_of(source: Any) -> Any:
    """Returns a source's own state; None if it has none or fails, as the code behind it belongs to somebody else."""
    try:
        return source.state_dict()
    except Exception:
        return None


def _copied(source: Source) -> Source:
    """Returns a shallow copy of a source, or the source if it cannot be copied."""
    try:
        return copy.copy(source)
    except Exception:
        return source


def _checked(known: Position, source: Any, state: Any, skip: int) -> RawPass | None:
    """Returns the rows of a source after loading a state and skipping rows; None unless they fit the saved digest."""
    try:
        if state is not None:
            source.load_state_dict(state)
        _, rows = begin_pass(source, skip)
        ahead = list(itertools.islice(rows, known.rows))
    except Exception:
        return None
    fits = rows_hash(row for _, row in ahead) == known.digest
    return itertools.chain(ahead, rows) if fits else None


class MixedOnePassRecords:
    """The records of a mix in one pass, in the order of its schedule.

    Args:
        mix: The parts. Those with random access are read in their order.
        formats: The format of each part.

    Attributes:
        name: The mix's name.
        continues: Whether a part gives each row once over all epochs. The mix is then one long pass: with
            ``stop="all"`` its other parts start again when they end.
        once: Whether a part can be read only once.
        ends_by_time: Whether a part ends with a timeout.
        weights: Whole numbers in proportion to the shares.
        stop: The mix's.
    """

    def __init__(self, mix: Mix, formats: Sequence[Format]) -> None:
        self.name = mix.name
        self.stop = mix.stop
        self.weights = whole_weights(mix.weights(None))
        self._schedule = Schedule(self.weights)
        self._names = [part.name for part in mix.parts]
        self._parts = [SingleOnePassRecords(part.source, fmt) for part, fmt in zip(mix.parts, formats, strict=True)]
        self.continues = any(part.continues for part in self._parts)
        self.once = any(part.once for part in self._parts)
        self.ends_by_time = any(part.ends_by_time for part in self._parts)
        self._sizes: list[int] | None = None

    def position(self) -> Position | None:
        """Returns None: each part of a mix has a position of its own, so a resumed run skips rows."""
        return None

    def start(self, first: int, known: Position | None = None) -> Iterator[RecordWithOrigin]:
        """See `OnePassRecords`. With ``stop="first"`` it ends when a part has no row left, else never.

        Raises:
            SourceError: A part cannot be read, or not a second time; raised by `next`.
        """
        skips = self._schedule.counts(first)
        feeds = [self._feed(part, skip) for part, skip in zip(self._parts, skips, strict=True)]
        for block in itertools.count(first // _BLOCK):
            for part in self._turns(block)[max(0, first - block * _BLOCK) :]:
                found = next(feeds[part], None)
                if found is None:
                    return
                yield found

    def count(self) -> int:
        """See `OnePassRecords`."""
        self._sizes = [part.count() for part in self._parts]
        for name, size in zip(self._names, self._sizes, strict=True):
            if size == 0:
                raise SourceError(f"{name}, a part of the mix, has no rows. Leave it out, or check its path.")
        return self._mixture(self._sizes).rows

    def part_of(self, position: int) -> int:
        """Returns the part of a position, counted from the beginning of the run if the mix `continues`."""
        return self._turns(position // _BLOCK)[position % _BLOCK]

    def fingerprint(self) -> str:
        """Returns a hash of the parts' fingerprints in their order."""
        return hash_of([part.fingerprint().encode() for part in self._parts])

    def ended(self) -> str:
        """See `OnePassRecords`."""
        return next(filter(None, (part.ended() for part in self._parts)), "")

    def reports(self, positions: int) -> dict[str, PartReport]:
        """Returns a fresh report of each part; see `MixedRecords.reports`."""
        sizes = self._sizes
        mixture = None if sizes is None else self._mixture(sizes)
        return part_reports(self._names, sizes or [None] * len(self._names), self.weights, positions, mixture)

    def _mixture(self, sizes: Sequence[int]) -> Mixture:
        return Mixture(sizes=tuple(sizes), weights=self.weights, stop=self.stop)

    def _feed(self, part: SingleOnePassRecords, skip: int) -> Iterator[RecordWithOrigin]:
        """Yields a part's records after the first `skip`; ``stop="all"`` repeats them unless the part continues."""
        if self.stop == "first" or part.continues:
            yield from part.start(skip)
            return
        while True:
            skipped, records = part.begin(skip)
            skip -= skipped
            first = next(records, None)
            if first is None and not skipped:
                raise SourceError(f"{part.name}, a part of the mix, has no rows. Leave it out, or check its path.")
            if first is not None:
                yield first
                yield from records

    @functools.lru_cache(maxsize=16)  # noqa: B019 - it lives as long as the run
    def _turns(self, block: int) -> list[int]:
        turns: list[int] = self._schedule.locate(np.arange(block * _BLOCK, (block + 1) * _BLOCK))[0].tolist()
        return turns
