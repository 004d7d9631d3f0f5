"""Every kind of source gives every row once an epoch, in a new order; one-pass sources say what they cannot."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, PrefStreamError, SourceError
from tests.helpers import (
    assert_epoch_conserves_rows,
    flat,
    global_steps,
    pairs,
    rows_of,
    through_mindspore,
    token_pairs,
)
from tests.kinds import ONE_PASS, SOURCES, source_of

N = 23


def make(source: Any, **options: Any) -> mps.Stream:
    settings = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": mps.Bucket(2, multiple_of=32), "window": 3}
    return mps.stream(source, **settings | options)


class Calls:
    """A function that returns a new generator, counts its calls and what was taken."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.calls, self.taken = rows, 0, 0

    def __call__(self) -> Iterator[Any]:
        self.calls += 1
        return self._rows()

    def _rows(self) -> Iterator[Any]:
        for row in self.rows:
            self.taken += 1
            yield row


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_row_once_an_epoch_in_another_order(kind: str, drop: bool, tmp_path: pathlib.Path) -> None:
    def fresh() -> mps.Stream:
        return make(source_of(kind, tmp_path, pairs(N)), drop_remainder=drop, seed=5)

    stream, look_up = fresh(), kind not in ONE_PASS
    assert stream.steps_per_epoch == (11 if drop else 12)
    orders = []
    for epoch in range(2):
        assert_epoch_conserves_rows(global_steps([stream], epoch, look_up=look_up), N, stream.report)
        orders.append(rows_of(stream.batches(epoch)))
    assert orders[0] != orders[1]
    again = fresh()
    assert [rows_of(again.batches(epoch)) for epoch in range(2)] == orders
    assert stream.report.rows == (N if look_up else None)


