"""One pass over all rows that writes a length index."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ms_prefstream.errors import RowError, StateError
from ms_prefstream.lengths.index import LengthIndex, Loader, Measured, first_malformed, measuring
from ms_prefstream.lengths.index_file import VERSION, open_index, unwritable, write_contents
from ms_prefstream.progress import Progress, Silent

SUFFIX = ".part"
_HEAD = struct.Struct("<II")  # CRC-32 of the rest, rows
_ROW_BYTES = 13


class Journal:
    """An append-only file beside the index: a line of JSON, then blocks of measured rows with checksums.

    What a killed process had not finished to write is cut off. A journal of other data or settings is begun anew.
    One process at a time.

    Args:
        path: The index's path.
        about: What the rows depend on; plain values for JSON.

    Attributes:
        rows: Rows that are measured already.

    Raises:
        SourceError: The file cannot be written.
        StateError: Another process is writing it.
    """

    def __init__(self, path: str, about: Mapping[str, Any]) -> None:
        self.path = path + SUFFIX
        self.rows = 0
        self._index = path
        first = json.dumps(about, sort_keys=True).encode() + b"\n"
        try:
            self._file: BinaryIO = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            try:
                self._lock()
                self._begin = len(first)
                if self._file.readline() != first:
                    self._file.seek(0)
                    self._file.truncate()
                    self._file.write(first)
                    self._file.flush()
                self.rows = sum(len(part.verdict) for part in self.parts())
                self._file.truncate()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise unwritable(path, error) from error

    def parts(self) -> Iterator[Measured]:
        """The measured rows from the first on; leaves the file's position behind the last whole block."""
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
        """Add the rows that come next.

        Raises:
            SourceError: The file cannot be written.
        """
        body = measured.lengths.tobytes() + measured.keys.tobytes() + measured.verdict.tobytes()
        try:
            self._file.write(_HEAD.pack(zlib.crc32(body), len(measured.verdict)) + body)
            self._file.flush()
        except OSError as error:
            raise unwritable(self._index, error) from error
        self.rows += len(measured.verdict)

    def delete(self) -> None:
        """The index is written; the journal has done its work."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _lock(self) -> None:
        """Held until the file is closed or the process ends."""
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(
                    f"another process is building the length index {self._index} at this moment. Wait for it; with "
                    "several ranks, build the index before they start (`ms-prefstream index`)."
                ) from None


CHUNK = 512  # rows that are measured, sent and saved together


def build_index(
    rows: int,
    loader: Loader,
    path: str | os.PathLike[str],
    fingerprint: Mapping[str, Any],
    *,
    origin: Callable[[int], str],
    raise_malformed: bool = True,
    progress: Progress | None = None,
    on_bad: Callable[[int, RowError], None] | None = None,
) -> LengthIndex:
    """Measure every row and write the index; a pass that was interrupted goes on where it ended.

    The file is the same, byte for byte, whatever the number of workers and interruptions.

    Args:
        rows: How many rows there are.
        loader: A `SampleLoader`, or a `LoaderPool` for several processes.
        path: Where the index is written; what is measured so far stands beside it with the suffix ``.part``.
        fingerprint: What decides about lengths and verdicts, by name, as plain values for JSON.
        origin: Row id to origin.
        raise_malformed: Whether a malformed row is an error (``on_bad_row="raise"``) or gets its verdict.
        progress: Is told how far the pass is.
        on_bad: Is called with each bad row and its error, origin included, once a row over all parts of the pass.

    Raises:
        RowError: The first malformed row, if such rows are errors.
        SourceError: The file cannot be written.
        StateError: Another process is building this index.
    """
    path, shown = os.fspath(path), progress or Silent()
    with Journal(path, {"version": VERSION, "rows": rows, "fingerprint": dict(fingerprint)}) as journal:
        if raise_malformed and journal.rows:
            _raise_known(journal, loader, origin)
        chunks = (range(begin, min(begin + CHUNK, rows)) for begin in range(journal.rows, rows, CHUNK))
        shown.begin(rows, journal.rows)
        try:
            for measured in measuring(loader)(chunks):
                for position, found in measured.errors:
                    _settle(found.at(origin(journal.rows + position)), journal.rows + position, raise_malformed, on_bad)
                journal.append(measured)
                shown.advance(len(measured.verdict))
        finally:
            shown.end()
        write_contents(path, rows, journal.parts(), fingerprint)
        journal.delete()
    return open_index(path, fingerprint, rows)


def raise_malformed_of(index: LengthIndex, loader: Loader, origin: Callable[[int], str]) -> None:
    """For ``on_bad_row="raise"`` with an index that was built with ``"drop"``: raise its first malformed row.

    Raises:
        RowError: That row's own error, with its origin.
    """
    row = index.first_malformed
    if row is not None:
        _raise_row(row, loader, origin)


def _raise_known(journal: Journal, loader: Loader, origin: Callable[[int], str]) -> None:
    begin = 0
    for part in journal.parts():
        row = first_malformed(part.verdict)
        if row is not None:
            _raise_row(begin + row, loader, origin)
        begin += len(part.verdict)


def _raise_row(row: int, loader: Loader, origin: Callable[[int], str]) -> None:
    (found,) = loader.load([row])
    if found.error is not None:
        raise found.error.at(origin(row))


def _settle(error: RowError, row: int, raise_malformed: bool, on_bad: Callable[[int, RowError], None] | None) -> None:
    if raise_malformed and error.reason.malformed:
        raise error
    if on_bad is not None:
        on_bad(row, error)
