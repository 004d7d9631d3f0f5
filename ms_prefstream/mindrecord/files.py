"""Files of a cache: their names and checksums, atomic writes, and the error for a failed write."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import CacheError

# MindRecord readers walk a folder with all its subfolders and read every file whose name ends like this.
_MINDRECORD = re.compile(r"(mindrecord\d*|\.tfrecord)(\.db)?$")


def is_mindrecord(name: str) -> bool:
    """Returns whether MindRecord readers would take a file for a part of a data set, or for its sidecar."""
    return _MINDRECORD.search(name) is not None


def foreign_files(folder: str, known: Collection[str]) -> list[str]:
    """Returns the files and links at any depth of a folder that are not known, as sorted paths relative to it."""
    entries = [path for path in pathlib.Path(folder).rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted({str(path.relative_to(folder)) for path in entries} - set(known))


class FileNote(NamedTuple):
    """Size in bytes, SHA-256 and number of samples of a finished file."""

    bytes: int
    sha256: str
    rows: int


def part_name(number: int) -> str:
    """Returns the file name of a part; MindRecord readers look for names that end in ``.mindrecord``."""
    return f"part-{number:05d}.mindrecord"


def note_of(path: str, rows: int) -> FileNote:
    """Returns the note of a file with `rows` samples.

    Raises:
        OSError: It cannot be read.
    """
    digest, size, block = hashlib.sha256(), 0, memoryview(bytearray(1 << 18))
    with open(path, "rb", buffering=0) as file:
        while read := file.readinto(block):
            digest.update(block[:read])
            size += read
    return FileNote(size, digest.hexdigest(), rows)


def write_atomically(path: str, data: bytes) -> None:
    """Writes a file atomically: it exists with all its bytes, or not at all.

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


def npy_bytes(values: NDArray[Any]) -> bytes:
    """Returns the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def sync_folder(folder: str) -> None:
    """Syncs the names in a folder to the disk, where the system supports it."""
    with contextlib.suppress(OSError):
        opened = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextlib.contextmanager
def guarded(path: str) -> Iterator[None]:
    """Turns an OSError of the body into a CacheError.

    Args:
        path: The file or folder to name where the system's error names none.

    Raises:
        CacheError: The operating system refused something.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(error.filename if isinstance(error.filename, str) else path, error) from error


def unwritable(path: str, error: Exception) -> CacheError:
    """Returns the error for a file that the operating system or SQLite refuses to write."""
    said = getattr(error, "strerror", None) or error
    return CacheError(
        f"{path} cannot be written: {said}{_free_space(path)}. Choose a folder that exists, can be written to and has "
        "room, then run again: finished parts are kept."
    )


def _free_space(path: str) -> str:
    """Returns the free space on the disk of a path, as the continuation of a sentence."""
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        found = os.statvfs(folder)
    except OSError:
        return ""
    return f"; {found.f_bavail * found.f_frsize // 2**20:,} MB are free there"
