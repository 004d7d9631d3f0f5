"""RLHF / PPO: prompts to start rollouts from, and prompt + response for the pretraining loss."""

from __future__ import annotations

import dataclasses
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from ms_prefstream.checks import LONGEST, checked_call, whole_number
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.truncate import TRUNCATIONS, Budget, Uncut
from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.sample import Block
from ms_prefstream.tasks.base import (
    Sampler,
    Traits,
    added,
    budget,
    check_choice,
    check_flag,
    has_spans,
    refuse_without_prompt,
    shown,
)


@checked_call
@dataclass(frozen=True)
class RLHF(Traits):
    """Prompts and responses as mindrlhf's PPO and GRPO trainers read them.

    Attributes:
        max_prompt_length: Columns of prompt_ids; longer prompts are cut on the left.
        seq_length: Tokens of prompt and response together. It is the array length: a PPO model of length S, which
            slices one column off, needs S + 1.
        truncation: ``prompt_left``, ``response_right`` or ``drop`` (see `ms_prefstream.encode.truncate`), or ``right``:
            each array is cut on its own, as mindrlhf's rlhf_data.py does (see `_cut_right`).
        append_eos: Whether the tokenizer's end token follows the response, under the loss, where there is no chat
            template.
    """

    max_prompt_length: int
    seq_length: int
    _: KW_ONLY
    truncation: str = "prompt_left"
    append_eos: bool = added(True)

    name: ClassVar[str] = "rlhf"
    layout: ClassVar[str] = "rlhf"
    pairs: ClassVar[bool] = False
    margin: ClassVar[bool] = False
    length_option: ClassVar[str] = "seq_length"

    __repr__ = shown

    def __post_init__(self) -> None:
        check_flag("RLHF", "append_eos", self.append_eos)
        whole_number("RLHF: max_prompt_length", self.max_prompt_length, 1, LONGEST)
        whole_number("RLHF: seq_length", self.seq_length, 2, LONGEST)
        check_choice("RLHF", "truncation", self.truncation, (*TRUNCATIONS, "right"))
        if self.max_prompt_length > self.seq_length:
            raise OptionError(
                f"RLHF: max_prompt_length is {self.max_prompt_length} and seq_length {self.seq_length}; expected the "
                "prompt to be no longer than the sequence that also holds the response."
            )

    @property
    def prompt_columns(self) -> int:  # type: ignore[override]  # read-only
        return self.max_prompt_length

    def sampler(self, tokenizer: Tokenizer | None) -> Sampler:
        columns, length = self.max_prompt_length, self.seq_length
        if self.truncation == "right":
            return lambda rows: _cut_right(rows, columns, length)
        prompt_limits = Budget(max_length=columns, max_prompt_length=columns, truncation=self.truncation)
        limits = budget("RLHF", length, columns if columns < length else None, self.truncation)

        def sample(rows: Uncut) -> Block:
            block = rows.block
            for row in np.flatnonzero(block.good & (rows.prompts[:, 1] >= 0) & ~has_spans(block, 1)).tolist():
                block.refuse(row, RowError(Reason.NO_RESPONSE_TOKENS, "the response has no token"))
            rows.fit(prompt_limits, 0)
            refuse_without_prompt(rows, columns)
            rows.fit(limits, 1)
            return _with_prompts(rows)

        return sample


def _cut_right(rows: Uncut, columns: int, length: int) -> Block:
    """Cuts the prompt to `columns` tokens and prompt + response to `length`, each on the right, at any token.

    The loss begins after as many tokens as the cut prompt has: a longer prompt has its rest under the loss, and a row
    whose prompt fills `length` has no loss at all. Both are the definition of mindrlhf's rlhf_data.py, which writes
    such rows.
    """
    block, whole = rows.block, rows.block.lengths
    refuse_without_prompt(rows, columns)
    block.lengths = np.minimum(whole, (columns, length))
    is_cut = block.lengths < whole
    block.lost[:] = np.stack([is_cut[:, 0], is_cut.any(axis=1)], axis=1)
    has_loss = block.lengths[:, 0] < block.lengths[:, 1]
    block.spans[:, 1] = np.where(has_loss[:, None], block.lengths, 0)
    block.more.clear()
    return _with_prompts(rows)


def _with_prompts(rows: Uncut) -> Block:
    """Returns rows of one sequence, prompt + response, or the prompt where there is no response, and the prompt."""
    block, alone = rows.block, (rows.prompts[:, 1] < 0).astype(np.int64)
    at, kept = np.arange(len(block)), 1 - alone
    return dataclasses.replace(
        block,
        begins=block.begins[at, kept][:, None],
        lengths=block.lengths[at, kept][:, None],
        spans=block.spans[at, kept][:, None],
        lost=block.lost[at, kept][:, None],
        more={(row, 0): spans for (row, side), spans in block.more.items() if side},
        prompts=np.stack([block.begins[:, 0], block.lengths[:, 0]], axis=1),
    )
