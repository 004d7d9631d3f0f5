"""The length index in memory: what each row's sides measure and what became of it, mapped from its file."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.lengths.summary import VerdictCount, count_verdicts, summary_text
from ms_prefstream.lengths.verdict import GOOD, first_malformed
from ms_prefstream.sources.files import hash_of


@dataclass(frozen=True, kw_only=True, eq=False)
class LengthIndex:
    """Token lengths and verdicts of all rows. The arrays are mapped: they take memory only while they are looked at.

    Attributes:
        path: The file.
        lengths: (N, 2) int32 tokens: of chosen and rejected; for RLHF of prompt and whole sequence. 0 for bad rows.
        keys: (N,) int32, the length that rows are sorted by and padded to (the longer side; for RLHF the whole
            sequence); -1 for bad rows, so that a plan leaves them out.
        verdict: (N,) uint8, 0 for a good row, else the number of its reason (see `verdict`).
        fingerprint: What decides about lengths and verdicts, by name, as plain values for JSON.
        checksum: Of the whole file: two indexes with one checksum give one plan.
    """

    path: str
    lengths: NDArray[np.int32]
    keys: NDArray[np.int32]
    verdict: NDArray[np.uint8]
    fingerprint: Mapping[str, Any]
    checksum: str

    @property
    def rows(self) -> int:
        """Rows of the source, good or bad."""
        return len(self.verdict)

    @functools.cached_property
    def usable(self) -> int:
        """Rows that are good."""
        return self.rows - int(np.count_nonzero(self.verdict))

    @functools.cached_property
    def counts(self) -> tuple[VerdictCount, ...]:
        """The bad rows by reason, most frequent first."""
        return count_verdicts(self.verdict)

    @property
    def first_malformed(self) -> int | None:
        """The first row that ``on_bad_row="raise"`` would raise about; None if there is none."""
        return first_malformed(self.verdict)

    def good(self) -> NDArray[np.bool_]:
        """(N,) bool, freshly made: True for good rows."""
        return np.equal(self.verdict, GOOD)

    def __str__(self) -> str:
        return summary_text(self.counts, self.rows)


def joined(indexes: Sequence[LengthIndex]) -> LengthIndex:
    """The indexes of several parts as one over all their rows, part behind part; its arrays are copies."""
    if len(indexes) == 1:
        return indexes[0]
    return LengthIndex(
        path=", ".join(index.path for index in indexes),
        lengths=np.concatenate([index.lengths for index in indexes]),
        keys=np.concatenate([index.keys for index in indexes]),
        verdict=np.concatenate([index.verdict for index in indexes]),
        fingerprint={index.path: index.fingerprint for index in indexes},
        checksum=hash_of([index.checksum.encode() for index in indexes]),
    )
