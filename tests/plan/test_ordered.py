"""Epochs in an order: sorted by what an index holds, moved by at most the noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ms_prefstream.plan import IndexedPlan, PackedPlan, PlanOptions
from ms_prefstream.plan.mixture import Mixture
from ms_prefstream.plan.shuffle import moved

SEEDS = st.integers(0, 2**32 - 1)


def epoch_of(plan: Any, epoch: int, world: int = 1) -> NDArray[np.int64]:
    """The rows of an epoch, step by step; of each step in the order of the global batch."""
    ranks = range(world)
    steps = [
        np.stack([plan.rows(epoch, step, rank, world) for rank in ranks], axis=1).reshape(-1)  # dealt out by stride
        for step in range(plan.steps_per_epoch)
    ]
    return np.concatenate(steps)


@given(count=st.integers(1, 400), share=st.floats(0, 1), seed=SEEDS, epoch=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_items_are_permuted_and_move_by_at_most_their_share(count: int, share: float, seed: int, epoch: int) -> None:
    places = np.arange(count)
    found = moved(places, count, share, seed, epoch)
    assert sorted(found.tolist()) == places.tolist()
    assert np.abs(found - places).max() <= share * count
    some = places[seed % count :: 3]
    assert moved(some, count, share, seed, epoch).tolist() == found[some].tolist()


def test_noise_differs_by_epoch_and_seed_and_reaches_its_bound() -> None:
    places = np.arange(1000)
    found = [moved(places, 1000, 0.1, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({one.tobytes() for one in found}) == 4
    assert all(70 < np.abs(one - places).max() <= 100 for one in found)
    assert moved(places, 1000, 0.0, 0, 0) is places
    everywhere = moved(places, 1000, 1.0, 0, 0)
    assert np.abs(everywhere - places).max() > 800
    assert {int(moved(places[:3], 3, 1.0, seed, 0)[-1]) for seed in range(20)} == {0, 1, 2}  # one stretch


@given(
    values=st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 9), st.booleans()), min_size=1, max_size=60),
    batch=st.sampled_from([1, 2, 3, 8]),
    noise=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=SEEDS,
    drop=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_an_epoch_is_the_usable_rows_in_order(
    values: list[tuple[int, int, bool]], batch: int, noise: float, seed: int, drop: bool
) -> None:
    order, lengths = np.array([one[0] for one in values], float), np.array([one[1] for one in values], np.int16)
    lengths[[not one[2] for one in values]] = -1
    usable = np.flatnonzero(lengths >= 0)
    if len(usable) < (batch if drop else 1):
        return
    drop = drop and len(values) >= batch
    options = PlanOptions(
        rows=len(values), global_batch=batch, seed=seed, shuffle=False, drop_remainder=drop, order_noise=noise
    )
    plan = IndexedPlan(options, lengths, order)
    wanted = usable[np.argsort(order[usable], kind="stable")]
    for epoch in (0, 3):
        found = epoch_of(plan, epoch)[: len(usable)]
        place = {row: at for at, row in enumerate(wanted.tolist())}
        ranks = np.array([place[row] for row in found.tolist()])
        assert len(set(ranks.tolist())) == len(ranks)
        assert np.abs(ranks - np.arange(len(ranks))).max(initial=0) <= noise * len(usable)
        for world in (1, 2, 4, 8):
            if batch % world == 0:
                assert epoch_of(plan, epoch, world)[: len(found)].tolist() == found.tolist()
        step = plan.steps_per_epoch - 1
        assert plan.step_length(epoch, step) == lengths[plan.rows(epoch, step, 0, 1)].max()


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("stop", ["first", "all"])
def test_the_parts_of_a_mixture_are_ordered_separately(noise: float, stop: Any) -> None:
    sizes = (40, 25)
    mixture = Mixture(sizes=sizes, weights=(2, 1), stop=stop)
    draw = np.random.default_rng(0)
    order, lengths = draw.permutation(65).astype(float), draw.integers(1, 9, 65).astype(np.int16)
    options = PlanOptions(rows=mixture.rows, global_batch=4, shuffle=False, mixture=mixture, order_noise=noise)
    plan = IndexedPlan(options, lengths, order)
    found = epoch_of(plan, 1)
    for begin, end in ((0, 40), (40, 65)):
        mine = found[(found >= begin) & (found < end)]
        wanted = begin + np.argsort(order[begin:end])
        ranks = np.argsort(wanted)[mine - begin]
        places = np.arange(len(mine)) % (end - begin)
        assert np.abs(ranks - places).max() <= noise * (end - begin)
        assert (ranks == places).all() == (noise == 0)
    shares = np.cumsum(found < 40) - np.arange(1, len(found) + 1) * 2 / 3
    assert np.abs(shares).max() <= 1


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_packs_follow_the_order_within_their_window(window: int, noise: float) -> None:
    draw = np.random.default_rng(0)
    rows, capacity, batch = 600, 100, 2
    order, sizes = draw.permutation(rows).astype(float), draw.integers(5, 40, rows).astype(np.int32)
    options = PlanOptions(rows=rows, global_batch=batch, shuffle=False, window=window, order_noise=noise)
    plan = PackedPlan(options, sizes, capacity, 16, order)
    block = window * batch * capacity / sizes.mean()  # rows that are packed together
    for epoch in (0, 1):
        packs = [pack for step in range(plan.steps_per_epoch) for pack in plan.rows(epoch, step, 0, 1)]
        found = np.concatenate(packs)
        assert len(set(found.tolist())) == len(found) >= rows - plan.remainder_per_epoch - 10
        assert all(sizes[pack].sum() <= capacity for pack in packs)
        ranks = np.argsort(np.argsort(order))[found]
        assert np.abs(ranks - np.arange(len(found))).max() <= block + noise * rows + 20
    everything = [np.concatenate(plan.rows(0, step, 0, 1)).tolist() for step in range(plan.steps_per_epoch)]
    again = [np.concatenate(plan.rows(1, step, 0, 1)).tolist() for step in range(plan.steps_per_epoch)]
    assert (everything == again) == (noise == 0)
