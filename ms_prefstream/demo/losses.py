"""Losses of the demo and the examples: reward models, process rewards, DPO, KTO and GRPO.

This module imports MindSpore. In every batch of 2B rows the chosen side of pair i is row i, the rejected one row B + i.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from numpy.typing import NDArray

from ms_prefstream.demo.model import CausalLM, RewardModel


def pair_loss(margins: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the negative log-likelihood that chosen beats rejected, and how often it does.

    The Bradley-Terry model says P(chosen beats rejected) = sigmoid(margin). A tie counts as half a hit.

    Args:
        margins: (B,) float32, how much higher the chosen side is rated.

    Returns:
        Mean loss and pair accuracy, scalars.
    """
    hits = (ops.sign(margins) + 1.0) * 0.5  # 0, 0.5 for a tie, 1
    return -ops.logsigmoid(margins).mean(), hits.mean()


def end_scores(scores: Tensor, end_ind: Tensor) -> Tensor:
    """Returns the score at each row's last token: scores (2B, L), end_ind (2B,) = number of tokens -> (2B,)."""
    return ops.gather_elements(scores, 1, (end_ind - 1).reshape(-1, 1)).reshape(-1)


def sequence_log_probs(logits: Tensor, labels: Tensor, loss_mask: Tensor) -> Tensor:
    """Returns the log-probability of each response, summed over its tokens.

    Labels and mask are unshifted, so the prediction at t is compared with the label at t + 1:

        tokens     what  is  it  ?  yes  <end>
        loss_mask     0   0   0  0    1      1
        predicted        is  it  ?  yes  <end>     logits[:-1] against labels[1:], under loss_mask[1:]

    Args:
        logits: (rows, L, vocab) float32.
        labels: (rows, L) int32, anything (-100) where the mask is 0.
        loss_mask: (rows, L) int32, 1 on response tokens.

    Returns:
        (rows,) float32.
    """
    return token_log_probs(logits, labels, loss_mask).sum(axis=-1)


def token_log_probs(logits: Tensor, labels: Tensor, loss_mask: Tensor) -> Tensor:
    """Returns log-probabilities of labels, 0 where the mask is 0: (rows, L, vocab) and (rows, L) -> (rows, L - 1).

    Column t belongs to the label at t + 1; see `sequence_log_probs`.
    """
    mask = loss_mask[:, 1:]
    targets = (labels[:, 1:] * mask).expand_dims(-1)  # -100 is no index: masked positions look at id 0
    log_probs = ops.gather_elements(ops.log_softmax(logits[:, :-1], axis=-1), 2, targets).squeeze(-1)
    return log_probs * mask.astype(ms.float32)


class RewardLoss(nn.Cell):  # type: ignore[misc]
    """Loss and pair accuracy of a reward model, from the columns of `mps.Reward(layout="mindformers")` in order."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(
        self, input_ids: Tensor, position_id: Tensor, attention_mask: Tensor, loss_mask: Tensor, end_ind: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Computes the loss; padding is on the right and the model causal, so ids and lengths suffice."""
        scores = end_scores(self.model(input_ids), end_ind)
        pairs = end_ind.shape[0] // 2
        return pair_loss(scores[:pairs] - scores[pairs:])


class RewardTokenLoss(nn.Cell):  # type: ignore[misc]
    """Loss and pair accuracy of a reward model, from the columns of ``mps.Reward(layout="reward_token")`` in order."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the loss; the only label of a row is at its reward token, whose score is the row's."""
        scores = (self.model(input_ids) * (labels >= 0).astype(ms.float32)).sum(axis=1)
        pairs = scores.shape[0] // 2
        return pair_loss(scores[:pairs] - scores[pairs:])


