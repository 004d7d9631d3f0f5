"""Raw rows through a format: random access to records, errors in the place of bad rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ms_prefstream.errors import RowError
from ms_prefstream.formats.base import Format
from ms_prefstream.formats.record import Record
from ms_prefstream.sources.base import RandomAccess
from ms_prefstream.tasks.sample import Ready


class RecordAccess(Protocol):
    """RecordAccess by row id."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> Sequence[Record | Ready | RowError]:
        """The records with these ids; a row that cannot become one gives its `RowError`."""

    def origin(self, row: int) -> str:
        """Where a record comes from, for people."""


class FormattedRows:
    """A source and a format that gives one record for each row."""

    filtered = 0

    def __init__(self, source: RandomAccess, fmt: Format) -> None:
        self.source = source
        self.format = fmt

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: Sequence[int]) -> list[Record | Ready | RowError]:
        return [self._record(raw) for raw in self.source.read(rows)]

    def _record(self, raw: Any) -> Record | Ready | RowError:
        if isinstance(raw, (RowError, Ready)):
            return raw
        try:
            return self.format(raw)  # type: ignore[return-value]  # one record: the format has no count
        except RowError as error:
            return error

    def raw(self, row: int) -> Any:
        """The raw row, for the quarantine file; None if it cannot be parsed."""
        (found,) = self.source.read([row])
        return None if isinstance(found, RowError) else found

    def origin(self, row: int) -> str:
        return self.source.origin(row)
