"""The rows of a global step do not depend on the number of ranks, nor on where a run changes it."""

from __future__ import annotations

import json
import pathlib
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from tests.helpers import assert_same_rows_for_every_world, global_steps, pairs, rows_of, token_pairs
from tests.kinds import ONE_PASS, SOURCES, source_of

WORLDS = [1, 2, 4, 8, 16, 32]
G, N = 32, 32 * 3 + 9  # 3 steps in windows of 2, and 9 rows that do not fill a step
BATCHINGS: dict[str, Callable[[int], Any]] = {
    "pad": lambda size: mps.Pad(size),
    "multiple_of": lambda size: mps.Bucket(size, multiple_of=4),
    "boundaries": lambda size: mps.Bucket(size, boundaries=(8, 12, 20)),
    "max_shapes": lambda size: mps.Bucket(size, max_shapes=2, round_to=1),
}
TASKS = {
    "dpo": mps.DPO(128),
    "dpo concat": mps.DPO(128, layout="concat"),
    "reward": mps.Reward(128),
    "reward token": mps.Reward(128, layout="reward_token", reward_token=256),
    "rlhf": mps.RLHF(40, 128),
}


def make(world: int, rank: int, *, batching: str = "multiple_of", rows: Any = None, **options: Any) -> mps.Stream:
    """A rank's stream over rows that are token ids already, always 32 rows a step."""
    settings: dict[str, Any] = {
        "task": mps.DPO(20),
        "tokenizer": None,
        "pad_token_id": 0,
        "window": 2,
        "logical_shards": 32,
        "seed": 4,
    }
    return mps.stream(
        token_pairs(N) if rows is None else rows,
        batching=BATCHINGS[batching](G // world),
        num_shards=world,
        shard_id=rank,
        **settings | options,
    )


def text(world: int, rank: int, rows: Any, **options: Any) -> mps.Stream:
    """A rank's stream over text."""
    return make(world, rank, rows=rows, **{"task": mps.DPO(128), "tokenizer": "bytes", "pad_token_id": None} | options)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_every_batching(batching: str) -> None:
    assert_same_rows_for_every_world(lambda world, rank: make(world, rank, batching=batching), WORLDS, N, epochs=1)


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("shuffle", [True, "window", False])
def test_every_order(shuffle: Any, drop: bool) -> None:
    def rank(world: int, rank: int) -> mps.Stream:
        return make(world, rank, shuffle=shuffle, drop_remainder=drop)

    assert_same_rows_for_every_world(rank, [1, 8, 32], N, epochs=1)


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task: str) -> None:
    rows = pairs(73)
    assert_same_rows_for_every_world(lambda w, r: text(w, r, rows, task=TASKS[task]), [1, 4, 32], 73, epochs=1)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source(kind: str, tmp_path: pathlib.Path) -> None:
    source = source_of(kind, tmp_path, pairs(73))
    look_up = kind not in ONE_PASS
    assert_same_rows_for_every_world(lambda w, r: text(w, r, source), [1, 4], 73, epochs=1, look_up=look_up)


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_fewer_logical_shards_allow_fewer_worlds(shards: int) -> None:
    worlds = [world for world in WORLDS if world <= shards]
    assert_same_rows_for_every_world(lambda w, r: make(w, r, logical_shards=shards), worlds, N, epochs=1)


@pytest.mark.parametrize("batching", ["pad", "multiple_of"])
def test_dropped_rows_have_the_same_stand_ins_in_every_world(batching: str) -> None:
    rows, bad = token_pairs(G * 5), range(0, G * 5, 7)
    for row in bad:
        rows[row]["rejected_ids"] = rows[row]["chosen_ids"]
    steps, repeats = [], []
    for world in (1, 4, 32):
        ranks = [make(world, rank, batching=batching, rows=rows, window=5) for rank in range(world)]
        steps.append(global_steps(ranks, 0))
        repeats.append(sum(stream.report.repeats for stream in ranks))
    assert all(found == steps[0] for found in steps)
    assert len(set(repeats)) == 1
    assert repeats[0] > 0
    assert not {row for step in steps[0] for row in step} & set(bad)


def test_ranks_have_rows_of_like_length_at_the_same_step() -> None:
    """Every rank cuts its window sorted by length and visits the batches in one order, so nobody waits long."""
    rows = token_pairs(32 * 40, longest=16)
    ranks = [make(4, rank, rows=rows, logical_shards=4, window=40) for rank in range(4)]
    longest = [[batch["chosen_attention_mask"].sum(1).max() for batch in stream.batches()] for stream in ranks]
    waits = [max(step) - min(step) for step in zip(*longest, strict=True)]
    spread = max(map(max, longest)) - min(map(min, longest))
    assert sum(waits) / len(waits) < spread / 4


@pytest.mark.parametrize("batching", BATCHINGS)
def test_changing_the_world_at_random_steps(batching: str) -> None:
    """A run over two epochs that is stopped up to four times and goes on with other ranks each time."""
    numbers = random.Random(batching)
    for _ in range(2):
        stops = sorted(numbers.sample(range(1, 6), numbers.randint(2, 4)))
        worlds = [numbers.choice(WORLDS) for _ in range(len(stops) + 1)]
        assert_run(lambda w, r: make(w, r, batching=batching), stops, worlds)


