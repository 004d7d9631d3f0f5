"""One part of a cache: a fixed range of rows in one MindRecord file. What a worker process does."""

from __future__ import annotations

import itertools
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.cache.fixed import check_fixed, fixed_columns, fixed_values, holds_pad
from ms_prefstream.errors import CacheError, OptionError, RowError
from ms_prefstream.formats.record import Record
from ms_prefstream.lengths.index import Measured, measure
from ms_prefstream.load.cached import task_options
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.mindrecord.files import FileNote, guarded, note_of, part_name
from ms_prefstream.mindrecord.manifest import FORMAT_VERSION
from ms_prefstream.mindrecord.ragged import ragged_columns, ragged_values
from ms_prefstream.mindrecord.reader import PLACE, SIDECAR, decode, places_of
from ms_prefstream.mindrecord.schema import Column
from ms_prefstream.mindrecord.writer import RecordFile
from ms_prefstream.sample import Loaded, Note, Ready, Sample
from ms_prefstream.tasks.base import Task

LAYOUTS = ("ragged", "mindrlhf", "mindformers")
ROWS_PER_PART = 8192


@dataclass(frozen=True, kw_only=True)
class Job:
    """The same job gives the same files, whatever the number of workers and interruptions.

    Attributes:
        layout: ``ragged``, ``mindrlhf`` or ``mindformers``.
        task: What rows become.
        width: Columns of the arrays of the fixed layouts.
        pad_id: What these are filled up with.
        rows_per_part: Rows of the source for each file.
        reference: Whether DPO samples carry reference log-probabilities.
    """

    layout: str
    task: Task
    width: int
    pad_id: int
    rows_per_part: int = ROWS_PER_PART
    reference: bool = False

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise OptionError(f"layout is {self.layout!r}; expected one of {', '.join(map(repr, LAYOUTS))}.")
        number = self.rows_per_part
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise OptionError(f"rows_per_part is {number!r}; expected a whole number of rows, 1 or more.")
        if self.layout != "ragged":
            check_fixed(self.layout, self.task)
        if self.width < self.task.length:
            raise OptionError(
                f"Pad: length is {self.width}, but rows may have {self.task.length} tokens. Give at least that many."
            )

    @property
    def columns(self) -> dict[str, Column]:
        """Of every file, in order."""
        if self.layout == "ragged":
            return ragged_columns(self.task.pairs, self.task.length, self.task.prompt_columns, self.task.margin)
        return fixed_columns(self.task, self.width, self.reference)

    @property
    def refuses_pad(self) -> bool:
        """Whether the layout's reader searches for the pad id."""
        return self.layout == "mindformers"

    def about(self) -> dict[str, Any]:
        """The job as plain values for JSON."""
        fixed = self.layout != "ragged"
        return {
            "version": FORMAT_VERSION,
            "layout": self.layout,
            "task": task_options(self.task),
            "width": self.width if fixed else None,
            "pad_token_id": self.pad_id,
            "rows_per_part": self.rows_per_part,
        }


_AT_ONCE = {"ragged": 512, "mindrlhf": 128, "mindformers": 128}  # rows that are loaded and written together
_COMPARED = 16  # rows of a part that are decoded again; tests prove that all of any file can be
NOTES = (Note.TRUNCATED, Note.REWRITTEN, Note.BOUNDARY_DIFFERS, Note.QUESTION_CUT)


@dataclass(frozen=True)
class PartTask:
    """What to write.

    Attributes:
        job: The choices.
        number: Which part, from 0.
        first: Its first row id.
        count: Its rows.
        folder: An existing folder, for this task alone.
        records: The records themselves where workers cannot read them.
    """

    job: Job
    number: int
    first: int
    count: int
    folder: str
    records: Sequence[Record | Ready | RowError] | None = None

    def __str__(self) -> str:
        return f"part {self.number} (rows {self.first} to {self.first + self.count - 1})"

    def row_ids(self) -> range:
        """Returns the row ids that the task loads."""
        return range(self.first, self.first + self.count) if self.records is None else range(0)


class PartDone(NamedTuple):
    """A part that was written.

    Attributes:
        number: Which.
        files: Name -> note; none if no row of the range is good.
        lengths: (n, 2) int32, see `LengthIndex`.
        keys: (n,) int32.
        verdict: (n,) uint8.
        places: (n,) of `PLACE`.
        notes: How many rows were cut, rewritten, differ at the boundary, lost their question.
        errors: (row id, error) of each bad row.
        origins: Reason -> where the first few rows of that reason come from; filled in by who knows origins.
    """

    number: int
    files: dict[str, FileNote]
    lengths: NDArray[np.int32]
    keys: NDArray[np.int32]
    verdict: NDArray[np.uint8]
    places: NDArray[Any]
    notes: tuple[int, ...]
    errors: list[tuple[int, RowError]]
    origins: dict[str, list[str]]


