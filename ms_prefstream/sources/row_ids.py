"""Row ids as every random-access source checks them, and groups of them that are read together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import SourceError


def as_row_ids(rows: Sequence[int], count: int, name: str) -> NDArray[np.int64]:
    """The asked rows as an array, each proven to exist.

    Args:
        rows: Row ids, in any order; an id may come twice.
        count: How many rows the source has.
        name: The source, for the error.

    Returns:
        (n,) int64.

    Raises:
        SourceError: An id is negative or not below `count`.
    """
    ids = np.asarray(rows, dtype=np.int64)
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= count):
        wrong = int(ids[(ids < 0) | (ids >= count)][0])
        raise SourceError(
            f"{name}: row {wrong} was asked for, but there are {count} rows (ids 0 to {count - 1}). "
            "The data may have changed since the order was planned: start a new run, or restore the data."
        )
    return ids


def by_part(ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Split asked rows by the part (file, row group, source) they lie in.

    Args:
        ids: (n,) int64, row ids in the asked order.
        bounds: (parts + 1,) int64, first row id of each part; the last entry is the number of rows.

    Yields:
        A part with rows, and (k,) positions into `ids`, sorted by row id.
    """
    order = np.argsort(ids, kind="stable")
    if bounds.size == 2 and ids.size:  # the usual case, a single part, at half the cost
        yield 0, order
        return
    parts = np.searchsorted(bounds, ids[order], side="right") - 1
    cuts = np.flatnonzero(np.diff(parts)) + 1
    for positions in np.split(order, cuts):
        if positions.size:
            yield int(np.searchsorted(bounds, ids[positions[0]], side="right")) - 1, positions
