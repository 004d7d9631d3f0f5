"""Losses of packed rows: equal to those of padded rows, summed over the sequences that share a row.

This module imports MindSpore. The columns are those of `mps.Pack` in order, then the dense mask that
`mps.causal_mask` makes of them. Both sides of pair p of a row are its sequences 2p - 1 and 2p.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from ms_prefstream.demo.losses import frozen_copy, token_log_probs
from ms_prefstream.demo.model import CausalLM, RewardModel


def sequence_sums(values: Tensor, segment_ids: Tensor, segments: int) -> Tensor:
    """Returns sums over the tokens of each sequence, without padding (segment 0).

    Args:
        values: (B, L) float32.
        segment_ids: (B, L) int32, 0 on padding, 1, 2, … on sequences.
        segments: How many sequences a row may hold.

    Returns:
        (B, segments) float32, 0 where a row has no such sequence.
    """
    belongs = ops.one_hot(segment_ids, segments + 1, ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32))
    return ops.bmm(values.expand_dims(1), belongs).squeeze(1)[:, 1:]  # (B, 1, L) by (B, L, segments + 1)


def packed_pair_loss(totals: Tensor, pair_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean of `pair_loss` over all pairs of all rows, and the mean of its hits.

    Args:
        totals: (B, 2P) float32, the rating of each sequence: chosen, rejected, chosen, rejected, …
        pair_ids: (B, L) int32, whose largest value in a row is the number of its pairs.
    """
    margins = totals[:, 0::2] - totals[:, 1::2]  # (B, P)
    numbers = ops.arange(1, margins.shape[1] + 1)
    real = (numbers.expand_dims(0) <= pair_ids.max(axis=1, keepdims=True)).astype(ms.float32)
    pairs = real.sum()
    hits = (ops.sign(margins) + 1.0) * 0.5
    return -(ops.logsigmoid(margins) * real).sum() / pairs, (hits * real).sum() / pairs


class PackedRewardLoss(nn.Cell):  # type: ignore[misc]
    """Loss and pair accuracy of a reward model, from packed rows of ``mps.Reward(layout="reward_token")``.

    Args:
        model: Scores every position; a side's score is the one at its reward token.
        pairs: How many pairs a row may hold.
    """

    def __init__(self, model: RewardModel, pairs: int) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.segments = 2 * pairs

    def construct(
        self,
        input_ids: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        pair_ids: Tensor,
        actual_seq_len: Tensor,
        masked: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Computes the loss; the loss mask is 1 at reward tokens only, so a sequence's sum is its score."""
        scores = self.model(input_ids, position_ids, masked) * loss_mask.astype(ms.float32)
        return packed_pair_loss(sequence_sums(scores, segment_ids, self.segments), pair_ids)


class PackedDPOLoss(nn.Cell):  # type: ignore[misc]
    """Loss and pair accuracy of a policy, from packed rows of `mps.DPO` with unshifted labels; see `DPOLoss`.

    Args:
        policy: The model that is trained.
        beta: How strongly it is kept near the reference.
        pairs: How many pairs a row may hold.
    """

    def __init__(self, policy: CausalLM, beta: float, pairs: int) -> None:
        super().__init__(auto_prefix=False)
        self.policy = policy
        self.reference = frozen_copy(policy)
        self.beta = beta
        self.segments = 2 * pairs

    def construct(
        self,
        input_ids: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        pair_ids: Tensor,
        actual_seq_len: Tensor,
        masked: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Computes the loss; a sequence's first token has mask 0, so none is predicted from another sequence."""
        rated = self._log_probs(self.policy, input_ids, labels, loss_mask, position_ids, masked)
        expected = self._log_probs(self.reference, input_ids, labels, loss_mask, position_ids, masked)
        gains = sequence_sums(rated - ops.stop_gradient(expected), segment_ids[:, 1:], self.segments)
        return packed_pair_loss(gains * self.beta, pair_ids)

    def _log_probs(self, model: Any, ids: Tensor, labels: Tensor, mask: Tensor, places: Tensor, masked: Tensor) -> Any:
        return token_log_probs(model(ids, places, masked), labels, mask)
