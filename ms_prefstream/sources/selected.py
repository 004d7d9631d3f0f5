"""Some rows of a source as a source: by a list of their numbers, or in one pass by asking each row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ms_prefstream.fingerprint import hash_of
from ms_prefstream.plan.indexed import UsableRows
from ms_prefstream.sources.base import OnePass, RandomAccess, RawPass, RawRow, as_row_ids, start_pass
from ms_prefstream.sources.concat import begin_pass
from ms_prefstream.sources.read import Rows


class SelectedRows:
    """Some rows of a source with random access, in its order. They keep their origins.

    It has a length and an index like `ms_prefstream.read` of it, too.

    Args:
        source: All rows.
        kept: The numbers of the rows.
        name: Name in messages.
        selection: What selects them; part of the fingerprint.
    """

    def __init__(self, source: RandomAccess, kept: UsableRows, name: str, selection: str) -> None:
        self.name, self.selection = name, selection
        self.parts = (source,)
        self._kept = kept

    def __len__(self) -> int:
        return self._kept.count

    def __getitem__(self, row: int | slice) -> RawRow:
        return Rows(self)[row]

    def __iter__(self) -> Iterator[RawRow]:
        return iter(Rows(self))

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Returns the rows with these ids, in this order."""
        return self.parts[0].read(self._kept.ids(as_row_ids(rows, len(self), self.name)).tolist())

    def origin(self, row: int) -> str:
        """Returns where a row comes from, as the source of all rows names it."""
        return self.parts[0].origin(int(self._kept.ids(np.array([row]))[0]))

    def fingerprint(self) -> str:
        """Returns a hash of the source's fingerprint and of what selects the rows."""
        return hash_of([self.parts[0].fingerprint().encode(), self.selection.encode()])

    def __repr__(self) -> str:
        return f"{len(self):,} rows: {self.name}"


class SelectedPass:
    """Some rows of a source that can only be read from the front.

    A pass reads all rows, also those that it skips. Attributes of the source that describe its passes are its own.

    Args:
        source: All rows.
        keeps: Returns whether a raw row is one of them.
        name: Name in messages.
        selection: What selects them; part of the fingerprint.
    """

    start = start_pass

    def __init__(self, source: OnePass, keeps: Callable[[RawRow], bool], name: str, selection: str) -> None:
        self.name, self.selection = name, selection
        self.parts = (source,)
        self._keeps = keeps

    @property
    def once(self) -> bool:
        """True if the source can be read only once."""
        return bool(self._of_source("once", False))

    @property
    def continues(self) -> bool:
        """True if the source gives each row once over all epochs."""
        return bool(self._of_source("continues", False))

    @property
    def ends_by_time(self) -> bool:
        """True if a timeout ends the source."""
        return bool(self._of_source("ends_by_time", False))

    @property
    def ended(self) -> str:
        """Why the last pass ended, in brackets, or an empty string."""
        return str(self._of_source("ended", ""))

    def begin(self, skip: int) -> tuple[int, RawPass]:
        """Skips up to `skip` of the selected rows. Returns how many were skipped, and the pass over the rest."""
        rows = ((origin, row) for origin, row in begin_pass(self.parts[0], 0)[1] if self._keeps(row))
        skipped = sum(1 for _ in itertools.islice(rows, skip))
        return skipped, rows

    def fingerprint(self) -> str:
        """Returns a hash of the source's fingerprint and of what selects the rows."""
        return hash_of([self.parts[0].fingerprint().encode(), self.selection.encode()])

    def _of_source(self, name: str, default: Any) -> Any:
        return getattr(self.parts[0], name, default)
