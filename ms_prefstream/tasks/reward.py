"""Reward models: both sides are scored at their last token, or at a reward token appended to them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.checks import checked_call
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.truncate import Uncut
from ms_prefstream.errors import OptionError, Reason, RowError, TokenizerError
from ms_prefstream.sample import Block
from ms_prefstream.tasks.base import (
    Sampler,
    Traits,
    added,
    budget,
    check_choice,
    check_flag,
    fit_pairs,
    shown,
)

_SHOWN = 8  # reserved tokens that an error lists


@checked_call
@dataclass(frozen=True)
class Reward(Traits):
    """Preference pairs for a reward model.

    Attributes:
        max_length: Tokens of one side, prompt, response and reward token together.
        layout: ``mindformers``: the batch that MindFormers' RewardModelDataset made, scored at ``end_ind - 1``.
            ``reward_token``: a reward token appended to each side has the only label, 0 for chosen and 1 for rejected
            (XTuner's convention).
        reward_token: Its text or id. None takes a reserved token of the vocabulary. A text that is in no vocabulary
            gets the first id after the tokenizer's own, where the model's embedding has one (``vocab_size`` of
            `ms_prefstream.stream`). ``reward_token`` layout only.
        max_prompt_length: Tokens of the prompt alone, generation header included; None for no separate limit.
        truncation: ``prompt_left``, ``response_right`` or ``drop`` (see `ms_prefstream.encode.truncate`).
        margin: Whether to add a margin column, (B,) float32, from the data.
        append_eos: Whether the tokenizer's end token follows the response, under the loss, where there is no chat
            template.
    """

    max_length: int
    _: KW_ONLY
    layout: str = "mindformers"
    reward_token: str | int | None = None
    max_prompt_length: int | None = None
    truncation: str = "prompt_left"
    margin: bool = False
    append_eos: bool = added(True)

    name: ClassVar[str] = "reward"

    __repr__ = shown

    def __post_init__(self) -> None:
        check_flag("Reward", "append_eos", self.append_eos)
        check_choice("Reward", "layout", self.layout, ("mindformers", "reward_token"))
        budget("Reward", self.max_length, self.max_prompt_length, self.truncation, self._reserve)
        token = self.reward_token
        if token is not None and self.layout != "reward_token":
            raise OptionError(
                f"Reward: reward_token is {token!r}, but layout is {self.layout!r}, which has none. "
                'Pass layout="reward_token", or leave reward_token out.'
            )
        is_id = isinstance(token, int) and not isinstance(token, bool) and token >= 0
        if not (token is None or is_id or (isinstance(token, str) and token)):
            raise OptionError(f"Reward: reward_token is {token!r}; expected the text or the id of a token.")

    @property
    def scores(self) -> bool:  # type: ignore[override]  # read-only
        return self.layout == "reward_token"

    @property
    def no_packs(self) -> str | None:  # type: ignore[override]  # read-only
        if self.scores:
            return None
        return (
            "the reward layout 'mindformers' scores one sequence a row at end_ind, which its reader compares between "
            "the two halves of a batch, so its rows cannot be shared. Pass Reward(..., layout='reward_token'), or use "
            "Pad or Bucket."
        )

    @property
    def _reserve(self) -> int:
        return 1 if self.scores else 0

    def token_id(self, tokenizer: Tokenizer | None) -> int:
        """Returns the id of the reward token.

        Raises:
            TokenizerError: It is not in the vocabulary and has no free id, or none was given and none is reserved.
        """
        if isinstance(self.reward_token, int):
            if tokenizer is not None and self.reward_token >= tokenizer.ids:
                raise TokenizerError(
                    f"Reward: reward_token is {self.reward_token}, but tokenizer {tokenizer.name} has the ids 0 to "
                    f"{tokenizer.ids - 1}. Give an id of the vocabulary, or vocab_size=<rows of the model's embedding> "
                    "if it lies beyond."
                )
            return self.reward_token
        if tokenizer is None:
            raise TokenizerError("Reward: rows that are already tokenized need reward_token as an id; give a number.")
        if self.reward_token is None:
            reserved = tokenizer.reserved_id
            if reserved is None:
                raise TokenizerError(
                    f"Reward: tokenizer {tokenizer.name} has no reserved token to serve as reward token. Name one that "
                    'your model does not use otherwise, as Reward(..., reward_token="<text or id>").'
                )
            return reserved
        found = tokenizer.token_id(self.reward_token)
        if found is not None:
            return found
        if tokenizer.vocab_size < tokenizer.ids:
            return tokenizer.vocab_size
        safe = [f"{name} (id {id_})" for name, id_ in tokenizer.reserved.items()][:_SHOWN]
        choice = f"Choose a reserved token of it: {', '.join(safe)}; or" if safe else "No token of it is reserved, so"
        raise TokenizerError(
            f"Reward: reward_token {self.reward_token!r} is not in the vocabulary of tokenizer {tokenizer.name}, and "
            f"no free id is known for it. {choice} give vocab_size=<rows of the model's embedding> if that is larger "
            f"than {tokenizer.vocab_size}: the token then gets the id {tokenizer.vocab_size}."
        )

    def sampler(self, tokenizer: Tokenizer | None) -> Sampler:
        limits = budget("Reward", self.max_length, self.max_prompt_length, self.truncation, self._reserve)
        if self.layout == "mindformers":
            return lambda rows: fit_pairs(rows, limits)
        token = self.token_id(tokenizer)

        def sample(rows: Uncut) -> Block:
            _refuse_token(rows.block, token)
            block = fit_pairs(rows, limits)
            _append(block, token)
            return block

        return sample

    def refused(self, tokenizer: Tokenizer | None) -> dict[str, int]:
        if self.layout != "reward_token" or tokenizer is None:
            return {}
        token = self.token_id(tokenizer)
        return {name: id_ for name, id_ in tokenizer.special_in_template.items() if id_ == token}


def _refuse_token(block: Block, token: int) -> None:
    """Refuses the rows that hold the reward token."""
    if not (block.ids == token).any():
        return
    for side, name in enumerate(("chosen", "rejected")):
        for row, ids in enumerate(block.arrays(side)):
            if (ids == token).any():
                block.refuse(
                    row,
                    RowError(
                        Reason.SPECIAL_TOKEN,
                        f"the {name} side holds the reward token, id {token}; expected it nowhere but at the end",
                        "Correct the row, or choose a reward token that neither text nor chat template uses",
                    ),
                )


def _append(block: Block, token: int) -> None:
    """Appends the reward token to every sequence, the only token that has a label."""
    one = np.array([token], np.int32)
    arrays = [part for side in range(block.sides) for ids in block.arrays(side) for part in (ids, one)]
    block.ids = np.concatenate(arrays, dtype=np.int32) if arrays else block.ids
    ends: NDArray[np.int64] = np.cumsum(block.lengths.T + 1).reshape(block.sides, -1).T
    is_good = block.good[:, None]
    block.begins = ends - block.lengths - 1
    block.spans = np.where(is_good[..., None], np.stack([block.lengths, block.lengths + 1], axis=-1), 0)
    block.lengths = np.where(is_good, block.lengths + 1, 0)
    block.more.clear()
