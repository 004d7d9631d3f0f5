"""Options of tasks check themselves and say which, what was given, what is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import OptionError, TokenizerError
from tests.helpers import assert_same_batches


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mps.DPO(0), r"DPO: max_length is 0; expected a whole number of at least 2"),
        (lambda: mps.DPO(1), r"max_length is 1"),
        (lambda: mps.DPO(8.0), r"max_length is 8\.0"),  # type: ignore[arg-type]
        (lambda: mps.DPO(True), r"max_length is True"),
        (lambda: mps.DPO(8, max_prompt_length=8), r"max_prompt_length is 8 and max_length 8; .* at most 7"),
        (lambda: mps.DPO(8, max_prompt_length=0), r"max_prompt_length is 0"),
        (lambda: mps.DPO(8, truncation="left"), r"truncation is 'left'; expected one of 'prompt_left', 'resp"),
        (lambda: mps.DPO(8, layout="rows"), r"layout is 'rows'; expected one of 'paired', 'concat'"),
        (lambda: mps.DPO(8, labels="both"), r"labels is 'both'"),
        (lambda: mps.Reward(8, layout="x"), r"Reward: layout is 'x'; expected one of 'mindformers', 'reward_token'"),
        (lambda: mps.Reward(2, layout="reward_token"), r"max_length is 2; .* at least 3"),
        (lambda: mps.Reward(8, layout="reward_token", max_prompt_length=7), r"at most 6"),
        (lambda: mps.Reward(8, reward_token="<r>"), r"reward_token is '<r>', but layout is 'mindformers'"),
        (lambda: mps.Reward(8, layout="reward_token", reward_token=""), r"reward_token is ''"),
        (lambda: mps.Reward(8, layout="reward_token", reward_token=-1), r"reward_token is -1"),
        (lambda: mps.Reward(8, layout="reward_token", reward_token=True), r"reward_token is True"),
        (lambda: mps.Reward(8, layout="reward_token", reward_token=1.5), r"reward_token is 1\.5"),  # type: ignore[arg-type]
        (lambda: mps.RLHF(0, 8), r"RLHF: max_prompt_length is 0"),
        (lambda: mps.RLHF(4, 1), r"seq_length is 1"),
        (lambda: mps.RLHF(9, 8), r"max_prompt_length is 9 and seq_length 8"),
        (lambda: mps.RLHF(4, 8, truncation="x"), r"truncation is 'x'"),
    ],
)  # fmt: skip
def test_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_tasks_are_frozen() -> None:
    task = mps.DPO(8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.max_length = 9  # type: ignore[misc]


class TestRewardToken:
    def token(self, given: Any) -> int:
        return mps.Reward(8, layout="reward_token", reward_token=given).token_id(load_tokenizer("bytes"))

    def test_by_text_and_by_id(self) -> None:
        assert self.token("<|endoftext|>") == 256
        assert self.token(256) == 256

    def test_not_a_token(self) -> None:
        with pytest.raises(
            TokenizerError,
            match=r"'<r>' is not in the vocabulary of .* No token of it is reserved, so give vocab_size=",
        ):
            self.token("<r>")

    def test_not_an_id(self) -> None:
        with pytest.raises(TokenizerError, match=r"reward_token is 260, but tokenizer bytes has the ids 0 to 259"):
            self.token(260)

    def test_nothing_is_reserved(self) -> None:
        with pytest.raises(TokenizerError, match=r"no reserved token .* Reward\(\.\.\., reward_token="):
            self.token(None)

    def test_rows_of_ids_need_a_number(self) -> None:
        with pytest.raises(TokenizerError, match="already tokenized need reward_token as an id"):
            mps.Reward(8, layout="reward_token").token_id(None)
        assert mps.Reward(8, layout="reward_token", reward_token=7).token_id(None) == 7


def test_a_length_that_the_template_alone_fills() -> None:
    with pytest.raises(OptionError, match=r"DPO: max_length is 11, but the template takes 12 .*Raise"):
        mps.stream([{}], task=mps.DPO(11), tokenizer="bytes", batching=mps.Pad(1))


@dataclasses.dataclass(frozen=True)
class Own:
    """A task of a user from before `Traits`: it has what `Task` asks for, and nothing else."""

    max_length: int
    name: str = "own"
    layout: str = "paired"
    pairs: bool = True
    shifted: bool = False
    margin: bool = False
    prompt_columns: None = None

    @property
    def length(self) -> int:
        return self.max_length

    def sampler(self, tokenizer: Any) -> Any:
        return mps.DPO(self.max_length).sampler(tokenizer)

    def refused(self, tokenizer: Any) -> dict[str, int]:
        return {}


def test_a_task_of_a_user_needs_to_state_nothing_more() -> None:
    rows = [{"prompt": "Q", "chosen": "A", "rejected": f"{row}"} for row in range(8)]
    made = [
        mps.stream(rows, task=task, tokenizer="bytes", batching=batching, **options)
        for task in (Own(64), mps.DPO(64))
        for batching, options in ((mps.Bucket(2, multiple_of=16), {}), (mps.Pack(128), {"steps_per_epoch": 4}))
    ]
    for own, usual in zip(made[:2], made[2:], strict=True):
        assert_same_batches(list(own.batches()), list(usual.batches()))
    assert mps.encode(rows[0], task=Own(64), tokenizer="bytes").kept
    assert mps.doctor(rows, task=Own(64), tokenizer="bytes").ok
