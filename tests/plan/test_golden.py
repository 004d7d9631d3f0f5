"""Today's order of rows. It may only change together with PLAN_VERSION, since saved states rely on it.

Run `python -m tests.plan.test_golden` in the repository to write the file anew.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from ms_prefstream.plan import PLAN_VERSION, IndexedPlan, KeyedPermutation, PlanOptions, WindowedPlan
from ms_prefstream.plan.shuffle import epoch_sequence

from .laws import planned

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "plan_order.json"

# name: (kind of plan, world, options)
SETTINGS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "windowed": ("windowed", 1, {"rows": 61, "global_batch": 4, "window": 5}),
    "windowed, 4 shards on 2 ranks": (
        "windowed",
        2,
        {"rows": 70, "global_batch": 8, "logical_shards": 4, "window": 3, "seed": 42},
    ),
    "windowed, repeats, longest first": (
        "windowed",
        2,
        {
            "rows": 45,
            "global_batch": 6,
            "logical_shards": 2,
            "window": 4,
            "seed": 7,
            "drop_remainder": False,
            "longest_first": True,
        },
    ),
    "windowed, near": (
        "windowed",
        1,
        {"rows": 67, "global_batch": 4, "logical_shards": 2, "window": 3, "seed": 1, "shuffle": "window"},
    ),
    "unsorted": (
        "windowed",
        2,
        {"rows": 50, "global_batch": 4, "logical_shards": 2, "window": 8, "seed": 4294967295, "sort": False},
    ),
    "source order": (
        "windowed",
        2,
        {"rows": 30, "global_batch": 4, "logical_shards": 2, "window": 2, "shuffle": False, "drop_remainder": False},
    ),
    "indexed": ("indexed", 3, {"rows": 80, "global_batch": 6, "window": 4, "seed": 42}),
    "indexed, near, repeats": (
        "indexed",
        1,
        {"rows": 60, "global_batch": 4, "window": 3, "seed": 5, "shuffle": "window", "drop_remainder": False},
    ),
}
LARGE = 2**48 - 59


def order_of(name: str) -> list[list[list[list[int]]]]:
    """Epochs 0 and 1 -> steps -> ranks -> row ids, stand-ins resolved. Every 13th row is bad."""
    kind, world, options = SETTINGS[name]
    plan_options = PlanOptions(**options)
    rows = np.arange(plan_options.rows)
    lengths = np.where(rows % 13 == 5, -1, rows * 37 % 101 // 4 + 5)
    plan = WindowedPlan(plan_options) if kind == "windowed" else IndexedPlan(plan_options, lengths.astype(np.int32))
    return [
        [
            [planned(plan, lengths, epoch, step, rank, world, resolved=True).tolist() for rank in range(world)]
            for step in range(plan.steps_per_epoch)
        ]
        for epoch in range(2)
    ]


def large_rows() -> list[int]:
    return KeyedPermutation(LARGE, epoch_sequence(3, 2)).row_of(np.arange(6)).tolist()


def write() -> None:
    lines = [f'{{"plan_version": {PLAN_VERSION},', f'"large": {json.dumps(large_rows())},', '"orders": {']
    orders = [f"{json.dumps(name)}: {json.dumps(order_of(name), separators=(',', ':'))}" for name in SETTINGS]
    GOLDEN.write_text("\n".join([*lines, ",\n".join(orders), "}}"]) + "\n")


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found


def test_the_file_is_of_this_version(golden: dict[str, Any]) -> None:
    assert golden["plan_version"] == PLAN_VERSION
    assert set(golden["orders"]) == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_order_is_the_one_that_was_saved(golden: dict[str, Any], name: str) -> None:
    assert order_of(name) == golden["orders"][name]


def test_large_permutations_are_the_ones_that_were_saved(golden: dict[str, Any]) -> None:
    assert large_rows() == golden["large"]


if __name__ == "__main__":
    write()
