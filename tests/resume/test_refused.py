"""A state that belongs to other data or other settings is refused, naming the old and the new value."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, StateError
from tests.helpers import json_lines, pairs, rows_of

DEFAULTS: dict[str, Any] = {
    "task": mps.DPO(128),
    "tokenizer": "bytes",
    "batching": mps.Bucket(2, multiple_of=32),
    "window": 3,
    "seed": 1,
    "format": "strings",
}


def make(source: Any = None, **options: Any) -> mps.Stream:
    return mps.stream(pairs(21) if source is None else source, **DEFAULTS | options)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 2}, r"seed was 1 and is 2 now"),
    "window": ({"window": 4}, r"window was 3 and is 4 now"),
    "shuffle": ({"shuffle": "window"}, r"shuffle was True and is 'window' now"),
    "no shuffle": ({"shuffle": False}, r"shuffle was True and is False now"),
    "remainder": ({"drop_remainder": False}, r"drop_remainder was True and is False now"),
    "longest first": ({"longest_first": True}, r"longest_first was False and is True now"),
    "batch size": ({"batching": mps.Bucket(4, multiple_of=32)}, r"global_batch was 2 and is 4 now"),
    "widths": ({"batching": mps.Bucket(2, multiple_of=64)}, r"widths was \[32, 64, 96, 128\] and is \[64, 128\] now"),
    "pad": ({"batching": mps.Pad(2)}, r"sorted was True and is False now"),
    "ranks": ({"num_shards": 2, "shard_id": 0}, r"global_batch was 2 and is 4 now"),
    "shards": ({"logical_shards": 2}, r"logical_shards was 1 and is 2 now"),
    "task": (
        {"task": mps.DPO(128, labels="shifted")},
        r"task was \"DPO\(.*'unshifted'.* and is .*DPO\(.*'shifted'.* now",
    ),
    "another task": ({"task": mps.Reward(128)}, r"task was \"DPO\(.* and is \"Reward\("),
    "truncation": ({"task": mps.DPO(128, truncation="drop")}, r"prompt_left.* and is .*drop.* now"),
    "pad id": ({"pad_token_id": 0}, r"pad_token_id was 259 and is 0 now"),
    "boundary": ({"boundary": "inference"}, r"boundary was 'joint' and is 'inference' now"),
    "special": ({"special_tokens_in_content": "allow"}, r"special_tokens_in_content was 'escape' and is 'allow' now"),
    "template": ({"template": None}, r"template was '\w+' and is None now"),
    "format": ({"format": "messages"}, r"format was .*strings.* and is .*messages.* now"),
    "fewer rows": ({"source": pairs(20)}, r"rows was 21 and is 20 now.*data was '\w+' and is '\w+' now"),
    "other rows": ({"source": [*pairs(20), pairs(1, 90)[0]]}, r"settings.*: data was '\w+' and is '\w+' now\."),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_setting_is_refused_by_name(change: str) -> None:
    options, sentence = CHANGES[change]
    state = make().state(4)
    stream = make(**options)
    before = stream.start_step, rows_of(stream.batches())
    with pytest.raises(StateError, match=sentence) as caught:
        stream.resume(state)
    text = str(caught.value)
    assert "Use the former settings, or start again" in text
    assert "\n" not in text
    assert (stream.start_step, rows_of(stream.batches())) == before  # a refused state leaves no trace


def test_other_contents_of_a_file_are_refused(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(21))
    state = make(path).state(4)
    json_lines(path, [*pairs(20), pairs(1, 90)[0]])
    with pytest.raises(StateError, match=r"data was '\w+' and is '\w+' now"):
        make(path).resume(state)
    json_lines(path, pairs(21))
    make(path).resume(state)  # the same contents again: times and inodes do not count


def test_another_tokenizer_is_refused(tmp_path: pathlib.Path) -> None:
    from tokenizers import Tokenizer, models

    states = []
    for order in (1, -1):
        letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz #?"[::order])}
        folder = tmp_path / f"letters{order}"
        folder.mkdir()
        Tokenizer(models.BPE(letters, [])).save(str(folder / "tokenizer.json"))
        stream = make(tokenizer=folder, template=None, pad_token_id=0)
        states.append(stream.state(4))
    with pytest.raises(StateError, match=r"settings.*: tokenizer was '\w+' and is '\w+' now\."):
        stream.resume(states[0])
    stream.resume(states[1])


def test_ranks_that_do_not_divide_the_state_s_shards_are_refused() -> None:
    state = make(batching=mps.Bucket(3), num_shards=4, shard_id=0).state(1)
    with pytest.raises(OptionError, match=r"num_shards=3 does not divide logical_shards=4.* Run on 2 or 4 ranks"):
        make(batching=mps.Bucket(4), num_shards=3, shard_id=0).resume(state)


def test_a_batch_that_the_state_s_shards_cannot_share_is_refused_by_both_values() -> None:
    state = make(batching=mps.Bucket(1, multiple_of=32), num_shards=4, shard_id=0).state(1)
    with pytest.raises(StateError, match=r"global_batch was 4 and is 3 now"):
        make(batching=mps.Bucket(3, multiple_of=32)).resume(state)


def test_a_refused_state_of_other_ranks_leaves_no_trace() -> None:
    """Its logical shards are taken over before the rest of it is compared; then they are given back."""
    state = make(batching=mps.Bucket(1, multiple_of=32), num_shards=4, shard_id=0, seed=2).state(1)
    stream, untouched = (make(batching=mps.Bucket(4, multiple_of=32)) for _ in range(2))
    with pytest.raises(StateError, match=r"settings.*: seed was 2 and is 1 now\."):
        stream.resume(state)
    assert rows_of(stream.batches()) == rows_of(untouched.batches())
    assert stream.state(1) == untouched.state(1)


SPOILED: dict[str, tuple[Any, str]] = {
    "nothing": (None, r"a state is a dict .* found NoneType"),
    "text": ("x", r"a state is a dict .* found str"),
    "empty": ({}, r"the state has no version, .*; expected what stream\.state\(step\) returns"),
    "without seed": ({"seed": ...}, r"the state has no seed; expected"),
    "version": ({"version": 99}, r"version was 99 and is \d+ now"),
    "plan version": ({"plan_version": 99}, r"plan_version was 99 and is \d+ now"),
    "no number": ({"step": "4"}, r"the state's step is '4'; expected a whole number"),
    "truth": ({"step": True}, r"the state's step is True; expected a whole number"),
    "negative": ({"step": -1}, r"the state's step is -1; expected a whole number"),
    "index": ({"index": "abc"}, r"index was 'abc' and is None now"),
    "shards": ({"logical_shards": "x"}, r"logical_shards was 'x' and is 1 now"),
    "no shards": ({"logical_shards": 0}, r"logical_shards was 0 and is 1 now"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_no_state_is_refused(case: str) -> None:
    spoil, sentence = SPOILED[case]
    state: Any = spoil
    if isinstance(spoil, dict) and spoil:
        state = copy.deepcopy(make().state(4)) | spoil
        state = {name: value for name, value in state.items() if value is not ...}
    with pytest.raises(StateError, match=sentence):
        make().resume(state)


@pytest.mark.parametrize("step", [-1, 1.5, True, "3", None])
def test_a_state_of_no_step(step: Any) -> None:
    with pytest.raises(OptionError, match=r"step is .*expected a whole number of at least 0"):
        make().state(step)
