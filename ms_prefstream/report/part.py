"""What happened to the rows of one part of a mix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ms_prefstream.errors import RowError


@dataclass
class PartReport:
    """Counts of one part, like those of the whole `Report`.

    Attributes:
        share: Its share of the rows of an epoch, 0 to 1.
        rows: Rows of its source, None when unknown.
        read: Distinct rows that were read so far.
        dropped: Distinct dropped rows by reason.
        repeats_per_epoch: Rows of an epoch that come again because the part is shorter than its share
            (``stop="all"``).
        left_out_per_epoch: Rows that an epoch does not come to because the part is longer than its share
            (``stop="first"``), None when unknown.
    """

    share: float
    rows: int | None = None
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repeats_per_epoch: int = 0
    left_out_per_epoch: int | None = None

    def count(self, error: RowError | None) -> None:
        """Count a row that is new to the report, and why it was dropped if it was."""
        self.read += 1
        if error is not None:
            self.dropped[str(error.reason)] += 1

    def known(self, counts: Iterable[tuple[str, int]]) -> None:
        """Take over what a length index knows: (reason, rows) of the rows it leaves out."""
        for reason, rows in counts:
            self.read += rows
            self.dropped[reason] = rows

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {**vars(self), "dropped": dict(self.dropped)}

    def __str__(self) -> str:
        total = "" if self.rows is None else f" of {self.rows:,}"
        text = f"share {100 * self.share:.1f} %, rows read {self.read:,}{total}, dropped {sum(self.dropped.values()):,}"
        if self.dropped:
            text += f" ({', '.join(f'{reason} {count:,}' for reason, count in self.dropped.most_common())})"
        if self.repeats_per_epoch:
            text += f", repeated an epoch {self.repeats_per_epoch:,}"
        if self.left_out_per_epoch:
            text += f", left out an epoch {self.left_out_per_epoch:,}"
        return text
