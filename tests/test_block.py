"""Blocks: rows come out of the arrays as they went in, whichever rows are taken, joined or sent to another process."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream import DPO, RLHF, Reward
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.sample import Block, Loaded, Note, Sample, Sequence
from tests.pools import pairs, plain, recipe

NO_IDS = np.empty(0, np.int32)
errors = st.builds(RowError, st.sampled_from(list(Reason)), st.text(), st.text(), st.text())
notes = st.integers(0, 2 * max(Note) - 1).map(Note)
unread = st.lists(st.text(max_size=3), max_size=2).map(tuple)
log_probabilities = st.floats(width=32, allow_nan=False)
columns = st.fixed_dictionaries({}, optional={"margin": st.floats(allow_nan=False)})
CARRIED = {"index": st.integers(-(2**63), 2**63 - 1), "answer": st.text(), "weight": log_probabilities}


@st.composite
def sequences(draw: st.DrawFn) -> Sequence:
    """Up to eight tokens and up to four spans, also from token 0 and to the last."""
    ids = draw(st.lists(st.integers(0, 2**31 - 1), max_size=8))
    borders = sorted(draw(st.sets(st.integers(0, len(ids)))))
    spans = tuple(zip(borders[0::2], borders[1::2], strict=False))
    return Sequence(np.array(ids, np.int32), spans, draw(st.booleans()), draw(st.booleans()))


@st.composite
def loaded(draw: st.DrawFn, sides: int, has_prompts: bool, has_ref_logps: bool, has_columns: bool) -> Loaded:
    if draw(st.integers(0, 3)) == 0:
        return Loaded(None, draw(errors), draw(notes), draw(unread))
    sample = Sample(
        tuple(draw(sequences()) for _ in range(sides)),
        draw(sequences()).ids if has_prompts else None,
        draw(columns) | (draw(st.fixed_dictionaries(CARRIED)) if has_columns else {}),
        (draw(log_probabilities), draw(log_probabilities)) if has_ref_logps else None,
        draw(st.none() | st.lists(log_probabilities, max_size=3).map(tuple)),
    )
    return Loaded(sample, None, draw(notes), draw(unread))


def lists(sides: int) -> st.SearchStrategy[list[Loaded]]:
    """Rows of one stream: all of them have a prompt, or none; so with log-probabilities and carried values."""
    return st.tuples(*[st.booleans()] * 3).flatmap(lambda has: st.lists(loaded(sides, *has), max_size=6))


numbers_of_sides = st.integers(1, 3)
rows_of_a_stream = numbers_of_sides.flatmap(lists)


@given(rows_of_a_stream)
def test_rows_come_out_as_they_went_in(rows: list[Loaded]) -> None:
    block = Block.of(rows)
    assert len(block) == len(rows)
    assert plain(list(block)) == plain(rows)
    assert plain(list(pickle.loads(pickle.dumps(block, protocol=5)))) == plain(rows)


@given(rows_of_a_stream)
def test_columns_say_what_the_rows_say(rows: list[Loaded]) -> None:
    block, samples = Block.of(rows), [one.sample for one in rows]
    assert block.good.tolist() == [sample is not None for sample in samples]
    assert block.longest.tolist() == [
        0 if sample is None else max(len(one.ids) for one in sample.sequences) for sample in samples
    ]
    assert block.totals.tolist() == [
        0 if sample is None else sum(len(one.ids) for one in sample.sequences) for sample in samples
    ]
    for row, sample in enumerate(samples):
        assert (block[row].sample is None) == (sample is None)
        for side, sequence in enumerate(() if sample is None else sample.sequences):
            assert block.arrays(side)[row].tolist() == sequence.ids.tolist()
            assert block.spans_of(row, side) == sequence.spans
            assert block.lost[row, side] == sequence.lost
        if sample is not None and sample.prompt is not None:
            assert block[row].sample.prompt.tolist() == sample.prompt.tolist()  # type: ignore[union-attr]


@given(rows_of_a_stream.filter(bool), st.data())
def test_some_rows_in_any_order_and_repeated(rows: list[Loaded], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    block = Block.of(rows)
    taken = block.take(places)
    assert plain(list(taken)) == plain([rows[place] for place in places])
    assert taken.ids is block.ids
    assert plain(list(taken.take(range(len(places))[::-1]))) == plain([rows[place] for place in places[::-1]])
    assert plain(list(block)) == plain(rows)


def with_columns(one: Loaded, has_prompts: bool, has_ref_logps: bool, names: Iterable[str]) -> Loaded:
    """A row of a block as it is beside rows with a prompt or further values: an empty prompt, no numbers."""
    sample = one.sample
    if sample is None:
        return one
    if has_prompts and sample.prompt is None:
        sample = sample._replace(prompt=NO_IDS)
    if has_ref_logps and sample.ref_logps is None:
        sample = sample._replace(ref_logps=(np.nan, np.nan))
    nothing = {"index": 0, "answer": ""}  # NaN stands for no value
    further = {name: sample.columns.get(name, nothing.get(name)) for name in names}
    sample = sample._replace(columns={name: value for name, value in further.items() if value is not None})
    return one._replace(sample=sample)


@given(numbers_of_sides.flatmap(lambda sides: st.lists(lists(sides).filter(bool), min_size=1, max_size=4)))
def test_blocks_are_joined(parts: list[list[Loaded]]) -> None:
    sides = max((len(one.sample.sequences) for part in parts for one in part if one.sample is not None), default=1)
    blocks = []
    for part in parts:
        blocks.append(Block.empty(len(part), sides))
        blocks[-1].put(enumerate(part))
    rows = list(itertools.chain(*parts))
    has_prompts = any(block.prompts is not None for block in blocks)
    has_ref_logps = any(block.ref_logps is not None for block in blocks)
    names = list(dict.fromkeys(name for block in blocks for name in block.columns))
    joined = Block.join(blocks)
    expected = [with_columns(one, has_prompts, has_ref_logps, names) for one in rows]
    assert repr(plain(list(joined))) == repr(plain(expected))


@given(rows_of_a_stream.filter(bool), st.data())
def test_parts_of_one_block_are_joined_without_a_copy_of_its_ids(rows: list[Loaded], data: st.DataObject) -> None:
    places = st.lists(st.integers(0, len(rows) - 1), max_size=4)
    parts = data.draw(st.lists(places, min_size=1, max_size=3))
    block = Block.of(rows)
    joined = Block.join([block.take(part) for part in parts])
    assert plain(list(joined)) == plain([rows[place] for part in parts for place in part])
    assert joined.ids is block.ids
    other = Block.join([block.take(parts[0]), Block.join([block, block.take(parts[-1])]), Block.of(rows)])
    again = [*[rows[place] for place in parts[0]], *rows, *[rows[place] for place in parts[-1]], *rows]
    assert plain(list(other)) == plain(again)


def test_no_blocks_are_an_empty_block() -> None:
    assert len(Block.join([])) == len(Block.of([])) == 0
    assert Block.join([]).ids.dtype == np.int32


@given(rows_of_a_stream.filter(bool), st.data())
def test_rows_and_sequences_are_replaced(rows: list[Loaded], data: st.DataObject) -> None:
    block, rows = Block.of(rows), list(rows)
    good = np.flatnonzero(block.good).tolist()
    for row in data.draw(st.lists(st.sampled_from(good), max_size=3)) if good else []:
        sequence, side = data.draw(sequences()), data.draw(st.integers(0, block.sides - 1))
        block.replace([(row, side, sequence)])
        sample = rows[row].sample
        assert sample is not None
        both = tuple(sequence if at == side else one for at, one in enumerate(sample.sequences))
        rows[row] = rows[row]._replace(sample=sample._replace(sequences=both))
    assert plain(list(block)) == plain(rows)
    row, why, later = data.draw(st.integers(0, len(rows) - 1)), data.draw(errors), data.draw(errors)
    block.refuse(row, why)
    block.refuse(row, later)
    rows[row] = rows[row]._replace(sample=None, error=rows[row].error or why)
    assert plain(list(block)) == plain(rows)
    assert not block.good[row]
    assert block.longest[row] == block.totals[row] == 0


@given(rows_of_a_stream.filter(bool), st.data())
def test_tokens_that_no_row_has_are_dropped_where_they_are_most(rows: list[Loaded], data: st.DataObject) -> None:
    rows = [rows[place] for place in data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=3))]
    block = Block.of(rows * 3).take(range(len(rows)))
    used = sum(map(int, block.totals)) + (0 if block.prompts is None else int(block.prompts[block.good, 1].sum()))
    block.compact()
    assert plain(list(block)) == plain(rows)
    assert len(block.ids) <= 2 * used


@pytest.mark.parametrize(
    "task", [DPO(16), DPO(16, truncation="drop"), RLHF(8, 16), Reward(16, layout="reward_token", reward_token=3)]
)
def test_a_block_does_not_hold_what_was_cut_off(task: Any) -> None:
    rows = [{"prompt": f"{n} " + "word " * 50, "chosen": "yes " * 400, "rejected": "no " * 400} for n in range(20)]
    loader = recipe([*rows, *pairs(4)], task, tokenizer="bytes").loader()
    block = loader.load(range(24))
    assert block.lengths.max() <= 16
    assert len(block.ids) <= 2 * 24 * 32
    assert plain(list(block)) == plain([one for row in range(24) for one in loader.load([row])])


def test_ids_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match="Cannot cast"):
        Block.of([Sample((Sequence(np.array([1], np.int64), ()),))])


def test_the_fields_of_a_sample_are_all_in_a_block() -> None:
    # A field that is added to one of these must be added to blocks too.
    assert Sample._fields == ("sequences", "prompt", "columns", "ref_logps", "scores")
    assert Sequence._fields == ("ids", "spans", "truncated", "question_cut")
    assert Loaded._fields == ("sample", "error", "notes", "unread")


@pytest.mark.parametrize(
    "task",
    [DPO(60), DPO(60, margin=True), RLHF(40, 100), Reward(80, layout="reward_token", reward_token=3)],
    ids=repr,
)
def test_the_rows_of_every_task_are_sent(task: Any) -> None:
    block = recipe(pairs(200), task).loader().load(range(200))
    assert any(one.notes for one in block)
    found = pickle.loads(pickle.dumps(block, protocol=5))
    assert plain(list(found)) == plain(list(block)) == plain(list(Block.of(list(block))))
    good = next(one.sample for one in found if one.sample is not None)
    assert good.sequences[0].ids.flags.writeable
