"""DPO with `Model.train`: the dataset of a stream goes straight in, one dataset row is one step.

    python examples/train_dpo.py                       # the reference model runs beside the policy
    python examples/train_dpo.py --reference cache     # its log-probabilities are computed once and stored
    python examples/train_dpo.py --dynamic             # one graph for all widths, which set_inputs leaves open
    python examples/train_dpo.py --data "data/train-*.jsonl" --tokenizer path/to/Qwen2.5 --max-length 1024

The network takes the columns of the `paired` layout by position, as mindrlhf's DPO models do: eight, and ten with
reference log-probabilities. A cache with these is bound to its tokens and to the checkpoint that is named.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from common import Curves, begin, check, parser, sources, vocabulary
from mindspore import Tensor, nn, ops

import ms_prefstream as mps
from ms_prefstream.demo.losses import frozen_copy, pair_loss, sequence_log_probs
from ms_prefstream.demo.model import CausalLM, ModelOptions


class PairedDPO(nn.Cell):
    """The DPO loss from paired columns (Rafailov et al. 2023, equation 7); both sides are one batch, chosen first.

    Args:
        policy: What is trained.
        beta: How strongly it is held to the reference.
        reference: The frozen model, or None where the columns hold its log-probabilities.
    """

    def __init__(self, policy: CausalLM, beta: float, reference: nn.Cell | None) -> None:
        super().__init__(auto_prefix=False)
        self.policy, self.reference, self.beta = policy, reference, beta
        self.accuracy = ms.Parameter(Tensor(0.0, ms.float32), name="accuracy", requires_grad=False)

    def construct(self, *columns: Tensor) -> Tensor:
        each = len(columns) // 2  # input_ids, labels, attention_mask, loss_mask, and ref_logps if they are stored
        ids, labels, _, mask = [ops.cat((columns[i], columns[each + i])) for i in range(4)]
        if self.reference is None:
            expected = ops.cat((columns[4], columns[each + 4])).reshape(-1)  # (2B,)
        else:
            expected = ops.stop_gradient(sequence_log_probs(self.reference(ids), labels, mask))
        gains = sequence_log_probs(self.policy(ids), labels, mask) - expected
        pairs = gains.shape[0] // 2
        loss, accuracy = pair_loss((gains[:pairs] - gains[pairs:]) * self.beta)
        self.accuracy = accuracy
        return loss


class Progress(ms.train.Callback):
    """Keeps the numbers of every step; ends the run after `--steps`."""

    def __init__(self, network: PairedDPO, curves: Curves) -> None:
        super().__init__()
        self.network, self.curves = network, curves

    def on_train_step_end(self, run_context: Any) -> None:
        loss = float(run_context.original_args().net_outputs)
        self.curves.add(loss=loss, pair_accuracy=float(self.network.accuracy.value()))
        if len(self.curves) >= self.curves.steps:
            run_context.request_stop()


def open_stream(source: Any, tokenizer: Any, options: argparse.Namespace) -> mps.Stream:
    return mps.stream(
        source,
        task=mps.DPO(max_length=options.max_length),
        tokenizer=tokenizer,
        batching=mps.Bucket(batch_size=options.batch_size, multiple_of=64),
        seed=options.seed,
        index=None,  # so that text and cache have the same batches; a real run builds an index and leaves this out
    )


def with_reference(stream: mps.Stream, policy: CausalLM, folder: str, options: argparse.Namespace) -> mps.Stream:
    """A stream of a cache that holds the log-probabilities of the policy as it is now."""

    def reference(batch: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        chosen, rejected = (
            sequence_log_probs(policy(Tensor(ids)), Tensor(labels), Tensor(mask))
            for ids, labels, mask in (
                (batch[f"{side}_input_ids"], batch[f"{side}_labels"], batch[f"{side}_loss_mask"])
                for side in ("chosen", "rejected")
            )
        )
        return chosen, rejected

    mps.write_cache(stream, folder, reference=reference, reference_id=f"untrained, seed {options.seed}")
    return open_stream(folder, None, options)


def open_width(name: str, rows: int) -> Tensor:
    """What `set_inputs` wants to know of a column: its shape without the width, and its dtype."""
    if name.endswith("_ref_logps"):
        return Tensor(shape=[rows, 1], dtype=ms.float32)
    return Tensor(shape=[rows, None], dtype=ms.int32)


def train(stream: mps.Stream, policy: CausalLM, reference: nn.Cell | None, options: argparse.Namespace) -> Curves:
    print(f"{stream.steps_per_epoch} steps an epoch, shapes {stream.shapes}, columns {len(stream.column_names)}")
    network = PairedDPO(policy, 0.1, reference)
    if options.dynamic:
        network.set_inputs(*[open_width(name, options.batch_size) for name in stream.column_names])
    optimizer = nn.AdamWeightDecay(policy.trainable_params(), learning_rate=options.learning_rate)
    curves = Curves("dpo", options.epochs * stream.steps_per_epoch, options)
    model = ms.train.Model(network, loss_fn=None, optimizer=optimizer)
    # On Ascend dataset_sink_mode=True hands the batches over on the device; the callback then sees the last of a sink.
    model.train(options.epochs, stream.dataset(), callbacks=[Progress(network, curves)], dataset_sink_mode=False)
    curves.finish(loss=math.log(2), pair_accuracy=0.5)
    print(stream.report)
    return curves


def main() -> None:
    cli = parser(__doc__)
    cli.add_argument("--reference", default="model", choices=["model", "cache"])
    cli.add_argument("--dynamic", action="store_true", help="compile one graph for all widths")
    options = begin(cli)
    stream = open_stream(sources(options), options.tokenizer, options)
    columns = stream.shapes[-1][1]
    ids = vocabulary(stream, options, 2 * options.batch_size, columns)
    policy = CausalLM(ModelOptions(vocab_size=ids, max_length=columns))
    if options.reference == "model":
        curves = train(stream, policy, frozen_copy(policy), options)
    else:
        with tempfile.TemporaryDirectory() as folder:  # a real run keeps it
            cached = with_reference(stream, policy, str(pathlib.Path(folder, "cache")), options)
            curves = train(cached, policy, None, options)
    last, expected = curves.mean("loss", 5), 0.9 * math.log(2)
    check(
        options, f"loss {last:.3f} at the end, below {expected:.3f} expected (no preference is ln 2)", last < expected
    )


if __name__ == "__main__":
    main()
