"""The sidecar of a MindRecord file, an SQLite file: where each row lies, and the numbers that rows are searched by."""

from __future__ import annotations

import os
import pathlib
import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.cache.files import unwritable

SIDECAR = ".db"


class Entry(NamedTuple):
    """Where a row lies, in the order of the table.

    Attributes:
        row: Its number in the file.
        raw_page, raw_begin, raw_end: Its page of numbers, and from which byte to which.
        group: The group of rows it belongs to.
        blob_page, blob_begin, blob_end: The same in its page of arrays.
    """

    row: int
    raw_page: int
    raw_begin: int
    raw_end: int
    group: int
    blob_page: int
    blob_begin: int
    blob_end: int


_NAMES = (
    "ROW_ID",
    "PAGE_ID_RAW",
    "PAGE_OFFSET_RAW",
    "PAGE_OFFSET_RAW_END",
    "ROW_GROUP_ID",
    "PAGE_ID_BLOB",
    "PAGE_OFFSET_BLOB",
    "PAGE_OFFSET_BLOB_END",
)


def write_sidecar(path: str, names: Sequence[str], rows: Iterable[tuple[Entry, tuple[int, ...]]]) -> None:
    """Make the sidecar of a file.

    Args:
        path: The MindRecord file.
        names: Its columns of numbers, by name.
        rows: For each row its entry and its numbers.

    Raises:
        CacheError: It cannot be written.
    """
    # MindSpore gives every column that is searched a second one, which counts the values of a row: always one, 0.
    columns = [f"{name} INT NOT NULL" for name in _NAMES]
    for number, name in enumerate(names):
        columns += [f"INC_{number} INT", f'"{name}_0" INTEGER']
    key = ", ".join(["ROW_ID", *(f"INC_{number}" for number in range(len(names)))])
    marks = ", ".join("?" * len(columns))
    values = ((*entry, *(value for number in numbers for value in (0, number))) for entry, numbers in rows)
    try:
        connection = sqlite3.connect(path + SIDECAR, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = OFF")  # nobody reads it before it is whole
            connection.execute("PRAGMA synchronous = OFF")  # who calls puts it on the disk
            connection.execute("BEGIN")
            connection.execute(f"CREATE TABLE INDEXES({', '.join(columns)}, PRIMARY KEY({key}))")
            connection.executemany(f"INSERT INTO INDEXES VALUES({marks})", values)
            connection.execute("CREATE TABLE SHARD_NAME(NAME TEXT NOT NULL)")
            connection.execute("INSERT INTO SHARD_NAME VALUES(?)", [os.path.basename(path)])
            connection.execute("COMMIT")
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise unwritable(path + SIDECAR, error) from error


def read_sidecar(path: str) -> NDArray[np.int64]:
    """The pages of arrays of a file's rows.

    Returns:
        (n, 3) int64: page, first byte and end of each row, in the order they were written.

    Raises:
        ValueError: The rows are not numbered from 0.
        sqlite3.Error: The sidecar cannot be read.
    """
    # As a URI, or SQLite would make a sidecar that is missing; in one '#', '?' and '%41' have a meaning of their own.
    connection = sqlite3.connect(f"{pathlib.Path(path + SIDECAR).absolute().as_uri()}?mode=ro", uri=True)
    try:
        rows = connection.execute(
            "SELECT ROW_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY ROW_ID"
        ).fetchall()
    finally:
        connection.close()
    found = np.array(rows, np.int64).reshape(-1, 4)
    if (found[:, 0] != np.arange(len(found))).any():
        raise ValueError("its sidecar does not number the rows")
    return found[:, 1:]
