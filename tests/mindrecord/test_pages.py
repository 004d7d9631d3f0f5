"""The reader of pages finds what was written, bit for bit, and MindSpore finds the same."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.mindrecord.encoding import SPARE, decode
from ms_prefstream.mindrecord.schema import Column, sizes_for
from ms_prefstream.mindrecord.sidecar import read_offsets
from ms_prefstream.mindrecord.writer import RecordFile

pytestmark = pytest.mark.mindspore

COLUMNS = {
    "b_wide": Column(dtype="int64", most=12),
    "a_ids": Column(dtype="int32", most=40),
    "c_score": Column(dtype="float32", most=1, shape=(1,)),
}
INT32 = st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(0, 300), st.sampled_from([127, 128, -128, -129, 32768]))
ROW = st.tuples(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=12),
    st.lists(INT32, min_size=1, max_size=40),
    st.floats(width=32, allow_nan=False),
)


def blocks_of(path: str) -> list[bytes]:
    data = pathlib.Path(path).read_bytes()
    return [data[begin:end] for begin, end in read_offsets(path).tolist()]


def decoded(blocks: list[bytes]) -> list[list[Any]]:
    """Each column, by name (a_ids, b_wide, c_score), as an array for each row; the rows lie in another order."""
    sizes = np.array([len(block) for block in blocks])
    begins = np.cumsum(sizes[::-1])[::-1] - sizes  # the last row comes first
    data = np.frombuffer(b"".join(blocks[::-1]) + bytes(SPARE), np.uint8)
    columns = decode(data, begins, sizes, ["int32", "int64", "float32"])
    return [
        [
            column.values[begin : begin + length]
            for begin, length in zip(*map(np.ndarray.tolist, column[1:]), strict=True)
        ]
        for column in columns
    ]


def written(path: str, rows: list[Any]) -> list[dict[str, Any]]:
    kinds = (np.int64, np.int32, np.float32)
    made = [
        {"b_wide": np.array(wide, kinds[0]), "a_ids": np.array(ids, kinds[1]), "c_score": np.array([score], kinds[2])}
        for wide, ids, score in rows
    ]
    with RecordFile(path, COLUMNS, len(made)) as file:
        for begin in range(0, len(made), 3):
            file.write({name: [row[name] for row in made[begin : begin + 3]] for name in COLUMNS})
    return made


@settings(settings.get_profile("costly"))
@given(st.lists(ROW, min_size=1, max_size=9))
def test_values_come_back(rows: list[Any]) -> None:
    from mindspore.mindrecord import FileReader

    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/part-00000.mindrecord"
        made = written(path, rows)
        found = decoded(blocks_of(path))
        reader = FileReader(path)
        for at, (row, theirs) in enumerate(zip(made, reader.get_next(), strict=True)):
            for name, ours in zip(("a_ids", "b_wide", "c_score"), (column[at] for column in found), strict=True):
                assert ours.dtype == row[name].dtype
                assert ours.tolist() == row[name].tolist() == theirs[name].tolist()
        reader.close()


@pytest.mark.parametrize("name", ["a#b", "a?mode=rwc", "a%41", "a b", "第", "/a"])
def test_any_name_of_a_folder(tmp_path: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name.lstrip("/")
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    path = f"/{tmp_path}/a/part-00000.mindrecord" if name == "/a" else f"{name}/part-00000.mindrecord"
    written(path, [([1], [2], 0.0)] * 3)
    assert len(read_offsets(path)) == 3
    os.unlink(path + ".db")
    with pytest.raises(FileNotFoundError):
        read_offsets(path)
    assert os.listdir(tmp_path) == [folder.name]
    assert os.listdir(folder) == ["part-00000.mindrecord"]


def test_many_pages(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "part-00000.mindrecord")
    rows = [([row] * 12, list(range(row, row + 40)), 0.5) for row in range(4000)]
    made = written(path, rows)
    header, page = sizes_for(COLUMNS, len(rows))
    assert pathlib.Path(path).stat().st_size > header + 3 * page  # more than one page, or nothing is proven
    found = decoded(blocks_of(path))
    assert [ids.tolist() for ids in found[0]] == [row["a_ids"].tolist() for row in made]
    assert [wide.tolist() for wide in found[1]] == [row["b_wide"].tolist() for row in made]


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:8] + b"\x7f" + b[9:], lambda b: b[:16] + b"\0\0\1" + b[19:]],
)
def test_bytes_that_are_no_row_are_refused(tmp_path: pathlib.Path, damage: Any) -> None:
    path = str(tmp_path / "part-00000.mindrecord")
    written(path, [([1, 2], [3, 4, 5], 0.0)])
    (block,) = blocks_of(path)
    with pytest.raises(ValueError, match="row"):
        decoded([damage(block)])


@pytest.mark.parametrize(("most", "rows"), [(8, 1), (1024, 8192), (32768, 8192), (2**20, 100)])
def test_sizes_hold_the_largest_rows(most: int, rows: int) -> None:
    header, page = sizes_for({"ids": Column(dtype="int32", most=most)}, rows)
    largest = most * 4.25 + 80
    assert page >= largest
    assert header % 4096 == 0
    assert header >= 200 * rows * largest / page or header == 1 << 27


def test_a_small_file_is_small(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "part-00000.mindrecord"
    written(str(path), [([1], [2], 0.0)] * 3)
    assert path.stat().st_size < 80_000  # MindSpore's own sizes would make it 50 MB
