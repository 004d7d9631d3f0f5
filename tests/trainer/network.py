"""Parts of trainings under MindFormers: a network with fixed weights, a log of its steps, a trainer."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

import ms_prefstream as mps
import ms_prefstream.adapters.mindformers
from ms_prefstream.demo.losses import DPOLoss
from ms_prefstream.demo.model import CausalLM, ModelOptions
from tests.helpers import rows_in
from tests.trainer.configs import BATCH, EPOCHS, LEARNING_RATE, SEED, write_yaml


class TinyDPO(nn.Cell):
    """The demo's DPO loss alone, with weights that are the same in every run."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = config  # MindFormers asks for it, and for the three methods below
        policy = CausalLM(ModelOptions(vocab_size=300, max_length=128, hidden=16, layers=1, heads=2))
        numbers = np.random.default_rng(5)
        for weight in policy.get_parameters():
            drawn = numbers.normal(0.0, 0.05, weight.shape).astype(np.float32)
            weight.set_data(ms.Tensor(drawn))
        self.loss = DPOLoss(policy, beta=0.5)

    def can_generate(self) -> bool:
        return False

    def convert_name(self, name: str) -> str:
        return name

    def get_model_parameters(self, only_trainable: bool = True) -> set[Any]:
        return set(self.trainable_params() if only_trainable else self.get_parameters())

    def construct(self, input_ids: Any, labels: Any, attention_mask: Any, loss_mask: Any) -> Any:
        return self.loss(input_ids, labels, attention_mask, loss_mask)[0]


class PairedDPO(TinyDPO):
    """The same from the columns of the layout `paired`, as mindrlhf's models take them."""

    def construct(  # type: ignore[override]
        self,
        chosen_input_ids: Any,
        chosen_labels: Any,
        chosen_attention_mask: Any,
        chosen_loss_mask: Any,
        rejected_input_ids: Any,
        rejected_labels: Any,
        rejected_attention_mask: Any,
        rejected_loss_mask: Any,
    ) -> Any:
        return self.loss(
            ops.cat((chosen_input_ids, rejected_input_ids)),
            ops.cat((chosen_labels, rejected_labels)),
            ops.cat((chosen_attention_mask, rejected_attention_mask)),
            ops.cat((chosen_loss_mask, rejected_loss_mask)),
        )[0]


class Log(ms.train.Callback):
    """The rows and the loss of each step; `place` is that of the column that names the rows."""

    def __init__(self, place: int = 0, column: str = "input_ids") -> None:
        super().__init__()
        self.place, self.column, self.steps = place, column, []  # type: ignore[var-annotated]

    def on_train_step_end(self, run_context: Any) -> None:
        found = run_context.original_args()
        ids = found.train_dataset_element[self.place].asnumpy()
        loss = found.net_outputs
        loss = loss[0] if isinstance(loss, (tuple, list)) else loss
        self.steps.append({"rows": rows_in({self.column: ids}), "loss": float(loss.asnumpy())})


def stream(**options: Any) -> mps.Stream:
    """What the YAML files describe, written in Python."""
    return mps.stream(
        "rows.jsonl",
        task=mps.DPO(128, layout="concat"),
        tokenizer="bytes",
        batching=mps.Bucket(BATCH, boundaries=(96, 128)),
        window=2,
        seed=SEED,
        **options,
    )


def weights_of(network: nn.Cell) -> list[Any]:
    return list(network.trainable_params())


def by_function(network: nn.Cell, found: mps.Stream) -> Any:
    """The steps of a functional loop on the numpy batches of a stream."""
    network.set_train()
    optimizer = nn.SGD(weights_of(network), LEARNING_RATE)
    step, steps = ms.value_and_grad(network, None, weights_of(network)), []
    for epoch in range(EPOCHS):
        for batch in found.batches(epoch):
            loss, gradients = step(*map(ms.Tensor, batch.values()))
            optimizer(gradients)
            steps.append({"rows": rows_in(batch), "loss": float(loss.asnumpy())})
    return steps


def by_model(network: nn.Cell, dataset: Any, log: Log) -> Any:
    """The steps of `Model.train` on a dataset."""
    model = ms.train.Model(network, loss_fn=None, optimizer=nn.SGD(weights_of(network), LEARNING_RATE))
    model.train(EPOCHS, dataset, callbacks=[log], dataset_sink_mode=False)
    return log.steps


def by_trainer(config: dict[str, Any], log: Log, *, train: Any = None, **given: Any) -> Any:
    """The steps of MindFormers' trainer, which reads this configuration from a YAML file."""
    from mindformers import Trainer

    trainer = Trainer(args=write_yaml("train.yaml", config), callbacks=log, **given)
    trainer.train(**(train or {}))
    return log.steps


def prepare(config: dict[str, Any]) -> None:
    """Loads MindFormers with its log in this folder, registers what only tests need and takes over the context."""
    os.environ["LOG_MF_PATH"] = str(pathlib.Path("log").absolute())
    import mindformers
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    class CPUStep(mindformers.wrapper.MFTrainOneStepCell):  # type: ignore[misc]
        """Without the overflow check, whose kernel only NPUs have."""

        def start_overflow_check(self, pre_cond: Any, compute_input: Any) -> Any:
            return pre_cond, compute_input

        def get_overflow_status(self, status: Any, compute_output: Any) -> Any:
            return ms.Tensor(False)

        def process_loss_scale(self, overflow: Any) -> Any:
            return overflow

    MindFormerRegister.register_cls(CPUStep, MindFormerModuleType.WRAPPER)
    MindFormerRegister.register_cls(TinyDPO, MindFormerModuleType.MODELS)
    MindFormerRegister.register_cls(PairedDPO, MindFormerModuleType.MODELS)
    mindformers.build_context(mindformers.MindFormerConfig(**config))
