"""Trainings with columns, batch sizes and budgets that do not fit together; run by `jobs`, in its process."""

from __future__ import annotations

import shutil
from typing import Any
from unittest import mock

import ms_prefstream as mps
from tests.helpers import rows_of
from tests.trainer.configs import COLUMNS, EPOCHS, SEED, K, dpo_config, llama_config, loader
from tests.trainer.network import Log, by_trainer, stream

NATURAL = ["input_ids", "labels", "attention_mask", "loss_mask"]


def _with(made: dict[str, Any], **dataset: Any) -> dict[str, Any]:
    made["train_dataset"] |= dataset
    made["train_dataset_task"]["dataset_config"] = made["train_dataset"]
    return made


def _given(made: dict[str, Any], **dataset: Any) -> dict[str, Any]:
    """For a trainer that is handed its dataset."""
    del made["train_dataset"]["data_loader"]
    return _with(made, **dataset)


def _sized(made: dict[str, Any], size: int | None) -> dict[str, Any]:
    del made["runner_config"]["batch_size"]
    if size is not None:
        made["runner_config"]["batch_size"] = size
    return made


def _paired_for_evaluation(keys: list[str]) -> Any:
    """The part of an evaluation that pairs; the whole needs metrics of language models."""
    from mindformers.trainer.base_trainer import BaseTrainer

    trainer: Any = object.__new__(BaseTrainer)
    trainer.set_eval_dataset(stream().dataset(columns=COLUMNS))
    trainer.warp_data_order_with_tool_cells(None, keys)
    return [trainer]


def _evaluated_before() -> Any:
    """A trainer's class pairs for others as it did, and forgets a dataset that it has paired."""
    from mindformers.trainer.base_trainer import BaseTrainer

    _paired_for_evaluation(COLUMNS)[0].warp_data_order_with_tool_cells(None, NATURAL)
    BaseTrainer.warp_data_order_with_tool_cells(None, NATURAL)
    return by_trainer(_with(dpo_config(), construct_args_key=COLUMNS), Log(1))


def _budget() -> Any:
    """As many rows as 1024 tokens hold, whatever `runner_config.batch_size` says, and what the plan has."""
    shutil.copy("rows.jsonl", "budget.jsonl")  # with a length index, which the other runs do without
    task, widths = mps.DPO(128, layout="concat"), [96, 128]
    mps.stream("budget.jsonl", task=task, tokenizer="bytes", batching=mps.Pad(4)).build_index()
    rule = mps.Bucket(max_tokens=1024, boundaries=widths)
    planned = mps.stream("budget.jsonl", task=task, tokenizer="bytes", batching=rule, seed=SEED, window=2)
    batching = {"type": "Bucket", "max_tokens": 1024, "boundaries": widths}
    found = by_trainer(_with(dpo_config(), data_loader=loader(source="budget.jsonl", batching=batching)), Log(1))
    return {"trained": found, "planned": [rows for epoch in range(EPOCHS) for rows in rows_of(planned.batches(epoch))]}


def _evaluated_between(columns: list[str]) -> Any:
    """A training that evaluates itself once, on these columns."""
    import mindspore
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    class AnyMetric(mindspore.train.Metric):  # type: ignore[misc]
        def clear(self) -> None: ...

        def update(self, *outputs: Any) -> None: ...

        def eval(self) -> dict[str, int]:
            return {"any": 1}

    MindFormerRegister.register_cls(AnyMetric, MindFormerModuleType.METRIC)
    section = {"data_loader": loader(), "input_columns": columns}
    made = _with(dpo_config(), construct_args_key=COLUMNS) | {
        "do_eval": True,
        "eval_step_interval": K,
        "metric": {"type": "AnyMetric"},
        "eval_dataset": section,
        "eval_dataset_task": {"type": "PrefStreamDataset", "dataset_config": section},
    }
    return by_trainer(made, Log(1))


