from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.errors import NoUsableRowsError, OptionError
from ms_prefstream.plan import PlanOptions, WindowedPlan

from .laws import (
    Setting,
    assert_epoch_conserves_rows,
    assert_same_rows_for_every_world,
    divisors,
    global_step,
    planned,
    settings_of_plans,
)


@given(settings_of_plans())
@settings(settings.get_profile("costly"))
def test_every_epoch_conserves_rows(setting: Setting) -> None:
    plan = WindowedPlan(setting.options)
    world = divisors(setting.options.logical_shards)[-1]
    assert_epoch_conserves_rows(plan, setting.lengths, setting.epoch, np.arange(setting.options.rows), world)


@given(settings_of_plans())
@settings(settings.get_profile("costly"))
def test_a_step_holds_the_same_rows_on_any_number_of_ranks(setting: Setting) -> None:
    worlds = divisors(setting.options.logical_shards)
    assert_same_rows_for_every_world(WindowedPlan(setting.options), setting.lengths, setting.epoch, worlds)


@given(settings_of_plans(), st.data())
@settings(settings.get_profile("costly"))
def test_changing_the_world_on_the_way_loses_nothing(setting: Setting, data: st.DataObject) -> None:
    steps = WindowedPlan(setting.options).steps_per_epoch
    whole = [global_step(WindowedPlan(setting.options), setting.lengths, setting.epoch, s, 1) for s in range(steps)]
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=4)))
    resumed = []
    for start, end in zip([0, *cuts], [*cuts, steps], strict=True):
        world = data.draw(st.sampled_from(divisors(setting.options.logical_shards)))
        plan = WindowedPlan(setting.options)
        resumed += [global_step(plan, setting.lengths, setting.epoch, s, world) for s in range(start, end)]
    assert resumed == whole


@given(settings_of_plans())
@settings(settings.get_profile("costly"))
def test_windows_partition_the_steps(setting: Setting) -> None:
    plan, options = WindowedPlan(setting.options), setting.options
    counts = [plan.steps_in(w) for w in range(plan.windows_per_epoch)]
    assert sum(counts) == plan.steps_per_epoch
    assert set(counts[:-1]) <= {options.window}
    expected = [(w, s) for w, count in enumerate(counts) for s in range(count)]
    assert [plan.locate(step) for step in range(plan.steps_per_epoch)] == expected
    for window, count in enumerate(counts):
        assert sorted(plan.batch_order(setting.epoch, window).tolist()) == list(range(count))
        for shard in range(options.logical_shards):
            rows = plan.shard_rows(setting.epoch, window, shard)
            assert rows.shape == (count * options.shard_batch,)


@given(settings_of_plans())
@settings(settings.get_profile("costly"))
def test_positions_of_a_window_are_dealt_to_shards_in_turn(setting: Setting) -> None:
    plan, shards = WindowedPlan(setting.options), setting.options.logical_shards
    for window in range(plan.windows_per_epoch):
        count = plan.steps_in(window) * setting.options.global_batch
        line = plan.rows_at(setting.epoch, plan.window_start(window) + np.arange(count))
        for shard in range(shards):
            assert np.array_equal(plan.shard_rows(setting.epoch, window, shard), line[shard::shards])


@given(settings_of_plans())
@settings(settings.get_profile("costly"))
def test_rows_from_the_plan_alone_are_those_of_the_arranged_window(setting: Setting) -> None:
    if setting.options.sorts:
        setting = setting._replace(options=dataclasses.replace(setting.options, sort=False, longest_first=False))
    plan, shards = WindowedPlan(setting.options), setting.options.logical_shards
    for step in range(plan.steps_per_epoch):
        window, inside = plan.locate(step)
        batch = plan.batch_order(setting.epoch, window)[inside]
        parts = []
        for shard in range(shards):
            rows = plan.shard_rows(setting.epoch, window, shard)
            parts.append(rows[plan.arrange(setting.lengths[rows], rows).batches[batch]])
        for world in divisors(shards):
            found = [plan.rows(setting.epoch, step, rank, world) for rank in range(world)]
            assert np.array_equal(np.concatenate([rows for rows in found if rows is not None]), np.concatenate(parts))


