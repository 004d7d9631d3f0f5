"""Where a character offset falls among tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def tokens_before(starts: NDArray[np.int64], border: int, at_least: int = 0) -> int:
    """How many tokens end at or before a character offset.

    Args:
        starts: (n + 1,) where tokens begin, -1 inside a character.
        border: The offset.
        at_least: A number of tokens that are known to lie before it. It decides where the border falls into
            characters that are split over several tokens, about which the offsets say nothing.
    """
    behind = tokens_until(starts, border)
    if starts[behind] == border:
        return behind
    first = int(np.flatnonzero((starts >= 0) & (starts < border))[-1])  # the last token known to begin before it
    return max(first, min(at_least, behind - 1))


def tokens_until(starts: NDArray[np.int64], border: int) -> int:
    """How many tokens begin before a character offset."""
    return int(np.flatnonzero(starts >= border)[0])
