"""Rows of a cache become one block: every number, span and check of it, and the steps that are read together."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.errors import CacheError
from ms_prefstream.load.ahead import ReadAhead
from ms_prefstream.mindrecord.encoding import SPARE, encode
from ms_prefstream.mindrecord.ragged import ragged_block, ragged_columns, ragged_values
from ms_prefstream.sample import Block, Note, Sample, Sequence
from ms_prefstream.sources.files import Handle, ranges_of, read_ranges
from tests.cache.places import PART, TASKS, flip, source, stream_of
from tests.helpers import assert_same_batches

IDS = st.lists(
    st.one_of(st.integers(0, 2**31 - 1), st.integers(-300, 300), st.sampled_from([127, 128, 32767, 32768])),
    min_size=1,
    max_size=12,
)


@st.composite
def sequences(draw: st.DrawFn) -> Sequence:
    ids = np.array(draw(IDS), np.int32)
    most = len(ids) // 2
    bounds = sorted(draw(st.sets(st.integers(0, len(ids)), max_size=2 * most)))
    return Sequence(ids, tuple(zip(bounds[::2], bounds[1::2], strict=False)), draw(st.booleans()), draw(st.booleans()))


PAIRS = st.builds(
    lambda chosen, rejected, **columns: Sample((chosen, rejected), None, columns),
    sequences(),
    sequences(),
    margin=st.floats(width=32, allow_nan=False, allow_infinity=False),
    id=st.integers(-(2**63), 2**63 - 1),
    desirable=st.integers(0, 1),
    answer=st.text(st.characters(codec="utf-8"), max_size=9),
)
ONES = st.builds(lambda one, ids: Sample((one,), np.array(ids, np.int32)), sequences(), IDS)


def block_of(columns: dict[str, Any], values: dict[str, Any], rows: Any) -> Block:
    """The rows as a block; their bytes lie in reverse order, with a byte between them."""
    pieces = list(encode([values[name] for name in sorted(columns)]))
    sizes = np.array([len(piece) for piece in pieces])
    begins = np.cumsum(sizes[::-1] + 1)[::-1] - sizes - 1
    data = np.frombuffer(b"\xff".join(pieces[::-1]) + b"\xff" + bytes(SPARE), np.uint8)
    dtypes = {name: column.dtype for name, column in columns.items()}
    return ragged_block(dtypes, data, begins, sizes, np.array(rows))


@given(st.one_of(st.lists(PAIRS, min_size=1, max_size=7), st.lists(ONES, min_size=1, max_size=7)), st.data())
def test_samples_come_back(samples: list[Sample], data: st.DataObject) -> None:
    pairs = len(samples[0].sequences) == 2
    rows = [data.draw(st.integers(0, 2**40)) for _ in samples]
    notes = [data.draw(st.integers(0, 127)) for _ in samples]
    further = {"margin": "float32", "id": "int64", "desirable": "int32", "answer": "text"}
    columns = ragged_columns(pairs, 12, None if pairs else 12, further if pairs else {})
    block = block_of(columns, ragged_values(samples, notes, rows, columns), rows)
    assert block.notes.tolist() == notes
    for sample, found in zip(samples, block, strict=True):
        assert found.sample.columns == sample.columns
        assert (found.sample.prompt is None) == (sample.prompt is None)
        if sample.prompt is not None:
            assert found.sample.prompt.tolist() == sample.prompt.tolist()
        for ours, theirs in zip(found.sample.sequences, sample.sequences, strict=True):
            assert ours.ids.dtype == np.int32
            assert (ours.ids.tolist(), ours[1:]) == (theirs.ids.tolist(), theirs[1:])


WRONG = {
    "no notes": [],
    "notes that do not exist": [2 * max(Note), 0, 0, 0, 0],
    "negative notes": [-1, 0, 0, 0, 0],
    "no second side": [0, 0, 1, 1, 3],
    "half a second side": [0, 0, 1, 1, 3, 0],
    "fewer spans than it says": [0, 0, 1, 1, 3, 0, 1, 1],
    "a negative number of spans": [0, 0, -1, 0, 0],
    "a huge number of spans": [0, 0, 0, 0, 10**9],
    "more than it says": [0, 0, 0, 0, 0, 7],
    "a span that begins before the row": [0, 0, 1, -1, 3, 0, 0],
    "a span that ends after the row": [0, 0, 1, 1, 5, 0, 0],
    "a span that ends before it begins": [0, 0, 1, 3, 2, 0, 0],
    "spans in another order": [0, 0, 2, 2, 3, 0, 1, 0, 0],
    "a later span that ends after the row": [0, 0, 2, 0, 1, 2, 5, 0, 0],
}


@pytest.mark.parametrize("at", [0, 2], ids=["first row", "last row"])
@pytest.mark.parametrize("marks", WRONG.values(), ids=WRONG)
def test_wrong_marks_are_refused(marks: list[int], at: int) -> None:
    columns = ragged_columns(True, 12, None, {})
    four = Sequence(np.arange(4, dtype=np.int32), ((1, 3),))
    values = ragged_values([Sample((four, four))] * 3, [0] * 3, range(3), columns)
    assert len(block_of(columns, values, range(3))) == 3
    values["marks"][at] = np.array(marks, np.int32)
    with pytest.raises(ValueError, match="marks"):
        block_of(columns, values, range(3))
    with pytest.raises(ValueError, match="row 7 has the number"):
        block_of(columns, values, [7, 1, 2])


@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(1, 3000)), min_size=1, max_size=12))
def test_pieces_of_a_file_are_found_in_its_ranges(pieces: list[tuple[int, int]]) -> None:
    whole = np.random.default_rng(0).integers(0, 256, 63_000).astype(np.uint8).tobytes()
    begins, sizes = np.array(pieces).T
    ranges = ranges_of(begins, sizes)
    found = b"".join(whole[begin : begin + size] for begin, size in ranges.ranges)
    assert len(found) == ranges.size
    for begin, size, place in zip(begins, sizes, ranges.places, strict=True):
        assert found[place : place + size] == whole[begin : begin + size]


def test_ranges_are_read_as_they_are(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(whole := bytes(range(200)) * 200)
    ranges = ranges_of(np.array([20_000, 7, 3]), np.array([90, 5, 6]))
    assert ranges.ranges == [(3, 9), (20_000, 90)]
    data = bytearray(ranges.size)
    read_ranges(Handle(str(path)), str(path), ranges, memoryview(data))
    assert data == whole[3:12] + whole[20_000:20_090]
    ends = ranges_of(np.array([len(whole) - 5]), np.array([6]))
    with pytest.raises(mps.SourceError, match="the file changed under us"):
        read_ranges(Handle(str(path)), str(path), ends, memoryview(bytearray(6)))


class Counting:
    """A loader that says which rows each call loaded; row 13 cannot be read."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def load(self, rows: Any) -> Block:
        self.calls.append(list(rows))
        if 13 in rows:
            raise CacheError("row 13 is damaged")
        return Block.of([Sample((Sequence(np.full(30_000, row, np.int32), ()),)) for row in rows])


