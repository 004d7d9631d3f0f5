"""JSON Lines files, read in any order through a line index of 4 bytes a row; and a row as such a line."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import reprlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sources.base import RawRow, locate, no_rows, read_parts
from ms_prefstream.sources.files import FileStamp, Handle, Handles, check_unchanged, name_of, read_at, reading
from ms_prefstream.sources.json_text import BOM, DEFAULT_MAX_ROW_BYTES, one_array, refuse_foreign, reparse
from ms_prefstream.sources.lines import LineStream, RowScanner

_BLOCK = 1 << 18  # fits a core's cache together with its mask and weights: the scan then runs at cache speed
_STEP = 1 << 16
_NEWLINE = 10
_ARRAY_HEAD = 4096
_READ_AT_ONCE = 4 * 1024 * 1024


class Offsets:
    """Ascending offsets in a file, 4 bytes each: their lower 32 bits, and where the upper ones change."""

    def __init__(self) -> None:
        self._low = np.empty(0, np.uint32)  # with room for more offsets until `close`
        self._count = 0
        self._carries: list[int] = []  # places of the first offset of 4 GiB or more, of 8 GiB or more, and so on

    def append(self, part: NDArray[np.int64]) -> None:
        """Adds the next offsets."""
        upper = int(part.max(initial=0)) >> 32
        while len(self._carries) < upper:
            self._carries.append(self._count + int(np.searchsorted(part, (len(self._carries) + 1) << 32)))
        begin, self._count = self._count, self._count + part.size
        if self._count > self._low.size:
            self._low.resize(2 * self._count, refcheck=False)
        self._low[begin : self._count] = part & 0xFFFFFFFF

    def close(self) -> None:
        """Frees the room for more offsets."""
        self._low.resize(self._count, refcheck=False)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, places: Any) -> Any:
        """Returns the offset at a place, or at several places, int64."""
        return self._low[places] + (np.searchsorted(self._carries, places, side="right") << 32)


@dataclass(frozen=True, kw_only=True)
class LineIndex:
    """Offsets of the rows of one file.

    Attributes:
        path: The file.
        stamp: Its size and time when it was indexed.
        starts: (rows + 1,) offset of each row's first byte; the last entry is the file's size.
        newlines_before: (size / 64 KiB,) int64, the number of newlines before each 64 KiB step; None if the file has no
            blank lines, because row and line numbers are then the same.
        checksum: Hash of the whole contents.
    """

    path: str
    stamp: FileStamp
    starts: Offsets
    newlines_before: NDArray[np.int64] | None
    checksum: bytes

    @property
    def rows(self) -> int:
        """Number of rows in the file."""
        return len(self.starts) - 1

    def line_number(self, row: int, handle: Handle) -> int:
        """Returns the line (from 1) of a row of this file; reads at most 64 KiB to count."""
        if self.newlines_before is None:
            return int(row) + 1
        start = int(self.starts[row])
        step = start // _STEP
        between = read_at(handle, self.path, step * _STEP, start - step * _STEP)
        return int(self.newlines_before[step]) + between.count(b"\n") + 1


def build_line_index(path: str) -> LineIndex:
    """Reads a file once, in blocks, and returns where its rows begin."""
    with reading(path), open(path, "rb") as file:
        before = FileStamp.of(os.fstat(file.fileno()))
        index = _scan(file, path, before)
        if index.rows:
            _check_no_array(file, path, index.starts)
        check_unchanged(path, before, file.fileno())
        return index


def _scan(file: BufferedReader, path: str, stamp: FileStamp) -> LineIndex:
    buffer = bytearray(_BLOCK + 8)
    view, data = memoryview(buffer), np.frombuffer(buffer, np.uint8)
    digest = hashlib.blake2b(stamp.size.to_bytes(8, "little"), digest_size=8)
    weights = _weights(_BLOCK // 8)
    starts = Offsets()
    steps: list[NDArray[np.int64]] = []
    scanner, offset, newlines, last = RowScanner(), 0, 0, _NEWLINE
    while size := file.readinto(view[:_BLOCK]):  # less than a block only at the end
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
    rows = len(starts)
    starts.append(np.array([stamp.size]))
    starts.close()
    lines = newlines + (last != _NEWLINE)
    return LineIndex(
        path=path,
        stamp=stamp,
        starts=starts,
        newlines_before=None if rows == lines else np.concatenate(steps) if steps else None,
        checksum=digest.digest(),
    )


def _check_no_array(file: BufferedReader, path: str, starts: Offsets) -> None:
    """Raises `SourceError` for a file that is one JSON array of rows: in one line, or over many lines.

    A file of which every line is an array is JSON Lines.
    """
    begin, end = int(starts[0]), int(starts[1])
    row = os.pread(file.fileno(), _ARRAY_HEAD, begin).lstrip()
    if not row.startswith(b"["):
        return
    last = os.pread(file.fileno(), _ARRAY_HEAD, max(begin, end - _ARRAY_HEAD))[: end - begin].rstrip()
    if (len(starts) == 2 and row[1:].lstrip().startswith(b"{")) or not last.endswith(b"]"):
        raise one_array(path)


def _weights(words: int) -> NDArray[np.uint64]:
    """Returns (words,) odd pseudo-random numbers, the same on every machine (SplitMix64, Steele et al. 2014)."""
    z = (np.arange(words, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


def _checksum(data: NDArray[np.uint8], size: int, weights: NDArray[np.uint64]) -> bytes:
    """Returns the weighted sum of a block's 64-bit words, modulo 2**64: detects any single change, at several GB/s."""
    words = -(-size // 8)
    data[size : words * 8] = 0
    total = np.dot(data[: words * 8].view("<u8"), weights[:words])
    return int(total).to_bytes(8, "little")


class JsonLines:
    """Rows of one or many JSON Lines files, numbered consecutively in the order of the files.

    The index is built when the length is first requested. Instances are thread-safe and fork-safe, and can be pickled
    (with the index, without open files). In the place of a row above `max_row_bytes` there is a `RowError`.
    """

    exact = True  # the fingerprint covers every byte

    def __init__(self, paths: Sequence[str], *, max_row_bytes: int = DEFAULT_MAX_ROW_BYTES) -> None:
        self.paths = tuple(paths)
        self.name = name_of(self.paths)
        self._limit = max_row_bytes
        self._handles = Handles()

    def __len__(self) -> int:
        return int(self._index[1][-1])

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Returns the rows with these ids, in this order; a line that cannot be parsed becomes a `RowError`."""
        indexes, bounds = self._index
        return read_parts(rows, bounds, self.name, lambda part, local: self._read_file(indexes[part], local))

    def origin(self, row: int) -> str:
        """Returns where a row comes from: ``"data/train.jsonl:17"``, the true line of the file, counted from 1."""
        indexes, bounds = self._index
        part, local = locate(row, bounds, self.name)
        return self._origin(indexes[part], local)

    def fingerprint(self) -> str:
        """Returns a hash of every byte of the files in their order; names, folders and times do not count."""
        return hash_of([index.checksum for index in self._index[0]])

    @functools.cached_property
    def _index(self) -> tuple[list[LineIndex], NDArray[np.int64]]:
        """Index of each file, and the bounds of the files as in `base.read_parts`."""
        indexes = [build_line_index(path) for path in self.paths]
        bounds = np.cumsum([0, *(index.rows for index in indexes)], dtype=np.int64)
        if bounds[-1] == 0:
            raise no_rows(self.name)
        return indexes, bounds

    def _origin(self, index: LineIndex, row: int) -> str:
        return f"{index.path}:{index.line_number(row, self._handles.get(index.path))}"

    def _read_file(self, index: LineIndex, rows: NDArray[np.int64]) -> list[RawRow]:
        """Reads rows of one file, given sorted row ids within the file."""
        handle = self._handles.get(index.path)
        begins, ends = index.starts[rows].tolist(), index.starts[rows + 1].tolist()
        result: list[RawRow] = []
        for first, last in _runs(begins, ends, min(_READ_AT_ONCE, self._limit)):
            start = begins[first]
            if ends[first] - start > self._limit:
                result.append(self._read_large(index, handle, int(rows[first])))
                continue
            data = memoryview(read_at(handle, index.path, start, ends[last - 1] - start))
            for k in range(first, last):
                raw = data[begins[k] - start : ends[k] - start]
                try:
                    result.append(orjson.loads(raw))
                except orjson.JSONDecodeError:
                    result.append(reparse(bytes(raw), self._origin(index, int(rows[k]))))
        check_unchanged(index.path, index.stamp, handle.fd)  # last: it covers all that was read
        return result

    def _read_large(self, index: LineIndex, handle: Handle, row: int) -> RawRow:
        """Reads a row whose distance to the next one is above the limit; blank lines between them do not count."""
        begin, end = int(index.starts[row]), int(index.starts[row + 1])
        blocks = (
            read_at(handle, index.path, at, min(end - at, _READ_AT_ONCE)) for at in range(begin, end, _READ_AT_ONCE)
        )
        lines = LineStream(index.path, blocks, self._limit, index.line_number(row, handle) - 1)
        return next(lines.rows())[1]


def _runs(begins: list[int], ends: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Cuts sorted rows into runs that are adjacent in the file and have at most `most` bytes (or one row)."""
    first = 0
    for k in range(1, len(begins) + 1):
        if k == len(begins) or begins[k] != ends[k - 1] or ends[k] - begins[first] > most:
            yield first, k
            first = k


def dump_row(row: Any) -> bytes:
    """Returns one row as JSON in UTF-8; never fails, because it also writes rows that are reported as broken.

    orjson refuses lone surrogates and integers above 64 bits, which the standard library can write. Rows that both
    refuse (keys that are tuples, rows that contain themselves) are written as their `repr`.
    """
    try:
        return orjson.dumps(row, default=repr, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            return json.dumps(row, default=repr).encode()
    return json.dumps(shallow_repr(row)).encode()


def shallow_repr(row: Any) -> str:
    """Returns the `repr` of a row, with its outer 20 levels only where values are too deep to be written."""
    try:
        return repr(row)
    except RecursionError:
        outer = reprlib.Repr()
        for kind in ("dict", "list", "tuple", "set", "string", "long", "other"):
            setattr(outer, f"max{kind}", sys.maxsize)
        outer.maxlevel = 20
        return outer.repr(row)
