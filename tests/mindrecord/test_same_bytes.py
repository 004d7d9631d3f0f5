"""A file has the bytes that MindSpore's own writer makes of the same rows, and its sidecar the same tables."""

from __future__ import annotations

import itertools
import os
import pathlib
import sqlite3
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream import CacheError
from ms_prefstream.mindrecord.encoding import PaddedBlock
from ms_prefstream.mindrecord.schema import Column, sizes_for
from ms_prefstream.mindrecord.writer import RecordFile

pytestmark = pytest.mark.mindspore
NAME = "part-00000.mindrecord"
ONE = np.ones(1, np.int32)
WIDTHS = st.sampled_from([2**7, 2**15, 2**31, 2**63])
EDGES = st.sampled_from([0, 1, -1, 2**7 - 1, 2**7, -(2**7), -(2**7) - 1, 2**15 - 1, 2**15, -(2**15) - 1, 151643])


def ours(folder: str, columns: Mapping[str, Column], values: Mapping[str, Any], cuts: list[int]) -> None:
    rows = len(next(iter(values.values())))
    bounds = sorted({0, rows, *(min(cut, rows) for cut in cuts)})
    with RecordFile(f"{folder}/{NAME}", columns, rows) as file:
        for begin, end in itertools.pairwise(bounds):
            file.write({name: column[begin:end] for name, column in values.items()})


def theirs(folder: str, columns: Mapping[str, Column], values: Mapping[str, Any]) -> None:
    from mindspore.mindrecord import FileWriter

    rows = len(next(iter(values.values())))
    header, page = sizes_for(columns, rows)
    writer = FileWriter(f"{folder}/{NAME}", 1)
    writer.set_header_size(header)
    writer.set_page_size(page)
    writer.add_schema({name: column.schema() for name, column in columns.items()}, "ms_prefstream")
    for row in range(rows):
        strings = {name: column[row].tobytes() for name, column in values.items() if columns[name].dtype == "bytes"}
        writer.write_raw_data([{name: column[row] for name, column in values.items()} | strings])
    writer.commit()


def tables(folder: str) -> list[Any]:
    connection = sqlite3.connect(f"{folder}/{NAME}.db")
    try:
        found = [connection.execute(f"SELECT * FROM {name}") for name in ("INDEXES", "SHARD_NAME")]
        return [([column[0] for column in cursor.description], cursor.fetchall()) for cursor in found]
    finally:
        connection.close()