def test_steps_are_read_together_and_errors_wait_for_their_step() -> None:
    loader = Counting()
    ahead, rows_of = ReadAhead(loader, 1000), lambda step: [2 * step, 2 * step + 1]

    def load(step: int) -> list[int]:
        rows, loaded = ahead.load_next(itertools.count(step), rows_of)
        assert rows == rows_of(step)
        return [int(one.sample.sequences[0].ids[0]) for one in loaded]

    assert [load(step) for step in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert loader.calls == [[0, 1], [2, 3, 4, 5], list(range(6, 14)), [6, 7]]  # step 6 cannot be read yet
    assert [load(step) for step in range(20, 60)] == [[2 * step, 2 * step + 1] for step in range(20, 60)]
    sizes = [len(rows) for rows in loader.calls[4:]]
    assert sizes[:5] == [2, 4, 8, 16, 18]  # about 2 ** 19 tokens
    assert max(sizes) == 18
    calls = len(loader.calls)
    assert [load(step) for step in (22, 30, 21)] == [[44, 45], [60, 61], [42, 43]]  # they were handed out already
    assert [len(rows) for rows in loader.calls[calls:]] == [2, 2, 2]
    with pytest.raises(CacheError):
        load(6)


def test_no_more_is_read_together_than_there_is() -> None:
    loader = Counting()
    ahead, rows_of = ReadAhead(loader, 6), lambda step: [20 + step % 3, 30 + step % 3]
    for step in range(12):
        ahead.load_next(itertools.count(step), rows_of)
    assert [len(rows) for rows in loader.calls] == [2, 4, 6, 6, 6]


def test_a_damaged_row_stops_the_run_at_its_step(tmp_path: pathlib.Path) -> None:
    task = TASKS["dpo"]
    mps.write_cache(stream_of(source(tmp_path), task), tmp_path / "out", rows_per_part=PART)
    whole = stream_of(str(tmp_path / "out"), task, mps.Bucket(2), tokenizer=None)
    expected = list(whole.batches())
    stream = stream_of(str(tmp_path / "out"), task, mps.Bucket(2), tokenizer=None)
    row = int(stream.rows(0, 5)[1])
    begin, size, _ = stream.data.source._tables.places[np.array([row])].tolist()[0]
    flip(tmp_path / "out" / f"part-{row // PART:05d}.mindrecord", begin + size // 2)
    batches = stream.batches()
    assert_same_batches([next(batches) for _ in range(5)], expected[:5])
    with pytest.raises(CacheError, match="is damaged between bytes"):
        next(batches)
    assert stream.report.read == whole.report.dropped.total() + 10
