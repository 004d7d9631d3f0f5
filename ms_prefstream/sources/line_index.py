"""The newline index of one JSON Lines file: where each row begins, which line that is, and a checksum of it all."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.files import FileStamp, Handle, check_unchanged, read_at, unreadable
from ms_prefstream.sources.row_scanner import RowScanner

BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 18  # fits a core's cache together with its mask and weights: the scan then runs at cache speed
_STEP = 1 << 16
_NEWLINE = 10

_FOREIGN = {
    b"\x1f\x8b": ("gzip data", "Name the file .jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", "Name the file .jsonl.zst"),
    b"PAR1": ("Parquet data", "Name the file .parquet"),
    b"\xff\xfe": ("UTF-16 text", "Save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    b"\xfe\xff": ("UTF-16 text", "Save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
}


@dataclass(frozen=True, kw_only=True)
class LineIndex:
    """Where the rows of one file are.

    Attributes:
        path: The file.
        stamp: Its size and time when it was indexed.
        starts: (rows + 1,) int64, byte offset of each row's first byte; the last entry is the file's size.
        newlines_before: (size / 64 KiB,) int64, how many newlines stand before each 64 KiB step; None when the file
            has no blank lines, for then row and line are the same.
        checksum: Hash of the whole contents.
    """

    path: str
    stamp: FileStamp
    starts: NDArray[np.int64]
    newlines_before: NDArray[np.int64] | None
    checksum: bytes

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return len(self.starts) - 1

    def line_number(self, row: int, handle: Handle) -> int:
        """The physical line (from 1) that a row of this file stands in; reads at most 64 KiB to find out."""
        if self.newlines_before is None:
            return int(row) + 1
        start = int(self.starts[row])
        step = start // _STEP
        between = read_at(handle, self.path, step * _STEP, start - step * _STEP)
        return int(self.newlines_before[step]) + between.count(b"\n") + 1


def build_line_index(path: str) -> LineIndex:
    """Read a file once, in blocks, and note where its rows begin.

    Raises:
        SourceError: The file cannot be read, holds something else than text in UTF-8, or changed meanwhile.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            before = FileStamp.of(os.fstat(file.fileno()))
            index = _scan(file, path, before)
            check_unchanged(path, before, os.fstat(file.fileno()))
    except OSError as error:
        raise unreadable(path, error) from error
    return index


def _scan(file: BinaryIO, path: str, stamp: FileStamp) -> LineIndex:
    buffer = bytearray(_BLOCK + 8)
    view, data = memoryview(buffer), np.frombuffer(buffer, np.uint8)
    digest = hashlib.blake2b(stamp.size.to_bytes(8, "little"), digest_size=8)
    weights = _weights(_BLOCK // 8)
    starts: list[NDArray[np.int64]] = []
    steps: list[NDArray[np.int64]] = []
    scanner, offset, newlines, last = RowScanner(), 0, 0, _NEWLINE
    while size := _fill(file, view[:_BLOCK]):
        skip = 0
        if offset == 0:
            refuse_foreign(path, bytes(view[:4]))
            skip = len(BOM) if view[:3] == BOM else 0
            scanner = RowScanner(skip)
        found, ends = scanner.feed(data[skip:size])
        starts.append(found)
        steps.append(np.searchsorted(ends + skip, np.arange(0, size, _STEP)) + newlines)
        newlines += ends.size
        offset += size
        last = view[size - 1]
        digest.update(_checksum(data, size, weights))
    rows = sum(map(len, starts))
    lines = newlines + (last != _NEWLINE)
    return LineIndex(
        path=path,
        stamp=stamp,
        starts=np.concatenate([*starts, np.array([stamp.size], np.int64)]),
        newlines_before=None if rows == lines else np.concatenate(steps) if steps else None,
        checksum=digest.digest(),
    )


def _fill(file: BinaryIO, view: memoryview) -> int:
    """Read until the block is full or the file ends; the number of bytes read."""
    done = 0
    while done < len(view) and (size := file.readinto(view[done:])):  # type: ignore[attr-defined]
        done += size
    return done


def _weights(words: int) -> NDArray[np.uint64]:
    """(words,) odd pseudo-random numbers, the same on every machine (SplitMix64, Steele et al. 2014)."""
    z = (np.arange(words, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


def _checksum(data: NDArray[np.uint8], size: int, weights: NDArray[np.uint64]) -> bytes:
    """The weighted sum of a block's 64-bit words, modulo 2**64: any one change shows, at several GB/s."""
    words = -(-size // 8)
    data[size : words * 8] = 0
    total = np.dot(data[: words * 8].view("<u8"), weights[:words])
    return int(total).to_bytes(8, "little")


def refuse_foreign(path: str, head: bytes) -> None:
    """Refuse a file that by its first bytes cannot be UTF-8 text.

    Raises:
        SourceError: It begins like a compressed file, a Parquet file or UTF-16 text.
    """
    for magic, (found, remedy) in _FOREIGN.items():
        if head.startswith(magic):
            raise SourceError(f"{path}: found {found}, expected JSON Lines text in UTF-8. {remedy}.")
