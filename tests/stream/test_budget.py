"""A token budget through the public API: closed shapes, resuming, ranks, workers, and what is refused."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, StateError
from tests.helpers import (
    assert_resumes_everywhere,
    assert_same_batches,
    json_lines,
    rest_through_mindspore,
    rows_in,
    rows_of,
    through_mindspore,
    token_pairs,
)

N = 60
BUDGET = 160  # of pairs of at most 32 columns a side: 2 pairs at 32 columns, 5 at 16, 10 at 8
WIDTHS = {"multiple_of": 8}
BUCKETS: dict[str, dict[str, Any]] = {
    "multiple_of": WIDTHS,
    "boundaries": {"boundaries": (8, 20, 32)},
    "max_shapes": {"max_shapes": 3, "round_to": 4},
    "extra": {"multiple_of": 8, "extra": 1},
}


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    rows = token_pairs(N, 25)
    rows[7]["chosen_ids"] = rows[7]["rejected_ids"]
    return json_lines(tmp_path / "rows.jsonl", rows)


def make(path: Any, budget: int = BUDGET, widths: dict[str, Any] = WIDTHS, **options: Any) -> mps.Stream:
    settings = {
        "task": mps.DPO(32),
        "tokenizer": None,
        "pad_token_id": 0,
        "batching": mps.Bucket(max_tokens=budget, **widths),
    }
    return mps.stream(path, **settings | options)


@pytest.fixture
def indexed(path: pathlib.Path) -> Callable[..., mps.Stream]:
    """`make` over a file with a length index beside it."""
    make(path, batching=mps.Bucket(1)).build_index()
    return lambda *given, **options: make(path, *given, **options)


@pytest.mark.parametrize("widths", BUCKETS)
def test_steps_stay_in_the_closed_set_and_below_the_budget(widths: str, indexed: Callable[..., mps.Stream]) -> None:
    stream = indexed(widths=BUCKETS[widths])
    found = set()
    for epoch in range(2):
        batches = list(stream.batches(epoch))
        assert len(batches) == stream.steps_per_epoch
        seen = Counter(row for rows in rows_of(batches) for row in rows)
        assert max(seen.values()) == 1
        assert set(seen) < set(range(N)) - {7} | {N}
        assert len(seen) == N - 1 - stream.report.remainder_per_epoch
        for step, batch in enumerate(batches):
            assert rows_in(batch) == stream.rows(epoch, step).tolist()
            assert {array.shape for array in batch.values()} == {batch["chosen_input_ids"].shape}
            assert 2 * batch["chosen_input_ids"].size <= BUDGET
            found.add(batch["chosen_input_ids"].shape)
    assert found <= set(stream.shapes)
    assert len(found) > 1
    rows = [count for count, _ in stream.shapes]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] > rows[-1]


def test_the_sequences_of_a_row_count(indexed: Callable[..., mps.Stream], path: pathlib.Path) -> None:
    assert indexed().shapes == [(10, 8), (5, 16), (3, 24), (2, 32)]
    for task, column, shapes in (
        (mps.DPO(32, layout="concat"), "input_ids", [(20, 8), (10, 16), (6, 24), (4, 32)]),
        (mps.RLHF(8, 32), "pretrain_ids", [(20, 8), (10, 16), (6, 24), (5, 32)]),
    ):
        make(path, task=task, batching=mps.Bucket(1), index=None).build_index()
        stream = make(path, task=task)
        assert stream.shapes == shapes
        assert all(batch[column].shape in shapes for batch in stream.batches())


@pytest.mark.slow
def test_it_resumes_at_every_step(indexed: Callable[..., mps.Stream]) -> None:
    assert_resumes_everywhere(indexed)
    assert_resumes_everywhere(lambda: indexed(drop_remainder=False, longest_first=True))


def test_it_resumes_at_every_step_on_a_rank(indexed: Callable[..., mps.Stream]) -> None:
    assert_resumes_everywhere(lambda: indexed(num_shards=2, shard_id=1))


@pytest.mark.mindspore
def test_it_resumes_through_mindspore(indexed: Callable[..., mps.Stream]) -> None:
    dataset = indexed().dataset()
    assert dataset.get_dataset_size() == indexed().steps_per_epoch
    assert_same_batches(list(through_mindspore(dataset)), list(indexed().batches()))
    state = indexed().state(5)
    found = rest_through_mindspore(indexed().resume(state), 5, 2)
    assert_same_batches(found, [*indexed().batches(0, 5), *indexed().batches(1)])


def test_other_numbers_of_ranks_hold_the_same_steps(indexed: Callable[..., mps.Stream]) -> None:
    """The budget of all ranks together is what must stay; any number of ranks that divides the first may go on."""

    def ranks(world: int) -> list[mps.Stream]:
        return [indexed(4 * BUDGET // world, num_shards=world, shard_id=rank) for rank in range(world)]

    first = ranks(4)
    steps = first[0].steps_per_epoch
    assert steps > 2
    state = json.loads(json.dumps(first[0].state(1)))
    assert (state["global_batch"], state["global_batch_of"], state["logical_shards"]) == (4 * BUDGET, "tokens", 4)
    expected = _global(first, 0)[1:] + _global(first, 1)
    for world in (1, 2, 4):
        resumed = [stream.resume(state) for stream in ranks(world)]
        assert {stream.steps_per_epoch for stream in resumed} == {steps}
        assert _global(resumed, None) + _global(resumed, 1) == expected
        assert {tuple(stream.shapes) for stream in resumed} == {tuple(resumed[0].shapes)}
    with pytest.raises(OptionError, match="num_shards=3 does not divide logical_shards=4"):
        indexed(4 * BUDGET // 3 + 1, num_shards=3, shard_id=0, logical_shards=4)


def _global(ranks: list[mps.Stream], epoch: int | None) -> list[Counter[int]]:
    """The rows of each step over all ranks; all pad alike and hold equally many."""
    steps = []
    for batches in zip(*(stream.batches(epoch) for stream in ranks), strict=True):
        assert len({batch["chosen_input_ids"].shape for batch in batches}) == 1
        steps.append(Counter(row for batch in batches for row in rows_in(batch)))
    return steps


def test_workers_change_nothing(indexed: Callable[..., mps.Stream]) -> None:
    assert_same_batches(list(indexed(workers=1).batches()), list(indexed().batches()))


def test_a_budget_and_a_number_of_rows_do_not_mix(indexed: Callable[..., mps.Stream]) -> None:
    state = indexed().state(1)
    with pytest.raises(StateError, match=r"global_batch was 160 and is 2 now; global_batch_of was 'tokens' and is 'ro"):
        indexed(batching=mps.Bucket(2, multiple_of=8)).resume(state)
    with pytest.raises(StateError, match="global_batch was 160 and is 170 now"):
        indexed(170).resume(state)


def indexed_path(path: pathlib.Path) -> pathlib.Path:
    (found,) = path.parent.glob(f"{path.name}.*.mprefidx")
    return found


def test_changed_data_are_noticed(indexed: Callable[..., mps.Stream], path: pathlib.Path) -> None:
    """The index says how long a row is; a step whose rows no longer are would leave the closed set of shapes."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    state = indexed().state(1)
    json_lines(path, [{**row, "chosen_ids": [*row["chosen_ids"], 1]} for row in rows])
    with pytest.raises(StateError, match="data was"):
        make(path, index=indexed_path(path))
    with pytest.raises(OptionError, match=r'index="build"'):
        make(path)
    make(path, batching=mps.Bucket(1), index=None).build_index()
    with pytest.raises(StateError, match="index was"):
        indexed().resume(state)


