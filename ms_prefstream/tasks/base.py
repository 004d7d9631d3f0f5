"""What a task is: which records it takes, how long they may be, and what they become."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Protocol, TypeAlias

from ms_prefstream.encode.fit import TRUNCATIONS, Budget, Flat
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import OptionError
from ms_prefstream.tasks.sample import Sample

Sampler: TypeAlias = Callable[[Many[Flat], float | None], Sample]
"""(sides of one row, margin) -> sample; raises `RowError` when nothing can be learned from the row."""


class Task(Protocol):
    """The options of a task; frozen, checked when they are made."""

    @property
    def name(self) -> str:
        """``dpo``, ``reward`` or ``rlhf``."""

    @property
    def layout(self) -> str:
        """Which arrays a batch has (see `ms_prefstream.batch`)."""

    @property
    def pairs(self) -> bool:
        """Whether rows must be pairs; otherwise the chosen side of a pair is the response."""

    @property
    def length(self) -> int:
        """Tokens of the longest sequence a sample can have."""

    @property
    def shifted(self) -> bool:
        """Whether labels and loss mask stand one column to the left."""

    @property
    def margin(self) -> bool:
        """Whether batches have a margin column."""

    @property
    def prompt_columns(self) -> int | None:
        """Columns of prompt_ids, for the layout that has them."""

    def sampler(self, tokenizer: Tokenizer | None) -> Sampler:
        """The function that makes samples, bound to what it needs of the tokenizer.

        Raises:
            TokenizerError: If the vocabulary lacks what the task needs.
        """

    def refused(self, tokenizer: Tokenizer | None) -> dict[str, int]:
        """Control tokens that no content may hold, whatever `special_tokens_in_content` says."""


def check_length(task: str, name: str, value: object, least: int = 1) -> None:
    """Refuse anything but a whole number of at least `least` tokens."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise OptionError(f"{task}: {name} is {value!r}; expected a whole number of tokens, {least} or more.")


def check_choice(task: str, name: str, value: object, allowed: Many[str]) -> None:
    """Refuse anything that is not one of the allowed words."""
    if value not in allowed:
        raise OptionError(f"{task}: {name} is {value!r}; expected one of {', '.join(map(repr, allowed))}.")


def budget(task: str, max_length: int, max_prompt_length: int | None, truncation: str, reserve: int = 0) -> Budget:
    """The checked budget of a task (a prompt limit must leave room for one response token)."""
    check_length(task, "max_length", max_length, 2 + reserve)
    if max_prompt_length is not None:
        check_length(task, "max_prompt_length", max_prompt_length)
        if max_prompt_length >= max_length - reserve:
            raise OptionError(
                f"{task}: max_prompt_length is {max_prompt_length} and max_length {max_length}; expected the prompt "
                f"limit to be at most {max_length - reserve - 1}, so that a response token fits. Leave it out for none."
            )
    check_choice(task, "truncation", truncation, TRUNCATIONS)
    return Budget(max_length=max_length, max_prompt_length=max_prompt_length, truncation=truncation, reserve=reserve)
