"""Parquet files, read in any order by decoding whole row groups."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.base import RawRow, as_row_ids, by_part, no_rows
from ms_prefstream.sources.files import FileStamp, check_unchanged, name_of, sampled_hash, stamp, unreadable

_KEPT_GROUPS = 4


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where the rows of all files are.

    Attributes:
        stamps: One a file.
        bounds: (groups + 1,) int64, first row id of each row group; the last entry is the number of rows.
        files: (groups,) which file a row group is in.
        numbers: (groups,) its number within that file.
        file_bounds: (files + 1,) int64, first row id of each file.
    """

    stamps: list[FileStamp]
    bounds: NDArray[np.int64]
    files: list[int]
    numbers: list[int]
    file_bounds: NDArray[np.int64]


class ParquetRows:
    """Rows of one or many Parquet files, numbered through in the order of the files.

    A row group is the least that can be decoded. `read` decodes each row group that it needs once and the last four
    are kept, so rows asked together should be few or near each other: a shuffled run over files with huge row
    groups decodes much more than it uses. JSON Lines has no such cost.

    Args:
        paths: The files, in order.

    Attributes:
        name: What the rows come from, for people.
        paths: The files.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self.name = name_of(self.paths)
        self._found: _Layout | None = None
        self._tables: dict[int, Any] = {}  # decoded row groups, the one used last at the end

    def __len__(self) -> int:
        return int(self._layout().bounds[-1])

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """The rows with these ids, in this order, as dicts.

        Raises:
            SourceError: An id does not exist, pyarrow is missing, or a file is damaged or changed.
        """
        bounds = self._layout().bounds
        ids = as_row_ids(rows, int(bounds[-1]), self.name)
        result: list[RawRow] = [None] * len(ids)
        for group, positions in by_part(ids, bounds):
            picked = self._table(group).take(ids[positions] - bounds[group]).to_pylist()
            for position, row in zip(positions.tolist(), picked, strict=True):
                result[position] = row
        return result

    def origin(self, row: int) -> str:
        """Where a row comes from: ``"train.parquet[16]"``, the index in that file, counted from 0."""
        bounds = self._layout().file_bounds
        as_row_ids([row], int(bounds[-1]), self.name)
        file = int(np.searchsorted(bounds, row, side="right")) - 1
        return f"{self.paths[file]}[{row - int(bounds[file])}]"

    def fingerprint(self) -> str:
        """A hash of the files' sizes and of pieces of their contents; names, folders and times do not count."""
        return sampled_hash(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

    def _layout(self) -> _Layout:
        if self._found is None:
            found = _find(self.paths)
            if found.bounds[-1] == 0:
                raise no_rows(self.name)
            self._found = found
        return self._found

    def _table(self, group: int) -> Any:
        table = self._tables.pop(group, None)
        if table is None:
            table = self._decode(group)
        self._tables[group] = table
        for oldest in list(self._tables)[:-_KEPT_GROUPS]:
            self._tables.pop(oldest, None)
        return table

    def _decode(self, group: int) -> Any:
        layout = self._layout()
        path = self.paths[layout.files[group]]
        parquet = _parquet()
        try:
            with open(path, "rb") as file:
                check_unchanged(path, layout.stamps[layout.files[group]], os.fstat(file.fileno()))
                # No threads: several processes read at once, and pyarrow's pool does not survive every fork.
                return parquet.ParquetFile(file).read_row_group(layout.numbers[group], use_threads=False)
        except (OSError, _arrow_error()) as error:
            raise _damaged(path, error) from error


def _find(paths: Sequence[str]) -> _Layout:
    """Read the footers."""
    parquet = _parquet()
    stamps: list[FileStamp] = []
    sizes: list[int] = []
    files: list[int] = []
    numbers: list[int] = []
    totals: list[int] = []
    for number, path in enumerate(paths):
        stamps.append(stamp(path))
        try:
            with open(path, "rb") as file:
                footer = parquet.ParquetFile(file).metadata
        except (OSError, _arrow_error()) as error:
            raise _damaged(path, error) from error
        groups = [footer.row_group(k).num_rows for k in range(footer.num_row_groups)]
        sizes += groups
        files += [number] * len(groups)
        numbers += range(len(groups))
        totals.append(sum(groups))
    return _Layout(
        stamps=stamps,
        bounds=np.cumsum([0, *sizes], dtype=np.int64),
        files=files,
        numbers=numbers,
        file_bounds=np.cumsum([0, *totals], dtype=np.int64),
    )


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SourceError(
            "Reading Parquet files needs the package pyarrow, which is not installed. Install it (pip install "
            "pyarrow), or convert the files to JSON Lines."
        ) from error
    return pyarrow.parquet


def _arrow_error() -> type[Exception]:
    import pyarrow

    return pyarrow.ArrowException  # type: ignore[no-any-return]


def _damaged(path: str, error: Exception) -> SourceError:
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(path, error)
    return SourceError(
        f"{path}: found something that is not a whole Parquet file ({error}). Copy or write the file again; a file "
        "with other contents needs its own suffix."
    )
