"""Sidecar of a MindRecord file: the SQLite table `FILE.db` that says in which page, and at which bytes, each row lies.

MindSpore reads a row in any order only through a pipeline that is built for it. Reading the bytes at these offsets
takes microseconds.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Sequence
from typing import IO, Annotated, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ms_prefstream.disk import open_regular, parse_json, shown
from ms_prefstream.errors import CacheError, PrefStreamError, printable
from ms_prefstream.mindrecord.files import unwritable

SIDECAR = ".db"
VERSION = "3.0"
_WHAT, _MOST_HEADER = "the MindRecord file", 1 << 27
PLACE = np.dtype([("begin", "<u8"), ("size", "<u4"), ("crc", "<u4")])
"""One row of a file: its offset, its bytes, and their CRC-32. Size 0: the row was dropped."""


class Entry(NamedTuple):
    """Where a row lies. The fields are the table's columns, in order; offsets are in bytes from the page's begin.

    Attributes:
        row_id: Its number in the file.
        page_id_raw, page_offset_raw, page_offset_raw_end: Its page of numbers, begin and end there.
        row_group_id: The group of rows it belongs to.
        page_id_blob, page_offset_blob, page_offset_blob_end: Its page of arrays, begin and end there.
    """

    row_id: int
    page_id_raw: int
    page_offset_raw: int
    page_offset_raw_end: int
    row_group_id: int
    page_id_blob: int
    page_offset_blob: int
    page_offset_blob_end: int


_INDEXES = f"CREATE TABLE INDEXES({', '.join(f'{name.upper()} INT NOT NULL' for name in Entry._fields)}"
_SHARD_NAME = "CREATE TABLE SHARD_NAME(NAME TEXT NOT NULL)"
_SQLITE_PAGE = 4096  # bytes; the first page has the tables' definitions


def write_sidecar(path: str, names: Sequence[str], rows: Iterable[tuple[Entry, tuple[int, ...]]]) -> None:
    """Creates the sidecar of a MindRecord file with these columns of numbers, sorted. The caller syncs it to the disk.

    Raises:
        CacheError: It cannot be written.
    """
    # MindSpore gives every searchable column a second one that counts the values of a row: always one, numbered 0.
    columns = [f', INC_{number} INT, "{name}_0" INTEGER' for number, name in enumerate(names)]
    key = ", ".join(["ROW_ID", *(f"INC_{number}" for number in range(len(names)))])
    marks = ", ".join("?" * (len(Entry._fields) + 2 * len(names)))
    values = ((*entry, *(value for number in numbers for value in (0, number))) for entry, numbers in rows)
    try:
        os.close(os.open(path + SIDECAR, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        with contextlib.closing(sqlite3.connect(path + SIDECAR, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = OFF")  # an incomplete sidecar is never read
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            connection.execute(f"{_INDEXES}{''.join(columns)}, PRIMARY KEY({key}))")
            connection.executemany(f"INSERT INTO INDEXES VALUES({marks})", values)
            connection.execute(_SHARD_NAME)
            connection.execute("INSERT INTO SHARD_NAME VALUES(?)", [os.path.basename(path)])
            connection.execute("COMMIT")
    except (OSError, sqlite3.Error) as error:
        raise unwritable(path + SIDECAR, error) from error


def read_offsets(path: str) -> NDArray[np.int64]:
    """Returns where the rows of a file lie, by its header and its sidecar.

    Returns:
        (n, 2) int64, first byte and end of each row's arrays in the file, in the order they were written.

    Raises:
        CacheError: The file is no MindRecord file of the known version, or its sidecar is none, or does not belong to
            it.
        FileNotFoundError: One of them is missing.
    """
    with open_regular(path, CacheError, _WHAT) as file:
        head = parse_json(_header(file, path), _Header, path, CacheError, _WHAT)
        whole = os.fstat(file.fileno()).st_size
    open_regular(path + SIDECAR, CacheError, "the sidecar").close()  # no pipe, which SQLite would wait for
    try:
        rows = _table(path + SIDECAR, whole)
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        raise CacheError(f"the sidecar {shown(path + SIDECAR)} is damaged: {printable(str(error))}.") from error
    numbers, page, begin, end = rows.T
    if (numbers != np.arange(len(numbers))).any():
        raise CacheError(f"the sidecar {shown(path + SIDECAR)} does not number the rows.")
    first = page * head.page_size + head.header_size
    if not ((begin <= end).all() and (page <= whole // head.page_size).all() and (first + end <= whole).all()):
        raise CacheError(f"the sidecar {shown(path + SIDECAR)} gives its rows places outside of the file.")
    return np.stack([first + begin, first + end], axis=1)


def is_record_file(file: IO[bytes]) -> bool:
    """Returns whether an open file is a MindRecord file of this library, by its header; its rows may be damaged."""
    try:
        parse_json(_header(file, ""), _OwnHeader, "", CacheError, _WHAT)
    except PrefStreamError:
        return False
    return True


def is_sidecar(file: IO[bytes]) -> bool:
    """Returns whether an open file is a SQLite database with the tables of a sidecar; its rows may be damaged."""
    first = file.read(_SQLITE_PAGE)
    return first.startswith(b"SQLite format 3\0") and _INDEXES.encode() in first and _SHARD_NAME.encode() in first


def _header(file: IO[bytes], path: str) -> bytes:
    """Returns the JSON of a MindRecord file's header.

    Raises:
        CacheError: The file has none.
    """
    size = int.from_bytes(file.read(8), "little")
    if size > _MOST_HEADER:
        raise CacheError(f"{_WHAT} {shown(path)} has no MindRecord header.")
    return file.read(size)


def _table(path: str, most: int) -> NDArray[np.int64]:
    """Returns number, page, begin and end of each row in a sidecar, (n, 4); no number is larger than `most`."""
    # Opened as a URI, because SQLite would create a missing sidecar; '#', '?' and '%41' have to be escaped in one.
    uri = f"{pathlib.Path(path).absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        # A view could run functions, or give rows without end.
        kind = connection.execute("SELECT type FROM sqlite_master WHERE name = 'INDEXES'").fetchall()
        if kind != [("table",)]:
            raise ValueError("it has no table INDEXES")
        rows = connection.execute(
            "SELECT ROW_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY ROW_ID"
        ).fetchall()
    if not all(type(value) is int and 0 <= value <= most for row in rows for value in row):
        raise ValueError("its table holds other values than places in the file")
    return np.array(rows, np.int64).reshape(-1, 4)


class _Header(msgspec.Struct):
    version: Literal["3.0"]
    page_size: Annotated[int, msgspec.Meta(ge=1, le=2**30)]
    header_size: Annotated[int, msgspec.Meta(ge=1, le=2**30)]


class _Schema(msgspec.Struct):
    desc: Literal["ms_prefstream"]


class _OwnHeader(_Header):
    schema: Annotated[list[_Schema], msgspec.Meta(min_length=1, max_length=1)]
