"""KTO: single responses, each marked as good or bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from ms_prefstream.checks import checked_call
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.truncate import Uncut
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Record
from ms_prefstream.sample import Block, Note
from ms_prefstream.tasks.base import (
    Sampler,
    Traits,
    added,
    budget,
    check_flag,
    has_spans,
    leave_out_first_tokens,
    only_side,
    shown,
)
from ms_prefstream.tasks.records import TaskRecord, labelled_record


@checked_call
@dataclass(frozen=True)
class KTO(Traits):
    """Responses that are desirable or not, for Kahneman-Tversky optimisation. A pair becomes two samples.

    Attributes:
        max_length: Tokens of prompt and response together.
        kl: Whether a batch also has the columns ``kl_*``, by which the loss estimates its reference point: each prompt
            with the response of its partner, the next row of the step whose prompt is another one.
        max_prompt_length: Tokens of the prompt alone, generation header included; None for no separate limit.
        truncation: ``prompt_left``, ``response_right`` or ``drop`` (see `ms_prefstream.encode.truncate`). The rows of
            ``kl_*`` are cut like rows that came as ids; ``drop`` cuts them as ``prompt_left`` does.
        append_eos: Whether the tokenizer's end token follows the response, under the loss, where there is no chat
            template.
    """

    max_length: int
    _: KW_ONLY
    kl: bool = True
    max_prompt_length: int | None = None
    truncation: str = "prompt_left"
    append_eos: bool = added(True)

    name: ClassVar[str] = "kto"
    layout: ClassVar[str] = "kto"
    pairs: ClassVar[bool] = False
    margin: ClassVar[bool] = False
    columns: ClassVar[Mapping[str, str]] = {"desirable": "int32"}
    unpairs: ClassVar[bool] = True
    batch_options: ClassVar[tuple[str, ...]] = ("kl",)
    reference_layout: ClassVar[str] = "kto"

    __repr__ = shown

    def __post_init__(self) -> None:
        check_flag("KTO", "kl", self.kl)
        check_flag("KTO", "append_eos", self.append_eos)
        budget("KTO", self.max_length, self.max_prompt_length, self.truncation)

    @property
    def least_rows(self) -> int:  # type: ignore[override]  # read-only
        return 2 if self.kl else 1

    @property
    def no_packs(self) -> str | None:  # type: ignore[override]  # read-only
        if not self.kl:
            return None
        return (
            "the columns kl_* of kl=True have rows of their own, for which packs have no place. Pass kl=False to "
            "mps.KTO, or use Bucket or Pad."
        )

    @property
    def layout_options(self) -> Mapping[str, Any]:  # type: ignore[override]  # read-only
        return {"kl_length": self.max_length, "kl_cuts_prompts": self.truncation != "response_right"} if self.kl else {}

    def record(self, record: Record) -> TaskRecord:
        return labelled_record(record)

    def sampler(self, tokenizer: Tokenizer | None) -> Sampler:
        limits = budget("KTO", self.max_length, self.max_prompt_length, self.truncation)

        def sample(rows: Uncut) -> Block:
            block = rows.block
            for row in np.flatnonzero(block.good & ~has_spans(block, 1)).tolist():
                block.refuse(row, RowError(Reason.NO_RESPONSE_TOKENS, "the response has no token"))
            rows.fit(limits, 1)
            block = only_side(block, 1)
            leave_out_first_tokens(block, change=False)
            is_good = block.columns["desirable"] > 0
            block.notes[is_good] |= int(Note.DESIRABLE)
            block.notes[~is_good] |= int(Note.UNDESIRABLE)
            return block

        return sample
