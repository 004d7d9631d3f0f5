"""What every source of raw rows looks like to the rest of the library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

RawRow: TypeAlias = Any
"""One row as the data set wrote it: normally a dict, checked by the format."""


@runtime_checkable
class RandomAccess(Protocol):
    """Rows that can be read in any order: the source of choice, since a step is then a pure function."""

    name: str

    def __len__(self) -> int:
        """The number of rows, known without reading them all."""

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """The raw rows with these ids, in this order. A row that cannot be parsed is returned as a `RowError`."""

    def origin(self, row: int) -> str:
        """Where a row comes from, for people: ``"data/train.jsonl:17"`` (lines count from 1)."""

    def fingerprint(self) -> str:
        """A short hash that changes when the data changes (size and time of files, or contents where cheap)."""


@runtime_checkable
class OnePass(Protocol):
    """Rows that can only be read from the front: compressed files, generators, streams."""

    name: str

    def start(self, skip: int = 0) -> Iterator[tuple[str, RawRow]]:
        """A pass over (origin, raw row), beginning behind the first `skip` rows without parsing them.

        A row that cannot be parsed is yielded as a `RowError` in the place of the row. A source that can be read
        only once raises `SourceError` on the second pass and names the remedy.
        """

    def fingerprint(self) -> str:
        """A short hash of what identifies the data (file names, sizes and times; the type of an iterable)."""


Source: TypeAlias = RandomAccess | OnePass
