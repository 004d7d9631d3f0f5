"""ORPO or SimPO, which need no reference model, on the columns of DPO (layout `concat`).

    python examples/train_orpo.py --loss orpo
    python examples/train_orpo.py --loss simpo
    python examples/train_orpo.py --data "data/train-*.jsonl" --tokenizer path/to/Qwen2.5 --max-length 1024

Both divide a response's log-probability by its number of tokens; a row without any response token would give NaN. Such
rows are dropped by the stream, with a reason in its report.
"""

from __future__ import annotations

import mindspore as ms
from common import Curves, batches, begin, check, mean, parser, sources, vocabulary
from mindspore import Tensor, nn, ops

import ms_prefstream as mps
from ms_prefstream.demo.losses import pair_loss, sequence_log_probs
from ms_prefstream.demo.model import CausalLM, ModelOptions
from ms_prefstream.demo.train import train_step


class MeanLogProbs(nn.Cell):
    """Average log-probability of a response's tokens, (2B, L) columns -> (B,) chosen and (B,) rejected."""

    def __init__(self, policy: CausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.policy = policy

    def construct(self, input_ids: Tensor, labels: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
        sums = sequence_log_probs(self.policy(input_ids), labels, loss_mask)
        means = sums / loss_mask.sum(axis=1).astype(ms.float32)
        pairs = means.shape[0] // 2
        return means[:pairs], means[pairs:]


class ORPOLoss(nn.Cell):
    """The likelihood of the chosen response and the odds ratio of both (Hong et al. 2024, equations 6 and 7)."""

    def __init__(self, policy: CausalLM, weight: float = 1.0) -> None:
        super().__init__(auto_prefix=False)
        self.means, self.weight = MeanLogProbs(policy), weight

    def construct(
        self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        chosen, rejected = self.means(input_ids, labels, loss_mask)
        ratio, accuracy = pair_loss(self.log_odds(chosen) - self.log_odds(rejected))
        return self.weight * ratio - chosen.mean(), accuracy

    def log_odds(self, log_probs: Tensor) -> Tensor:
        """log(p / (1 - p)) of p = exp(log_probs)."""
        return log_probs - ops.log(1.0 - ops.exp(ops.clamp(log_probs, max=-1e-4)))


class SimPOLoss(nn.Cell):
    """Length-normalised rewards and a target margin (Meng et al. 2024, equation 6)."""

    def __init__(self, policy: CausalLM, beta: float = 2.0, gamma: float = 1.0) -> None:
        super().__init__(auto_prefix=False)
        self.means, self.beta, self.gamma = MeanLogProbs(policy), beta, gamma

    def construct(
        self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        chosen, rejected = self.means(input_ids, labels, loss_mask)
        loss, _ = pair_loss(self.beta * (chosen - rejected) - self.gamma)
        return loss, pair_loss(chosen - rejected)[1]


def main() -> None:
    cli = parser(__doc__)
    cli.add_argument("--loss", default="orpo", choices=["orpo", "simpo"])
    options = begin(cli)

    stream = mps.stream(
        sources(options),
        task=mps.DPO(max_length=options.max_length, layout="concat"),
        tokenizer=options.tokenizer,
        batching=mps.Bucket(batch_size=options.batch_size, max_shapes=3),  # graph mode compiles three times at most
        seed=options.seed,
    )
    print(f"{stream.steps_per_epoch} steps an epoch, shapes {stream.shapes}")
    rows, columns = stream.shapes[-1]
    policy = CausalLM(ModelOptions(vocab_size=vocabulary(stream, options, rows, columns), max_length=columns))
    loss = (ORPOLoss if options.loss == "orpo" else SimPOLoss)(policy)
    step = train_step(loss, nn.AdamWeightDecay(policy.trainable_params(), learning_rate=options.learning_rate))

    curves = Curves(options.loss, options.epochs * stream.steps_per_epoch, options)
    for batch in batches(stream.dataset(), options):
        value, accuracy = step(*batch.values())
        curves.add(loss=float(value), pair_accuracy=float(accuracy))
    curves.finish(pair_accuracy=0.5)

    print(stream.report)
    first = mean([record["loss"] for record in curves.records[:2]])
    last, hits = (curves.mean(name, stream.steps_per_epoch) for name in ("loss", "pair_accuracy"))
    claim = f"loss {first:.3f} -> {last:.3f} and pair accuracy {100 * hits:.0f} % in the last epoch"
    check(options, f"{claim}, 15 % less and at least 70 % expected", last < 0.85 * first and hits >= 0.7)


if __name__ == "__main__":
    main()
