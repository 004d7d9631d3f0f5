"""JSON Lines that another process is still writing, as a source: what a user asks for with `follow`."""

from __future__ import annotations

import itertools
import math
import numbers
import operator
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from ms_prefstream.errors import OptionError, SourceError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sources.base import RawRow, start_pass
from ms_prefstream.sources.files import Handle, unreadable
from ms_prefstream.sources.followed_files import FollowedFiles, Place
from ms_prefstream.sources.lines import (
    DEFAULT_MAX_ROW_BYTES,
    LineStream,
    check_max_row_bytes,
    refuse_foreign,
    without_bom,
)


class Ending:
    """Decides whether a pass over followed files is over, and waits.

    Only time spent waiting here counts towards the timeout, not the time in which the reader is busy elsewhere.

    Args:
        sentinel: A file whose existence means that everything has been written; None for none.
        timeout: Seconds without data; None for ever.
        poll: Seconds between two looks.
    """

    def __init__(self, sentinel: str | None, timeout: float | None, poll: float) -> None:
        self._sentinel, self._timeout, self._poll = sentinel, timeout, poll
        self._idle_since: float | None = None
        self.reason = ""

    def over(self) -> bool:
        """Whether nothing more is going to come. What is there by then must still be read."""
        if self._sentinel is not None and os.path.exists(self._sentinel):
            self.reason = f" (the sentinel file {self._sentinel} was there)"
            return True
        idle = 0.0 if self._idle_since is None else time.monotonic() - self._idle_since
        if self._timeout is not None and idle >= self._timeout:
            self.reason = f" (nothing was written for timeout={self._timeout:g} seconds)"
            return True
        return False

    def data(self) -> None:
        """Something new was there."""
        self._idle_since = None

    def wait(self) -> None:
        """Sleep until the next look; short, so that an interrupt is heard."""
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        left = self._poll if self._timeout is None else self._idle_since + self._timeout - now
        time.sleep(max(0.0, min(self._poll, left)))


_BLOCK = 1 << 18  # stays in the processor's cache while its newlines are looked for
_OVERLAP = 32  # bytes read again with each new block, which must still be what they were


