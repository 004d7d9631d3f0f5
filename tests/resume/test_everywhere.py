"""From the state of every step of two epochs, a fresh stream delivers exactly the rest, bit by bit."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from tests.helpers import assert_resumes_everywhere, assert_same_batches, pairs, rest_through_mindspore, token_pairs
from tests.kinds import SOURCES, source_of

N = 11  # 5 steps of 2 rows in windows of 3, the last one short, and a row left over
BATCHINGS = {
    "pad": mps.Pad(2),
    "multiple_of": mps.Bucket(2, multiple_of=16),
    "boundaries": mps.Bucket(2, boundaries=(48, 64, 128)),
    "max_shapes": mps.Bucket(2, max_shapes=3),
    "extra": mps.Bucket(2, multiple_of=32, extra=1),
}
TASKS = {
    "dpo": mps.DPO(128),
    "dpo cut": mps.DPO(50),
    "dpo concat, shifted": mps.DPO(128, layout="concat", labels="shifted"),
    "dpo margin": mps.DPO(128, margin=True),
    "reward": mps.Reward(128),
    "reward token": mps.Reward(128, layout="reward_token", reward_token=256),
    "rlhf": mps.RLHF(40, 128),
}
ORDERS: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "shuffled in windows": {"shuffle": "window"},
    "source order": {"shuffle": False},
    "repeats": {"drop_remainder": False},
    "longest first": {"longest_first": True},
    "logical shards": {"logical_shards": 2},
    "rank 1 of 2": {"num_shards": 2, "shard_id": 1, "batching": mps.Bucket(1, multiple_of=16)},
    "one window": {"window": 64},
    "window of one": {"window": 1},
}
ROLES = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% endfor %}"
TEMPLATES: dict[str, dict[str, Any]] = {
    "none": {"template": None},
    "jinja": {"template": ROLES + "{% if add_generation_prompt %}[assistant]{% endif %}"},
    "inference": {"boundary": "inference"},
    "allow": {"special_tokens_in_content": "allow"},
}
BOTH_WAYS = ["list", "generator function"]


def maker(source: Callable[[], Any], **options: Any) -> Callable[[], mps.Stream]:
    """Makes fresh streams: nothing but the state goes from one to the next."""
    settings = {
        "task": mps.DPO(128),
        "tokenizer": "bytes",
        "batching": BATCHINGS["multiple_of"],
        "window": 3,
        "seed": 9,
    }
    return lambda: mps.stream(source(), **settings | options)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_every_batching(kind: str, batching: str, tmp_path: pathlib.Path) -> None:
    assert_resumes_everywhere(maker(lambda: source_of(kind, tmp_path, pairs(N)), batching=BATCHINGS[batching]))


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task: str) -> None:
    assert_resumes_everywhere(maker(lambda: pairs(N), task=TASKS[task]))


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source(kind: str, tmp_path: pathlib.Path) -> None:
    source = source_of(kind, tmp_path, pairs(N))
    assert_resumes_everywhere(maker(lambda: source))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_every_order(kind: str, order: str, tmp_path: pathlib.Path) -> None:
    assert_resumes_everywhere(maker(lambda: source_of(kind, tmp_path, pairs(N)), **ORDERS[order]))


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template(template: str) -> None:
    assert_resumes_everywhere(maker(lambda: pairs(N), **TEMPLATES[template]))


def test_tokenized_rows() -> None:
    assert_resumes_everywhere(
        maker(lambda: token_pairs(N), tokenizer=None, pad_token_id=0, batching=mps.Bucket(2, multiple_of=4))
    )


def test_several_records_a_row() -> None:
    ranked = [
        {"prompt": f"#{row}#", "responses": ["a" * (row + 1), "b" * (20 + row), "c"], "scores": [3, 2, 1]}
        for row in range(5)
    ]
    for source in (lambda: ranked, lambda: lambda: iter(ranked)):
        assert_resumes_everywhere(maker(source, format=mps.formats.ranked("all")))


@pytest.mark.parametrize("batching", ["pad", "multiple_of"])
@pytest.mark.parametrize("kind", ["list", "json lines", "gz", "generator function"])
def test_with_dropped_rows(kind: str, batching: str, tmp_path: pathlib.Path) -> None:
    rows = pairs(N)
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[8]["chosen"] = None
    rows[9]["chosen"] = ""
    make = maker(lambda: source_of(kind, tmp_path, rows), batching=BATCHINGS[batching], on_bad_row="drop")
    assert_resumes_everywhere(make)
    stream = make()
    list(stream.batches())
    assert sum(stream.report.dropped.values()) >= 2  # the case is what it says


def test_a_generator_goes_on_in_its_only_epoch() -> None:
    assert_resumes_everywhere(maker(lambda: (row for row in pairs(N)), steps_per_epoch=5), epochs=1)


@pytest.mark.mindspore
@pytest.mark.parametrize("batching", ["pad", "multiple_of"])
@pytest.mark.parametrize("kind", ["list", "gz", "generator function"])
def test_through_mindspore(kind: str, batching: str, tmp_path: pathlib.Path) -> None:
    source = source_of(kind, tmp_path, pairs(N))
    assert_resumes_everywhere(maker(lambda: source, batching=BATCHINGS[batching]), read=rest_through_mindspore)


@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_resuming_again_and_again(kind: str, tmp_path: pathlib.Path) -> None:
    """A run that is interrupted after every step is the run that was never interrupted."""
    make = maker(lambda: source_of(kind, tmp_path, pairs(N)))
    whole = [batch for epoch in range(2) for batch in make().batches(epoch)]
    state, found = make().state(0), []
    for step in range(len(whole)):
        stream = make().resume(state)
        found.append(next(stream.batches()))
        state = stream.state(step + 1)
    assert_same_batches(found, whole)


def test_a_state_of_the_last_step_begins_the_next_epoch() -> None:
    make = maker(lambda: pairs(N))
    stream = make().resume(make().state(2 * 5))
    assert_same_batches(list(stream.batches()), list(make().batches(2)))
    assert stream.start_step == 10


def test_the_state_is_small_and_plain(tmp_path: pathlib.Path) -> None:
    stream = maker(lambda: source_of("json lines", tmp_path, pairs(N)))()
    text = json.dumps(stream.state(3))
    assert len(text) < 2000
    state = json.loads(text)
    assert (state["step"], state["epoch"], state["steps_per_epoch"], state["global_batch"]) == (3, 0, 5, 2)
    assert stream.state(9)["epoch"] == 1
    assert str(tmp_path) not in text  # the data may lie elsewhere when the run goes on


def test_the_data_may_lie_elsewhere(tmp_path: pathlib.Path) -> None:
    folders = [tmp_path / name for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
    for kind in ("json lines", "gz"):
        here, there = (maker(functools.partial(source_of, kind, folder, pairs(N)))() for folder in folders)
        assert_same_batches(list(there.resume(here.state(4)).batches()), list(here.batches(0, 4)))
