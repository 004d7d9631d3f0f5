"""How large the header and the pages of a MindRecord file are."""

from __future__ import annotations

import math

from ms_prefstream.cache.columns import Columns, row_bytes
from ms_prefstream.errors import CacheError

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
