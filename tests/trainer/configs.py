"""MindFormers configurations small enough for a CPU, as its YAML files have them."""

from __future__ import annotations

import pathlib
from typing import Any

import yaml

ROWS, BATCH, EPOCHS, SEED, LEARNING_RATE = 17, 4, 2, 7, 0.02
K = ROWS // BATCH
COLUMNS = ["loss_mask", "input_ids", "attention_mask", "labels"]


def loader(**keys: Any) -> dict[str, Any]:
    """The section `data_loader`."""
    section = {
        "type": "PrefStreamDataLoader",
        "source": "rows.jsonl",
        "tokenizer": "bytes",
        "task": {"type": "DPO", "max_length": 128, "layout": "concat"},
        "batching": {"type": "Bucket", "boundaries": [96, 128]},
        "window": 2,
        "seed": SEED,
    }
    return section | keys


def task_config(*, loader: dict[str, Any] = loader(), **dataset: Any) -> dict[str, Any]:  # noqa: B008 - never changed
    """What `build_dataset` takes: a `train_dataset_task`."""
    return {"type": "PrefStreamDataset", "dataset_config": {"data_loader": loader, **dataset}}


def config(data_loader: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """A whole configuration; `batch_size` stands in runner_config alone."""
    dataset = {"data_loader": data_loader, "input_columns": columns}
    return {
        "seed": 3,
        "output_dir": "./output",
        "use_legacy": True,
        "run_mode": "train",
        "trainer": {"type": "CausalLanguageModelingTrainer", "model_name": "llama2_7b"},
        "runner_config": {"epochs": EPOCHS, "batch_size": BATCH, "sink_mode": False},
        "optimizer": {"type": "SGD", "learning_rate": LEARNING_RATE},
        "lr_schedule": {
            "type": "ConstantWarmUpLR",
            "learning_rate": LEARNING_RATE,
            "warmup_steps": 0,
            "total_steps": -1,
        },
        "train_dataset": dataset,
        "train_dataset_task": {"type": "PrefStreamDataset", "dataset_config": dataset},
        "use_parallel": False,
        "parallel": {"parallel_mode": 1},
        "parallel_config": {"data_parallel": 1, "model_parallel": 1, "pipeline_stage": 1, "micro_batch_num": 1},
        "micro_batch_interleave_num": 1,
        "runner_wrapper": {"type": "CPUStep", "scale_sense": 1.0},
        "callbacks": [],
        "context": {"mode": 0, "device_target": "CPU"},
        "model": {"model_config": _LLAMA, "arch": {"type": "LlamaForCausalLM"}},
    }


_LLAMA = {
    "type": "LlamaConfig",
    "batch_size": BATCH,
    "seq_length": 128,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "vocab_size": 300,
    "ignore_token_id": -100,
    "pad_token_id": 259,
    "use_flash_attention": False,
    "fused_rms_norm": False,
    "use_rope_slice": True,
    "use_past": False,
    **dict.fromkeys(
        ("compute_dtype", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype", "param_init_type"),
        "float32",
    ),
}


def llama_config() -> dict[str, Any]:
    """The legacy Llama slices one column off and wants one length: 128 + 1."""
    return config(loader(batching={"type": "Pad", "length": 129}), ["input_ids", "labels"])


def dpo_config(checkpoints: bool = False) -> dict[str, Any]:
    """A network of the test's own."""
    made = config(loader(), COLUMNS)
    made["model"] = {"model_config": _LLAMA, "arch": {"type": "TinyDPO"}}
    if checkpoints:
        saving = {"type": "CheckpointMonitor", "prefix": "tiny", "save_checkpoint_steps": 1, "keep_checkpoint_max": 9}
        made["callbacks"] = [saving]
    return made


def ranks_config() -> dict[str, Any]:
    """The same on two ranks, each with half of the batch."""
    made = dpo_config(checkpoints=True)
    made["use_parallel"] = True
    made["parallel"] = {"parallel_mode": 0, "full_batch": False, "gradients_mean": True}  # 0: data parallel
    made["runner_config"]["batch_size"] = BATCH // 2
    return made


def write_yaml(name: str, content: dict[str, Any]) -> str:
    """Without anchors: each section is written out."""
    dumper = yaml.SafeDumper
    dumper.ignore_aliases = lambda *_: True  # type: ignore[method-assign]
    pathlib.Path(name).write_text(yaml.dump(content, Dumper=dumper, sort_keys=False))
    return name
