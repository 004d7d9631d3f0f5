"""What tasks say of options and rows that they refuse, in full: what was found, what was expected and what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import load_tokenizer
from tests.helpers import Row, error_of

BYTES = load_tokenizer("bytes")
RESERVED = dataclasses.replace(BYTES, reserved={f"<|r{number}|>": number for number in range(9)})
PAIR = {"prompt": "Q?", "chosen": "yes", "rejected": "no"}
MARKED = {"prompt": "Q?", "completion": "yes", "label": True}
STEPS = {"prompt": "Q?", "completions": ["ab", "c"], "labels": [True, False]}
IDS = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]}


def opened(task: Any, batching: Any = None) -> mps.Stream:
    return mps.stream([PAIR], task=task, tokenizer="bytes", batching=batching or mps.Pad(2))


def refusal(row: Row, task: Any) -> str:
    """Why a task refuses a row."""
    return mps.encode(row, task=task, tokenizer="bytes", template=None).problem


OPTIONS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: mps.DPO(1),
        "DPO: max_length is 1; expected a whole number in 2..16777216.",
    ),
    (
        lambda: mps.DPO(8, max_prompt_length=8),
        "DPO: max_prompt_length is 8 and max_length 8; expected the prompt limit to be at most 7, so that a "
        "response token fits. Leave it out for none.",
    ),
    (
        lambda: mps.DPO(8, max_prompt_length=0),
        "DPO: max_prompt_length is 0; expected a whole number in 1..16777216.",
    ),
    (
        lambda: mps.Reward(2, layout="reward_token"),
        "Reward: max_length is 2; expected a whole number in 3..16777216.",
    ),
    (
        lambda: mps.Reward(8, layout="reward_token", max_prompt_length=7),
        "Reward: max_prompt_length is 7 and max_length 8; expected the prompt limit to be at most 6, so that "
        "a response token fits. Leave it out for none.",
    ),
    (
        lambda: mps.DPO(8, truncation="left"),
        "DPO: truncation is 'left'; expected one of 'prompt_left', 'response_right', 'drop'.",
    ),
    (
        lambda: mps.DPO(8, labels="both"),
        "DPO: labels is 'both'; expected one of 'unshifted', 'shifted'.",
    ),
    (
        lambda: mps.DPO(8, layout="rows"),
        "DPO: layout is 'rows'; expected one of 'paired', 'concat'.",
    ),
    (
        lambda: mps.DPO(8, append_eos=1),
        "DPO: append_eos is 1; expected True or False.",
    ),
    (
        lambda: mps.KTO(8, kl=1),
        "KTO: kl is 1; expected True or False.",
    ),
    (
        lambda: mps.KTO(8, append_eos=1),
        "KTO: append_eos is 1; expected True or False.",
    ),
    (
        lambda: mps.KTO(1),
        "KTO: max_length is 1; expected a whole number in 2..16777216.",
    ),
    (
        lambda: mps.Reward(8, append_eos=1),
        "Reward: append_eos is 1; expected True or False.",
    ),
    (
        lambda: mps.Reward(8, layout="x"),
        "Reward: layout is 'x'; expected one of 'mindformers', 'reward_token'.",
    ),
    (
        lambda: mps.RLHF(4, 8, append_eos=1),
        "RLHF: append_eos is 1; expected True or False.",
    ),
    (
        lambda: mps.RLHF(4, 8, truncation="x"),
        "RLHF: truncation is 'x'; expected one of 'prompt_left', 'response_right', 'drop', 'right'.",
    ),
    (
        lambda: mps.RLHF(0, 8),
        "RLHF: max_prompt_length is 0; expected a whole number in 1..16777216.",
    ),
    (
        lambda: mps.RLHF(2**24 + 1, 2**24),
        "RLHF: max_prompt_length is 16777217; expected a whole number in 1..16777216.",
    ),
    (
        lambda: mps.RLHF(4, 2**24 + 1),
        "RLHF: seq_length is 16777217; expected a whole number in 2..16777216.",
    ),
    (
        lambda: mps.RLHF(4, 1),
        "RLHF: seq_length is 1; expected a whole number in 2..16777216.",
    ),
    (
        lambda: mps.RLHF(9, 8),
        "RLHF: max_prompt_length is 9 and seq_length 8; expected the prompt to be no longer than the sequence"
        " that also holds the response.",
    ),
    (
        lambda: mps.Prompts(0),
        "Prompts: max_length is 0; expected a whole number in 1..16777216.",
    ),
    (
        lambda: mps.Prompts(2**24 + 1),
        "Prompts: max_length is 16777217; expected a whole number in 1..16777216.",
    ),
    (
        lambda: mps.Prompts(8, repeat=0),
        "Prompts: repeat is 0; expected a whole number in 1..16777216.",
    ),
    (
        lambda: mps.Prompts(8, padding_side="top"),
        "Prompts: padding_side is 'top'; expected one of 'right', 'left'.",
    ),
    (
        lambda: mps.Prompts(8, truncation="response_right"),
        "Prompts: truncation is 'response_right'; expected one of 'prompt_left', 'drop'.",
    ),
    (
        lambda: mps.Prompts(8, append_eos=1),
        "Prompts: append_eos is 1; expected True or False.",
    ),
    (
        lambda: mps.ProcessReward(1),
        "ProcessReward: max_length is 1; expected a whole number in 2..16777216.",
    ),
    (
        lambda: mps.ProcessReward(8, values=1),
        "ProcessReward: values is 1; expected True or False.",
    ),
    (
        lambda: mps.ProcessReward(8, last_step_only=1),
        "ProcessReward: last_step_only is 1; expected True or False.",
    ),
    (
        lambda: mps.ProcessReward(8, append_eos=1),
        "ProcessReward: append_eos is 1; expected True or False.",
    ),
    (
        lambda: mps.ProcessReward(8, step_separator=""),
        "ProcessReward: step_separator is ''; expected the text after each step, such as '\\n': its last "
        "character has the step's label.",
    ),
    (
        lambda: mps.Reward(8, reward_token="<r>"),
        "Reward: reward_token is '<r>', but layout is 'mindformers', which has none. Pass "
        'layout="reward_token", or leave reward_token out.',
    ),
    (
        lambda: mps.Reward(8, layout="reward_token", reward_token=""),
        "Reward: reward_token is ''; expected the text or the id of a token.",
    ),
    (
        lambda: mps.Reward(8, layout="reward_token", reward_token=260).token_id(BYTES),
        "Reward: reward_token is 260, but tokenizer bytes has the ids 0 to 259. Give an id of the vocabulary,"
        " or vocab_size=<rows of the model's embedding> if it lies beyond.",
    ),
    (
        lambda: mps.Reward(8, layout="reward_token").token_id(None),
        "Reward: rows that are already tokenized need reward_token as an id; give a number.",
    ),
    (
        lambda: mps.Reward(8, layout="reward_token").token_id(BYTES),
        "Reward: tokenizer bytes has no reserved token to serve as reward token. Name one that your model "
        'does not use otherwise, as Reward(..., reward_token="<text or id>").',
    ),
    (
        lambda: mps.Reward(8, layout="reward_token", reward_token="<r>").token_id(BYTES),
        "Reward: reward_token '<r>' is not in the vocabulary of tokenizer bytes, and no free id is known for "
        "it. No token of it is reserved, so give vocab_size=<rows of the model's embedding> if that is larger"
        " than 260: the token then gets the id 260.",
    ),
    (
        lambda: mps.Reward(8, layout="reward_token", reward_token="<r>").token_id(RESERVED),
        "Reward: reward_token '<r>' is not in the vocabulary of tokenizer bytes, and no free id is known for "
        "it. Choose a reserved token of it: <|r0|> (id 0), <|r1|> (id 1), <|r2|> (id 2), <|r3|> (id 3), "
        "<|r4|> (id 4), <|r5|> (id 5), <|r6|> (id 6), <|r7|> (id 7); or give vocab_size=<rows of the model's "
        "embedding> if that is larger than 260: the token then gets the id 260.",
    ),
    (
        lambda: opened(mps.DPO(11)),
        "DPO: max_length is 11, but the template takes 12 tokens with a single one of response. Raise it to "
        "12 or, better, to what your rows need.",
    ),
    (
        lambda: opened(mps.DPO(40, max_prompt_length=10)),
        "DPO: max_prompt_length is 10, but the template takes 11 for an empty one. Raise it to 11 or, better,"
        " to what your rows need.",
    ),
    (
        lambda: opened(mps.Reward(12, layout="reward_token", reward_token=256)),
        "Reward: max_length is 12, but the template takes 13 tokens with a single one of response. Raise it "
        "to 13 or, better, to what your rows need.",
    ),
    (
        lambda: opened(mps.RLHF(5, 8)),
        "RLHF: seq_length is 8, but the template takes 12 tokens with a single one of response. Raise it to "
        "12 or, better, to what your rows need.",
    ),
    (
        lambda: opened(mps.Prompts(5)),
        "Prompts: max_length is 5, but the template takes 12 tokens with a single one of the prompt. Raise it"
        " to 12 or, better, to what your rows need.",
    ),
    (
        lambda: opened(mps.DPO(40, layout="concat"), mps.Pack(80)),
        "Pack: layout='concat' puts chosen rows before rejected rows, but packs have a layout of their own, "
        "with both sides of a pair in one row. Leave layout out.",
    ),
    (
        lambda: opened(mps.Reward(40), mps.Pack(80)),
        "Pack: the reward layout 'mindformers' scores one sequence a row at end_ind, which its reader "
        "compares between the two halves of a batch, so its rows cannot be shared. Pass Reward(..., "
        "layout='reward_token'), or use Pad or Bucket.",
    ),
    (
        lambda: opened(mps.KTO(40), mps.Pack(80)),
        "Pack: the columns kl_* of kl=True have rows of their own, for which packs have no place. Pass "
        "kl=False to mps.KTO, or use Bucket or Pad.",
    ),
    (
        lambda: opened(mps.Prompts(40), mps.Pack(80)),
        "Pack: prompts of mps.Prompts are continued by rollouts, so they cannot share a row. Use Bucket or Pad.",
    ),
    (
        lambda: opened(mps.ProcessReward(40), mps.Pack(80)),
        "Pack: the steps of mps.ProcessReward are scored in rows of their own, which readers do not share. "
        "Use Bucket or Pad.",
    ),
]


ROWS: list[tuple[Row, Any, str]] = [
    (
        PAIR,
        mps.ProcessReward(64),
        "the row has no steps with labels; expected {prompt, completions: [step, ...], labels: [true, ...]} "
        '[missing_field]. Rename the fields, pass format="stepwise" if further ones suggest another format, '
        "or give format= a function row -> row.",
    ),
    (
        PAIR | {"chosen": "x" * 90 + "a", "rejected": "x" * 90 + "b"},
        mps.DPO(40, truncation="response_right"),
        "both sides are the same within 40 tokens [identical_after_truncation].",
    ),
    (
        MARKED,
        mps.DPO(64),
        "the row is unpaired: 'label' or 'kto_tag' marks its one response as good or bad; expected a chosen "
        "and a rejected response to one prompt [missing_field]. Use mps.KTO for such rows, or mps.RLHF.",
    ),
    (
        MARKED | {"label": None},
        mps.KTO(64),
        "nothing says whether the row's response is a good one; expected a field 'label' or 'kto_tag' that is"
        ' true or false [missing_field]. Pass fields={"label": "<its name>"}, or give format= a function row '
        "-> row.",
    ),
    (
        MARKED | {"label": 1},
        mps.KTO(64),
        "field 'label' is int 1; expected true or false, for a good or a bad response [bad_type].",
    ),
    (
        MARKED | {"kto_tag": False},
        mps.KTO(64),
        "the fields kto_tag, label contradict each other about the row's response [ambiguous_format]. Keep "
        "one of the two.",
    ),
    (
        STEPS,
        mps.DPO(64),
        "the row has steps with labels, and no response; expected a prompt with a chosen and a rejected "
        "response [missing_field]. Use mps.ProcessReward for such rows.",
    ),
    (
        STEPS,
        mps.RLHF(20, 40),
        "the row has steps with labels, and no response; expected a prompt with its response [missing_field]."
        " Use mps.ProcessReward for such rows.",
    ),
    (
        STEPS,
        mps.KTO(64),
        "the row has several responses or steps; expected one response with a label [missing_field]. Name a "
        "format that makes pairs of them, such as format='ranked'.",
    ),
    (
        STEPS | {"labels": [True, 1e39]},
        mps.ProcessReward(64, values=True),
        "item 2 of field 'labels' is 1e+39; expected a number that float32 can hold, up to 3.4e+38 "
        "[bad_type]. Scale the labels.",
    ),
    (
        STEPS | {"labels": [True, 0.5]},
        mps.ProcessReward(64),
        "item 2 of field 'labels' is 0.5; expected true or false [bad_type]. Pass values=True to "
        "mps.ProcessReward for numbers, or write true or false.",
    ),
    (
        STEPS | {"completions": ["a" * 90, "b"]},
        mps.ProcessReward(40),
        "no labelled step ends within 40 tokens [no_response_tokens].",
    ),
    (
        {"prompt": "Q?", "response": "yes"},
        mps.DPO(64),
        "the row has no rejected side; expected a chosen and a rejected one [missing_field]. Use mps.RLHF for"
        " rows of prompt and response, or correct the row.",
    ),
    (
        {"prompt": "", "response": "yes"},
        mps.RLHF(20, 40),
        "the prompt is empty; expected text for a rollout to start from [missing_field]. Fill it in, or use a"
        " chat template, which gives an empty prompt a frame.",
    ),
    (
        {"prompt": "", "response": "yes"},
        mps.Prompts(40),
        "the prompt is empty; expected text for a rollout to start from [missing_field]. Fill it in, or use a"
        " chat template, which gives an empty prompt a frame.",
    ),
    (
        {"prompt": "你好", "response": "yes"},
        mps.RLHF(2, 40),
        "no character of the prompt fits into 2 tokens [too_long].",
    ),
    (
        IDS | {"rejected_ids": [5, 3]},
        mps.DPO(2, truncation="response_right"),
        "the prompt has 2 tokens; expected fewer than 2 [no_response_tokens].",
    ),
    (
        IDS | {"prompt_ids": []},
        mps.DPO(64),
        "the only response token has nothing before it to be predicted from [no_response_tokens].",
    ),
    (
        IDS | {"chosen_ids": [7, 3]},
        mps.Reward(64, layout="reward_token", reward_token=3),
        "the chosen side holds the reward token, id 3; expected it nowhere but at the end [special_token]. "
        "Correct the row, or choose a reward token that neither text nor chat template uses.",
    ),
    (
        IDS | {"chosen_ids": [5], "rejected_ids": [7, 3]},
        mps.Reward(64, layout="reward_token", reward_token=3),
        "the rejected side holds the reward token, id 3; expected it nowhere but at the end [special_token]. "
        "Correct the row, or choose a reward token that neither text nor chat template uses.",
    ),
    (
        {"prompt_ids": [1], "response_ids": [], "label": True},
        mps.KTO(64),
        "the row has no response; expected one, with a label [missing_field].",
    ),
]


@pytest.mark.parametrize(("call", "said"), OPTIONS)
def test_options_that_are_refused(call: Callable[[], Any], said: str) -> None:
    assert error_of(call) == said


@pytest.mark.parametrize(("row", "task", "said"), ROWS)
def test_rows_that_are_refused(row: Row, task: Any, said: str) -> None:
    assert refusal(row, task) == said
