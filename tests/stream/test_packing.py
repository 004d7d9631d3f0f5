"""Packed rows through the public API: what they hold, how many steps, resuming, ranks, and what is refused."""

from __future__ import annotations

import functools
import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, RowError, StateError

from ..helpers import (
    Batch,
    Row,
    assert_resumes_everywhere,
    assert_same_batches,
    json_lines,
    rest_through_mindspore,
    token_pairs,
)

N = 60
ROWS = token_pairs(N)
TOKENS = 64
SCORE = 7  # the reward token
STEPS = 13  # of four packs: more than any task needs, so that every row has a place

DPO = mps.DPO(30)
SHIFTED = mps.DPO(30, labels="shifted")
REWARD = mps.Reward(31, layout="reward_token", reward_token=SCORE)
RLHF = mps.RLHF(15, 30)
TASKS = {"dpo": DPO, "shifted": SHIFTED, "reward": REWARD, "rlhf": RLHF}


def completions() -> list[Row]:
    return [{"prompt_ids": row["prompt_ids"], "response_ids": row["chosen_ids"]} for row in ROWS]


def source_for(task: Any) -> list[Row]:
    return completions() if task is RLHF else ROWS


def make(
    task: Any = DPO, world: int = 1, rank: int = 0, *, source: Any = None, batch: int = 4, **options: Any
) -> mps.Stream:
    """A stream of packs; `batch` counts the packed rows of a step, all ranks together."""
    settings: dict[str, Any] = {
        "batching": mps.Pack(TOKENS, max_segments=9, batch_size=batch // world),
        "window": 3,
        "pad_token_id": 0,
        "tokenizer": None,
    } | options
    return mps.stream(
        source_for(task) if source is None else source, task=task, num_shards=world, shard_id=rank, **settings
    )


@pytest.fixture
def indexed(tmp_path: pathlib.Path) -> Callable[..., mps.Stream]:
    """`make` over a file with a length index beside it."""

    def make_indexed(task: Any = DPO, world: int = 1, rank: int = 0, **options: Any) -> mps.Stream:
        path = tmp_path / f"{task.name}{task.shifted}.jsonl"
        if not path.exists():
            json_lines(path, source_for(task))
            make(task, source=path, index=None, steps_per_epoch=1).build_index()
        return make(task, world, rank, source=path, **options)

    return make_indexed


def expected(task: Any, row: int) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of each sequence of a row, written out from the raw row without any of the package's code."""
    prompt = ROWS[row]["prompt_ids"]
    found = []
    for side, response in enumerate((ROWS[row]["chosen_ids"], ROWS[row]["rejected_ids"])):
        ids, labels = prompt + response, [-100] * len(prompt) + response
        if task is REWARD:
            ids, labels = [*ids, SCORE], [-100] * len(ids) + [side]
        elif task is SHIFTED:
            labels = [*labels[1:], -100]
        found.append((ids, labels))
    return found[:1] if task is RLHF else found


def unpacked(batch: Batch) -> list[list[tuple[list[int], list[int]]]]:
    """(ids, labels) of each sequence, by packed row; checks the other columns on the way."""
    packs = []
    for number in range(len(batch["input_ids"])):
        line = {name: batch[name][number] for name in batch}
        sequences, end = [], 0
        for segment in range(1, line["segment_ids"].max() + 1):
            (places,) = np.nonzero(line["segment_ids"] == segment)
            assert places.tolist() == list(range(end, end + len(places)))
            end += len(places)
            assert line["actual_seq_len"][segment - 1] == number * TOKENS + end
            assert line["position_ids"][places].tolist() == list(range(len(places)))
            assert (line["loss_mask"][places] == (line["labels"][places] != -100)).all()
            sequences.append((line["input_ids"][places].tolist(), line["labels"][places].tolist()))
        assert not line["input_ids"][end:].any()
        assert not line["loss_mask"][end:].any()
        assert line["actual_seq_len"][-1] == (number + 1) * TOKENS
        packs.append(sequences)
    return packs


def names(batch: Batch) -> list[list[int]]:
    """The rows in each pack, read from the ids of each sample's first sequence."""
    found = []
    for number in range(len(batch["input_ids"])):
        firsts = []
        for sample in range(1, batch["pair_ids"][number].max() + 1):
            ids = batch["input_ids"][number][batch["pair_ids"][number] == sample]
            name = re.match(rb"#(\d+)#", ids.astype(np.uint8).tobytes())
            assert name
            firsts.append(int(name[1]))
        found.append(firsts)
    return found


def flat_names(stream: mps.Stream, epoch: int) -> Counter[int]:
    return Counter(row for batch in stream.batches(epoch) for pack in names(batch) for row in pack)


@pytest.mark.parametrize("way", ["windows", "index"])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_packs_hold_the_samples_of_the_rows_that_are_announced(
    task: Any, way: str, indexed: Callable[..., mps.Stream]
) -> None:
    stream = indexed(task, batch=1) if way == "index" else make(task, steps_per_epoch=STEPS)
    assert stream.shapes == [(stream.batching.batch_size, TOKENS)]
    for epoch in range(2):
        seen: Counter[int] = Counter()
        batches = list(stream.batches(epoch))
        assert len(batches) == stream.steps_per_epoch
        for step, batch in enumerate(batches):
            assert list(batch) == stream.column_names
            assert batch["input_ids"].shape == stream.shapes[0]
            rows = stream.rows(epoch, step).tolist()
            assert [row for pack in names(batch) for row in pack] == rows
            assert [one for pack in unpacked(batch) for one in pack] == [
                one for row in rows for one in expected(task, row)
            ]
            seen.update(rows)
        assert seen == Counter(range(N))  # every row once: nothing left out, nothing twice
    assert way == "windows" or stream.report.padding < 0.25


def test_the_exact_steps_of_an_index_leave_out_less_than_a_step(indexed: Callable[..., mps.Stream]) -> None:
    alone, four = indexed(batch=1), indexed(batch=4)
    assert four.steps_per_epoch == alone.steps_per_epoch // 4
    missing = N - len(flat_names(four, 0))
    packs_left = alone.steps_per_epoch % 4
    assert (missing > 0) == (packs_left > 0) == (four.report.remainder_per_epoch > 0)
    full = indexed(batch=4, drop_remainder=False)
    assert full.steps_per_epoch == -(-alone.steps_per_epoch // 4)
    assert set(flat_names(full, 0)) == set(range(N))


@pytest.mark.parametrize("way", ["windows", "index"])
def test_every_state_leads_on(way: str, indexed: Callable[..., mps.Stream]) -> None:
    assert_resumes_everywhere((lambda: indexed(batch=2)) if way == "index" else lambda: make(steps_per_epoch=STEPS), 2)


@pytest.mark.parametrize("task", [REWARD, RLHF], ids=["reward", "rlhf"])
@pytest.mark.parametrize("way", ["windows", "index"])
def test_every_state_of_other_tasks_leads_on(task: Any, way: str, indexed: Callable[..., mps.Stream]) -> None:
    options = {"batch": 2 if task is REWARD else 1}
    assert_resumes_everywhere(
        (lambda: indexed(task, **options)) if way == "index" else lambda: make(task, steps_per_epoch=7), 1
    )


@pytest.mark.parametrize("way", ["windows", "index"])
def test_any_number_of_ranks_holds_the_same_packs(way: str, indexed: Callable[..., mps.Stream]) -> None:
    make_one = indexed if way == "index" else functools.partial(make, steps_per_epoch=5, logical_shards=4)
    found = []
    for world in (1, 2, 4):
        ranks = [make_one(DPO, world, rank) for rank in range(world)]
        assert len({stream.steps_per_epoch for stream in ranks}) == 1
        steps = []
        for epoch in range(2):
            batches = [list(stream.batches(epoch)) for stream in ranks]
            assert all(one["input_ids"].shape == (4 // world, TOKENS) for rank in batches for one in rank)
            steps += [sorted(pack for batch in step for pack in names(batch)) for step in zip(*batches, strict=True)]
        found.append(steps)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2 * (5 if way == "windows" else indexed().steps_per_epoch)


@pytest.mark.parametrize("way", ["windows", "index"])
def test_a_run_goes_on_with_another_number_of_ranks(way: str, indexed: Callable[..., mps.Stream]) -> None:
    make_one = indexed if way == "index" else functools.partial(make, steps_per_epoch=5)
    ranks = [make_one(DPO, 2, rank) for rank in range(2)]
    state = json.loads(json.dumps(ranks[1].state(2)))
    rest = [list(stream.batches(0, 2)) for stream in ranks]
    alone = list(make_one(DPO, 1, 0).resume(state).batches())
    assert len(alone) == ranks[0].steps_per_epoch - 2 > 0
    for batch, *shares in zip(alone, *rest, strict=True):
        assert sorted(names(batch)) == sorted(pack for share in shares for pack in names(share))


def test_steps_that_do_not_suffice_leave_rows_out_and_say_so() -> None:
    stream = make(steps_per_epoch=1)
    seen = flat_names(stream, 0)
    assert max(seen.values()) == 1
    assert stream.report.left_out == N - len(seen) > 0
    assert stream.report.packs_wanted == 4 < stream.report.packs_made
    assert f"the steps did not hold them: {N - len(seen)}" in str(stream.report)
    assert json.loads(json.dumps(stream.report.as_dict()))["left_out"] == stream.report.left_out
    assert flat_names(stream, 1) != seen  # other ones are left out


def test_bad_rows_are_in_no_pack_and_counted(tmp_path: pathlib.Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows[3]["rejected_ids"] = rows[3]["chosen_ids"]
    rows[9]["chosen_ids"] = None
    path = json_lines(tmp_path / "rows.jsonl", rows)
    options = {"source": path, "on_bad_row": "drop", "batch": 1}
    stream = make(**options, steps_per_epoch=45)
    assert flat_names(stream, 0) == Counter(set(range(N)) - {3, 9})
    assert sum(stream.report.dropped.values()) == 2
    stream.build_index()
    assert stream.steps_per_epoch < 45  # the index decides now
    assert flat_names(stream, 0) == flat_names(make(**options), 0) == Counter(set(range(N)) - {3, 9})
    with pytest.raises(RowError, match="chosen_ids"):
        list(make(source=path, steps_per_epoch=5, index=None).batches())


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_source_that_is_read_from_the_front(shuffle: bool) -> None:
    def one_pass() -> mps.Stream:
        return make(source=lambda: iter(ROWS), steps_per_epoch=STEPS, shuffle=shuffle)

    stream = one_pass()
    for epoch in range(2):
        assert flat_names(stream, epoch) == Counter(range(N))
    assert_resumes_everywhere(one_pass)
    if not shuffle:  # windows and their packs are those of a source with random access
        assert_same_batches(list(stream.batches(1)), list(make(steps_per_epoch=STEPS, shuffle=False).batches(1)))


def test_a_mix_is_packed_in_its_shares() -> None:
    parts = [mps.Part(ROWS[:40], 3, name="long"), mps.Part(ROWS[40:], 1, name="short")]
    stream = make(source=mps.mix(parts, stop="first"), steps_per_epoch=STEPS)
    seen = flat_names(stream, 0)
    assert max(seen.values()) == 1
    long = sum(row < 40 for row in seen)
    assert len(seen) - long == pytest.approx(long / 3, abs=1)
    assert_resumes_everywhere(lambda: make(source=mps.mix(parts, stop="first"), steps_per_epoch=STEPS), 1)
    with pytest.raises(OptionError, match=r"steps_per_epoch=\d+ holds all of them"):
        make(source=mps.mix(parts))


def test_the_steps_that_are_proposed_hold_all_rows() -> None:
    with pytest.raises(OptionError, match="build a length index") as raised:
        make(batch=1)
    (steps,) = re.findall(r"steps_per_epoch=(\d+)", str(raised.value))
    stream = make(batch=1, steps_per_epoch=int(steps), window=1000)
    assert flat_names(stream, 0) == Counter(range(N))
    assert int(steps) < N / 2


def test_workers_change_nothing(indexed: Callable[..., mps.Stream]) -> None:
    for make_one in (functools.partial(make, steps_per_epoch=5), indexed):
        assert_same_batches(list(make_one(workers=1).batches()), list(make_one().batches()))


def test_the_mask_keeps_sequences_apart() -> None:
    batch = next(make(steps_per_epoch=STEPS).batches())
    mask = mps.causal_mask(batch, visible=1, heads=False)
    same = batch["segment_ids"][:, :, None] == batch["segment_ids"][:, None, :]
    assert (mask.astype(bool) == (same & np.tri(TOKENS, dtype=bool))).all()


@pytest.mark.mindspore
@pytest.mark.parametrize("way", ["windows", "index"])
def test_through_mindspore(way: str, indexed: Callable[..., mps.Stream]) -> None:
    stream = indexed() if way == "index" else make(steps_per_epoch=5)
    dataset = stream.dataset()
    assert dataset.get_dataset_size() == stream.steps_per_epoch
    assert dataset.get_col_names() == stream.column_names
    again = indexed() if way == "index" else make(steps_per_epoch=5)
    expected_ = [batch for epoch in range(2) for batch in again.batches(epoch)]
    assert_same_batches(rest_through_mindspore(stream, 0, 2), expected_)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batching": mps.Pack(TOKENS, max_segments=8, batch_size=4)}, "max_segments was 9 and is 8"),
        ({"batching": mps.Pack(TOKENS + 1, max_segments=9, batch_size=4)}, "widths was"),
        ({"batching": mps.Pack(TOKENS, max_segments=9, batch_size=3)}, "global_batch was 4 and is 3"),
        ({"batching": mps.Pad(4, length=30), "steps_per_epoch": None}, "max_segments was 9 and is None"),
        ({"steps_per_epoch": 6}, "steps_per_epoch was 5 and is 6"),
    ],
)
def test_a_state_of_other_packs_is_refused(change: dict[str, Any], said: str) -> None:
    state = make(steps_per_epoch=5).state(2)
    with pytest.raises(StateError, match=said):
        make(**({"steps_per_epoch": 5} | change)).resume(state)


def test_a_state_without_an_index_is_refused_with_one(indexed: Callable[..., mps.Stream]) -> None:
    steps = indexed().steps_per_epoch
    state = indexed(index=None, steps_per_epoch=steps).state(1)
    with pytest.raises(StateError, match="index was None"):
        indexed().resume(state)


@pytest.mark.parametrize(
    "task", [mps.DPO(30, margin=True), mps.Reward(31, layout="reward_token", reward_token=SCORE, margin=True)]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_margins_of_packs_are_those_of_their_rows(tmp_path: pathlib.Path, task: Any, workers: int) -> None:
    rows = [{**row, "margin": number / 8} for number, row in enumerate(ROWS)]
    mps.write_cache(make(task, source=rows, steps_per_epoch=STEPS), tmp_path / "cache", rows_per_part=16)
    text = make(task, source=rows, steps_per_epoch=STEPS, workers=workers)
    cached = make(task, source=str(tmp_path / "cache"), steps_per_epoch=STEPS, index=None, workers=workers)
    assert text.column_names[-2:] == ["margin", "actual_seq_len"]
    for step, (batch, again) in enumerate(zip(text.batches(), cached.batches(), strict=True)):
        assert_same_batches([batch], [again])
        counts = batch["pair_ids"].max(axis=1)
        found = [table[:count] for table, count in zip(batch["margin"], counts, strict=True)]
        assert (np.concatenate(found) * 8).tolist() == text.rows(0, step).tolist()
        assert all(not table[count:].any() for table, count in zip(batch["margin"], counts, strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": mps.DPO(33)}, "tokens=66 or more"),
        ({"task": mps.DPO(30, layout="concat")}, "layout='concat'"),
        ({"task": mps.Reward(30)}, "layout='reward_token'"),
        ({"steps_per_epoch": 0}, "steps_per_epoch"),
        ({"steps_per_epoch": True}, "steps_per_epoch"),
        ({"steps_per_epoch": 16}, "steps_per_epoch=15 or"),
        ({"steps_per_epoch": None}, "Pass steps_per_epoch"),
        ({"longest_first": True}, "longest_first=True has no meaning in packs"),
        ({"source": iter(ROWS)}, "can be read only once"),
    ],
)
def test_what_cannot_be_packed_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        make(**({"steps_per_epoch": 5} | options))


def test_steps_beside_an_index_are_refused(indexed: Callable[..., mps.Stream]) -> None:
    indexed()
    with pytest.raises(OptionError, match="Leave steps_per_epoch out, or pass index=None"):
        indexed(steps_per_epoch=5)


@pytest.mark.parametrize("batching", [mps.Pack(TOKENS), mps.Pad(1)], ids=["pack", "pad"])
@pytest.mark.parametrize("task", [DPO, SHIFTED], ids=["unshifted", "shifted"])
def test_a_side_with_nothing_to_predict_is_dropped(task: Any, batching: Any) -> None:
    """The only response token of row 1 is the first token of its sequence: no layout has anything to learn there."""
    rows = [ROWS[0], {"prompt_ids": [], "chosen_ids": [5], "rejected_ids": [6, 7]}, ROWS[2]]
    steps = {"steps_per_epoch": 1} if isinstance(batching, mps.Pack) else {}
    stream = make(task, source=rows, batching=batching, **steps)
    list(stream.batches())
    assert stream.report.dropped == {"no_response_tokens": 1}


def test_the_report_warns_when_max_segments_closes_rows() -> None:
    crowded = make(batching=mps.Pack(TOKENS, max_segments=3, batch_size=4), steps_per_epoch=15)
    roomy = make(batching=mps.Pack(TOKENS, max_segments=33, batch_size=4), steps_per_epoch=STEPS)
    assert sum(len(batch["input_ids"]) for batch in crowded.batches()) == 60
    for _ in roomy.batches():
        pass
    assert crowded.report.as_dict()["packs"] == 60
    room = [TOKENS - taken >= taken for taken in _taken(crowded)]
    assert crowded.report.packs_closed == sum(room) > 10
    assert f"max_segments closed {100 * sum(room) / 60:.1f} % of the packed rows" in str(crowded.report)
    assert roomy.report.packs_closed == 0
    assert "max_segments" not in str(roomy.report)


def _taken(stream: mps.Stream) -> list[int]:
    """Tokens in each packed row of an epoch, without counting them in the report."""
    copy = make(batching=stream.batching, steps_per_epoch=stream.steps_per_epoch)
    return [int((row > 0).sum()) for batch in copy.batches() for row in batch["segment_ids"]]