@given(settings_of_plans(sorted_only=True))
def test_sorted_steps_are_known_with_lengths_only_and_are_cuts_of_the_sorted_shard(setting: Setting) -> None:
    plan = WindowedPlan(setting.options)
    assert plan.rows(setting.epoch, 0, 0, 1) is None
    for shard in range(setting.options.logical_shards):
        rows = plan.shard_rows(setting.epoch, 0, shard)
        by_key = np.array(sorted((setting.lengths[r], r) for r in rows.tolist()))[:, 1]
        cut = by_key.reshape(plan.steps_in(0), -1)
        steps = [
            planned(plan, setting.lengths, setting.epoch, step, shard, setting.options.logical_shards)
            for step in range(plan.steps_in(0))
        ]
        assert np.array_equal(np.stack(steps), cut[plan.batch_order(setting.epoch, 0)])


@given(settings_of_plans(bad=True))
@settings(settings.get_profile("costly"))
def test_bad_rows_are_replaced_within_their_shard_and_counted(setting: Setting) -> None:
    plan, lengths = WindowedPlan(setting.options), setting.lengths
    for window in range(plan.windows_per_epoch):
        for shard in range(setting.options.logical_shards):
            rows = plan.shard_rows(setting.epoch, window, shard)
            good = [r for r in rows.tolist() if lengths[r] >= 0]
            if not good:
                with pytest.raises(NoUsableRowsError):
                    plan.arrange(lengths[rows], rows)
                continue
            arrangement = plan.arrange(lengths[rows], rows)
            delivered = rows[arrangement.filled_by[arrangement.batches]].reshape(-1)
            repeats = Counter(delivered.tolist()) - Counter(good)
            assert Counter(good) <= Counter(delivered.tolist())
            assert set(repeats) <= set(good)
            assert sum(repeats.values()) == len(rows) - len(good)
            if not setting.options.sorts:
                assert np.array_equal(arrangement.batches.reshape(-1), np.arange(len(rows)))


def test_source_order_is_exact_and_wraps_to_the_front() -> None:
    plan = WindowedPlan(PlanOptions(rows=10, global_batch=4, window=2, shuffle=False, drop_remainder=False))
    steps = [plan.rows(5, step, 0, 1) for step in range(3)]
    assert [s.tolist() for s in steps if s is not None] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    assert plan.repeats_per_epoch == 2
    shards = WindowedPlan(PlanOptions(rows=10, global_batch=4, window=2, shuffle=False, logical_shards=2))
    found = [shards.rows(0, 1, rank, 2) for rank in range(2)]
    assert [f.tolist() for f in found if f is not None] == [[4, 6], [5, 7]]


def test_fewer_rows_than_a_step_go_round() -> None:
    plan = WindowedPlan(PlanOptions(rows=3, global_batch=8, shuffle=True, sort=False, drop_remainder=False))
    rows = plan.rows(0, 0, 0, 1)
    assert rows is not None
    assert rows[:3].tolist() * 3 == [*rows.tolist(), rows[2]]
    assert sorted(rows[:3].tolist()) == [0, 1, 2]
    assert (plan.steps_per_epoch, plan.repeats_per_epoch) == (1, 5)


@pytest.mark.parametrize("shuffle", [True, "window"])
def test_repeats_are_the_first_rows_of_the_same_epoch(shuffle: bool | str) -> None:
    options = PlanOptions(rows=50, global_batch=8, window=3, shuffle=shuffle, drop_remainder=False)  # type: ignore[arg-type]
    plan = WindowedPlan(options)
    for epoch in range(4):
        rows = plan.rows_at(epoch, np.arange(56))
        assert sorted(rows[:50].tolist()) == list(range(50))
        assert rows[50:].tolist() == rows[:6].tolist()


