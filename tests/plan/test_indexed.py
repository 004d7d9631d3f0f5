from __future__ import annotations

import dataclasses
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ms_prefstream.errors import NoUsableRowsError, OptionError
from ms_prefstream.plan import IndexedPlan, PlanOptions

from .laws import (
    Setting,
    assert_epoch_conserves_rows,
    assert_same_rows_for_every_world,
    divisors,
    global_step,
    settings_of_plans,
)


def plan_of(setting: Setting) -> IndexedPlan:
    good = int((setting.lengths >= 0).sum())
    enough = setting.options.global_batch if setting.options.drop_remainder else 1
    assume(good >= enough)
    return IndexedPlan(setting.options, setting.lengths.astype(np.int32))


@given(settings_of_plans(bad=True), st.data())
def test_every_epoch_conserves_usable_rows(setting: Setting, data: st.DataObject) -> None:
    world = data.draw(st.sampled_from(divisors(setting.options.global_batch)))
    usable = np.flatnonzero(setting.lengths >= 0)
    assert_epoch_conserves_rows(plan_of(setting), setting.lengths, setting.epoch, usable, world)


@given(settings_of_plans(bad=True))
@settings(settings.get_profile("costly"))
def test_a_step_holds_the_same_rows_on_any_number_of_ranks(setting: Setting) -> None:
    worlds = divisors(setting.options.global_batch)
    assert_same_rows_for_every_world(plan_of(setting), setting.lengths, setting.epoch, worlds)


@given(settings_of_plans(bad=True), st.data())
@settings(settings.get_profile("costly"))
def test_changing_the_world_on_the_way_loses_nothing(setting: Setting, data: st.DataObject) -> None:
    steps = plan_of(setting).steps_per_epoch
    whole = [global_step(plan_of(setting), setting.lengths, setting.epoch, s, 1) for s in range(steps)]
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=4)))
    resumed = []
    for start, end in zip([0, *cuts], [*cuts, steps], strict=True):
        world = data.draw(st.sampled_from(divisors(setting.options.global_batch)))
        plan = plan_of(setting)
        resumed += [global_step(plan, setting.lengths, setting.epoch, s, world) for s in range(start, end)]
    assert resumed == whole


@given(settings_of_plans(bad=True, sorted_only=True))
def test_windows_are_sorted_cut_and_dealt_by_stride(setting: Setting) -> None:
    plan = plan_of(setting)
    usable = np.flatnonzero(setting.lengths >= 0)
    size = setting.options.global_batch
    step = 0
    for window in range(plan.windows_per_epoch):
        count = plan.steps_in(window) * size
        planned = usable[plan.rows_at(setting.epoch, plan.window_start(window) + np.arange(count))]
        by_key = sorted(planned.tolist(), key=lambda row: (setting.lengths[row], row))
        for batch in plan.batch_order(setting.epoch, window).tolist():
            rows = by_key[batch * size : (batch + 1) * size]
            assert plan.rows(setting.epoch, step, 0, 1).tolist() == rows
            for world in divisors(size):
                dealt = [plan.rows(setting.epoch, step, rank, world).tolist() for rank in range(world)]
                assert dealt == [rows[rank::world] for rank in range(world)]
            assert plan.step_length(setting.epoch, step) == max(setting.lengths[row] for row in rows)
            step += 1
    assert step == plan.steps_per_epoch


@given(settings_of_plans(bad=True), st.data())
@settings(settings.get_profile("costly"))
def test_asking_in_any_order_gives_the_same_answers(setting: Setting, data: st.DataObject) -> None:
    used = plan_of(setting)
    asked = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, used.steps_per_epoch - 1)), max_size=12))
    for epoch, step in asked:
        mine = used.rows(epoch, step, 0, 1)
        assert np.array_equal(mine, plan_of(setting).rows(epoch, step, 0, 1))
        mine[:] = -7  # what is handed out is the caller's own


def test_unusable_rows_are_left_out_before_planning() -> None:
    usable = np.arange(40) % 4 != 1
    lengths = np.where(usable, np.arange(1, 41), -1).astype(np.int32)
    plan = IndexedPlan(PlanOptions(rows=40, global_batch=5, window=2), lengths)
    assert plan.steps_per_epoch == 6
    seen = np.concatenate([plan.rows(0, step, 0, 1) for step in range(6)])
    assert sorted(seen.tolist()) == np.flatnonzero(usable).tolist()


def test_source_order_without_the_rows_left_out() -> None:
    lengths = np.array([5, -1, 9, 1, 7, 3], dtype=np.int32)
    plan = IndexedPlan(PlanOptions(rows=6, global_batch=2, shuffle=False), lengths)
    assert [plan.rows(1, step, 0, 1).tolist() for step in range(2)] == [[0, 2], [3, 4]]
    assert [plan.step_length(1, step) for step in range(2)] == [9, 7]
    assert plan.remainder_per_epoch == 1


def test_longest_first_starts_with_the_longest_rows_of_the_window() -> None:
    lengths = np.random.default_rng(0).permutation(400).astype(np.int32)
    options = PlanOptions(rows=400, global_batch=4, window=20, seed=3)
    eager = IndexedPlan(dataclasses.replace(options, longest_first=True), lengths)
    plain = IndexedPlan(options, lengths)
    assert eager.step_length(0, 0) == max(eager.step_length(0, step) for step in range(20))
    assert plain.step_length(0, 0) < eager.step_length(0, 0)
    later = [step for step in range(20, 100)]
    assert [eager.step_length(0, s) for s in later] == [plain.step_length(0, s) for s in later]
    assert [eager.step_length(1, s) for s in range(20)] == [plain.step_length(1, s) for s in range(20)]


def test_what_does_not_fit_is_said() -> None:
    options = PlanOptions(rows=8, global_batch=4)
    lengths = np.ones(8, np.int32)
    with pytest.raises(OptionError, match=r"index has 7 rows, the source 8"):
        IndexedPlan(options, lengths[:7])
    with pytest.raises(NoUsableRowsError, match=r"all 8 rows"):
        IndexedPlan(options, -lengths)
    with pytest.raises(OptionError, match=r"Only 3 of 8 rows are usable.*at most 3.*drop_remainder=False"):
        IndexedPlan(options, np.where(np.arange(8) < 3, lengths, -1))
    plan = IndexedPlan(options, lengths)
    with pytest.raises(OptionError, match=r"num_shards=3 does not divide global_batch=4"):
        plan.rows(0, 0, 0, 3)
    with pytest.raises(OptionError, match=r"step is 2.* 0\.\.1"):
        plan.rows(0, 2, 0, 1)


def test_ten_million_rows_are_planned_at_once_and_hold_little() -> None:
    rows = 10_000_000
    numbers = np.random.default_rng(0)
    lengths = numbers.integers(1, 4096, rows, dtype=np.int32)
    lengths[numbers.integers(0, rows, rows // 30)] = -1
    tracemalloc.start()
    plan = IndexedPlan(PlanOptions(rows=rows, global_batch=128), lengths)
    spent = []
    for epoch in range(5):  # another window each time
        begun = time.perf_counter()
        plan.rows(epoch, 15_000, 3, 8)
        spent.append(time.perf_counter() - begun)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 2 * rows
    assert min(spent) < 0.03  # 2 ms on an idle core; a plan that sorts or permutes everything needs seconds
