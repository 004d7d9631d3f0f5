"""The files of a cache: names, notes about them, and writes that are on the disk when they return."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ms_prefstream.errors import CacheError

# Readers of today walk through a folder with all its subfolders and read every file whose name ends like this.
_READ = re.compile(r"(mindrecord\d*|\.tfrecord)(\.db)?$")


def is_read(name: str) -> bool:
    """Whether readers of MindRecord files would take a file for a part of a data set, or for a part's sidecar."""
    return _READ.search(name) is not None


def strangers(folder: str, known: Collection[str]) -> Iterator[str]:
    """Files and subfolders that are not among the known ones, by their paths within the folder.

    Args:
        folder: The cache.
        known: The files that belong there.

    Yields:
        Files in any depth, and subfolders (their paths end in a slash) in which there is no file or which are links.
    """
    for at, folders, files in os.walk(folder):
        folders.sort()
        inner = os.path.relpath(at, folder)
        if inner != os.curdir and not files and not folders:
            yield inner + os.sep
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]  # nobody follows them
        yield from (os.path.normpath(os.path.join(inner, name)) + os.sep for name in links)
        for name in sorted(files):
            path = os.path.normpath(os.path.join(inner, name))
            if path not in known:
                yield path


class FileNote(NamedTuple):
    """A finished file: its size in bytes, its SHA-256 and the samples in it."""

    bytes: int
    sha256: str
    rows: int


def part_name(number: int) -> str:
    """The file of a part; readers of today find files by names that end in ``.mindrecord``."""
    return f"part-{number:05d}.mindrecord"


def note_of(path: str, rows: int) -> FileNote:
    """Size and SHA-256 of a file.

    Raises:
        OSError: It cannot be read.
    """
    digest, size, block = hashlib.sha256(), 0, memoryview(bytearray(1 << 18))
    with open(path, "rb", buffering=0) as file:
        while read := file.readinto(block):
            digest.update(block[:read])
            size += read
    return FileNote(size, digest.hexdigest(), rows)


def write_whole(path: str, data: bytes) -> None:
    """A file that is there with these bytes, or not at all.

    Raises:
        CacheError: It cannot be written.
    """
    aside = path + ".tmp"
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise unwritable(path, error) from error


def sync_folder(folder: str) -> None:
    """Put the names in a folder on the disk; not every system can."""
    with contextlib.suppress(OSError):
        opened = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextlib.contextmanager
def guarded(path: str) -> Iterator[None]:
    """What the operating system refuses inside of it is said in a sentence.

    Args:
        path: What is being written or read back, where the system's error names nothing.

    Raises:
        CacheError: The operating system refuses.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(error.filename if isinstance(error.filename, str) else path, error) from error


def unwritable(path: str, error: Exception) -> CacheError:
    """The sentence for a refusal to write, of the operating system or of SQLite."""
    said = getattr(error, "strerror", None) or error
    return CacheError(
        f"{path} cannot be written: {said}{room_at(path)}. Choose a folder that exists, can be written to and has "
        "room; run again and what is finished is kept."
    )


def room_at(path: str) -> str:
    """How much room the disk of a path has, as the continuation of a sentence."""
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        found = os.statvfs(folder)
    except (OSError, AttributeError):
        return ""
    return f"; {found.f_bavail * found.f_frsize // 2**20:,} MB are free there"
