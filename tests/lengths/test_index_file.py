"""The file of a length index: readable with numpy alone, and refused when it is not what was asked for."""

from __future__ import annotations

import os
import pathlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import OptionError, Reason, SourceError, StateError
from ms_prefstream.lengths import LengthIndex, beside, build_index, index_file, index_path, open_index
from ms_prefstream.lengths.index import CODES, REASONS, Measured
from ms_prefstream.lengths.index_file import write_contents
from ms_prefstream.plan import IndexedPlan, PlanOptions
from ms_prefstream.sources import open_source
from tests.pools import pairs, recipe, write

FINGERPRINT: dict[str, Any] = {
    "data": "d1",
    "task": "DPO(60)",
    "format": "auto",
    "tokenizer": "t1",
    "template": None,
    "boundary": "joint",
    "special_tokens_in_content": "escape",
}
COUNT = 100


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "x.mprefidx")


@pytest.fixture
def index(path: str) -> LengthIndex:
    made = recipe(pairs(COUNT))
    return build_index(COUNT, made.loader(), path, FINGERPRINT, origin=str, raise_malformed=False)


def test_numpy_alone_reads_the_file(index: LengthIndex, path: str) -> None:
    loaded = recipe(pairs(COUNT)).loader().load(range(COUNT))
    sides = [[len(s.ids) for s in one.sample.sequences] if one.sample else [0, 0] for one in loaded]
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), np.array(sides, np.int32), strict=True)
    with open(path, "rb") as file:
        lengths, keys, verdict, _about, checksum = [np.load(file) for _ in range(5)]
        assert (checksum.shape, checksum.dtype) == ((1,), np.uint32)
    assert [array.dtype for array in (lengths, keys, verdict)] == [np.int32, np.int32, np.uint8]
    np.testing.assert_array_equal(keys, np.where(verdict == 0, lengths.max(axis=1), -1))
    assert verdict.tolist() == [CODES[one.error.reason] if one.error else 0 for one in loaded]
    for mapped, read in ((index.lengths, lengths), (index.keys, keys), (index.verdict, verdict)):
        np.testing.assert_array_equal(mapped, read, strict=True)
    assert index.checksum == f"{checksum[0]:08x}"


@pytest.mark.parametrize(
    ("longest", "dtype", "key_dtype"),
    [(32_767, np.uint16, np.int16), (65_535, np.uint16, np.int32), (65_536, np.int32, np.int32)],
)
def test_an_index_takes_4_bytes_a_row_also_while_it_is_read(
    longest: int, dtype: Any, key_dtype: Any, tmp_path: pathlib.Path
) -> None:
    rows, path = 1_000_000, str(tmp_path / "x")
    lengths, verdict = np.full((rows, 2), 7, np.int32), np.zeros(rows, np.uint8)
    lengths[rows - 9, 1] = longest  # not among the rows that are read first
    lengths[::100], verdict[::100] = 0, CODES[Reason.TIE]
    keys = np.where(verdict == 0, lengths.max(axis=1), -1).astype(np.int32)
    write_contents(path, [Measured(lengths, keys, verdict, [])], FINGERPRINT)
    tracemalloc.start()
    try:
        index = open_index(path, FINGERPRINT, rows)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert index.sides.dtype == dtype
    assert index.keys_of().dtype == key_dtype
    assert now < (index.sides.itemsize * 2 + 0.1) * rows
    assert peak < (13.5 if longest == 65_536 else 8.5) * rows
    for array in (index.sides, index.reasons):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    for found, right in ((index.lengths, lengths), (index.keys, keys), (index.verdict, verdict)):
        np.testing.assert_array_equal(found, right, strict=True)
    np.testing.assert_array_equal(index.keys_of([0, 1, rows - 9]), [-1, 7, longest])


@pytest.mark.parametrize("change", [lambda path: os.utime(path, (0, 0)), lambda path: os.truncate(path, 900)])
def test_an_index_that_changes_while_it_is_read_is_refused(
    index: LengthIndex, path: str, change: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "first_wrong", lambda *_: change(path))
    with pytest.raises(StateError, match="written to while it was read"):
        open_index(path, FINGERPRINT, COUNT)


def test_a_plan_takes_the_keys_as_they_are(index: LengthIndex) -> None:
    plan = IndexedPlan(PlanOptions(rows=COUNT, global_batch=4, drop_remainder=False), index.keys)
    planned = {row for step in range(plan.steps_per_epoch) for row in plan.rows(0, step, 0, 1).tolist()}
    assert planned == set(np.flatnonzero(index.good()).tolist())
    assert len(planned) == index.usable == COUNT - sum(one.rows for one in index.counts)


@pytest.mark.parametrize("part", [*FINGERPRINT, "rows"])
def test_a_stale_index_is_refused_with_both_values(index: LengthIndex, path: str, part: str) -> None:
    new = {**FINGERPRINT, part: "now"}
    rows = 101 if part == "rows" else COUNT
    old = COUNT if part == "rows" else FINGERPRINT[part]
    new.pop("rows", None)
    with pytest.raises(StateError) as caught:
        open_index(path, new, rows)
    assert f"{part} was {old!r} and is {101 if part == 'rows' else 'now'!r} now" in str(caught.value)
    assert str(caught.value).count(" was ") == 2  # "was built for other data" and this one


