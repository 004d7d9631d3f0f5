"""What an index pass has measured so far, on disk: a pass that is interrupted continues behind it."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ms_prefstream.errors import StateError
from ms_prefstream.lengths.layout import unwritable
from ms_prefstream.lengths.measure import Measured

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
