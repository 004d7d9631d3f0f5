"""Parquet by row groups."""

from __future__ import annotations

import os
import pathlib
import pickle
import random
import sys
from typing import Any

import pytest

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.base import RandomAccess
from ms_prefstream.sources.open import open_source
from ms_prefstream.sources.parquet import ParquetRows

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = [{"n": n, "turns": [{"role": "user", "content": f"第{n}"}] * (n % 3), "score": None} for n in range(25)]


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> list[str]:
    for name, rows in (("a", ROWS[:10]), ("b", []), ("c", ROWS[10:])):
        table = pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(ROWS).schema)
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
    return [str(tmp_path / f"{name}.parquet") for name in "abc"]


def test_rows_of_several_files_in_any_order(paths: list[str]) -> None:
    source = open_source([os.path.join(os.path.dirname(paths[0]), "*.parquet")])
    assert isinstance(source, ParquetRows)
    assert isinstance(source, RandomAccess)
    assert len(source) == 25
    order = [*random.Random(1).sample(range(25), 25), 3, 3]
    assert source.read(order) == [ROWS[row] for row in order]
    assert source.origin(9) == f"{paths[0]}[9]"
    assert source.origin(10) == f"{paths[2]}[0]"
    assert source.read([]) == []


def test_a_row_group_is_decoded_once_a_read_and_few_are_kept(paths: list[str], monkeypatch: Any) -> None:
    source = ParquetRows(paths)
    decoded: list[int] = []
    decode = source._decode
    monkeypatch.setattr(source, "_decode", lambda group: decoded.append(group) or decode(group))
    source.read([*range(24, -1, -1), *range(25)])
    assert sorted(decoded) == [0, 1, 2, 4, 5, 6, 7]  # 3 is the empty one
    assert len(source._tables) == 4
    source.read([24, 20, 16])
    assert len(decoded) == 7
    source.read([0])
    assert decoded[7:] == [0]


def test_pickle_leaves_the_tables_behind(paths: list[str]) -> None:
    source = ParquetRows(paths)
    source.read(range(25))
    copy = pickle.loads(pickle.dumps(source))
    assert copy._tables == {}
    assert copy.read([24]) == [ROWS[24]]


def test_fingerprint_follows_the_contents(paths: list[str], tmp_path: pathlib.Path) -> None:
    before = ParquetRows(paths[:1]).fingerprint()
    os.utime(paths[0], (1, 1))
    assert ParquetRows(paths[:1]).fingerprint() == before
    assert ParquetRows(paths[2:]).fingerprint() != before


def test_without_pyarrow(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SourceError, match=r'pip install "ms-prefstream\[parquet\]", or convert'):
        len(ParquetRows(paths))


def test_damaged_empty_and_changed(paths: list[str], tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"{}\n" * 100)
    with pytest.raises(SourceError, match=r"x\.parquet: found something that is not a whole Parquet file"):
        len(open_source(tmp_path / "x.parquet"))
    with pytest.raises(SourceError, match="found no rows"):
        len(ParquetRows([paths[1]]))
    source = ParquetRows(paths)
    len(source)
    with open(paths[0], "ab") as file:
        file.write(b"x")
    with pytest.raises(SourceError, match="the file changed under us"):
        source.read([0])
    os.remove(paths[2])
    with pytest.raises(SourceError, match="no such file"):
        source.read([24])


def test_a_damaged_row_group(paths: list[str]) -> None:
    source = ParquetRows(paths)
    content = bytearray(pathlib.Path(paths[0]).read_bytes())
    content[4:60] = b"\xff" * 56
    pathlib.Path(paths[0]).write_bytes(content)
    with pytest.raises(SourceError, match="not a whole Parquet file"):
        source.read([0])
