"""JSON Lines files, read in any order through an index of 8 bytes a row; and the writer of such files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jsonlines
import numpy as np
import orjson
from numpy.typing import NDArray

from ms_prefstream.sources.base import RawRow
from ms_prefstream.sources.files import Handle, Handles, check_unchanged, hash_of, name_of, read_at
from ms_prefstream.sources.json_line import DEFAULT_MAX_ROW_BYTES, check_max_row_bytes, reparse, too_large
from ms_prefstream.sources.line_index import LineIndex, build_line_index
from ms_prefstream.sources.passes import no_rows
from ms_prefstream.sources.row_ids import as_row_ids, by_part

_READ_AT_ONCE = 4 * 1024 * 1024


class JsonLines:
    """Rows of one or many JSON Lines files, numbered through in the order of the files.

    The index is built when the length is first asked for. Instances are safe for threads and forked processes, and
    can be pickled (the index goes along, open files do not).

    Args:
        paths: The files, in order.
        max_row_bytes: A row above this is not parsed but comes back as a `RowError` (`row_too_large`).

    Attributes:
        name: What the rows come from, for people.
        paths: The files.
        exact: The fingerprint covers every byte.
    """

    exact = True

    def __init__(self, paths: Sequence[str], *, max_row_bytes: int = DEFAULT_MAX_ROW_BYTES) -> None:
        self.paths = tuple(paths)
        self.name = name_of(self.paths)
        self._limit = check_max_row_bytes(max_row_bytes)
        self._handles = Handles()
        self._built: tuple[list[LineIndex], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return int(self._index()[1][-1])

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """The rows with these ids, in this order; a line that cannot be parsed becomes a `RowError`.

        Raises:
            SourceError: An id does not exist, or a file changed since it was indexed.
        """
        indexes, bounds = self._index()
        ids = as_row_ids(rows, int(bounds[-1]), self.name)
        result: list[RawRow] = [None] * len(ids)
        for part, positions in by_part(ids, bounds):
            local = ids[positions] - bounds[part]
            for position, row in zip(positions.tolist(), self._read_file(indexes[part], local), strict=True):
                result[position] = row
        return result

    def origin(self, row: int) -> str:
        """Where a row comes from: ``"data/train.jsonl:17"``, the true line of the file, counted from 1."""
        indexes, bounds = self._index()
        as_row_ids([row], int(bounds[-1]), self.name)
        part = int(np.searchsorted(bounds, row, side="right")) - 1
        return self._origin(indexes[part], row - int(bounds[part]))

    def fingerprint(self) -> str:
        """A hash of every byte of the files in their order; names, folders and times do not count."""
        return hash_of([index.checksum for index in self._index()[0]])

    def _index(self) -> tuple[list[LineIndex], NDArray[np.int64]]:
        if self._built is None:
            indexes = [build_line_index(path) for path in self.paths]
            bounds = np.cumsum([0, *(index.rows for index in indexes)], dtype=np.int64)
            if bounds[-1] == 0:
                raise no_rows(self.name)
            self._built = indexes, bounds
        return self._built

    def _origin(self, index: LineIndex, row: int) -> str:
        return f"{index.path}:{index.line_number(row, self._handles.get(index.path))}"

    def _read_file(self, index: LineIndex, rows: NDArray[np.int64]) -> list[RawRow]:
        """The rows of one file with these ids within the file, sorted."""
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
        check_unchanged(index.path, index.stamp, os.fstat(handle.fd))  # last: it covers all that was read
        return result

    def _read_large(self, index: LineIndex, handle: Handle, row: int) -> RawRow:
        """A row that reaches further to the next one than allowed; blank lines between them do not count."""
        begin, end = int(index.starts[row]), int(index.starts[row + 1])
        origin, tail = self._origin(index, row), b""
        for at in range(begin, end, _READ_AT_ONCE):
            piece, newline, _ = read_at(handle, index.path, at, min(end - at, _READ_AT_ONCE)).partition(b"\n")
            tail = (tail + piece)[-1:]
            if newline:
                end = at + len(piece)
                break
        size = end - begin - (tail == b"\r")
        if size > self._limit:
            return too_large(size, self._limit, origin)
        return reparse(read_at(handle, index.path, begin, size), origin)


def _runs(begins: list[int], ends: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Cut sorted rows into runs that lie side by side in the file and have at most `most` bytes (or one row)."""
    first = 0
    for k in range(1, len(begins) + 1):
        if k == len(begins) or begins[k] != ends[k - 1] or ends[k] - begins[first] > most:
            yield first, k
            first = k


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Any], *, append: bool = False) -> int:
    """Write rows as JSON Lines in UTF-8, other scripts than ASCII kept readable.

    Args:
        path: The file; it is replaced unless `append`.
        rows: JSON values. What JSON does not know is written as its `repr`, so that no row is lost.
        append: Add to the file.

    Returns:
        The number of rows written.
    """
    count = 0
    with open(path, "ab" if append else "wb") as file, jsonlines.Writer(file, dumps=dump_row) as writer:
        for count, row in enumerate(rows, 1):  # noqa: B007
            writer.write(row)
    return count


def dump_row(row: Any) -> bytes:
    """One row as JSON in UTF-8; never fails, since it also writes rows that are reported as broken.

    orjson refuses lone surrogates and integers above 64 bits, which the standard library can write; what that refuses
    too (keys that are tuples, rows that contain themselves) is written as the row's `repr`.
    """
    try:
        return orjson.dumps(row, default=repr, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        try:
            return json.dumps(row, default=repr).encode()
        except (TypeError, ValueError, RecursionError):
            return json.dumps(repr(row)).encode()
