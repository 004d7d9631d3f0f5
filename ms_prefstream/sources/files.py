"""Files as sources see them: are they there, are they still the same, and descriptors that open themselves."""

from __future__ import annotations

import difflib
import enum
import glob
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ms_prefstream.errors import OptionError, SourceError


class Kind(enum.Enum):
    """How a file is read, by its suffix."""

    LINES = "JSON Lines"
    PACKED_LINES = "compressed JSON Lines"
    JSON = "JSON"
    PARQUET = "Parquet"
    ARROW = "Arrow"


SUFFIXES = {
    ".jsonl": Kind.LINES,
    ".ndjson": Kind.LINES,
    ".jsonl.gz": Kind.PACKED_LINES,
    ".jsonl.zst": Kind.PACKED_LINES,
    ".ndjson.gz": Kind.PACKED_LINES,
    ".ndjson.zst": Kind.PACKED_LINES,
    ".json.gz": Kind.PACKED_LINES,
    ".json.zst": Kind.PACKED_LINES,
    ".json": Kind.JSON,
    ".parquet": Kind.PARQUET,
    ".arrow": Kind.ARROW,
}

_GLOB = re.compile(r"[*?\[]")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|training|test|valid|validation|dev|eval)(?=[^a-z]|$)")
_SAME_SPLIT = {"training": "train", "valid": "validation", "dev": "validation", "eval": "test"}
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json")
_SHOWN = 5


def kind_of(path: str) -> Kind:
    """How a file is read.

    Raises:
        SourceError: Its suffix is not one of `SUFFIXES`.
    """
    kind = _known_kind(path)
    if kind is None:
        suffix = os.path.splitext(path)[1]
        found = f"the suffix {suffix!r}" if suffix else "a name without suffix"
        raise SourceError(
            f"{path}: found {found}, expected one of {', '.join(SUFFIXES)}. Rename the file if its contents are of "
            "such a kind, convert it, or read it yourself and pass the rows."
        )
    return kind


def expand(pattern: str) -> list[str]:
    """The files that a path or a glob stands for; a folder is given back as it is, for `folder_files`.

    A name that exists is taken as it is, also with ``*`` or ``[`` in it; what a glob matches is sorted by name.

    Raises:
        SourceError: Nothing is there, or it is an address on a network.
    """
    if _URL.match(pattern):
        raise SourceError(f"{pattern}: found an address, expected a path. Nothing is downloaded: copy the data first.")
    path = os.path.expanduser(pattern)
    if os.path.lexists(path):
        return [path]
    if not _GLOB.search(path):
        raise _missing(path)
    found = sorted(glob.glob(path, recursive=True))
    files = [match for match in found if not os.path.isdir(match)]
    if not files:
        what = f"only folders ({', '.join(found[:_SHOWN])})" if found else f"no file{_neighbours(path)}"
        raise SourceError(f"{pattern}: the pattern matches {what}; expected data files. Correct the pattern.")
    return files


def folder_files(folder: str) -> list[str]:
    """The data files in a folder and below, sorted by path; hidden ones and descriptions of data sets left out.

    Raises:
        SourceError: There are none, or more than one kind, or files of more than one split.
    """
    try:
        os.listdir(folder)  # os.walk says nothing about a folder that may not be read
    except PermissionError as error:
        raise SourceError(f"{folder}: this user may not read the folder. Give it read permission.") from error
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(where, name) for name in names if name not in _NOT_DATA and not name.startswith(".")]
    files = sorted(path for path in found if _known_kind(path))
    if not files:
        present = ", ".join(sorted(os.path.relpath(path, folder) for path in found)[:_SHOWN]) or "nothing"
        raise SourceError(
            f"{folder}: found no data files in the folder ({present}), expected {', '.join(SUFFIXES)}. "
            "Name the files, or another folder."
        )
    kinds = Counter(kind_of(path).value for path in files)
    if len(kinds) > 1:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise SourceError(
            f"{folder}: found files of several kinds in the folder ({counts}), which may be the same "
            f"data twice. Name those that you mean with a glob, e.g. {os.path.join(folder, '*.jsonl')}."
        )
    _check_one_split(folder, files)
    return files


