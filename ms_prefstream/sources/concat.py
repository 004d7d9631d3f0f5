"""Several sources as one, in order: what a list of files and other sources becomes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sample import Block
from ms_prefstream.sources.base import (
    RandomAccess,
    RawPass,
    RawRow,
    SkipsRows,
    Source,
    begin_parts,
    locate,
    read_blocks,
    read_parts,
    rows_in_order,
    skip_items,
    start_pass,
)


def concat(parts: Sequence[Source]) -> Source:
    """Returns one source over several: random access if all parts have it, otherwise one pass over all in order."""
    if len(parts) == 1:
        return parts[0]
    random = [part for part in parts if isinstance(part, RandomAccess)]
    return JoinedRows(random) if len(random) == len(parts) else JoinedPass(parts)


def joined_fingerprint(parts: Sequence[Source]) -> str:
    """Returns a hash of the fingerprints of several sources, in their order."""
    return hash_of([part.fingerprint().encode() for part in parts])


class JoinedRows:
    """Random-access sources whose rows are numbered consecutively."""

    def __init__(self, parts: Sequence[RandomAccess]) -> None:
        self.name = _name(parts)
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Returns the rows with these ids, in this order; each part is read once."""
        return read_parts(rows, self._bounds, self.name, lambda part, local: self.parts[part].read(local.tolist()))

    def read_block(self, rows: Sequence[int]) -> Block:
        """Returns the samples of these rows, in this order, as one block; every part is a cache."""
        parts: tuple[Any, ...] = self.parts
        return read_blocks(rows, self._bounds, self.name, lambda part, local: parts[part].read_block(local))

    def origin(self, row: int) -> str:
        """Returns where a row comes from, as its part names it."""
        part, local = locate(row, self._bounds, self.name)
        return self.parts[part].origin(local)

    def fingerprint(self) -> str:
        """Returns a hash of the parts' fingerprints in their order."""
        return joined_fingerprint(self.parts)

    @functools.cached_property
    def _bounds(self) -> NDArray[np.int64]:
        return np.cumsum([0, *map(len, self.parts)], dtype=np.int64)


class JoinedPass:
    """Sources of which at least one can only be read from the front: one pass over all, in order."""

    start = start_pass

    def __init__(self, parts: Sequence[Source]) -> None:
        self.name = _name(parts)
        self.parts = tuple(parts)

    @property
    def once(self) -> bool:
        """True if a part can be read only once."""
        return any(getattr(part, "once", False) for part in self.parts)

    def begin(self, skip: int) -> tuple[int, RawPass]:
        """Skips up to `skip` rows. Returns how many rows were skipped, and the pass over the rest."""
        return begin_parts((functools.partial(begin_pass, part) for part in self.parts), skip)

    def fingerprint(self) -> str:
        """Returns a hash of the parts' fingerprints in their order."""
        return joined_fingerprint(self.parts)


def begin_pass(source: Source, skip: int) -> tuple[int, RawPass]:
    """Skips up to `skip` rows of any source. Returns how many rows were skipped, and the pass over the rest."""
    if isinstance(source, RandomAccess):
        first = min(skip, len(source))
        return first, zip(map(source.origin, range(first, len(source))), rows_in_order(source, first), strict=True)
    if isinstance(source, SkipsRows):
        return source.begin(skip)
    rows = source.start()  # a class of the user: it does not report how many rows it skipped, so they are counted here
    return skip_items(rows, skip), rows


def _name(parts: Sequence[Source]) -> str:
    return f"{parts[0].name} and {len(parts) - 1} more sources"
