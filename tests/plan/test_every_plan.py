"""What holds for every kind of plan: which epochs and steps exist, and that blocks only bound memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from ms_prefstream.checks import WORD
from ms_prefstream.errors import OptionError, StateError
from ms_prefstream.plan import (
    BudgetOptions,
    BudgetPlan,
    IndexedPlan,
    PlanOptions,
    Ranks,
    WindowedPlan,
    bin_packing,
    budget,
    packed,
    shuffle,
)
from ms_prefstream.plan.bin_packing import pack_rows
from ms_prefstream.plan.mixture import LARGEST_TOTAL, Mixture, whole_weights
from ms_prefstream.plan.packed import PackedPlan, PackedWindows
from ms_prefstream.plan.state import check_state, make_state
from ms_prefstream.plan.windows import arrange
from tests.helpers import error_of

SIZES = np.arange(40) * 7 % 23 + 1
ANY = PlanOptions(rows=40, global_batch=4, logical_shards=2, window=3, seed=3)
UNSORTED = PlanOptions(rows=40, global_batch=4, logical_shards=2, window=3, seed=3, sort=False)
PARTS = Mixture(sizes=(15, 25), weights=(1, 2))
MIXED = PlanOptions(rows=PARTS.rows, global_batch=4, logical_shards=2, window=3, mixture=PARTS, shuffle="window")
BUDGET = BudgetOptions(rows=40, tokens=48, sequences=1, widths=(6, 12, 24), logical_shards=2, seed=3)

PLANS: dict[str, Any] = {
    "windowed": lambda: WindowedPlan(UNSORTED),
    "indexed": lambda: IndexedPlan(ANY, SIZES),
    "indexed mixture": lambda: IndexedPlan(MIXED, SIZES),
    "packed": lambda: PackedPlan(UNSORTED, SIZES, 40, 5),
    "packed mixture": lambda: PackedPlan(MIXED, SIZES, 40, 5),
    "budget": lambda: BudgetPlan(BUDGET, SIZES),
}


@pytest.mark.parametrize("name", PLANS)
def test_epochs_are_one_word_and_steps_lie_in_the_epoch(name: str) -> None:
    plan = PLANS[name]()
    assert len(plan.rows(WORD, plan.steps_per_epoch - 1, 1, 2))
    for epoch in (-1, WORD + 1, 1.5, None):
        with pytest.raises(OptionError, match=f"epoch is {epoch}.*0..{WORD}"):
            plan.rows(epoch, 0, 0, 1)
    for step in (-1, plan.steps_per_epoch, None):
        with pytest.raises(OptionError, match=rf"step is {step}.*0..{plan.steps_per_epoch - 1}\."):
            plan.rows(0, step, 0, 1)


def test_epochs_windows_and_shards_of_a_plan_without_an_index_are_bounded() -> None:
    for plan in (WindowedPlan(ANY), PackedWindows(ANY, 8, 40, 5)):
        assert plan.shard_rows(WORD, plan.windows_per_epoch - 1, 1).size
        calls: dict[str, Any] = {
            "epoch": lambda plan, wrong: plan.shard_rows(wrong, 0, 0),
            "window": lambda plan, wrong: plan.steps_in(wrong),
            "shard": lambda plan, wrong: plan.shard_rows(0, 0, wrong),
            "step": lambda plan, wrong: plan.locate(wrong),
        }
        limits = {"epoch": WORD, "window": plan.windows_per_epoch - 1, "shard": 1, "step": plan.steps_per_epoch - 1}
        for name, call in calls.items():
            for wrong in (-1, limits[name] + 1, None):
                with pytest.raises(OptionError, match=rf"^{name} is {wrong}.* 0\.\.{limits[name]}\."):
                    call(plan, wrong)


def every_row(plan: Any) -> list[Any]:
    steps = [plan.rows(1, step, 0, 1) for step in range(plan.steps_per_epoch)]
    return [[np.array(rows).tolist() for rows in step] for step in steps]


@pytest.mark.parametrize("name", PLANS)
def test_rows_do_not_depend_on_the_size_of_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = every_row(PLANS[name]())
    monkeypatch.setattr(budget, "_BLOCK", 7)
    monkeypatch.setattr(shuffle, "_BLOCK", 3)
    assert every_row(PLANS[name]()) == whole


@pytest.mark.parametrize("drops", [True, False])
@pytest.mark.parametrize("name", PLANS)
def test_what_an_epoch_leaves_out_and_takes_again_is_counted(
    name: str, drops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_BLOCK", 3)
    for options in (ANY, UNSORTED, MIXED, BUDGET):
        monkeypatch.setitem(vars(options), "drop_remainder", drops)
    plan = PLANS[name]()
    for epoch in (0, 2):
        steps = [plan.rows(epoch, step, 0, 1) for step in range(plan.steps_per_epoch)]
        taken = Counter(
            np.concatenate([np.concatenate([*rows]) if "packed" in name else rows for rows in steps]).tolist()
        )
        assert plan.left_out_and_repeated(epoch) == (SIZES.size - len(taken), taken.total() - len(taken))


def test_the_last_place_of_a_bin_is_not_given_to_two_rows() -> None:
    """After 9 tokens there is one place and 6 tokens of room: a row of 4, not the two of 3 that would fill it."""
    sizes = np.array([9] * 10 + [4, 3, 3])
    bins = pack_rows(sizes, 15, 2)
    assert [sizes[bins.of(number)].tolist() for number in range(3)] == [[9, 4], [9, 3], [9, 3]]


ERRORS: dict[str, tuple[Any, str]] = {
    "fewer rows than a step": (
        lambda: PlanOptions(rows=7, global_batch=8),
        "rows=7 is less than one global batch (global_batch=8), so an epoch would have no step. Use a batch of at most "
        "7 rows over all ranks, or drop_remainder=False, which repeats rows to fill the step.",
    ),
    "unequal shares": (
        lambda: Ranks(4, 0, 8).global_batch(3),
        "batch_size=3 on num_shards=4 makes 12 rows a step, which is not a multiple of logical_shards=8. Use a "
        "batch_size that is a multiple of 2, or fewer logical shards.",
    ),
    "a budget below the largest width": (
        lambda: BudgetOptions(rows=9, tokens=199, sequences=2, widths=(25, 50, 100), logical_shards=3),
        "Bucket: max_tokens times the number of ranks is 199, shared by logical_shards=3, but a row takes 200 tokens "
        "when it is padded to the largest width of 100 columns in each of its 2 sequences. Raise max_tokens until that "
        "product is 600 or more, or lower the task's length.",
    ),
    "a window without a good row": (
        lambda: arrange(np.full(6, -1), np.arange(6), 2),
        "All 6 rows of one window of a logical shard were dropped (row ids 0, 1, 2, 3, 4, …), so no row is left to "
        "stand in for them. Look at the reasons in stream.report; a larger window, fewer logical shards or a length "
        "index (stream.build_index()) lets the run continue without these rows.",
    ),
    "a short window without a good row": (
        lambda: arrange(np.full(2, -1), np.array([7, 5]), 2),
        "All 2 rows of one window of a logical shard were dropped (row ids 7, 5), so no row is left to stand in for "
        "them. Look at the reasons in stream.report; a larger window, fewer logical shards or a length index "
        "(stream.build_index()) lets the run continue without these rows.",
    ),
    "packs that are too few": (
        lambda: PackedPlan(PlanOptions(rows=6, global_batch=4), np.full(6, 9), 20, 3),
        "The 6 usable rows fill 3 packed rows of 20 tokens, less than one global batch (global_batch=4). Use a batch "
        "of at most 3 over all ranks, fewer tokens, or drop_remainder=False, which repeats packed rows to fill the "
        "step.",
    ),
    "rows that fit into no pack": (
        lambda: PackedPlan(PlanOptions(rows=4, global_batch=1), np.array([9, 25, 21, 3]), 20, 3),
        "Pack: 2 rows of the length index have more than tokens=20 tokens (row 1 has 25), so they fit into no pack. "
        "Give tokens=25 or more, or lower the task's length and build the index again.",
    ),
    "more packs than rows": (
        lambda: PackedWindows(PlanOptions(rows=9, global_batch=4), 3, 20, 3),
        "steps_per_epoch=3 of 4 packed rows each (all ranks together) makes 12 packed rows, but the source has only 9 "
        "rows. Give steps_per_epoch=2 or, since several rows share a packed row, less; a length index finds the exact "
        "number.",
    ),
    "weights without parts": (
        lambda: Mixture(sizes=(3, 4), weights=(1,)),
        "1 weights for 2 parts; expected one for each part.",
    ),
    "a part without a usable row": (
        lambda: Mixture(sizes=(2, 1), weights=(1, 1)).over(np.array([True, True, False])),
        "The length index marks all rows of part 1 of the mix (counted from 0) as unusable, so the mix cannot be made. "
        "Leave the part out, or correct its rows.",
    ),
    "another step than its epoch": (
        lambda: check_state({**make_state({"seed": 3}, 7, 5), "epoch": 0}, {"seed": 3}, 5),
        "the state's epoch is 0, but step 7 with 5 steps an epoch is in epoch 1: the state was changed. Use it as "
        "stream.state(step) returned it.",
    ),
    "other settings": (
        lambda: check_state(make_state({"seed": 3, "rows": 1}, 7, 5), {"seed": 4, "rows": True}, 6),
        "the state was saved with other settings, so resuming would repeat or lose rows: steps_per_epoch was 5 and is "
        "6 now; seed was 3 and is 4 now; rows was 1 and is True now. Use the former settings, or start again without "
        "the state.",
    ),
    "a state that lacks numbers": (
        lambda: check_state({"seed": 3, "version": 1}, {"seed": 3}, 5),
        "the state has no plan_version, epoch, step, steps_per_epoch; expected what stream.state(step) returns.",
    ),
    "no state": (
        lambda: check_state([7], {"seed": 3}, 5),
        "a state is a dict as stream.state(step) returns it; found list.",
    ),
    "a step below 0": (
        lambda: check_state({**make_state({}, 7, 5), "step": -1}, {}, 5),
        "the state's step is -1; expected a whole number of finished steps, 0 or more.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_was_found_and_what_to_do(name: str) -> None:
    call, said = ERRORS[name]
    assert error_of(call) == said


def test_a_state_is_checked_and_gives_its_step() -> None:
    for step in (0, 4, 5, 12):
        state = make_state({"seed": 3}, step, 5)
        assert (state["epoch"], state["step"], state["steps_per_epoch"]) == (step // 5, step, 5)
        assert check_state(state, {"seed": 3}, 5) == step
    for wrong in (2**53, True, "7", 1.0, None):
        with pytest.raises(StateError, match="the state's step is"):
            check_state({**make_state({}, 7, 5), "step": wrong}, {}, 5)
    for wrong in (np.arange(2), "1", None):
        with pytest.raises(StateError, match="the state's epoch is"):
            check_state({**make_state({}, 7, 5), "epoch": wrong}, {}, 5)


def test_numbers_of_a_mixture_become_plain_ones() -> None:
    mixture = Mixture(sizes=(np.int64(3), np.int32(4)), weights=(np.uint8(1), np.int64(2)))
    assert [type(number) for number in (*mixture.sizes, *mixture.weights)] == [int] * 4


def test_few_rows_get_the_better_of_two_packings(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, better = np.random.default_rng(1), 0
    for _ in range(60):
        sizes = numbers.integers(20, 50, 40)
        monkeypatch.setattr(bin_packing, "_FEW", sizes.size)
        both = pack_rows(sizes, 100, 6).count
        monkeypatch.setattr(bin_packing, "_FEW", sizes.size - 1)
        first = pack_rows(sizes, 100, 6).count
        assert both <= first
        better += both < first
    assert better


def test_weights_are_simple_fractions_up_to_a_million() -> None:
    assert whole_weights([1 / 999_983, 0.5]) == (2, 999_983)
    assert abs(sum(whole_weights([1 / 1_000_003, 0.5])) - LARGEST_TOTAL) <= 1
