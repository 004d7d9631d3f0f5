"""Bad rows: `BadRows` raises or counts them, `Quarantine` writes dropped ones to a file; in the parent process only."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ms_prefstream.disk import (
    MOST_BYTES,
    cause_of,
    check_path,
    close_quietly,
    exists,
    is_folder,
    open_regular,
    shown,
    size_of,
    status_of,
)
from ms_prefstream.errors import NoUsableRowsError, OptionError, RowError, SourceError
from ms_prefstream.part_range import PartRange
from ms_prefstream.report.report import PartReport, Report
from ms_prefstream.sample import Block
from ms_prefstream.sources.jsonl import dump_row
from ms_prefstream.sources.own_files import is_quarantine


class Quarantine:
    """A JSON Lines file of dropped rows: ``{"origin", "reason", "problem", "row"}``, created with the first of them.

    With several ranks the rank is put before the suffix (``bad.rank1.jsonl``). Only a quarantine is written over.

    Raises:
        OptionError: It is no path, or none that a file can have.
        SourceError: Its folder does not exist, or it is a folder itself.
    """

    def __init__(self, path: str | os.PathLike[str], rank: int = 0, world: int = 1) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise OptionError(f"quarantine is {path!r}; expected the path of a file to write.")
        self.rank, self.world = rank, world
        file = self._given = pathlib.Path(path)
        self.path = file if world == 1 else file.with_name(f"{file.stem}.rank{rank}{file.suffix}")
        self._file: IO[bytes] | None = None
        self._known: set[str] = set()
        check_path(self.path, OptionError, "quarantine")
        try:
            if not is_folder(file.parent):
                raise self._not_written(f"there is no folder {shown(file.parent)}")
            if is_folder(file):
                raise self._not_written("it is a folder")
            found = status_of(self.path)
        except OSError as error:
            raise self._not_written(cause_of(error)) from None
        if found is not None and stat.S_ISLNK(found.st_mode):
            raise self._not_written("it is a link, and only the file itself is written")

    def of_range(self, part_range: PartRange) -> Quarantine:
        """Returns the quarantine of the writer of a range of parts, with the range in its name."""
        return Quarantine(self._given.with_name(f"{self._given.stem}.{part_range.name}{self._given.suffix}"))

    def keep(self) -> None:
        """Appends to what an earlier part of the run wrote, on any number of ranks, without writing a row twice."""
        name = re.compile(rf"{re.escape(self._given.stem)}(\.rank\d+)?{re.escape(self._given.suffix)}")
        try:
            for path in self._given.parent.iterdir():
                if name.fullmatch(path.name) and size_of(path) is not None:
                    with open_regular(path, SourceError, "the quarantine file") as file:
                        if is_quarantine(file):
                            self._known.update(_read(file)[0])
            if self._file is None and exists(self.path):
                self._file = self._open()
                self._file.truncate(_read(self._file)[1])  # drop an incomplete line
                self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._not_written(cause_of(error)) from None

    def add(self, error: RowError, row: Any) -> None:
        """Writes one dropped row, unless an earlier part of the run did.

        Raises:
            SourceError: If the file cannot be written.
        """
        if error.origin in self._known:
            return
        why = dump_row({"origin": error.origin, "reason": str(error.reason), "problem": error.problem})
        line = why[:-1] + b',"row":' + dump_row(row) + b"}\n"  # the row alone: it may hold values that JSON has not
        try:
            if self._file is None:
                self._file = self._open()  # lives as long as the stream
                self._file.truncate(0)
                self._file.seek(0)
            self._file.write(line)
            self._file.flush()
        except OSError as error_:
            raise self._not_written(cause_of(error_)) from None

    def _open(self) -> IO[bytes]:
        """Opens the file; what is open is checked, so it cannot be exchanged in between."""
        file = open(self.path, "r+b", opener=self._descriptor)  # noqa: SIM115
        try:
            if os.fstat(file.fileno()).st_size and not is_quarantine(file):
                raise self._not_written("it exists and holds something else")
        except BaseException:
            file.close()
            raise
        return file

    def _descriptor(self, path: str, _: int) -> int:
        """Opens a regular file without following a link; Python would refuse a pipe in words of its own."""
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise self._not_written("it is no regular file")
        except BaseException:
            close_quietly(number)
            raise
        return number

    def _not_written(self, why: str) -> SourceError:
        return SourceError(
            f"quarantine file {shown(self.path)} cannot be written: {why}. Name a file in a folder that exists and can "
            "be written to."
        )


def _read(file: IO[bytes]) -> tuple[set[str], int]:
    """Returns the origins in a quarantine file, and where its last complete line ends."""
    origins, end = set(), 0
    file.seek(0)
    while line := file.readline(4 * MOST_BYTES):
        if line.endswith(b"\n"):
            end = file.tell()
            with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
                origins.add(str(json.loads(line)["origin"]))
    return origins, end


@dataclass(eq=False)
class BadRows:
    """Handler of a stream's bad rows: raises an error, or counts and quarantines the drop.

    Attributes:
        report: Counts.
        raise_malformed: Whether a malformed row is an error (``on_bad_row="raise"``) or a drop.
        origin: Row id to origin.
        raw: Row id to raw row, for the quarantine file.
        quarantine: Where dropped rows are written, or None.
        part: Row number to the report of its part of a mix, or None.
        watch: Called with all rows that are settled, or None.
        first: Added to row ids to number rows over all epochs, for sources whose epochs continue in the data.
    """

    report: Report
    raise_malformed: bool
    origin: Callable[[int], str]
    raw: Callable[[int], Any]
    quarantine: Quarantine | None = None
    part: Callable[[int], PartReport] | None = None
    first: int = 0
    watch: Callable[[Sequence[int], Block], None] | None = None

    def settle(self, rows: Sequence[int], loaded: Block) -> Block:
        """Returns the same rows; counts every one the first time it is seen.

        Raises:
            RowError: The first malformed row, with its origin, if such rows are errors.
        """
        errors = loaded.errors
        malformed = sorted(at for at, error in errors.items() if error.malformed) if self.raise_malformed else []
        counted = rows[: malformed[0]] if malformed else rows
        is_new = self.report.first_time([self.first + row for row in counted] if self.first else counted)
        if self.part is not None:
            for at, row in enumerate(counted):
                if is_new[at]:
                    self.part(self.first + row).count(errors.get(at))
        for at in sorted({*errors, *loaded.unread}) if errors or loaded.unread else ():
            if at < len(counted) and is_new[at]:
                self._count(rows[at], errors.get(at), loaded.unread.get(at, ()))
        if any(loaded.notes.tolist()):  # of a few rows: several times as fast as numpy
            new = [at for at in np.flatnonzero(loaded.notes[: len(counted)]).tolist() if is_new[at]]
            self.report.note([rows[at] for at in new], loaded.notes[new], self.origin)
        if malformed:
            raise errors[malformed[0]].raised(self.origin(rows[malformed[0]]))
        for error in errors.values():
            error.__cause__ = None  # it holds frames, and with them this stream; `trace` has what they say
        if self.watch is not None:
            self.watch(rows, loaded)
        return loaded

    def _count(self, row: int, error: RowError | None, unread: tuple[str, ...]) -> None:
        """Counts a row that was dropped, or of which nothing read some fields."""
        if error is None:
            self.report.note_unread(unread, self.origin(row))
            return
        error = error.at(self.origin(row))
        self.report.drop(error)
        if self.quarantine is not None:
            self.quarantine.add(error, self.raw(row))

    def nothing_left(self, rows: int) -> NoUsableRowsError:
        """Returns the error for a window without a good row, which says what happened to its rows."""
        dropped = self.report.dropped.most_common()
        why = "; ".join(f"{reason} {count:,}, first at {self.report.origins[reason][0]}" for reason, count in dropped)
        remedy = REMEDIES.get(dropped[0][0], _CORRECT) if dropped else _CORRECT
        return NoUsableRowsError(
            f"none of the {rows} rows of a window can be used (dropped so far: {why}); expected at least one good row "
            f"in each window. {remedy}, or use a larger window."
        )


_CORRECT = "Correct the rows, or choose the format= that reads them"
REMEDIES = {
    "too_long": "Raise the task's length, or choose another truncation",
    "no_response_tokens": "Raise the task's length",
    "identical_after_truncation": "Raise the task's length",
    "identical": "Leave out pairs whose sides are the same",
    "empty_response": "Leave out rows without a response",
    "template_refused": "Pass a template= that takes such conversations",
}
"""What to do about rows that are dropped, by reason."""
