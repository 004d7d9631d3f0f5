"""The loop of MindFormers' trainer for PyNative mode, without a model; run by `jobs`, in its process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.helpers import rows_of
from tests.trainer.configs import EPOCHS, K
from tests.trainer.network import stream


def pynative_loop() -> Any:
    """The rows of each step of a run, by the step that it begins at; empty where MindFormers has no such trainer."""
    try:
        from mindformers.pynative.trainer.trainer import Trainer
    except ImportError:
        return {}
    return {str(step): _loop(Trainer, step) for step in (0, K - 1, K + 1)}


def _loop(kind: Any, step: int) -> list[list[int]]:
    trained: list[Any] = []

    def training_step(model: Any, inputs: dict[str, Any], grad: Any) -> tuple[int, int]:
        trained.append({name: column.asnumpy() for name, column in inputs.items()})
        return 0, 0

    trainer: Any = object.__new__(kind)
    trainer.__dict__ |= {
        "config": SimpleNamespace(),
        "use_parallel": False,
        "train_num_epochs": EPOCHS,
        "compute_loss": None,
        "optimizer": mock.Mock(parameters=[]),
        "model": None,
        "callback_handler": mock.Mock(),
        "training_step": training_step,
        "train_dataset": stream().dataset(),
        "state": SimpleNamespace(global_step=step, max_steps=EPOCHS * K, epoch_step=K, update_epoch=lambda: None),
    }
    if step:
        trainer.train_dataset.set_init_step(step)
    trainer._inner_train_loop()
    return list(rows_of(trained))


PYNATIVE = {"pynative_loop": pynative_loop}
