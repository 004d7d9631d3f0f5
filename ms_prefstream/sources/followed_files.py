"""Which files are followed, in which order, and whether that order can still be kept."""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.files import unreadable

_LINES = (".jsonl", ".ndjson")
_PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
_LOOKS = 5  # a listing is believed when two looks in a row agree; files may be renamed in between
_MISSES = 3
# What stands behind the name of a file that was rotated: a count (.1 is younger than .2) or a date.
_ROTATED = re.compile(r"[.-](\d[\d.:T_-]*)")
_COUNT_DIGITS = 5


class Entry(NamedTuple):
    """One followed file, as a look at the folder found it.

    Attributes:
        path: Where it is now.
        key: What it is known by: its name and inode in a folder, its inode where names change.
        size: Bytes.
    """

    path: str
    key: tuple[str, int, int]
    size: int


class FollowedFiles:
    """The files behind a followed path: those of a folder by name, or one file behind its rotated predecessors.

        folder                             logs/a.jsonl  logs/b.jsonl  logs/c.jsonl
        file, rotated with counts          pairs.jsonl.2  pairs.jsonl.1  pairs.jsonl
        file, rotated with dates           pairs.jsonl-20250101  pairs.jsonl-20250102  pairs.jsonl

    The order depends on names alone, so that every rank and every resumed run finds the same one.

    Args:
        path: A folder that exists, or a file that may not exist yet in one that does.
        sentinel: A file to leave out.

    Raises:
        SourceError: There is no such folder, or the file is compressed.
    """

    def __init__(self, path: str, sentinel: str | None) -> None:
        self.path = path
        self._is_folder = os.path.isdir(path)
        self._folder = path if self._is_folder else os.path.dirname(path) or "."
        self._sentinel = None if sentinel is None else os.path.abspath(sentinel)
        if not os.path.isdir(self._folder):
            raise SourceError(
                f"{path}: there is no folder {self._folder!r}. A file that is followed may be created later, its "
                "folder must exist: create it, or correct the path."
            )
        if not self._is_folder:
            _refuse_packed(path)

    def entries(self) -> list[Entry]:
        """The files in their order.

        Raises:
            SourceError: The folder cannot be read, or holds compressed files.
        """
        entries, before = self._look(), None
        for _ in range(_LOOKS):
            names = [(entry.path, entry.key) for entry in entries]
            if names == before:
                break
            entries, before = self._look(), names
        return entries

    def _look(self) -> list[Entry]:
        try:
            names = os.listdir(self._folder)
        except OSError as error:
            raise SourceError(f"{self._folder}: the folder cannot be read ({error.strerror or error}).") from error
        found = [(order, name) for name in names if (order := self._order(name)) is not None]
        entries = (self._entry(name) for _, name in sorted(found))
        return [entry for entry in entries if entry is not None]

    def _order(self, name: str) -> tuple[int, int, str] | None:
        """What files are sorted by; None for those that are not followed."""
        if self._is_folder:
            path = os.path.join(self._folder, name)
            if name.startswith(".") or os.path.abspath(path) == self._sentinel or os.path.isdir(path):
                return None
            stem = os.path.splitext(name)[0].lower()
            if name.lower().endswith(_PACKED) and stem.endswith(_LINES):
                _refuse_packed(path)
            return (0, 0, name) if name.lower().endswith(_LINES) else None
        base = os.path.basename(self.path)
        if name == base:
            return 2, 0, name
        stem, packed = os.path.splitext(name)
        is_packed = packed.lower() in _PACKED
        rotated = _ROTATED.fullmatch(stem if is_packed else name, len(base)) if name.startswith(base) else None
        if rotated is None:
            return None
        if is_packed:
            _refuse_packed(os.path.join(self._folder, name))
        suffix = rotated[1]
        is_count = suffix.isdecimal() and len(suffix) <= _COUNT_DIGITS
        return (1, -int(suffix), name) if is_count else (0, 0, name)

    def _entry(self, name: str) -> Entry | None:
        path = os.path.join(self._folder, name) if self._is_folder or name != os.path.basename(self.path) else self.path
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return None  # renamed since the folder was listed
        except OSError as error:
            raise unreadable(path, error) from error
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{path}: found something else than a regular file; only those can be followed.")
        return Entry(path, (name if self._is_folder else "", status.st_dev, status.st_ino), status.st_size)


class Place:
    """How far a pass has come in the order of the files, and the proof that it still is the order of the files.

    Args:
        files: What is followed.
    """

    def __init__(self, files: FollowedFiles) -> None:
        self._files = files
        self._current: Entry | None = None
        self._sizes: dict[tuple[str, int, int], int] = {}  # of the files that were read to their end
        self._misses = 0

    def next(self) -> Entry | None:
        """The file behind the current one, if it is there yet; it becomes the current one.

        Raises:
            SourceError: A file changed, appeared or vanished where it must not.
        """
        behind = self._behind()
        if not behind:
            return None
        self._current = behind[0]
        self._sizes.pop(self._current.key, None)  # of a deleted file, whose inode this one has now
        return self._current

    def has_next(self) -> bool:
        """Whether there is a file behind the current one, so that the current one is complete."""
        return bool(self._behind())

    def finished(self, size: int) -> None:
        """The current file was read to its end, at this size."""
        assert self._current is not None
        self._sizes[self._current.key] = size

    def _behind(self) -> list[Entry]:
        entries = self._files.entries()
        if self._current is None:
            return entries
        keys = [entry.key for entry in entries]
        if self._current.key not in keys:
            self._misses += 1
            if self._misses < _MISSES:
                return []  # it may be about to be renamed
            raise SourceError(
                f"{self._current.path}: the file that was followed was deleted, replaced, or renamed to a name that is "
                f"not known for a rotated file (such as {self._current.path}.1). Its rows could not be found again on "
                "another rank or by a resumed run. Rotate by renaming, and keep the files until the run is over."
            )
        self._misses = 0
        at = keys.index(self._current.key)
        for entry in entries[:at]:
            self._check_passed(entry)
        current = self._sizes.get(self._current.key)
        if current is not None and entries[at].size != current:
            self._check_passed(entries[at])
        return entries[at + 1 :]

    def _check_passed(self, entry: Entry) -> None:
        size = self._sizes.get(entry.key)
        if size is None:
            assert self._current is not None
            raise SourceError(
                f"{entry.path}: the file appeared when {self._current.path}, which comes behind it in the order of "
                "names, was already being read. Files must appear in the order of their names (for example numbered "
                "with leading zeros); follow each writer's files on their own and mix them with mps.mix."
            )
        if size != entry.size:
            raise SourceError(
                f"{entry.path}: the file was complete with {size} bytes, since a later one had begun, and has "
                f"{entry.size} bytes now. A writer must finish a file before it begins the next one; follow each "
                "writer's files on their own and mix them with mps.mix."
            )


def _refuse_packed(path: str) -> None:
    if path.lower().endswith(_PACKED):
        raise SourceError(
            f"{path}: found a compressed file, which cannot be followed. Write plain JSON Lines while the run reads "
            "them, and compress them when it is over."
        )