REFUSED: dict[str, tuple[Callable[[pathlib.Path], Any], dict[str, Any], str]] = {
    "no index": (lambda path: path, {"index": None}, "needs the lengths of all rows, and .*`ms-prefstream index`"),
    "one pass": (lambda path: lambda: iter(token_pairs(9)), {}, "can only be read from the front and has none"),
    "mix": (lambda path: mps.mix([(token_pairs(9), 1)]), {}, "a mix takes other ones in each. Give batch_size"),
    "source order": (lambda path: path, {"shuffle": False}, "which shuffle=False rules out"),
    "windows": (lambda path: path, {"shuffle": "window"}, "which shuffle='window' rules out"),
    "too small": (lambda path: path, {"batching": mps.Bucket(max_tokens=63, multiple_of=8)}, "is 64 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_planned_is_refused(case: str, path: pathlib.Path) -> None:
    make(path, batching=mps.Bucket(1)).build_index()
    source, options, sentence = REFUSED[case]
    with pytest.raises(OptionError, match=sentence):
        make(source(path), **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "batch_size is None and max_tokens is None; expected one of the two"),
        ({"batch_size": 8, "max_tokens": 800}, "batch_size is 8 and max_tokens is 800; expected one of the two"),
        ({"max_tokens": 0}, "max_tokens is 0; expected a whole number of at least 1"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"max_tokens": 1e4}, "max_tokens is 10000.0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        mps.Bucket(**options)
