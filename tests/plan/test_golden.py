"""Today's order of rows. It may only change together with PLAN_VERSION, since saved states rely on it.

Run `python -m tests.plan.test_golden` in the repository to write the file anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ms_prefstream.plan import (
    PLAN_VERSION,
    BudgetOptions,
    BudgetPlan,
    IndexedPlan,
    KeyedPermutation,
    PlanOptions,
    WindowedPlan,
)
from ms_prefstream.plan.bin_packing import _Histogram, exactly, pack_rows
from ms_prefstream.plan.mixture import Mixture
from ms_prefstream.plan.packed import PackedPlan
from ms_prefstream.plan.shuffle import SeedUse, epoch_sequence, use_sequence

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


def drawn_sizes(draw: random.Random, capacity: int) -> NDArray[np.int64]:
    """A few sizes, most of them short, long or of any length."""
    low, high = draw.choice([(1, capacity), (1, -(-capacity // 3)), (-(-capacity // 3), capacity)])
    return np.array([low + int(draw.random() * (high - low + 1)) for _ in range(1 + int(draw.random() * 40))])


def some_bins(draw: random.Random) -> Iterator[Any]:
    """Bins of drawn sizes, and exactly as many as are wanted of them."""
    for _ in range(300):
        capacity, most = 3 + int(draw.random() * 30), 1 + int(draw.random() * 6)
        sizes = drawn_sizes(draw, capacity)
        bins = pack_rows(sizes, capacity, most)
        found = _Histogram(np.bincount(sizes), capacity).fill(most)  # small cases take what best fit finds instead
        fitted = exactly(bins, 1 + int(draw.random() * 2 * bins.count), use_sequence(3, 1, SeedUse.MADE_TO_FIT))
        yield [*map(np.ndarray.tolist, (bins.rows, bins.starts, *found, fitted.bins.rows, fitted.bins.starts))]


def some_plans(draw: random.Random) -> Iterator[Any]:
    """The rows of two epochs of each kind of plan, with drawn options."""
    for number in range(60):
        sizes = drawn_sizes(draw, 30)
        sizes[np.array([draw.random() for _ in sizes]) < 0.1] = -1
        sizes[: 1 + sizes.size // 3] = 7  # usable ones in every part
        shards, step_rows = draw.choice([(1, 1), (1, 3), (2, 2), (3, 3), (2, 4)])
        cut = 1 + sizes.size // 3
        parts = (min(cut, sizes.size), sizes.size - cut) if sizes.size > 3 * cut // 2 else (sizes.size,)
        sizes[-1] = 9
        mixture = Mixture(sizes=parts, weights=draw.choice([(1, 1), (3, 2), (1, 5)])[: len(parts)], stop="all")
        mixed = draw.random() < 0.4 and min(parts) > 0
        shuffle = draw.choice([True, "window", False])
        options = PlanOptions(
            rows=mixture.rows if mixed else sizes.size,
            global_batch=step_rows,
            logical_shards=shards,
            window=draw.choice([1, 2, 3]),
            seed=int(draw.random() * 2**32),
            shuffle=shuffle,
            drop_remainder=draw.choice([False, "mask"]),
            sort=draw.random() < 0.6,
            order_noise=draw.choice([0.0, 0.2]) if shuffle is False else 0.0,
            mixture=mixture if mixed else None,
        )
        order = np.array([int(draw.random() * 5) for _ in sizes]) if shuffle is False and number % 2 else None
        plans: list[Any] = [PackedPlan(options, sizes, 40, 3, order), IndexedPlan(options, sizes, order)]
        budget = BudgetOptions(
            rows=sizes.size,
            tokens=shards * draw.choice([30, 61, 90, 150]),
            sequences=1,
            widths=(8, 16, 30),
            logical_shards=shards,
            seed=options.seed,
            drop_remainder=draw.random() < 0.3 and sizes.size > 30,
            longest_first=draw.random() < 0.5,
        )
        plans.append(BudgetPlan(budget, sizes))
        for plan in plans:
            yield [plan.steps_per_epoch, plan.repeats_per_epoch, plan.remainder_per_epoch]
            for epoch, step in itertools.product(range(2), range(plan.steps_per_epoch)):
                yield [np.array(rows).tolist() for rows in plan.rows(epoch, step, shards - 1, shards)]


SWEEPS: dict[str, Callable[[random.Random], Iterator[Any]]] = {"bins": some_bins, "plans": some_plans}


def sweep(name: str) -> str:
    """SHA-256 of what many small cases give: the choices that no law prescribes, but that saved states rely on."""
    return hashlib.sha256(json.dumps([*SWEEPS[name](random.Random(7))]).encode()).hexdigest()


def write() -> None:
    lines = [f'{{"sweeps": {json.dumps({name: sweep(name) for name in SWEEPS})},']
    lines += [f'"plan_version": {PLAN_VERSION},', f'"large": {json.dumps(large_rows())},', '"orders": {']
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


@pytest.mark.parametrize("name", SWEEPS)
def test_small_cases_are_planned_as_they_were(golden: dict[str, Any], name: str) -> None:
    assert sweep(name) == golden["sweeps"][name]


if __name__ == "__main__":
    write()
