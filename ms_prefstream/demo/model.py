"""A small causal language model and the reward model built on it, for any (rows, L) up to `max_length`.

This module imports MindSpore. Padding is on the right and attention looks only to the left, so no real token ever
sees padding and padded rows need no attention mask. Packed rows bring positions that restart with each sequence and a
mask that keeps the sequences apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from ms_prefstream.errors import OptionError

_MASKED = -1e4  # far below any score, and still a number in float16


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The size of a model.

    Args:
        vocab_size: Number of token ids; every id of a batch lies below it.
        max_length: The longest sequence that position embeddings exist for.
        hidden: Width of the residual stream; a multiple of `heads`.
        layers: Number of transformer blocks.
        heads: Number of attention heads.
    """

    vocab_size: int
    max_length: int
    hidden: int = 64
    layers: int = 2
    heads: int = 2

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_length", "hidden", "layers", "heads"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.hidden % self.heads:
            raise OptionError(f"hidden is {self.hidden}, which {self.heads} heads do not divide evenly.")


def _weight(shape: tuple[int, ...], name: str) -> Any:
    return Parameter(initializer(Normal(0.02), shape, ms.float32), name=name)


def _dense(inputs: int, outputs: int) -> Any:
    return nn.Dense(inputs, outputs, weight_init=Normal(0.02), has_bias=False)


class Attention(nn.Cell):  # type: ignore[misc]
    """Causal self-attention, (B, L, hidden) -> (B, L, hidden)."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.heads = options.heads
        self.scale = 1.0 / math.sqrt(options.hidden // options.heads)
        self.query = _dense(options.hidden, options.hidden)
        self.key = _dense(options.hidden, options.hidden)
        self.value = _dense(options.hidden, options.hidden)
        self.output = _dense(options.hidden, options.hidden)
        self.similarity = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()

    def construct(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attends; `mask` is (B, heads, L, L): 0 where a token may look, a large negative number elsewhere."""
        scores = self.similarity(self.split(self.query(x) * self.scale), self.split(self.key(x)))  # (B, heads, L, L)
        mixed = self.mix(ops.exp(ops.log_softmax(scores + mask, axis=-1)), self.split(self.value(x)))
        return self.output(mixed.transpose(0, 2, 1, 3).reshape(x.shape))

    def split(self, x: Tensor) -> Tensor:
        """Splits heads: (B, L, hidden) -> (B, heads, L, hidden / heads)."""
        rows, length, hidden = x.shape
        return x.reshape(rows, length, self.heads, hidden // self.heads).transpose(0, 2, 1, 3)


class Block(nn.Cell):  # type: ignore[misc]
    """A transformer block with normalisation before each half."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm((options.hidden,))
        self.attention = Attention(options)
        self.feed_norm = nn.LayerNorm((options.hidden,))
        self.feed_up = _dense(options.hidden, 4 * options.hidden)
        self.feed_down = _dense(4 * options.hidden, options.hidden)

    def construct(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps (B, L, hidden) -> (B, L, hidden)."""
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.feed_down(ops.relu(self.feed_up(self.feed_norm(x))))


class Backbone(nn.Cell):  # type: ignore[misc]
    """Layers from token ids to hidden states: (B, L) int32 -> (B, L, hidden) float32."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.heads = options.heads
        self.tokens = _weight((options.vocab_size, options.hidden), "tokens")
        self.positions = _weight((options.max_length, options.hidden), "positions")
        self.blocks = nn.CellList([Block(options) for _ in range(options.layers)])
        self.norm = nn.LayerNorm((options.hidden,))

    def construct(self, input_ids: Tensor, position_ids: Any = None, masked: Any = None) -> Tensor:
        """Computes hidden states; without the other two, positions count from 0 in every row, as for right padding.

        Args:
            input_ids: (B, L) int32.
            position_ids: (B, L) int32, of packed rows.
            masked: (B, 1, L, L), 1 where a token may not look and 0 elsewhere: `mps.causal_mask` of packed rows.
        """
        rows, length = input_ids.shape
        # Tiled, not broadcast: on the CPU MindSpore adds equal shapes twenty times faster.
        if masked is None:
            future = ops.triu(ops.full((length, length), _MASKED, dtype=ms.float32), 1)
            mask = ops.tile(future, (rows, self.heads, 1, 1))
        else:
            mask = ops.tile(masked.astype(ms.float32) * _MASKED, (1, self.heads, 1, 1))
        if position_ids is None:
            positions = ops.tile(self.positions[:length], (rows, 1, 1))
        else:
            positions = ops.gather(self.positions, position_ids, 0)
        x = ops.gather(self.tokens, input_ids, 0) + positions
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class CausalLM(nn.Cell):  # type: ignore[misc]
    """A model of next-token logits, (B, L) int32 -> (B, L, vocab_size) float32; its output matrix is the embedding."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.options = options
        self.backbone = Backbone(options)

    def construct(self, input_ids: Tensor, position_ids: Any = None, masked: Any = None) -> Tensor:
        """Returns logits; those at position t are for the token at t + 1."""
        return ops.matmul(self.backbone(input_ids, position_ids, masked), self.backbone.tokens.T)


class RewardModel(nn.Cell):  # type: ignore[misc]
    """A model of scores at every position, (B, L) int32 -> (B, L) float32.

    The head starts at zero: before training every pair is a tie.
    """

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.options = options
        self.backbone = Backbone(options)
        self.score = nn.Dense(options.hidden, 1, weight_init="zeros", has_bias=False)

    def construct(self, input_ids: Tensor, position_ids: Any = None, masked: Any = None) -> Tensor:
        """Returns scores; that of a response is the one at its last token."""
        return self.score(self.backbone(input_ids, position_ids, masked)).squeeze(-1)