def test_shuffled_windows_keep_their_rows_and_change_places() -> None:
    options = PlanOptions(rows=107, global_batch=4, window=4, shuffle="window", logical_shards=2)
    plan = WindowedPlan(options)  # 26 steps: 6 full windows of 16 rows, a short one of 2 steps, 3 rows left out
    visited, remainders = [], set()
    for epoch in range(8):
        order = []
        for window in range(plan.windows_per_epoch):
            rows = np.concatenate([plan.shard_rows(epoch, window, shard) for shard in range(2)])
            sources = set((rows // 16).tolist())
            assert len(sources) == 1
            order += list(sources)
            assert not np.array_equal(rows, np.sort(rows))
        assert sorted(order) == list(range(7))
        assert order[-1] == 6
        visited.append(tuple(order))
        remainders.add(frozenset(range(107)) - frozenset(plan.rows_at(epoch, np.arange(104)).tolist()))
    assert len(set(visited)) == 8
    assert all(min(left) >= 96 and len(left) == 3 for left in remainders)
    assert len(remainders) > 1


def test_rows_left_out_differ_from_epoch_to_epoch_when_shuffled() -> None:
    plan = WindowedPlan(PlanOptions(rows=1003, global_batch=100, sort=False))
    left = [frozenset(range(1003)) - frozenset(plan.rows_at(epoch, np.arange(1000)).tolist()) for epoch in range(4)]
    assert len(set(left)) == 4


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"window": 5}])
def test_batch_order_depends_on_seed_epoch_and_nothing_of_the_rank(change: dict[str, int]) -> None:
    options = {"rows": 4096, "global_batch": 8, "window": 64}
    order = WindowedPlan(PlanOptions(**options)).batch_order(0, 0)  # type: ignore[arg-type]
    assert not np.array_equal(order, np.arange(64))
    if "window" in change:
        other = WindowedPlan(PlanOptions(**options)).batch_order(0, change["window"])  # type: ignore[arg-type]
    else:
        seeded = PlanOptions(**options, seed=change.get("seed", 0))  # type: ignore[arg-type]
        other = WindowedPlan(seeded).batch_order(change.get("epoch", 0), 0)
    assert np.count_nonzero(order == other) < 8
    with_shards = WindowedPlan(PlanOptions(**options, logical_shards=8)).batch_order(0, 0)  # type: ignore[arg-type]
    assert np.array_equal(order, with_shards)


def test_source_order_has_no_batch_order() -> None:
    plan = WindowedPlan(PlanOptions(rows=100, global_batch=4, window=10, shuffle=False))
    assert plan.batch_order(3, 1).tolist() == list(range(10))


def test_longest_first_touches_the_first_window_only() -> None:
    options = PlanOptions(rows=320, global_batch=4, window=16, logical_shards=2, seed=7)
    plain = WindowedPlan(options)
    eager = WindowedPlan(PlanOptions(**{**vars_of(options), "longest_first": True}))
    order, moved = plain.batch_order(0, 0), eager.batch_order(0, 0)
    assert moved[0] == 15
    assert moved[1:].tolist() == [batch for batch in order.tolist() if batch != 15]
    for epoch, window in [(0, 1), (0, 4), (1, 0), (2, 3)]:
        assert np.array_equal(plain.batch_order(epoch, window), eager.batch_order(epoch, window))
    lengths = np.random.default_rng(0).integers(1, 1000, 320)
    first = planned(eager, lengths, 0, 0, 0, 1)
    for shard in range(2):
        in_window = lengths[eager.shard_rows(0, 0, shard)]
        assert lengths[first].tolist().count(in_window.max()) >= 1


def vars_of(options: PlanOptions) -> dict[str, int]:
    return {name: getattr(options, name) for name in ("rows", "global_batch", "window", "logical_shards", "seed")}


def test_what_is_not_there_is_said() -> None:
    plan = WindowedPlan(PlanOptions(rows=40, global_batch=4, window=4, logical_shards=4, sort=False))
    with pytest.raises(OptionError, match=r"step is 10.* 0\.\.9"):
        plan.rows(0, 10, 0, 1)
    with pytest.raises(OptionError, match=r"step is -1.* 0\.\.9"):
        plan.locate(-1)
    with pytest.raises(OptionError, match=r"epoch is -1"):
        plan.rows(-1, 0, 0, 1)
    with pytest.raises(OptionError, match=r"window is 3.* 0\.\.2"):
        plan.steps_in(3)
    with pytest.raises(OptionError, match=r"shard is 4.* 0\.\.3"):
        plan.shard_rows(0, 0, 4)
    with pytest.raises(OptionError, match=r"num_shards=3 does not divide logical_shards=4"):
        plan.rows(0, 0, 0, 3)
    with pytest.raises(OptionError, match=r"shard_id is 2.* 0\.\.1"):
        plan.rows(0, 0, 2, 2)
