"""`mps.Prompts`: arrays written out by hand, rows of every kind, and what it refuses."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, Reason
from tests.helpers import json_lines
from tests.tasks.test_task_golden import P, assert_batch, batch_of

ROWS = [
    {"prompt": "Q?", "response": "A!"},
    {"prompt": "Q?", "response": ""},
    {"prompt": "Q?"},
    {"prompt": "Q?", "chosen": "A!", "rejected": "B"},
    {"prompt": "Q?", "chosen": "A!", "rejected": "A!"},
    {"prompt": "Q?", "completion": "A!", "label": False},
    {"prompt": "Q?", "responses": [{"content": "A", "score": 1}, {"content": "B", "score": 2}]},
    {"prompt_ids": [81, 63]},
    {"prompt_ids": [81, 63], "response_ids": [65]},
    {"prompt_ids": [81, 63], "chosen_ids": [65], "rejected_ids": [65]},
    {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A!"}]},
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row))
def test_right(row: dict[str, Any]) -> None:
    assert_batch(
        batch_of(row, mps.Prompts(4), length=4),
        {
            "prompt_ids": ("i4", [[81, 63, P, P]]),
            "prompt_attention_mask": ("i4", [[1, 1, 0, 0]]),
            "prompt_length": ("i4", [2]),
        },
    )


def test_left_and_repeated() -> None:
    stream = mps.stream(
        [{"prompt": "Q?"}, {"prompt": "Why"}],
        task=mps.Prompts(4, padding_side="left", repeat=2),
        tokenizer="bytes",
        template=None,
        batching=mps.Pad(2),
        shuffle=False,
    )
    assert stream.shapes == [(4, 4)]
    (batch,) = stream.batches()
    assert_batch(
        batch,
        {
            "prompt_ids": ("i4", [[P, P, 81, 63], [P, P, 81, 63], [P, 87, 104, 121], [P, 87, 104, 121]]),
            "prompt_attention_mask": ("i4", [[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]),
            "prompt_length": ("i4", [2, 2, 3, 3]),
        },
    )
    assert all(array.flags.c_contiguous and array.flags.owndata for array in batch.values())


def test_the_generation_header_stays_and_the_text_is_cut_on_the_left() -> None:
    row = {"prompt": "Why is the sky blue?", "response": "Rayleigh"}
    whole = mps.encode(row, task=mps.Prompts(64), tokenizer="bytes")
    cut = mps.encode(row, task=mps.Prompts(30), tokenizer="bytes")
    assert whole.sides[0].prompt.endswith("<|im_start|>assistant\n")
    assert (cut.sides[0].tokens[2], cut.truncated) == (30, True)
    header = "<|im_start|>user\n"
    assert cut.sides[0].prompt.startswith(header)
    assert whole.sides[0].prompt.endswith(cut.sides[0].prompt[len(header) :])


def test_characters_are_not_divided() -> None:
    cut = mps.encode({"prompt": "天空为什么是蓝的"}, task=mps.Prompts(8), tokenizer="bytes", template=None)
    assert cut.sides[0].prompt == "蓝的"  # three bytes each, and two bytes are left


def test_reasons() -> None:
    drop = mps.encode({"prompt": "too long"}, task=mps.Prompts(4, truncation="drop"), tokenizer="bytes", template=None)
    empty = mps.encode({"prompt": ""}, task=mps.Prompts(4), tokenizer="bytes", template=None)
    narrow = mps.encode({"prompt": "天"}, task=mps.Prompts(2), tokenizer="bytes", template=None)
    assert (drop.reason, empty.reason, narrow.reason) == (Reason.TOO_LONG, Reason.MISSING_FIELD, Reason.TOO_LONG)
    assert "the prompt is empty; expected text for a rollout to start from" in empty.problem


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"max_length": 0}, "Prompts: max_length"),
        ({"repeat": 0}, "Prompts: repeat"),
        ({"padding_side": "middle"}, "Prompts: padding_side is 'middle'; expected one of 'right', 'left'."),
        ({"truncation": "response_right"}, "Prompts: truncation is 'response_right'"),
    ],
)
def test_options(options: dict[str, Any], found: str) -> None:
    with pytest.raises(OptionError, match=found):
        mps.Prompts(**{"max_length": 8} | options)


def test_no_room_for_a_prompt() -> None:
    with pytest.raises(OptionError, match=r"Prompts: max_length is 5, but the template takes 12 .* one of the prompt"):
        mps.stream([{"prompt": "Q"}], task=mps.Prompts(5), tokenizer="bytes", batching=mps.Pad(1))


def test_packs_are_refused() -> None:
    with pytest.raises(OptionError, match=r"Pack: prompts of mps\.Prompts are continued by rollouts"):
        mps.stream([{"prompt": "Q"}], task=mps.Prompts(8), tokenizer="bytes", batching=mps.Pack(64))


def test_a_budget_of_tokens_counts_the_copies(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", [{"prompt": "Q" * (1 + row % 16)} for row in range(40)])

    def stream(max_tokens: int) -> mps.Stream:
        return mps.stream(
            path,
            task=mps.Prompts(16, repeat=3),
            tokenizer="bytes",
            template=None,
            batching=mps.Bucket(max_tokens=max_tokens, multiple_of=8),
            index="build",
        )

    sizes = {batch["prompt_ids"].shape for batch in stream(100).batches()}
    assert sizes == {(12, 8), (6, 16)}
    with pytest.raises(OptionError, match="largest width of 16 columns in each of its 3 sequences"):
        stream(47)
