"""DPO with `Model.train`: the dataset of a stream goes straight in, one dataset row is one step.

    python examples/train_dpo.py
    python examples/train_dpo.py --data "data/train-*.jsonl" --tokenizer path/to/Qwen2.5 --max-length 1024

The network takes the eight columns of the `paired` layout by position, as mindrlhf's DPO models do.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
from common import parser, report, sources
from mindspore import Tensor, nn, ops

import ms_prefstream as mps
from ms_prefstream.demo.losses import DPOLoss
from ms_prefstream.demo.model import CausalLM, ModelOptions


class PairedDPO(nn.Cell):
    """The DPO loss from paired columns: both sides are put one behind the other, chosen rows first."""

    def __init__(self, policy: CausalLM, beta: float) -> None:
        super().__init__(auto_prefix=False)
        self.loss = DPOLoss(policy, beta)
        self.accuracy = ms.Parameter(Tensor(0.0, ms.float32), name="accuracy", requires_grad=False)

    def construct(
        self,
        chosen_input_ids: Tensor,
        chosen_labels: Tensor,
        chosen_attention_mask: Tensor,
        chosen_loss_mask: Tensor,
        rejected_input_ids: Tensor,
        rejected_labels: Tensor,
        rejected_attention_mask: Tensor,
        rejected_loss_mask: Tensor,
    ) -> Tensor:
        loss, accuracy = self.loss(
            ops.cat((chosen_input_ids, rejected_input_ids)),
            ops.cat((chosen_labels, rejected_labels)),
            ops.cat((chosen_attention_mask, rejected_attention_mask)),
            ops.cat((chosen_loss_mask, rejected_loss_mask)),
        )
        self.accuracy = accuracy
        return loss


class Progress(ms.train.Callback):
    """Prints and keeps the loss of every step; ends the run after `limit` steps."""

    def __init__(self, network: PairedDPO, steps: int, limit: int | None) -> None:
        super().__init__()
        self.network, self.steps, self.limit = network, steps, limit
        self.losses: list[float] = []

    def on_train_step_end(self, run_context: Any) -> None:
        step = run_context.original_args()
        self.losses.append(float(step.net_outputs))
        if len(self.losses) == 1 or len(self.losses) % 5 == 0:
            report("dpo", len(self.losses), self.steps, self.losses[-1], float(self.network.accuracy.value()))
        if self.limit is not None and len(self.losses) >= self.limit:
            run_context.request_stop()


def main() -> None:
    options = parser(__doc__).parse_args()
    ms.set_seed(options.seed)
    ms.set_device(options.device)
    ms.set_context(mode=ms.GRAPH_MODE if options.mode == "graph" else ms.PYNATIVE_MODE)

    stream = mps.stream(
        sources(options),
        task=mps.DPO(max_length=options.max_length),
        tokenizer=options.tokenizer,
        batching=mps.Bucket(batch_size=options.batch_size, multiple_of=64),
        seed=options.seed,
    )
    print(f"{stream.steps_per_epoch} steps an epoch, shapes {stream.shapes}")
    policy = CausalLM(ModelOptions(vocab_size=stream.tokenizer.vocab_size, max_length=stream.shapes[-1][1]))
    network = PairedDPO(policy, beta=0.1)
    optimizer = nn.AdamWeightDecay(policy.trainable_params(), learning_rate=options.learning_rate)

    progress = Progress(network, options.epochs * stream.steps_per_epoch, options.steps)
    model = ms.train.Model(network, loss_fn=None, optimizer=optimizer)
    model.train(options.epochs, stream.dataset(), callbacks=[progress], dataset_sink_mode=False)

    print(stream.report)
    first, last = progress.losses[0], sum(progress.losses[-5:]) / len(progress.losses[-5:])
    print(f"loss {first:.3f} -> {last:.3f}, where no preference is {math.log(2):.3f}")
    if options.steps is None and last > 0.9 * math.log(2):
        raise SystemExit("DPO did not learn: expected a loss clearly below ln 2 at the end.")


if __name__ == "__main__":
    main()
