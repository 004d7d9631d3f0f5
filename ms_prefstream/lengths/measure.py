"""Loaded rows reduced to what a length index keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import RowError
from ms_prefstream.lengths.verdict import CODES, GOOD
from ms_prefstream.runtime.loader import Loaded

NO_KEY = -1


class Measured(NamedTuple):
    """Some rows, measured.

    Attributes:
        lengths: (n, 2) int32 tokens: of chosen and rejected; for RLHF of prompt and whole sequence. 0 for bad rows.
        keys: (n,) int32, the length that rows are sorted by; -1 for bad rows.
        verdict: (n,) uint8, 0 or the number of the reason.
        errors: (position, error) of each bad row, without origins.
    """

    lengths: NDArray[np.int32]
    keys: NDArray[np.int32]
    verdict: NDArray[np.uint8]
    errors: list[tuple[int, RowError]]


class Loader(Protocol):
    """Rows to samples, in order."""

    def load(self, rows: Sequence[int]) -> list[Loaded]: ...


@runtime_checkable
class Measures(Protocol):
    """A loader that can measure many chunks on its own, several at once."""

    def measured(self, chunks: Iterable[range]) -> Iterator[Measured]:
        """Each chunk of rows, measured, in order."""


def measure(loaded: Sequence[Loaded]) -> Measured:
    """The lengths and verdicts of loaded rows."""
    lengths = np.zeros((len(loaded), 2), np.int32)
    keys = np.full(len(loaded), NO_KEY, np.int32)
    verdict = np.full(len(loaded), GOOD, np.uint8)
    errors: list[tuple[int, RowError]] = []
    for position, (sample, error, _) in enumerate(loaded):
        if sample is None:
            assert error is not None  # a row without sample says why
            verdict[position] = CODES[error.reason]
            errors.append((position, error))
            continue
        first = len(sample.sequences[0].ids if sample.prompt is None else sample.prompt)
        lengths[position] = first, len(sample.sequences[-1].ids)
        keys[position] = sample.length
    return Measured(lengths, keys, verdict, errors)


def measuring(loader: Loader) -> Callable[[Iterable[range]], Iterator[Measured]]:
    """How a loader measures chunks of rows: by itself if it can, otherwise one after the other."""
    if isinstance(loader, Measures):
        return loader.measured
    return lambda chunks: (measure(loader.load(chunk)) for chunk in chunks)
