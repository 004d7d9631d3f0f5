"""Steps of packed rows without a length index: equal on all ranks, resumable everywhere, nothing lost uncounted."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ms_prefstream.errors import NoUsableRowsError, Reason, RowError
from ms_prefstream.plan import PlanOptions, Ranks
from ms_prefstream.plan.packed import PackedWindows
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.report.report import Report
from ms_prefstream.sample import Block, Loaded, Sample, Sequence
from ms_prefstream.steps.planned import PackedSteps

ROWS, STEPS = 240, 11


class Rows:
    """A loader of pairs whose ids are their row's number; counts what it loads."""

    def __init__(self, bad=()):
        self.bad = frozenset(bad)
        self.loaded = Counter()

    def load(self, rows):
        self.loaded.update(rows)
        return Block.of([self._one(row) for row in rows])

    def _one(self, row):
        if row in self.bad:
            return Loaded(None, RowError(Reason.TIE, "both sides are equally good"))
        sides = (1 + row * 7 % 13, 1 + row * 5 % 11)
        return Loaded(Sample(tuple(Sequence(np.full(side, row, np.int32), ()) for side in sides)), None)


class CountingReport(Report):
    def __init__(self):
        super().__init__()
        self.windows = []

    def packed_window(self, packs, wanted, dropped):
        self.windows.append((packs.made, wanted, packs.left_out, packs.repeats))
        super().packed_window(packs, wanted, dropped)


def steps_of(world=1, rank=0, *, bad=(), steps=STEPS, loader=None, **options):
    options = {"rows": ROWS, "global_batch": 4, "logical_shards": 4, "window": 3, "seed": 5} | options
    plan = PackedWindows(PlanOptions(**options), steps, capacity=40, most=4)
    ranks = Ranks(world, rank, options["logical_shards"])
    bad_rows = BadRows(CountingReport(), True, origin="row {}".format, raw=lambda row: row)
    return PackedSteps(plan, ranks, loader or Rows(bad), bad_rows, lambda packs: {"packs": packs}, ["packs"])


def rows_in(batch):
    """The row numbers in each packed row of a batch."""
    found = []
    for pack in batch["packs"]:
        samples = [one.sample for one in pack]
        assert sum(len(sequence.ids) for sample in samples for sequence in sample.sequences) <= 40
        assert len(samples) <= 4
        assert all(
            (sequence.ids == sample.sequences[0].ids[0]).all() for sample in samples for sequence in sample.sequences
        )
        found.append([int(sample.sequences[0].ids[0]) for sample in samples])
    return found


def rest(steps, first, epochs=2):
    return [rows_in(steps[step]) for step in range(first, epochs * steps.steps_per_epoch)]


@pytest.mark.parametrize("shuffle", [True, "window", False])
def test_a_run_resumes_at_every_step_with_the_exact_tail(shuffle):
    whole = rest(steps_of(shuffle=shuffle), 0)
    for step in range(0, 2 * STEPS, 1 if shuffle is True else 4):
        assert rest(steps_of(shuffle=shuffle), step) == whole[step:]


def test_a_window_of_another_epoch_is_another_window():
    steps = steps_of(window=STEPS)
    found = rest(steps, 0)
    assert found[:STEPS] != found[STEPS:]
    assert found[STEPS:] == rest(steps_of(window=STEPS), STEPS)


def test_resuming_tokenises_one_window():
    loader = Rows()
    steps = steps_of(loader=loader)
    steps[STEPS + 4]
    plan = steps.plan
    assert sum(loader.loaded.values()) == plan.window_start(2) - plan.window_start(1)
    steps[STEPS + 3], steps[STEPS + 5]
    assert max(loader.loaded.values()) == 1


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_share_the_same_packs_of_every_step(world):
    bad = range(0, ROWS, 17)
    alone = rest(steps_of(bad=bad), 0)
    ranks = [rest(steps_of(world, rank, bad=bad), 0) for rank in range(world)]
    assert {len(found) for found in ranks} == {2 * STEPS}
    together = [list(chain.from_iterable(step)) for step in zip(*ranks, strict=True)]
    assert together == alone


