"""`mps.follow`: JSON Lines that another process is still writing, as a one-pass source.

Followed        the source: one pass over all rows
FollowedFiles   the files of a pass in their order, and the checks that this order holds
GrowingFile     the bytes of one file as they are appended
Ending          decides when the data has ended, and waits
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from ms_prefstream.checks import checked_call, is_positive, whole_number
from ms_prefstream.disk import check_path
from ms_prefstream.errors import OptionError, SourceError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sources.base import RawPass, begin_parts, start_pass
from ms_prefstream.sources.files import Handle, reading
from ms_prefstream.sources.json_text import DEFAULT_MAX_ROW_BYTES, check_max_row_bytes, refuse_foreign
from ms_prefstream.sources.lines import LineStream
from ms_prefstream.sources.store import is_url, without_secrets

_SUFFIXES = (".jsonl", ".ndjson")
_PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
_BLOCK = 1 << 18  # fits the processor's cache while its newlines are searched
_OVERLAP = 32  # bytes read again with each new block, which must not have changed


@checked_call
def follow(
    path: str | os.PathLike[str],
    *,
    until: int | str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    poll: float = 0.2,
    max_row_bytes: int = DEFAULT_MAX_ROW_BYTES,
) -> Followed:
    """Returns a source of the rows in a JSON Lines file, or in a folder of them, that is still being appended to.

        mps.stream(mps.follow("pairs.jsonl"), steps_per_epoch=100, window=1, …)
        mps.stream(mps.follow("rollouts/", until=64_000), window=1, …)

    Each row is delivered once, as soon as its line is complete. Epochs continue in the data: the second epoch begins
    after the last row of the first one, and a resumed run after the last row it trained on (rows are skipped by
    counting lines). An incomplete line waits. At the end of a file it counts as a row: many writers omit the last
    newline, and a line that a killed writer left unfinished is a bad row, which ``on_bad_row`` decides about as in any
    file.

    A window of the stream needs ``window`` times the global batch before its first step: use ``window=1`` where
    steps should follow the data closely.

    In a folder, files are read in the order of their names: all that end in .jsonl or .ndjson, without subfolders. A
    file is complete when a later one exists. Choose names that sort by time (step-000123.jsonl), and rename a file into
    the folder or write it there from its beginning. To start a new file now and then, follow a folder of numbered
    files. A file that appears or grows out of order is an error: other ranks and resumed runs would find its rows in
    another place. For several concurrent writers follow each one separately,
    ``mps.mix([(mps.follow("rollouts/0"), 1), (mps.follow("rollouts/1"), 1)])``. Keep all files until the run is over,
    because a resumed run counts their lines.

    The number of steps must be known before the first one: pass ``steps_per_epoch``, or a number of rows as `until`. If
    the data end before the last step of an epoch, the epoch ends in a `SourceError` that says why: catch it where an
    early end is expected, or keep epochs short (``steps_per_epoch`` as often as the model is saved). Rows that do not
    fill a window are then not used.

    Args:
        path: A file, which may not exist yet, or a folder.
        until: Ends the data. A path: as soon as that file exists, which the writer creates when it has written
            everything; it must not exist when the run begins. A number: after this many rows.
        timeout: Ends the data after this many seconds of waiting without new data. On one rank only: several ranks
            would not agree on the last row.
        poll: Seconds between two checks for new data.
        max_row_bytes: A longer row is not parsed: a `RowError` (`row_too_large`) takes its place.

    Raises:
        OptionError: An option is not allowed.
        SourceError: The folder does not exist, or the file is compressed.
    """
    path = _as_path("path", path)
    _refuse_packed(path)
    rows, sentinel = None, None
    if isinstance(until, (str, os.PathLike)):
        sentinel = _as_path("until", until)
    elif until is not None:
        rows = whole_number("until, as a number of rows,", until, 1)
    for name, seconds in (("timeout", timeout), ("poll", poll)):
        if not (is_positive(seconds) or (name == "timeout" and seconds is None)):
            raise OptionError(f"{name} is {seconds!r}; expected a number of seconds above 0.")
    return Followed(path, rows, Ending(sentinel, timeout, poll), check_max_row_bytes(max_row_bytes))


class Followed:
    """One pass over growing files. Created by `ms_prefstream.follow`, which checks the options.

    Attributes:
        rows: The number of rows, None if it is not known.
        ends_by_time: Whether a timeout ends the data, so that ranks do not end at the same row.
        ended: Why the last pass ended, in brackets, for the end of a clause; empty before that.
    """

    once = True  # rows cannot be counted or inspected beforehand
    continues = True  # each row is delivered once over all epochs: an epoch begins where the previous one ended
    start = start_pass

    def __init__(self, path: str, rows: int | None, ending: Ending, max_row_bytes: int) -> None:
        self.name = path
        self.rows = rows
        self.ends_by_time = ending.timeout is not None
        self.ended = ""
        self._ending = ending
        self._limit = max_row_bytes
        self._first_line = b""

    def begin(self, skip: int) -> tuple[int, RawPass]:
        """Skips up to `skip` rows, and waits for them. Returns how many were skipped, and the pass over the rest."""
        if self.rows is not None and skip >= self.rows:
            self.ended = self._all_given()
            return self.rows, iter(())
        skipped, rows = begin_parts(self._files(), skip)
        return skipped, rows if self.rows is None else self._first(self.rows - skipped, rows)

    def fingerprint(self) -> str:
        """Returns a hash of the first row, the only data that cannot change. It shows that old files were deleted."""
        self._first_line = self._first_line or self._read_first_line()
        return hash_of([b"follow", self._first_line])

    def _first(self, count: int, rows: RawPass) -> RawPass:
        yield from itertools.islice(rows, count)
        self.ended = self.ended or self._all_given()

    def _all_given(self) -> str:
        return f" (all until={self.rows} rows were given)"

    def _files(self) -> Iterator[Callable[[int], tuple[int, RawPass]]]:
        """Yields the method `begin` of each file, in order, up to the end of the data."""
        self.ended = ""
        ending = copy.copy(self._ending)
        files = FollowedFiles(self.name, ending.sentinel)
        while True:
            over = ending.over()
            path = files.next()
            if path is not None:
                file = GrowingFile(path)
                yield LineStream(path, file.blocks(ending, files.has_next), self._limit).begin
                files.finished(file.size)
            elif over:
                self.ended = ending.reason
                return
            else:
                ending.wait()

    def _read_first_line(self) -> bytes:
        """Returns the first line, empty if it is not complete yet."""
        path = FollowedFiles(self.name, self._ending.sentinel).next()
        if path is None:
            return b""
        with reading(path), open(path, "rb") as file:
            line = file.readline(self._limit)
        return line if line.endswith(b"\n") else b""


_File: TypeAlias = tuple[str, int, int]  # path, device and inode, so that a replaced file is another one


class FollowedFiles:
    """Files of a followed path in the order of their names, as far as a pass has read them.

    The order depends on names alone, so that every rank and every resumed run finds the same one.

    Args:
        path: A folder, or a file that may not exist yet.
        sentinel: A file to leave out.
    """

    def __init__(self, path: str, sentinel: str | None) -> None:
        self._path = path
        self._is_folder = os.path.isdir(path)
        self._sentinel = None if sentinel is None else os.path.abspath(sentinel)
        self._current: _File | None = None
        self._complete: dict[_File, int] = {}  # sizes of the files that were read to their end

    def next(self) -> str | None:
        """Moves to the next file and returns its path; None if it does not exist yet."""
        later = self._later()
        if not later:
            return None
        self._current = later[0]
        return self._current[0]

    def has_next(self) -> bool:
        """Returns whether a later file exists, so that the current one is complete."""
        return bool(self._later())

    def finished(self, size: int) -> None:
        """Notes that the current file was read to its end, at this size."""
        assert self._current is not None
        self._complete[self._current] = size

    def _later(self) -> list[_File]:
        sizes = self._list()
        files = list(sizes)
        if self._current is None:
            return files
        if self._current not in sizes:
            raise SourceError(
                f"{self._current[0]}: the file that was followed was deleted, replaced, or renamed. Its rows could "
                "not be found again on another rank or by a resumed run. Keep the files as they are until the run is "
                "over; to start new ones, follow a folder of files that are numbered with leading zeros."
            )
        at = files.index(self._current)
        for file in files[: at + (self._current in self._complete)]:
            self._check_complete(file, sizes[file], self._current[0])
        return files[at + 1 :]

    def _check_complete(self, file: _File, now: int, current: str) -> None:
        size = self._complete.get(file)
        if size == now:
            return
        found = f"the file was complete with {size} bytes, since a later one had begun, and has {now} bytes now"
        if size is None:
            found = f"the file appeared when {current}, which comes after it in the order of names, was being read"
        raise SourceError(
            f"{file[0]}: {found}. A writer must finish a file before it begins the next one, and files must appear in "
            "the order of their names (for example numbered with leading zeros). Follow each writer's files on their "
            "own and mix them with mps.mix."
        )

    def _list(self) -> dict[_File, int]:
        """Lists the files with their sizes. A listing may miss files that are being renamed, so two must agree."""
        found = self._list_once()
        while list(found) != list(found := self._list_once()):
            pass
        return found

    def _list_once(self) -> dict[_File, int]:
        found: dict[_File, int] = {}
        with reading(self._path):
            names = sorted(os.listdir(self._path)) if self._is_folder else []
            paths = [os.path.join(self._path, name) for name in names if not name.startswith(".")]
            for path in filter(self._is_data, paths) if self._is_folder else [self._path]:
                with contextlib.suppress(FileNotFoundError):  # not created yet, or renamed since the folder was listed
                    status = os.stat(path)
                    if not stat.S_ISREG(status.st_mode):
                        raise SourceError(f"{path}: found something else than a regular file; only those are followed.")
                    found[path, status.st_dev, status.st_ino] = status.st_size
        return found

    def _is_data(self, path: str) -> bool:
        if os.path.abspath(path) == self._sentinel or os.path.isdir(path):
            return False
        stem, suffix = os.path.splitext(path.lower())
        if stem.endswith(_SUFFIXES):
            _refuse_packed(path)
        return suffix in _SUFFIXES


def _refuse_packed(path: str) -> None:
    if path.lower().endswith(_PACKED) and not os.path.isdir(path):
        raise SourceError(
            f"{path}: found a compressed file, which cannot be followed. Write plain JSON Lines while the run reads "
            "them, and compress them when it is over."
        )


class GrowingFile:
    """File that is only appended to; it is read without a lock.

    Attributes:
        size: Bytes read so far.
    """

    def __init__(self, path: str) -> None:
        self.size = 0
        self._path = path
        self._handle = Handle(path)
        self._last = b""

    def blocks(self, ending: Ending, is_complete: Callable[[], bool]) -> Iterator[bytes]:
        """Yields the contents as they are written, up to the end of the file.

        Args:
            ending: Waits for more data, and decides when to stop waiting.
            is_complete: Returns whether the file will not grow any more; called when there is no more data.
        """
        over = False
        while True:
            while block := self._read():
                over = False
                ending.reset()
                yield block
            if over:  # since before the last read, which therefore saw the last byte
                return
            over = ending.over() or is_complete()
            if not over:
                ending.wait()

    def _read(self) -> bytes:
        """Returns the next bytes; empty if there are none yet."""
        with reading(self._path):
            size = os.fstat(self._handle.fd).st_size
            seen, block = self._last, b""
            if size > self.size:
                seen = os.pread(self._handle.fd, len(self._last), self.size - len(self._last))
                block = os.pread(self._handle.fd, _BLOCK, self.size)
        if size < self.size or seen != self._last:
            found = f"has {size} bytes now" if size < self.size else "has other contents there now"
            raise SourceError(
                f"{self._path}: {self.size} bytes of the file were read, but it {found}: it was truncated or "
                "rewritten. A file that is followed may only be appended to. To start a new file, follow a folder of "
                "files that are numbered with leading zeros."
            )
        if self.size == 0 and block:
            refuse_foreign(self._path, block[:4])
        self._last = (self._last + block[-_OVERLAP:])[-_OVERLAP:]
        self.size += len(block)
        return block


@dataclass
class Ending:
    """Decides whether a pass over followed files is over, and waits for data.

    Only time spent waiting here counts towards the timeout, not the time in which the reader is busy elsewhere.

    Attributes:
        sentinel: A file whose existence means that everything has been written, or None.
        timeout: Seconds without data, or None to wait without limit.
        poll: Seconds between two checks.
        reason: Why the pass is over, in brackets.
    """

    sentinel: str | None
    timeout: float | None
    poll: float
    reason: str = ""
    _idle_since: float | None = None

    def over(self) -> bool:
        """Returns whether no more data will come. What exists by then must still be read."""
        if self.sentinel is not None and os.path.exists(self.sentinel):
            self.reason = f" (the sentinel file {self.sentinel} was there)"
        elif self.timeout is not None and self._idle() >= self.timeout:
            self.reason = f" (nothing was written for timeout={self.timeout:g} seconds)"
        else:
            return False
        return True

    def reset(self) -> None:
        """Restarts the timeout, because there was new data."""
        self._idle_since = None

    def wait(self) -> None:
        """Sleeps until the next check; short, so that an interrupt takes effect soon."""
        self._idle_since = self._idle_since or time.monotonic()
        left = self.poll if self.timeout is None else self.timeout - self._idle()
        time.sleep(max(0.0, min(self.poll, left)))

    def _idle(self) -> float:
        return 0.0 if self._idle_since is None else time.monotonic() - self._idle_since


def _as_path(name: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise OptionError(f"{name} is {value!r}; expected the path of a file or a folder that is being written.")
    path = os.path.expanduser(os.fspath(value))
    check_path(path, SourceError, name)
    if is_url(path):
        raise SourceError(
            f"{name} is {without_secrets(path)}, which lies in a store; expected a file on a disk. Pass the URL to "
            "mps.stream when the file is complete: it is copied once."
        )
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise SourceError(
            f"{name} is {path!r}, but there is no folder {folder!r}. The file may be created later, its folder must "
            "exist: create it, or correct the path."
        )
    return path
