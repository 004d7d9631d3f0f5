"""Steps by a token budget: what they hold, how many there are, and that ranks and epochs agree on it."""

from __future__ import annotations

import dataclasses
import time
import tracemalloc
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ms_prefstream.errors import NoUsableRowsError, OptionError
from ms_prefstream.plan import BudgetOptions, BudgetPlan

from .laws import divisors


class Setting(NamedTuple):
    """One drawn case."""

    options: BudgetOptions
    lengths: NDArray[np.int32]
    epoch: int

    @property
    def usable(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.lengths >= 0)

    def plan(self) -> BudgetPlan:
        """The plan, if the rows are enough for a step."""
        try:
            return BudgetPlan(self.options, self.lengths)
        except (OptionError, NoUsableRowsError):
            assume(False)
            raise

    def limit(self, width: int) -> int:
        return width - self.options.extra


@st.composite
def cases(draw: st.DrawFn) -> Setting:
    extra = draw(st.integers(0, 2))
    limits = sorted(draw(st.sets(st.integers(1, 30), min_size=1, max_size=5)))
    shards, sequences = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 2]))
    least = shards * sequences * (limits[-1] + extra)
    options = BudgetOptions(
        rows=draw(st.integers(1, 90)),
        tokens=least + draw(st.integers(0, 5 * least)),
        sequences=sequences,
        widths=tuple(limit + extra for limit in limits),
        extra=extra,
        logical_shards=shards,
        seed=draw(st.integers(0, 2**32 - 1)),
        drop_remainder=draw(st.booleans()),
        longest_first=draw(st.booleans()),
    )
    numbers = np.random.default_rng(draw(st.integers(0, 2**20)))
    lengths = numbers.integers(1, draw(st.integers(1, limits[-1])) + 1, options.rows).astype(np.int32)
    lengths[numbers.random(options.rows) < draw(st.sampled_from([0, 0.2]))] = -1
    return Setting(options, lengths, draw(st.integers(0, 3)))


@given(cases())
def test_every_epoch_conserves_usable_rows(setting: Setting) -> None:
    plan = setting.plan()
    steps = [plan.rows(setting.epoch, step, 0, 1) for step in range(plan.steps_per_epoch)]
    seen = Counter(np.concatenate(steps).tolist())
    usable = setting.usable
    assert set(seen) <= set(usable.tolist())
    assert len(seen) == usable.size - plan.remainder_per_epoch
    assert sum(seen.values()) - len(seen) == plan.repeats_per_epoch
    if setting.options.drop_remainder:
        assert plan.repeats_per_epoch == 0
    else:
        assert plan.remainder_per_epoch == 0


@given(cases())
def test_every_step_fills_the_budget_at_one_of_the_widths(setting: Setting) -> None:
    """As many rows as the budget holds at the step's width, whether or not all of them need it."""
    plan, options = setting.plan(), setting.options
    for step in range(plan.steps_per_epoch):
        width = plan.step_length(setting.epoch, step) + options.extra
        assert width in options.widths
        rows = plan.rows(setting.epoch, step, 0, 1)
        assert rows.dtype == np.int64
        assert setting.lengths[rows].max() <= setting.limit(width)
        assert rows.size == options.rows_at(width)
        taken = rows.size * width * options.sequences
        assert taken <= options.tokens
        assert options.tokens - taken < width * options.sequences * options.logical_shards  # one more does not fit


@given(cases())
def test_less_than_a_step_of_each_width_is_padded_further_than_needed(setting: Setting) -> None:
    plan, options = setting.plan(), setting.options
    further: set[tuple[int, int]] = set()  # (width of its own, row); a row that fills up the last step counts once
    for step in range(plan.steps_per_epoch):
        width = plan.step_length(setting.epoch, step) + options.extra
        for row in plan.rows(setting.epoch, step, 0, 1).tolist():
            own = next(width for width in options.widths if setting.lengths[row] <= setting.limit(width))
            if own < width:
                further.add((own, row))
    wider = Counter(own for own, _ in further)
    before = 0
    for width in options.widths:  # a line of each width hands on less than one step of it, what moved in included
        assert wider[width] < options.rows_at(width) + before
        before = options.rows_at(width) if wider[width] else 0


@given(cases())
def test_ranks_share_a_step_out_evenly(setting: Setting) -> None:
    plan = setting.plan()
    for world in divisors(setting.options.logical_shards):
        for step in range(plan.steps_per_epoch):
            alone = plan.rows(setting.epoch, step, 0, 1)
            parts = [plan.rows(setting.epoch, step, rank, world) for rank in range(world)]
            assert {part.size for part in parts} == {alone.size // world}
            assert [part.tolist() for part in parts] == [alone[rank::world].tolist() for rank in range(world)]


@given(cases(), st.data())
def test_asking_in_any_order_gives_the_same_answers(setting: Setting, data: st.DataObject) -> None:
    used = setting.plan()
    asked = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, used.steps_per_epoch - 1)), max_size=8))
    for epoch, step in asked:
        mine = used.rows(epoch, step, 0, 1)
        assert np.array_equal(mine, setting.plan().rows(epoch, step, 0, 1))
        mine[:] = -7  # what is handed out is the caller's own
        assert used.step_length(epoch, step) == setting.plan().step_length(epoch, step)


