"""One MindRecord file: written with small pages, complete or not at all, and always with the same bytes.

The bytes are those that MindSpore's own FileWriter makes of the same rows, given one by one, and so is the table in
the sidecar; tests compare both. A page holds either arrays ("blob") or the columns of numbers, which MindSpore can
search for ("raw"). Rows whose arrays share a page are a group, and the numbers of a group share a page, too. The
header has an entry for every page.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import CacheError
from ms_prefstream.mindrecord.encoding import Arrays, encode, encode_searchable
from ms_prefstream.mindrecord.files import guarded
from ms_prefstream.mindrecord.schema import Columns, sizes_for
from ms_prefstream.mindrecord.sidecar import PLACE, SIDECAR, VERSION, Entry, write_sidecar

_BUFFER = 1 << 15  # larger than unpadded rows; padded rows bypass it


class RecordFile(contextlib.AbstractContextManager["RecordFile"]):
    """Writer of one MindRecord file; no file is created before the first row. The order of rows decides the bytes.

    Args:
        path: The file; its sidecar is `path` + ``.db``. Neither may exist.
        columns: Its columns: two or more arrays, and whole numbers from 0 on.
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
        self._pages: list[dict[str, Any]] = []  # the header's entries, by page number
        self._raw: dict[int, bytearray] = {}  # page -> the numbers in it
        self._rows: list[Entry] = []
        self._searchable: list[tuple[int, ...]] = []  # the numbers of each row
        self._sums: list[int] = []  # the CRC-32 of each row
        self._groups = 0  # finished ones
        self._open = bytearray()  # the numbers of the unfinished group
        self._blob: dict[str, Any] = {}  # the entry of its page of arrays
        self._saved = 0  # bytes that arrays have in memory and not in the file
        self._file: IO[bytes] | None = None

    def write(self, values: Mapping[str, Arrays | Sequence[int]]) -> None:
        """Appends one or more rows.

        Args:
            values: For each column the value of each row: arrays of its dtype, or numbers.

        Raises:
            CacheError: They cannot be written.
            TypeError: Arrays have another dtype than their column.
        """
        arrays: list[Any] = [values[name] for name in self._arrays]
        for name, column in zip(self._arrays, arrays, strict=True):
            expected, given = self._columns[name].values, [column] if hasattr(column, "dtype") else column
            if found := {array.dtype for array in given} - {self._columns[name].values}:
                raise TypeError(
                    f"{self.path}: column {name} is given {', '.join(map(str, found))}; expected {expected}."
                )
            self._saved += sum(array.nbytes for array in given)
        numbers = list(zip(*(values[name] for name in self._numbers), strict=True)) or [()] * len(arrays[0])
        with guarded(self.path):
            if self._file is None:
                self._file = open(self.path, "xb", buffering=_BUFFER)  # noqa: SIM115  # close() closes it
            for block, row in zip(encode(arrays), numbers, strict=True):
                self._append(self._file, block, row)

    def close(self) -> None:
        """Finishes the file and its sidecar and syncs both to the disk.

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
            write_sidecar(self.path, self._numbers, zip(self._rows, self._searchable, strict=True))
            self._file, mode = None, os.stat(self.path).st_mode & 0o777
            for path in (self.path, self.path + SIDECAR):
                with open(path, "rb") as file:
                    os.fchmod(file.fileno(), mode)  # SQLite gives its files no more than 0644
                    os.fsync(file.fileno())

    def places(self) -> NDArray[Any]:
        """Returns where each row lies in the finished file, (n,) of `PLACE`."""
        places = np.zeros(len(self._rows), PLACE)
        pages, begins, ends = np.array(self._rows, np.int64).reshape(-1, len(Entry._fields)).T[-3:]
        places["begin"] = self._begin(0) + pages * self._page_size + begins
        places["size"], places["crc"] = ends - begins, self._sums
        return places

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _append(self, file: IO[bytes], block: bytes, numbers: tuple[int, ...]) -> None:
        """Writes the arrays of a row into the open group, or into a new one if that is full."""
        raw = encode_searchable(self._numbers, numbers)
        full = self._blob.get("page_size", self._page_size) + len(block) > self._page_size
        if full or len(self._open) + len(raw) > self._page_size:
            self._end_group()
            self._blob = self._new_page("BLOB_DATA", self._groups)
            file.seek(self._begin(self._blob["page_id"]))
        raw_begin, blob_begin = len(self._open), self._blob["page_size"]
        self._open += raw
        file.write(self._fitting(f"row {len(self._rows)}", block, self._page_size))
        self._blob["page_size"] += len(block)
        in_raw, in_blob = (raw_begin, len(self._open)), (blob_begin, self._blob["page_size"])
        # The page of numbers is chosen when the group ends.
        self._rows.append(Entry(len(self._rows), -1, *in_raw, self._groups, self._blob["page_id"], *in_blob))
        self._searchable.append(numbers)
        self._sums.append(zlib.crc32(block))
        self._blob["end_row_id"] = len(self._rows)
        self._saved -= len(block) - 8 * (1 + len(self._arrays))

    def _end_group(self) -> None:
        """Moves the numbers of the open group into the last page of numbers, or a new one if they do not fit."""
        if not self._blob:
            return
        page = next(reversed(self._raw), -1)
        if page < 0 or len(self._raw[page]) + len(self._open) > self._page_size:
            page = self._new_page("RAW_DATA", page + 1)["page_id"]  # MindSpore numbers them so
            self._raw[page] = bytearray()
        entry, begin = self._pages[page], len(self._raw[page])
        self._raw[page] += self._open
        entry["page_size"] = len(self._raw[page])
        entry["row_group_ids"].append({"id": self._groups, "offset": begin})
        for row in self._rows[self._blob["start_row_id"] :]:
            ends = begin + row.page_offset_raw, begin + row.page_offset_raw_end
            self._rows[row.row_id] = Entry(row.row_id, page, *ends, *row[4:])
        self._groups += 1
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

    def _header(self) -> bytes:
        schema = {name: dict(sorted(column.schema().items())) for name, column in sorted(self._columns.items())}
        header = {
            "header_size": self._header_size,
            "index_fields": [{"index_field": name, "schema_id": 0} for name in self._numbers] or None,
            "page": self._pages,
            "page_size": self._page_size,
            "compression_size": max(self._saved, 0),
            "schema": [{"blob_fields": self._arrays, "desc": "ms_prefstream", "schema": schema}],
            "shard_addresses": [os.path.basename(self.path)],
            "shard_id": 0,
            "statistics": None,
            "version": VERSION,
        }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        return len(text).to_bytes(8, "little") + text
