"""JSON Lines that can only be read from the front: gzip, Zstandard, and standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import IO

from ms_prefstream.errors import SourceError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sources.base import RawRow, start_pass
from ms_prefstream.sources.files import name_of, sampled_hash
from ms_prefstream.sources.lines import DEFAULT_MAX_ROW_BYTES, LineStream, check_max_row_bytes, open_blocks, without_bom

_PIPE_BLOCK = 1 << 16


class StreamedJsonLines:
    """One pass over JSON Lines files, in order; each may be plain, ``.gz`` or ``.zst``.

    Args:
        paths: The files, in order.
        max_row_bytes: A row above this is not parsed but comes as a `RowError` (`row_too_large`).

    Attributes:
        name: What the rows come from, for people.
        paths: The files.
    """

    def __init__(self, paths: Sequence[str], *, max_row_bytes: int = DEFAULT_MAX_ROW_BYTES) -> None:
        self.paths = tuple(paths)
        self.name = name_of(self.paths)
        self._limit = check_max_row_bytes(max_row_bytes)

    def start(self, skip: int = 0) -> Iterator[tuple[str, RawRow]]:
        """A pass over (file:line, row) behind the first `skip` rows, which are decompressed but not parsed.

        Raises:
            SourceError: A file cannot be read or is damaged, or there are not that many rows.
        """
        return start_pass(self, self.name, skip)

    def begin(self, skip: int) -> tuple[int, Iterator[tuple[str, RawRow]]]:
        """How many of `skip` rows there were to skip, and the pass over the rest."""
        skipped = 0
        for number, path in enumerate(self.paths):
            lines = self._open(path)
            skipped += lines.skip(skip - skipped)
            if skipped == skip:
                return skipped, self._rows(lines, self.paths[number + 1 :])
        return skipped, iter(())

    def fingerprint(self) -> str:
        """A hash of the files' sizes and of pieces of their contents; names, folders and times do not count."""
        return sampled_hash(self.paths)

    def _open(self, path: str) -> LineStream:
        return LineStream(path, open_blocks(path), self._limit)

    def _rows(self, lines: LineStream, others: Sequence[str]) -> Iterator[tuple[str, RawRow]]:
        yield from lines.rows()
        for path in others:
            yield from self._open(path).rows()


class StandardInput:
    """JSON Lines piped into the program: one pass, once.

    Args:
        max_row_bytes: A row above this is not parsed but comes as a `RowError` (`row_too_large`).
    """

    name = "stdin"
    once = True  # there is only one pass

    def __init__(self, *, max_row_bytes: int = DEFAULT_MAX_ROW_BYTES) -> None:
        self._limit = check_max_row_bytes(max_row_bytes)
        self._started = False

    def start(self, skip: int = 0) -> Iterator[tuple[str, RawRow]]:
        """The pass over (stdin:line, row), behind the first `skip` rows.

        Raises:
            SourceError: On the second call, or when there are not that many rows.
        """
        return start_pass(self, self.name, skip)

    def begin(self, skip: int) -> tuple[int, Iterator[tuple[str, RawRow]]]:
        """How many of `skip` rows there were to skip, and the pass over the rest."""
        if self._started:
            raise SourceError(
                "stdin: standard input was read already and cannot be read again, as a second epoch would need. "
                "Write it to a file first and pass the path."
            )
        self._started = True
        pipe: IO[bytes] = sys.stdin.buffer
        # read1 gives what is there: rows of a slow writer arrive when they are written, not when a block is full.
        blocks = iter(lambda: pipe.read1(_PIPE_BLOCK), b"")  # type: ignore[attr-defined]
        lines = LineStream(self.name, without_bom(blocks), self._limit)
        return lines.skip(skip), lines.rows()

    def fingerprint(self) -> str:
        """The same for every pipe: what will come is not known."""
        return hash_of([b"stdin"])