def lengths_of(rows: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(1, 101, rows, dtype=np.int32)


OPTIONS = BudgetOptions(rows=1000, tokens=800, sequences=2, widths=(25, 50, 100), seed=4)


def test_epochs_have_the_same_widths_in_another_order_and_other_rows_in_a_step() -> None:
    plan = BudgetPlan(OPTIONS, lengths_of(1000))
    widths = [[plan.step_length(epoch, step) for step in range(plan.steps_per_epoch)] for epoch in range(2)]
    assert sorted(widths[0]) == sorted(widths[1])
    assert widths[0] != widths[1]
    assert len(set(widths[0][:20])) == 3  # not one width after the other
    found = [{tuple(sorted(plan.rows(e, s, 0, 1).tolist())) for s in range(plan.steps_per_epoch)} for e in range(2)]
    assert not found[0] & found[1]


def test_other_rows_are_left_out_in_each_epoch() -> None:
    plan = BudgetPlan(dataclasses.replace(OPTIONS, rows=203), lengths_of(203))
    assert plan.remainder_per_epoch
    left = []
    for epoch in range(4):
        seen = np.concatenate([plan.rows(epoch, step, 0, 1) for step in range(plan.steps_per_epoch)])
        left.append(tuple(sorted(set(range(203)) - set(seen.tolist()))))
    assert len(set(left)) > 1


def test_the_longest_rows_come_first_and_nothing_else_changes_place() -> None:
    lengths = np.where(np.arange(1000) < 990, 20, 100).astype(np.int32)
    options = dataclasses.replace(OPTIONS, seed=5)
    eager = BudgetPlan(dataclasses.replace(options, longest_first=True), lengths)
    plain = BudgetPlan(options, lengths)
    steps = range(plain.steps_per_epoch)
    assert plain.step_length(0, 0) == 25
    assert eager.step_length(0, 0) == 100
    differ = [s for s in steps if eager.rows(0, s, 0, 1).tolist() != plain.rows(0, s, 0, 1).tolist()]
    assert len(differ) == 2
    assert [eager.step_length(1, s) for s in steps] == [plain.step_length(1, s) for s in steps]


def test_the_order_is_what_it_was() -> None:
    """Whoever changes it must raise PLAN_VERSION: saved states would go on with other rows."""
    plan = BudgetPlan(dataclasses.replace(OPTIONS, rows=40, tokens=400), np.arange(1, 41, dtype=np.int32) * 5 // 2)
    assert plan.steps_per_epoch == 14
    expected = [[29, 23], [34, 27], [4, 7, 13, 16], [39, 28], [22, 24]]
    assert [plan.rows(1, step, 0, 1).tolist() for step in range(5)] == expected


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(OptionError, match=r"is 199, .*takes 200 tokens .* in each of its 2 sequences.* is 200 or more"):
        dataclasses.replace(OPTIONS, tokens=199)
    with pytest.raises(OptionError, match=r"logical_shards=5.*is 1000 or more"):
        dataclasses.replace(OPTIONS, logical_shards=5)
    with pytest.raises(OptionError, match="drop_remainder=1 is not allowed"):
        dataclasses.replace(OPTIONS, drop_remainder=1)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"index has 7 rows, the source 1000"):
        BudgetPlan(OPTIONS, lengths_of(7))
    with pytest.raises(NoUsableRowsError, match=r"all 1000 rows"):
        BudgetPlan(OPTIONS, -lengths_of(1000))
    with pytest.raises(OptionError, match=r"Only 3 of 1000 rows are usable, .* 4 rows of their width.*drop_remainder"):
        BudgetPlan(OPTIONS, np.where(np.arange(1000) < 3, 100, -1))
    with pytest.raises(ValueError, match="101 tokens, but the largest width holds 100"):
        BudgetPlan(OPTIONS, np.full(1000, 101))
    plan = BudgetPlan(OPTIONS, lengths_of(1000))
    with pytest.raises(OptionError, match=r"num_shards=2 does not divide logical_shards=1"):
        plan.rows(0, 0, 0, 2)
    with pytest.raises(OptionError, match=r"step is \d+.* 0\.\."):
        plan.rows(0, plan.steps_per_epoch, 0, 1)


def test_ten_million_rows_are_planned_at_once_and_hold_little() -> None:
    rows = 10_000_000
    lengths = np.random.default_rng(0).integers(1, 4097, rows, dtype=np.int32)
    options = BudgetOptions(rows=rows, tokens=2**19, sequences=2, widths=tuple(range(256, 4097, 256)), logical_shards=8)
    tracemalloc.start()
    plan = BudgetPlan(options, lengths)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    spent = []
    for epoch in range(5):
        begun = time.perf_counter()
        plan.rows(epoch, 15_000, 3, 8)
        spent.append(time.perf_counter() - begun)
    assert held < 5 * rows
    assert min(spent) < 0.03
