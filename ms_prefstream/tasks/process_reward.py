"""Process reward models: every step of a response is scored where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, cast

import numpy as np

from ms_prefstream.checks import checked_call
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.truncate import Uncut
from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats.record import Record, Stepwise
from ms_prefstream.sample import LARGEST, Block, Note, Span
from ms_prefstream.tasks.base import Sampler, Traits, added, budget, check_flag, only_side, shown
from ms_prefstream.tasks.records import step_record


@checked_call
@dataclass(frozen=True)
class ProcessReward(Traits):
    """Steps of a response with a label each, scored at the token that ends them.

    Every step, the last one too, is followed by the separator. Its label stands at the token that holds the
    separator's last character. Where the chat template trims the last separator, it stands at the last token of the
    step.

    Attributes:
        max_length: Tokens of prompt and steps together.
        step_separator: The text after every step.
        last_step_only: Whether the last step alone has a label.
        values: Whether labels are numbers: columns step_values, float32, and step_mask instead of labels.
        max_prompt_length: Tokens of the prompt alone, generation header included; None for no separate limit.
        truncation: ``prompt_left``, ``response_right`` or ``drop`` (see `ms_prefstream.encode.truncate`). A row that is
            cut keeps the labels of the steps that it keeps whole.
        append_eos: Whether the tokenizer's end token follows the response where there is no chat template.
    """

    max_length: int
    _: KW_ONLY
    step_separator: str = "\n"
    last_step_only: bool = False
    values: bool = False
    max_prompt_length: int | None = None
    truncation: str = "prompt_left"
    append_eos: bool = added(True)

    name: ClassVar[str] = "process-reward"
    layout: ClassVar[str] = "process_reward"
    pairs: ClassVar[bool] = False
    margin: ClassVar[bool] = False
    scores_spans: ClassVar[bool] = True
    no_packs: ClassVar[str] = (
        "the steps of mps.ProcessReward are scored in rows of their own, which readers do not share. Use Bucket or Pad."
    )

    __repr__ = shown

    def __post_init__(self) -> None:
        for name in ("last_step_only", "values", "append_eos"):
            check_flag("ProcessReward", name, getattr(self, name))
        budget("ProcessReward", self.max_length, self.max_prompt_length, self.truncation)
        if not isinstance(self.step_separator, str) or not self.step_separator:
            raise OptionError(
                f"ProcessReward: step_separator is {self.step_separator!r}; expected the text after each step, such as "
                r"'\n': its last character has the step's label."
            )

    @property
    def layout_options(self) -> Mapping[str, Any]:  # type: ignore[override]  # read-only
        return {"values": self.values}

    def record(self, record: Record) -> Stepwise:
        found = step_record(record, self.step_separator)
        for index, label in enumerate(found.labels, 1):
            if abs(label) > LARGEST:
                raise RowError(
                    Reason.BAD_TYPE,
                    f"item {index} of field 'labels' is {label:g}; expected a number that float32 can hold, up to "
                    f"{LARGEST:.1e}",
                    "Scale the labels",
                )
            if not self.values and not isinstance(label, bool):
                raise RowError(
                    Reason.BAD_TYPE,
                    f"item {index} of field 'labels' is {label:g}; expected true or false",
                    "Pass values=True to mps.ProcessReward for numbers, or write true or false",
                )
        return found

    def sampler(self, tokenizer: Tokenizer | None) -> Sampler:
        limits = budget("ProcessReward", self.max_length, self.max_prompt_length, self.truncation)

        def sample(rows: Uncut) -> Block:
            block, scores = rows.block, {}
            for row in np.flatnonzero(block.good).tolist():
                try:
                    spans, scores[row] = self._labelled(rows, row)
                    block.set_spans(row, 1, spans)
                except RowError as error:
                    block.refuse(row, error)
            before = len(block.errors)
            rows.fit(limits, 1)
            for row, found in list(block.errors.items())[before:]:
                if found.reason is Reason.NO_RESPONSE_TOKENS and self.truncation == "prompt_left":
                    block.errors[row] = RowError(found.reason, f"no labelled step ends within {self.max_length} tokens")
            cut = only_side(block, 1)
            kept = np.flatnonzero(cut.good).tolist()
            cut.scores = {row: scores[row][: len(cut.spans_of(row, 0))] for row in kept}
            return cut

        return sample

    def _labelled(self, rows: Uncut, row: int) -> tuple[list[Span], tuple[float, ...]]:
        """Returns the tokens that end the labelled steps of a row, and the labels as numbers.

        Raises:
            RowError: The label of a step has no token of its own.
        """
        record = cast(Stepwise, rows.records[row])
        places = rows.cuts(row, 1).places(record.response[0].content)
        ends = np.cumsum([len(step) + len(self.step_separator) for step in record.steps])
        tokens = places[ends - 1]
        last = len(tokens) - 1
        if tokens[last] < 0:  # the template trims the end of a content
            kept = np.flatnonzero(places >= 0)
            begin = int(ends[last - 1]) if last else 0
            if len(kept) and kept[-1] >= begin:
                tokens[last] = places[kept[-1]]
                rows.block.notes[row] |= Note.SEPARATOR_TRIMMED
        for step in np.flatnonzero(tokens < 0).tolist()[:1]:
            raise RowError(
                Reason.CONTENT_LOST,
                f"the chat template leaves out the end of step {step + 1} of {len(tokens)}, so that its label has no "
                "token",
                "Pass template= that writes responses as they are, or another step_separator",
            )
        for step in np.flatnonzero(np.diff(tokens) <= 0).tolist()[:1]:
            raise RowError(
                Reason.BAD_TYPE,
                f"steps {step + 1} and {step + 2} end in one token, which can have one label only",
                "Correct the row, or pass another step_separator",
            )
        first = last if self.last_step_only else 0
        return [(token, token + 1) for token in tokens[first:].tolist()], tuple(map(float, record.labels[first:]))
