"""Bad rows: `BadRows` raises or counts them, `Quarantine` writes dropped ones to a file; in the parent process only."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from ms_prefstream.errors import DroppedRowError, NoUsableRowsError, OptionError, RowError, SourceError
from ms_prefstream.report.report import PartReport, Report
from ms_prefstream.sample import Loaded, Note, Sample
from ms_prefstream.sources.jsonl import dump_row


class Quarantine:
    """A JSON Lines file of dropped rows: ``{"origin", "reason", "problem", "row"}``, created with the first of them.

    With several ranks the rank is put before the suffix (``bad.rank1.jsonl``).

    Raises:
        OptionError: It is no path.
        SourceError: Its folder does not exist, or it is a folder itself.
    """

    def __init__(self, path: str | os.PathLike[str], rank: int = 0, world: int = 1) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise OptionError(f"quarantine is {path!r}; expected the path of a file to write.")
        self.rank, self.world = rank, world
        file = self._given = pathlib.Path(path)
        self.path = file if world == 1 else file.with_name(f"{file.stem}.rank{rank}{file.suffix}")
        self._mode = "wb"
        self._file: IO[bytes] | None = None
        self._known: set[str] = set()
        if not file.parent.is_dir():
            raise self._not_written(f"there is no folder {file.parent}")
        if file.is_dir():
            raise self._not_written("it is a folder")

    def keep(self) -> None:
        """Appends to what an earlier part of the run wrote, on any number of ranks, without writing a row twice."""
        self._mode = "ab"
        name = re.compile(rf"{re.escape(self._given.stem)}(\.rank\d+)?{re.escape(self._given.suffix)}")
        try:
            for path in self._given.parent.iterdir():
                if name.fullmatch(path.name):
                    self._known.update(_origins(path.read_bytes()))
            if self._file is None and self.path.exists():
                os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)  # drop an incomplete line
        except OSError as error:
            raise self._not_written(str(error.strerror)) from None

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
                self._file = open(self.path, self._mode)  # noqa: SIM115 - lives as long as the stream
            self._file.write(line)
            self._file.flush()
        except OSError as error_:
            raise self._not_written(str(error_.strerror)) from None

    def _not_written(self, why: str) -> SourceError:
        return SourceError(
            f"quarantine file {self.path} cannot be written: {why}. Name a file in a folder that exists and can be "
            "written to."
        )


def _origins(content: bytes) -> list[str]:
    """Returns the origins in a quarantine file; skips an incomplete last line."""
    origins = []
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            origins.append(str(json.loads(line)["origin"]))
        except (ValueError, LookupError, TypeError):
            continue
    return origins


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
        first: Added to row ids to number rows over all epochs, for sources whose epochs continue in the data.
    """

    report: Report
    raise_malformed: bool
    origin: Callable[[int], str]
    raw: Callable[[int], Any]
    quarantine: Quarantine | None = None
    part: Callable[[int], PartReport] | None = None
    first: int = 0

    def settle(self, rows: Sequence[int], loaded: Sequence[Loaded]) -> list[Sample | None]:
        """Returns the samples, None for dropped rows; counts every row the first time it is seen.

        Raises:
            RowError: The first malformed row, with its origin, if such rows are errors.
        """
        samples: list[Sample | None] = []
        for row, (sample, error, notes) in zip(rows, loaded, strict=True):
            samples.append(sample)
            malformed = error is not None and error.reason.malformed and not isinstance(error, DroppedRowError)
            if error is not None and malformed and self.raise_malformed:
                raise error.raised(self.origin(row))
            if not self.report.first_time(self.first + row):
                continue
            if self.part is not None:
                self.part(self.first + row).count(error)
            if error is not None:
                error = error.at(self.origin(row))
                self.report.drop(error)
                if self.quarantine is not None:
                    self.quarantine.add(error, self.raw(row))
            elif notes:
                self.report.truncated += bool(notes & Note.TRUNCATED)
                self.report.question_cut += bool(notes & Note.QUESTION_CUT)
                self.report.rewritten += bool(notes & Note.REWRITTEN)
                self.report.boundary_differs += bool(notes & Note.BOUNDARY_DIFFERS)
        return samples

    def packed(self, made: int, wanted: int, left_out: int, repeats: int) -> None:
        """Counts a packed window: packs that its rows filled and its steps took, rows left out and rows repeated."""
        self.report.packs_made += made
        self.report.packs_wanted += wanted
        self.report.left_out += left_out
        self.report.repeats += repeats

    def nothing_left(self, rows: int) -> NoUsableRowsError:
        """Returns the error for a window without a good row, which says what happened to its rows."""
        dropped = self.report.dropped.most_common()
        why = "; ".join(f"{reason} {count:,}, first at {self.report.origins[reason][0]}" for reason, count in dropped)
        remedy = _REMEDIES.get(dropped[0][0], _CORRECT) if dropped else _CORRECT
        return NoUsableRowsError(
            f"none of the {rows} rows of a window can be used (dropped so far: {why}); expected at least one good row "
            f"in each window. {remedy}, or use a larger window."
        )


_CORRECT = "Correct the rows, or choose the format= that reads them"
_REMEDIES = {
    "too_long": "Raise the task's length, or choose another truncation",
    "no_response_tokens": "Raise the task's length",
    "identical_after_truncation": "Raise the task's length",
    "identical": "Leave out pairs whose sides are the same",
    "empty_response": "Leave out rows without a response",
    "template_refused": "Pass a template= that takes such conversations",
}
