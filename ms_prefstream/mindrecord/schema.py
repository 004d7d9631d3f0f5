"""The columns of a file layout, as MindRecord knows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ms_prefstream.errors import CacheError


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        dtype: ``int32``, ``int64`` or ``float32``.
        most: The most values that a row can have; how large pages must be follows from it.
        shape: ``(-1,)`` where rows have different numbers of values, ``(n,)`` where all have n, ``()`` for a number.
    """

    dtype: str
    most: int
    shape: tuple[int, ...] = (-1,)

    @property
    def bytes(self) -> float:
        """The most bytes that a value of each row takes: MindRecord adds two bits to a whole number."""
        return self.most * (np.dtype(self.dtype).itemsize + 0.25) + 16

    def schema(self) -> dict[str, Any]:
        """The column in a MindRecord schema; a number has no shape there."""
        return {"type": self.dtype, "shape": [-1]} if self.shape else {"type": self.dtype}


Columns = Mapping[str, Column]
"""Name -> column, in the layout's own order; MindRecord itself gives columns back by name."""


def row_bytes(columns: Columns) -> int:
    """The most bytes that a row can take in a file."""
    return int(sum(column.bytes for column in columns.values())) + 64


def described(columns: Columns) -> dict[str, Any]:
    """The columns as plain values for JSON."""
    return {name: {"dtype": column.dtype, "shape": list(column.shape)} for name, column in columns.items()}


_LEAST_HEADER, _LEAST_PAGE = 1 << 14, 1 << 15
_MOST_HEADER, _MOST_PAGE = 1 << 27, 1 << 28
_UNIT = 4096
_ROWS_A_PAGE = 4
_HEADER_BYTES_A_PAGE = 256  # an entry and what it says of its groups take about 195


def sizes_for(columns: Columns, rows: int) -> tuple[int, int]:
    """Header and page size in bytes for a file of at most so many rows.

    MindSpore's own sizes make 50 MB of three rows. A page must hold the largest row, and the header a line about every
    page, or the file cannot be written.
    """
    largest = row_bytes(columns)
    # Both are lost space: a page's empty end, and a line of the header for each page. Their sum is least at the root.
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
