"""RLHF / PPO: prompts to start rollouts from, and prompt + response for the pretraining loss."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from ms_prefstream.checks import checked_call, whole_number
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.truncate import TRUNCATIONS, Budget, Flat, fit
from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.sample import Sample, Sequence
from ms_prefstream.tasks.base import Sampler, added, budget, check_choice, check_flag, shown


@checked_call
@dataclass(frozen=True)
class RLHF:
    """Prompts and responses as mindrlhf's PPO and GRPO trainers read them.

    Attributes:
        max_prompt_length: Columns of prompt_ids; longer prompts are cut on the left.
        seq_length: Tokens of prompt and response together. It is the array length: a PPO model of length S, which
            slices one column off, wants S + 1.
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
    shifted: ClassVar[bool] = False
    margin: ClassVar[bool] = False

    __repr__ = shown

    def __post_init__(self) -> None:
        check_flag("RLHF", "append_eos", self.append_eos)
        whole_number("RLHF: max_prompt_length", self.max_prompt_length, 1)
        whole_number("RLHF: seq_length", self.seq_length, 2)
        check_choice("RLHF", "truncation", self.truncation, (*TRUNCATIONS, "right"))
        if self.max_prompt_length > self.seq_length:
            raise OptionError(
                f"RLHF: max_prompt_length is {self.max_prompt_length} and seq_length {self.seq_length}; expected the "
                "prompt to be no longer than the sequence that also holds the response."
            )

    @property
    def length(self) -> int:
        return self.seq_length

    @property
    def prompt_columns(self) -> int:
        return self.max_prompt_length

    def sampler(self, tokenizer: Tokenizer | None) -> Sampler:
        columns, length = self.max_prompt_length, self.seq_length
        if self.truncation == "right":
            return lambda sides, margin: _cut_right(sides, columns, length)
        prompt_limits = Budget(max_length=columns, max_prompt_length=columns, truncation=self.truncation)
        limits = budget("RLHF", length, columns if columns < length else None, self.truncation)

        def sample(sides: Many[Flat], margin: float | None) -> Sample:
            if len(sides) > 1 and not sides[1].spans:
                raise RowError(Reason.NO_RESPONSE_TOKENS, "the response has no token")
            (prompt,) = fit(sides[:1], prompt_limits)
            if not len(prompt.ids):
                raise _no_prompt(sides[0], columns)
            if len(sides) == 1:
                return Sample((prompt,), prompt.ids)
            return Sample(fit(sides[1:], limits), prompt.ids)

        return sample

    def refused(self, tokenizer: Tokenizer | None) -> dict[str, int]:
        return {}


def _cut_right(sides: Many[Flat], columns: int, length: int) -> Sample:
    """Cuts the prompt to `columns` tokens and prompt + response to `length`, each on the right, at any token.

    The loss begins after as many tokens as the cut prompt has: a longer prompt has its rest under the loss, and a row
    whose prompt fills `length` has no loss at all. Both are the definition of mindrlhf's rlhf_data.py, which writes
    such rows.
    """
    prompt = sides[0].ids[:columns]
    if not len(prompt):
        raise _no_prompt(sides[0], columns)
    cut = len(prompt) < len(sides[0].ids)
    if len(sides) == 1:
        return Sample((Sequence(prompt, (), cut),), prompt)
    ids = sides[1].ids[:length]
    spans = ((len(prompt), len(ids)),) if len(prompt) < len(ids) else ()
    return Sample((Sequence(ids, spans, cut or len(ids) < len(sides[1].ids)),), prompt)


def _no_prompt(side: Flat, columns: int) -> RowError:
    if side.prompt:
        return RowError(Reason.TOO_LONG, f"no character of the prompt fits into {columns} tokens")
    return RowError(
        Reason.MISSING_FIELD,
        "the prompt is empty; expected text for a rollout to start from",
        "Fill it in, or use a chat template, which gives an empty prompt a frame",
    )
