"""One MindRecord file: written with small pages, whole or not at all, and always with the same bytes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from ms_prefstream.cache.columns import Columns, row_bytes
from ms_prefstream.cache.files import room_at, unwritable
from ms_prefstream.errors import CacheError
from ms_prefstream.needed import needs

SIDECAR = ".db"
_LEAST_HEADER, _LEAST_PAGE = 1 << 14, 1 << 15
_MOST_HEADER, _MOST_PAGE = 1 << 27, 1 << 28
_UNIT = 4096
_ROWS_A_PAGE = 4
_LEAST_FREE = 10  # MB of the disk, measured with MindSpore 2.9
_TAG = re.compile(r"(\[[\w ]*ERROR\]\s*)+")
_HEADING = re.compile(r"Exception thrown from|[\w +()]+( Message| Developers\))?: *$|[^ ]*\.(cc|h)\(\d+\)")
_PLACE_IN_CODE = re.compile(r"\s*(Line of code|\[?mindspore/ccsrc/)")
_HEADER_BYTES_A_PAGE = 256  # what the header says of a page; MindSpore 2.9 takes about 170


def sizes_for(columns: Columns, rows: int) -> tuple[int, int]:
    """Header and page size in bytes for a file of at most so many rows.

    MindSpore's own sizes make 50 MB of three rows. A page must hold the largest row, and the header a line about every
    page, or the file cannot be written.
    """
    largest = row_bytes(columns)
    # Both are lost space: a page's empty end, and a line of the header for each page. Their sum is least at the root.
    page = _power(max(_ROWS_A_PAGE * largest, math.isqrt(2 * _HEADER_BYTES_A_PAGE * rows * largest)), _LEAST_PAGE)
    if page > _MOST_PAGE:
        page = _power(largest, _LEAST_PAGE)
    if page > _MOST_PAGE:
        raise CacheError(
            f"a row can take {largest:,} bytes in a MindRecord file, and {_MOST_PAGE:,} is the most that fits into one "
            "of its pages. Lower the task's length."
        )
    pages = rows * largest // (page - largest + 1) + rows * 16 // page + 8
    header = -(-(_LEAST_HEADER // 2 + pages * _HEADER_BYTES_A_PAGE) // _UNIT) * _UNIT
    return min(max(header, _LEAST_HEADER), _MOST_HEADER), page


class _Header(NamedTuple):
    """What MindSpore's writer of rows asks of a file's header."""

    schema: Any
    blob_fields: Any


class RecordFile:
    """A MindRecord file that is being written. The order and the grouping of `write` calls decide about its bytes.

    Args:
        path: The file; its sidecar is `path` + ``.db``. Neither may exist.
        columns: Its columns.
        rows: The most rows that this file, or one that is read together with it, may have.

    Attributes:
        rows: Rows written so far.
    """

    def __init__(self, path: str, columns: Columns, rows: int) -> None:
        self.path, self.rows = path, 0
        writer = _mindrecord().FileWriter(path, 1)
        header, page = sizes_for(columns, rows)
        self._writer = writer
        self._guarded(writer.set_header_size, header)
        self._guarded(writer.set_page_size, page)
        schema = {name: column.schema() for name, column in columns.items()}
        self._guarded(writer.add_schema, schema, "ms_prefstream")
        self._write: Callable[[list[dict[str, Any]]], Any] = self._write_first

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows.

        Raises:
            CacheError: They cannot be written.
        """
        if rows:
            self._guarded(self._write, rows)
            self.rows += len(rows)

    def close(self) -> None:
        """Finish the file and put it on the disk.

        Raises:
            CacheError: It cannot be written, or holds another number of rows than it was given.
        """
        self._guarded(self._writer.commit)
        try:
            mode = os.stat(os.path.dirname(self.path)).st_mode & 0o666  # MindSpore lets nobody else read
            for path in (self.path, self.path + SIDECAR):
                with open(path, "rb") as file:
                    os.fchmod(file.fileno(), mode)
                    os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def _write_first(self, rows: list[dict[str, Any]]) -> None:
        """Open the file through MindSpore's own checks, which cost more than the writing; later rows are like these.

        What they check is proven otherwise: the values have the columns' types, and the finished file is read back.
        """
        self._writer.write_raw_data(rows)
        inner: Any = getattr(self._writer, "_writer", None)
        header: Any = getattr(inner, "_header", None)
        if hasattr(inner, "write_raw_data") and hasattr(header, "schema") and hasattr(header, "blob_fields"):
            inner._header = _Header(header.schema, header.blob_fields)  # theirs is parsed anew for every value
            self._write = inner.write_raw_data
        else:
            self._write = self._writer.write_raw_data

    def _guarded(self, function: Any, *arguments: Any) -> None:
        """Call MindSpore; its errors are RuntimeErrors with many lines."""
        try:
            function(*arguments)
        except OSError as error:
            raise unwritable(self.path, error) from error
        except Exception as error:
            said = _said(error)
            full = f", and MindSpore writes nothing below {_LEAST_FREE} MB" if "free disk" in said else ""
            raise CacheError(
                f"{self.path}: MindSpore could not write the file ({said}){room_at(self.path)}{full}. Make room or "
                "correct what it names, and run again: what is finished is kept."
            ) from error


def _said(error: Exception) -> str:
    """What went wrong, without MindSpore's headings and frames, its C++ call stack, files and numbers of lines."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    lines = [line for line in lines if line and not _HEADING.match(line)]
    said = next((line for line in lines if _TAG.match(line)), lines[0] if lines else type(error).__name__)
    return _PLACE_IN_CODE.split(_TAG.sub("", said))[0].rstrip(" .:[")


def _power(value: int, least: int) -> int:
    return max(least, 1 << (value - 1).bit_length())


def _mindrecord() -> Any:
    os.environ.setdefault("GLOG_v", "3")  # its warnings about rows go to the standard error stream of workers
    with needs("mindspore", "write_cache"):
        import mindspore.mindrecord as module

    return module
