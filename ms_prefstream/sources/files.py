"""Files as sources see them: are they there, are they still the same, and descriptors that open themselves."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ms_prefstream.errors import SourceError

_OPEN_AT_MOST = 128
_SAMPLE_BYTES = 16 * 1024
_SAMPLES = 256
_REMEDY_CHANGED = (
    "Files must not change while they are read: restore this one, or start a new run "
    "(a file that is still being written is read with mps.follow)."
)


class FileStamp(NamedTuple):
    """What tells a changed file: its size in bytes and its modification time in nanoseconds."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """The stamp in what `os.stat` or `os.fstat` gave."""
        return cls(status.st_size, status.st_mtime_ns)


def stamp(path: str) -> FileStamp:
    """The stamp of a file that was proven to be there and to be readable.

    Raises:
        SourceError: The path is missing, a folder, not a regular file, or may not be read.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise SourceError(f"{path}: found a folder where one file was expected. Name a file, or a glob in it.")
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(
                f"{path}: found a pipe or a device where a regular file was expected. "
                "Pass '-' as the source and pipe the JSON Lines into the program."
            )
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        raise unreadable(path, error) from error
    return FileStamp.of(status)


def unreadable(path: str, error: OSError) -> SourceError:
    """The sentence for an operating system's refusal to open or read a file."""
    if isinstance(error, FileNotFoundError):
        return SourceError(
            f"{path}: no such file; expected a data file. Check the path (it is relative to the "
            f"working directory {os.getcwd()})."
        )
    if isinstance(error, PermissionError):
        return SourceError(
            f"{path}: this user may not read the file. Give it read permission (chmod +r), "
            "and its folders execute permission."
        )
    return SourceError(f"{path}: the file cannot be read ({error.strerror or error}). Check the disk or the mount.")


def check_unchanged(path: str, then: FileStamp, status: os.stat_result) -> None:
    """Refuse a file that is not what it was.

    Raises:
        SourceError: Size or modification time differ.
    """
    now = FileStamp.of(status)
    if now.size != then.size:
        raise SourceError(
            f"{path}: the file changed under us: it had {then.size} bytes when it was opened "
            f"and has {now.size} now. {_REMEDY_CHANGED}"
        )
    if now != then:
        raise SourceError(
            f"{path}: the file changed under us: it was written to after it was opened "
            f"(its size, {now.size} bytes, is the same). {_REMEDY_CHANGED}"
        )


class Handle:
    """A read-only descriptor that is closed when the last user lets go of it."""

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise unreadable(path, error) from error

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.fd >= 0:
            close(self.fd)


class Handles:
    """Descriptors of many files, opened when first used, the oldest let go when there are too many.

    Safe for threads without a lock (a lock that is held while a process forks never opens in the child): a thread
    keeps the `Handle` it uses alive, so no descriptor is closed, and its number given to another file, under it.
    """

    def __init__(self) -> None:
        self._open: dict[str, Handle] = {}

    def get(self, path: str) -> Handle:
        """The handle of a file; keep it while its descriptor is in use."""
        handle = self._open.get(path)
        if handle is None:
            handle = self._open.setdefault(path, Handle(path))
            for oldest in list(self._open)[:-_OPEN_AT_MOST]:
                self._open.pop(oldest, None)
        return handle

    def __reduce__(self) -> tuple[type[Handles], tuple[()]]:
        return Handles, ()


def read_at(handle: Handle, path: str, begin: int, size: int) -> bytes:
    """Exactly `size` bytes from byte `begin` on.

    Raises:
        SourceError: The file ends before that, or cannot be read.
    """
    try:
        data = os.pread(handle.fd, size, begin)
        while len(data) < size:  # network file systems, and one call gives at most 2 GB
            more = os.pread(handle.fd, size - len(data), begin + len(data))
            if not more:
                raise SourceError(
                    f"{path}: the file changed under us: it ends at byte {begin + len(data)}, "
                    f"but a row reached to byte {begin + size}. {_REMEDY_CHANGED}"
                )
            data += more
    except OSError as error:
        raise unreadable(path, error) from error
    return data


def sampled_hash(paths: Sequence[str]) -> str:
    """A short hash of the sizes and of evenly spread pieces of files, the first and the last piece among them.

    Names and times do not count: the same data copied to another node has the same hash. Up to 4 MB (shared among
    the files) are read, so files that are together below that count whole.
    """
    digest = hashlib.blake2b(digest_size=8)
    pieces = max(2, _SAMPLES // max(1, len(paths)))
    handles = Handles()
    for path in paths:
        size = stamp(path).size
        digest.update(size.to_bytes(8, "little"))
        handle = handles.get(path)
        if size <= pieces * _SAMPLE_BYTES:
            begins, length = [0], size
        else:
            begins, length = [(size - _SAMPLE_BYTES) * k // (pieces - 1) for k in range(pieces)], _SAMPLE_BYTES
        for begin in begins:
            digest.update(read_at(handle, path, begin, length))
    return digest.hexdigest()


def hash_of(parts: Sequence[bytes]) -> str:
    """One short hash of several byte strings; where one ends and the next begins counts."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def name_of(paths: Sequence[str]) -> str:
    """How a list of files is called in messages: ``"a.jsonl"`` or ``"a.jsonl and 3 more files"``."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files"
