"""The length index in memory: the lengths of each row, and its verdict. The rows of an index come from `measure`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import Reason, RowError, printable
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.lines import at_most, share
from ms_prefstream.sample import Block

GOOD = 0
_NO_KEY = -1
_LARGEST_INT16 = np.iinfo(np.int16).max

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
    Reason.DUPLICATE: 80,
    Reason.CONTAMINATED: 81,
}
LATER_CODES = frozenset({10, 11, 80, 81})
"""Numbers of reasons that are younger than the first indexes; a file names them only where a row has them."""

REASONS = {code: reason for reason, code in CODES.items()}

MALFORMED = np.array([code in REASONS and REASONS[code].malformed for code in range(256)])
"""(256,) bool, by number of a reason: True if `on_bad_row` decides about such a row."""

_KNOWN = np.array([code == GOOD or code in REASONS for code in range(256)])
_SPREAD = {"50 % up to": 0.5, "90 %": 0.9, "99 %": 0.99, "all": 1.0}  # shares of the rows whose longest is shown
_FIRST_ROWS = 5  # per reason, as in `stream.report`


@dataclass(frozen=True, kw_only=True, eq=False)
class LengthIndex:
    """Token lengths and verdicts of all rows.

        sides  5 3 | 0 0 | 2 7     reasons  64     ->     keys  5 -1 7     verdict  0 64 0

    They take 4 bytes of memory a row (8 if a length is above 65,535), 1 more for each bad row, and 8 more where the
    index holds what `order_by` orders rows by. `lengths`, `keys` and `verdict` are computed from them: each access
    returns a new array of all rows.

    The file is read, not mapped: a mapped file that is cut off while it is in use ends the process with a signal.

    Attributes:
        path: The file.
        sides: (N, 2) uint16, or int32 if a length does not fit: `lengths` as they are stored; read-only.
        reasons: (M,) uint8, the number of the reason of each bad row (see `CODES`), in row order; read-only.
        fingerprint: Everything that determines lengths and verdicts, by name, as plain values for JSON.
        checksum: Of the whole file: two indexes with one checksum give one plan.
        order: (N,) float64, the value that `order_by` orders each row by, 0 for bad rows; None if it was not built
            with `order_by`. Read-only.
    """

    path: str
    sides: NDArray[np.integer[Any]]
    reasons: NDArray[np.uint8]
    fingerprint: Mapping[str, Any]
    checksum: str
    order: NDArray[np.float64] | None = None

    @property
    def rows(self) -> int:
        """Number of rows in the source, good or bad."""
        return len(self.sides)

    @property
    def usable(self) -> int:
        """Number of good rows."""
        return self.rows - len(self.reasons)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """(N, 2) int32 tokens: of chosen and rejected, or of prompt and whole sequence; 0 for bad rows.

        A prompt ends with the first token under the loss.
        """
        return self.sides.astype(np.int32)

    @property
    def keys(self) -> NDArray[np.int32]:
        """(N,) int32, the key length of each row, see `keys_of`."""
        return self.keys_of().astype(np.int32)

    @property
    def verdict(self) -> NDArray[np.uint8]:
        """(N,) uint8, 0 for a good row, else the number of its reason (see `CODES`)."""
        found = np.full(self.rows, GOOD, np.uint8)
        found[~self.good()] = self.reasons
        return found

    @functools.cached_property
    def longest(self) -> int:
        """The largest key length, 0 without good rows."""
        return int(self.sides.max(initial=0))

    def keys_of(self, rows: slice | list[int] = slice(None)) -> NDArray[np.signedinteger[Any]]:
        """Returns the lengths that these rows, or all, are sorted by and padded to: int16, or int32 if one needs it.

        It is the longer side; for RLHF the whole sequence. Bad rows have -1, so that a plan leaves them out.
        """
        dtype = np.int16 if self.longest <= _LARGEST_INT16 else np.int32
        keys: NDArray[np.signedinteger[Any]] = np.maximum(*self.sides[rows].T, dtype=dtype, casting="unsafe")
        keys[keys == 0] = _NO_KEY  # only bad rows have no token
        return keys

    @functools.cached_property
    def counts(self) -> tuple[VerdictCount, ...]:
        """Bad rows by reason, most frequent first."""
        return count_verdicts(self.verdict)

    def good(self) -> NDArray[np.bool_]:
        """Returns a new (N,) bool array: True for good rows."""
        found: NDArray[np.bool_] = np.logical_or(*self.sides.T)
        return found

    def __str__(self) -> str:
        """Returns rows, reasons (``too_long: 12 (0.60 %), first at row 7, row 31``), lengths and file."""
        keys = self.keys_of()
        keys = keys[keys != _NO_KEY]
        lengths = "no good row"
        if len(keys):
            longest = zip(_SPREAD, np.quantile(keys, [*_SPREAD.values()]), strict=True)
            lengths = ", ".join(f"{name} {length:,.0f}" for name, length in longest)
        reasons = [
            f"  {one.reason}: {share(one.rows, self.rows)}, first at {', '.join(f'row {row}' for row in one.first)}"
            for one in self.counts
        ]
        head = f"rows in the length index {self.rows:,}, dropped {share(self.rows - self.usable, self.rows)}"
        return "\n".join(at_most([[head], reasons, [f"tokens: {lengths}"], [printable(self.path)]], 12))

    __repr__ = __str__


def joined(indexes: Sequence[LengthIndex]) -> LengthIndex:
    """Returns the indexes of several parts as one over all their rows, in order; its arrays are copies."""
    if len(indexes) == 1:
        return indexes[0]
    orders: list[Any] = [index.order for index in indexes]
    return LengthIndex(
        path=", ".join(index.path for index in indexes),
        sides=np.concatenate([index.sides for index in indexes]),
        reasons=np.concatenate([index.reasons for index in indexes]),
        fingerprint={index.path: index.fingerprint for index in indexes},
        checksum=hash_of([index.checksum.encode() for index in indexes]),
        order=None if any(order is None for order in orders) else np.concatenate(orders),
    )


class VerdictCount(NamedTuple):
    """Number of bad rows with one reason."""

    reason: Reason
    rows: int
    share: float  # of all rows, 0 to 1
    first: tuple[int, ...]  # ids of the first five


def count_verdicts(verdict: NDArray[np.uint8]) -> tuple[VerdictCount, ...]:
    """Counts bad rows by reason, given (N,) verdicts: most frequent first, then by the reasons' numbers."""
    bad = np.flatnonzero(verdict)
    codes = verdict[bad]
    counts = np.bincount(codes, minlength=256).tolist()
    found = []
    for code in sorted(filter(counts.__getitem__, REASONS), key=lambda code: (-counts[code], code)):
        first = bad[codes == code][:_FIRST_ROWS].tolist()
        found.append(VerdictCount(REASONS[code], counts[code], counts[code] / len(verdict), tuple(first)))
    return tuple(found)