def test_changing_the_world_of_a_run_over_text_with_dropped_rows(tmp_path: pathlib.Path) -> None:
    rows = pairs(N)
    for row in range(0, N, 11):
        rows[row]["chosen"] = ""
    for kind in ("json lines", "generator function"):
        source = source_of(kind, tmp_path, rows)

        def rank(world: int, rank: int, source: Any = source) -> mps.Stream:
            return text(world, rank, source, window=5)

        assert_run(rank, [2, 3, 5], [4, 1, 16, 2])


def assert_run(make: Callable[[int, int], mps.Stream], stops: list[int], worlds: list[int]) -> None:
    """A run that is stopped at some steps and resumed on other ranks holds the rows of an uninterrupted one."""
    alone = make(1, 0)
    steps = alone.steps_per_epoch
    expected = [Counter(rows) for epoch in range(2) for rows in rows_of(alone.batches(epoch))]
    state, found = alone.state(0), []
    for begin, end, world in zip([0, *stops], [*stops, 2 * steps], worlds, strict=True):
        ranks = [make(world, rank).resume(state) for rank in range(world)]
        parts = [Counter[int]() for _ in range(begin, end)]
        for stream in ranks:
            delivered = rows_of(stream.batches())
            for epoch in range(begin // steps + 1, 2):
                delivered += rows_of(stream.batches(epoch))
            for part, rows in zip(parts, delivered, strict=False):
                part.update(rows)
        found += parts
        saved = {json.dumps(stream.state(end)) for stream in ranks}
        assert len(saved) == 1  # the state is the same on every rank
        state = json.loads(saved.pop())
    assert found == expected, (stops, worlds)


def test_the_state_brings_its_logical_shards_along() -> None:
    """Started on 8 ranks without naming logical shards, a run goes on with 4, 2, 1 or 8 of them."""

    def rank(world: int, rank: int) -> mps.Stream:
        return make(world, rank, logical_shards=None)

    started = [rank(8, number) for number in range(8)]
    expected = global_steps(started, 0)
    state = started[0].state(2)
    for world in (1, 2, 4, 8):
        ranks = [rank(world, number).resume(state) for number in range(world)]
        assert global_steps(ranks, 0, 2) == expected[2:]
        assert ranks[0].state(3) == started[0].state(3)


def test_ranks_of_mindspore_are_asked_when_it_communicates(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspore import communication
    from mindspore.communication import GlobalComm

    monkeypatch.setattr(GlobalComm, "INITED", True)
    monkeypatch.setattr(communication, "get_group_size", lambda: 4)
    monkeypatch.setattr(communication, "get_rank", lambda: 3)
    settings = {"task": mps.DPO(20), "tokenizer": None, "pad_token_id": 0, "batching": mps.Pad(2)}
    found = mps.stream(token_pairs(N), **settings)
    given = mps.stream(token_pairs(N), **settings, num_shards=4, shard_id=3)
    assert found.rank == 3
    assert rows_of(found.batches()) == rows_of(given.batches())
    alone = mps.stream(token_pairs(N), **settings, num_shards=1, shard_id=0)  # what is given goes before
    assert alone.rank == 0


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({}, (4, 3)),
        ({"parallel_mode": "data_parallel"}, (4, 3)),
        ({"parallel_mode": "semi_auto_parallel", "full_batch": True}, (1, 0)),
        ({"parallel_mode": "auto_parallel", "dataset_strategy": "full_batch"}, (1, 0)),
        ({"parallel_mode": "semi_auto_parallel", "dataset_strategy": "data_parallel"}, (4, 3)),
        ({"parallel_mode": "semi_auto_parallel", "dataset_strategy": ((2, 1), (2, 1))}, (2, 1)),
        ({"parallel_mode": "semi_auto_parallel", "dataset_strategy": "data_parallel", "pipeline_stages": 2}, (2, 1)),
        ({"parallel_mode": "semi_auto_parallel", "dataset_strategy": ((1, 1),), "pipeline_stages": 2}, (1, 0)),
    ],
    ids=str,
)
def test_ranks_of_one_model_get_the_same_rows(
    context: dict[str, Any], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mindspore import communication, reset_auto_parallel_context, set_auto_parallel_context
    from mindspore.communication import GlobalComm

    monkeypatch.setattr(GlobalComm, "INITED", True)
    monkeypatch.setattr(communication, "get_group_size", lambda: 4)
    monkeypatch.setattr(communication, "get_rank", lambda: 3)
    reset_auto_parallel_context()
    try:
        set_auto_parallel_context(**context)
        found = mps.stream(token_pairs(N), task=mps.DPO(20), tokenizer=None, pad_token_id=0, batching=mps.Pad(2))
        assert (found.world, found.rank) == expected
    finally:
        reset_auto_parallel_context()


@pytest.mark.parametrize(
    "environment",
    [
        {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2"},
        {"RANK_TABLE_FILE": "ranks.json", "RANK_SIZE": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
    ],
    ids=["msrun", "rank table", "mpirun"],
)
def test_one_of_several_processes_must_know_its_rank(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made before communication is initialised, the stream would give every rank the same rows."""
    settings = {"task": mps.DPO(20), "tokenizer": None, "pad_token_id": 0, "batching": mps.Pad(2)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(mps.OptionError, match=r"one of 2 ranks(.|\n)*init\(\) before mps.stream"):
        mps.stream(token_pairs(N), **settings)
    assert mps.stream(token_pairs(N), **settings, num_shards=2, shard_id=1).rank == 1
    for name in environment:
        if name != "RANK_TABLE_FILE":
            monkeypatch.setenv(name, {"MS_ROLE": "MS_SCHED"}.get(name, "1"))
    assert mps.stream(token_pairs(N), **settings).world == 1