def check(columns: Mapping[str, Column], values: Mapping[str, Any], cuts: list[int]) -> int:
    """The pages of the file."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        ours(one, columns, values, cuts)
        theirs(other, columns, values)
        found, expected = (pathlib.Path(folder, NAME).read_bytes() for folder in (one, other))
        assert found == expected
        assert tables(one) == tables(other)
        header, page = sizes_for(columns, len(next(iter(values.values()))))
        return (len(found) - header) // page + 1


@st.composite
def columns_and_values(draw: st.DrawFn) -> tuple[dict[str, Column], dict[str, Any]]:
    rows = draw(st.integers(1, 12))
    columns: dict[str, Column] = {}
    values: dict[str, Any] = {}
    for number in range(draw(st.integers(2, 4))):
        dtype, name = draw(st.sampled_from(["int32", "int64", "float32"])), f"{draw(st.sampled_from('azm'))}_{number}"
        most = draw(st.integers(1, 30))
        if draw(st.integers(0, 3)) == 0:
            strings = draw(st.lists(st.binary(max_size=most), min_size=rows, max_size=rows))
            columns[name] = Column(dtype="bytes", most=most)
            values[name] = [np.frombuffer(one, np.uint8) for one in strings]
            continue
        whole = st.one_of(EDGES, WIDTHS.flatmap(lambda bound: st.integers(-bound, bound - 1)))
        numbers = st.floats(width=32, allow_nan=False) if dtype == "float32" else whole.map(lambda n: clipped(n, dtype))  # noqa: B023
        if draw(st.booleans()):  # rows that are filled up to one length
            block = np.full((rows, most), draw(numbers), dtype)
            for row in block:
                body = draw(st.lists(numbers, max_size=most))
                row[: len(body)] = body
            columns[name], values[name] = Column(dtype=dtype, most=most, shape=(most,)), block
        else:
            lists = [draw(st.lists(numbers, min_size=1, max_size=most)) for _ in range(rows)]
            columns[name], values[name] = Column(dtype=dtype, most=most), [np.array(one, dtype) for one in lists]
    for name in draw(st.sampled_from([[], ["end_ind"], ["end_ind", "b"]])):
        columns[name] = Column(dtype="int64", most=1, shape=())
        values[name] = draw(
            st.lists(st.one_of(st.integers(0, 300), st.integers(0, 2**62)), min_size=rows, max_size=rows)
        )
    return columns, values


def clipped(number: int, dtype: str) -> int:
    limits = np.iinfo(dtype)
    return max(int(limits.min), min(int(limits.max), number))


@given(columns_and_values(), st.lists(st.integers(0, 12), max_size=3))
def test_any_values(made: tuple[dict[str, Column], dict[str, Any]], cuts: list[int]) -> None:
    check(*made, cuts)


@pytest.mark.parametrize("numbers", [(), ("end_ind",)])
def test_many_pages_of_padded_rows(numbers: tuple[str, ...]) -> None:
    rows, length = 300, 1021
    random = np.random.default_rng(0)
    ids = np.full((rows, length), 151643, np.int32)
    for row, used in zip(ids, random.integers(0, length + 1, rows).tolist(), strict=True):
        row[:used] = random.integers(0, 151643, used)
    values: dict[str, Any] = {
        "chosen_input_ids": ids,
        "loss_mask": (ids != 151643).astype(np.int32),
        "position_id": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }
    columns = {name: Column(dtype="int32", most=length, shape=(length,)) for name in values}
    for name in numbers:
        columns[name], values[name] = Column(dtype="int64", most=1, shape=()), list(range(rows))
    assert check(columns, values, [128, 256]) > 4


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize(("width", "length"), [(4, 4), (8, 9), (16, 100), (16, 1023), (5, 5)])
def test_rows_in_short_are_the_rows_written_out(dtype: str, width: int, length: int) -> None:
    block = np.random.default_rng(length).integers(-200, 200, (6, width)).astype(dtype)
    block[:, -1] = [0, 151643, 151643, -1, 40_000, 0]
    block[0] = 0
    short = {"a": PaddedBlock(block, length), "b": np.broadcast_to(np.arange(length, dtype=dtype), (6, length))}
    columns = {name: Column(dtype=dtype, most=length, shape=(length,)) for name in short}
    padding = np.repeat(block[:, -1:], length - width, axis=1)
    whole = {"a": np.concatenate([block, padding], axis=1), "b": short["b"]}
    assert short["a"].nbytes == whole["a"].nbytes
    check(columns, whole, [])
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        ours(one, columns, whole, [])
        with RecordFile(f"{other}/{NAME}", columns, 6) as file:
            file.write(short)
        assert pathlib.Path(one, NAME).read_bytes() == pathlib.Path(other, NAME).read_bytes()


def test_pages_that_are_full_to_the_last_byte() -> None:
    def size(count: int) -> int:
        return 8 + 4 + -(-count // 4) + count

    first, second = next((a, b) for a in range(1, 400) for b in range(400) if 8 + size(a) + size(b) == 512)
    columns = {name: Column(dtype="int32", most=400) for name in ("a", "b")}
    values = {"a": [np.arange(first, dtype=np.int32) % 100] * 200, "b": [np.zeros(second, np.int32)] * 200}
    assert sizes_for(columns, 200)[1] % 512 == 0
    assert check(columns, values, []) > 3


def test_rows_of_which_some_are_alike() -> None:
    same, other = np.arange(9, dtype=np.int32), np.arange(1, 10, dtype=np.int32)
    columns = {name: Column(dtype="int32", most=9, shape=(9,)) for name in ("a", "b")}
    for rows in ([same, same, other], [other, same, same], [same, other, same], [same, same, same]):
        check(columns, {"a": np.stack(rows), "b": np.zeros((3, 9), np.int32)}, [])


@pytest.mark.slow
def test_more_pages_of_numbers_than_one() -> None:
    rows = 5000
    columns = {name: Column(dtype="int32", most=3) for name in ("a", "b")}
    columns |= {name: Column(dtype="int64", most=1, shape=()) for name in ("n", "a_number_with_a_long_name")}
    values: dict[str, Any] = {
        "a": [np.arange(1 + row % 3, dtype=np.int32) for row in range(rows)],
        "b": np.zeros((rows, 1), np.int32),
        "n": list(range(rows)),
        "a_number_with_a_long_name": list(range(rows)),
    }
    assert check(columns, values, [700]) > 10


def test_values_of_another_dtype_are_refused(tmp_path: pathlib.Path) -> None:
    columns = {name: Column(dtype="int32", most=3) for name in ("a", "b")}
    good, other = [np.zeros(2, np.int32)] * 2, [np.zeros(2, np.int32), np.zeros(2, np.int64)]
    for column in (other, np.zeros((2, 2), np.int64)):
        with pytest.raises(TypeError, match="column b is given int64; expected int32"):
            RecordFile(str(tmp_path / NAME), columns, 2).write({"a": good, "b": column})


def test_a_row_larger_than_its_columns_say_is_refused(tmp_path: pathlib.Path) -> None:
    columns = {name: Column(dtype="int32", most=3) for name in ("a", "b")}
    row = [np.full(20_000, 2**30, np.int32)]
    with pytest.raises(CacheError, match="row 0 takes 170,"):
        RecordFile(str(tmp_path / NAME), columns, 2).write({"a": row, "b": row})


def test_no_rows_no_file(tmp_path: pathlib.Path) -> None:
    with RecordFile(str(tmp_path / NAME), {name: Column(dtype="int32", most=3) for name in "ab"}, 2):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_both_files_have_the_mode_that_was_asked_for(tmp_path: pathlib.Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        ours(str(tmp_path), {name: Column(dtype="int32", most=1) for name in "ab"}, {key: [ONE] for key in "ab"}, [])
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}
