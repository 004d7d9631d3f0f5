"""Steps of packed rows with a length index: each step loads its own rows, and rows that changed are noticed."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from ms_prefstream.errors import Reason, RowError, StateError
from ms_prefstream.plan import PlanOptions, Ranks
from ms_prefstream.plan.packed import PackedPlan
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.report.report import Report
from ms_prefstream.sample import Block, Loaded, Sample, Sequence
from ms_prefstream.steps.planned import IndexedPackedSteps

ROWS = 120
SIZES = np.array([-1 if row % 10 == 3 else 2 + row * 7 % 19 for row in range(ROWS)])


class Rows:
    """A loader of pairs whose ids are their row's number."""

    def __init__(self, changed=(), gone=()):
        self.changed, self.gone = frozenset(changed), frozenset(gone)
        self.loaded = Counter()

    def load(self, rows):
        self.loaded.update(rows)
        return Block.of([self._one(row) for row in rows])

    def _one(self, row):
        if row in self.gone:
            return Loaded(None, RowError(Reason.TIE, "both sides are equally good"))
        size = int(SIZES[row]) + (row in self.changed)
        sides = (1, size - 1)
        return Loaded(Sample(tuple(Sequence(np.full(side, row, np.int32), ()) for side in sides)), None)


def steps_of(world=1, rank=0, loader=None, **options):
    options = {"rows": ROWS, "global_batch": 4, "seed": 5} | options
    ledger = BadRows(Report(), True, origin="row {}".format, raw=lambda row: row)
    return IndexedPackedSteps(
        PackedPlan(PlanOptions(**options), SIZES, 32, 4),
        Ranks(world, rank),
        lambda rows: SIZES[rows],
        loader or Rows(),
        ledger,
        "data.jsonl:{}".format,
        lambda packs: {"packs": packs},
        ["packs"],
    )


def rows_in(batch):
    return [[int(one.sample.sequences[0].ids[0]) for one in pack] for pack in batch["packs"]]


def rest(steps, first, epochs=2):
    return [rows_in(steps[step]) for step in range(first, epochs * steps.steps_per_epoch)]


def test_a_run_resumes_at_every_step_with_the_exact_tail():
    whole = rest(steps_of(), 0)
    assert len(whole) == 2 * steps_of().steps_per_epoch
    for step in range(len(whole)):
        assert rest(steps_of(), step) == whole[step:]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_share_the_same_packs_of_every_step(world):
    alone = rest(steps_of(), 0)
    ranks = [rest(steps_of(world, rank), 0) for rank in range(world)]
    assert [[pack for packs in zip(*step, strict=True) for pack in packs] for step in zip(*ranks, strict=True)] == alone


def test_a_step_loads_its_own_rows_and_no_others():
    loader = Rows()
    steps = steps_of(2, 1, loader)
    wanted = rows_in(steps[3])
    steps[3]
    flat = list(chain.from_iterable(wanted))
    assert loader.loaded == Counter(flat)
    assert [pack.tolist() for pack in steps.packs(0, 3)] == wanted
    assert steps.rows(0, 3).tolist() == flat == steps.rows(0, 3, resolved=True).tolist()


def test_an_epoch_holds_every_usable_row_once():
    steps = steps_of(global_batch=1)
    seen = Counter(row for batch in rest(steps, 0, epochs=1) for pack in batch for row in pack)
    assert seen == Counter(np.flatnonzero(SIZES > 0).tolist())
    assert steps._bad_rows.report.read == len(seen)


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (Rows(changed=range(ROWS)), r"data.jsonl:\d+: .* has \d+ tokens, but it has \d+ tokens now.* rebuild it"),
        (Rows(gone=range(ROWS)), r"data.jsonl:\d+: .* cannot be used now \(both sides are equally good \[tie\]"),
    ],
)
def test_a_row_that_is_not_what_the_index_says_is_an_error(loader, words):
    with pytest.raises(StateError, match=words):
        steps_of(loader=loader)[0]


def test_workers_are_told_which_steps_come_next():
    class WorksAhead(Rows):
        def load_next(self, units, rows_of):
            self.units = [(unit, rows_of(unit)) for unit, _ in zip(units, range(3), strict=False)]
            return self.units[0][1], self.load(self.units[0][1])

    loader = WorksAhead()
    steps = steps_of(2, 1, loader)
    last = steps.steps_per_epoch - 1
    steps[last]
    assert [unit for unit, _ in loader.units] == [last, last + 1, last + 2]
    assert loader.units[1][1] == steps.rows(1, 0).tolist()
