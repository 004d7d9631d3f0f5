"""Laws of streams over any numbers: rows are conserved, steps are equal, and every state leads on."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ms_prefstream as mps
from tests.helpers import assert_epoch_conserves_rows, flat, global_steps, rows_of, token_pairs

CHEAP = settings(settings.get_profile("costly"), suppress_health_check=[HealthCheck.too_slow])


class Case(NamedTuple):
    """One drawn setting."""

    rows: int
    batch: int  # rows of a global step
    shards: int
    options: dict[str, Any]
    sort: bool
    epoch: int

    def ranks(self, world: int) -> list[mps.Stream]:
        """The streams of all ranks, with steps of the same size whatever their number."""
        return [
            mps.stream(
                token_pairs(self.rows),
                task=mps.DPO(20),
                tokenizer=None,
                pad_token_id=0,
                batching=(mps.Bucket if self.sort else mps.Pad)(self.batch // world, **self.widths),
                num_shards=world,
                shard_id=rank,
                logical_shards=self.shards,
                **self.options,
            )
            for rank in range(world)
        ]

    @property
    def widths(self) -> dict[str, int]:
        return {"multiple_of": 4} if self.sort else {}


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shards = draw(st.sampled_from([1, 2, 4, 6, 8]))
    batch = shards * draw(st.integers(1, 3))
    drop = draw(st.booleans())
    sort = draw(st.booleans())
    options = {
        "window": draw(st.integers(1, 5)),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "shuffle": draw(st.sampled_from([True, True, "window", False])),
        "drop_remainder": drop,
    }
    rows = draw(st.integers(batch if drop else 1, 8 * batch + 5))
    return Case(rows, batch, shards, options, sort, draw(st.integers(0, 5)))


@CHEAP
@given(case=cases(), data=st.data())
def test_rows_are_conserved_and_steps_are_equal_in_every_world(case: Case, data: st.DataObject) -> None:
    worlds = data.draw(st.lists(st.sampled_from(divisors(case.shards)), min_size=2, max_size=2, unique=case.shards > 1))
    found = []
    for world in worlds:
        ranks = case.ranks(world)
        steps = global_steps(ranks, case.epoch)
        assert_epoch_conserves_rows(steps, case.rows, ranks[0].report)
        found.append(steps)
    assert found[0] == found[1]
    whole, rest = divmod(case.rows, case.batch)
    assert len(found[0]) == whole + (1 if rest and not case.options["drop_remainder"] else 0)


@CHEAP
@given(case=cases(), data=st.data())
def test_a_run_that_changes_its_world_is_the_run_that_does_not(case: Case, data: st.DataObject) -> None:
    alone = case.ranks(1)[0]
    steps = alone.steps_per_epoch
    expected = [Counter(rows) for epoch in range(2) for rows in rows_of(alone.batches(epoch))]
    at = data.draw(st.integers(0, 2 * steps - 1), label="step")
    world = data.draw(st.sampled_from(divisors(case.shards)), label="world")
    ranks = [stream.resume(alone.state(at)) for stream in case.ranks(world)]
    found = [Counter[int]() for _ in range(at, 2 * steps)]
    for stream in ranks:
        delivered = rows_of(stream.batches())
        for epoch in range(at // steps + 1, 2):
            delivered += rows_of(stream.batches(epoch))
        for step, rows in enumerate(delivered):
            found[step].update(rows)
    assert found == expected[at:]


@CHEAP
@given(case=cases())
def test_two_epochs_hold_the_same_rows_in_another_order(case: Case) -> None:
    stream = case.ranks(1)[0]
    orders = [flat(rows_of(stream.batches(epoch))) for epoch in (case.epoch, case.epoch + 1)]
    if case.options["shuffle"] is False:
        assert orders[0] == orders[1]
    elif case.rows >= 40 and case.options["shuffle"] is True:
        assert orders[0] != orders[1]
    if stream.report.remainder_per_epoch == 0 and stream.report.repeats_per_epoch == 0:
        assert sorted(orders[0]) == sorted(orders[1])
