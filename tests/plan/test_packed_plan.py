"""Packs with a length index: exact steps, the same on all ranks and in all epochs, and no row lost between them."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.errors import NoUsableRowsError, OptionError
from ms_prefstream.plan import PlanOptions
from ms_prefstream.plan.mixture import Mixture
from ms_prefstream.plan.packed import PackedPlan, row_sizes


def plan_of(sizes, *, capacity=64, most=5, **options):
    sizes = np.asarray(sizes)
    options = {"rows": sizes.size, "global_batch": 2, "seed": 3} | options
    return PackedPlan(PlanOptions(**options), sizes, capacity, most)


def packs_of_epoch(plan, epoch, world=1):
    """Each step's packs over all ranks, in the order of one rank's: pack r of a step belongs to rank r % world."""
    steps = []
    for step in range(plan.steps_per_epoch):
        shares = [plan.rows(epoch, step, rank, world) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        steps.append([pack.tolist() for together in zip(*shares, strict=True) for pack in together])
    return steps


def rows_in(steps):
    return Counter(row for packs in steps for pack in packs for row in pack)


def flat_rows(plan, epoch, step):
    return np.concatenate(plan.rows(epoch, step, 0, 1)).tolist()


@st.composite
def plans(draw):
    batch = draw(st.sampled_from([1, 2, 4, 6]))
    rows = draw(st.integers(5 * batch, 120))
    numbers = np.random.default_rng(draw(st.integers(0, 2**20)))
    sizes = numbers.integers(4, 60, rows)
    sizes[numbers.random(rows) < draw(st.sampled_from([0.0, 0.2]))] = -1
    sizes[:batch] = 60  # so that there are packs for a step
    return sizes, {
        "global_batch": batch,
        "seed": draw(st.integers(0, 2**32 - 1)),
        "shuffle": draw(st.sampled_from([True, "window", False])),
        "drop_remainder": draw(st.booleans()),
        "window": draw(st.integers(1, 5)),
    }


@given(plans(), st.integers(0, 4))
def test_an_epoch_holds_every_usable_row_once_up_to_what_is_stated(case, epoch):
    sizes, options = case
    plan = plan_of(sizes, **options)
    steps = packs_of_epoch(plan, epoch)
    rows = rows_in(steps)
    usable = set(np.flatnonzero(sizes > 0).tolist())
    packs = Counter(tuple(pack) for step in steps for pack in step)
    assert all(len(step) == options["global_batch"] for step in steps)
    assert set(rows) <= usable
    assert all(sizes[list(pack)].sum() <= 64 and len(pack) <= 5 for pack in packs)
    if options["drop_remainder"]:
        assert max(rows.values()) == 1
        assert plan.packs_per_epoch - len(packs) == plan.packs_per_epoch % options["global_batch"]
    else:
        assert set(rows) == usable
        assert sum(packs.values()) - len(packs) == -plan.packs_per_epoch % options["global_batch"]


@given(plans(), st.integers(0, 3))
@settings(settings.get_profile("costly"))
def test_every_number_of_ranks_shares_the_same_packs_of_every_step(case, epoch):
    sizes, options = case
    plan = plan_of(sizes, **options)
    alone = packs_of_epoch(plan, epoch)
    for world in range(2, options["global_batch"] + 1):
        if options["global_batch"] % world == 0:
            assert packs_of_epoch(plan, epoch, world) == alone


@given(plans())
@settings(settings.get_profile("costly"))
def test_a_step_is_a_pure_function(case):
    sizes, options = case
    forwards, backwards = plan_of(sizes, **options), plan_of(sizes, **options)
    steps = [(epoch, step) for epoch in range(3) for step in range(forwards.steps_per_epoch)]
    wanted = {at: flat_rows(forwards, *at) for at in steps}
    assert {at: flat_rows(backwards, *at) for at in reversed(steps)} == wanted


def test_epochs_have_the_same_packs_in_another_order_and_leave_out_others():
    sizes = np.random.default_rng(0).integers(4, 60, 200)
    plan = plan_of(sizes, global_batch=8)
    assert plan.packs_per_epoch % 8
    epochs = [[tuple(pack) for step in packs_of_epoch(plan, epoch) for pack in step] for epoch in range(3)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) != sorted(epochs[1])
    assert len(set(epochs[0]) | set(epochs[1]) | set(epochs[2])) <= plan.packs_per_epoch


def test_another_seed_gives_other_packs():
    sizes = np.full(60, 20)
    one, other = plan_of(sizes, seed=1), plan_of(sizes, seed=2)
    first, second = ({tuple(plan._packs(0).bins.of(n)) for n in range(20)} for plan in (one, other))
    assert first != second


def test_without_shuffling_packs_follow_the_source_block_by_block(monkeypatch):
    monkeypatch.setattr("ms_prefstream.plan.packed._BLOCK_IN_PLACE", 4)
    plan = plan_of([30, 30, 30, 30, 60, 30, 30], shuffle=False)
    assert packs_of_epoch(plan, 0) == [[[0, 2], [1, 3]], [[4], [5, 6]]] == packs_of_epoch(plan, 1)


def test_window_shuffling_keeps_rows_near_their_place(monkeypatch):
    monkeypatch.setattr("ms_prefstream.plan.packed._BLOCK_IN_PLACE", 16)
    plan = plan_of(np.full(160, 16), shuffle="window", window=2, global_batch=2)  # windows of 4 packs of 4 rows
    for step in range(0, plan.steps_per_epoch, 2):
        window = np.concatenate([flat_rows(plan, 1, step + inside) for inside in range(2)])
        assert window.max() - window.min() == 15
    assert flat_rows(plan, 1, 0) != flat_rows(plan, 0, 0)


def test_rows_are_packed_in_blocks_to_bound_the_memory(monkeypatch):
    sizes = np.random.default_rng(0).integers(4, 60, 300)
    monkeypatch.setattr("ms_prefstream.plan.packed._BLOCK", 64)
    plan = plan_of(sizes, drop_remainder=False)
    assert set(rows_in(packs_of_epoch(plan, 0))) == set(range(300))


def test_what_is_left_out_or_repeated_is_stated_in_rows():
    sizes = np.full(70, 16)  # 4 rows a pack: 18 packs
    assert plan_of(sizes, global_batch=4).remainder_per_epoch == round(70 / 18 * 2)
    assert plan_of(sizes, global_batch=4).repeats_per_epoch == 0
    assert plan_of(sizes, global_batch=4, drop_remainder=False).repeats_per_epoch == round(70 / 18 * 2)
    assert plan_of(sizes, global_batch=4, drop_remainder=False).remainder_per_epoch == 0


@pytest.mark.parametrize("stop", ["first", "all"])
@pytest.mark.parametrize("shuffle", [True, "window", False])
def test_a_mixture_keeps_its_steps_although_each_epoch_has_other_rows(stop, shuffle):
    numbers = np.random.default_rng(0)
    sizes = numbers.integers(4, 60, 240)
    sizes[numbers.random(240) < 0.1] = -1
    mixture = Mixture(sizes=(60, 180), weights=(1, 2), stop=stop)
    plan = plan_of(sizes, rows=mixture.rows, mixture=mixture, shuffle=shuffle, drop_remainder=False)
    epochs = [packs_of_epoch(plan, epoch) for epoch in range(3)]
    assert [len(steps) for steps in epochs] == [plan.steps_per_epoch] * 3
    for steps in epochs:
        rows = rows_in(steps)
        assert all((sizes[row] > 0) for row in rows)
        first = sum(count for row, count in rows.items() if row < 60)
        assert abs(first / sum(rows.values()) - 1 / 3) < 0.05
    assert (epochs[0] != epochs[1]) == bool(shuffle)
    if stop == "first":  # it comes to two thirds of the second part's rows only
        assert (set(rows_in(epochs[0])) != set(rows_in(epochs[1]))) == bool(shuffle)
    again = plan_of(sizes, rows=mixture.rows, mixture=mixture, shuffle=shuffle, drop_remainder=False)
    assert [packs_of_epoch(again, epoch) for epoch in (2, 1, 0)] == epochs[::-1]


def test_sizes_from_an_index():
    lengths = np.array([[3, 5], [0, 0], [65_535, 2]], np.uint16)
    assert row_sizes(lengths, pairs=True).tolist() == [8, -1, 65_537]
    assert row_sizes(lengths, pairs=False).tolist() == [5, -1, 2]
    assert row_sizes(lengths, pairs=True).dtype == row_sizes(lengths, pairs=False).dtype == np.int32


def test_a_step_of_a_million_rows_is_found_at_once_and_takes_five_bytes_a_row():
    sizes = np.random.default_rng(0).integers(180, 700, 1_000_000).astype(np.int32)
    plan = plan_of(sizes, capacity=1024, most=63, global_batch=64)
    held = sum(array.nbytes for array in (plan._packs(0).bins.rows, plan._packs(0).bins.starts))
    assert held < 6 * sizes.size
    spent = []
    for epoch in range(7):
        begun = time.perf_counter()
        plan.rows(epoch, 4000, 3, 8)
        spent.append(time.perf_counter() - begun)
    assert sorted(spent)[3] < 0.01


@pytest.mark.parametrize(
    ("sizes", "options", "error", "words"),
    [
        ([-1] * 8, {}, NoUsableRowsError, "all 8 rows as unusable"),
        ([8] * 8, {"rows": 9}, OptionError, "8 rows, the source 9"),
        ([8, 65, 70], {}, OptionError, "2 rows .* tokens=64 .*row 2 has 70.* Give tokens=70"),
        ([8, 8, 8, 8], {}, OptionError, "4 usable rows fill 1 packed rows of 64 tokens"),
        ([60] * 8, {"longest_first": True}, OptionError, "longest_first=True has no meaning in packs"),
    ],
)
def test_what_cannot_be_planned_is_refused(sizes, options, error, words):
    with pytest.raises(error, match=words):
        plan_of(sizes, **options)


def test_a_mix_with_a_part_without_usable_rows_is_refused():
    mixture = Mixture(sizes=(4, 4), weights=(1, 1))
    with pytest.raises(NoUsableRowsError, match="all rows of part 1 of the mix"):
        plan_of([20] * 4 + [-1] * 4, rows=mixture.rows, mixture=mixture)


def test_steps_and_ranks_that_do_not_exist_are_refused():
    plan = plan_of([60] * 8)
    with pytest.raises(OptionError, match="step is 4"):
        plan.rows(0, 4, 0, 1)
    with pytest.raises(OptionError, match="num_shards=3 does not divide"):
        plan.rows(0, 0, 0, 3)
