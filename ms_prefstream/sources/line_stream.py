"""Lines out of blocks of bytes, front to back, each with its physical number; whole rows skipped unseen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jsonlines
import numpy as np
import orjson

from ms_prefstream.sources.base import RawRow
from ms_prefstream.sources.json_line import reparse, too_large
from ms_prefstream.sources.row_scanner import RowScanner

_NOT_JSON = b"?"


class LineStream:
    """The lines of one file or pipe.

    Args:
        where: The file, as origins name it.
        blocks: Its contents; blocks may end anywhere.
        max_row_bytes: A longer line is not kept in memory; `rows` gives a `RowError` for it.
    """

    def __init__(self, where: str, blocks: Iterator[bytes], max_row_bytes: int) -> None:
        self._where = where
        self._blocks = blocks
        self._limit = max_row_bytes
        self._number = 0  # of the line given last, counted from 1
        self._line = b""  # that line
        self._size = 0  # its size in bytes, also when it was too long to keep

    def skip(self, rows: int) -> int:
        """Leave out rows (lines that are not blank) at the speed of a scan for newlines; how many there were."""
        if rows == 0:
            return 0
        scanner, base, left = RowScanner(), 0, rows
        for block in self._blocks:
            starts, newlines = scanner.feed(np.frombuffer(block, np.uint8))
            if left < starts.size:  # the row behind the skipped ones begins here,
                begin = int(starts[left]) - base
                indent, cut = max(-begin, 0), max(begin, 0)  # or in an earlier block, with so much whitespace
                self._number += int(np.searchsorted(newlines, cut))
                self._blocks = itertools.chain([b" " * indent + block[cut:]], self._blocks)
                return rows
            left -= starts.size
            base += len(block)
            self._number += newlines.size
        return rows - left

    def rows(self) -> Iterator[tuple[str, RawRow]]:
        """The rows that are left, each with its origin; a `RowError` in the place of one that cannot be parsed."""
        reader = jsonlines.Reader(self._lines(), loads=orjson.loads)
        while True:
            row: RawRow
            try:
                row = reader.read(allow_none=True, skip_empty=True)
            except EOFError:
                return
            except jsonlines.InvalidLineError:
                row = self._error()
            yield f"{self._where}:{self._number}", row

    def _error(self) -> RawRow:
        origin = f"{self._where}:{self._number}"
        return too_large(self._size, self._limit, origin) if self._size > self._limit else reparse(self._line, origin)

    def _lines(self) -> Iterator[bytes]:
        """Every line, blank ones too; in the place of one that is too long something that is not JSON."""
        pieces: list[bytes] = []  # of the line whose end has not come yet
        size, blank = 0, True  # blank: as far as it was not kept
        for block in self._blocks:
            first, *others = block.split(b"\n")
            if first:
                pieces.append(first)
            size += len(first)
            if others:
                yield self._finish(pieces, size, blank)
                for line in others[:-1]:
                    yield self._finish([line], len(line), True)
                pieces, size, blank = [others[-1]], len(others[-1]), True
            elif size > self._limit + 1:  # one more, since a carriage return does not count
                blank = blank and not any(map(bytes.strip, pieces))
                pieces = [pieces[-1][-1:]]  # whether it is a carriage return
        if size:
            yield self._finish(pieces, size, blank)

    def _finish(self, pieces: list[bytes], size: int, blank: bool) -> bytes:
        self._number += 1
        self._size = size - (size > 0 and pieces[-1].endswith(b"\r"))
        if self._size > self._limit:
            return b"" if blank and not any(map(bytes.strip, pieces)) else _NOT_JSON
        self._line = b"".join(pieces)
        return self._line
