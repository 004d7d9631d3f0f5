"""Reference log-probabilities of a DPO cache from a MindFormers model: computed once, stored, bound to the checkpoint.

    python examples/reference_mindformers.py
    python examples/reference_mindformers.py --model finetune_qwen2_5.yaml --checkpoint qwen2_5.ckpt \
        --data "data/train-*.jsonl" --tokenizer path/to/Qwen2.5 --max-length 4097 --out cache --device Ascend

Without ``--model`` it is a small `LlamaForCausalLM` with random weights. The text is tokenised into a cache, the model
reads every sample of it once, and `mps.write_cache` puts both sums beside the tokens. At the end some of them are
computed again from the model's logits, in numpy.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

import ms_prefstream as mps
from ms_prefstream.demo import data_path
from ms_prefstream.demo.losses import sequence_log_probs

SMALL = {"hidden_size": 64, "num_layers": 2, "num_heads": 4}
ON_CPU = {
    "use_flash_attention": False,
    "fused_rms_norm": False,
    "use_rope_slice": True,
    "use_past": False,
} | dict.fromkeys(
    ("compute_dtype", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype", "param_init_type"), "float32"
)


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", nargs="+", default=[str(data_path())], help="preference files, globs allowed")
    made.add_argument("--tokenizer", default="bytes", help="a tokenizer directory or file")
    made.add_argument("--max-length", type=int, default=192, help="tokens of one side")
    made.add_argument("--batch-size", type=int, default=8, help="pairs that the model reads at once")
    made.add_argument("--model", default=None, help="a MindFormers YAML file with model.model_config of a Llama")
    made.add_argument("--checkpoint", default=None, help="its weights; random ones otherwise")
    made.add_argument("--out", default=None, help="the folder of the cache; a temporary one otherwise")
    made.add_argument("--check-rows", type=int, default=16, help="computed again at the end")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="CPU", choices=["CPU", "Ascend", "GPU"])
    return made.parse_args()


def llama(options: argparse.Namespace, vocab_size: int) -> nn.Cell:
    """The model of the YAML file, or the small one, ready to be asked for logits."""
    from mindformers import LlamaConfig, LlamaForCausalLM, MindFormerConfig

    given = SMALL | ON_CPU | {"vocab_size": vocab_size}
    if options.model is not None:
        given = dict(MindFormerConfig(options.model).model.model_config)
        given.pop("type", None)
    given |= {"seq_length": options.max_length, "batch_size": options.batch_size, "use_past": False}
    model = LlamaForCausalLM(LlamaConfig(**given))
    if options.checkpoint is not None:
        missing, _ = ms.load_param_into_net(model, ms.load_checkpoint(options.checkpoint))
        if missing:
            raise SystemExit(f"{options.checkpoint} has no weights for {', '.join(missing[:3])} and the like.")
    model.set_train(False)  # in training it would cut off the last column and return a loss
    return model


class Reference(nn.Cell):
    """A batch's columns -> the log-probability of each response, summed over its loss mask."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        logits = self.model(ids)[0].reshape(*ids.shape, -1)  # (B, L, vocab)
        return sequence_log_probs(logits.astype(ms.float32), labels, mask)


def in_numpy(model: nn.Cell, batch: dict[str, np.ndarray], side: str) -> np.ndarray:
    """The same sums from the logits alone: the logits at t are about token t + 1."""
    ids, mask = batch[f"{side}_input_ids"], batch[f"{side}_loss_mask"]
    logits = model(Tensor(ids))[0].asnumpy().astype(np.float64).reshape(*ids.shape, -1)[:, :-1]
    logits -= logits.max(axis=-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_probs, ids[:, 1:, None].astype(np.int64), axis=-1)[..., 0]
    return np.asarray((chosen * mask[:, 1:]).sum(axis=-1))


def check(model: nn.Cell, stream: mps.Stream, rows: int) -> None:
    """Compare what the cache holds with sums that are computed again."""
    seen, worst = 0, 0.0
    for batch in stream.batches():
        for side in ("chosen", "rejected"):
            stored, again = batch[f"{side}_ref_logps"].reshape(-1), in_numpy(model, batch, side)
            worst = max(worst, float(np.abs((stored - again) / again).max()))
        seen += len(batch["chosen_input_ids"])
        if seen >= rows:
            break
    claim = f"{seen} rows computed again agree to 1e-3 (largest relative difference {worst:.1e})"
    if not worst < 1e-3:
        raise SystemExit(f"check failed: {claim}")
    print(f"check passed: {claim}")


def main() -> None:
    options = arguments()
    ms.set_seed(options.seed)
    ms.set_device(options.device)
    ms.set_context(mode=ms.GRAPH_MODE)

    def stream_of(source: Any, tokenizer: Any) -> mps.Stream:
        return mps.stream(
            source,
            task=mps.DPO(max_length=options.max_length),
            tokenizer=tokenizer,
            batching=mps.Pad(batch_size=options.batch_size),  # one shape: the model is compiled once
        )

    text = stream_of(options.data, options.tokenizer)
    model = llama(options, text.tokenizer.vocab_size)
    summed = Reference(model)

    def reference(batch: dict[str, np.ndarray]) -> tuple[Tensor, ...]:
        kinds = ("input_ids", "labels", "loss_mask")
        return tuple(summed(*(Tensor(batch[f"{side}_{kind}"]) for kind in kinds)) for side in ("chosen", "rejected"))

    with tempfile.TemporaryDirectory() as folder:
        out = options.out or str(pathlib.Path(folder) / "cache")
        name = options.checkpoint or f"random weights, seed {options.seed}"
        mps.write_cache(text, out, reference=reference, reference_id=name)
        cached = stream_of(out, None)
        print(f"{out}: {len(cached.column_names)} columns, among them {', '.join(cached.column_names[4::5])}")
        check(model, cached, options.check_rows)
        print(cached.report)


if __name__ == "__main__":
    main()
