"""KTO in a functional loop: responses that are each marked as good or bad, with no pairs.

    python examples/train_kto.py
    python examples/train_kto.py --data "feedback-*.jsonl" --tokenizer path/to/Qwen2.5 --max-length 1024

Rows are ``{prompt, completion, label: true}``, or pairs like the bundled ones, of which each gives a good row and a bad
one. The report states the share of good rows and the weights that balance them; pass one to `KTOLoss`.
"""

from __future__ import annotations

from common import Curves, batches, begin, check, parser, sources
from mindspore import nn

import ms_prefstream as mps
from ms_prefstream.demo.losses import KTOLoss
from ms_prefstream.demo.model import CausalLM, ModelOptions
from ms_prefstream.demo.train import train_step


def main() -> None:
    cli = parser(__doc__, epochs=6)
    cli.add_argument("--beta", type=float, default=0.1)
    cli.add_argument("--desirable-weight", type=float, default=1.0)
    cli.add_argument("--undesirable-weight", type=float, default=1.0)
    options = begin(cli)

    stream = mps.stream(
        sources(options),
        task=mps.KTO(max_length=options.max_length),
        tokenizer=options.tokenizer,
        batching=mps.Bucket(batch_size=options.batch_size, max_shapes=3),  # graph mode compiles three times at most
        seed=options.seed,
    )
    print(stream)
    policy = CausalLM(ModelOptions(vocab_size=stream.tokenizer.vocab_size, max_length=stream.shapes[-1][1]))
    loss = KTOLoss(policy, options.beta, options.desirable_weight, options.undesirable_weight)
    step = train_step(loss, nn.AdamWeightDecay(policy.trainable_params(), learning_rate=options.learning_rate))

    curves = Curves("kto", options.epochs * stream.steps_per_epoch, options)
    for batch in batches(stream.dataset(), options):
        value, hits = step(*batch.values())
        curves.add(loss=float(value), on_the_right_side=float(hits))
    curves.finish(loss=0.5, on_the_right_side=0.5)

    print(stream.report)
    hits = curves.mean("on_the_right_side", stream.steps_per_epoch)
    check(options, f"{100 * hits:.0f} % of rows on the right side in the last epoch, 60 % expected", hits >= 0.6)


if __name__ == "__main__":
    main()
