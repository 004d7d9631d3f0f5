"""The loss of a packed batch is the loss of the same pairs unpacked, and so is its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import ms_prefstream as mps
from tests.helpers import Batch, Row

pytestmark = pytest.mark.mindspore

TOKENS, PAIRS, SCORE = 96, 8, 259
SIDE = 40  # tokens of the longest side


def rows() -> list[Row]:
    """Pairs of 4 to 34 tokens a side, many of them short, so that packed rows hold different numbers of them."""
    random = np.random.default_rng(5)

    def ids(most: int) -> list[int]:
        return random.integers(0, 256, random.integers(2, most)).tolist()

    longest = [28, 9, 6, 5] * 6
    return [{"prompt_ids": ids(7), "chosen_ids": ids(most), "rejected_ids": ids(most)} for most in longest]


class Kind(NamedTuple):
    """A task, its padded form, and the losses of both."""

    task: Any
    padded: Any
    model: Any
    loss: Any
    padded_loss: Any


def kind(name: str) -> Kind:
    import mindspore as ms

    from ms_prefstream.demo.losses import DPOLoss, RewardTokenLoss
    from ms_prefstream.demo.model import CausalLM, ModelOptions, RewardModel
    from ms_prefstream.demo.packed_losses import PackedDPOLoss, PackedRewardLoss

    ms.set_seed(3)
    options = ModelOptions(vocab_size=260, max_length=64, hidden=32, layers=1, heads=2)
    if name == "dpo":
        model = _spread(CausalLM(options))
        losses = PackedDPOLoss(model, 0.1, PAIRS), DPOLoss(model, 0.1)
        for loss in losses:  # another model than the policy, so that the loss is not ln 2 whatever is summed
            _shrink(loss.reference)
        return Kind(mps.DPO(SIDE), mps.DPO(SIDE, layout="concat"), model, *losses)
    model = _spread(RewardModel(options))
    task = mps.Reward(SIDE, layout="reward_token", reward_token=SCORE)
    return Kind(task, task, model, PackedRewardLoss(model, PAIRS), RewardTokenLoss(model))


def _spread(model: Any) -> Any:
    """Weights so large that attention and positions matter: a fresh model is nearly a bag of words."""
    random = np.random.default_rng(7)
    for parameter in model.get_parameters():
        shape = parameter.shape
        if len(shape) > 1:
            parameter.set_data(_tensor(random.normal(0, 1 / math.sqrt(shape[-1]), shape).astype(np.float32)))
    return model


def _shrink(model: Any) -> None:
    for parameter in model.get_parameters():
        parameter.set_data(parameter.value() * 0.7)


def _tensor(array: Any) -> Any:
    import mindspore as ms

    return ms.Tensor(array)


def packed_batches(task: Any) -> Iterator[tuple[Batch, list[Row]]]:
    """Two steps of three packed rows, each with the raw rows that it holds."""
    source = rows()
    stream = mps.stream(
        source,
        task=task,
        tokenizer=None,
        pad_token_id=0,
        batching=mps.Pack(TOKENS, max_segments=2 * PAIRS + 1, batch_size=3),
        steps_per_epoch=2,
    )
    for step in range(2):
        yield next(stream.batches(0, step)), [source[row] for row in stream.rows(0, step).tolist()]


def padded_batch(task: Any, source: list[Row]) -> Batch:
    stream = mps.stream(source, task=task, tokenizer=None, pad_token_id=0, batching=mps.Pad(len(source)), shuffle=False)
    (batch,) = stream.batches()
    return batch


def columns(batch: Batch, **changes: Any) -> list[Any]:
    found = {**batch, "masked": mps.causal_mask(batch), **changes}
    return [_tensor(array) for array in found.values()]


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_loss_and_gradient_of_a_packed_batch_are_those_of_its_pairs(name: str) -> None:
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    made = kind(name)
    weights = made.model.trainable_params()
    packed, padded = (ms.value_and_grad(loss, None, weights, has_aux=True) for loss in (made.loss, made.padded_loss))
    for batch, source in packed_batches(made.task):
        assert len(set(batch["pair_ids"].max(axis=1).tolist())) > 1, "rows that hold different numbers of pairs"
        (loss, hits), gradients = packed(*columns(batch))
        (wanted, wanted_hits), wanted_gradients = padded(*map(_tensor, padded_batch(made.padded, source).values()))
        assert float(loss) == pytest.approx(float(wanted), abs=1e-5)
        assert abs(float(loss) - math.log(2)) > 0.01
        assert float(hits) == pytest.approx(float(wanted_hits), abs=1e-6)
        for weight, one, other in zip(weights, gradients, wanted_gradients, strict=True):
            largest = np.abs(other.asnumpy()).max()
            np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), atol=1e-5 * max(largest, 1), err_msg=weight.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_the_compiled_loss_is_the_same(name: str) -> None:
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    made = kind(name)
    compiled = ms.jit(made.loss.construct)
    for batch, source in packed_batches(made.task):
        wanted, _ = made.padded_loss(*map(_tensor, padded_batch(made.padded, source).values()))
        assert float(compiled(*columns(batch))[0]) == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("name", ["dpo", "reward"])
@pytest.mark.parametrize("lost", ["masked", "position_ids"])
def test_without_the_mask_or_the_positions_it_would_be_another_one(name: str, lost: str) -> None:
    """What the columns are for: each of them alone changes the loss far beyond rounding."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    made = kind(name)
    batch, _ = next(packed_batches(made.task))
    whole = np.triu(np.ones((TOKENS, TOKENS), np.uint8), 1)
    replaced = {
        "masked": np.broadcast_to(whole, (3, 1, TOKENS, TOKENS)).copy(),
        "position_ids": np.tile(np.arange(TOKENS, dtype=np.int32) % 64, (3, 1)),
    }
    right = float(made.loss(*columns(batch))[0])
    wrong = float(made.loss(*columns(batch, **{lost: replaced[lost]}))[0])
    assert abs(right - wrong) > 1e-3


def test_sequence_sums_leave_out_the_padding() -> None:
    from ms_prefstream.demo.packed_losses import sequence_sums

    values = _tensor(np.array([[1, 2, 4, 8], [1, 1, 1, 5]], np.float32))
    segments = _tensor(np.array([[1, 2, 2, 0], [1, 1, 1, 0]], np.int32))
    assert sequence_sums(values, segments, 3).asnumpy().tolist() == [[1, 6, 0], [3, 0, 0]]
