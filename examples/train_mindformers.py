"""DPO or a reward model by MindFormers' `Trainer`: the model, data and schedule of train_mindformers.yaml.

    python train_mindformers.py                    # on the CPU, with the small Llama of the YAML file
    python train_mindformers.py --task reward      # the same rows, another loss
    python train_mindformers.py --resume           # goes on after the last checkpoint in output/
    python train_mindformers.py --device Ascend    # on a device; put your model into the YAML file first

The YAML file says what a device takes. The CPU needs four changes, which `ON_CPU` and `CPUStep` make here:

* RmsNorm: the fused operator exists on Ascend only. `fused_rms_norm: False` composes it of small ones.
* Flash attention: the same, `use_flash_attention: False`; and float32, because few CPU operators take bfloat16.
* Float status: a training step of MindFormers asks the device whether a number overflowed. Only Ascend has that
  operator, so `CPUStep` leaves the question out.
* `sink_mode: False`: batches are sunk to a device's queue, and the CPU has none.

The CPU runs are tested. No device was at hand when this was written: run ascend_check.py of the examples there first.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import Any

os.environ.setdefault("LOG_MF_PATH", str(pathlib.Path("output", "log").absolute()))  # else ./output/log, at the import

import ms_prefstream.adapters.mindformers  # noqa: F401 - registers PrefStreamDataset; checks columns and resumed states
from ms_prefstream.packages import needs

with needs("mindformers", "train_mindformers.py"):
    import mindformers
    import mindspore as ms
    from mindformers import LlamaConfig, LlamaForCausalLM, MindFormerConfig, Trainer
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
    from mindspore import Tensor, nn, ops

    from ms_prefstream.demo.losses import end_scores, pair_loss, token_log_probs

ON_CPU = {
    "use_flash_attention": False,
    "fused_rms_norm": False,
    "use_rope_slice": True,
    **dict.fromkeys(
        ("compute_dtype", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype", "param_init_type"),
        "float32",
    ),
}
TASKS = {
    "dpo": ("DPO", "LlamaDPO", ["input_ids", "labels", "attention_mask", "loss_mask"]),
    "reward": ("Reward", "LlamaReward", ["input_ids", "position_id", "attention_mask", "loss_mask", "end_ind"]),
}


class Preference(nn.Cell):
    """What MindFormers asks of a model that is none of its own."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(auto_prefix=False)
        self.config = config
        self.llama = LlamaForCausalLM(config)

    def can_generate(self) -> bool:
        return False

    def convert_name(self, name: str) -> str:
        return name

    def get_model_parameters(self, only_trainable: bool = True) -> set[Any]:
        return set(self.trainable_params() if only_trainable else self.get_parameters())


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class LlamaDPO(Preference):
    """The DPO loss of a Llama against a frozen copy of itself (Rafailov et al. 2023, equation 7); chosen rows first.

    A model that fills a device has no room for the copy. Store its log-probabilities once, `mps.write_cache(...,
    reference=...)`, and read the columns `chosen_ref_logps` and `rejected_ref_logps` instead.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.reference = LlamaForCausalLM(config)
        for target, source in zip(self.reference.get_parameters(), self.llama.get_parameters(), strict=True):
            target.set_data(source.value().copy())
            target.requires_grad = False
            target.name = f"reference.{target.name}"

    def construct(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor, loss_mask: Tensor) -> Tensor:
        policy = token_log_probs(logits_of(self.llama, input_ids), labels, loss_mask)
        reference = token_log_probs(logits_of(self.reference, input_ids), labels, loss_mask)
        gains = (policy - ops.stop_gradient(reference)).sum(axis=-1)  # (2B,)
        pairs = gains.shape[0] // 2
        return pair_loss((gains[:pairs] - gains[pairs:]) * 0.1)[0]


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class LlamaReward(Preference):
    """The Bradley-Terry loss of a Llama with one score a token; that of the last token counts. Chosen rows first."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.score = nn.Dense(config.hidden_size, 1, weight_init="zeros", has_bias=False)

    def construct(
        self, input_ids: Tensor, position_id: Tensor, attention_mask: Tensor, loss_mask: Tensor, end_ind: Tensor
    ) -> Tensor:
        hidden = self.llama.model(input_ids).reshape(*input_ids.shape, -1).astype(ms.float32)
        scores = end_scores(self.score(hidden).squeeze(-1), end_ind)  # (2B,)
        pairs = scores.shape[0] // 2
        return pair_loss(scores[:pairs] - scores[pairs:])[0]


def logits_of(llama: LlamaForCausalLM, input_ids: Tensor) -> Tensor:
    """Returns (2B, L, vocab) float32; `construct` of the Llama would cut a column off and return a loss."""
    return llama.lm_head(llama.model(input_ids)).reshape(*input_ids.shape, -1).astype(ms.float32)


@MindFormerRegister.register(MindFormerModuleType.WRAPPER)
class CPUStep(mindformers.wrapper.MFTrainOneStepCell):
    """A training step that does not ask for overflow: that operator exists on Ascend only."""

    def start_overflow_check(self, pre_cond: Any, compute_input: Any) -> Any:
        return pre_cond, compute_input

    def get_overflow_status(self, status: Any, compute_output: Any) -> Any:
        return Tensor(False)

    def process_loss_scale(self, overflow: Any) -> Any:
        return overflow


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--config", default=str(pathlib.Path(__file__).with_suffix(".yaml")), help="the YAML file")
    made.add_argument("--task", choices=TASKS, default=None, help="another task than that of the YAML file")
    made.add_argument("--device", choices=["CPU", "Ascend"], default="CPU")
    made.add_argument("--epochs", type=int, default=None, help="instead of runner_config.epochs")
    made.add_argument("--resume", action="store_true", help="go on after the last checkpoint in output/")
    return made.parse_args()


def configured(options: argparse.Namespace) -> MindFormerConfig:
    """Returns the configuration of the YAML file with what the command line and the CPU change."""
    config = MindFormerConfig(options.config)
    dataset = config.train_dataset
    if options.task is not None:
        kind, model, columns = TASKS[options.task]
        dataset.data_loader.task = {"type": kind, "max_length": dataset.data_loader.task.max_length}
        if kind == "DPO":
            dataset.data_loader.task["layout"] = "concat"
        dataset.input_columns = columns
        config.model.arch.type = model
    config.train_dataset_task.dataset_config = dataset
    if options.epochs is not None:
        config.runner_config.epochs = options.epochs
    config.context.device_target = options.device
    if options.device == "CPU":
        config.model.model_config.update(ON_CPU)
        config.runner_wrapper.type = "CPUStep"
        config.runner_config.sink_mode = False
    return config


def main() -> None:
    options = arguments()
    config = configured(options)
    mindformers.build_context(config)
    resumed = {"resume_from_checkpoint": "output/checkpoint", "resume_training": True} if options.resume else {}
    Trainer(args=config).train(**resumed)


if __name__ == "__main__":
    main()