class DPOLoss(nn.Cell):  # type: ignore[misc]
    """Loss and pair accuracy of a policy, from the columns of `mps.DPO(layout="concat")` in order.

    The margin is beta * ((policy - reference) of chosen - (policy - reference) of rejected), in log-probabilities of
    whole responses (Rafailov et al. 2023, equation 7). The reference is a copy of the policy as it was when this
    object was made; its log-probabilities are computed on the fly and get no gradient.
    """

    def __init__(self, policy: CausalLM, beta: float) -> None:
        super().__init__(auto_prefix=False)
        self.policy = policy
        self.reference = frozen_copy(policy)
        self.beta = beta

    def construct(
        self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Computes the loss, at the first step exactly ln 2: policy and reference are still the same."""
        policy = token_log_probs(self.policy(input_ids), labels, loss_mask)
        reference = token_log_probs(self.reference(input_ids), labels, loss_mask)
        gains = (policy - ops.stop_gradient(reference)).sum(axis=-1)  # (2B,); sums of each would lose digits
        pairs = gains.shape[0] // 2
        return pair_loss((gains[:pairs] - gains[pairs:]) * self.beta)


class KTOLoss(nn.Cell):  # type: ignore[misc]
    """Loss of a policy and share of rows on the right side, from the columns of `mps.KTO` in order.

    A response is worth its gain, (policy - reference) in log-probabilities, less the reference point: the mean gain of
    responses to other prompts, but not below 0. The loss is 1 - sigmoid(beta * worth) of a desirable row, and
    1 - sigmoid(-beta * worth) of another one (Ethayarajh et al. 2024, equations 7 and 8). The reference is a copy of
    the policy as it was when this object was made.

    Args:
        policy: The policy.
        beta: How strongly the policy is kept near the reference.
        desirable_weight: Weight of desirable rows; `stream.report.kto_weights` suggests one.
        undesirable_weight: Weight of the others.
    """

    def __init__(
        self, policy: CausalLM, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
    ) -> None:
        super().__init__(auto_prefix=False)
        self.policy = policy
        self.reference = frozen_copy(policy)
        self.beta, self.desirable_weight, self.undesirable_weight = beta, desirable_weight, undesirable_weight

    def construct(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor,
        loss_mask: Tensor,
        desirable: Tensor,
        kl_input_ids: Tensor,
        kl_labels: Tensor,
        kl_attention_mask: Tensor,
        kl_loss_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Computes the loss, at the first step exactly a half: policy and reference are still the same."""
        point = ops.relu(ops.stop_gradient(self.gains(kl_input_ids, kl_labels, kl_loss_mask)).mean())
        is_good = desirable.astype(ms.float32)
        sign = 2.0 * is_good - 1.0
        worth = (self.gains(input_ids, labels, loss_mask) - point) * sign
        weights = self.desirable_weight * is_good + self.undesirable_weight * (1.0 - is_good)
        hits = (ops.sign(worth) + 1.0) * 0.5
        return (weights * (1.0 - ops.sigmoid(self.beta * worth))).mean(), hits.mean()

    def gains(self, input_ids: Tensor, labels: Tensor, loss_mask: Tensor) -> Tensor:
        """Returns the gain of each row, (B,) float32."""
        policy = token_log_probs(self.policy(input_ids), labels, loss_mask)
        reference = token_log_probs(self.reference(input_ids), labels, loss_mask)
        return (policy - ops.stop_gradient(reference)).sum(axis=-1)  # sums of each would lose digits


class ProcessRewardLoss(nn.Cell):  # type: ignore[misc]
    """Loss and accuracy of a model that scores steps, from the columns of `mps.ProcessReward` in order."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the mean cross-entropy of the steps and the share of them on the right side of 0."""
        is_step = (labels >= 0).astype(ms.float32)
        sign = 2.0 * labels.astype(ms.float32) - 1.0
        scores = self.model(input_ids) * sign * is_step  # (B, L), above 0 where a step is judged right
        hits = (ops.sign(scores) + 1.0) * 0.5
        steps = is_step.sum()
        return -(ops.logsigmoid(scores) * is_step).sum() / steps, (hits * is_step).sum() / steps


class GRPOLoss(nn.Cell):  # type: ignore[misc]
    """Loss of a policy on responses that it has just sampled, and their mean log-probability of a token.

    Each token is weighted by the advantage of its response (Shao et al. 2024, equation 3 with one update for each
    group, so that the ratio of new to old probabilities is 1).
    """

    def __init__(self, policy: CausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.policy = policy

    def construct(self, input_ids: Tensor, loss_mask: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the loss from (R, L) ids, (R, L) mask and (R,) float32."""
        log_probs = token_log_probs(self.policy(input_ids), input_ids, loss_mask)
        count = loss_mask.sum()
        return -(log_probs * advantages.expand_dims(1)).sum() / count, log_probs.sum() / count


def group_advantages(rewards: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Returns rewards less the mean of their group, divided by its standard deviation.

    Args:
        rewards: (R,); the responses to one prompt are adjacent.
        size: Responses to each prompt.

    Returns:
        (R,) float32; 0 in a group whose rewards are the same.
    """
    groups = rewards.reshape(-1, size)
    spread = groups.std(axis=1, keepdims=True)
    normal = (groups - groups.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    found: NDArray[np.float32] = normal.reshape(-1).astype(np.float32)
    return found


def frozen_copy(model: CausalLM) -> Any:
    """Returns a model with the same weights that no optimiser updates."""
    copy = CausalLM(model.options)
    for target, source in zip(copy.get_parameters(), model.get_parameters(), strict=True):
        target.set_data(source.value().copy())
        target.requires_grad = False
        target.name = f"reference.{target.name}"
    return copy
