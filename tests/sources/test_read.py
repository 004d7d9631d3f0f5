"""Raw rows for people."""

from __future__ import annotations

import gzip
import pathlib

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import RowError, SourceError

LINES = b'{"n": 0}\n{"n": 1}\n\n{"n": 2}\n{"n": 3}\n'


def test_rows_by_number_slice_and_in_order(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES)
    rows = mps.read(path)
    assert len(rows) == 4  # type: ignore[arg-type]
    assert rows[1] == {"n": 1} == rows[-3]  # type: ignore[index]
    assert rows[1:][::2] == [{"n": 1}, {"n": 3}]  # type: ignore[index]
    assert [row["n"] for row in rows] == [row["n"] for row in reversed(list(rows))][::-1] == [0, 1, 2, 3]
    assert rows.origin(-2) == f"{path}:4"  # type: ignore[union-attr]
    assert repr(rows) == f"4 rows of {path}"
    for beyond in (4, -5):
        with pytest.raises(IndexError, match=rf"row {beyond} of .*rows.jsonl, which has the rows 0 to 3"):
            rows[beyond]  # type: ignore[index]


def test_more_rows_than_are_read_together() -> None:
    assert [row["n"] for row in mps.read([{"n": n} for n in range(600)])] == list(range(600))


def test_a_bad_line_is_an_error_where_it_is_read(tmp_path: pathlib.Path) -> None:
    for name, opener in (("rows.jsonl", open), ("rows.jsonl.gz", gzip.open)):
        with opener(tmp_path / name, "wb") as file:
            file.write(LINES.replace(b'"n": 2', b"n: 2"))
        rows = iter(mps.read(tmp_path / name))
        if name.endswith("gz"):
            assert [next(rows), next(rows)] == [{"n": 0}, {"n": 1}]
        with pytest.raises(RowError, match=r"rows\.jsonl.*4.*bad_json"):
            list(rows)


def test_rows_that_are_only_passed() -> None:
    rows = mps.read(lambda: iter([{"n": 0}, {"n": 1}]))
    assert list(rows) == list(rows) == [{"n": 0}, {"n": 1}]
    with pytest.raises(TypeError, match="no len"):
        len(rows)  # type: ignore[arg-type]
    once = mps.read(iter([{"n": 0}]))
    assert list(once) == [{"n": 0}]
    with pytest.raises(SourceError, match="cannot be read again"):
        list(once)


def test_what_is_no_source() -> None:
    with pytest.raises(SourceError, match="type int"):
        mps.read(3)
