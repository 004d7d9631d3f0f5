"""Losses of the demo: the Bradley-Terry loss of a reward model and the DPO loss of a policy.

This module imports MindSpore. In every batch of 2B rows the chosen side of pair i is row i, the rejected one row B + i.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

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


def frozen_copy(model: CausalLM) -> Any:
    """Returns a model with the same weights that no optimiser updates."""
    copy = CausalLM(model.options)
    for target, source in zip(copy.get_parameters(), model.get_parameters(), strict=True):
        target.set_data(source.value().copy())
        target.requires_grad = False
        target.name = f"reference.{target.name}"
    return copy
