"""What the tests of the plans share: small settings, a plan followed rank by rank, and the laws both plans keep."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ms_prefstream.plan import IndexedPlan, PlanOptions, Ranks, WindowedPlan

Rows = NDArray[np.int64]


class Setting(NamedTuple):
    """One drawn case: options, the key length of every row (-1 where bad), and an epoch."""

    options: PlanOptions
    lengths: Rows
    epoch: int


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@st.composite
def settings_of_plans(draw: st.DrawFn, *, bad: bool = False, sorted_only: bool = False) -> Setting:
    shards = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    batch = shards * draw(st.integers(1, 4))
    shuffle = draw(st.sampled_from([True, "window"] if sorted_only else [True, "window", False]))
    sort = True if sorted_only else draw(st.booleans())
    drop = draw(st.booleans())
    options = PlanOptions(
        rows=draw(st.integers(batch if drop else 1, batch * 12 + 7)),
        global_batch=batch,
        logical_shards=shards,
        window=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 2**32 - 1)),
        shuffle=shuffle,
        drop_remainder=drop,
        sort=sort,
        longest_first=draw(st.booleans()) if sort and shuffle is not False else False,
    )
    numbers = np.random.default_rng(draw(st.integers(0, 2**20)))
    lengths = numbers.integers(1, 12, options.rows)  # few values: ties are the rule
    if bad:
        lengths[numbers.random(options.rows) < draw(st.sampled_from([0.1, 0.5]))] = -1
    return Setting(options, lengths, draw(st.integers(0, 3)))


def planned(
    plan: WindowedPlan | IndexedPlan,
    lengths: Rows,
    epoch: int,
    step: int,
    rank: int,
    world: int,
    resolved: bool = False,
) -> Rows:
    """The row ids of a rank's step, found the way a stream finds them; `resolved` names stand-ins."""
    known = plan.rows(epoch, step, rank, world)
    if known is not None:
        return known
    assert isinstance(plan, WindowedPlan)
    window, inside = plan.locate(step)
    batch = plan.batch_order(epoch, window)[inside]
    parts = []
    for shard in Ranks(world, rank, plan.options.logical_shards).shards:
        rows = plan.shard_rows(epoch, window, shard)
        arrangement = plan.arrange(lengths[rows], rows)
        slots = arrangement.batches[batch]
        parts.append(rows[arrangement.filled_by[slots]] if resolved else rows[slots])
    return np.concatenate(parts)


def global_step(plan: WindowedPlan | IndexedPlan, lengths: Rows, epoch: int, step: int, world: int) -> Counter[int]:
    """The rows of one step over all ranks, as a multiset; every rank must hold the same number of them."""
    share = plan.options.global_batch // world
    rows: Counter[int] = Counter()
    for rank in range(world):
        mine = planned(plan, lengths, epoch, step, rank, world)
        assert mine.dtype == np.int64
        assert mine.shape == (share,)
        rows.update(mine.tolist())
    return rows


def assert_epoch_conserves_rows(
    plan: WindowedPlan | IndexedPlan, lengths: Rows, epoch: int, allowed: Rows, world: int
) -> None:
    """Each of the allowed rows stands in the epoch exactly once, up to the remainder or the repeats that are stated."""
    seen: Counter[int] = Counter()
    for step in range(plan.steps_per_epoch):
        seen.update(global_step(plan, lengths, epoch, step, world))
    size = plan.options.global_batch
    assert set(seen) <= set(allowed.tolist())
    assert sum(seen.values()) == plan.steps_per_epoch * size
    if plan.options.drop_remainder:
        assert max(seen.values()) == 1
        assert len(seen) == len(allowed) - plan.remainder_per_epoch
        assert plan.remainder_per_epoch == len(allowed) % size
        assert plan.repeats_per_epoch == 0
    else:
        assert set(seen) == set(allowed.tolist())
        assert sum(seen.values()) - len(seen) == plan.repeats_per_epoch == -len(allowed) % size
        assert max(seen.values()) - min(seen.values()) <= 1
        assert plan.remainder_per_epoch == 0


def assert_same_rows_for_every_world(
    plan: WindowedPlan | IndexedPlan, lengths: Rows, epoch: int, worlds: list[int]
) -> None:
    """Step by step, in exact order, each world's ranks hold together what one rank holds alone."""
    for step in range(plan.steps_per_epoch):
        alone = global_step(plan, lengths, epoch, step, 1)
        for world in worlds:
            assert global_step(plan, lengths, epoch, step, world) == alone, (step, world)
