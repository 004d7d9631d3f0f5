"""Runs of the trainer that resume, or are refused, with and without saved states; run by `jobs`, in its process."""

from __future__ import annotations

import copy
import json
import pathlib
import shutil
from importlib.metadata import version
from typing import Any

import ms_prefstream as mps
from tests.helpers import json_lines, pairs
from tests.trainer.configs import EPOCHS, ROWS, K, dpo_config, loader
from tests.trainer.network import Log, by_trainer


def _config(**keys: Any) -> dict[str, Any]:
    """A run that saves every step; `keys` are those of data_loader."""
    made = dpo_config(checkpoints=True)
    made["train_dataset"]["data_loader"] = loader(**keys)
    return made


def _saving(place: str, **callback: Any) -> dict[str, Any]:
    """A run that saves in a folder of its own."""
    made = _config()
    made["callbacks"][0] |= {"directory": place, **callback}
    return made


def _resumed(made: dict[str, Any], **train: Any) -> Any:
    """The rows of the steps behind a checkpoint, the third step unless told otherwise, or the sentence that refuses."""
    made["callbacks"] = []
    behind = {"resume_from_checkpoint": "output/checkpoint", "resume_training": "tiny_rank_0-1_3.ckpt"}
    return _go_on(made, behind | train)


def _go_on(made: dict[str, Any], train: dict[str, Any] | None = None) -> Any:
    try:
        return [step["rows"] for step in by_trainer(made, Log(1), train=train)]
    except mps.PrefStreamError as error:
        return str(error)


def states_beside() -> Any:
    """The states of a run that keeps two checkpoints, as files and in their words."""
    by_trainer(_saving("two", keep_checkpoint_max=2), Log(1))
    folder = pathlib.Path("two/checkpoint/rank_0")
    return {
        "checkpoints": sorted(path.stem for path in folder.glob("*.ckpt")),
        "states": {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.stream_state.json"))},
    }


def resumed_with_changes() -> Any:
    """What a run answers that goes on from the third step of `dpo_from_yaml`."""
    json_lines(pathlib.Path("others.jsonl"), pairs(ROWS, first=40))
    smaller = _config()
    smaller["runner_config"]["batch_size"] = 2
    shutil.copytree("output/checkpoint", "bare", ignore=shutil.ignore_patterns("*state.json"))
    return {
        "mindformers": version("mindformers"),
        "seed": _resumed(_config(seed=8)),
        "rows": _resumed(_config(source="others.jsonl")),
        "task": _resumed(_config(task={"type": "DPO", "max_length": 127, "layout": "concat"})),
        "batch": _resumed(smaller),
        "shards": _resumed(_config(logical_shards=2)),
        "seed, latest": _resumed(_config(seed=8), resume_training=True),
        "seed, from the first row": _resumed(_config(seed=8), ignore_data_skip=True),
        "seed, no state": _resumed(_config(seed=8), resume_from_checkpoint="bare"),
    } | _newer_form()


def _newer_form() -> dict[str, Any]:
    """The same with checkpoints that are folders, one a step; MindFormers 1.7 cannot load them here."""
    if version("mindformers") < "1.8":
        return {}
    made = _config()
    made["use_legacy_format"] = False
    made["load_ckpt_format"] = made["callbacks"][0]["checkpoint_format"] = "safetensors"
    made["callbacks"][0]["directory"] = "newer"
    by_trainer(copy.deepcopy(made), Log(1))
    made["load_checkpoint"], made["resume_training"] = "newer/iteration_00000003", True
    found = {"nothing, newer form": _go_on(copy.deepcopy(made))}
    made["train_dataset"]["data_loader"]["seed"] = 8
    return found | {"seed, newer form": _go_on(made)}


def resumed_behind_skipped_steps() -> Any:
    """A run that left out three steps is stopped after two and goes on, with and without saying so."""
    by_trainer(_saving("skipped"), Log(1), train={"data_skip_steps": 3})
    second = "tiny_rank_0-2_2.ckpt"  # as MindFormers calls the second step of this run, the first of the second epoch
    behind = {"resume_from_checkpoint": "skipped/checkpoint", "resume_training": second}
    return {"silent": _resumed(_config(), **behind), "said": _resumed(_config(), **behind, data_skip_steps=5)}


def skipped_past_the_first_epoch() -> Any:
    """The rows of a new run that leaves out an epoch and a step; what is said if it leaves out all there is."""
    found = by_trainer(dpo_config(), Log(1), train={"data_skip_steps": K + 1})
    return {"more": [step["rows"] for step in found], "all": _go_on(dpo_config(), {"data_skip_steps": EPOCHS * K})}


RESUMING = {
    made.__name__: made
    for made in (states_beside, resumed_with_changes, resumed_behind_skipped_steps, skipped_past_the_first_epoch)
}
