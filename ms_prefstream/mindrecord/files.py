"""Files of a cache: their names and checksums, atomic writes, and the error for a failed write."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
from collections.abc import Collection, Iterator
from typing import IO, Annotated, Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ms_prefstream.disk import open_regular, walk, written
from ms_prefstream.errors import CacheError, printable

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Sha256: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
NPY_HEAD = 10 + 0xFFFF
"""The most bytes of a header of a .npy file."""

_format: Any = np.lib.format

# MindRecord readers walk a folder with all its subfolders and read every file whose name ends like this.
_MINDRECORD = re.compile(r"(mindrecord\d*|\.tfrecord)(\.db)?$")


def is_mindrecord(name: str) -> bool:
    """Returns whether MindRecord readers would take a file for a part of a data set, or for its sidecar."""
    return _MINDRECORD.search(name) is not None


def foreign_files(folder: str, known: Collection[str]) -> list[str]:
    """Returns the files and links at any depth of a folder that are not known, as sorted paths relative to it."""
    found = []
    for here, folders, names in walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        found += [os.path.relpath(os.path.join(here, name), folder) for name in (*links, *names)]
    return sorted(set(found) - set(known))


class FileNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes, SHA-256 and number of samples of a finished file."""

    bytes: Count
    sha256: Sha256
    rows: Count


def part_name(number: int) -> str:
    """Returns the file name of a part; MindRecord readers look for names that end in ``.mindrecord``."""
    return f"part-{number:05d}.mindrecord"


def note_of(path: str, rows: int, begin: int = 0, most: int | None = None) -> FileNote:
    """Returns the note of a file with `rows` samples, or only of its bytes from `begin` on, at most so many.

    Raises:
        FileNotFoundError: There is no such file.
        CacheError: It is no regular file.
        OSError: It cannot be read.
    """
    digest, size, block = hashlib.sha256(), 0, memoryview(bytearray(1 << 18))
    with open_regular(path, CacheError, "the file") as file:
        file.seek(begin)
        left = block if most is None else block[:most]
        while read := file.readinto(left):  # type: ignore[attr-defined]  # a buffered reader
            digest.update(left[:read])
            size += read
            left = block if most is None else block[: most - size]
    return FileNote(size, digest.hexdigest(), rows)


def write_small(path: str, data: bytes) -> None:
    """Writes a file atomically: it exists with all its bytes, or not at all.

    Raises:
        CacheError: It cannot be written.
    """
    with new_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(path: str) -> Iterator[IO[bytes]]:
    """Opens a file that appears with all its bytes when the `with` block ends without an error.

    Raises:
        CacheError: It cannot be written.
    """
    try:
        with written(path, CacheError, "the file") as file:
            yield file
    except CacheError as error:
        if isinstance(error.__cause__, OSError):
            raise unwritable(path, error.__cause__) from error.__cause__
        raise


def npy_bytes(values: NDArray[Any]) -> bytes:
    """Returns the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def npy_begin(head: bytes, size: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Returns where the numbers of a .npy file begin. No number is read, and nothing is allocated for them.

    Args:
        head: Its first `NPY_HEAD` bytes, or all of a smaller file.
        size: Its bytes.
        dtype: The dtype that it must have.
        shape: The shape that it must have.

    Raises:
        ValueError: It has another dtype, shape or size, or is no such file.
    """
    found, begin = _npy_header(head)
    if found != (shape, False, dtype):
        raise ValueError(f"it holds {found[2]} of shape {found[0]}; expected {dtype} of shape {shape}")
    if size - begin != (expected := math.prod(shape) * dtype.itemsize):
        raise ValueError(f"it has {size - begin:,} bytes of numbers; expected {expected:,}")
    return begin


def is_table(file: IO[bytes], dtype: np.dtype[Any], *widths: tuple[int, ...]) -> bool:
    """Returns whether an open file has the header of a .npy file of rows of this dtype and one of these shapes."""
    try:
        (shape, by_columns, found), _ = _npy_header(file.read(NPY_HEAD))
    except ValueError:
        return False
    return found == dtype and len(shape) > 0 and shape[1:] in widths and not by_columns


def _npy_header(head: bytes) -> tuple[tuple[tuple[int, ...], bool, np.dtype[Any]], int]:
    """Returns shape, order and dtype of a .npy file, and where its numbers begin; raises ValueError if it is none."""
    file = io.BytesIO(head)
    try:
        if _format.read_magic(file) != (1, 0):
            raise ValueError("its header is of another version")
        return _format.read_array_header_1_0(file), file.tell()
    except Exception as error:  # numpy's reader of headers raises many kinds
        raise ValueError(f"it has no .npy header: {printable(str(error), 100)}") from error


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
