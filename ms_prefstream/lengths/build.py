"""The pass over all rows that writes a length index, and the journal from which an interrupted pass resumes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.disk import is_at, remove_leftovers, shown, sync_folder
from ms_prefstream.errors import SourceError, StateError
from ms_prefstream.lengths.index import (
    MALFORMED,
    LengthIndex,
    Loader,
    Marks,
    Measure,
    Measured,
    first_wrong,
    measure_rows,
    measuring,
)
from ms_prefstream.lengths.index_file import VERSION, check_replaceable, open_index, unwritable, write_contents
from ms_prefstream.progress import Progress

JOURNAL_SUFFIX = ".journal"
JOURNAL_BEGINS = b"ms-prefstream length index journal "
_FIRST_LINE = JOURNAL_BEGINS.decode() + "1 {}\n"  # and the SHA-256 of what the rows depend on
_OWN = re.compile(_FIRST_LINE.format("[0-9a-f]{64}").encode())
_HEAD = struct.Struct("<II")  # CRC-32 of the rest, rows
COLUMNS = {
    "lengths": ("<i4", 2),
    "keys": ("<i4", 1),
    "verdict": ("|u1", 1),
    "hashes": ("<u8", 2),
    "order": ("<f8", 1),
}
"""Type and number of the values that a row has in each array of `Measured` that a journal can hold."""

_ALWAYS = ("lengths", "keys", "verdict")
_TRIES, _PAUSE = 20, 0.05  # seconds; another process may be creating or removing the journal
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
    marks: Marks | None = None,
) -> LengthIndex:
    """Measures every row and writes the index; an interrupted pass resumes where it ended.

    The file is byte-identical for any number of workers and interruptions.

    Args:
        rows: The number of rows.
        loader: A `SampleLoader`, or a `LoaderPool` for several processes.
        path: The file to write. Rows that are measured already are stored beside it, with the suffix ``.journal``.
        fingerprint: Everything that determines lengths and verdicts, by name, as plain values for JSON.
        origin: Maps a row id to its origin.
        raise_malformed: Whether a malformed row is an error (``on_bad_row="raise"``) or gets a verdict.
        progress: Shows how far the pass is.
        marks: What else is noted of rows; None for nothing.

    Raises:
        OptionError: Something that is no length index is at the path.
        RowError: The first malformed row, if such rows are errors.
        SourceError: The file cannot be written, or something that is no journal is at the journal's path.
        StateError: Another process is building this index.
    """
    path, bar = os.fspath(path), progress or Progress()
    check_replaceable(path)
    about = {"version": VERSION, "rows": rows, "fingerprint": dict(fingerprint)}
    how = measure_rows if marks is None else marks.measure
    with contextlib.closing(Journal(path, about, rows, () if marks is None else marks.columns)) as journal:
        if raise_malformed and journal.rows:
            raise_malformed_of(np.concatenate([part.verdict for part in journal.parts()]), loader, origin, how)
        chunks = (range(begin, min(begin + CHUNK, rows)) for begin in range(journal.rows, rows, CHUNK))
        bar.begin(rows, journal.rows)
        try:
            for measured in measuring(loader, how)(chunks):
                for position, error in measured.errors:
                    if raise_malformed and error.malformed:
                        raise error.raised(origin(journal.rows + position))
                journal.append(measured if marks is None else marks.checked(measured))
                bar.advance(len(measured.verdict))
        finally:
            bar.end()
        whole = journal.whole()
        if len(whole.verdict) != rows:
            raise StateError(
                f"{shown(journal.path)} was changed by another program while the length index was built. Build the "
                "index again."
            )
        check_replaceable(path)  # a pass may take hours
        write_contents(path, [whole if marks is None else marks.finished(whole)], fingerprint)
        remove_leftovers(path)
        journal.remove()
    return open_index(path, fingerprint, rows)


def raise_malformed_of(
    verdict: NDArray[np.uint8], loader: Loader, origin: Callable[[int], str], how: Measure = measure_rows
) -> None:
    """Raises the first malformed row of verdicts that were stored with ``on_bad_row="drop"``, for ``"raise"``.

    Raises:
        RowError: That row's own error, with its origin.
    """
    for row in np.flatnonzero(MALFORMED[verdict]).tolist():
        (found,) = measuring(loader, how)([range(row, row + 1)])
        if not found.errors:
            return
        for _, error in found.errors:
            if error.malformed:
                raise error.raised(origin(row))


class IndexInUseError(StateError):
    """Another process is building the index."""


class Journal:
    """Append-only file beside the index: a line that says for which rows, then blocks of measured rows with checksums.

    An incomplete block of a killed process is cut off. A journal of other data or settings is started again; any other
    file is left alone. The file is locked: one process at a time can build an index.

    Args:
        path: The index's path.
        about: Everything that the rows depend on; plain values for JSON.
        total: The number of rows of the source.
        columns: Names of further arrays of the rows, see `COLUMNS`.

    Attributes:
        path: The journal's path.
        rows: The number of rows that are measured already.

    Raises:
        SourceError: The file cannot be written, or is no journal.
        StateError: Another process is writing it.
    """

    def __init__(self, path: str, about: Mapping[str, Any], total: int, columns: Sequence[str] = ()) -> None:
        self.path = path + JOURNAL_SUFFIX
        self._index, self._total = path, total
        self._columns = {name: COLUMNS[name] for name in (*_ALWAYS, *columns)}
        self._row_bytes = sum(np.dtype(dtype).itemsize * many for dtype, many in self._columns.values())
        plan = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self._first = _FIRST_LINE.format(plan).encode()
        try:
            self._file = self._opened()
            self.rows = sum(len(part.verdict) for part in self.parts())
            self._file.truncate()
        except (OSError, ValueError) as error:
            raise unwritable(path, error) from error

    def parts(self) -> Iterator[Measured]:
        """Yields the measured rows from the first on; leaves the file's position at the end of the last whole block."""
        begin, left = len(self._first), self._total
        while (body := self._block(begin, left)) is not None:
            rows = len(body) // self._row_bytes
            measured = self._parsed(body, rows)
            if first_wrong(*measured[:3]) is not None:
                break
            begin, left = begin + _HEAD.size + len(body), left - rows
            yield measured
        self._file.seek(begin)

    def _block(self, begin: int, most: int) -> bytes | None:
        """Returns the rows of the block at an offset, at most so many; None if there is no whole one.

        Raises:
            SourceError: The file cannot be read.
        """
        try:
            end = os.fstat(self._file.fileno()).st_size
            self._file.seek(begin)
            head = self._file.read(_HEAD.size)
            checksum, rows = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
            size = rows * self._row_bytes
            if not 0 < rows <= most or begin + _HEAD.size + size > end:
                return None
            body = self._file.read(size)
        except OSError as error:
            raise unwritable(self._index, error) from error
        return body if len(body) == size and zlib.crc32(body) == checksum else None

    def whole(self) -> Measured:
        """Returns all measured rows."""
        arrays = {
            name: np.empty((self._total, many) if many > 1 else self._total, dtype)
            for name, (dtype, many) in self._columns.items()
        }
        end = 0
        for part in self.parts():
            begin, end = end, end + len(part.verdict)
            for name, array in arrays.items():
                array[begin:end] = getattr(part, name)
        return Measured(**{name: array[:end] for name, array in arrays.items()}, errors=[])

    def _parsed(self, body: bytes, rows: int) -> Measured:
        """Returns the rows of a block."""
        arrays, at = {}, 0
        for name, (dtype, many) in self._columns.items():
            array = np.frombuffer(body, dtype, many * rows, at)
            arrays[name] = array.reshape(rows, many) if many > 1 else array
            at += array.nbytes
        return Measured(**arrays, errors=[])

    def append(self, measured: Measured) -> None:
        """Adds the next rows."""
        body = b"".join(getattr(measured, name).astype(dtype).tobytes() for name, (dtype, _) in self._columns.items())
        try:
            self._file.write(_HEAD.pack(zlib.crc32(body), len(measured.verdict)) + body)
            self._file.flush()
        except OSError as error:
            raise unwritable(self._index, error) from error
        self.rows += len(measured.verdict)

    def remove(self) -> None:
        """Deletes the file, unless another is at its path by now."""
        _remove(self._file, self.path)

    def close(self) -> None:
        """Closes the file and releases its lock."""
        with contextlib.suppress(OSError):  # the rest of a block that found no room on the disk
            self._file.close()

    def _opened(self) -> IO[bytes]:
        """Returns the file, locked, with its first line: a new one, or the one that an interrupted pass has left."""
        for _ in range(_TRIES):
            with contextlib.suppress(FileExistsError):
                return self._created()
            with contextlib.suppress(FileNotFoundError):
                if (file := self._taken_over()) is not None:
                    return file
            time.sleep(_PAUSE)
        raise self._foreign()

    def _created(self) -> IO[bytes]:
        """Creates the file.

        Raises:
            FileExistsError: Something is at its path, be it a link that leads nowhere.
        """
        file = open(self.path, "x+b")  # noqa: SIM115 - closed in `close`
        try:
            self._lock(file)  # before the first line is written
        except BaseException:  # another process has taken it over
            file.close()
            raise
        try:
            file.write(self._first)
            file.flush()
            os.fsync(file.fileno())
            sync_folder(os.path.dirname(self.path))
        except BaseException:
            _remove(file, self.path)
            with contextlib.suppress(OSError):
                file.close()
            raise
        return file

    def _taken_over(self) -> IO[bytes] | None:
        """Opens the existing file; None while another process creates or removes it.

        An empty one is of a process that was killed before it wrote the line.

        Raises:
            FileNotFoundError: It was removed at this moment.
        """
        if not stat.S_ISREG(os.lstat(self.path).st_mode):
            raise self._foreign()
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = open(self.path, "r+b", opener=lambda path, _: os.open(path, flags))  # noqa: SIM115 - closed in `close`
        is_kept = False
        try:
            line = file.read(len(self._first))
            if line and not _OWN.fullmatch(line):
                raise self._foreign()
            self._lock(file)
            if not is_at(self.path, file.fileno()) or (not line and os.fstat(file.fileno()).st_size):
                return None
            if line != self._first:
                file.truncate(0)
                file.seek(0)
                file.write(self._first)
                file.flush()
            is_kept = True
            return file
        finally:
            if not is_kept:
                file.close()

    def _lock(self, file: IO[bytes]) -> None:
        """Locks the file until it is closed or the process ends."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IndexInUseError(
                f"another process is building the length index {shown(self._index)} at this moment. Wait for it; with "
                "several ranks, build the index before they start (`ms-prefstream index`)."
            ) from None

    def _foreign(self) -> SourceError:
        return SourceError(
            f"{shown(self.path)} is the place of the journal from which an interrupted pass resumes, and holds "
            "something else. Move it away, or give the index another path; nothing was changed."
        )


def _remove(file: IO[bytes], path: str) -> None:
    """Deletes an open file, unless another is at its path by now."""
    with contextlib.suppress(OSError):
        if is_at(path, file.fileno()):
            os.unlink(path)