@pytest.mark.parametrize("kind", ONE_PASS)
@pytest.mark.parametrize("batching", [mps.Pad(2), mps.Bucket(2, multiple_of=32)])
def test_one_pass_rows_stay_in_their_window(kind: str, batching: Any, tmp_path: pathlib.Path) -> None:
    stream = make(source_of(kind, tmp_path, pairs(N)), batching=batching)
    for epoch in range(2):
        steps = rows_of(stream.batches(epoch))
        assert steps != [[row, row + 1] for row in range(0, 22, 2)]
        for begin in range(0, 11, 3):
            window = flat(steps[begin : begin + 3])
            assert {row // 6 for row in window} == {begin // 3}


@pytest.mark.parametrize("kind", ONE_PASS)
def test_one_pass_without_shuffling_is_source_order(kind: str, tmp_path: pathlib.Path) -> None:
    stream = make(source_of(kind, tmp_path, pairs(N)), shuffle=False)
    assert flat(rows_of(stream.batches())) == list(range(22))


@pytest.mark.parametrize("kind", ONE_PASS)
def test_one_pass_rows_cannot_be_looked_up(kind: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(SourceError, match=r"read from the front .* Pass a plain JSON Lines file or a list"):
        make(source_of(kind, tmp_path, pairs(N))).rows(0, 0)


def test_rows_are_counted_once_and_only_if_steps_are_not_given() -> None:
    source = Calls(pairs(N))
    stream = make(source)
    assert source.calls == 1
    for epoch in range(2):
        assert len(list(stream.batches(epoch))) == 11
    assert source.calls == 3
    told = Calls(pairs(N))
    stream = make(told, steps_per_epoch=11)
    assert told.calls == 0
    assert stream.steps_per_epoch == 11


def test_steps_per_epoch_bounds_an_endless_source() -> None:
    endless = Calls(row for row in itertools.chain.from_iterable(itertools.repeat(pairs(N))))
    stream = make(endless, steps_per_epoch=7)
    assert len(list(stream.batches())) == 7
    assert endless.taken == 14  # not a row more than the epoch has


def test_one_pass_reads_a_window_at_a_time() -> None:
    source = Calls(pairs(N))
    batches = make(source, steps_per_epoch=11).batches()
    for step, _ in enumerate(batches):
        assert source.taken <= (step // 3 + 1) * 6


def test_a_generator_needs_steps_per_epoch() -> None:
    with pytest.raises(OptionError, match=r"generator can be read only once, .* Pass steps_per_epoch=<n>"):
        make(iter(Calls(pairs(N))()))
    with pytest.raises(OptionError, match=r"generator can be read only once, .* Give boundaries or multiple_of"):
        make(Calls(pairs(N))(), steps_per_epoch=2, batching=mps.Bucket(2, max_shapes=2))


def test_a_spent_generator_refuses_the_second_epoch_and_names_the_remedy() -> None:
    stream = make(Calls(pairs(N))(), steps_per_epoch=11)
    seen = flat(rows_of(stream.batches()))
    assert sorted(seen) == list(range(22))
    with pytest.raises(SourceError, match=r"used before and cannot be read again\. Pass .* a list"):
        next(stream.batches(1))


@pytest.mark.mindspore
def test_a_spent_generator_through_mindspore() -> None:
    dataset = make(Calls(pairs(N))(), steps_per_epoch=11).dataset()
    assert dataset.get_dataset_size() == 11  # known without reading
    delivered: list[Any] = []
    with pytest.raises(SourceError, match=r"used before and cannot be read again"):
        delivered.extend(through_mindspore(dataset, 2))
    assert sorted(flat(rows_of(delivered))) == list(range(22))


@pytest.mark.mindspore
@pytest.mark.parametrize("kind", ["json lines", "gz", "generator function"])
def test_the_size_is_the_steps_of_an_epoch_and_two_epochs_come(kind: str, tmp_path: pathlib.Path) -> None:
    stream = make(source_of(kind, tmp_path, pairs(N)))
    dataset = stream.dataset()
    assert dataset.get_dataset_size() == len(dataset) == stream.steps_per_epoch == 11
    delivered = rows_of(through_mindspore(dataset, 2))
    assert delivered == rows_of([*stream.batches(0), *stream.batches(1)])


def test_a_source_that_shrinks_is_an_error() -> None:
    rows = pairs(N)
    stream = make(lambda: iter(rows))
    del rows[8:]
    with pytest.raises(SourceError, match=r"ended after 8 rows, but the plan needs row .* fewer rows than before"):
        list(stream.batches())


def test_steps_per_epoch_beyond_the_source_is_an_error() -> None:
    with pytest.raises(SourceError, match=r"steps_per_epoch is larger than it allows; lower it"):
        list(make(lambda: iter(pairs(4)), steps_per_epoch=3).batches())


@pytest.mark.parametrize("steps", [0, -1, 1.5, "3", True])
def test_impossible_steps_per_epoch(steps: Any) -> None:
    with pytest.raises(OptionError, match=rf"steps_per_epoch is {steps!r}; expected a whole number"):
        make(lambda: iter(pairs(4)), steps_per_epoch=steps)


def test_steps_per_epoch_follow_from_rows_that_are_known() -> None:
    with pytest.raises(OptionError, match=r"steps_per_epoch is 3, but list has a known number of rows"):
        make(pairs(4), steps_per_epoch=3)


def test_an_error_of_the_generator_itself_names_the_row() -> None:
    def broken() -> Iterator[Any]:
        yield from pairs(3)
        raise ValueError("the disk is gone")

    with pytest.raises(SourceError, match=r"row 3 of .*broken.*the disk is gone"):
        list(make(broken, steps_per_epoch=4, shuffle=False).batches())


@pytest.mark.parametrize("kind", ["list", "generator function"])
def test_steps_are_made_of_records_where_a_row_gives_several(kind: str, tmp_path: pathlib.Path) -> None:
    ranked = [
        {"prompt": f"#{row}# why?", "responses": ["a" * (row + 1), "b" * 50, "", "c"], "scores": [3, 2, 1, 0]}
        for row in range(7)
    ]
    fmt = mps.formats.ranked("adjacent")
    stream = make(source_of(kind, tmp_path, ranked), format=fmt, on_bad_row="drop", batching=mps.Bucket(1), window=64)
    assert stream.steps_per_epoch == 21
    assert set(flat(rows_of(stream.batches()))) == set(range(7))
    assert stream.report.dropped == {"empty_response": 14}
    assert {origin[-2:] for origin in stream.report.origins["empty_response"]} == {"#2", "#3"}


@pytest.mark.parametrize("kind", ["list", "json lines", "gz", "generator function"])
def test_a_filter_of_the_format_decides_before_steps_are_planned(kind: str, tmp_path: pathlib.Path) -> None:
    types = ("拒绝&正向建议", "拒绝为主"), ("拒绝为主", "风险回复"), ("拒绝&正向建议", "风险回复")
    rows = [
        {"prompt": f"#{row}# 为什么?", "pos_resp": "好" * (row + 1), "neg_resp": "坏", "pos_type": a, "neg_type": b}
        for row, (a, b) in zip(range(30), itertools.cycle(types))
    ]
    stream = make(source_of(kind, tmp_path, rows), task=mps.DPO(256), format=mps.formats.cvalues(types=[types[1]]))
    assert stream.steps_per_epoch == 5
    for epoch in range(2):
        assert sorted(flat(rows_of(stream.batches(epoch)))) == list(range(1, 30, 3))
    with pytest.raises(SourceError, match=r"no rows that pass the filter of its format|found no rows|has no rows"):
        make(source_of(kind, tmp_path, rows), format=mps.formats.cvalues(types=["a>b"]))


def test_every_error_of_a_source_is_ours() -> None:
    for source in (3, None, {}, b"x", {1}, [], [1], ["nowhere.jsonl"], lambda: None, object(), lambda a: a):
        with pytest.raises(PrefStreamError):
            list(make(source).batches())


def test_a_large_step_of_a_large_source_needs_no_reading() -> None:
    class Huge:
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, row: int) -> Any:
            asked.append(row)
            return token_pairs(1)[0]

    asked: list[int] = []
    stream = make(Huge(), tokenizer=None, pad_token_id=0, batching=mps.Pad(8))
    next(stream.batches(3, stream.steps_per_epoch - 1))
    assert len(asked) == 8
