"""Trainings that need MindFormers, all in one process of their own: importing it takes seconds and changes MindSpore.

``python -m tests.trainer.jobs FOLDER`` runs them in an empty folder and writes ``FOLDER/results.json``: for every job
the rows and the loss of each finished step, or the traceback of what went wrong.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

import ms_prefstream as mps
import ms_prefstream.adapters.mindformers
from ms_prefstream.demo.losses import DPOLoss
from ms_prefstream.demo.model import CausalLM, ModelOptions
from tests.helpers import json_lines, pairs, rows_in
from tests.trainer.configs import BATCH, EPOCHS, LEARNING_RATE, ROWS, SEED, dpo_config, llama_config, write_yaml
from tests.trainer.sections import SECTIONS

JOBS: dict[str, Callable[..., Any]] = {}


def job(function: Callable[..., Any]) -> Callable[..., Any]:
    JOBS[function.__name__] = function
    return function


class TinyDPO(nn.Cell):
    """The demo's DPO loss alone, with weights that are the same in every run."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = config  # MindFormers asks for it, and for the two methods below
        policy = CausalLM(ModelOptions(vocab_size=300, max_length=128, hidden=16, layers=1, heads=2))
        numbers = np.random.default_rng(5)
        for weight in policy.get_parameters():
            drawn = numbers.normal(0.0, 0.05, weight.shape).astype(np.float32)
            weight.set_data(ms.Tensor(drawn))
        self.loss = DPOLoss(policy, beta=0.5)

    def can_generate(self) -> bool:
        return False

    def get_model_parameters(self, only_trainable: bool = True) -> set[Any]:
        return set(self.trainable_params() if only_trainable else self.get_parameters())

    def construct(self, input_ids: Any, labels: Any, attention_mask: Any, loss_mask: Any) -> Any:
        return self.loss(input_ids, labels, attention_mask, loss_mask)[0]


class Log(ms.train.Callback):
    """The rows and the loss of each step; `place` is the column of input_ids."""

    def __init__(self, place: int = 0) -> None:
        super().__init__()
        self.place, self.steps = place, []  # type: ignore[var-annotated]

    def on_train_step_end(self, run_context: Any) -> None:
        found = run_context.original_args()
        ids = found.train_dataset_element[self.place].asnumpy()
        loss = found.net_outputs
        loss = loss[0] if isinstance(loss, (tuple, list)) else loss
        self.steps.append({"rows": rows_in({"input_ids": ids}), "loss": float(loss.asnumpy())})


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


@job
def functional(**options: Any) -> Any:
    """A loop on numpy batches."""
    network = TinyDPO()
    network.set_train()
    optimizer = nn.SGD(weights_of(network), LEARNING_RATE)
    step = ms.value_and_grad(network, None, weights_of(network))
    steps, found = [], stream(**options)
    for epoch in range(EPOCHS):
        for batch in found.batches(epoch):
            loss, gradients = step(*map(ms.Tensor, batch.values()))
            optimizer(gradients)
            steps.append({"rows": rows_in(batch), "loss": float(loss.asnumpy())})
    return steps


@job
def model_train() -> Any:
    """`Model.train` on the dataset."""
    network, log = TinyDPO(), Log()
    model = ms.train.Model(network, loss_fn=None, optimizer=nn.SGD(weights_of(network), LEARNING_RATE))
    model.train(EPOCHS, stream().dataset(), callbacks=[log], dataset_sink_mode=False)
    return log.steps


def trained(config: dict[str, Any], *, place: int = 0, train: Any = None, **given: Any) -> Any:
    from mindformers import Trainer

    log = Log(place)
    trainer = Trainer(args=write_yaml("train.yaml", config), callbacks=log, **given)
    trainer.train(**(train or {}))
    return log.steps


@job
def llama_from_yaml() -> Any:
    """MindFormers' own Llama, everything from the YAML file."""
    return trained(llama_config())


@job
def dpo_from_yaml() -> Any:
    """Our network; columns in another order than its arguments."""
    return trained(dpo_config(checkpoints=True), place=1)


def _resumed(checkpoint: str) -> Any:
    resume = {"resume_from_checkpoint": "output/checkpoint", "resume_training": checkpoint}
    return trained(dpo_config(), place=1, train=resume)


@job
def dpo_resumed_in_epoch_0() -> Any:
    """Behind three of the steps that `dpo_from_yaml` saved."""
    return _resumed("tiny_rank_0-1_3.ckpt")


@job
def dpo_resumed_in_epoch_1() -> Any:
    """Behind a whole epoch and one step."""
    return _resumed("tiny_rank_0-2_1.ckpt")


@job
def dpo_skipped() -> Any:
    """A new run that leaves out three steps."""
    return trained(dpo_config(), place=1, train={"data_skip_steps": 3})


@job
def dpo_with_dataset() -> Any:
    """The dataset handed to the trainer."""
    config = dpo_config()
    del config["train_dataset"]["data_loader"]
    config["train_dataset"]["construct_args_key"] = stream().column_names
    return trained(config, train_dataset=stream().dataset())


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
    mindformers.build_context(mindformers.MindFormerConfig(**config))


def main(folder: str) -> None:
    os.chdir(folder)
    json_lines(pathlib.Path("rows.jsonl"), pairs(ROWS))
    prepare(llama_config())
    results: dict[str, Any] = {}
    for name in sys.argv[2:] or (JOBS | SECTIONS):
        try:
            results[name] = (JOBS | SECTIONS)[name]()
        except Exception:
            results[name] = traceback.format_exc()[-3000:]
        pathlib.Path("results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
