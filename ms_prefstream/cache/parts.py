"""Parts of a cache: a fixed range of the source's rows in one MindRecord file, written in one call by any process."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ms_prefstream.cache.layouts import Job, part_files
from ms_prefstream.disk import MOST_BYTES, check_own, parse_json, read_file, shown
from ms_prefstream.errors import CacheError, OptionError, RowError, printable
from ms_prefstream.lengths.index import GOOD, REASONS, first_wrong, measure
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.load.marks import LEFT_OUT
from ms_prefstream.load.one_pass import RecordWithOrigin
from ms_prefstream.mindrecord.files import Count, FileNote, guarded, note_of, write_small
from ms_prefstream.mindrecord.manifest import checksum_of
from ms_prefstream.mindrecord.megatron import MEGATRON, TOKEN, TokenFiles, file_bytes
from ms_prefstream.mindrecord.sidecar import PLACE, read_offsets
from ms_prefstream.mindrecord.writer import RecordFile
from ms_prefstream.sample import Block, Note

NOTES = (
    *(Note.TRUNCATED, Note.REWRITTEN, Note.BOUNDARY_DIFFERS, Note.QUESTION_CUT),  # always in manifests
    *(Note.CONTENT_LOST, Note.EMPTY_THINK, Note.MARKERS),  # where they are counted
)
_WHAT = "the note on a part"
_log = logging.getLogger(__name__)
_ROWS_COMPARED = 16  # rows of a part whose bytes are compared after writing; tests cover whole files


@dataclass(frozen=True)
class PartTask:
    """One part to write.

    Attributes:
        job: The options.
        number: Its number, from 0.
        first: Its first row id.
        count: Its rows.
        folder: An existing folder for this task alone.
        verdict: (count,) uint8, what a length index that leaves out good rows says of them; None without one.
        read: The rows themselves where the source can only be read in the parent process. Workers get no more of them
            than the records.
    """

    job: Job
    number: int
    first: int
    count: int
    folder: str
    verdict: NDArray[np.uint8] | None = None
    read: Sequence[RecordWithOrigin] | None = None

    def __str__(self) -> str:
        return f"part {self.number} (rows {self.first} to {self.first + self.count - 1})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "read": self.read and [("", None, record) for _, _, record in self.read]}

    def row_ids(self) -> range:
        """Returns the row ids that the task loads."""
        return range(self.first, self.first + self.count) if self.read is None else range(0)

    def load(self, loader: SampleLoader, begin: int, end: int) -> Block:
        """Returns the samples of some of its rows, by their position in the part."""
        if self.read is not None:
            first = self.first + begin
            return loader.samples([record for _, _, record in self.read[begin:end]], lambda at: f"row {first + at}")
        block = loader.load(range(self.first + begin, self.first + end))
        for at, code in enumerate([] if self.verdict is None else self.verdict[begin:end].tolist()):
            if code != GOOD and (error := LEFT_OUT.get(REASONS[code])) is not None:
                block.refuse(at, error)
        return block


ROW = np.dtype([("lengths", "<i4", 2), ("key", "<i4"), ("verdict", "u1"), ("place", PLACE)])
"""A row of the source in the tables of a cache; see `Measured` and `PLACE`."""


class PartDone(NamedTuple):
    """A finished part.

    Attributes:
        number: Its number.
        files: Name -> note; none if no row of the part is good.
        rows: (n,) of `ROW`, good or bad.
        notes: How many rows have each of `NOTES`.
        errors: (row id, error) of each bad row; empty for a part that was read back.
        origins: Reason -> origins of its first few bad rows. The parent process fills them in.
        unread: (row id, fields that nothing read) of good rows; empty for a part that was read back.
    """

    number: int
    files: dict[str, FileNote]
    rows: NDArray[Any]
    notes: list[int]
    errors: list[tuple[int, RowError]]
    origins: dict[str, list[str]]
    unread: Sequence[tuple[int, tuple[str, ...]]] = ()


def write_part(loader: SampleLoader, task: PartTask) -> PartDone:
    """Loads the rows of a part, writes its files and checks what was written.

    Raises:
        CacheError: The file cannot be written, or does not hold what was written.
        OptionError: A text holds the pad id, and readers of the layout search for it.
    """
    job, paths = task.job, [os.path.join(task.folder, name) for name in part_files(task.job.layout, task.number)]
    table = np.zeros(task.count, ROW)
    errors: list[tuple[int, RowError]] = []
    unread: list[tuple[int, tuple[str, ...]]] = []
    notes = dict.fromkeys(NOTES, 0)
    # MindSpore reads files together only if their pages have one size; a short first part is the only one.
    most = task.count if task.number == 0 else job.rows_per_part
    with TokenFiles(paths) if job.layout == MEGATRON else RecordFile(paths[0], job.columns, most) as file:
        step = 128 if job.pads else 512
        for begin in range(0, task.count, step):
            end = min(begin + step, task.count)
            loaded = task.load(loader, begin, end)
            lengths, keys, verdict, bad, *_ = measure(loaded)
            table["lengths"][begin:end], table["key"][begin:end], table["verdict"][begin:end] = lengths, keys, verdict
            errors += [(task.first + begin + position, error) for position, error in bad]
            good = np.flatnonzero(verdict == GOOD)
            kept, rows = loaded.take(good), (task.first + begin + good).tolist()
            unread += [(rows[at], fields) for at, fields in sorted(kept.unread.items())]
            if job.counts_padding:
                _check_pad(loader, task, rows, kept)
            if rows:
                file.write(job.values(kept, rows))
            for note in NOTES:
                notes[note] += int(np.count_nonzero(kept.notes & note))
    files: dict[str, FileNote] = {}
    is_good = table["verdict"] == GOOD
    if count := int(np.count_nonzero(is_good)):
        if isinstance(file, RecordFile):
            places = file.places()
            _check_written(paths[0], places, count)
            table["place"][is_good] = places
        else:
            table["place"][is_good] = _token_places(table["lengths"][is_good])
        for path in paths:
            with guarded(path):
                files[os.path.basename(path)] = note_of(path, count)
    return PartDone(task.number, files, table, list(notes.values()), errors, {}, unread)


def write_part_apart(loader: SampleLoader, task: PartTask) -> PartDone:
    """Writes a part in a new folder in that of the task, where a lost process may have begun it; see `write_part`."""
    folder = os.path.join(task.folder, uuid.uuid4().hex)
    os.mkdir(folder)
    done = write_part(loader, dataclasses.replace(task, folder=folder))
    for name in done.files:
        os.replace(os.path.join(folder, name), os.path.join(task.folder, name))
    shutil.rmtree(folder, ignore_errors=True)
    return done


_NOTE_VERSION = 2
_MOST_NOTE = 1 << 30  # bytes, more than any part has


class _Note(msgspec.Struct, forbid_unknown_fields=True):
    version: Literal[2]
    number: Count
    files: dict[str, FileNote]
    rows: bytes
    notes: Annotated[list[Count], msgspec.Meta(min_length=len(NOTES), max_length=len(NOTES))]
    origins: dict[str, list[str]]
    checksum: str

    def check(self, number: int, most: int, layout: str) -> PartDone:
        """Returns the part; raises ValueError unless it is that of this number, with at most so many rows."""
        rows = np.frombuffer(self.rows, ROW)
        verdict, size = rows["verdict"], rows["place"]["size"].astype(np.int64)
        good = verdict == GOOD
        names = part_files(layout, number) if good.any() else []
        if self.number != number or not 0 < len(rows) <= most:
            raise ValueError(f"it is on part {self.number} with {len(rows):,} rows; expected part {number}")
        if list(self.files) != names or any(note.rows != np.count_nonzero(good) for note in self.files.values()):
            raise ValueError("field files has other files, or other numbers of rows")
        if names and layout == MEGATRON and [note.bytes for note in self.files.values()] != file_bytes(rows["lengths"]):
            raise ValueError("field files has other sizes than the tokens of its rows")
        if (wrong := first_wrong(rows["lengths"], rows["key"], verdict)) is not None:
            raise ValueError(f"row {wrong} of field rows has lengths, key and verdict that do not belong together")
        reasons = {str(REASONS[code]) for code in set(verdict[~good].tolist())}
        most_begin = self.files[names[0]].bytes - size if names else size
        fits = (size > 0) == good
        fits &= ~good | (rows["place"]["begin"].astype(np.int64) <= most_begin)
        fits &= rows["place"]["begin"] < 2**62
        if (
            not fits.all()
            or max(self.notes) > len(rows)
            or set(self.origins) != reasons
            or not all(self.origins.values())
        ):
            raise ValueError("fields rows, notes and origins do not belong together")
        return PartDone(number, self.files, rows, self.notes, [], self.origins)


class _AnyNote(msgspec.Struct):
    """Fields of a note of any version, with any values."""

    version: int
    number: msgspec.Raw
    files: msgspec.Raw
    rows: msgspec.Raw
    notes: msgspec.Raw
    origins: msgspec.Raw


def note_name(number: int) -> str:
    """Returns the name of the note on a part."""
    return f"part-{number:05d}.done"


def most_note(rows: int) -> int:
    """Returns the most bytes of a note on a part of at most so many rows."""
    return MOST_BYTES + 2 * ROW.itemsize * rows


def is_note(file: IO[bytes]) -> bool:
    """Returns whether an open file is the note on a part, of any version and with any values."""
    if os.fstat(file.fileno()).st_size > _MOST_NOTE:
        return False
    try:
        msgspec.json.decode(file.read(), type=_AnyNote)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def write_note(path: str, done: PartDone) -> None:
    """Writes the note on a finished part, JSON with a checksum: all of it but the errors.

    Raises:
        CacheError: It cannot be written, or something else is there.
    """
    check_own(path, is_note, CacheError, _WHAT)
    values = {
        "version": _NOTE_VERSION,
        "number": done.number,
        "files": {name: msgspec.structs.asdict(note) for name, note in done.files.items()},
        "rows": base64.b64encode(done.rows.tobytes()).decode(),
        "notes": done.notes,
        "origins": done.origins,
    }
    write_small(path, json.dumps({**values, "checksum": checksum_of(values)}).encode())


def read_note(path: str, number: int, most: int, layout: str) -> PartDone | None:
    """Returns a finished part without its errors; None if there is no note on it.

    A note that is damaged or of another version is deleted with a warning, and the part is written again.

    Args:
        path: The note.
        number: The number of the part.
        most: The most rows it may have.
        layout: The layout of the cache.

    Raises:
        CacheError: The note cannot be read, or is no regular file.
    """
    try:
        text = read_file(path, CacheError, _WHAT, most_note(most))
        values = parse_json(text, dict[str, Any], path, CacheError, _WHAT)
        if values.pop("checksum", None) != checksum_of(values):
            raise ValueError("its checksum does not fit")
        return msgspec.json.decode(text, type=_Note).check(number, most, layout)
    except FileNotFoundError:
        return None
    except (CacheError, ValueError, RecursionError) as error:
        if not os.path.isfile(path) or isinstance(error.__cause__, OSError):
            raise
        drop_note(path, f"the note on a finished part is damaged or of another version ({printable(str(error))})")
    return None


def drop_note(path: str, why: str) -> None:
    """Deletes a note with a warning, so that its part is written again.

    Raises:
        CacheError: Something else is there.
    """
    check_own(path, is_note, CacheError, _WHAT)
    with guarded(path):
        os.unlink(path)
    _log.warning("%s: %s. The part is written again.", shown(path), why)


def _check_pad(loader: SampleLoader, task: PartTask, rows: Sequence[int], block: Block) -> None:
    """Raises if a text holds the pad id: readers of the layout count the ids that are not padding."""
    job = task.job
    for row, *sides in zip(rows, *map(block.arrays, range(block.sides)), strict=True):
        if not any((ids == job.pad_id).any() for ids in sides):
            continue
        raise OptionError(
            f"{loader.origin(row) if task.read is None else f'row {row}'}: its text holds the id {job.pad_id}, which "
            f"arrays are padded with. Readers of layout {job.layout!r} count the ids that are not padding, and would "
            "take the row for shorter. Pass pad_token_id= (--pad-token-id) an id that no text has, such as a reserved "
            "token's."
        )


def _token_places(lengths: NDArray[np.int32]) -> NDArray[Any]:
    """Returns where the chosen tokens of each row lie in the part's file of them, (n,) of `PLACE` without checksums."""
    places = np.zeros(len(lengths), PLACE)
    places["size"] = TOKEN.itemsize * lengths[:, 0]
    places["begin"] = np.cumsum(places["size"], dtype=np.uint64) - places["size"]
    return places


def _check_written(path: str, places: NDArray[Any], rows: int) -> None:
    """Reads a file back and compares the number and the places of its rows, and the checksums of the first few."""
    try:
        bounds = read_offsets(path)
        if len(bounds) != rows:
            raise ValueError(f"{rows} rows were written and {len(bounds)} are there")
        if (bounds[:, 0] != places["begin"]).any() or (bounds[:, 1] - bounds[:, 0] != places["size"]).any():
            raise ValueError("its sidecar gives its rows other places")
        with open(path, "rb") as file:
            for begin, size, checksum in places[:_ROWS_COMPARED].tolist():
                file.seek(begin)
                if zlib.crc32(file.read(size)) != checksum:
                    raise ValueError("it holds other bytes than were written")
    except (OSError, ValueError, CacheError) as error:
        raise CacheError(f"{path} cannot be read back after it was written: {error}. Check the disk.") from error
