"""The pass over all rows that writes a length index, and the journal from which an interrupted pass resumes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import StateError
from ms_prefstream.lengths.index import MALFORMED, LengthIndex, Loader, Measured, measuring
from ms_prefstream.lengths.index_file import VERSION, open_index, unwritable, write_contents
from ms_prefstream.progress import Progress

JOURNAL_SUFFIX = ".part"
_HEAD = struct.Struct("<II")  # CRC-32 of the rest, rows
_ROW_BYTES = 13
CHUNK = 512  # rows that are measured, sent to a worker and saved together


def build_index(
    rows: int,
    loader: Loader,
    path: str | os.PathLike[str],
    fingerprint: Mapping[str, Any],
    *,
    origin: Callable[[int], str],
    raise_malformed: bool = True,
    progress: Progress | None = None,
) -> LengthIndex:
    """Measures every row and writes the index; an interrupted pass resumes where it ended.

    The file is byte-identical for any number of workers and interruptions.

    Args:
        rows: The number of rows.
        loader: A `SampleLoader`, or a `LoaderPool` for several processes.
        path: The file to write. Rows that are measured already are stored beside it, with the suffix ``.part``.
        fingerprint: Everything that determines lengths and verdicts, by name, as plain values for JSON.
        origin: Maps a row id to its origin.
        raise_malformed: Whether a malformed row is an error (``on_bad_row="raise"``) or gets a verdict.
        progress: Shows how far the pass is.

    Raises:
        RowError: The first malformed row, if such rows are errors.
        SourceError: The file cannot be written.
        StateError: Another process is building this index.
    """
    path, shown = os.fspath(path), progress or Progress()
    about = {"version": VERSION, "rows": rows, "fingerprint": dict(fingerprint)}
    with contextlib.closing(Journal(path, about)) as journal:
        if raise_malformed and journal.rows:
            raise_malformed_of(np.concatenate([part.verdict for part in journal.parts()]), loader, origin)
        chunks = (range(begin, min(begin + CHUNK, rows)) for begin in range(journal.rows, rows, CHUNK))
        shown.begin(rows, journal.rows)
        try:
            for measured in measuring(loader)(chunks):
                for position, error in measured.errors:
                    if raise_malformed and error.reason.malformed:
                        raise error.raised(origin(journal.rows + position))
                journal.append(measured)
                shown.advance(len(measured.verdict))
        finally:
            shown.end()
        write_contents(path, journal.parts(), fingerprint)
        os.unlink(journal.path)
    return open_index(path, fingerprint, rows)


def raise_malformed_of(verdict: NDArray[np.uint8], loader: Loader, origin: Callable[[int], str]) -> None:
    """Raises the first malformed row of verdicts that were stored with ``on_bad_row="drop"``, for ``"raise"``.

    Raises:
        RowError: That row's own error, with its origin.
    """
    for row in np.flatnonzero(MALFORMED[verdict])[:1].tolist():
        (found,) = loader.load([row])
        if found.error is not None:
            raise found.error.raised(origin(row))


class Journal:
    """Append-only file beside the index: a line of JSON, then blocks of measured rows with checksums.

    An incomplete block of a killed process is cut off. A journal of other data or settings is overwritten. The file is
    locked: one process at a time can build an index.

    Args:
        path: The index's path.
        about: Everything that the rows depend on; plain values for JSON.

    Attributes:
        rows: The number of rows that are measured already.

    Raises:
        SourceError: The file cannot be written.
        StateError: Another process is writing it.
    """

    def __init__(self, path: str, about: Mapping[str, Any]) -> None:
        self.path = path + JOURNAL_SUFFIX
        self._index = path
        first = json.dumps(about, sort_keys=True).encode() + b"\n"
        self._begin = len(first)
        try:
            self._file: BinaryIO = open(self.path, "a+b")  # noqa: SIM115 - closed in `close`
            self._lock()
            self._file.seek(0)
            if self._file.readline() != first:
                self._file.truncate(0)
                self._file.write(first)
                self._file.flush()
            self.rows = sum(len(part.verdict) for part in self.parts())
            self._file.truncate()
        except OSError as error:
            raise unwritable(path, error) from error

    def parts(self) -> Iterator[Measured]:
        """Yields the measured rows from the first on; leaves the file's position at the end of the last whole block."""
        self._file.seek(self._begin)
        while True:
            begin = self._file.tell()
            head = self._file.read(_HEAD.size)
            checksum, rows = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
            body = self._file.read(rows * _ROW_BYTES)
            if not rows or len(body) < rows * _ROW_BYTES or zlib.crc32(body) != checksum:
                self._file.seek(begin)
                return
            yield Measured(
                np.frombuffer(body, np.int32, 2 * rows).reshape(rows, 2),
                np.frombuffer(body, np.int32, rows, 8 * rows),
                np.frombuffer(body, np.uint8, rows, 12 * rows),
                [],
            )

    def append(self, measured: Measured) -> None:
        """Adds the next rows."""
        body = measured.lengths.tobytes() + measured.keys.tobytes() + measured.verdict.tobytes()
        try:
            self._file.write(_HEAD.pack(zlib.crc32(body), len(measured.verdict)) + body)
            self._file.flush()
        except OSError as error:
            raise unwritable(self._index, error) from error
        self.rows += len(measured.verdict)

    def close(self) -> None:
        """Closes the file and releases its lock."""
        self._file.close()

    def _lock(self) -> None:
        """Locks the file until it is closed or the process ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise StateError(
                f"another process is building the length index {self._index} at this moment. Wait for it; with "
                "several ranks, build the index before they start (`ms-prefstream index`)."
            ) from None
