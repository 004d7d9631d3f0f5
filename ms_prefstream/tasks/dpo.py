"""DPO (and ORPO, SimPO, IPO, which read the same arrays): both sides with labels and a loss mask."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from ms_prefstream.checks import checked_call
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.truncate import Uncut
from ms_prefstream.sample import Block
from ms_prefstream.tasks.base import (
    Sampler,
    Traits,
    added,
    budget,
    check_choice,
    check_flag,
    fit_pairs,
    leave_out_first_tokens,
    shown,
)


@checked_call
@dataclass(frozen=True)
class DPO(Traits):
    """Preference pairs as mindrlhf's DPO trainers read them.

    Attributes:
        max_length: Tokens of one side, prompt and response together.
        max_prompt_length: Tokens of the prompt alone, generation header included; None for no separate limit.
        truncation: ``prompt_left``, ``response_right`` or ``drop`` (see `ms_prefstream.encode.truncate`).
        layout: ``paired``: eight columns, (B, L) each, chosen first. ``concat``: four columns, (2B, L), chosen rows
            first.
        labels: ``unshifted``: the model shifts (mindrlhf's Qwen). ``shifted``: labels[t] is input_ids[t + 1]
            (mindrlhf's GLM4).
        margin: Whether to add a margin column, (B,) float32, from the data.
        append_eos: Whether the tokenizer's end token follows the response, under the loss, where there is no chat
            template.
    """

    max_length: int
    _: KW_ONLY
    max_prompt_length: int | None = None
    truncation: str = "prompt_left"
    layout: str = "paired"
    labels: str = "unshifted"
    margin: bool = False
    append_eos: bool = added(True)

    name: ClassVar[str] = "dpo"
    batch_options: ClassVar[tuple[str, ...]] = ("layout",)
    reference_layout: ClassVar[str] = "paired"

    __repr__ = shown

    def __post_init__(self) -> None:
        check_flag("DPO", "append_eos", self.append_eos)
        budget("DPO", self.max_length, self.max_prompt_length, self.truncation)
        check_choice("DPO", "layout", self.layout, ("paired", "concat"))
        check_choice("DPO", "labels", self.labels, ("unshifted", "shifted"))

    @property
    def no_packs(self) -> str | None:  # type: ignore[override]  # read-only
        if self.layout == "paired":
            return None
        return (
            "layout='concat' puts chosen rows before rejected rows, but packs have a layout of their own, with both "
            "sides of a pair in one row. Leave layout out."
        )

    @property
    def shifted(self) -> bool:  # type: ignore[override]  # read-only
        return self.labels == "shifted"

    def sampler(self, tokenizer: Tokenizer | None) -> Sampler:
        limits = budget("DPO", self.max_length, self.max_prompt_length, self.truncation)

        def sample(rows: Uncut) -> Block:
            block = fit_pairs(rows, limits)
            leave_out_first_tokens(block, change=self.shifted)
            return block

        return sample
