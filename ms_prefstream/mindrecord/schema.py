"""Columns of a MindRecord file, and the sizes of header and pages that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ms_prefstream.errors import CacheError

BYTES = "bytes"
VALUES = {BYTES: "uint8"}
"""Dtypes of columns that numpy calls otherwise."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        dtype: ``int32``, ``int64``, ``float32``, or ``bytes`` for strings of bytes.
        most: The most values that a row can have; decides how large pages are.
        shape: ``(-1,)`` where rows have different numbers of values, ``(n,)`` where all have n, ``()`` for a number.
    """

    dtype: str
    most: int
    shape: tuple[int, ...] = (-1,)

    @property
    def values(self) -> np.dtype[Any]:
        """The dtype of an array of its values."""
        return np.dtype(VALUES.get(self.dtype, self.dtype))

    @property
    def bytes(self) -> float:
        """The most bytes that the values of a row take: MindRecord adds two bits to a whole number."""
        return self.most * (self.values.itemsize + 0.25) + 16

    def schema(self) -> dict[str, Any]:
        """Returns the column in a MindRecord schema; a number, and a string of bytes, has no shape there."""
        return {"type": self.dtype, "shape": [-1]} if self.shape and self.dtype != BYTES else {"type": self.dtype}


Columns = Mapping[str, Column]
"""Name -> column, in the layout's own order; MindRecord sorts columns by name."""

_LEAST_HEADER, _LEAST_PAGE = 1 << 14, 1 << 15
_MOST_HEADER, _MOST_PAGE = 1 << 27, 1 << 28
_UNIT = 4096
_ROWS_A_PAGE = 4
_HEADER_BYTES_A_PAGE = 256  # an entry with its groups takes about 195


def sizes_for(columns: Columns, rows: int) -> tuple[int, int]:
    """Returns header and page size in bytes for a file of at most `rows` rows.

    MindSpore's default sizes make 50 MB of three rows. A page must hold the largest row, and the header an entry for
    every page, or the file cannot be written.

    Raises:
        CacheError: A row may be too large for any page.
    """
    largest = int(sum(column.bytes for column in columns.values())) + 64
    # Wasted are a page's empty end and the header's entry for each page. Their sum is least at the square root.
    page = _power(max(_ROWS_A_PAGE * largest, math.isqrt(2 * _HEADER_BYTES_A_PAGE * rows * largest)), _LEAST_PAGE)
    if page > _MOST_PAGE:
        page = _power(largest, _LEAST_PAGE)
    if page > _MOST_PAGE:
        raise CacheError(
            f"a row can take {largest:,} bytes in a MindRecord file, and {_MOST_PAGE:,} is the most that fits into one "
            "of its pages. Lower the task's length, or that of Pad."
        )
    pages = rows * largest // (page - largest + 1) + rows * 16 // page + 8
    header = -(-(_LEAST_HEADER // 2 + pages * _HEADER_BYTES_A_PAGE) // _UNIT) * _UNIT
    return min(max(header, _LEAST_HEADER), _MOST_HEADER), page


def _power(value: int, least: int) -> int:
    return max(least, 1 << (value - 1).bit_length())
