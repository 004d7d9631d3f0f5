"""What holds for every kind of plan: which epochs and steps exist, and that blocks only bound memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ms_prefstream.checks import WORD
from ms_prefstream.errors import OptionError
from ms_prefstream.plan import BudgetOptions, BudgetPlan, IndexedPlan, PlanOptions, WindowedPlan, budget, shuffle
from ms_prefstream.plan.bin_packing import pack_rows
from ms_prefstream.plan.mixture import Mixture
from ms_prefstream.plan.packed import PackedPlan, PackedWindows

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


def test_the_last_place_of_a_bin_is_not_given_to_two_rows() -> None:
    """After 9 tokens there is one place and 6 tokens of room: a row of 4, not the two of 3 that would fill it."""
    sizes = np.array([9] * 10 + [4, 3, 3])
    bins = pack_rows(sizes, 15, 2)
    assert [sizes[bins.of(number)].tolist() for number in range(3)] == [[9, 4], [9, 3], [9, 3]]
