"""Training loops of the demo, from columns of batches to a progress record for each step.

This module imports MindSpore. Forward, backward and update are one compiled function: MindSpore compiles it once for
each shape, and with the few shapes of a bucketed stream that is faster in total than running operator by operator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import mindspore as ms
import numpy as np
from mindspore import nn

from ms_prefstream.demo.losses import DPOLoss, RewardLoss
from ms_prefstream.demo.model import CausalLM, RewardModel
from ms_prefstream.errors import OptionError

Columns: TypeAlias = Mapping[str, Any]
"""One batch: numpy arrays or MindSpore tensors by column name, in the order of the layout."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One training step.

    Attributes:
        step: Finished steps, from 1.
        loss: The loss of the batch, before the update.
        accuracy: Share of its pairs whose chosen side is rated higher; a tie counts as half.
        rows: Rows of the batch, two a pair.
        length: Columns of the batch, padding included.
        tokens: Tokens of the batch, padding not included.
        seconds: Time since training began, compilation and reading included.
    """

    step: int
    loss: float
    accuracy: float
    rows: int
    length: int
    tokens: int
    seconds: float


def passes(dataset: Any, epochs: int) -> Iterator[Columns]:
    """Yields the batches of several epochs from one dataset iterator; a new iterator would repeat the first epoch."""
    if epochs < 1:
        raise OptionError(f"epochs is {epochs}; it must be at least 1.")
    iterator = dataset.create_dict_iterator(num_epochs=epochs)
    for _ in range(epochs):
        yield from iterator


def train_reward(
    model: RewardModel, batches: Iterable[Columns], *, steps: int, learning_rate: float = 2e-3
) -> Iterator[Progress]:
    """Trains a reward model on batches of the reward layout `mindformers`.

    Args:
        model: Changed in place.
        batches: input_ids (2B, L), position_id, attention_mask, loss_mask (B, L), end_ind (2B,).
        steps: The number of batches; the learning rate falls to a tenth over them.
        learning_rate: Of AdamW, at the first step.

    Yields:
        A record after every step.
    """
    yield from _train(RewardLoss(model), model.trainable_params(), batches, steps, learning_rate)


def train_dpo(
    policy: CausalLM, batches: Iterable[Columns], *, steps: int, learning_rate: float = 1e-3, beta: float = 0.1
) -> Iterator[Progress]:
    """Trains a policy on batches of the DPO layout `concat` with unshifted labels.

    Args:
        policy: Changed in place; a copy made at the first step is the reference.
        batches: input_ids, labels, attention_mask, loss_mask, each (2B, L).
        steps: The number of batches; the learning rate falls to a tenth over them.
        learning_rate: Of AdamW, at the first step.
        beta: How strongly the policy is kept near the reference.

    Yields:
        A record after every step.
    """
    yield from _train(DPOLoss(policy, beta), policy.trainable_params(), batches, steps, learning_rate)


def reward_accuracy(model: RewardModel, batches: Iterable[Columns]) -> float:
    """Returns the share of all pairs in these batches whose chosen side scores higher; ties count as half."""
    evaluate = RewardLoss(model)  # operator by operator: one pass is too short to pay for compilation
    hits = pairs = 0.0
    for batch in batches:
        columns = _tensors(batch)
        _, accuracy = evaluate(*columns)
        count = columns[0].shape[0] // 2
        hits += float(accuracy) * count
        pairs += count
    if not pairs:
        raise OptionError("there is no batch to evaluate; at least one is needed.")
    return hits / pairs


def train_step(loss: nn.Cell, optimizer: Any) -> Callable[..., Any]:
    """Returns forward, backward and update as one function, compiled at the first call with each set of shapes.

    Args:
        loss: Takes the columns of a batch; returns the loss and a second number, such as the pair accuracy.
        optimizer: Updates the weights that it was made for.

    Returns:
        A function that takes the columns of a batch and returns what `loss` returns.
    """
    gradient = ms.value_and_grad(loss, None, optimizer.parameters, has_aux=True)

    def step(*columns: Any) -> Any:
        values, gradients = gradient(*columns)
        optimizer(gradients)
        return values

    compiled: Callable[..., Any] = ms.jit(step)
    return compiled


def _train(
    loss: nn.Cell, weights: Any, batches: Iterable[Columns], steps: int, learning_rate: float
) -> Iterator[Progress]:
    falling = nn.PolynomialDecayLR(learning_rate, learning_rate / 10, steps, power=1.0)
    compiled = train_step(loss, nn.AdamWeightDecay(weights, learning_rate=falling, beta2=0.98))
    begin = time.perf_counter()
    for step, batch in enumerate(batches, start=1):
        columns = _tensors(batch)
        value, accuracy = compiled(*columns)
        rows, length = columns[0].shape
        yield Progress(
            step=step,
            loss=float(value),
            accuracy=float(accuracy),
            rows=rows,
            length=length,
            tokens=int(np.asarray(batch["attention_mask"], np.int64).sum()),
            seconds=time.perf_counter() - begin,
        )


def _tensors(batch: Columns) -> list[Any]:
    return [column if isinstance(column, ms.Tensor) else ms.Tensor(column) for column in batch.values()]