@given(
    st.integers(1, 20),
    st.integers(2, 7),
    st.sampled_from([True, "window", False]),
    st.sets(st.integers(0, ROWS - 1), max_size=50),
)
@settings(settings.get_profile("costly"))
def test_every_good_row_is_delivered_once_or_counted(steps, window, shuffle, bad):
    ran = steps_of(steps=steps, window=window, shuffle=shuffle, bad=bad)
    try:
        seen = Counter(row for step in range(steps) for pack in rows_in(ran[step]) for row in pack)
    except NoUsableRowsError:
        assume(False)
    left_out = sum(counted[2] for counted in ran._bad_rows.report.windows)
    repeats = sum(counted[3] for counted in ran._bad_rows.report.windows)
    assert set(seen) <= set(range(ROWS)) - bad
    assert len(seen) == ROWS - len(bad) - left_out
    assert sum(seen.values()) - len(seen) == repeats
    assert sum(counted[1] for counted in ran._bad_rows.report.windows) == steps * 4
    assert ran._bad_rows.report.dropped["tie"] == len(bad)


def test_enough_steps_hold_every_row_once():
    steps = steps_of(steps=30, window=30)
    assert Counter(row for batch in rest(steps, 0, epochs=1) for pack in batch for row in pack) == Counter(range(ROWS))


def test_a_window_is_counted_once_an_epoch_wherever_a_run_begins():
    whole = steps_of()
    rest(whole, 0, epochs=1)
    assert len(whole._bad_rows.report.windows) == 4 * whole.plan.windows_per_epoch
    resumed = steps_of()
    rest(resumed, 4, epochs=1)
    assert resumed._bad_rows.report.windows == whole._bad_rows.report.windows[4:]


@pytest.mark.parametrize("resolved", [False, True])
def test_the_rows_of_a_step_can_be_asked_for(resolved):
    steps = steps_of(2, 1, bad=range(0, ROWS, 5))
    for step in range(STEPS):
        wanted = rows_in(steps[STEPS + step])
        assert [pack.tolist() for pack in steps.packs(1, step)] == wanted
        rows = steps.rows(1, step, resolved)
        assert rows.dtype == np.int64
        assert rows.tolist() == list(chain.from_iterable(wanted))


def test_a_window_without_a_good_row_is_an_error():
    with pytest.raises(NoUsableRowsError, match="none of the 17 rows of a window can be used"):
        steps_of(bad=range(ROWS))[0]


class WorksAhead(Rows):
    """Notes what it is told to load ahead."""

    def load_next(self, units, rows_of):
        self.units = [(unit, rows_of(unit)) for unit, _ in zip(units, range(3), strict=False)]
        return self.units[0][1], self.load(self.units[0][1])


def test_workers_are_told_which_windows_come_next():
    loader = WorksAhead()
    steps = steps_of(2, 1, loader=loader)
    windows = steps.plan.windows_per_epoch
    steps[STEPS - 1]
    assert [unit for unit, _ in loader.units] == [windows - 1, windows, windows + 1]
    for unit, rows in loader.units:
        place = divmod(unit, windows)
        assert rows == [row for shard in (2, 3) for row in steps.plan.shard_rows(*place, shard).tolist()]


def test_a_source_that_is_read_from_the_front_is_not_read_ahead():
    class OnePassRecords(Rows):
        def load_next(self, units, rows_of):
            raise AssertionError

    steps_of(loader=OnePassRecords(), one_pass=True)[0]


def test_a_one_pass_source_is_read_from_the_front():
    class OnePassRecords(Rows):
        ended = 0

        def load(self, rows):
            assert sorted(rows) == list(range(self.ended, self.ended + len(rows)))
            self.ended += len(rows)
            return super().load(rows)

    loader = OnePassRecords()
    steps = steps_of(loader=loader, one_pass=True)
    rest(steps, 0, epochs=1)
    assert loader.ended == ROWS
