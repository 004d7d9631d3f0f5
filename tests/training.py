"""A tiny network under `Model` that writes down which rows it was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.helpers import rows_in


@dataclass
class Training:
    """A model and what it has seen.

    Attributes:
        model: A `Model` whose network takes the columns of DPO's `paired` layout.
        network: Its network: one weight.
        recorder: A callback; without it nothing is written down.
        seen: The rows of each finished step.
        evaluated: The rows of each step of validation.
    """

    model: Any
    network: Any
    recorder: Any
    seen: list[list[int]] = field(default_factory=list)
    evaluated: list[list[int]] = field(default_factory=list)


def trainer() -> Training:
    """A fresh model in PYNATIVE mode, so that nothing is compiled."""
    import mindspore as ms
    from mindspore import nn

    ms.set_context(mode=ms.PYNATIVE_MODE)

    class Network(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.weight = ms.Parameter(ms.Tensor([1.0]), name="weight")

        def construct(self, ids: Any, labels: Any, attention: Any, mask: Any, *rejected: Any) -> Any:
            return (self.weight * mask.astype(ms.float32)).mean()

    class Evaluation(nn.Cell):
        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def construct(self, *batch: Any) -> Any:
            training.evaluated.append(_rows(batch))
            return self.network(*batch), batch[0], batch[1]

    class Recorder(ms.train.Callback):
        def on_train_step_end(self, run_context: Any) -> None:
            training.seen.append(_rows(run_context.original_args().train_dataset_element))

    network = Network()
    model = ms.train.Model(
        network,
        loss_fn=None,
        optimizer=nn.SGD(network.trainable_params(), 0.01),
        metrics={"loss": ms.train.Loss()},
        eval_network=Evaluation(network),
        eval_indexes=[0, 1, 1],
    )
    training = Training(model, network, Recorder())
    return training


def _rows(columns: Any) -> list[int]:
    return rows_in({"chosen_input_ids": columns[0].asnumpy()})
