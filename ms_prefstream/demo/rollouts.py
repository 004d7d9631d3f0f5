"""Responses sampled from a model, which RLHF and online DPO train on.

This module imports MindSpore. Prompts and responses share arrays of one fixed width, so graph mode compiles once.
The whole sequence is computed again for every token, which is fast enough for a model this small; a large one needs a
key-value cache.
"""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from numpy.typing import NDArray

from ms_prefstream.demo.model import CausalLM
from ms_prefstream.errors import OptionError


class Rollouts(NamedTuple):
    """Prompts with sampled responses: R rows of P + N columns.

    A prompt (5, 6) and a response (7, 9) in 3 + 2 columns, with a pad id of 0:

        ids 5 6 7 9 0   mask 0 0 1 1 0   begins 2   ends 4

    Attributes:
        ids: (R, P + N) int32, padded on the right; a response directly follows its prompt.
        mask: (R, P + N) int32, 1 on the response and its end token.
        begins: (R,) int32, tokens of each prompt.
        ends: (R,) int32, tokens of each row.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.int32]
    begins: NDArray[np.int32]
    ends: NDArray[np.int32]

    def responses(self) -> list[NDArray[np.int32]]:
        """Returns the ids of each response, end token included."""
        return [row[begin:end] for row, begin, end in zip(self.ids, self.begins, self.ends, strict=True)]


def prompt_lengths(prompt_ids: NDArray[np.int32], pad_id: int) -> NDArray[np.int32]:
    """Returns the tokens of each prompt, (R,): all but the pad ids at its end."""
    filled = prompt_ids[:, ::-1] != pad_id
    if not filled.any(axis=1).all():
        raise OptionError("a prompt has no tokens; every row needs at least one.")
    lengths: NDArray[np.int32] = (prompt_ids.shape[1] - filled.argmax(axis=1)).astype(np.int32)
    return lengths


def end_of_turn(pretrain_ids: NDArray[np.int32], loss_mask: NDArray[np.int32]) -> int:
    """Returns the id that ends a response: the last one under the mask in most rows, as some may have been cut.

    Args:
        pretrain_ids: (B, L) int32, a column of `mps.RLHF`.
        loss_mask: (B, L) int32, 1 on responses; rows without one are skipped.
    """
    lasts = [ids[mask == 1][-1] for ids, mask in zip(pretrain_ids, loss_mask, strict=True) if mask.any()]
    if not lasts:
        raise OptionError("no row has a response; at least one is needed to see what ends it.")
    return int(np.bincount(lasts).argmax())


class _NextLogits(nn.Cell):  # type: ignore[misc]
    """Logits of the next token: (R, L) ids and the position of each row's last token, (R,) -> (R, vocab)."""

    def __init__(self, policy: CausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.policy = policy

    def construct(self, ids: Tensor, last: Tensor) -> Tensor:
        here = ops.one_hot(last, ids.shape[1], Tensor(1.0, ms.float32), Tensor(0.0, ms.float32))
        states = ops.bmm(here.expand_dims(1), self.policy.backbone(ids)).squeeze(1)  # (R, 1, L) by (R, L, hidden)
        return ops.matmul(states, self.policy.backbone.tokens.T)


class Roller:
    """Sampler of responses from a model.

    Args:
        policy: The model; every draw uses its current weights.
        new_tokens: Tokens of a response, at most.
        end_id: Ends a response, and is part of it.
        pad_id: Fills rows; it is never drawn.
    """

    def __init__(self, policy: CausalLM, *, new_tokens: int, end_id: int, pad_id: int) -> None:
        if new_tokens < 1:
            raise OptionError(f"new_tokens is {new_tokens}; it must be at least 1.")
        self.new_tokens, self.end_id, self.pad_id = new_tokens, end_id, pad_id

        # Not wrapped in `ms.jit`, which would keep the old weights after set_data; graph mode compiles it anyway.
        self._next_logits = _NextLogits(policy)

    def draw(self, prompt_ids: NDArray[np.int32], random: np.random.Generator, *, each: int = 1) -> Rollouts:
        """Samples responses to prompts, at temperature 1.

        Args:
            prompt_ids: (B, P) int32, padded on the right: the column of `mps.RLHF`.
            random: The random generator.
            each: Responses to each prompt, in consecutive rows.

        Returns:
            B * each rows.
        """
        prompts = np.repeat(prompt_ids, each, axis=0)
        rows, width = prompts.shape
        ids = np.full((rows, width + self.new_tokens), self.pad_id, np.int32)
        ids[:, :width] = prompts
        begins = prompt_lengths(prompts, self.pad_id)
        ends, going = begins.copy(), np.ones(rows, bool)
        for _ in range(self.new_tokens):
            logits = self._next_logits(Tensor(ids), Tensor(ends - 1)).asnumpy()
            noise = random.gumbel(size=logits.shape)  # the largest of logits + noise is a draw from their softmax
            logits[:, self.pad_id] = -np.inf
            drawn = (logits + noise).argmax(axis=1)
            ids[going, ends[going]] = drawn[going]
            ends += going
            going &= drawn != self.end_id
            if not going.any():
                break
        columns = np.arange(ids.shape[1])
        mask = (columns >= begins[:, None]) & (columns < ends[:, None])
        return Rollouts(ids, mask.astype(np.int32), begins, ends)
