"""The same rows as every kind of source that a stream takes."""

from __future__ import annotations

import gzip
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.helpers import Row, json_lines


def source_of(kind: str, folder: pathlib.Path, rows: list[Row]) -> Any:
    """The same rows as one of the kinds in `SOURCES`; a new one for each call."""
    return SOURCES[kind](folder, rows)


def _packed(folder: pathlib.Path, rows: list[Row], suffix: str) -> pathlib.Path:
    lines = json_lines(folder / "plain.txt", rows).read_bytes()
    path = folder / f"rows.jsonl.{suffix}"
    if suffix == "gz":
        path.write_bytes(gzip.compress(lines, mtime=0))
    else:
        import zstandard

        path.write_bytes(zstandard.compress(lines))
    return path


def _json_array(folder: pathlib.Path, rows: list[Row]) -> pathlib.Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=1), "utf-8")
    return path


def _parquet(folder: pathlib.Path, rows: list[Row]) -> pathlib.Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=5)
    return path


def _two_files(folder: pathlib.Path, rows: list[Row]) -> list[pathlib.Path]:
    return [json_lines(folder / "a.jsonl", rows[:7]), json_lines(folder / "b.jsonl", rows[7:])]


def _plain_and_packed(folder: pathlib.Path, rows: list[Row]) -> list[pathlib.Path]:
    return [json_lines(folder / "a.jsonl", rows[:7]), _packed(folder, rows[7:], "gz")]


class _Indexed:
    """Somebody's own random access: a length and an index, nothing else."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


class _Iterable:
    """Somebody's own iterable that can be read again."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


SOURCES: dict[str, Callable[[pathlib.Path, list[Row]], Any]] = {
    "list": lambda folder, rows: rows,
    "json lines": lambda folder, rows: json_lines(folder / "rows.jsonl", rows),
    "two files": _two_files,
    "json array": _json_array,
    "indexed": lambda folder, rows: _Indexed(rows),
    "parquet": _parquet,
    "hugging face": lambda folder, rows: pytest.importorskip("datasets").Dataset.from_list(rows),
    "gz": lambda folder, rows: _packed(folder, rows, "gz"),
    "zst": lambda folder, rows: _packed(folder, rows, "zst"),
    "plain and gz": _plain_and_packed,
    "generator function": lambda folder, rows: lambda: (dict(row) for row in rows),
    "iterable": lambda folder, rows: _Iterable(rows),
}
ONE_PASS = ("gz", "zst", "plain and gz", "generator function", "iterable")
