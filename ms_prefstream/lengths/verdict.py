"""What became of a row, as one byte: 0 for a good row, else the number of its `Reason`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import Reason

GOOD = 0

# Written into files: a number is never given to another reason, and a new reason gets a new number.
CODES: dict[Reason, int] = {
    Reason.BAD_JSON: 1,
    Reason.MISSING_FIELD: 2,
    Reason.BAD_TYPE: 3,
    Reason.UNKNOWN_ROLE: 4,
    Reason.SPECIAL_TOKEN: 5,
    Reason.HISTORY_DIFFERS: 6,
    Reason.AMBIGUOUS_FORMAT: 7,
    Reason.ROW_TOO_LARGE: 8,
    Reason.TEMPLATE_REFUSED: 9,
    Reason.IDENTICAL: 64,
    Reason.TIE: 65,
    Reason.EMPTY_RESPONSE: 66,
    Reason.NO_RESPONSE_TOKENS: 67,
    Reason.IDENTICAL_AFTER_TRUNCATION: 68,
    Reason.TOO_LONG: 69,
}
REASONS = {code: reason for reason, code in CODES.items()}

_MALFORMED = np.array([code in REASONS and REASONS[code].malformed for code in range(256)])


def first_malformed(verdict: NDArray[np.uint8]) -> int | None:
    """The first row whose verdict is one that `on_bad_row` decides about; None if there is none.

    Args:
        verdict: (N,) uint8.
    """
    rows = np.flatnonzero(_MALFORMED[verdict])
    return int(rows[0]) if rows.size else None