class GrowingFile:
    """A file that is only ever appended to; it is read without a lock.

    Args:
        path: The file.

    Attributes:
        read: Bytes read so far.

    Raises:
        SourceError: It cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.read = 0
        self._path = path
        self._handle = Handle(path)  # stays open when the file is renamed, closes itself
        self._last = b""

    def block(self) -> bytes:
        """The next bytes; empty if there are none yet.

        Raises:
            SourceError: The file was cut off or written anew.
        """
        try:
            size = os.fstat(self._handle.fd).st_size
            more = size > self.read
            seen = os.pread(self._handle.fd, len(self._last), self.read - len(self._last)) if more else self._last
            block = os.pread(self._handle.fd, _BLOCK, self.read) if more else b""
        except OSError as error:
            raise unreadable(self._path, error) from error
        if size < self.read or seen != self._last:
            found = f"has {size} bytes now" if size < self.read else "has other contents there now"
            raise SourceError(
                f"{self._path}: {self.read} bytes of the file were read, but it {found}: it was cut off or written "
                "anew. A file that is followed may only be appended to. Rotate it by renaming it and creating a new "
                "one (logrotate: create, not copytruncate)."
            )
        if self.read == 0 and block:
            refuse_foreign(self._path, block[:4])
        self._last = (self._last + block[-_OVERLAP:])[-_OVERLAP:]
        self.read += len(block)
        return block


def grow(file: GrowingFile, ending: Ending, complete: Callable[[], bool]) -> Iterator[bytes]:
    """The contents of a growing file, as they are written, up to its end.

    Args:
        file: The file, unread.
        ending: Ends the waiting.
        complete: Whether nothing more is going to be written to this file; asked when there is no more data.
    """
    return without_bom(_blocks(file, ending, complete))


def _blocks(file: GrowingFile, ending: Ending, complete: Callable[[], bool]) -> Iterator[bytes]:
    over = False
    while True:
        nothing = True
        while block := file.block():
            nothing = False
            ending.data()
            yield block
        if not nothing:
            over = False
        elif over:  # declared before this last reading: what was written by then was read to the last byte
            return
        else:
            over = ending.over() or complete()
            if not over:
                ending.wait()


def follow(
    path: str | os.PathLike[str],
    *,
    until: int | str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    poll: float = 0.2,
    max_row_bytes: int = DEFAULT_MAX_ROW_BYTES,
) -> Followed:
    """A JSON Lines file, or a folder of them, that another process is still appending to.

        mps.stream(mps.follow("pairs.jsonl"), steps_per_epoch=100, window=1, …)
        mps.stream(mps.follow("rollouts/", until=64_000), window=1, …)

    Rows are delivered once, as soon as their line is complete. Epochs go on in the data: the second one begins
    behind the last row of the first, and a resumed run behind the last row it trained on (rows are skipped by
    counting lines). A line that is not complete waits. At the end of a file it counts as a row all the same: many
    writers leave out the last newline, and a line that a killed writer left unfinished is a bad row, for
    ``on_bad_row`` to decide about like in any file.

    A window of the stream needs ``window`` times the global batch before its first step: use ``window=1`` where
    steps should follow the data closely.

    Files come in the order of their names. In a folder those are all that end in .jsonl or .ndjson, without
    subfolders; a file is complete when a later one exists, so give names that sort by time (step-000123.jsonl), and
    rename a file into the folder or write it there from its beginning. A single file comes behind its rotated
    predecessors (pairs.jsonl.2, pairs.jsonl.1, pairs.jsonl, or dates behind the name). A file that appears or grows
    out of order is an error: other ranks and resumed runs would find its rows in another place. For several writers
    at once follow each one on its own, ``mps.mix([(mps.follow("rollouts/0"), 1), (mps.follow("rollouts/1"), 1)])``.
    Keep all files until the run is over, since resuming counts their lines.

    How many steps there are must be known before the first one: pass ``steps_per_epoch``, or a number of rows as
    `until`. If the data end before the last step of an epoch, the epoch ends in a `SourceError` that says why: catch
    it where an early end is no fault, or keep epochs short (``steps_per_epoch`` as often as the model is saved). Rows
    that do not fill a window are then not used.

    Args:
        path: A file, which may not exist yet, or a folder.
        until: Ends the data. A path: as soon as that file exists, which the writer creates when it has written
            everything; it must not be there yet when the run begins. A number: after this many rows.
        timeout: Ends the data after this many seconds of waiting without any. On one rank only: several would not
            agree on the last row.
        poll: Seconds between two looks at the files.
        max_row_bytes: A row above this is not parsed but comes as a `RowError` (`row_too_large`).

    Raises:
        OptionError: An option is not what it can be.
        SourceError: The folder does not exist, or the file is compressed.
    """
    path = _as_path("path", path)
    rows, sentinel = None, None
    if isinstance(until, (str, os.PathLike)):
        sentinel = _as_path("until", until)
        folder = os.path.dirname(sentinel) or "."
        if not os.path.isdir(folder):
            raise SourceError(f"until={sentinel!r}: there is no folder {folder!r} in which that file could appear.")
    elif until is not None:
        rows = _as_rows(until)
    if timeout is not None:
        timeout = _as_seconds("timeout", timeout)
    poll = _as_seconds("poll", poll)
    return Followed(
        FollowedFiles(path, sentinel),
        rows=rows,
        sentinel=sentinel,
        timeout=timeout,
        poll=poll,
        max_row_bytes=check_max_row_bytes(max_row_bytes),
    )


class Followed:
    """One pass over growing files. Made by `ms_prefstream.follow`.

    Attributes:
        name: What the rows come from, for people.
        rows: How many rows there will be, None when that is not known.
        ends_by: What ends the data: ``timeout``, ``sentinel``, ``rows``, or empty when nothing does. With a timeout
            ranks do not end at the same row.
        once: Rows are not there to be counted or looked at beforehand.
        continues: Each row is delivered once over all epochs: an epoch begins where the one before ended.
        ended: Why the last pass ended, in brackets, for the end of a clause; empty before that.
    """

    once = True
    continues = True

    def __init__(
        self,
        files: FollowedFiles,
        *,
        rows: int | None,
        sentinel: str | None,
        timeout: float | None,
        poll: float,
        max_row_bytes: int,
    ) -> None:
        self.name = files.path
        self.rows = rows
        self.ends_by: Literal["timeout", "sentinel", "rows", ""] = (
            "timeout" if timeout is not None else "sentinel" if sentinel is not None else "rows" if rows else ""
        )
        self.ended = ""
        self._files = files
        self._ending = (sentinel, timeout, poll)
        self._limit = max_row_bytes
        self._first_line: bytes | None = None

    def start(self, skip: int = 0) -> Iterator[tuple[str, RawRow]]:
        """A pass over (file:line, row) behind the first `skip` rows, which are counted but not parsed.

        Waits for rows that are not there yet, those to be skipped as well.

        Raises:
            SourceError: There are not that many rows; or, from `next`, a file changed in a way that loses rows.
        """
        return start_pass(self, self.name, skip)

    def begin(self, skip: int) -> tuple[int, Iterator[tuple[str, RawRow]]]:
        """How many of `skip` rows there were to skip, and the pass over the rest."""
        if self.rows is not None and skip >= self.rows:
            self.ended = self._all_rows()
            return self.rows, iter(())
        skipped, files = 0, self._lines()
        if skip:
            for lines in files:
                skipped += lines.skip(skip - skipped)
                if skipped == skip:
                    files = itertools.chain([lines], files)
                    break
        return skipped, self._rows(files, None if self.rows is None else self.rows - skipped)

    def fingerprint(self) -> str:
        """A hash of the first row: all that is certain not to change. It shows that old files were deleted."""
        if self._first_line is None:
            self._first_line = self._read_first_line()
        return hash_of([b"follow", self._first_line or b""])

    def _rows(self, files: Iterator[LineStream], most: int | None) -> Iterator[tuple[str, RawRow]]:
        rows = itertools.chain.from_iterable(lines.rows() for lines in files)
        for number, row in enumerate(rows, 1):
            yield row
            if number == most:
                self.ended = self._all_rows()
                return

    def _lines(self) -> Iterator[LineStream]:
        """The lines of each file, in order, up to the end of the data."""
        self.ended = ""
        place, ending = Place(self._files), Ending(*self._ending)
        while True:
            over = ending.over()
            entry = place.next()
            if entry is not None:
                file = GrowingFile(entry.path)
                yield LineStream(entry.path, grow(file, ending, place.has_next), self._limit)
                place.finished(file.read)
            elif over:
                self.ended = ending.reason
                return
            else:
                ending.wait()

    def _all_rows(self) -> str:
        return f" (all until={self.rows} rows were given)"

    def _read_first_line(self) -> bytes | None:
        for entry in self._files.entries():
            try:
                with open(entry.path, "rb") as file:
                    line = file.readline(self._limit)
            except OSError as error:
                raise unreadable(entry.path, error) from error
            return line if line.endswith(b"\n") else None
        return None


def _as_path(name: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise OptionError(f"{name} is {value!r}; expected the path of a file or a folder that is being written.")
    return os.path.expanduser(os.fspath(value))


def _as_rows(value: Any) -> int:
    try:
        rows = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        rows = 0
    if rows < 1:
        raise OptionError(f"until is {value!r}; expected a number of rows, 1 or more, or the path of a file.")
    return rows


def _as_seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise OptionError(f"{name} is {value!r}; expected a number of seconds above 0.")
    return float(value)
