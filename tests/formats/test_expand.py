from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream.errors import Reason, RowError, SourceError
from ms_prefstream.formats import Expanded, Pair, cvalues, ranked, resolve_format, strings
from ms_prefstream.sources.base import RandomAccess


class Rows:
    """Rows in memory that note how often they are read."""

    name = "rows"

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows
        self.reads = 0

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int]) -> list[Any]:
        self.reads += len(rows)
        return [self.rows[row] for row in rows]

    def origin(self, row: int) -> str:
        return f"rows:{row + 1}"

    def fingerprint(self) -> str:
        return "f"


def scored(*scores: float) -> dict[str, Any]:
    return {"prompt": "p", "completions": [f"{i}" for i in range(len(scores))], "scores": list(scores)}


BAD_JSON = RowError(Reason.BAD_JSON, "no json")


def test_rows_become_records_with_origins() -> None:
    records = Expanded(Rows([scored(3, 2, 1), scored(1, 1), scored(0, 1)]), ranked())
    assert isinstance(records, RandomAccess)
    assert (len(records), records.filtered, records.name) == (4, 1, "rows")
    found = records.read([3, 0, 2, 1, 0])
    assert all(isinstance(record, Pair) for record in found)
    sides = [(r.chosen[0].content, r.rejected[0].content, r.origin) for r in found if isinstance(r, Pair)]
    assert sides == [
        ("1", "0", "rows:3"),
        ("0", "1", "rows:1#1"),
        ("1", "2", "rows:1#3"),
        ("0", "2", "rows:1#2"),
        ("0", "1", "rows:1#1"),
    ]
    assert [records.origin(row) for row in range(4)] == ["rows:1#1", "rows:1#2", "rows:1#3", "rows:3"]
    assert [records.locate(row)[0] for row in range(4)] == [0, 0, 0, 2]
    assert records.raw(3) == scored(0, 1)


def test_bad_rows_count_as_one_and_are_reported() -> None:
    source = Rows([BAD_JSON, scored(1, 2), {"prompt": "p"}, scored(2, 2), 5])
    records = Expanded(source, ranked())
    assert (len(records), records.filtered) == (4, 1)
    found = records.read(range(4))
    assert [error.reason for error in found if isinstance(error, RowError)] == [
        Reason.BAD_JSON,
        Reason.MISSING_FIELD,
        Reason.BAD_TYPE,
    ]
    assert [error.origin for error in found if isinstance(error, RowError)] == ["rows:1", "rows:3", "rows:5"]
    assert isinstance(found[1], Pair)
    assert records.raw(0) is None


def test_an_error_in_a_row_of_several_is_told_for_each() -> None:
    row = {**scored(1, 2, 3), "prompt": 5}
    found = Expanded(Rows([row]), ranked()).read([0, 2])
    assert [error.origin for error in found if isinstance(error, RowError)] == ["rows:1#1", "rows:1#3"]


def test_a_format_without_count_reads_nothing_ahead() -> None:
    source = Rows([{"prompt": "p", "chosen": "c", "rejected": "r"}, {}])
    records = Expanded(source, strings())
    assert (source.reads, len(records), records.filtered) == (0, 2, 0)
    good, bad = records.read([0, 1])
    assert isinstance(good, Pair)
    assert good.origin == "rows:1"
    assert isinstance(bad, RowError)
    assert bad.origin == "rows:2"


def test_no_counts_are_kept_when_every_row_gives_one() -> None:
    types = {"pos_type": "a", "neg_type": "b"}
    row = {"prompt": "p", "pos_resp": "x", "neg_resp": "y", **types}
    plain = Expanded(Rows([row, row]), cvalues(types=["a>b"]))
    assert plain._ends is None
    assert plain.fingerprint() == "f"
    filtered = Expanded(Rows([row, {**row, "pos_type": "c"}, row]), cvalues(types=["a>b"]))
    assert (len(filtered), filtered.filtered) == (2, 1)
    assert [record.origin for record in filtered.read([0, 1])] == ["rows:1", "rows:3"]
    assert filtered.fingerprint() not in ("f", Expanded(Rows([row, row, row]), cvalues(types=["a>b"])).fingerprint())
    # one row gives two records and another none: as many records as rows, but not one each
    even = Expanded(Rows([scored(1, 1), scored(2, 1), scored(3, 2, 1)]), ranked(max_pairs=2))
    assert (len(even), even.filtered) == (3, 1)
    assert [record.origin for record in even.read([0, 1, 2])] == ["rows:2", "rows:3#1", "rows:3#2"]


def test_counts_cost_8_bytes_a_row_and_one_reading() -> None:
    source = Rows([scored(2, 1, 0)] * 3000)
    records = Expanded(source, ranked())
    assert source.reads == 3000
    assert records._ends is not None
    assert records._ends.nbytes == 8 * 3000
    assert len(records) == 9000


def test_a_raw_row_is_read_and_formatted_once_a_call() -> None:
    source = Rows([scored(2, 1, 0)])
    records = Expanded(source, ranked())
    source.reads = 0
    records.read([0, 1, 2])
    assert source.reads == 1


def test_an_empty_source_and_one_that_is_filtered_empty() -> None:
    assert len(Expanded(Rows([]), ranked())) == 0
    records = Expanded(Rows([scored(1, 1)]), ranked())
    assert (len(records), records.filtered) == (0, 1)
    with pytest.raises(IndexError):
        records.read([0])


def test_a_count_that_lies_is_an_error() -> None:
    class Liar:
        def __call__(self, row: Any) -> Any:
            return [{"prompt": "p", "chosen": "c", "rejected": "r"}]

        def count(self, row: Any) -> int:
            return 2

    records = Expanded(Rows([{}]), resolve_format(Liar()))
    with pytest.raises(SourceError, match="gives 1 records, but counted 2"):
        records.read([0])


def test_an_origin_that_is_known_already_stays() -> None:
    pair = Pair((), (), (), origin="mine")
    assert Expanded(Rows([{}]), resolve_format(lambda row: pair)).read([0]) == [pair]


@given(st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=12))
def test_every_record_of_every_row_once_in_order(lists: list[list[int]]) -> None:
    fmt = ranked()
    rows = [scored(*scores) for scores in lists]
    records = Expanded(Rows(rows), fmt)
    expected = [record for row in rows for record in fmt(row)]  # type: ignore[union-attr]
    found = records.read(range(len(records)))
    assert [(r.chosen, r.rejected, r.margin) for r in found if isinstance(r, Pair)] == [
        (r.chosen, r.rejected, r.margin) for r in expected if isinstance(r, Pair)
    ]
    assert len(found) == len(expected)
    assert records.filtered == sum(not fmt(row) for row in rows)