def write_part(loader: SampleLoader, task: PartTask) -> PartDone:
    """Load the rows of a part, write its file and prove that it holds them.

    Raises:
        CacheError: The file cannot be written, or does not hold what was written.
        OptionError: A text holds the pad id where it must not.
    """
    job, path = task.job, os.path.join(task.folder, part_name(task.number))
    measured: list[Measured] = []
    notes = dict.fromkeys(NOTES, 0)
    errors: list[tuple[int, RowError]] = []
    expected: list[int] = []
    sums: list[int] = []
    columns = job.columns
    arrays = {name: columns[name].dtype for name in sorted(columns) if columns[name].shape}
    # MindSpore reads files together only if their pages have one size; a part that comes first and is short is alone.
    with RecordFile(path, columns, task.count if task.number == 0 else job.rows_per_part) as file:
        step = _AT_ONCE[job.layout]
        for begin in range(0, task.count, step):
            found = _load(loader, task, begin, min(begin + step, task.count))
            rows, samples, noted = _good(loader, task, found, task.first + begin)
            if rows:
                values = _values(job, rows, samples, noted)
                file.write(values)
                first_rows = itertools.islice(zip(*(values[name] for name in arrays), strict=True), _COMPARED)
                sums = sums or [_checksum(row) for row in first_rows]
            expected += rows
            measured.append(measure(found))
            errors += [(task.first + begin + position, error) for position, error in measured[-1].errors]
            for note in NOTES:
                notes[note] += sum(bool(number & note) for number in noted)
    places = np.zeros(task.count, PLACE)
    files: dict[str, FileNote] = {}
    if expected:
        found_places = file.places()
        _prove(path, arrays, found_places, len(expected), sums)
        places[np.array(expected) - task.first] = found_places
        for name in (path, path + SIDECAR):
            with guarded(name):
                files[os.path.basename(name)] = note_of(name, len(expected))
    return PartDone(
        number=task.number,
        files=files,
        lengths=np.concatenate([one.lengths for one in measured]),
        keys=np.concatenate([one.keys for one in measured]),
        verdict=np.concatenate([one.verdict for one in measured]),
        places=places,
        notes=tuple(notes.values()),
        errors=errors,
        origins={},
    )


def _load(loader: SampleLoader, task: PartTask, begin: int, end: int) -> list[Loaded]:
    if task.records is not None:
        return loader.samples(task.records[begin:end])
    return loader.load(range(task.first + begin, task.first + end))


def _good(
    loader: SampleLoader, task: PartTask, found: Sequence[Loaded], first: int
) -> tuple[list[int], list[Sample], list[int]]:
    rows, samples, notes = [], [], []
    pad_id, refuses = task.job.pad_id, task.job.refuses_pad
    some = refuses and holds_pad([one.sample for one in found if one.sample is not None], pad_id)
    for row, one in enumerate(found, first):
        if one.sample is None:
            continue
        if some and holds_pad([one.sample], pad_id):
            raise OptionError(
                f"{loader.origin(row) if task.records is None else f'row {row}'}: its text holds the id "
                f"{pad_id}, which arrays are padded with. The reader of layout {task.job.layout!r} counts the "
                "ids that are not padding, and would take the row for shorter. Pass pad_token_id= (--pad-token-id) an "
                "id that no text has, such as a reserved token's."
            )
        rows.append(row)
        samples.append(one.sample)
        notes.append(int(one.notes))
    return rows, samples, notes


def _values(job: Job, rows: list[int], samples: list[Sample], notes: list[int]) -> dict[str, Any]:
    if job.layout == "ragged":
        return ragged_values(samples, notes, rows, job.columns)
    return fixed_values(samples, job.task, job.width, job.pad_id, job.reference)


def _checksum(arrays: Iterable[NDArray[Any]]) -> int:
    found = 0
    for array in arrays:
        found = zlib.crc32(np.ascontiguousarray(array).data, found)
    return found


def _prove(path: str, arrays: Mapping[str, str], places: NDArray[Any], rows: int, sums: Sequence[int]) -> None:
    """Read a file back: its rows lie where they are said to, and the first ones are decoded and compared.

    Args:
        path: The file.
        arrays: Name -> dtype of the columns of arrays, by name.
        places: Where its rows lie.
        rows: How many it must hold.
        sums: The checksums of the arrays of the first of them.
    """
    try:
        bounds = places_of(path)
        if len(bounds) != rows:
            raise ValueError(f"{rows} rows were written and {len(bounds)} are there")
        if (bounds[:, 0] != places["begin"]).any() or (bounds[:, 1] - bounds[:, 0] != places["size"]).any():
            raise ValueError("its sidecar gives its rows other places")
        found = decode(list(_blocks(path, bounds[: len(sums)])), list(arrays.values()))
        if [_checksum(row) for row in zip(*found, strict=True)] != sums:
            raise ValueError("it holds other values than were written")
    except (OSError, ValueError, KeyError, sqlite3.Error) as error:
        raise CacheError(f"{path} cannot be read back after it was written: {error}. Check the disk.") from error


def _blocks(path: str, bounds: NDArray[np.int64]) -> Iterator[bytes]:
    with open(path, "rb") as file:
        for begin, end in bounds.tolist():
            file.seek(begin)
            yield file.read(end - begin)
