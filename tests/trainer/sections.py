"""What MindFormers' `build_dataset` makes of sections of a YAML file; run by `jobs`, in its process."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import mindspore as ms

import ms_prefstream as mps
from tests.helpers import pairs, rows_in
from tests.trainer.configs import COLUMNS, loader, task_config


def shards() -> Any:
    """The rows of epoch 0 on every one of four ranks, by parallel mode."""
    from mindformers.dataset import base_dataset, build_dataset

    modes: dict[str, dict[str, Any]] = {
        "stand alone": {"parallel_mode": "stand_alone", "full_batch": False},
        "data parallel": {"parallel_mode": "data_parallel", "full_batch": False},
        "full batch": {"parallel_mode": "semi_auto_parallel", "full_batch": True},
        "dataset strategy": {
            "parallel_mode": "semi_auto_parallel", "full_batch": False, "dataset_strategy": ((2, 1),),
        },
    }  # fmt: skip
    found: dict[str, Any] = {}
    before = base_dataset.get_real_rank, base_dataset.get_real_group_size
    try:
        for mode, context in modes.items():
            ms.reset_auto_parallel_context()
            ms.set_auto_parallel_context(**context)
            world = 1 if mode == "stand alone" else 4
            base_dataset.get_real_group_size = lambda world=world: world
            found[mode] = []
            for rank in range(world):
                base_dataset.get_real_rank = lambda rank=rank: rank
                dataset = build_dataset(task_config(batch_size=2))
                rows = [rows_in(batch) for batch in dataset.create_dict_iterator(output_numpy=True, num_epochs=1)]
                found[mode].append(rows)
    finally:
        base_dataset.get_real_rank, base_dataset.get_real_group_size = before
        ms.reset_auto_parallel_context()
    return found


def refusals() -> Any:
    """What `build_dataset` says to sections that contradict themselves, by case."""
    from mindformers.dataset import build_dataset

    useless = {
        "source": pairs(8),
        "format": {"type": "cvalues", "types": [["a", "b"]]},
        "batching": {"type": "Bucket", "max_shapes": 2},
    }
    cases: dict[str, dict[str, Any]] = {
        "another batch size": task_config(batch_size=2, loader=loader(batching={"type": "Pad", "batch_size": 4})),
        "keys without columns": task_config(batch_size=2, input_columns=None),
        "fewer keys than columns": task_config(batch_size=2, input_columns=COLUMNS, construct_args_key=COLUMNS[:2]),
        "keys in another order": task_config(batch_size=2, input_columns=COLUMNS, construct_args_key=COLUMNS[::-1]),
        "one column as a word": task_config(batch_size=2, input_columns="input_ids"),
        "one key as a word": task_config(batch_size=2, input_columns=COLUMNS, construct_args_key="input_ids"),
        "no size but in batching": task_config(batch_size=1, loader=loader(batching={"type": "Pad", "batch_size": 4})),
        "unknown column": task_config(batch_size=2, input_columns=["tokens"]),
        "eod_reset": task_config(batch_size=2, eod_reset=True),
        "dynamic_batch": task_config(batch_size=2, dynamic_batch=True),
        "repeat": task_config(batch_size=2, repeat=2),
        "smaller last batch": task_config(batch_size=2, drop_remainder=False),
        "stream option beside data_loader": task_config(batch_size=2, shuffle=False),
        "no data_loader": {"type": "PrefStreamDataset", "dataset_config": {"batch_size": 2}},
        "another loader": task_config(batch_size=2, loader={"type": "MindDataset", "dataset_dir": "x"}),
        "no usable row": task_config(batch_size=2, loader=loader(**useless)),
    }
    sentences = {}
    for case, section in cases.items():
        try:
            build_dataset(section)
            sentences[case] = "no error"
        except mps.PrefStreamError as error:
            sentences[case] = str(error)
    return sentences


def batched_by_others() -> Any:
    """MindFormers' own dataset class batches what the loader yields."""
    from mindformers.dataset import build_dataset

    columns = ["chosen_input_ids", "chosen_loss_mask", "rejected_input_ids"]
    section = loader(task={"type": "DPO", "max_length": 128}, columns=columns, dataset_dir="")
    section["batching"]["batch_size"] = 2
    config = {"data_loader": section, "input_columns": columns, "batch_size": 2, "drop_remainder": True, "seed": 1}
    dataset = build_dataset({"type": "CausalLanguageModelDataset", "dataset_config": config})
    rows = [rows_in(batch) for batch in dataset.create_dict_iterator(output_numpy=True, num_epochs=1)]
    skipped = build_dataset({"type": "CausalLanguageModelDataset", "dataset_config": config})
    skipped.set_init_step(3)
    rest = [rows_in(batch) for batch in skipped.create_dict_iterator(output_numpy=True, num_epochs=1)]
    return {"rows": rows, "skipped": rest}


def auto_registered() -> Any:
    """As run_mindformer.py does it: a file with one import line, and its folder as register_path."""
    from mindformers.dataset import build_dataset
    from mindformers.tools.register import MindFormerRegister

    pathlib.Path("prefstream.py").write_text("from ms_prefstream.adapters.mindformers import PrefStreamDataset\n")
    os.environ["REGISTER_PATH"] = "."
    del MindFormerRegister.registry["dataset"]["PrefStreamDataset"]
    section = task_config(batch_size=2) | {"auto_register": "prefstream.PrefStreamDataset"}
    return build_dataset(section).get_dataset_size()


SECTIONS = {made.__name__: made for made in (shards, refusals, batched_by_others, auto_registered)}
