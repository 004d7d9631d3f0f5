"""With a length index: resume at every step, reading the rows of the step alone; and with worker processes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, StateError
from tests.helpers import (
    assert_epoch_conserves_rows,
    assert_resumes_everywhere,
    assert_same_batches,
    flat,
    global_steps,
    json_lines,
    pairs,
    rows_of,
)

N, BAD = 13, (3, 8)  # 11 good rows: 5 steps of 2 in windows of 3
BATCHINGS = {
    "pad": mps.Pad(2),
    "multiple_of": mps.Bucket(2, multiple_of=16),
    "boundaries": mps.Bucket(2, boundaries=(48, 64, 128)),
    "max_shapes": mps.Bucket(2, max_shapes=3),
}
ORDERS: dict[str, dict[str, Any]] = {
    "shuffled in windows": {"shuffle": "window"},
    "source order": {"shuffle": False},
    "repeats": {"drop_remainder": False},
    "longest first": {"longest_first": True},
    "rank 1 of 2": {"num_shards": 2, "shard_id": 1, "batching": mps.Bucket(1, multiple_of=16)},
}


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    rows = pairs(N)
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[8]["chosen"] = ""
    return json_lines(tmp_path / "rows.jsonl", rows)


def make(path: pathlib.Path, **options: Any) -> mps.Stream:
    settings = {
        "task": mps.DPO(128),
        "tokenizer": "bytes",
        "batching": BATCHINGS["multiple_of"],
        "window": 3,
        "seed": 9,
    }
    return mps.stream(path, **settings | options)


@pytest.fixture
def indexed(path: pathlib.Path) -> Callable[..., mps.Stream]:
    """Makes fresh streams over the file, whose index lies beside it."""
    make(path).build_index()
    return lambda **options: make(path, **options)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_every_batching(batching: str, indexed: Callable[..., mps.Stream]) -> None:
    assert indexed().state(0)["index"] is not None
    assert_resumes_everywhere(lambda: indexed(batching=BATCHINGS[batching]))


@pytest.mark.parametrize("order", ORDERS)
def test_every_order(order: str, indexed: Callable[..., mps.Stream]) -> None:
    assert_resumes_everywhere(lambda: indexed(**ORDERS[order]))


def test_rows_known_to_be_bad_are_gone_and_nothing_stands_in(indexed: Callable[..., mps.Stream]) -> None:
    stream = indexed()
    assert stream.steps_per_epoch == 5
    for epoch in range(2):
        steps = global_steps([stream], epoch)
        assert not set(BAD) & set(flat(steps))
        assert max(max(step.values()) for step in steps) == 1
        assert len(set(flat(steps))) == 10
    assert stream.report.repeats == 0
    assert stream.report.dropped == {"identical": 1, "empty_response": 1}


def test_only_the_rows_of_the_step_are_read(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ms_prefstream.load.loader import SampleLoader

    make(path).build_index()
    state = make(path).state(8)
    loaded: list[int] = []
    samples = SampleLoader.samples

    def counting(loader: SampleLoader, found: Any, *origin: Any) -> Any:
        loaded.append(len(found))
        return samples(loader, found, *origin)

    monkeypatch.setattr(SampleLoader, "samples", counting)
    stream = make(path).resume(state)
    assert loaded == []
    next(stream.batches())
    assert sum(loaded) == 2
    assert len(rows_of(stream.batches(1))) == 2


def test_a_state_with_an_index_and_one_without_do_not_mix(path: pathlib.Path) -> None:
    without = make(path).state(4)
    index = make(path).build_index()
    indexed = make(path).state(4)
    with pytest.raises(StateError, match=rf"index was None and is '{index.checksum}' now"):
        make(path).resume(without)
    with pytest.raises(StateError, match=rf"index was '{index.checksum}' and is None now"):
        make(path, index=None).resume(indexed)
    make(path).resume(indexed)
    make(path, index=None).resume(without)


def test_an_index_that_is_built_after_a_resume_would_change_the_plan(path: pathlib.Path) -> None:
    stream = make(path).resume(make(path).state(4))
    expected = rows_of(stream.batches())
    with pytest.raises(OptionError, match=r"resumed"):
        stream.build_index()
    assert rows_of(stream.batches()) == expected
    assert make(path).state(0)["index"] is None


@pytest.mark.parametrize("worlds", [(1, 3), (6, 2), (3, 6, 1)])
def test_any_divisor_of_the_global_batch_goes_on(worlds: tuple[int, ...], tmp_path: pathlib.Path) -> None:
    """With an index there are no logical shards: 6 rows a step, dealt out to 1, 2, 3 or 6 ranks."""
    path = json_lines(tmp_path / "rows.jsonl", pairs(47))

    def rank(world: int, rank: int) -> mps.Stream:
        batching = mps.Bucket(6 // world, multiple_of=16)
        return make(path, batching=batching, num_shards=world, shard_id=rank)

    rank(1, 0).build_index()
    alone = [rank(1, 0)]
    expected = [global_steps(alone, epoch) for epoch in range(2)]
    assert_epoch_conserves_rows(expected[0], 47, alone[0].report)
    state = alone[0].state(0)
    for world, step in zip(worlds, (2, 4, 6), strict=False):
        ranks = [rank(world, number).resume(state) for number in range(world)]
        assert global_steps(ranks, 0, step) == expected[0][step:]
        assert global_steps(ranks, 1) == expected[1]
        widths = {tuple(batch["chosen_input_ids"].shape[1] for batch in stream.batches(0)) for stream in ranks}
        assert len(widths) == 1  # every rank pads alike
        state = ranks[-1].state(step)


def test_worker_processes_go_on_alike(path: pathlib.Path) -> None:
    settings: dict[str, Any] = {"index": None, "on_bad_row": "drop"}
    whole = [batch for epoch in range(2) for batch in make(path, **settings).batches(epoch)]
    state = make(path, **settings).state(5)
    stream = make(path, workers=1, **settings).resume(state)  # their number may change
    steps = stream.steps_per_epoch
    assert_same_batches([*stream.batches(), *stream.batches(1)], whole[5:])
    assert stream.state(steps + 1) == make(path, **settings).state(steps + 1)
