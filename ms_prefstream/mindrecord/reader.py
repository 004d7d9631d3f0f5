"""The rows of a MindRecord file without MindSpore: where each one lies, and its values.

A file is a header (its length, then JSON) and pages of one size. A row lies in a page as

    size u64 | column | column | ...         columns by name; size in little, what follows in big endian
    whole numbers  bytes u64 | count u32 | 2 bits a value: its width | the values, 1, 2, 4 or 8 bytes each
    other values   bytes u64 | the values

with values in little endian. The sidecar, an SQLite file, says in which page and from which byte to which. MindSpore
reads a row in any order only by building a pipeline for it; this takes some microseconds. Many rows are decoded
together.
"""

from __future__ import annotations

import json
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.mindrecord.files import unwritable

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


VERSION = "3.0"
PLACE = np.dtype([("begin", "<u8"), ("size", "<u4"), ("crc", "<u4")])
"""A row of a file: its first byte, its bytes, and their CRC-32. Size 0: the row was dropped."""

_INTS: dict[str, np.dtype[Any]] = {"int32": np.dtype(np.int32), "int64": np.dtype(np.int64)}
_FOUR, _BIG_ENDIAN = np.arange(4), np.array([1 << 24, 1 << 16, 1 << 8, 1])
_BYTES, _SHIFTS = np.array([1, 2, 4, 8]), np.array([6, 4, 2, 0], np.uint8)


def places_of(path: str) -> NDArray[np.int64]:
    """Where the rows of a file lie, by its sidecar.

    Returns:
        (n, 2) int64, first byte and end of each row, in the order they were written.

    Raises:
        ValueError: The file is no MindRecord file of the known version.
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
    page, begin, end = read_sidecar(path).T
    first = page * head["page_size"] + head["header_size"]
    return np.stack([first + begin, first + end], axis=1)


def decode(blocks: Sequence[bytes], dtypes: Sequence[str]) -> list[list[NDArray[Any]]]:
    """The values of some rows.

    Args:
        blocks: The bytes of each row.
        dtypes: The columns' types, in the order of their names.

    Returns:
        For each column, the array of each row.

    Raises:
        ValueError: A row is not made of these columns.
    """
    bounds = _bounds(blocks, len(dtypes))  # (columns, rows, 2)
    data = np.frombuffer(b"".join(blocks) + bytes(8), np.uint8)  # what follows lets every value be read as 8 bytes
    whole = [column for column, dtype in enumerate(dtypes) if dtype in _INTS]
    decoded = iter(_whole_numbers(data, bounds[whole].reshape(-1, 2)))
    values: list[list[NDArray[Any]]] = []
    for column, dtype in enumerate(dtypes):
        if dtype in _INTS:
            values.append([next(decoded).astype(_INTS[dtype], copy=False) for _ in blocks])
        else:
            kind = np.dtype(dtype).newbyteorder("<")
            values.append([data[begin:end].view(kind) for begin, end in bounds[column].tolist()])
    return values


def _bounds(blocks: Sequence[bytes], columns: int) -> NDArray[np.int64]:
    """Where each column of each row lies in all blocks together, (columns, rows, 2) int64."""
    bounds: list[list[tuple[int, int]]] = [[] for _ in range(columns)]
    at = 0
    for block in blocks:
        here, size = 8, len(block)
        if int.from_bytes(block[:8], "little") != size - 8:
            raise ValueError("a row has another size than it says")
        for column in bounds:
            end = here + 8 + int.from_bytes(block[here : here + 8], "big")
            column.append((at + here + 8, at + end))
            here = end
        if here != size:
            raise ValueError("a row has other columns")
        at += size
    return np.array(bounds, np.int64).reshape(columns, len(blocks), 2)


def _whole_numbers(data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Arrays of whole numbers: count, widths, values of each.

    Args:
        data: All bytes.
        bounds: (n, 2), where each array lies.

    Returns:
        n arrays, int32 if all values are stored with 4 bytes or less, else int64.
    """
    begins, ends = bounds.T
    counts = data[begins[:, None] + _FOUR].astype(np.int64) @ _BIG_ENDIAN
    total = int(counts.sum())
    if total > 4 * len(data):
        raise ValueError("a row claims more values than it has bytes")
    lasts = np.cumsum(counts)
    firsts = lasts - counts
    inside = np.arange(total) - np.repeat(firsts, counts)
    maps = np.repeat(begins + 4, counts)
    widths = data[maps + (inside >> 2)] >> _SHIFTS[inside & 3] & 3
    sizes = _BYTES[widths]
    stored = np.concatenate([[0], np.cumsum(sizes)])  # bytes before each value
    starts = begins + 4 + (counts + 3) // 4
    if (starts + stored[lasts] - stored[firsts] != ends).any():
        raise ValueError("a row's values have another size than it says")
    places = stored[:-1] + np.repeat(starts - stored[firsts], counts)
    dtype = np.dtype("<i8" if (widths == 3).any() else "<i4")
    words: NDArray[Any] = np.ndarray((len(data) - 7,), dtype, data, 0, (1,))  # one begins at every byte
    spare = (8 * dtype.itemsize - 8 * sizes).astype(dtype)
    decoded: NDArray[Any] = words[places] << spare >> spare  # upper bytes belong to the next value
    return [decoded[first:last] for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)]
