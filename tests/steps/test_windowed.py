"""Steps without a length index: which units workers prefetch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.plan import PlanOptions, Ranks, WindowedPlan
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.report.report import Report
from ms_prefstream.sample import Block, Loaded, Sample
from ms_prefstream.sample import Sequence as TokenSequence
from ms_prefstream.steps.planned import WindowedSteps

ROWS, BATCH, WINDOW = 64, 4, 4


class WorksAhead:
    """A loader of rows, one of them bad; notes the sizes of the units it is told of."""

    def __init__(self, bad: int) -> None:
        self.bad = bad
        self.told: list[int] = []

    def load_next(self, units: Iterable[int], rows_of: Callable[[int], list[int]]) -> tuple[list[int], Block]:
        first, second = map(rows_of, itertools.islice(units, 2))
        self.told += [len(first), len(second)]
        return first, self.load(first)

    def load(self, rows: Sequence[int]) -> Block:
        error = RowError(Reason.TIE, "both sides are equally good")
        sample = Sample((TokenSequence(np.zeros(3, np.int32), ()),))
        return Block.of([Loaded(None, error) if row == self.bad else Loaded(sample, None) for row in rows])


def units_of(sort: bool) -> list[int]:
    plan = WindowedPlan(PlanOptions(rows=ROWS, global_batch=BATCH, window=WINDOW, sort=sort))
    loader: Any = WorksAhead(int(plan.rows(0, 1, 0, 1)[2]) if not sort else 5)  # type: ignore[index]  # planned rows
    bad_rows = BadRows(Report(ROWS), False, str, lambda row: None)
    steps = WindowedSteps(plan, Ranks(), loader, bad_rows, lambda samples: {"rows": np.array(len(samples))}, ["rows"])
    for step in range(2 * WINDOW):
        assert steps[step]["rows"] == BATCH
    told: list[int] = loader.told
    return told


@pytest.mark.parametrize(("sort", "unit"), [(False, BATCH), (True, BATCH * WINDOW)])
def test_workers_prefetch_one_kind_of_unit_even_if_a_row_is_bad(sort: bool, unit: int) -> None:
    """A bad row needs its whole window; naming further windows would cancel the steps that are under way."""
    assert set(units_of(sort)) == {unit}