def _check_one_split(folder: str, files: Sequence[str]) -> None:
    """Refuse to train on what its own name calls test data."""
    splits: dict[str, str] = {}
    for path in files:
        for name in _SPLIT.findall(os.path.relpath(path, folder).lower()):
            splits.setdefault(_SAME_SPLIT.get(name, name), path)
    if len(splits) > 1:
        raise SourceError(
            f"{folder}: found files of several splits ({', '.join(sorted(splits))}) in the folder, expected one. "
            f"Name the files of one split with a glob, like that of {splits.get('train', splits[min(splits)])}."
        )


def _known_kind(path: str) -> Kind | None:
    name = os.path.basename(path).lower()
    fitting = [suffix for suffix in SUFFIXES if name.endswith(suffix)]
    return SUFFIXES[max(fitting, key=len)] if fitting else None


def _missing(path: str) -> SourceError:
    hub = ""
    if _HUB_NAME.match(path) and not os.path.splitext(path)[1]:
        hub = (
            " If it is a name on the Hugging Face hub: nothing is downloaded; load it with datasets.load_dataset and "
            "pass the data set."
        )
    if os.path.isdir(f"{path}.writing"):
        hub = " A cache of this name is being written, or its writing was interrupted: run that command again."
    return SourceError(
        f"{path}: no such file or folder{_neighbours(path)}; expected data (relative paths start at {os.getcwd()}). "
        f"Correct the path.{hub}"
    )


def _neighbours(path: str) -> str:
    """What is there instead, as an insertion: the names most like the missing one, or where the path breaks off."""
    folder, name = os.path.split(path)
    while _GLOB.search(folder):
        folder, name = os.path.split(folder)
    if not os.path.isdir(folder or "."):
        above = folder
        while above and not os.path.isdir(above):
            above = os.path.dirname(above)
        return f" (there is no folder {folder!r} in {above or '.'!r})"
    names = sorted(entry for entry in os.listdir(folder or ".") if not entry.startswith("."))
    similar = difflib.get_close_matches(name, names, n=_SHOWN, cutoff=0.5) or [n for n in names if _known_kind(n)]
    return f" (in {folder or '.'!r} there is: {', '.join(similar[:_SHOWN])})" if similar else ""


INDEX_BEGINS = b"\x93NUMPY"
QUARANTINE_BEGINS = b'{"origin":'


def check_target(option: str, path: str | os.PathLike[str], source: Any, begins: bytes) -> None:
    """Refuse to write to a file that belongs to the data, or holds something else than we would write there.

    Args:
        option: What the user gave the path as.
        path: The file to be written; it may not exist.
        source: The rows: an opened source or a mix.
        begins: The first bytes of files of this kind.

    Raises:
        OptionError: Names the file and what it is.
    """
    if not os.path.isfile(path):
        return
    shown = os.fspath(path)
    for file in files_of(source):
        if os.path.isfile(file) and os.path.samefile(file, path):
            raise OptionError(
                f"{option} is {shown!r}, which is a file of the data itself. Name another file; nothing was changed."
            )
    with open(path, "rb") as opened:
        found = opened.read(len(begins))
    if found and found != begins:
        raise OptionError(
            f"{option} is {shown!r}, which exists and holds something else. Name a new file; nothing was changed."
        )


def files_of(source: Any) -> Iterator[str]:
    """The files that a source or a mix reads, as far as it knows them."""
    for part in getattr(source, "parts", None) or getattr(source, "_parts", None) or ():
        yield from files_of(getattr(part, "source", part))
    paths = getattr(source, "paths", None) or getattr(source, "_paths", None) or [getattr(source, "name", "")]
    yield from (str(path) for path in paths)


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


def name_of(paths: Sequence[str]) -> str:
    """How a list of files is called in messages: ``"a.jsonl"`` or ``"a.jsonl and 3 more files"``."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more files"