def test_a_part_that_one_side_does_not_know_is_a_difference(index: LengthIndex, path: str) -> None:
    with pytest.raises(StateError, match="extra was None and is 1 now"):
        open_index(path, {**FINGERPRINT, "extra": 1}, COUNT)
    with pytest.raises(StateError, match="task was 'DPO\\(60\\)' and is None now"):
        open_index(path, {key: value for key, value in FINGERPRINT.items() if key != "task"}, COUNT)


def test_an_index_that_does_not_exist_is_an_error(path: str) -> None:
    with pytest.raises(StateError, match="there is no length index"):
        open_index(path, FINGERPRINT, COUNT)


def test_every_flipped_byte_and_every_truncation_is_noticed(index: LengthIndex, path: str) -> None:
    whole = pathlib.Path(path).read_bytes()
    for at in range(0, len(whole), 7):
        pathlib.Path(path).write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
        with pytest.raises(StateError, match="is damaged or no length index"):
            open_index(path, FINGERPRINT, COUNT)
    for size in (0, 5, 100, 500, 1300, len(whole) - 1):
        pathlib.Path(path).write_bytes(whole[:size])
        with pytest.raises(StateError, match="damaged or no length index"):
            open_index(path, FINGERPRINT, COUNT)
    pathlib.Path(path).write_bytes(whole + b"x")
    with pytest.raises(StateError, match="damaged or no length index"):
        open_index(path, FINGERPRINT, COUNT)
    pathlib.Path(path).write_bytes(whole)
    open_index(path, FINGERPRINT, COUNT)


def test_another_version_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("ms_prefstream.lengths.index_file.VERSION", 2)
        build_index(3, recipe(pairs(3)).loader(), path, FINGERPRINT, origin=str)
    with pytest.raises(StateError, match=r"length index of version 2; expected version 1"):
        open_index(path, FINGERPRINT, 3)


def test_the_place_of_an_index(tmp_path: pathlib.Path) -> None:
    one, two = (write(tmp_path / name, pairs(2)) for name in ("a.jsonl", "b.jsonl"))
    (tmp_path / "c.json").write_text('[{"a": 1}]')
    assert beside(open_source(one)) == one + ".mprefidx"
    assert beside(open_source(str(tmp_path / "c.json"))) == str(tmp_path / "c.json.mprefidx")
    assert index_path(open_source([one, two]), "here.idx") == "here.idx"
    with pytest.raises(OptionError, match="index is ''"):
        index_path(open_source(one), "")
    for source in ([one, two], pairs(2)):
        assert beside(open_source(source)) is None
        with pytest.raises(OptionError, match=r"not a single file.*Give the index a path"):
            index_path(open_source(source), None)


def test_a_path_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SourceError, match=r"missing.*cannot be written: No such file"):
        build_index(3, recipe(pairs(3)).loader(), tmp_path / "missing" / "x", FINGERPRINT, origin=str)


def test_counts_by_reason(index: LengthIndex) -> None:
    counts = {one.reason: one for one in index.counts}
    assert set(counts) >= {Reason.IDENTICAL, Reason.MISSING_FIELD, Reason.BAD_TYPE}
    for reason, one in counts.items():
        rows = np.flatnonzero(index.verdict == CODES[reason])
        assert (one.rows, one.share, one.first) == (len(rows), len(rows) / COUNT, tuple(rows[:5].tolist()))
    assert [one.rows for one in index.counts] == sorted((one.rows for one in index.counts), reverse=True)
    first = counts[Reason.MISSING_FIELD]
    assert f"  missing_field: {first.rows} ({first.rows:.1f} %), first at row {first.first[0]}, row" in str(index)
    assert str(index).startswith(f"rows in the length index {COUNT}, dropped {COUNT - index.usable} ")


def test_a_file_names_younger_reasons_only_where_a_row_has_them(path: str) -> None:
    """So that the bytes of other files stay."""
    for found, named in ((0, False), (9, False), (CODES[Reason.PROMPT_ENDS_WITH_ANSWER], True)):
        verdict = np.array([0, found], np.uint8)
        lengths, keys = (
            np.array([[3, 4], [0, 0] if found else [3, 4]], np.int32),
            np.array([4, -1 if found else 4], np.int32),
        )
        write_contents(path, [Measured(lengths, keys, verdict, [])], FINGERPRINT)
        assert (b"prompt_ends_with_answer" in pathlib.Path(path).read_bytes()) is named
        assert open_index(path, FINGERPRINT, 2).verdict.tolist() == [0, found]
        pathlib.Path(path).unlink()


def test_the_numbers_of_reasons_are_written_in_files_and_stay() -> None:
    assert set(CODES) == set(Reason)  # a new reason needs a new number
    assert len(REASONS) == len(CODES)
    assert {str(reason): code for reason, code in CODES.items()} == {
        "bad_json": 1,
        "missing_field": 2,
        "bad_type": 3,
        "unknown_role": 4,
        "special_token": 5,
        "history_differs": 6,
        "ambiguous_format": 7,
        "row_too_large": 8,
        "template_refused": 9,
        "prompt_ends_with_answer": 10,
        "content_lost": 11,
        "identical": 64,
        "tie": 65,
        "empty_response": 66,
        "no_response_tokens": 67,
        "identical_after_truncation": 68,
        "too_long": 69,
        "duplicate": 80,
        "contaminated": 81,
    }
