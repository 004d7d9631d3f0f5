"""How many rows each verdict concerns: for reports and for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import Reason
from ms_prefstream.lengths.verdict import REASONS

FIRST_ROWS = 5  # per reason, as in `stream.report`


class VerdictCount(NamedTuple):
    """Bad rows of one reason.

    Attributes:
        reason: Why they do not become samples.
        rows: How many there are.
        share: Their share of all rows, 0 to 1.
        first: The ids of the first few.
    """

    reason: Reason
    rows: int
    share: float
    first: tuple[int, ...]


def count_verdicts(verdict: NDArray[np.uint8]) -> tuple[VerdictCount, ...]:
    """The bad rows by reason, most frequent first, then by the reasons' numbers.

    Args:
        verdict: (N,) uint8.
    """
    counts = np.bincount(verdict, minlength=256)
    found = [
        VerdictCount(
            reason,
            int(counts[code]),
            int(counts[code]) / len(verdict),
            tuple(np.flatnonzero(verdict == code)[:FIRST_ROWS].tolist()),
        )
        for code, reason in sorted(REASONS.items())
        if counts[code]
    ]
    return tuple(sorted(found, key=lambda one: -one.rows))


def summary_text(counts: Sequence[VerdictCount], rows: int, origin: Callable[[int], str] = "row {}".format) -> str:
    """The counts as lines of text: ``too_long: 12 (0.60 %), first at train.jsonl:7, train.jsonl:31``."""
    dropped = sum(one.rows for one in counts)
    lines = [f"rows in the length index {rows:,}, dropped {dropped:,} ({100 * dropped / max(1, rows):.2f} %)"]
    for one in counts:
        lines.append(
            f"  {one.reason}: {one.rows:,} ({100 * one.share:.2f} %), first at {', '.join(map(origin, one.first))}"
        )
    return "\n".join(lines)
