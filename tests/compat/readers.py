"""A program that reads a cache with a dataset class of another project and saves its batches.

    python -m tests.compat.readers dpo|reward FILE CACHE PAD OUT.npz

FILE is the class's own source file in a checkout; it is loaded under the name that it has there, beside the MindFormers
that is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np

SIDES = ("chosen", "rejected")
DPO_IN = [f"{side}_{kind}" for side in SIDES for kind in
          ("input_ids", "labels", "attention_mask", "loss_mask", "ref_logps")]  # fmt: skip
DPO_OUT = [name for name in DPO_IN if not name.endswith("attention_mask")]
REWARD_IN = [
    "chosen_input_ids", "chosen_attention_mask", "rejected_input_ids", "rejected_attention_mask",
    "position_id", "loss_mask", "end_ind",
]  # fmt: skip
REWARD_OUT = ["input_ids", "position_id", "attention_mask", "loss_mask", "end_ind"]
KINDS = {
    "dpo": ("mindrlhf.utils.dpo_dataset", "DPODataset", DPO_IN, DPO_OUT),
    "reward": ("mindformers.dataset.reward_model_dataset", "RewardModelDataset", REWARD_IN, REWARD_OUT),
}
BATCH = 4


def load(name: str, path: str) -> Any:
    """A module from its file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main(kind: str, path: str, cache: str, pad: str, out: str) -> None:
    """Save every batch."""
    import mindformers.dataset  # noqa: F401  # the package that one of the files belongs to
    from mindformers.tools.register import MindFormerConfig

    name, kind_name, columns, found = KINDS[kind]
    config = MindFormerConfig(
        data_loader={"type": "MindDataset", "dataset_dir": cache, "shuffle": False},
        input_columns=columns,
        output_columns=found,
        batch_size=BATCH,
        drop_remainder=False,
        num_parallel_workers=1,
        python_multiprocessing=False,
        repeat=1,
        seed=0,
        prefetch_size=1,
        numa_enable=False,
        auto_tune=False,
        filepath_prefix="./autotune",
        autotune_per_step=10,
        profile=False,
        eod_reset=False,
        pad_token_id=int(pad),
    )
    dataset = getattr(load(name, path), kind_name)(config)
    arrays = {}
    for step, batch in enumerate(dataset.create_dict_iterator(num_epochs=1, output_numpy=True)):
        for column in found:
            arrays[f"{step}/{column}"] = np.asarray(batch[column])
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
