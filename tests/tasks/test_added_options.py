"""Options that the first saved files did not have; these leave them out at their defaults. `append_eos` is one."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pathlib
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import OptionError, StateError
from ms_prefstream.load.cached import task_options
from ms_prefstream.tasks import TASKS
from ms_prefstream.tasks.base import added, given_options, shown

# The options that the first saved files name; this table never changes.
FIRST = {
    "dpo": ("max_length", "max_prompt_length", "truncation", "layout", "labels", "margin"),
    "reward": ("max_length", "layout", "reward_token", "max_prompt_length", "truncation", "margin"),
    "rlhf": ("max_prompt_length", "seq_length", "truncation"),
}
REPRS = {
    "dpo": "DPO(max_length=64, max_prompt_length=None, truncation='prompt_left', layout='paired', labels='unshifted', "
    "margin=False)",
    "reward": "Reward(max_length=64, layout='mindformers', reward_token=None, max_prompt_length=None, "
    "truncation='prompt_left', margin=False)",
    "rlhf": "RLHF(max_prompt_length=64, seq_length=64, truncation='prompt_left')",
}
ROW = {"prompt": "Why?", "chosen": "Tea", "rejected": "No"}


def made(name: str, **options: Any) -> Any:
    parameters = inspect.signature(TASKS[name]).parameters.values()
    return TASKS[name](*[64 for one in parameters if one.default is one.empty], **options)


@pytest.mark.parametrize("name", TASKS)
def test_every_later_option_is_left_out_while_it_has_its_default(name: str) -> None:
    task = made(name)
    assert tuple(given_options(task)) == FIRST.get(name, tuple(given_options(task)))
    assert task_options(task) == {"name": name, **given_options(task)}
    assert repr(task) == REPRS.get(name, repr(task))
    assert repr(task) == shown(task)
    assert eval(repr(task), dict(vars(mps))) == task


@pytest.mark.parametrize("name", TASKS)
def test_another_value_is_named(name: str) -> None:
    task = made(name, append_eos=False)
    assert repr(task).endswith(", append_eos=False)")
    assert task_options(task)["append_eos"] is False
    assert eval(repr(task), dict(vars(mps))) == task


def test_the_mechanism_is_that_of_a_field() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own:
        old: int = 1
        new: int = added(2)

        __repr__ = shown

    assert repr(Own()).endswith("Own(old=1)")
    assert repr(Own(new=3)).endswith("Own(old=1, new=3)")


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("value", [None, 1, "no"])
def test_append_eos_is_true_or_false(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=r"append_eos is .*; expected True or False"):
        made(name, append_eos=value)


@pytest.mark.parametrize("name", [*FIRST])
def test_no_end_token_without_a_template(name: str) -> None:
    eos = load_tokenizer("bytes").eos_id
    for kept in (True, False):
        found = mps.encode(ROW, task=made(name, append_eos=kept), tokenizer="bytes", template=None)
        assert found.sample is not None
        for sequence in found.sample.sequences:
            assert bool(sequence.ids[-1] == eos) is kept
            assert sequence.spans[-1][1] == len(sequence.ids)
    templates = [mps.encode(ROW, task=made(name, append_eos=kept), tokenizer="bytes") for kept in (True, False)]
    assert str(templates[0]) == str(templates[1])  # a template says itself how a turn ends


def test_a_state_tells_the_values_apart() -> None:
    rows = [{**ROW, "prompt": f"Why {number}?"} for number in range(20)]

    def stream(**options: Any) -> mps.Stream:
        return mps.stream(rows, task=mps.DPO(64, **options), tokenizer="bytes", batching=mps.Pad(2), template=None)

    state = json.loads(json.dumps(stream().state(3)))
    assert "append_eos" not in json.dumps(state)
    assert stream(append_eos=True).resume(state).start_step == 3
    with pytest.raises(StateError, match=r"task was .*margin=False\)\" and is .*append_eos=False\)\" now"):
        stream(append_eos=False).resume(state)


@pytest.mark.mindspore
def test_a_cache_tells_the_values_apart(tmp_path: pathlib.Path) -> None:
    rows = [{**ROW, "prompt": f"Why {number}?"} for number in range(20)]
    options: dict[str, Any] = {"batching": mps.Pad(2), "template": None}
    mps.write_cache(mps.stream(rows, task=mps.DPO(64), tokenizer="bytes", **options), tmp_path / "out")
    assert mps.stream(str(tmp_path / "out"), task=mps.DPO(64), tokenizer=None, **options).steps_per_epoch == 10
    with pytest.raises(StateError, match="append_eos of the task dpo was True and is False now"):
        mps.stream(str(tmp_path / "out"), task=mps.DPO(64, append_eos=False), tokenizer=None, **options)


def test_right_is_for_rlhf() -> None:
    assert mps.RLHF(4, 8, truncation="right").truncation == "right"
    with pytest.raises(OptionError, match="truncation is 'right'"):
        mps.DPO(8, truncation="right")
