"""Files on disk: their stamps, shared descriptors, and the check that nothing of the user's is overwritten."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import stat
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.disk import cause_and_remedy, check_own, close_quietly, open_descriptor, shown, status_of
from ms_prefstream.errors import OptionError, SourceError
from ms_prefstream.sources.base import sources_in

_OPEN_AT_MOST = 128  # by all sources together
_OPEN_SHARE = 4  # and of the files that the process may open at most one in so many
_READ_OVER = 4096  # bytes between two pieces of a file: copying them takes less time than a second system call
_REMEDY_CHANGED = (
    "Files must not change while they are read: restore this one, or start a new run "
    "(a file that is still being written is read with mps.follow)."
)


class FileStamp(NamedTuple):
    """Size in bytes and modification time in nanoseconds of a file, which show that it changed."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """Returns the stamp in a result of `os.stat` or `os.fstat`."""
        return cls(status.st_size, status.st_mtime_ns)


def stamp(path: str) -> FileStamp:
    """Returns the stamp of a file; raises `SourceError` unless it is a regular file that may be read."""
    with reading(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(
                f"{path}: found a folder, a pipe or a device where a regular file was expected. Name a file; to read "
                "from a pipe, pass '-' as the source and pipe the JSON Lines into the program."
            )
        os.close(os.open(path, os.O_RDONLY))
    return FileStamp.of(status)


def unreadable(path: str, error: OSError) -> SourceError:
    """Returns the error for a file that the operating system does not open or read."""
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
    remedy = "Check the disk or the mount."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "Allow the process more open files (ulimit -n), or give it fewer."
    return SourceError(f"{path}: the file cannot be read ({error.strerror or error}). {remedy}")


def stamp_of(path: str, file: int) -> FileStamp:
    """Returns the stamp of an open file, given its descriptor; raises `SourceError` if the system does not say it."""
    try:
        return FileStamp.of(os.fstat(file))
    except OSError as error:
        raise unreadable(path, error) from error


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns an OSError of the body into a `SourceError`; `path` is named where the system's error names none."""
    try:
        yield
    except OSError as error:
        raise unreadable(error.filename if isinstance(error.filename, str) else path, error) from error


def check_unchanged(path: str, then: FileStamp, file: int) -> None:
    """Raises `SourceError` for an open file whose stamp `then`, when it was opened, differs from that now."""
    now = stamp_of(path, file)
    if now != then:
        found = f"it had {then.size} bytes when it was opened and has {now.size} now"
        if now.size == then.size:
            found = "it was written to after it was opened"
        raise SourceError(f"{path}: the file changed under us: {found}. {_REMEDY_CHANGED}")


class Handle:
    """Read-only descriptor of a regular file; closed with its last reference."""

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        self.fd = -1
        with reading(path):
            self.fd = open_descriptor(path, SourceError, "the file")

    def __del__(self, close: Callable[[int], None] = close_quietly) -> None:
        if self.fd >= 0:
            close(self.fd)


_numbers = itertools.count()
_open: dict[tuple[int, str], Handle] = {}  # number of `Handles` and path, in the order in which they were opened


class Handles:
    """Descriptors of a source's files, opened when first used; the oldest of all sources are dropped when too many.

    Thread-safe without a lock (a lock that is held while the process forks is never released in the child): a thread
    keeps the `Handle` that it uses alive, so its descriptor is not closed and its number not given to another file.
    """

    def __init__(self) -> None:
        self._number = next(_numbers)
        weakref.finalize(self, _drop, self._number).atexit = False

    def get(self, path: str) -> Handle:
        """Returns the handle of a file; keep it while its descriptor is in use."""
        key = self._number, path
        handle = _open.get(key)
        if handle is None:
            allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            most = _OPEN_AT_MOST if allowed < 0 else min(_OPEN_AT_MOST, max(1, allowed // _OPEN_SHARE))
            for oldest in list(_open)[: max(0, len(_open) + 1 - most)]:
                _open.pop(oldest, None)
            handle = _open.setdefault(key, Handle(path))
        return handle

    def __reduce__(self) -> tuple[type[Handles], tuple[()]]:
        return Handles, ()


def _drop(number: int) -> None:
    """Drops the handles of a source that is gone."""
    for key in list(_open):
        if key[0] == number:
            _open.pop(key, None)


def read_at(handle: Handle, path: str, begin: int, size: int) -> bytes:
    """Returns exactly `size` bytes from byte `begin` on; raises `SourceError` if the file ends before that."""
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


class Ranges(NamedTuple):
    """Ranges of a file that hold some pieces of it.

    Attributes:
        ranges: First byte and size of each range.
        places: (n,) int64, where each piece begins in the bytes of all ranges together.
        size: Bytes of all ranges.
    """

    ranges: list[tuple[int, int]]
    places: NDArray[np.int64]
    size: int


def ranges_of(begins: NDArray[np.int64], sizes: NDArray[np.int64]) -> Ranges:
    """Returns the ranges to read for n pieces of a file, at least one; neighbours share a range."""
    order = np.argsort(begins)
    firsts, ends = begins[order], (begins + sizes)[order]
    heads = np.flatnonzero(np.concatenate([[True], firsts[1:] > ends[:-1] + _READ_OVER]))  # the first piece of each
    firsts, lengths = firsts[heads], np.maximum.reduceat(ends, heads) - firsts[heads]
    moved = np.cumsum(lengths) - lengths - firsts
    places = np.empty_like(begins)
    places[order] = begins[order] + np.repeat(moved, np.diff(heads, append=len(begins)))
    return Ranges(list(zip(firsts.tolist(), lengths.tolist(), strict=True)), places, int(lengths.sum()))


def read_ranges(handle: Handle, path: str, ranges: Ranges, data: memoryview) -> None:
    """Reads ranges of a file into memory of their size; raises `SourceError` if the file ends before that."""
    at = 0
    for begin, size in ranges.ranges:
        try:
            read = os.preadv(handle.fd, [data[at : at + size]], begin)
        except OSError as error:
            raise unreadable(path, error) from error
        if read < size:
            data[at + read : at + size] = read_at(handle, path, begin + read, size - read)
        at += size


def name_of(paths: Sequence[str]) -> str:
    """Returns what messages call a list of files: ``"a.jsonl"`` or ``"a.jsonl and 3 more files"``."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files"


def check_target(option: str, path: str | os.PathLike[str], source: Any, is_own: Callable[[IO[bytes]], bool]) -> None:
    """Raises if a file that is about to be written belongs to the data, or is a file of another kind.

    Args:
        option: The option by which the user named the file.
        path: The file; it may not exist.
        source: The rows: an opened source or a mix.
        is_own: Returns whether an open file is of the kind that is written.

    Raises:
        OptionError: It may not be written; nothing was changed.
    """
    for one in sources_in(source):
        files = getattr(one, "paths", None) or getattr(one, "_paths", None) or [str(getattr(one, "name", ""))]
        try:
            found = [status_of(file, follow=True) for file in (path, *files)]
        except OSError as error:
            where = shown(error.filename or path)
            raise OptionError(f"{option}: {where} cannot be looked up: {cause_and_remedy(error)}.") from error
        if found[0] is not None and any(one is not None and os.path.samestat(found[0], one) for one in found[1:]):
            raise OptionError(
                f"{option} is {shown(path)!r}, which is a file of the data itself. Name another file; nothing was "
                "changed."
            )
    check_own(path, is_own, OptionError, f"{option}:")