class Measured(NamedTuple):
    """Lengths and verdicts of n rows; the arrays are `lengths`, `keys` and `verdict` of `LengthIndex`.

    Attributes:
        errors: Position and error of each bad row, without origins.
        hashes: (n, 2) uint64, what duplicates are found by; None if they are not looked for.
        questions: (n, 2) uint64, what is compared with the prompts to exclude; None if there are none.
        order: (n,) float64, see `LengthIndex`.
    """

    lengths: NDArray[np.int32]
    keys: NDArray[np.int32]
    verdict: NDArray[np.uint8]
    errors: list[tuple[int, RowError]]
    hashes: NDArray[np.uint64] | None = None
    questions: NDArray[np.uint64] | None = None
    order: NDArray[np.float64] | None = None

    def without(self, rows: NDArray[np.bool_], reason: Reason) -> Measured:
        """Returns the same rows, of which some, (n,) bool, are bad for a reason; the good ones among them."""
        rows = rows & (self.verdict == GOOD)
        return self._replace(
            lengths=np.where(rows[:, None], np.int32(0), self.lengths),
            keys=np.where(rows, np.int32(_NO_KEY), self.keys),
            verdict=np.where(rows, np.uint8(CODES[reason]), self.verdict),
            order=None if self.order is None else np.where(rows, 0.0, self.order),
        )


class Marks(Protocol):
    """What an index notes of rows besides their lengths: duplicates, contaminated rows and an order."""

    @property
    def columns(self) -> Sequence[str]:
        """The names of the arrays of `Measured` that an interrupted pass must keep."""

    @property
    def measure(self) -> Measure:
        """Measures rows; can be sent to other processes."""

    def checked(self, measured: Measured) -> Measured:
        """Returns the next rows, with the verdicts that need only the rows themselves."""

    def finished(self, measured: Measured) -> Measured:
        """Returns all rows of a pass with their final verdicts."""


def first_wrong(lengths: NDArray[np.int32], keys: NDArray[np.int32], verdict: NDArray[np.uint8]) -> int | None:
    """Returns the first row that `measure` cannot have given; None if there is none.

    A good row has a token, and the longer of its lengths as key. A bad row has a known reason, lengths 0 and key -1.
    """
    is_good = verdict == GOOD
    shorter, longer = np.minimum(*lengths.T), np.maximum(*lengths.T)
    fits = _KNOWN[verdict] & (shorter >= 0) & (is_good == (longer > 0)) & (keys == np.where(is_good, longer, _NO_KEY))
    return None if fits.all() else int(fits.argmin())


class Loader(Protocol):
    """Loads rows as samples, in order; a method `measured` measures several chunks of rows at once."""

    def load(self, rows: Sequence[int]) -> Block: ...


Measure: TypeAlias = Callable[[Any, Sequence[int]], Measured]
"""Measures rows, given a loader and their ids."""


def measure(loaded: Block) -> Measured:
    """Returns the lengths and verdicts of loaded rows."""
    good, errors = loaded.good, sorted(loaded.errors.items())
    verdict = np.full(len(loaded), GOOD, np.uint8)
    for position, error in errors:
        verdict[position] = CODES[error.reason]
    first = loaded.lengths[:, 0] if loaded.prompts is None else loaded.prompts[:, 1]
    if loaded.sides == 1 and loaded.prompts is None:
        first = np.where(loaded.spans[:, 0, 1] > 0, loaded.spans[:, 0, 0], first)
    lengths = np.where(good[:, None], np.stack([first, loaded.lengths[:, -1]], axis=1), 0).astype(np.int32)
    keys = np.where(good, loaded.longest, _NO_KEY).astype(np.int32)
    return Measured(lengths, keys, verdict, errors)


def measure_rows(loader: Loader, rows: Sequence[int]) -> Measured:
    """Returns the lengths and verdicts of rows."""
    return measure(loader.load(rows))


def measuring(loader: Loader, how: Measure = measure_rows) -> Callable[[Iterable[range]], Iterator[Measured]]:
    """Returns the function that measures chunks of rows with a loader: its own, or one that goes chunk by chunk."""
    own: Callable[[Iterable[range], Measure], Iterator[Measured]] | None = getattr(loader, "measured", None)
    if own is None:
        return lambda chunks: (how(loader, chunk) for chunk in chunks)
    return lambda chunks: own(chunks, how)
