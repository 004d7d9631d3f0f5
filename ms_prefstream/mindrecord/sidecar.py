"""Sidecar of a MindRecord file: the SQLite table `FILE.db` that says in which page, and at which bytes, each row lies.

MindSpore reads a row in any order only through a pipeline that is built for it. Reading the bytes at these offsets
takes microseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.mindrecord.files import unwritable

SIDECAR = ".db"
VERSION = "3.0"
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


def write_sidecar(path: str, names: Sequence[str], rows: Iterable[tuple[Entry, tuple[int, ...]]]) -> None:
    """Creates the sidecar of a MindRecord file with these columns of numbers, sorted. The caller syncs it to the disk.

    Raises:
        CacheError: It cannot be written.
    """
    # MindSpore gives every searchable column a second one that counts the values of a row: always one, numbered 0.
    columns = [f"{name.upper()} INT NOT NULL" for name in Entry._fields]
    for number, name in enumerate(names):
        columns += [f"INC_{number} INT", f'"{name}_0" INTEGER']
    key = ", ".join(["ROW_ID", *(f"INC_{number}" for number in range(len(names)))])
    marks = ", ".join("?" * len(columns))
    values = ((*entry, *(value for number in numbers for value in (0, number))) for entry, numbers in rows)
    try:
        with contextlib.closing(sqlite3.connect(path + SIDECAR, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = OFF")  # an incomplete sidecar is never read
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            connection.execute(f"CREATE TABLE INDEXES({', '.join(columns)}, PRIMARY KEY({key}))")
            connection.executemany(f"INSERT INTO INDEXES VALUES({marks})", values)
            connection.execute("CREATE TABLE SHARD_NAME(NAME TEXT NOT NULL)")
            connection.execute("INSERT INTO SHARD_NAME VALUES(?)", [os.path.basename(path)])
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise unwritable(path + SIDECAR, error) from error


def read_offsets(path: str) -> NDArray[np.int64]:
    """Returns where the rows of a file lie, by its header and its sidecar.

    Returns:
        (n, 2) int64, first byte and end of each row's arrays in the file, in the order they were written.

    Raises:
        ValueError: The file is no MindRecord file of the known version, or its rows are not numbered from 0.
        OSError: It cannot be read.
        sqlite3.Error: The sidecar cannot be read.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > 1 << 27:
            raise ValueError("it has no MindRecord header")
        head = json.loads(file.read(size))
    if head["version"] != VERSION:
        raise ValueError(f"it is of MindRecord version {head['version']}, expected {VERSION}")
    # Opened as a URI, because SQLite would create a missing sidecar; '#', '?' and '%41' have to be escaped in one.
    uri = f"{pathlib.Path(path + SIDECAR).absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        rows = connection.execute(
            "SELECT ROW_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY ROW_ID"
        ).fetchall()
    numbers, page, begin, end = np.array(rows, np.int64).reshape(-1, 4).T
    if (numbers != np.arange(len(numbers))).any():
        raise ValueError("its sidecar does not number the rows")
    first = page * head["page_size"] + head["header_size"]
    return np.stack([first + begin, first + end], axis=1)
