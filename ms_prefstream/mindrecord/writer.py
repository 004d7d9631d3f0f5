"""One MindRecord file: written with small pages, whole or not at all, and always with the same bytes.

Its bytes are those that MindSpore's own FileWriter makes of the same rows, given one by one, and so is the table in
its sidecar; tests compare both. A page holds either arrays ("blob") or what MindSpore can search for, the columns of
numbers ("raw"). Rows whose arrays share a page are a group, and the numbers of a group share a page, too. The header
has an entry for every page.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import CacheError
from ms_prefstream.mindrecord.files import guarded
from ms_prefstream.mindrecord.reader import PLACE, SIDECAR, VERSION, Entry, write_sidecar
from ms_prefstream.mindrecord.schema import Columns, sizes_for


@dataclass(frozen=True)
class PaddedBlock:
    """Rows of numbers that end with one number, many times.

    Attributes:
        block: (n, width), where each row begins. Width is a multiple of four, or the length itself.
        length: How many numbers a row has; the last one in the block stands in all places behind it.
    """

    block: NDArray[Any]
    length: int

    def __len__(self) -> int:
        return len(self.block)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        rest = self.length - self.block.shape[1]
        return (np.concatenate([row, np.repeat(row[-1:], rest)]) for row in self.block)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers."""
        return self.block.dtype

    @property
    def nbytes(self) -> int:
        """Of all rows, written out."""
        return len(self) * self.length * self.block.itemsize


Arrays = NDArray[Any] | PaddedBlock | Sequence[NDArray[Any]]
"""One array a row: (n, length), the same in short, or n arrays of any length."""

_Pieces = tuple[bytes | memoryview, ...]
_KEPT = {  # size of a number -> width -> for each of its bytes whether it is stored, in one word
    4: np.array([0x1, 0x101, 0x1010101], "<u4"),
    8: np.array([0x1, 0x101, 0x1010101, 0x101010101010101], "<u8"),
}


def encode(columns: Sequence[Arrays]) -> Iterator[bytes]:
    """The bytes of some rows, one row after the other.

    Args:
        columns: int32, int64 or float32 arrays for two columns or more, in the order of the columns' names.
    """
    for fields in zip(*map(_column, columns), strict=True):
        pieces = list(itertools.chain.from_iterable(fields))  # joined once: a padded row is long
        yield b"".join((sum(map(len, pieces)).to_bytes(8, "little"), *pieces))


def encode_numbers(names: Sequence[str], numbers: Sequence[int]) -> bytes:
    """What a row is searched by, in MessagePack; MindRecord wants a number where there is none.

    Args:
        names: Names of at most 31 letters, 15 of them at most.
        numbers: From 0 on.
    """
    pairs = list(zip(names, numbers, strict=True)) or [("id", 0)]
    packed = b"".join(bytes([0xA0 + len(name)]) + name.encode() + _number(number) for name, number in pairs)
    return (1 + len(packed)).to_bytes(8, "little") + bytes([0x80 + len(pairs)]) + packed


def _number(number: int) -> bytes:
    """The shortest of 7, 8, 16, 32 and 64 bits."""
    if number < 1 << 7:
        return number.to_bytes(1, "big")
    power = next(power for power in range(4) if number < 1 << (8 << power))
    return bytes([0xCC + power]) + number.to_bytes(1 << power, "big")


def _column(arrays: Arrays) -> list[_Pieces]:
    """A column's part of each row."""
    fields: list[_Pieces]
    if isinstance(arrays, PaddedBlock):
        fields = _filled(arrays.block, arrays.length)
    elif arrays[0].dtype.kind == "f":
        fields = [(array.tobytes(),) for array in arrays]
    elif isinstance(arrays, np.ndarray):
        fields = _filled(arrays, arrays.shape[1])
    else:
        counts = np.array([len(array) for array in arrays])
        fields = [
            (len(array).to_bytes(4, "big"), widths, stored)
            for array, widths, stored in zip(arrays, *_numbers(np.concatenate(arrays), counts), strict=True)
        ]
    return [(sum(map(len, field)).to_bytes(8, "big"), *field) for field in fields]


