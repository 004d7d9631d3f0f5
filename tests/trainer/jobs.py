"""Trainings that need MindFormers, in one process of their own: importing it takes seconds and changes MindSpore.

``python -m tests.trainer.jobs FOLDER`` works in an empty folder. It reads names of jobs from standard input, one a
line, runs each job once, after those that it needs, and writes ``FOLDER/results/NAME.json``: the rows and the loss of
each finished step, or the traceback of what went wrong.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from tests.helpers import json_lines, pairs
from tests.trainer.configs import ROWS, dpo_config, llama_config
from tests.trainer.in_order import IN_ORDER
from tests.trainer.network import Log, TinyDPO, by_function, by_model, by_trainer, prepare, stream
from tests.trainer.pairings import PAIRINGS
from tests.trainer.pynative import PYNATIVE
from tests.trainer.reports import REPORTS
from tests.trainer.resuming import RESUMING
from tests.trainer.sections import SECTIONS

JOBS: dict[str, Callable[..., Any]] = {}


def job(function: Callable[..., Any]) -> Callable[..., Any]:
    JOBS[function.__name__] = function
    return function


@job
def functional() -> Any:
    """A loop on numpy batches."""
    return by_function(TinyDPO(), stream())


@job
def model_train() -> Any:
    """`Model.train` on the dataset."""
    return by_model(TinyDPO(), stream().dataset(), Log())


@job
def llama_from_yaml() -> Any:
    """MindFormers' own Llama, everything from the YAML file."""
    return by_trainer(llama_config(), Log())


@job
def dpo_from_yaml() -> Any:
    """Our network; columns in another order than its arguments."""
    return by_trainer(dpo_config(checkpoints=True), Log(1))


def _resumed(checkpoint: str) -> Any:
    resume = {"resume_from_checkpoint": "output/checkpoint", "resume_training": checkpoint}
    return by_trainer(dpo_config(), Log(1), train=resume)


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
    return by_trainer(dpo_config(), Log(1), train={"data_skip_steps": 3})


@job
def dpo_with_dataset() -> Any:
    """The dataset handed to the trainer."""
    config = dpo_config()
    del config["train_dataset"]["data_loader"]
    config["train_dataset"]["construct_args_key"] = stream().column_names
    return by_trainer(config, Log(), train_dataset=stream().dataset())


ALL = JOBS | IN_ORDER | PAIRINGS | PYNATIVE | REPORTS | RESUMING | SECTIONS
NEEDS = dict.fromkeys(
    ("dpo_resumed_in_epoch_0", "dpo_resumed_in_epoch_1", "resumed_with_changes"), "dpo_from_yaml"
)  # the job whose checkpoints they resume from


def run(name: str, results: pathlib.Path) -> None:
    """Runs a job that has no result yet, after the job that it needs."""
    path = results / f"{name}.json"
    if path.exists():
        return
    if name in NEEDS:
        run(NEEDS[name], results)
    try:
        found = ALL[name]()
    except Exception:
        found = traceback.format_exc()[-3000:]
    path.with_suffix(".tmp").write_text(json.dumps(found))
    path.with_suffix(".tmp").rename(path)


def main(folder: str) -> None:
    os.chdir(folder)
    results = pathlib.Path("results").absolute()
    results.mkdir()
    json_lines(pathlib.Path("rows.jsonl"), pairs(ROWS))
    prepare(llama_config())
    for line in sys.stdin:
        run(line.strip(), results)


if __name__ == "__main__":
    main(sys.argv[1])
