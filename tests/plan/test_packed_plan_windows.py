"""Packs without a length index: windows in proportion to their steps, exactly as many packs as the steps take."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.errors import OptionError
from ms_prefstream.plan import PlanOptions
from ms_prefstream.plan.mixture import Mixture
from ms_prefstream.plan.packed import PackedWindows, steps_for


def plan_of(rows, steps, *, capacity=64, most=5, **options):
    options = {"global_batch": 4, "logical_shards": 2, "window": 3, "seed": 3} | options
    return PackedWindows(PlanOptions(rows=rows, **options), steps, capacity, most)


def rows_of_window(plan, epoch, window):
    shards = [plan.shard_rows(epoch, window, shard) for shard in range(plan.options.logical_shards)]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    return np.concatenate(shards)


@st.composite
def plans(draw):
    shards = draw(st.sampled_from([1, 2, 3]))
    batch = shards * draw(st.integers(1, 3))
    steps = draw(st.integers(1, 20))
    one_pass = draw(st.booleans())
    return {
        "rows": draw(st.integers(steps * batch, steps * batch * 5)),
        "steps": steps,
        "global_batch": batch,
        "logical_shards": shards,
        "window": draw(st.integers(1, 6)),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "shuffle": draw(st.sampled_from([True, False] if one_pass else [True, "window", False])),
        "one_pass": one_pass,
    }


@given(plans(), st.integers(0, 3))
def test_every_row_of_an_epoch_belongs_to_one_shard_of_one_window(options, epoch):
    plan = plan_of(**options)
    windows = [rows_of_window(plan, epoch, window) for window in range(plan.windows_per_epoch)]
    assert Counter(np.concatenate(windows).tolist()) == Counter(range(options["rows"]))
    assert sum(map(plan.steps_in, range(plan.windows_per_epoch))) == options["steps"]
    for window, rows in enumerate(windows):
        share = options["rows"] * plan.steps_in(window) / options["steps"]
        assert abs(len(rows) - share) <= 1
        assert len(rows) >= plan.steps_in(window) * options["global_batch"]
        if options["one_pass"]:
            assert sorted(rows.tolist()) == list(range(plan.window_start(window), plan.window_start(window + 1)))


@given(plans(), st.integers(0, 3), st.integers(0, 2**20))
@settings(settings.get_profile("costly"))
def test_every_shard_of_a_window_fills_its_steps(options, epoch, seed):
    plan = plan_of(**options)
    sizes = np.random.default_rng(seed).integers(4, 60, options["rows"])
    for window in range(plan.windows_per_epoch):
        for shard in range(options["logical_shards"]):
            mine = sizes[plan.shard_rows(epoch, window, shard)]
            bins, made, left_out, repeats = plan.pack(mine, epoch, window, shard)
            wanted = plan.steps_in(window) * options["global_batch"] // options["logical_shards"]
            counts = Counter(bins.rows.tolist())
            assert bins.count == wanted
            assert len(counts) + left_out == mine.size
            assert repeats == sum(counts.values()) - len(counts) == 0  # as many rows as packs, at least
            assert (left_out > 0) == (made > wanted)
            assert all(mine[bins.of(n)].sum() <= 64 and bins.of(n).size <= 5 for n in range(wanted))


def test_a_window_is_a_pure_function():
    options = {"rows": 300, "steps": 20}
    sizes = np.random.default_rng(0).integers(4, 60, 300)

    def packs(plan, epoch, window, shard):
        rows = plan.shard_rows(epoch, window, shard)
        bins = plan.pack(sizes[rows], epoch, window, shard).bins
        return [rows[bins.of(number)].tolist() for number in range(bins.count)]

    places = [(epoch, window, shard) for epoch in range(2) for window in range(7) for shard in range(2)]
    one, other = plan_of(**options), plan_of(**options)
    wanted = {place: packs(one, *place) for place in places}
    assert {place: packs(other, *place) for place in reversed(places)} == wanted
    assert len({str(found) for found in wanted.values()}) == len(places)


def test_each_epoch_leaves_out_other_rows():
    plan = plan_of(80, 4, shuffle=False, window=4, logical_shards=1)  # 16 packs of 4 rows hold 64 of 80
    sizes = np.full(80, 16)
    left_out = [set(range(80)) - set(plan.pack(sizes, epoch, 0, 0).bins.rows.tolist()) for epoch in range(3)]
    assert [len(rows) for rows in left_out] == [16] * 3
    assert left_out[0] != left_out[1] != left_out[2]


def test_shards_leave_out_rows_of_their_own():
    plan = plan_of(160, 4, window=4)
    kept = [set(plan.pack(np.full(80, 16), 0, 0, shard).bins.rows.tolist()) for shard in range(2)]
    assert len(kept[0]) == len(kept[1]) == 32
    assert kept[0] != kept[1]


def test_packs_of_a_window_change_places_unless_the_order_is_the_source_s():
    # Packs are made in the order of their first rows, so that those with many rows would always come first.
    for shuffle in (True, "window", False):
        bins = plan_of(64, 4, window=4, shuffle=shuffle, logical_shards=1).pack(np.full(64, 16), 0, 0, 0).bins
        first = bins.rows[bins.starts[:-1]].tolist()
        assert (first == sorted(first)) == (shuffle is False)


def test_too_few_packs_are_split_and_no_row_comes_twice():
    plan = plan_of(30, 5, window=5, logical_shards=1)  # 20 packs for 30 rows that would fit into 8
    bins, made, left_out, repeats = plan.pack(np.full(30, 16), 0, 0, 0)
    assert (made, left_out, repeats) == (8, 0, 0)
    assert sorted(bins.rows.tolist()) == list(range(30))
    assert max(np.diff(bins.starts)) == 2


def test_rows_come_again_only_where_there_are_fewer_than_packs():
    plan = plan_of(30, 5, window=5, logical_shards=1)
    packs = plan.pack(np.full(17, 16), 0, 0, 0)  # 13 rows were bad
    assert (packs.bins.count, packs.left_out, packs.repeats) == (20, 0, 3)


def test_without_shuffling_steps_follow_the_source():
    plan = plan_of(12, 3, shuffle=False, window=1, logical_shards=1, global_batch=2)
    assert [rows_of_window(plan, 5, window).tolist() for window in range(3)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    bins = plan.pack(np.full(4, 30), 5, 1, 0).bins
    assert [bins.of(number).tolist() for number in range(2)] == [[0, 2], [1, 3]]


def test_window_shuffling_keeps_rows_near_their_place_and_moves_windows():
    plan = plan_of(240, 12, shuffle="window")
    windows = [sorted(rows_of_window(plan, 1, window).tolist()) for window in range(4)]
    assert all(rows[-1] - rows[0] == 59 for rows in windows)
    assert windows != sorted(windows)
    assert rows_of_window(plan, 1, 0).tolist() != windows[0]


@pytest.mark.parametrize("shuffle", [True, "window", False])
def test_a_mixture_keeps_its_shares_in_every_window(shuffle):
    mixture = Mixture(sizes=(100, 400), weights=(1, 2), stop="first")
    plan = plan_of(mixture.rows, 12, mixture=mixture, shuffle=shuffle)
    for window in range(plan.windows_per_epoch):
        rows = rows_of_window(plan, 1, window)
        assert abs(np.mean(rows < 100) - 1 / 3) < 0.05


@pytest.mark.parametrize(("window", "shards"), [(64, 1), (64, 4), (16, 4)])
def test_the_estimated_number_of_steps_holds_nearly_all_rows(window, shards):
    sizes = np.random.default_rng(0).integers(100, 512, 40_000)
    options = PlanOptions(rows=sizes.size, global_batch=8, logical_shards=shards, window=window)
    steps = steps_for(np.random.default_rng(1).choice(sizes, 2_000), options, 1024, 63)
    plan = PackedWindows(options, steps, 1024, 63)
    packs = [
        plan.pack(sizes[plan.shard_rows(0, window, shard)], 0, window, shard)
        for window in range(plan.windows_per_epoch)
        for shard in range(shards)
    ]
    assert sum(found.left_out for found in packs) < 0.005 * sizes.size
    assert steps * 8 < 1.11 * sum(found.made for found in packs)


def test_unusable_rows_need_no_steps():
    options = PlanOptions(rows=1000, global_batch=5, window=10_000)
    assert steps_for(np.array([32, -1] * 50), options, 64, 63) == 51  # 500 usable rows, two a pack, and a little more
    assert steps_for(np.array([-1, 0]), options, 64, 63) == 1


@pytest.mark.parametrize(
    ("steps", "options", "words"),
    [
        (0, {}, "steps_per_epoch is 0"),
        (2.5, {}, "steps_per_epoch is 2.5"),
        (
            11,
            {},
            "11 of 4 packed rows each .* makes 44 packed rows, but the source has only 40 rows.* steps_per_epoch=10 or",
        ),
        (5, {"longest_first": True}, "longest_first=True has no meaning in packs"),
    ],
)
def test_what_cannot_be_planned_is_refused(steps, options, words):
    with pytest.raises(OptionError, match=words):
        plan_of(40, steps, **options)


def test_steps_that_do_not_exist_are_refused():
    with pytest.raises(OptionError, match="step is 7"):
        plan_of(40, 7).locate(7)
