"""The demo's models and losses against their definitions, and that they learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import OptionError

pytestmark = pytest.mark.mindspore
VOCAB = 260


@pytest.fixture(scope="module")
def options() -> Any:
    import mindspore as ms

    from ms_prefstream.demo.model import ModelOptions

    ms.set_context(mode=ms.PYNATIVE_MODE)
    return ModelOptions(vocab_size=VOCAB, max_length=32, hidden=32, layers=1, heads=2)


def columns(layout: str, pairs: int = 6, length: int = 24) -> dict[str, Any]:
    """A batch of random byte texts written out by hand: prompt of 4, responses of 6 to 18 tokens, right padding."""
    random = np.random.default_rng(0)
    ids = np.zeros((2 * pairs, length), np.int32)
    mask = np.zeros((2 * pairs, length), np.int32)
    ends = random.integers(10, length - 2, 2 * pairs).astype(np.int32)
    for row, end in enumerate(ends):
        ids[row, :4] = ids[row % pairs, :4] if row >= pairs else random.integers(0, 256, 4)
        ids[row, 4:end] = random.integers(0, 256, end - 4)
        mask[row, 4:end] = 1
    attention = (np.arange(length) < ends[:, None]).astype(np.int32)
    if layout == "concat":
        labels = np.where(mask == 1, ids, -100).astype(np.int32)
        return {"input_ids": ids, "labels": labels, "attention_mask": attention, "loss_mask": mask}
    return {
        "input_ids": ids,
        "position_id": np.tile(np.arange(length, dtype=np.int32), (2 * pairs, 1)),
        "attention_mask": attention.astype(np.float16),
        "loss_mask": np.ones((pairs, length), np.float16),
        "end_ind": ends,
    }


def test_a_token_sees_only_what_stands_before_it(options: Any) -> None:
    import mindspore as ms

    from ms_prefstream.demo.model import CausalLM

    model = CausalLM(options)
    ids = np.random.default_rng(1).integers(0, VOCAB, (2, 12)).astype(np.int32)
    before = model(ms.Tensor(ids)).asnumpy()
    ids[:, 8:] = 7
    after = model(ms.Tensor(ids)).asnumpy()
    np.testing.assert_allclose(before[:, :8], after[:, :8], atol=1e-6)
    assert np.abs(before[:, 8:] - after[:, 8:]).max() > 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 32)])
def test_any_rows_and_length_fit(options: Any, shape: tuple[int, int]) -> None:
    import mindspore as ms

    from ms_prefstream.demo.model import CausalLM, RewardModel

    ids = ms.Tensor(np.zeros(shape, np.int32))
    assert CausalLM(options)(ids).shape == (*shape, VOCAB)
    assert RewardModel(options)(ids).shape == shape


def test_the_pair_loss_is_bradley_terry() -> None:
    import mindspore as ms

    from ms_prefstream.demo.losses import pair_loss

    loss, accuracy = pair_loss(ms.Tensor(np.array([2.0, 0.0, -1.0], np.float32)))
    expected = (math.log1p(math.exp(-2)) + math.log(2) + math.log1p(math.exp(1))) / 3
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert float(accuracy) == pytest.approx(0.5)  # a hit, a tie, a miss


def test_the_score_is_taken_at_the_last_token_of_each_row() -> None:
    import mindspore as ms

    from ms_prefstream.demo.losses import end_scores

    scores = ms.Tensor(np.arange(12, dtype=np.float32).reshape(3, 4))
    ends = ms.Tensor(np.array([1, 4, 2], np.int32))
    assert end_scores(scores, ends).asnumpy().tolist() == [0.0, 7.0, 9.0]


def test_sequence_log_probs_follow_the_definition() -> None:
    import mindspore as ms

    from ms_prefstream.demo.losses import sequence_log_probs

    random = np.random.default_rng(2)
    logits = random.normal(size=(2, 5, 7)).astype(np.float32)
    labels = np.array([[-100, -100, 3, 0, -100], [-100, 6, 1, 2, 5]], np.int32)
    mask = (labels != -100).astype(np.int32)
    expected = []
    for row in range(2):
        total = 0.0
        for t in range(1, 5):
            if mask[row, t]:
                at = logits[row, t - 1].astype(np.float64)
                total += at[labels[row, t]] - np.log(np.exp(at).sum())
        expected.append(total)
    found = sequence_log_probs(ms.Tensor(logits), ms.Tensor(labels), ms.Tensor(mask)).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_kto_loss_follows_the_definition() -> None:
    import mindspore as ms

    from ms_prefstream.demo.losses import KTOLoss
    from ms_prefstream.demo.model import CausalLM, ModelOptions

    loss = KTOLoss(CausalLM(ModelOptions(vocab_size=9, max_length=8, hidden=8, layers=1, heads=1)), 0.5, 2.0, 3.0)
    gains = {"rows": np.array([1.0, -0.5, 2.0], np.float32), "kl": np.array([0.5, 0.2, -0.1], np.float32)}
    loss.gains = lambda ids, labels, mask: ms.Tensor(gains["kl" if ids[0, 0] == 1 else "rows"])
    ids = [ms.Tensor(np.full((3, 4), value, np.int32)) for value in (0, 1)]
    columns = [ids[0]] * 4, ms.Tensor(np.array([1, 0, 0], np.int32)), [ids[1]] * 4
    found, hits = loss.construct(*columns[0], columns[1], *columns[2])
    worth = 0.5 * (gains["rows"] - 0.2)  # the mean of the kl rows
    expected = [2 * (1 - 1 / (1 + math.exp(-worth[0]))), *[3 * (1 - 1 / (1 + math.exp(one))) for one in worth[1:]]]
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(hits) == pytest.approx(2 / 3)  # the last row is bad and gained
    gains["kl"] -= 9.0  # the reference point is not below 0
    worth = 0.5 * gains["rows"]
    expected = [2 * (1 - 1 / (1 + math.exp(-worth[0]))), *[3 * (1 - 1 / (1 + math.exp(one))) for one in worth[1:]]]
    assert float(loss.construct(*columns[0], columns[1], *columns[2])[0]) == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_kto_loss_begins_at_a_half_and_compiles(options: Any) -> None:
    import mindspore as ms

    from ms_prefstream.demo.losses import KTOLoss
    from ms_prefstream.demo.model import CausalLM

    ids = np.random.default_rng(0).integers(0, VOCAB, (2, 6)).astype(np.int32)
    mask = np.array([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]], np.int32)
    own = ids, np.where(mask, ids, -100).astype(np.int32), np.ones_like(ids), mask
    columns = map(ms.Tensor, (*own, np.array([1, 0], np.int32), *own))
    assert float(ms.jit(KTOLoss(CausalLM(options), 0.1).construct)(*columns)[0]) == pytest.approx(0.5, abs=1e-6)


def test_the_loss_of_steps_is_the_mean_cross_entropy() -> None:
    import mindspore as ms

    from ms_prefstream.demo.losses import ProcessRewardLoss

    scores = np.array([[9.0, 1.0, -2.0], [0.5, 9.0, 9.0]], np.float32)
    labels = np.array([[-100, 1, 1], [0, -100, -100]], np.int32)
    loss = ProcessRewardLoss(lambda ids: ms.Tensor(scores))  # type: ignore[arg-type]
    found, accuracy = loss.construct(ms.Tensor(labels), ms.Tensor(labels), ms.Tensor(labels))
    expected = np.mean([math.log1p(math.exp(-1)), math.log1p(math.exp(2)), math.log1p(math.exp(0.5))])
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(accuracy) == pytest.approx(1 / 3)


def test_advantages_are_normal_within_their_group() -> None:
    from ms_prefstream.demo.losses import group_advantages

    found = group_advantages(np.array([1, 3, 2, 2, 0, 4], np.float32), 2)
    assert found.tolist() == [-1, 1, 0, 0, -1, 1]
    assert found.dtype == np.float32


def test_the_dpo_loss_of_long_responses_far_from_the_reference_is_exact() -> None:
    """Sums of a thousand log-probabilities are in the thousands; what the loss needs is their small difference."""
    import mindspore as ms

    from ms_prefstream.demo.losses import DPOLoss
    from ms_prefstream.demo.model import CausalLM, ModelOptions

    random = np.random.default_rng(4)
    vocab, length = 50, 1200
    ids = random.integers(0, vocab, (2, length)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[:, :2] = 0
    logits = random.normal(0, 2, (2, 2, length, vocab)).astype(np.float32)  # of the policy, of the reference
    logits[1] = logits[0] + random.normal(0, 0.02, logits[0].shape)

    class Given(ms.nn.Cell):  # type: ignore[misc]
        def __init__(self, values: Any) -> None:
            super().__init__()
            self.values = ms.Tensor(values)

        def construct(self, _: Any) -> Any:
            return self.values

    loss = DPOLoss(CausalLM(ModelOptions(vocab_size=vocab, max_length=8, hidden=8, layers=1, heads=1)), 0.1)
    loss.policy, loss.reference = Given(logits[0]), Given(logits[1])
    exact = logits[:, :, :-1].astype(np.float64)
    picked = np.take_along_axis(exact, ids[None, :, 1:, None], 3)[..., 0] - np.log(np.exp(exact).sum(-1))
    policy, reference = (picked * mask[:, 1:]).sum(-1)
    assert np.abs(policy).min() > 2000
    margin = 0.1 * ((policy - reference)[0] - (policy - reference)[1])
    found, _ = loss(*map(ms.Tensor, (ids, np.where(mask, ids, -100).astype(np.int32), mask, mask)))
    assert float(found) == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-5)


def test_the_reward_model_learns_its_pairs(options: Any) -> None:
    import mindspore as ms

    from ms_prefstream.demo.model import RewardModel
    from ms_prefstream.demo.train import reward_accuracy, train_reward

    ms.set_seed(0)
    model = RewardModel(options)
    batch = columns("mindformers")
    assert reward_accuracy(model, [batch]) == 0.5
    records = list(train_reward(model, [batch] * 30, steps=30, learning_rate=5e-3))
    assert [record.step for record in records] == list(range(1, 31))
    assert records[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert (records[0].rows, records[0].length) == (12, 24)
    assert records[0].tokens == batch["end_ind"].sum()
    assert records[-1].loss < 0.2
    assert reward_accuracy(model, [batch]) == 1.0


def test_dpo_learns_and_leaves_the_reference_alone(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import mindspore as ms

    from ms_prefstream.demo import losses, train
    from ms_prefstream.demo.model import CausalLM

    made: list[Any] = []

    class Remembering(losses.DPOLoss):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(train, "DPOLoss", Remembering)
    ms.set_seed(0)
    policy = CausalLM(options)
    start = {p.name: p.asnumpy().copy() for p in policy.get_parameters()}
    records = list(train.train_dpo(policy, [columns("concat")] * 15, steps=15, learning_rate=3e-3))
    assert records[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert records[0].accuracy == 0.5
    assert records[-1].loss < 0.5
    assert records[-1].accuracy == 1.0
    reference = {p.name.removeprefix("reference."): p.asnumpy() for p in made[0].reference.get_parameters()}
    assert reference.keys() == start.keys()
    for name, value in start.items():
        np.testing.assert_array_equal(reference[name], value)
    assert any(np.abs(p.asnumpy() - start[p.name]).max() > 1e-3 for p in policy.get_parameters())


def test_padding_changes_nothing(options: Any) -> None:
    import mindspore as ms

    from ms_prefstream.demo.losses import DPOLoss
    from ms_prefstream.demo.model import CausalLM

    loss = DPOLoss(CausalLM(options), 0.1)
    for parameter in loss.reference.get_parameters():  # another model than the policy, so that the loss is not ln 2
        parameter.set_data(parameter.value() * 1.5)
    batch = columns("concat")
    fill = {"input_ids": 9, "labels": -100, "attention_mask": 0, "loss_mask": 0}
    wide = {name: np.pad(value, ((0, 0), (0, 6)), constant_values=fill[name]) for name, value in batch.items()}
    narrow_loss, wide_loss = (float(loss(*map(ms.Tensor, one.values()))[0]) for one in (batch, wide))
    assert narrow_loss == pytest.approx(wide_loss, abs=1e-5)
    assert narrow_loss != pytest.approx(math.log(2), abs=1e-4)


class _Dataset:
    """Two batches an epoch; every new iterator begins with epoch 0, as MindSpore's do."""

    def create_dict_iterator(self, num_epochs: int) -> Iterator[dict[str, int]]:
        outer = iter([[{"x": 0}, {"x": 1}], [{"x": 2}, {"x": 3}]][:num_epochs])

        class Epochs:
            def __iter__(self) -> Iterator[dict[str, int]]:
                return iter(next(outer))

        return Epochs()  # type: ignore[return-value]


def test_passes_go_on_through_one_iterator() -> None:
    from ms_prefstream.demo.train import passes

    assert [batch["x"] for batch in passes(_Dataset(), 2)] == [0, 1, 2, 3]
    with pytest.raises(OptionError, match="epochs is 0"):
        next(passes(_Dataset(), 0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"heads": 3}, "hidden is 64, which 3 heads do not divide"), ({"vocab_size": 0}, "vocab_size is 0")],
)
def test_impossible_sizes_are_refused(changes: dict[str, int], sentence: str) -> None:
    from ms_prefstream.demo.model import ModelOptions

    with pytest.raises(OptionError, match=sentence):
        ModelOptions(**{"vocab_size": 10, "max_length": 8, **changes})


def test_evaluation_without_batches_is_refused(options: Any) -> None:
    from ms_prefstream.demo.model import RewardModel
    from ms_prefstream.demo.train import reward_accuracy

    with pytest.raises(OptionError, match="no batch to evaluate"):
        reward_accuracy(RewardModel(options), [])
