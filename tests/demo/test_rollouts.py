"""Sampled responses: where they stand, where they end, and that they come from the weights of the moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import OptionError

pytestmark = pytest.mark.mindspore

END, PAD, VOCAB = 8, 9, 10
PROMPTS = np.array([[1, 2, PAD], [PAD, 4, 5], [6, PAD, PAD]], np.int32)  # a pad id in front is a token like any other


@pytest.fixture(scope="module", params=["graph", "pynative"], autouse=True)
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    import mindspore as ms

    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE if request.param == "graph" else ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=before)


@pytest.fixture(scope="module")
def policy(mode: None) -> Any:
    import mindspore as ms

    from ms_prefstream.demo.model import CausalLM, ModelOptions

    ms.set_seed(0)  # else the weights depend on the tests that ran before in this process
    return CausalLM(ModelOptions(vocab_size=VOCAB, max_length=8, hidden=8, layers=1))


def always(policy: Any, token: int) -> None:
    """From now on the model draws this token only: its states are all ones, and so is this token's embedding."""
    import mindspore as ms

    weights = np.full((VOCAB, 8), -10.0, np.float32)
    weights[token] = 10.0
    policy.backbone.tokens.set_data(ms.Tensor(weights))
    policy.backbone.norm.gamma.set_data(ms.Tensor(np.zeros(8, np.float32)))
    policy.backbone.norm.beta.set_data(ms.Tensor(np.ones(8, np.float32)))


@pytest.fixture(scope="module")
def roller(policy: Any) -> Any:
    from ms_prefstream.demo.rollouts import Roller

    return Roller(policy, new_tokens=3, end_id=END, pad_id=PAD)


def test_prompts_end_where_only_pad_ids_follow() -> None:
    from ms_prefstream.demo.rollouts import prompt_lengths

    assert prompt_lengths(PROMPTS, PAD).tolist() == [2, 3, 1]
    with pytest.raises(OptionError, match="no tokens"):
        prompt_lengths(np.full((1, 3), PAD, np.int32), PAD)


def test_the_end_of_a_turn_is_what_most_responses_end_with() -> None:
    from ms_prefstream.demo.rollouts import end_of_turn

    ids = np.array([[1, 2, END, 3], [1, END, PAD, PAD], [1, 7, 7, 7], [5, 5, 5, 5]], np.int32)
    mask = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], np.int32)
    assert end_of_turn(ids, mask) == END
    with pytest.raises(OptionError, match="no row has a response"):
        end_of_turn(ids, 0 * mask)


def test_responses_stand_behind_their_prompts_and_follow_new_weights(policy: Any, roller: Any) -> None:
    always(policy, 7)
    found = roller.draw(PROMPTS, np.random.default_rng(0))
    assert found.ids.tolist() == [[1, 2, 7, 7, 7, PAD], [PAD, 4, 5, 7, 7, 7], [6, 7, 7, 7, PAD, PAD]]
    assert found.mask.tolist() == [[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]]
    assert found.ends.tolist() == [5, 6, 4]
    always(policy, 3)
    assert [ids.tolist() for ids in roller.draw(PROMPTS, np.random.default_rng(0)).responses()] == [[3, 3, 3]] * 3


@pytest.mark.slow
def test_the_steps_of_training_count_too(policy: Any, roller: Any) -> None:
    import mindspore as ms
    from mindspore import nn

    from ms_prefstream.demo.losses import sequence_log_probs
    from ms_prefstream.demo.train import train_step

    class LikesFour(nn.Cell):  # type: ignore[misc]
        def construct(self, ids: Any, mask: Any) -> Any:
            found = -sequence_log_probs(policy(ids), ids, mask).sum()
            return found, found

    always(policy, 7)
    roller.draw(PROMPTS, np.random.default_rng(0))
    step = train_step(LikesFour(), nn.SGD(policy.trainable_params(), learning_rate=0.1))
    ids = np.array([[1, 4, 4, 4]] * 3, np.int32)
    for _ in range(60):
        step(ms.Tensor(ids), ms.Tensor((ids == 4).astype(np.int32)))
    assert [ids.tolist() for ids in roller.draw(PROMPTS, np.random.default_rng(0)).responses()] == [[4, 4, 4]] * 3


def test_an_end_token_ends_a_response_and_belongs_to_it(policy: Any, roller: Any) -> None:
    always(policy, END)
    found = roller.draw(PROMPTS, np.random.default_rng(0), each=2)
    assert found.ids[:2].tolist() == [[1, 2, END, PAD, PAD, PAD]] * 2
    assert found.mask.sum(axis=1).tolist() == [1] * 6
    assert found.begins.tolist() == [2, 2, 3, 3, 1, 1]


def test_draws_have_the_frequencies_of_the_softmax_and_pads_are_never_drawn(policy: Any, roller: Any) -> None:
    import mindspore as ms

    always(policy, 2)  # its states are all ones from here on
    weights = np.zeros((VOCAB, 8), np.float32)
    weights[[2, PAD]] = np.log(3.0) / 8  # three times as likely as any other
    policy.backbone.tokens.set_data(ms.Tensor(weights))
    found = roller.draw(np.repeat(PROMPTS[:1], 400, axis=0), np.random.default_rng(0))
    first = np.array([ids[0] for ids in found.responses()])
    assert PAD not in np.concatenate(found.responses())
    assert np.mean(first == 2) == pytest.approx(3 / 11, abs=0.06)
    assert np.mean(first == 4) == pytest.approx(1 / 11, abs=0.05)


def test_at_least_one_token_is_drawn(policy: Any) -> None:
    from ms_prefstream.demo.rollouts import Roller

    with pytest.raises(OptionError, match="new_tokens is 0"):
        Roller(policy, new_tokens=0, end_id=END, pad_id=PAD)
