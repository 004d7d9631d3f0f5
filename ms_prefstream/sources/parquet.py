"""Parquet files, read in any order by decoding whole row groups."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import SourceError
from ms_prefstream.packages import needs
from ms_prefstream.sources.base import RawRow, locate, no_rows, read_parts
from ms_prefstream.sources.content_hash import sampled_files_hash
from ms_prefstream.sources.files import FileStamp, check_unchanged, name_of, stamp, unreadable

_KEPT_GROUPS = 4


class _Layout(NamedTuple):
    """Rows of all files, by file and by row group; bounds as in `base.read_parts`."""

    stamps: list[FileStamp]  # of each file
    file_bounds: NDArray[np.int64]
    groups: list[tuple[int, int]]  # of each row group: its file, and its number within that file
    group_bounds: NDArray[np.int64]


class ParquetRows:
    """Rows of one or many Parquet files, numbered consecutively in the order of the files.

    Only whole row groups can be decoded. `read` decodes each row group that it needs once and keeps the last four, so
    rows that are read together should be few or near each other: a shuffled run over files with huge row groups
    decodes much more than it uses. JSON Lines has no such cost.
    """

    fills_nulls = True  # see `base.fills_nulls`

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self.name = name_of(self.paths)
        self._tables: dict[int, Any] = {}  # decoded row groups, the one used last at the end

    def __len__(self) -> int:
        return int(self._layout.group_bounds[-1])

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Returns the rows with these ids, in this order, as dicts."""
        bounds = self._layout.group_bounds
        return read_parts(rows, bounds, self.name, lambda group, local: self._table(group).take(local).to_pylist())

    def origin(self, row: int) -> str:
        """Returns where a row comes from: ``"train.parquet[16]"``, the index in that file, counted from 0."""
        file, local = locate(row, self._layout.file_bounds, self.name)
        return f"{self.paths[file]}[{local}]"

    def fingerprint(self) -> str:
        """Returns a hash of the files' sizes and samples of their contents; names, folders and times do not count."""
        return sampled_files_hash(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

    @functools.cached_property
    def _layout(self) -> _Layout:
        stamps = [stamp(path) for path in self.paths]
        groups: list[tuple[int, int]] = []
        group_rows, file_rows = [0], [0]
        for number, path in enumerate(self.paths):
            with _opened(path, stamps[number]) as parquet:
                footer = parquet.metadata
            groups += [(number, k) for k in range(footer.num_row_groups)]
            group_rows += [footer.row_group(k).num_rows for k in range(footer.num_row_groups)]
            file_rows.append(footer.num_rows)
        if not any(file_rows):
            raise no_rows(self.name)
        return _Layout(stamps, np.cumsum(file_rows, dtype=np.int64), groups, np.cumsum(group_rows, dtype=np.int64))

    def _table(self, group: int) -> Any:
        """Returns a row group as a table, decoded now or kept from before."""
        table = self._tables.pop(group, None)
        if table is None:
            table = self._decode(group)
        self._tables[group] = table
        for oldest in list(self._tables)[:-_KEPT_GROUPS]:
            self._tables.pop(oldest, None)
        return table

    def _decode(self, group: int) -> Any:
        file, number = self._layout.groups[group]
        with _opened(self.paths[file], self._layout.stamps[file]) as parquet:
            # No threads: several processes read at once, and pyarrow's pool does not survive every fork.
            return parquet.read_row_group(number, use_threads=False)


@contextlib.contextmanager
def _opened(path: str, then: FileStamp) -> Iterator[Any]:
    """Opens a file as a `pyarrow.parquet.ParquetFile`; errors of pyarrow in the body become `SourceError`."""
    with needs("pyarrow", "Reading Parquet files", SourceError, ", or convert the files to JSON Lines"):
        import pyarrow.parquet
    try:
        with open(path, "rb") as file:
            check_unchanged(path, then, file.fileno())
            yield pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(path, error) from error
        raise SourceError(
            f"{path}: found something that is not a whole Parquet file ({error}). Copy or write the file again; a file "
            "with other contents needs its own suffix."
        ) from error
