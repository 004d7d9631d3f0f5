"""Lines out of blocks of bytes, front to back, each with its physical number; whole rows skipped unseen."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

import jsonlines
import numpy as np
import orjson
import zstandard
from numpy.typing import NDArray

from ms_prefstream.errors import OptionError, Reason, RowError, SourceError
from ms_prefstream.sources.base import RawRow
from ms_prefstream.sources.files import FileStamp, check_unchanged, unreadable

BOM = b"\xef\xbb\xbf"


_FOREIGN = {
    b"\x1f\x8b": ("gzip data", "Name the file .jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", "Name the file .jsonl.zst"),
    b"PAR1": ("Parquet data", "Name the file .parquet"),
    b"\xff\xfe": ("UTF-16 text", "Save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    b"\xfe\xff": ("UTF-16 text", "Save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
}


def refuse_foreign(path: str, head: bytes) -> None:
    """Refuse a file that by its first bytes cannot be UTF-8 text.

    Raises:
        SourceError: It begins like a compressed file, a Parquet file or UTF-16 text.
    """
    for magic, (found, remedy) in _FOREIGN.items():
        if head.startswith(magic):
            raise SourceError(f"{path}: found {found}, expected JSON Lines text in UTF-8. {remedy}.")


DEFAULT_MAX_ROW_BYTES = 64 * 1024 * 1024
_SHOWN = 60
_SKIPPED_FIRST = (b"\xef\xbb\xbf", b"\x1e")  # a byte-order mark of files joined with cat; RFC 7464 text sequences
_NOT_JSON_NUMBERS = ("NaN", "nan", "Infinity", "-Infinity", "inf", "-inf")


def reparse(raw: bytes, origin: str) -> RawRow:
    """Parse bytes that orjson refused, once more and with care: what follows the line is cut off.

    Args:
        raw: The line, perhaps with blank lines behind it.
        origin: Where it stands, as file:line.

    Returns:
        The row, or a `RowError` with reason `bad_json`.
    """
    line = raw.split(b"\n", 1)[0].rstrip(b"\r")
    for mark in _SKIPPED_FIRST:
        if line.startswith(mark):
            line = line[len(mark) :]
            break
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _explain(line, error).at(origin)


def too_large(size: int, limit: int, origin: str) -> RowError:
    """The error for a row of `size` bytes where at most `limit` are allowed."""
    problem = f"the row has {size:,} bytes; at most {limit:,} are allowed"
    return RowError(Reason.ROW_TOO_LARGE, problem, "Split or remove the row", origin)


def _explain(line: bytes, error: orjson.JSONDecodeError) -> RowError:
    begins = f"the line begins {line[: _SHOWN * 4].decode('utf-8', 'replace')[:_SHOWN]!r}"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as fault:
        found = f"the line is not valid UTF-8: byte {fault.start + 1} is 0x{line[fault.start]:02x}; {begins}"
        return RowError(
            Reason.BAD_JSON, found, "Save the file as UTF-8 and check that no line was cut in mid-character"
        )
    problem = f"the line is not valid JSON: {error.msg} at column {error.colno}; {begins}"
    return RowError(Reason.BAD_JSON, problem, _remedy(text, error.pos))


def _remedy(text: str, fault: int) -> str:
    if text.startswith(_NOT_JSON_NUMBERS, fault) or text[max(0, fault - 1) :].startswith(_NOT_JSON_NUMBERS):
        return "JSON has no NaN or Infinity: write null or a number"
    if fault >= len(text.rstrip()) or text.strip() in ("{", "[", "[{"):
        return (
            "Each line must hold one whole JSON object: write pretty-printed objects on one line each, "
            "save one big array as .json, and write a line again that was cut off"
        )
    return "Each line must hold one JSON object: correct or remove the line"


def check_max_row_bytes(value: int) -> int:
    """The option `max_row_bytes`, proven to be a positive whole number.

    Raises:
        OptionError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"max_row_bytes: got {value!r}, expected a whole number of bytes above 0, e.g. 67108864.")
    return value


_PLAIN_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 16
_LARGEST_WINDOW = 1 << 31  # files written with `zstd --long=31`
_GZIP = 16 + zlib.MAX_WBITS


class _Member(Protocol):
    """The decompressor of one gzip member or one Zstandard frame; a file may hold many."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def open_blocks(path: str) -> Iterator[bytes]:
    """The contents of a file in blocks (never empty), a byte-order mark left out.

    The suffix decides: ``.gz`` and ``.zst`` / ``.zstd`` (several members or frames too) are decompressed.

    Raises:
        SourceError: From `next`: the file cannot be read, is cut off or damaged, or changed meanwhile.
    """
    return without_bom(_read(path))


def without_bom(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same blocks, without a UTF-8 byte-order mark at the very start."""
    head = b""
    while len(head) < len(BOM) and (block := next(blocks, b"")):
        head += block
    head = head.removeprefix(BOM)
    return itertools.chain([head], blocks) if head else blocks


def _read(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb", buffering=0) as file:
            before = FileStamp.of(os.fstat(file.fileno()))
            suffix = os.path.splitext(path)[1].lower()
            if suffix == ".gz":
                yield from _members(file, path, lambda: zlib.decompressobj(_GZIP))
            elif suffix in (".zst", ".zstd"):
                unpacker = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
                yield from _members(file, path, lambda: unpacker.decompressobj())
            else:
                first = file.read(_PLAIN_BLOCK)
                refuse_foreign(path, first[:4])
                yield from itertools.chain([first] if first else [], iter(lambda: file.read(_PLAIN_BLOCK), b""))
            check_unchanged(path, before, os.fstat(file.fileno()))
    except OSError as error:
        raise unreadable(path, error) from error


def _members(file: IO[bytes], path: str, new: Callable[[], _Member]) -> Iterator[bytes]:
    """Decompress member after member; the end of the file inside one means that the file was cut off."""
    member: _Member | None = None
    while packed := file.read(_PACKED_BLOCK):
        while packed:
            if member is None:
                packed = packed.lstrip(b"\0")  # gzip files may be padded with zeros; no frame begins with one
                if not packed:
                    break
                member = new()
            try:
                block = member.decompress(packed)
            except (zlib.error, zstandard.ZstdError) as error:
                raise SourceError(
                    f"{path}: the compressed data is damaged, or not what the suffix says ({error}; near byte "
                    f"{file.tell():,}). Copy the file again, or give it the suffix of its true compression."
                ) from error
            if block:
                yield block
            packed = member.unused_data if member.eof else b""
            if member.eof:
                member = None
    if member is not None:
        raise SourceError(
            f"{path}: the compressed data ends in the middle, at byte {file.tell():,}: the file was cut off. "
            "Copy or write it again."
        )


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