def _filled(block: NDArray[Any], length: int) -> list[_Pieces]:
    """What stands before the number that a row ends with, and how often that does; see `PaddedBlock`."""
    if len(block) > 1 and block.strides[0] == 0:  # one row, broadcast
        return _filled(block[:1], length) * len(block)
    # Four widths share a byte: what fills begins with a byte of its own, so that it is the same in every row.
    bodies = np.minimum(-(-_ends(block != block[:, -1:]) // 4) * 4, length)
    body = np.concatenate([row[:end] for row, end in zip(block, bodies.tolist(), strict=True)])
    last = np.ascontiguousarray(block[:, -1])
    values, widths_of_last, count = last.tobytes(), _widths(last).tolist(), length.to_bytes(4, "big")
    fillings: dict[bytes, memoryview] = {}
    fields: list[_Pieces] = []
    for begin, end, width, widths, stored in zip(
        range(0, len(values), last.itemsize), bodies.tolist(), widths_of_last, *_numbers(body, bodies), strict=True
    ):
        value, rest = values[begin : begin + (1 << width)], length - end
        if value not in fillings:
            fillings[value] = memoryview(value * length)
        filling = fillings[value][: rest << width]
        fields.append((count, widths, _same_widths(width, rest), stored, filling))
    return fields


def _ends(differs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where the last true value of each row ends, 0 where none is true."""
    anywhere = np.flatnonzero(differs.any(axis=0))
    most = int(anywhere[-1]) + 1 if len(anywhere) else 1  # beyond it nothing need be searched
    backwards = differs[:, most - 1 :: -1]
    last = backwards.argmax(axis=1)
    return np.where(backwards[np.arange(len(last)), last], most - last, 0)


def _same_widths(width: int, count: int) -> bytes:
    """The widths of `count` numbers that have the same."""
    whole, rest = divmod(count, 4)
    four = width * 0b01010101
    return bytes([four]) * whole + (bytes([four & (0xFF00 >> 2 * rest) & 0xFF]) if rest else b"")


def _numbers(values: NDArray[Any], counts: NDArray[np.int64]) -> tuple[list[bytes], list[bytes]]:
    """Widths and values of whole numbers.

    Args:
        values: Those of all rows, one after the other.
        counts: How many belong to each row.
    """
    widths = _widths(values)
    sizes = np.left_shift(np.uint8(1), widths)
    if widths.any():
        kept = _KEPT[values.itemsize][widths].view(np.bool_)  # the lower bytes of each value
        stored = values.view(np.uint8)[kept].tobytes()
    else:
        stored = values.astype(np.int8).tobytes()
    lasts, groups = np.cumsum(counts), -(-counts // 4)
    group_ends = np.cumsum(groups)
    if (counts % 4).any():  # each row begins with a byte of its own
        places = np.arange(len(values)) + np.repeat(4 * (group_ends - groups) - (lasts - counts), counts)
        widths_of_groups = np.zeros(4 * int(group_ends[-1]), np.uint8)
        widths_of_groups[places] = widths
        widths = widths_of_groups
    first, second, third, fourth = widths.reshape(-1, 4).T
    packed = (first << 6 | second << 4 | third << 2 | fourth).tobytes()
    return _cut(packed, group_ends), _cut(stored, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[lasts])


def _widths(values: NDArray[Any]) -> NDArray[np.uint8]:
    """0 for numbers that fit into a signed byte, 1 into two bytes, 2 into four, 3 for all others."""
    widths: NDArray[np.uint8] = (values != values.astype(np.int8)).view(np.uint8)
    for kind in (np.int16, np.int32)[: {4: 1, 8: 2}[values.itemsize]]:
        widths += (values != values.astype(kind)).view(np.uint8)
    return widths


def _cut(data: bytes, ends: NDArray[np.int64]) -> list[bytes]:
    bounds = [0, *ends.tolist()]
    return [data[begin:end] for begin, end in itertools.pairwise(bounds)]


_BUFFER = 1 << 15  # larger than unpadded rows; padded ones pass it by


class _Row(NamedTuple):
    """A row: its group, its numbers, where it lies among those of its group and in its page of arrays, its CRC-32."""

    group: int
    numbers: tuple[int, ...]
    raw: tuple[int, int]
    blob: tuple[int, int]
    crc: int


class _Group(NamedTuple):
    """A finished group of rows: its page of arrays, its page of numbers and the first byte there."""

    blob_page: int
    raw_page: int
    raw_begin: int


class RecordFile:
    """A MindRecord file that is being written; without a row there will be none. Order decides about its bytes.

    Args:
        path: The file; its sidecar is `path` + ``.db``. Neither may exist.
        columns: Its columns, of which two or more are arrays; numbers are whole ones from 0 on.
        rows: The most rows that this file, or one that is read together with it, may have.

    Raises:
        CacheError: A row may be too large for any page.
    """

    def __init__(self, path: str, columns: Columns, rows: int) -> None:
        self.path = path
        self._columns = columns
        self._arrays = sorted(name for name, column in columns.items() if column.shape)
        self._numbers = sorted(name for name, column in columns.items() if not column.shape)
        self._header_size, self._page_size = sizes_for(columns, rows)
        self._pages: list[dict[str, Any]] = []  # the header's entries; the place in the list is the page's number
        self._raw: dict[int, bytearray] = {}  # page -> the numbers in it
        self._rows: list[_Row] = []
        self._groups: list[_Group] = []
        self._open = bytearray()  # the numbers of the group that is not finished
        self._blob: dict[str, Any] = {}  # the entry of its page of arrays
        self._spared = 0  # bytes that arrays have in memory and not in the file
        self._file: IO[bytes] | None = None

    def write(self, values: Mapping[str, Arrays | Sequence[int]]) -> None:
        """Append rows.

        Args:
            values: For each column the value of each row, one or more: arrays of its dtype, or numbers.

        Raises:
            CacheError: They cannot be written.
            TypeError: Arrays have another dtype than their column.
        """
        arrays: list[Any] = [values[name] for name in self._arrays]
        for name, column in zip(self._arrays, arrays, strict=True):
            expected, given = self._columns[name].dtype, [column] if hasattr(column, "dtype") else column
            if found := {array.dtype for array in given} - {np.dtype(expected)}:
                raise TypeError(
                    f"{self.path}: column {name} is given {', '.join(map(str, found))}; expected {expected}."
                )
            self._spared += sum(array.nbytes for array in given)
        numbers = list(zip(*(values[name] for name in self._numbers), strict=True)) or [()] * len(arrays[0])
        with guarded(self.path):
            if self._file is None:
                self._file = open(self.path, "xb", buffering=_BUFFER)  # noqa: SIM115  # close() closes it
            for block, row in zip(encode(arrays), numbers, strict=True):
                self._append(self._file, block, row)

    def close(self) -> None:
        """Finish the file and its sidecar and put both on the disk.

        Raises:
            CacheError: They cannot be written.
        """
        if self._file is None:
            return
        with guarded(self.path):
            with self._file as file:
                self._end_group()
                for page, numbers in self._raw.items():
                    file.seek(self._begin(page))
                    file.write(numbers)
                file.seek(0)
                file.write(self._fitting("the header", self._header(), self._header_size))
            write_sidecar(self.path, self._numbers, map(self._entry, range(len(self._rows)), self._rows))
            self._file, mode = None, os.stat(self.path).st_mode & 0o777
            for path in (self.path, self.path + SIDECAR):
                with open(path, "rb") as file:
                    os.fchmod(file.fileno(), mode)  # SQLite gives its files no more than 0644
                    os.fsync(file.fileno())

    def places(self) -> NDArray[Any]:
        """Where each row lies in the finished file, (n,) of `PLACE`."""
        places = np.zeros(len(self._rows), PLACE)
        pages = np.array([self._groups[row.group].blob_page for row in self._rows], np.int64)
        spans = np.array([row.blob for row in self._rows], np.int64).reshape(-1, 2)
        places["begin"] = self._begin(0) + pages * self._page_size + spans[:, 0]
        places["size"], places["crc"] = spans[:, 1] - spans[:, 0], [row.crc for row in self._rows]
        return places

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _append(self, file: IO[bytes], block: bytes, numbers: tuple[int, ...]) -> None:
        """Give a row its place, in a new group if the present one has no room, and write its arrays there."""
        raw = encode_numbers(self._numbers, numbers)
        full = self._blob.get("page_size", self._page_size) + len(block) > self._page_size
        if full or len(self._open) + len(raw) > self._page_size:
            self._end_group()
            self._blob = self._new_page("BLOB_DATA", len(self._groups))
            file.seek(self._begin(self._blob["page_id"]))
        raw_begin, blob_begin = len(self._open), self._blob["page_size"]
        self._open += raw
        file.write(self._fitting(f"row {len(self._rows)}", block, self._page_size))
        self._blob["page_size"] += len(block)
        spans = (raw_begin, len(self._open)), (blob_begin, self._blob["page_size"])
        self._rows.append(_Row(len(self._groups), numbers, *spans, zlib.crc32(block)))
        self._blob["end_row_id"] = len(self._rows)
        self._spared -= len(block) - 8 * (1 + len(self._arrays))

    def _end_group(self) -> None:
        """Put the numbers of the open group into the last page of numbers, or a new one if they do not fit."""
        if not self._blob:
            return
        page = next(reversed(self._raw), -1)
        if page < 0 or len(self._raw[page]) + len(self._open) > self._page_size:
            page = self._new_page("RAW_DATA", page + 1)["page_id"]  # MindSpore numbers them so
            self._raw[page] = bytearray()
        entry, begin = self._pages[page], len(self._raw[page])
        self._raw[page] += self._open
        entry["page_size"] = len(self._raw[page])
        entry["row_group_ids"].append({"id": len(self._groups), "offset": begin})
        self._groups.append(_Group(self._blob["page_id"], page, begin))
        self._open.clear()

    def _new_page(self, kind: str, number: int) -> dict[str, Any]:
        blob = kind == "BLOB_DATA"
        entry: dict[str, Any] = {
            "end_row_id": 0,
            "page_id": len(self._pages),
            "page_size": 0,
            "page_type": kind,
            "page_type_id": number,
            "row_group_ids": [{"id": 0, "offset": 0}] if blob else [],
            "shard_id": 0,
            "start_row_id": len(self._rows) if blob else 0,
        }
        self._pages.append(entry)
        return entry

    def _fitting(self, what: str, data: bytes, room: int) -> bytes:
        if len(data) > room:
            raise CacheError(f"{self.path}: {what} takes {len(data):,} bytes, and {room:,} are set apart for it.")
        return data

    def _begin(self, page: int) -> int:
        return self._header_size + page * self._page_size

    def _entry(self, number: int, row: _Row) -> tuple[Entry, tuple[int, ...]]:
        group = self._groups[row.group]
        begin, end = (group.raw_begin + at for at in row.raw)
        return Entry(number, group.raw_page, begin, end, row.group, group.blob_page, *row.blob), row.numbers

    def _header(self) -> bytes:
        schema = {name: dict(sorted(column.schema().items())) for name, column in sorted(self._columns.items())}
        header = {
            "header_size": self._header_size,
            "index_fields": [{"index_field": name, "schema_id": 0} for name in self._numbers] or None,
            "page": self._pages,
            "page_size": self._page_size,
            "compression_size": max(self._spared, 0),
            "schema": [{"blob_fields": self._arrays, "desc": "ms_prefstream", "schema": schema}],
            "shard_addresses": [os.path.basename(self.path)],
            "shard_id": 0,
            "statistics": None,
            "version": VERSION,
        }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        return len(text).to_bytes(8, "little") + text
