"""Steps with a length index: every rank pads alike, no row is lost, and a row that changed is not taken for the old."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from ms_prefstream import DPO, Bucket
from ms_prefstream.batch import make_layout
from ms_prefstream.errors import Reason, RowError, StateError
from ms_prefstream.lengths.index import measure
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.load.workers.prefetch import ROWS_AHEAD, Prefetch
from ms_prefstream.plan import IndexedPlan, PlanOptions, Ranks
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.report.report import Report
from ms_prefstream.sample import Block, Loaded
from ms_prefstream.steps.planned import IndexedSteps
from tests.pools import pairs, recipe, wait_ready

COUNT, GLOBAL = 300, 8
TASK = DPO(100)
BUCKET = Bucket(1, multiple_of=1)
WIDTHS = BUCKET.widths(TASK.length)
LAYOUT = make_layout(TASK.layout)

LOADED = recipe(pairs(COUNT), TASK).loader().load(range(COUNT))
KEYS = measure(LOADED).keys


def collate(samples: Block, longest: int) -> dict[str, Any]:
    return LAYOUT.build(samples, BUCKET.width_for(longest, WIDTHS), 0, False)


class Table:
    """Rows that are loaded already; counts what is asked for."""

    def __init__(self) -> None:
        self.loaded = list(LOADED)
        self.asked: list[list[int]] = []

    def load(self, rows: Sequence[int]) -> Block:
        self.asked.append(list(rows))
        return Block.of([self.loaded[row] for row in rows])


class WorksAhead(Table):
    """Also notes what comes next."""

    def load_next(self, units: Iterable[Hashable], rows_of: Callable[[Any], list[int]]) -> tuple[list[int], Block]:
        self.units = [(unit, rows_of(unit)) for unit in itertools.islice(units, 3)]
        return self.units[0][1], self.load(self.units[0][1])


def steps(rank: int = 0, world: int = 1, loader: Any = None, remainder: bool = True) -> IndexedSteps:
    plan = IndexedPlan(PlanOptions(rows=COUNT, global_batch=GLOBAL, window=4, drop_remainder=remainder), KEYS)
    ledger = BadRows(Report(COUNT), True, str, lambda row: None)
    loader = Table() if loader is None else loader
    return IndexedSteps(
        plan, Ranks(world, rank), KEYS.__getitem__, loader, ledger, "row {}".format, collate, LAYOUT.columns
    )


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_every_rank_pads_alike_and_a_global_step_holds_the_same_rows(world: int) -> None:
    alone, ranks = steps(), [steps(rank, world) for rank in range(world)]
    assert {one.steps_per_epoch for one in ranks} == {alone.steps_per_epoch}
    differs = 0
    for step in range(2 * alone.steps_per_epoch):
        batches = [one[step] for one in ranks]
        assert len({batch["chosen_input_ids"].shape for batch in batches}) == 1
        place = divmod(step, alone.steps_per_epoch)
        rows = [one.rows(*place).tolist() for one in ranks]
        assert sorted(itertools.chain(*rows)) == sorted(alone.rows(*place).tolist())
        own = [max(LOADED[row].sample.length for row in part) for part in rows]  # type: ignore[union-attr]
        differs += len({BUCKET.width_for(longest, WIDTHS) for longest in own}) > 1
    assert differs or world == 1  # it would not hold by chance


def test_an_epoch_holds_every_usable_row_once() -> None:
    usable = np.flatnonzero(KEYS >= 0).tolist()
    one = steps(remainder=False)
    slots = [row for step in range(one.steps_per_epoch) for row in one.rows(1, step).tolist()]
    assert sorted(set(slots)) == usable
    assert len(slots) == len(usable) + one.plan.repeats_per_epoch


def test_batches_are_those_of_rows_loaded_by_hand() -> None:
    one = steps(1, 2)
    for step in (0, 5, one.steps_per_epoch + 3):
        rows = one.rows(*divmod(step, one.steps_per_epoch))
        longest = one.plan.step_length(*divmod(step, one.steps_per_epoch))
        expected = collate(LOADED.take(rows), longest)
        found = one[step]
        assert list(found) == list(expected) == one.column_names
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], strict=True)
        assert all(not np.shares_memory(found[name], one[step][name]) for name in found)  # fresh each time


def test_only_the_rows_of_the_step_are_loaded_and_the_last_steps_are_kept() -> None:
    table = Table()
    one = steps(loader=table)
    for step in (7, 8, 7, 8, 9, 7):
        _ = one[step]
    assert table.asked == [one.rows(0, step).tolist() for step in (7, 8, 9)]
    for step in range(20, 24):
        _ = one[step]
    _ = one[7]
    assert len(table.asked) == 8


def test_the_loader_is_told_which_steps_come_next_across_the_end_of_an_epoch() -> None:
    table = WorksAhead()
    one = steps(loader=table)
    last = one.steps_per_epoch - 1
    _ = one[last]
    assert table.units == [
        (last, one.rows(0, last).tolist()),
        (last + 1, one.rows(1, 0).tolist()),
        (last + 2, one.rows(1, 1).tolist()),
    ]
    assert table.asked == [one.rows(0, last).tolist()]


def test_a_row_that_changed_is_an_error_that_tells_to_build_the_index_anew() -> None:
    table = Table()
    one = steps(loader=table)
    row = int(one.rows(0, 0)[2])
    table.loaded[row] = Loaded(None, RowError(Reason.IDENTICAL, "both sides are the same"))
    with pytest.raises(
        StateError, match=rf"^row {row}: .*cannot be used now.*both sides.*: rebuild it with stream\.build_index\(\)"
    ):
        _ = one[0]
    longer = next(other for other in LOADED if other.sample is not None and other.sample.length != KEYS[row])
    table.loaded[row] = longer
    with pytest.raises(StateError, match=rf"^row {row}: .*has {KEYS[row]} tokens, but it has \d+ tokens now"):
        _ = one[0]


def test_what_is_loaded_ahead_is_what_is_loaded() -> None:
    expected = steps()
    with LoaderPool(recipe(pairs(COUNT), TASK), 2) as pool:
        wait_ready(pool)
        ahead = Prefetch(pool)
        found = steps(loader=ahead)
        order = [*range(12), 30, 31, 3, 4, *range(found.steps_per_epoch - 2, found.steps_per_epoch + 3)]
        for step in order:
            wanted, got = expected[step], found[step]
            for name in wanted:
                np.testing.assert_array_equal(got[name], wanted[name], strict=True)
            assert ahead._waiting < ahead._enough + 2 * ROWS_AHEAD
            assert ahead._parts  # the next ones are under way
        assert ahead._parts.keys() >= {order[-1] + 1, order[-1] + 2}
