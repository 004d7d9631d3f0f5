"""Rows of sources that only the parent process can read: read there, and sent along with each task."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from ms_prefstream.errors import SourceError
from ms_prefstream.formats import Expanded
from ms_prefstream.load.records import MixedRecords
from ms_prefstream.sources.base import RandomAccess, RawRow
from ms_prefstream.sources.concat import JoinedRows
from ms_prefstream.sources.huggingface import HuggingFaceRows
from ms_prefstream.sources.memory import MemoryRows, OwnRows
from ms_prefstream.sources.selected import SelectedRows


def is_read_in_parent(source: Any) -> bool:
    """Returns whether the parent process must read a source: rows in memory, or a class of the user.

    Workers reopen files.
    """
    if type(source) in (JoinedRows, SelectedRows):
        return any(map(is_read_in_parent, source.parts))
    if type(source) is HuggingFaceRows:
        return not source._paths
    return type(source) in (MemoryRows, OwnRows)


class ParentRows:
    """The parent's end: reads the raw rows that a task needs.

    Attributes:
        sources: The sources that are read here; a worker knows them by their place in this list.
    """

    def __init__(self, records: Any) -> None:
        self.sources: list[RandomAccess] = []
        self._parts: list[tuple[Any, range]] = []  # the records of each source, and their row ids
        for part, first in records.parts() if isinstance(records, MixedRecords) else [(records, 0)]:
            source: Any = getattr(part, "source", None)
            if is_read_in_parent(source):
                self.sources.append(source)
                self._parts.append((part, range(first, first + len(part))))

    def read(self, rows: Sequence[int]) -> dict[int, bytes]:
        """Returns the raw rows behind these row ids, pickled, by number of their source.

        Raises:
            SourceError: A row cannot be read or pickled.
        """
        sent: dict[int, bytes] = {}
        for number, (records, ids) in enumerate(self._parts):
            local = [row - ids.start for row in rows if row in ids]
            if isinstance(records, Expanded):  # several records may come from one raw row
                local = [records.locate(row)[0] for row in local]
            if local := list(dict.fromkeys(local)):
                source = self.sources[number]
                found = zip(source.read(local), map(source.origin, local), strict=True)
                try:
                    sent[number] = pickle.dumps(dict(zip(local, found, strict=True)), protocol=5)
                except Exception as error:
                    raise SourceError(
                        f"rows of {source.name} cannot be sent to worker processes: {type(error).__name__}: {error}. "
                        "Use workers=0, or rows of plain values."
                    ) from error
        return sent


class SentRows:
    """The worker's end: stands in for a source, and holds the rows of the current task."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[RawRow, str]] = {}  # (row, origin)

    def receive(self, rows: bytes) -> None:
        """Replaces the rows by those of the next task, as `ParentRows.read` pickled them."""
        self._rows = pickle.loads(rows)

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Returns the raw rows with these ids, in this order; dicts as shallow copies, as `MemoryRows` does."""
        found = [self._rows[row][0] for row in rows]
        return [dict(row) if type(row) is dict else row for row in found]

    def origin(self, row: int) -> str:
        """Returns where a row comes from."""
        return self._rows[row][1]
