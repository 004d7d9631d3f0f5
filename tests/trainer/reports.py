"""Trainings from a YAML file that report what was dropped; run by `jobs`, in its process."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import ms_prefstream as mps
from tests.helpers import json_lines, pairs
from tests.trainer.configs import dpo_config, loader, task_config, write_yaml

ROWS, BAD = 17, 3


def _rows() -> str:
    """Rows of which some cannot be used: both sides are the same."""
    rows = pairs(ROWS)
    for row in rows[1 : 1 + BAD]:
        row["rejected"] = row["chosen"]
    json_lines(pathlib.Path("some_bad.jsonl"), rows)
    return "some_bad.jsonl"


def report_from_yaml() -> Any:
    """The callback, and the dataset that the trainer holds."""
    from mindformers import Trainer

    config = dpo_config()
    section = loader(source=_rows())
    config["train_dataset"]["data_loader"] = config["train_dataset_task"]["dataset_config"]["data_loader"] = section
    config["callbacks"] = [{"type": "PrefStreamReport", "path": "report.json", "every": 3}]
    trainer = Trainer(args=write_yaml("train.yaml", config))
    trainer.train()
    log = "".join(path.read_text("utf-8", "replace") for path in pathlib.Path("log").rglob("info.log"))
    return {
        "file": json.loads(pathlib.Path("report.json").read_text()),
        "held": str(trainer.trainer.train_dataset.stream.report),
        "log": log[log.index("data after 3 steps") :],
    }


def report_of_datasets() -> Any:
    """Rows that the report of each dataset has counted, by the dataset's kind."""
    from mindformers.dataset import build_dataset

    finished = build_dataset(task_config(batch_size=2))
    columns = ["chosen_input_ids", "chosen_loss_mask"]
    section = loader(task={"type": "DPO", "max_length": 128}, columns=columns, dataset_dir="")
    section["batching"]["batch_size"] = 2
    config = {"data_loader": section, "input_columns": columns, "batch_size": 2, "drop_remainder": True, "seed": 1}
    batched = build_dataset({"type": "CausalLanguageModelDataset", "dataset_config": config})
    found = {}
    for name, dataset in {"finished": finished, "taken": finished.take(2).repeat(1), "batched": batched}.items():
        assert isinstance(dataset.stream, mps.Stream)
        for _ in dataset.create_dict_iterator(num_epochs=1):
            pass
        found[name] = dataset.stream.report.read
    return found


def report_refused() -> Any:
    """What the callback says to options and datasets that it cannot honour."""
    from mindspore.dataset import NumpySlicesDataset

    from ms_prefstream.adapters.mindformers import PrefStreamReport

    class Training:
        """A run that has a dataset and nothing else."""

        def original_args(self) -> Any:
            return type("Arguments", (), {"train_dataset": NumpySlicesDataset([1])})

    cases: dict[str, Any] = {
        "every": lambda: PrefStreamReport(every=0),
        "folder": lambda: PrefStreamReport(path="no/such/report.json"),
        "dataset": lambda: PrefStreamReport().on_train_begin(Training()),
    }
    sentences = {}
    for case, act in cases.items():
        try:
            act()
            sentences[case] = "no error"
        except mps.PrefStreamError as error:
            sentences[case] = str(error)
    return sentences


def report_of_a_rank() -> Any:
    """The file of the second of two ranks."""
    from ms_prefstream.adapters.mindformers import PrefStreamReport

    stream = mps.stream(_rows(), task=mps.DPO(128), tokenizer="bytes", batching=mps.Pad(2), num_shards=2, shard_id=1)

    class Training:
        """Behind its second step."""

        def original_args(self) -> Any:
            return type("Arguments", (), {"train_dataset": stream.dataset(), "cur_step_num": 2})

    callback = PrefStreamReport(path="of_ranks.json")
    callback.on_train_begin(Training())
    callback.on_train_end(Training())
    files = sorted(pathlib.Path().glob("of_ranks*"))
    return {path.name: json.loads(path.read_text())["steps"] for path in files}


REPORTS = {made.__name__: made for made in (report_from_yaml, report_of_datasets, report_refused, report_of_a_rank)}
