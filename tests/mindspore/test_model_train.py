"""`Model.train` and `Model.fit` over a dataset of steps: the steps that the network gets, and errors."""

from __future__ import annotations

from typing import Any

import pytest
from fake_steps import FakeSteps

from ms_prefstream.errors import SourceError
from ms_prefstream.mindspore.dataset import to_dataset

pytestmark = pytest.mark.mindspore
K = 3


@pytest.fixture
def model() -> Any:
    """A `Model` without loss function whose network takes both columns; `model.seen` lists the steps it was given."""
    import mindspore as ms
    from mindspore import nn

    ms.set_context(mode=ms.PYNATIVE_MODE)
    seen: list[int] = []

    class Network(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.weight = ms.Parameter(ms.Tensor([1.0]), name="weight")

        def construct(self, step: Any, wide: Any) -> Any:
            return (self.weight * wide.astype(ms.float32)).mean()

    class Recorder(ms.train.Callback):
        def on_train_step_end(self, run_context: Any) -> None:
            seen.append(int(run_context.original_args().train_dataset_element[0][0]))

    network = Network()
    built = ms.train.Model(
        network,
        loss_fn=None,
        optimizer=nn.SGD(network.trainable_params(), 0.01),
        metrics={"loss": ms.train.Loss()},
        eval_network=Evaluation(network),
        eval_indexes=[0, 1, 1],
    )
    built.seen, built.recorder = seen, Recorder()
    return built


def Evaluation(network: Any) -> Any:  # noqa: N802 - builds a Cell; MindSpore can only be imported inside
    from mindspore import nn

    class Cell(nn.Cell):
        def construct(self, step: Any, wide: Any) -> Any:
            return network(step, wide), wide, wide

    return Cell()


def test_train_sees_every_step_once(model: Any) -> None:
    model.train(2, to_dataset(FakeSteps(K)), callbacks=model.recorder, dataset_sink_mode=False)
    assert model.seen == list(range(2 * K))


def test_two_runs_with_start_epoch_are_one(model: Any) -> None:
    model.train(1, to_dataset(FakeSteps(K)), callbacks=model.recorder, dataset_sink_mode=False)
    model.train(1, to_dataset(FakeSteps(K), start_epoch=1), callbacks=model.recorder, dataset_sink_mode=False)
    assert model.seen == list(range(2 * K))


def test_a_resumed_run_trains_the_rest(model: Any) -> None:
    dataset = to_dataset(FakeSteps(K), start_epoch=1, init_step=2)
    model.train(2, dataset, callbacks=model.recorder, dataset_sink_mode=False)
    assert model.seen == list(range(K + 2, 3 * K))


def test_set_init_step_on_a_fresh_dataset_with_initial_epoch(model: Any) -> None:
    dataset = to_dataset(FakeSteps(K))
    dataset.set_init_step(K + 1)
    model.train(3, dataset, callbacks=model.recorder, dataset_sink_mode=False, initial_epoch=1)
    assert model.seen == list(range(K + 1, 3 * K))


def test_fit_with_validation(model: Any) -> None:
    validation = FakeSteps(2)
    model.fit(
        2,
        to_dataset(FakeSteps(K)),
        to_dataset(validation),
        callbacks=model.recorder,
        dataset_sink_mode=False,
        valid_dataset_sink_mode=False,
    )
    assert model.seen == list(range(2 * K))
    assert set(validation.asked) == {0, 1}  # every validation is the same epoch


def test_an_error_ends_training_as_it_was_raised(model: Any) -> None:
    steps = FakeSteps(K, {K + 1: SourceError("data/train.jsonl:17: found 3, expected a string.")})
    with pytest.raises(SourceError, match=r"data/train\.jsonl:17"):
        model.train(2, to_dataset(steps), callbacks=model.recorder, dataset_sink_mode=False)
    assert model.seen == list(range(K + 1))
