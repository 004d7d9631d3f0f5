"""Where the rows of a JSON Lines text begin, found in big blocks without looking at a line in Python."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NEWLINE = 10
_VECTOR_ROUNDS = 64

# Bytes that may stand in a blank line: what bytes.strip() removes.
_SPACE = np.zeros(256, dtype=bool)
_SPACE[list(b" \t\n\r\x0b\x0c")] = True


class RowScanner:
    """Finds the starts of lines that are rows, that is, lines with more than whitespace in them.

    Blocks are fed one after another and may end anywhere, also inside a line.

        feed(b'{"a":1}\\n\\n{"b"') -> row starts [0, 9]
        feed(b':2}\\n  \\n')       -> row starts []

    Args:
        begin: The offset at which the first block will begin.
    """

    def __init__(self, begin: int = 0) -> None:
        self._base = begin
        self._undecided: int | None = begin  # start of a line in which nothing but whitespace has been seen so far

    def feed(self, data: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Scan the next block.

        Args:
            data: (n,) uint8, the bytes that follow those of the block before.

        Returns:
            The offsets of the row starts that were decided in this block (a start may lie in an earlier block when
            only whitespace followed it there), and the positions of the newlines within the block; both int64.
        """
        if not data.size:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        newlines = np.flatnonzero(data == _NEWLINE)
        firsts = np.empty(newlines.size + 1, np.int64)  # of each line that reaches into the block, its first byte here
        firsts[0] = 0
        np.add(newlines, 1, out=firsts[1:])
        starts = firsts + self._base
        if self._undecided is None:
            firsts, starts = firsts[1:], starts[1:]
        else:
            starts[0] = self._undecided
        self._undecided = None
        if firsts.size and firsts[-1] == data.size:  # the block ends with a newline
            self._undecided = int(starts[-1])
            firsts, starts = firsts[:-1], starts[:-1]
        self._base += data.size
        return self._rows_only(data, firsts, starts, newlines), newlines

    def _rows_only(
        self,
        data: NDArray[np.uint8],
        firsts: NDArray[np.int64],
        starts: NDArray[np.int64],
        newlines: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Drop the starts of blank lines; a last line that is blank so far becomes undecided."""
        suspects = np.flatnonzero(_SPACE[data[firsts]])
        if not suspects.size:
            return starts
        is_row: NDArray[np.bool_] = np.ones(starts.size, dtype=bool)
        at = firsts[suspects]
        for _ in range(_VECTOR_ROUNDS):  # all suspects move one byte on per round
            found = data[at]
            is_row[suspects[found == _NEWLINE]] = False
            going = _SPACE[found] & (found != _NEWLINE)
            suspects, at = suspects[going], at[going] + 1
            if at.size and at[-1] == data.size:
                self._undecided = int(starts[suspects[-1]])
                is_row[suspects[-1]] = False
                suspects, at = suspects[:-1], at[:-1]
            if not at.size:
                break
        for line, begin in zip(suspects.tolist(), at.tolist(), strict=True):  # lines with very deep indentation
            which = int(np.searchsorted(newlines, begin))
            end = int(newlines[which]) if which < newlines.size else data.size
            if not data[begin:end].tobytes().strip():
                is_row[line] = False
                if which == newlines.size:
                    self._undecided = int(starts[line])
        kept: NDArray[np.int64] = starts[is_row]
        return kept
