"""What a report counts of rows that are loaded together: every row once, up to the first that stops the run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ms_prefstream.errors import DroppedRowError, Reason, RowError
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.report.report import _FEW, ORIGINS_KEPT, PartReport, Report
from ms_prefstream.sample import Block, Loaded, Note, Sample, Sequence

row_ids = st.integers(0, 40) | st.integers(0, 100_000)
few, many = st.lists(row_ids, max_size=12), st.lists(row_ids, min_size=_FEW - 1, max_size=_FEW + 2)


@given(st.lists(few | many, max_size=8))
def test_a_row_is_new_once(calls: list[list[int]]) -> None:
    report, seen = Report(), set[int]()
    for rows in calls:
        expected = []
        for row in rows:  # one may come twice in a call
            expected.append(row not in seen)
            seen.add(row)
        assert report.first_time(rows) == expected
        assert report.read == len(seen)


GOOD = Sample((Sequence(np.array([1, 2], np.int32), ((1, 2),)),))
KINDS = [
    Loaded(GOOD, None),
    Loaded(GOOD, None, Note.TRUNCATED),
    Loaded(GOOD, None, Note.NONE, ("extra",)),
    Loaded(GOOD, None, Note.TRUNCATED, ("extra", "more")),
    Loaded(None, DroppedRowError(Reason.TIE, "both sides are equally good")),
    Loaded(None, RowError(Reason.BAD_TYPE, "it is no text")),
]
TRUNCATED, TIE, MALFORMED = {1, 3}, 4, 5


def test_rows_are_counted_while_another_thread_counts() -> None:
    class Rows(list[int]):
        def __array__(self, *_: object, **__: object) -> NDArray[np.int64]:
            report.first_time([50_000])  # in the middle, as another thread
            return np.array(list(self))

    report = Report()
    assert all(report.first_time(Rows(range(_FEW + 1))))
    assert report.read == _FEW + 2


@pytest.mark.parametrize("raises", [True, False])
@given(calls=st.lists(st.lists(st.integers(0, 29), max_size=8), max_size=5))
def test_rows_that_are_settled_together_are_counted_as_one_by_one(raises: bool, calls: list[list[int]]) -> None:
    of_row = list(range(len(KINDS))) * 5
    report, part, watched = Report(), PartReport(1.0), list[list[int]]()
    bad_rows = BadRows(
        report,
        raises,
        "row {}".format,
        raw=lambda row: row,
        part=lambda row: part,
        first=100,
        watch=lambda rows, block: watched.append([*rows]),
    )
    counted: list[int] = []
    for rows in calls:
        block = Block.of([KINDS[of_row[row]] for row in rows])
        stops = next((at for at, row in enumerate(rows) if raises and of_row[row] == MALFORMED), None)
        counted += [row for row in dict.fromkeys(rows[:stops]) if row not in counted]
        if stops is None:
            assert bad_rows.settle(rows, block) is block
            assert watched.pop() == rows
        else:
            with pytest.raises(RowError, match=rf"^row {rows[stops]}: it is no text"):
                bad_rows.settle(rows, block)
        assert not watched
        reasons = {"tie": TIE, "bad_type": MALFORMED}
        found = {reason: [row for row in counted if of_row[row] == kind] for reason, kind in reasons.items()}
        assert report.read == part.read == len(counted)
        assert report.dropped == part.dropped == {reason: len(of) for reason, of in found.items() if of}
        assert report.truncated == sum(of_row[row] in TRUNCATED for row in counted)
        for reason, rows_of in found.items():
            assert report.origins.get(reason, []) == [f"row {row}" for row in rows_of[:ORIGINS_KEPT]]
        assert report.unread == {
            name: sum(name in KINDS[of_row[row]].unread for row in counted)
            for name in ("extra", "more")
            if any(name in KINDS[of_row[row]].unread for row in counted)
        }
        assert report.first_time([100 + row for row in counted]) == [False] * len(counted)
