"""The length index in memory: the lengths of each row, and its verdict. The rows of an index come from `measure`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sample import Loaded

GOOD = 0
_NO_KEY = -1

# Stored in files: a number is never given to another reason, and a new reason gets a new number.
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
    Reason.PROMPT_ENDS_WITH_ANSWER: 10,
    Reason.CONTENT_LOST: 11,
    Reason.IDENTICAL: 64,
    Reason.TIE: 65,
    Reason.EMPTY_RESPONSE: 66,
    Reason.NO_RESPONSE_TOKENS: 67,
    Reason.IDENTICAL_AFTER_TRUNCATION: 68,
    Reason.TOO_LONG: 69,
}
LATER_CODES = frozenset({10, 11})
"""Numbers of reasons that are younger than the first indexes; a file names them only where a row has them."""

REASONS = {code: reason for reason, code in CODES.items()}

MALFORMED = np.array([code in REASONS and REASONS[code].malformed for code in range(256)])
"""(256,) bool, by number of a reason: True if `on_bad_row` decides about such a row."""

_KNOWN = np.array([code == GOOD or code in REASONS for code in range(256)])
_CHECKED_TOGETHER = 2**18  # rows; bounds the memory of a check
_FIRST_ROWS = 5  # per reason, as in `stream.report`


@dataclass(frozen=True, kw_only=True, eq=False)
class LengthIndex:
    """Token lengths and verdicts of all rows. They take 13 bytes of memory a row.

    The arrays are read, not mapped: a mapped file that is cut off while it is in use ends the process with a signal.

    Attributes:
        path: The file.
        lengths: (N, 2) int32 tokens: of chosen and rejected; for RLHF of prompt and whole sequence. 0 for bad rows.
        keys: (N,) int32, the length that rows are sorted by and padded to (the longer side; for RLHF the whole
            sequence); -1 for bad rows, so that a plan leaves them out.
        verdict: (N,) uint8, 0 for a good row, else the number of its reason (see `CODES`).
        fingerprint: Everything that determines lengths and verdicts, by name, as plain values for JSON.
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
        """Number of rows in the source, good or bad."""
        return len(self.verdict)

    @functools.cached_property
    def usable(self) -> int:
        """Number of good rows."""
        return self.rows - int(np.count_nonzero(self.verdict))

    @functools.cached_property
    def counts(self) -> tuple[VerdictCount, ...]:
        """Bad rows by reason, most frequent first."""
        return count_verdicts(self.verdict)

    def good(self) -> NDArray[np.bool_]:
        """Returns a new (N,) bool array: True for good rows."""
        return np.equal(self.verdict, GOOD)

    def __str__(self) -> str:
        """Returns lines such as ``too_long: 12 (0.60 %), first at row 7, row 31``, one a reason."""
        dropped = self.rows - self.usable
        lines = [
            f"rows in the length index {self.rows:,}, dropped {dropped:,} ({100 * dropped / max(1, self.rows):.2f} %)"
        ]
        for one in self.counts:
            first = ", ".join(f"row {row}" for row in one.first)
            lines.append(f"  {one.reason}: {one.rows:,} ({100 * one.share:.2f} %), first at {first}")
        return "\n".join(lines)


def joined(indexes: Sequence[LengthIndex]) -> LengthIndex:
    """Returns the indexes of several parts as one over all their rows, in order; its arrays are copies."""
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


class VerdictCount(NamedTuple):
    """Number of bad rows with one reason."""

    reason: Reason
    rows: int
    share: float  # of all rows, 0 to 1
    first: tuple[int, ...]  # ids of the first five


def count_verdicts(verdict: NDArray[np.uint8]) -> tuple[VerdictCount, ...]:
    """Counts bad rows by reason, given (N,) verdicts: most frequent first, then by the reasons' numbers."""
    counts = np.bincount(verdict, minlength=256).tolist()
    found = []
    for code in sorted(filter(counts.__getitem__, REASONS), key=lambda code: (-counts[code], code)):
        first = np.flatnonzero(verdict == code)[:_FIRST_ROWS].tolist()
        found.append(VerdictCount(REASONS[code], counts[code], counts[code] / len(verdict), tuple(first)))
    return tuple(found)


class Measured(NamedTuple):
    """Lengths and verdicts of n rows; the arrays are those of `LengthIndex`."""

    lengths: NDArray[np.int32]
    keys: NDArray[np.int32]
    verdict: NDArray[np.uint8]
    errors: list[tuple[int, RowError]]  # position and error of each bad row, without origins


def first_wrong(lengths: NDArray[np.int32], keys: NDArray[np.int32], verdict: NDArray[np.uint8]) -> int | None:
    """Returns the first row that `measure` cannot have given; None if there is none.

    A good row has a token, and the longer of its lengths as key. A bad row has a known reason, lengths 0 and key -1.
    """
    for begin in range(0, len(keys), _CHECKED_TOGETHER):
        some = slice(begin, begin + _CHECKED_TOGETHER)
        is_good = verdict[some] == GOOD
        shorter, longer = np.minimum(*lengths[some].T), np.maximum(*lengths[some].T)
        fits = _KNOWN[verdict[some]] & (shorter >= 0) & (is_good == (longer > 0))
        fits &= keys[some] == np.where(is_good, longer, _NO_KEY)
        if not fits.all():
            return begin + int(fits.argmin())
    return None


class Loader(Protocol):
    """Loads rows as samples, in order; a method `measured` measures several chunks of rows at once."""

    def load(self, rows: Sequence[int]) -> list[Loaded]: ...


def measure(loaded: Sequence[Loaded]) -> Measured:
    """Returns the lengths and verdicts of loaded rows."""
    lengths = np.zeros((len(loaded), 2), np.int32)
    keys = np.full(len(loaded), _NO_KEY, np.int32)
    verdict = np.full(len(loaded), GOOD, np.uint8)
    errors: list[tuple[int, RowError]] = []
    for position, (sample, error, *_) in enumerate(loaded):
        if sample is None:
            assert error is not None  # a row without a sample has an error
            verdict[position] = CODES[error.reason]
            errors.append((position, error))
            continue
        first = len(sample.sequences[0].ids if sample.prompt is None else sample.prompt)
        lengths[position] = first, len(sample.sequences[-1].ids)
        keys[position] = sample.length
    return Measured(lengths, keys, verdict, errors)


def measuring(loader: Loader) -> Callable[[Iterable[range]], Iterator[Measured]]:
    """Returns the function that measures chunks of rows with a loader: its own, or one that loads chunk by chunk."""
    own: Callable[[Iterable[range]], Iterator[Measured]] | None = getattr(loader, "measured", None)
    return own or (lambda chunks: (measure(loader.load(chunk)) for chunk in chunks))
