"""Lines of one file or pipe, read from the front: rows with their line numbers, or skipped without parsing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np
import orjson
from numpy.typing import NDArray

from ms_prefstream.sources.base import RawPass, RawRow
from ms_prefstream.sources.json_text import BOM, one_array, reparse, too_large

_NEWLINE = 10
_SPACE: NDArray[np.bool_] = np.isin(np.arange(256), list(b" \t\n\r\x0b\x0c"))  # by byte: what bytes.strip() removes
_BLANK_LINE = re.compile(rb"[ \t\r\x0b\x0c]*(\n|\Z)")


class RowScanner:
    """Finds the starts of rows: of lines that hold more than whitespace.

    Blocks are fed in order and may end anywhere, also inside a line.

        feed(b'{"a":1}\\n\\n{"b"') -> row starts [0, 9]
        feed(b':2}\\n  \\n')       -> row starts []

    Args:
        begin: The offset of the first block.
    """

    def __init__(self, begin: int = 0) -> None:
        self._base = begin
        self._undecided: int | None = begin  # start of a line in which nothing but whitespace has been seen so far

    def feed(self, data: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Scans the next block.

        Args:
            data: (n,) uint8, the bytes after those of the previous block.

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
        suspects = np.flatnonzero(_SPACE[data[firsts]])
        if suspects.size:
            raw, blank = data.tobytes(), []
            for line in suspects.tolist():
                if found := _BLANK_LINE.match(raw, int(firsts[line])):
                    blank.append(line)
                    if not found[1]:  # no newline: blank as far as this block goes
                        self._undecided = int(starts[line])
            starts = np.delete(starts, blank)
        return starts, newlines


class LineStream:
    """Lines of one file or pipe, of which some rows can be skipped before the others are read.

    Args:
        where: The file, as origins name it.
        blocks: Its contents; blocks may end anywhere. A byte-order mark at the start is left out.
        max_row_bytes: A longer line is not kept in memory; `rows` yields a `RowError` for it.
        lines_before: Number of lines before the first block.
    """

    def __init__(self, where: str, blocks: Iterator[bytes], max_row_bytes: int, lines_before: int = 0) -> None:
        self._where = where
        self._blocks = _without_bom(blocks)
        self._limit = max_row_bytes
        self._number = lines_before  # number of the last line, counted from 1

    def skip(self, rows: int) -> int:
        """Skips up to this many rows (lines that are not blank) without parsing them; returns how many it skipped."""
        if rows == 0:
            return 0
        scanner, base, left = RowScanner(), 0, rows
        for block in self._blocks:
            starts, newlines = scanner.feed(np.frombuffer(block, np.uint8))
            if left < starts.size:  # the first row to keep begins in this block,
                begin = int(starts[left]) - base
                indent, cut = max(-begin, 0), max(begin, 0)  # or in an earlier block, with only whitespace there
                self._number += int(np.searchsorted(newlines, cut))
                self._blocks = itertools.chain([b" " * indent + block[cut:]], self._blocks)
                return rows
            left -= starts.size
            base += len(block)
            self._number += newlines.size
        return rows - left

    def begin(self, skip: int) -> tuple[int, RawPass]:
        """Skips up to `skip` rows of a whole file. Returns how many rows were skipped, and the pass over the rest."""
        self._blocks = _no_array(self._where, self._blocks)
        return self.skip(skip), self.rows()

    def rows(self) -> RawPass:
        """Yields (origin, row) for the rows that are left; a `RowError` for a row that cannot be parsed."""
        for line, size in self._lines():
            self._number += 1
            if not line or line.isspace():
                continue
            origin = f"{self._where}:{self._number}"
            size -= line.endswith(b"\r")
            row: RawRow
            try:
                row = too_large(size, self._limit, origin) if size > self._limit else orjson.loads(line)
            except orjson.JSONDecodeError:
                row = reparse(line, origin)
            yield origin, row

    def _lines(self) -> Iterator[tuple[bytes, int]]:
        """Yields every line with its size. Of a line above the limit, only a mark and the last byte are kept."""
        pieces: list[bytes] = []  # of the line that is not complete yet
        size = 0
        for block in self._blocks:
            first, *others = block.split(b"\n")
            pieces.append(first)
            size += len(first)
            if others:
                yield b"".join(pieces), size
                for line in others[:-1]:
                    yield line, len(line)
                pieces, size = [others[-1]], len(others[-1])
            elif size > self._limit + 1:  # one more, since a carriage return does not count
                kept = b"".join(pieces)
                pieces = [b"?" if kept.strip() else b"", kept[-1:]]
        if size:
            yield b"".join(pieces), size


def _no_array(where: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yields the blocks of a file of JSON Lines.

    Raises:
        SourceError: It is one JSON array of rows: in one line, or over many lines. A file of which every line is an
            array is JSON Lines.
    """
    head, last, complete = b"", b"", False  # of the first row: how it begins and ends, and whether its line is over
    for block in blocks:
        rest = block if head else block.lstrip()
        if rest and not complete:
            head = (head + b"".join(rest[:64].split()))[:2] if len(head) < 2 else head
            if not head.startswith(b"["):
                yield block
                break
            line, newline, rest = rest.partition(b"\n")
            last, complete = line.rstrip()[-1:] or last, bool(newline)
            if complete and last != b"]":
                raise one_array(where)
        yield block
        if complete and rest.strip():  # there are more rows
            break
    else:
        if head == b"[{":
            raise one_array(where)
    yield from blocks


def _without_bom(blocks: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    for block in blocks:
        head += block
        if len(head) >= len(BOM):
            break
    yield head.removeprefix(BOM)
    yield from blocks
