"""The epoch of a mixture: which row of which part stands where, in every epoch and on every number of ranks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.errors import OptionError
from ms_prefstream.plan import PlanOptions, WindowedPlan
from ms_prefstream.plan.mixture import Mixture

from .laws import Setting, assert_same_rows_for_every_world, divisors, global_step


def mixtures(most_parts: int, most_rows: int, most_weight: int) -> st.SearchStrategy[Mixture]:
    return st.integers(1, most_parts).flatmap(
        lambda parts: st.builds(
            lambda sizes, weights, stop: Mixture(sizes=tuple(sizes), weights=tuple(weights), stop=stop),
            st.lists(st.integers(1, most_rows), min_size=parts, max_size=parts),
            st.lists(st.integers(1, most_weight), min_size=parts, max_size=parts),
            st.sampled_from(["first", "all"]),
        )
    )


@st.composite
def mixed_plans(draw: st.DrawFn) -> Setting:
    mixture = draw(mixtures(4, 20, 5))
    shards = draw(st.sampled_from([1, 2, 4]))
    batch = shards * draw(st.integers(1, 4))
    options = PlanOptions(
        rows=mixture.rows,
        global_batch=batch,
        logical_shards=shards,
        window=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 2**32 - 1)),
        shuffle=draw(st.sampled_from([True, "window", False])),
        drop_remainder=mixture.rows >= batch and draw(st.booleans()),
        sort=draw(st.booleans()),
        mixture=mixture,
    )
    lengths = np.random.default_rng(draw(st.integers(0, 99))).integers(1, 12, mixture.firsts[-1])
    return Setting(options, lengths, draw(st.integers(0, 3)))


def part_of(mixture: Mixture, rows: Any) -> np.ndarray:
    return np.searchsorted(mixture.firsts, rows, side="right") - 1


@pytest.mark.slow
@given(mixtures(6, 60, 9))
@settings(settings.get_profile("cheap"))
def test_an_epoch_ends_where_its_rule_says(mixture: Mixture) -> None:
    counts = mixture.schedule.counts(mixture.rows)
    if mixture.stop == "first":
        assert all(count <= size for count, size in zip(counts, mixture.sizes, strict=True))
        after = mixture.schedule.counts(mixture.rows + 1)  # one more row, and a part would have to repeat
        assert any(count > size for count, size in zip(after, mixture.sizes, strict=True))
        assert any(count == size for count, size in zip(counts, mixture.sizes, strict=True))
    else:
        assert all(count >= size for count, size in zip(counts, mixture.sizes, strict=True))
        before = mixture.schedule.counts(mixture.rows - 1)  # one row less, and a part would not have been seen whole
        assert any(count < size for count, size in zip(before, mixture.sizes, strict=True))


@pytest.mark.parametrize("stop", ["first", "all"])
@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=6))
def test_weights_by_size_make_every_row_come_once(stop: Any, sizes: list[int]) -> None:
    mixture = Mixture(sizes=tuple(sizes), weights=tuple(sizes), stop=stop)
    assert mixture.rows == sum(sizes)
    plan = WindowedPlan(PlanOptions(rows=mixture.rows, global_batch=1, mixture=mixture))
    assert sorted(plan.rows_at(2, np.arange(mixture.rows)).tolist()) == list(range(sum(sizes)))


@given(mixed_plans())
def test_every_window_and_every_step_before_sorting_has_the_exact_shares(setting: Setting) -> None:
    options, mixture = setting.options, setting.options.mixture
    assert mixture is not None
    plan, size = WindowedPlan(options), options.global_batch
    rows = plan.rows_at(setting.epoch, np.arange(plan.steps_per_epoch * size))
    parts = part_of(mixture, rows).reshape(-1, size)
    for step in range(min(plan.steps_per_epoch, mixture.rows // size)):  # behind the last row positions begin again
        found = np.cumsum(np.bincount(parts[: step + 1].reshape(-1), minlength=len(mixture.sizes)))
        expected = np.cumsum(mixture.schedule.counts((step + 1) * size))
        assert np.array_equal(found, expected)


@given(mixed_plans())
def test_each_pass_over_a_part_is_a_permutation_of_it(setting: Setting) -> None:
    options, mixture = setting.options, setting.options.mixture
    assert mixture is not None
    options = dataclasses.replace(options, global_batch=1, logical_shards=1)  # the positions of a step change places
    rows = WindowedPlan(options).rows_at(setting.epoch, np.arange(mixture.rows))
    for part, (first, size) in enumerate(zip(mixture.firsts, mixture.sizes, strict=False)):
        mine = rows[part_of(mixture, rows) == part] - first
        for begin in range(0, len(mine), size):
            seen = mine[begin : begin + size].tolist()
            assert len(set(seen)) == len(seen)
            if len(seen) == size or options.shuffle is False:
                assert sorted(seen) == list(range(len(seen)))
        if options.shuffle is False:
            assert mine.tolist() == [k % size for k in range(len(mine))]


@given(mixed_plans(), st.integers(0, 10**6))
@settings(settings.get_profile("costly"))
def test_positions_in_any_order_give_the_rows_of_walking(setting: Setting, seed: int) -> None:
    plan = WindowedPlan(setting.options)
    positions = np.arange(plan.steps_per_epoch * setting.options.global_batch)
    walked = np.concatenate([plan.rows_at(setting.epoch, np.array([position])) for position in positions[:80]])
    order = np.random.default_rng(seed).permutation(len(walked))
    assert np.array_equal(WindowedPlan(setting.options).rows_at(setting.epoch, order), walked[order])


@given(mixed_plans())
@settings(settings.get_profile("costly"))
def test_a_step_holds_the_same_rows_on_any_number_of_ranks(setting: Setting) -> None:
    worlds = divisors(setting.options.logical_shards)
    assert_same_rows_for_every_world(WindowedPlan(setting.options), setting.lengths, setting.epoch, worlds)


@given(mixed_plans())
@settings(settings.get_profile("costly"))
def test_an_epoch_delivers_what_the_schedule_counts(setting: Setting) -> None:
    options, mixture = setting.options, setting.options.mixture
    assert mixture is not None
    plan = WindowedPlan(options)
    seen: Counter[int] = Counter()
    for step in range(plan.steps_per_epoch):
        seen.update(global_step(plan, setting.lengths, setting.epoch, step, 1))
    if options.drop_remainder:
        by_part = Counter(part_of(mixture, list(seen.elements())).tolist())
        counts = mixture.schedule.counts(plan.steps_per_epoch * options.global_batch)
        assert [by_part[part] for part in range(len(counts))] == counts
        if mixture.stop == "first":
            assert max(seen.values()) == 1
    elif mixture.stop == "all":
        assert set(seen) == set(range(mixture.firsts[-1]))


def make(shuffle: Any = True, seed: int = 0, shards: int = 1, **options: Any) -> tuple[Mixture, WindowedPlan]:
    mixture = Mixture(sizes=(300, 100), weights=(1, 1), stop=options.pop("stop", "first"))
    return mixture, WindowedPlan(
        PlanOptions(
            rows=mixture.rows, global_batch=8, logical_shards=shards, shuffle=shuffle, seed=seed, mixture=mixture,
            sort=False, **options,
        )
    )  # fmt: skip


@pytest.mark.parametrize("shuffle", [True, "window"])
def test_each_epoch_and_seed_takes_other_rows_of_the_longer_part_in_another_order(shuffle: Any) -> None:
    taken = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        mixture, plan = make(shuffle, seed, window=2)
        rows = plan.rows_at(epoch, np.arange(mixture.rows))
        taken.append(rows[rows < 300])
        assert len(set(rows.tolist())) == len(rows) == 200
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert set(taken[one].tolist()) != set(taken[other].tolist())


def test_each_pass_of_an_epoch_has_its_own_order() -> None:
    mixture, plan = make(stop="all")
    rows = plan.rows_at(0, np.arange(mixture.rows))
    short = rows[rows >= 300]
    assert len(short) == 300
    passes = short.reshape(3, 100)
    assert all(sorted(one.tolist()) == list(range(300, 400)) for one in passes[:1])
    assert np.count_nonzero(passes[0] == passes[1]) < 20
    assert np.count_nonzero(passes[1] == passes[2]) < 20


def test_a_pattern_in_the_turns_does_not_give_each_rank_a_part_of_its_own() -> None:
    mixture, plan = make(shards=2)
    for rank in range(2):
        parts = [part_of(mixture, plan.rows(0, step, rank, 2)).tolist() for step in range(plan.steps_per_epoch)]
        share = np.mean(parts)
        assert 0.35 < share < 0.65
    mixture, plan = make(shards=2, shuffle=False)
    assert set(part_of(mixture, plan.rows(0, 0, 0, 2)).tolist()) != {0, 1}  # the pattern itself


def test_near_shuffling_keeps_a_parts_rows_within_their_window() -> None:
    mixture, plan = make("window", window=5)  # windows of 40 rows: 20 of each part
    rows = plan.rows_at(0, np.arange(mixture.rows))
    for window in range(5):
        here = rows[window * 40 : (window + 1) * 40]
        for part in range(2):
            mine = here[part_of(mixture, here) == part] - mixture.firsts[part]
            assert len(set((mine // 20).tolist())) == 1
            assert mine.tolist() != sorted(mine.tolist())


def test_a_step_of_a_large_mixture_costs_milliseconds() -> None:
    import time

    mixture = Mixture(sizes=(6_000_000, 3_000_000, 1_000_000), weights=(6, 3, 1))
    plan = WindowedPlan(PlanOptions(rows=mixture.rows, global_batch=512, sort=False, mixture=mixture))
    plan.rows(0, 0, 0, 1)
    times = []
    for step in range(15_000, 15_005):
        start = time.perf_counter()
        plan.rows(1, step, 0, 1)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"sizes": (3, 0), "weights": (1, 1)}, "size of a part is 0"),
        ({"sizes": (3, 2), "weights": (1, 0)}, "weight is 0"),
        ({"sizes": (3, 2), "weights": (1,)}, "1 weights for 2 parts"),
        ({"sizes": (), "weights": ()}, "0 weights for 0 parts"),
        ({"sizes": (3, 2), "weights": (1, 1), "stop": "last"}, "stop='last'"),
    ],
)
def test_a_mixture_checks_itself(options: dict[str, Any], found: str) -> None:
    with pytest.raises(OptionError, match=found.replace("'", ".")):
        Mixture(**options)


def test_rows_of_a_plan_are_those_of_its_mixture() -> None:
    mixture = Mixture(sizes=(10, 10), weights=(1, 1))
    with pytest.raises(ValueError, match="20 rows"):
        PlanOptions(rows=19, global_batch=1, mixture=mixture)
    with pytest.raises(ValueError, match="one pass"):
        PlanOptions(rows=20, global_batch=1, mixture=mixture, one_pass=True)
