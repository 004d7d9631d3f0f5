"""Prompts for online RL (GRPO, RLOO, PPO): what rollouts start from, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from ms_prefstream.checks import LONGEST, checked_call, whole_number
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.truncate import Budget, Uncut
from ms_prefstream.formats.record import Record
from ms_prefstream.sample import Block
from ms_prefstream.tasks.base import (
    Sampler,
    Traits,
    added,
    check_choice,
    check_flag,
    only_side,
    refuse_without_prompt,
    shown,
)
from ms_prefstream.tasks.records import TaskRecord, prompt_record


@checked_call
@dataclass(frozen=True)
class Prompts(Traits):
    """Prompts with their generation header, from rows of any format; responses are not used.

    Attributes:
        max_length: Tokens of a prompt, generation header included; longer ones are cut on the left.
        padding_side: ``right`` or ``left``.
        repeat: Adjacent rows of each prompt in a batch, for rollouts in groups. The batch size counts prompts.
        truncation: ``prompt_left``, or ``drop`` for rows that are too long (see `ms_prefstream.encode.truncate`).
        append_eos: An option of every task. It has no effect here, as there is no response.
    """

    max_length: int
    _: KW_ONLY
    padding_side: str = "right"
    repeat: int = 1
    truncation: str = "prompt_left"
    append_eos: bool = added(True)

    name: ClassVar[str] = "prompts"
    layout: ClassVar[str] = "prompts"
    pairs: ClassVar[bool] = False
    margin: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    batch_options: ClassVar[tuple[str, ...]] = ("padding_side", "repeat")
    no_packs: ClassVar[str] = (
        "prompts of mps.Prompts are continued by rollouts, so they cannot share a row. Use Bucket or Pad."
    )

    __repr__ = shown

    def __post_init__(self) -> None:
        check_flag("Prompts", "append_eos", self.append_eos)
        object.__setattr__(self, "max_length", whole_number("Prompts: max_length", self.max_length, 1, LONGEST))
        object.__setattr__(self, "repeat", whole_number("Prompts: repeat", self.repeat, 1, LONGEST))
        check_choice("Prompts", "padding_side", self.padding_side, ("right", "left"))
        check_choice("Prompts", "truncation", self.truncation, ("prompt_left", "drop"))

    @property
    def layout_options(self) -> Mapping[str, Any]:  # type: ignore[override]  # read-only
        return {"padding_side": self.padding_side, "repeat": self.repeat}

    def record(self, record: Record) -> TaskRecord:
        return prompt_record(record)

    def sampler(self, tokenizer: Tokenizer | None) -> Sampler:
        length = self.max_length
        limits = Budget(max_length=length, truncation=self.truncation)

        def sample(rows: Uncut) -> Block:
            rows.fit(limits, 0)
            refuse_without_prompt(rows, length)
            return only_side(rows.block, 0)

        return sample
