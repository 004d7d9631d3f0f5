"""`mps.read`: the raw rows of a source, before any format, tokenizer or task."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from ms_prefstream.checks import checked_call
from ms_prefstream.errors import RowError, SourceError
from ms_prefstream.sources.base import OnePass, RandomAccess, RawRow, fills_nulls, rows_in_order
from ms_prefstream.sources.cached import caches_in
from ms_prefstream.sources.copies import Remote
from ms_prefstream.sources.open import open_source


@checked_call
def read(
    source: Any,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Rows | PassedRows:
    """Returns the raw rows of a source, to inspect or to iterate over.

    Args:
        source: Anything that `ms_prefstream.stream` takes, except a mix.
        storage_options: Credentials and addresses of the store of a URL, as for `ms_prefstream.stream`.
        cache_dir: Folder of the local copies of remote files, likewise.

    Returns:
        `Rows` with a length, an index and slices where rows can be read in any order (plain JSON Lines, JSON arrays,
        Parquet, Arrow, lists, data sets); else `PassedRows`, which can only be iterated over.

    Raises:
        SourceError: It cannot be opened, holds no rows or samples instead of rows, or is of no known kind.
    """
    opened = open_source(source, Remote(storage_options=storage_options, cache_dir=cache_dir))
    if caches := caches_in(opened):
        raise SourceError(
            f"{caches[0].name} is a cache, which holds samples and no raw rows. mps.stream reads it, and ms-prefstream "
            "inspect shows its samples; for raw rows name the source that it was written from."
        )
    return Rows(opened) if isinstance(opened, RandomAccess) else PassedRows(opened)


class Rows(Sequence[RawRow]):
    """Raw rows by number.

    Access to a row that cannot be parsed raises its `RowError`, with its origin.
    """

    def __init__(self, source: RandomAccess) -> None:
        self._source = source
        self.fills_nulls = fills_nulls(source)

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, row: int) -> RawRow: ...
    @overload
    def __getitem__(self, row: slice) -> list[RawRow]: ...
    def __getitem__(self, row: int | slice) -> RawRow:
        """Returns the row of this number, counted from the end if negative; a list of rows for a slice."""
        try:
            ids = range(len(self))[row]  # negative numbers and steps as for a list
        except IndexError:
            raise IndexError(f"row {row} of {self._source.name}, which has the rows 0 to {len(self) - 1}") from None
        if isinstance(ids, range):
            return [_good(found) for found in self._source.read(ids)]
        return _good(self._source.read([ids])[0])

    def __iter__(self) -> Iterator[RawRow]:
        return map(_good, rows_in_order(self._source))

    def origin(self, row: int) -> str:
        """Returns where a row comes from: ``"data/train.jsonl:17"`` (lines count from 1)."""
        return self._source.origin(range(len(self))[row])

    def __repr__(self) -> str:
        return f"{len(self):,} rows of {self._source.name}"


class PassedRows:
    """Raw rows that can only be read from the front. Each `iter` is a new pass where the source allows another."""

    def __init__(self, source: OnePass) -> None:
        self._source = source
        self.fills_nulls = fills_nulls(source)

    def __iter__(self) -> Iterator[RawRow]:
        for origin, found in self._source.start():
            yield _good(found, origin)

    def __repr__(self) -> str:
        return f"rows of {self._source.name}, read from the front"


def _good(found: RawRow, origin: str = "") -> RawRow:
    if isinstance(found, RowError):
        raise found.at(origin)
    return found