def _on_rank_3_of_4(parallel: dict[str, Any], **options: Any) -> str:
    """What is said when a trainer gets a stream on one of several ranks; "" if nothing."""
    import mindspore
    from mindformers.dataset import base_dataset
    from mindformers.tools import MindFormerConfig
    from mindformers.trainer.base_trainer import BaseTrainer
    from mindspore.communication import GlobalComm

    trainer: Any = object.__new__(BaseTrainer)
    trainer.config = MindFormerConfig(runner_config={"batch_size": 4})
    mindspore.set_auto_parallel_context(**parallel)
    with (
        mock.patch.multiple(base_dataset, get_real_rank=lambda: 3, get_real_group_size=lambda: 4),
        mock.patch.object(GlobalComm, "INITED", True),
        mock.patch("mindspore.communication.get_group_size", return_value=4),
    ):
        try:
            trainer.set_train_dataset(stream(**options).dataset())
        except mps.PrefStreamError as error:
            return str(error)
        finally:
            mindspore.reset_auto_parallel_context()
    return ""


def streams_on_several_ranks() -> Any:
    """Streams for all ranks and for one, in several parallel modes."""
    semi = {"parallel_mode": "semi_auto_parallel"}
    modes = {
        "data": {"parallel_mode": "data_parallel"},
        "full batch": {**semi, "full_batch": True},
        "two by two": {**semi, "dataset_strategy": ((2, 1), (2, 1))},
        "a word": {**semi, "dataset_strategy": "data_parallel"},
        "a word, two stages": {**semi, "dataset_strategy": "data_parallel", "pipeline_stages": 2},
    }
    every, whole = {"num_shards": 4, "shard_id": 3}, {"num_shards": 1, "shard_id": 0}
    return {name: [_on_rank_3_of_4(mode, **options) for options in (every, whole)] for name, mode in modes.items()}


def trainings_refused() -> Any:
    """The sentence that each training ends with, or how many steps it made."""
    cases: dict[str, Any] = {
        "one key too few": lambda: by_trainer(_with(llama_config(), construct_args_key=["input_ids"]), Log()),
        "one key too many": lambda: by_trainer(_with(dpo_config(), construct_args_key=[*COLUMNS, "margin"]), Log(1)),
        "two swapped": lambda: by_trainer(_with(llama_config(), construct_args_key=["labels", "input_ids"]), Log()),
        "another order": lambda: by_trainer(
            _with(dpo_config(), input_columns=NATURAL, construct_args_key=COLUMNS), Log()
        ),
        "a word": lambda: by_trainer(_with(dpo_config(), construct_args_key="input_ids"), Log(1)),
        "a dataset without keys": lambda: by_trainer(_given(dpo_config()), Log(), train_dataset=stream().dataset()),
        "a dataset with more rows": lambda: by_trainer(
            _sized(_given(dpo_config(), input_columns=NATURAL), 16), Log(), train_dataset=stream().dataset()
        ),
        "an evaluation": lambda: _paired_for_evaluation(NATURAL),
        "an evaluation in between": lambda: _evaluated_between(NATURAL),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for case, train in cases.items():
        try:
            found[case] = f"trained {len(train())} steps"
        except mps.PrefStreamError as error:
            found[case] = str(error)
    return found


def trainings_allowed() -> Any:
    """Steps of trainings that look like those, and are not."""
    return {
        "a token budget": _budget(),
        "evaluated on other columns before": _evaluated_before(),
        "evaluated in between": _evaluated_between(COLUMNS),
        "a dataset without a size": by_trainer(
            _sized(_given(dpo_config(), input_columns=NATURAL), None), Log(), train_dataset=stream().dataset()
        ),
        "a dataset with its columns chosen": by_trainer(
            _given(dpo_config()), Log(1), train_dataset=stream().dataset(columns=COLUMNS)
        ),
    }


PAIRINGS = {made.__name__: made for made in (trainings_refused, trainings_allowed, streams_on_several_ranks)}
