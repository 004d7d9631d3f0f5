"""A reward model (Bradley-Terry) in a functional loop: `value_and_grad` over the batches of a stream's dataset.

    python examples/train_reward.py
    python examples/train_reward.py --layout reward_token
    python examples/train_reward.py --data cvalues.jsonl --tokenizer path/to/Qwen2.5 --max-length 512

With ``--layout mindformers`` the columns are those of MindFormers' reward model, and the score stands at the last token
(`end_ind`). With ``--layout reward_token`` every side ends with a token of its own, where the labels say 0 or 1.
"""

from __future__ import annotations

import math

import mindspore as ms
from common import Curves, batches, begin, check, parser, sources
from mindspore import nn

import ms_prefstream as mps
from ms_prefstream.demo.losses import RewardLoss, RewardTokenLoss
from ms_prefstream.demo.model import ModelOptions, RewardModel


def main() -> None:
    cli = parser(__doc__, epochs=6)
    cli.add_argument("--layout", default="mindformers", choices=["mindformers", "reward_token"])
    cli.add_argument("--reward-token", type=int, default=None, help="its id, where the vocabulary reserves none")
    options = begin(cli)
    if options.layout == "reward_token" and options.tokenizer == "bytes" and options.reward_token is None:
        options.reward_token = 0  # a byte that no text has

    stream = mps.stream(
        sources(options),
        task=mps.Reward(max_length=options.max_length, layout=options.layout, reward_token=options.reward_token),
        tokenizer=options.tokenizer,
        batching=mps.Bucket(batch_size=options.batch_size, multiple_of=64),
        seed=options.seed,
        window=4,  # the bundled set is small: longer windows would sort it into the same batches every epoch
    )
    print(f"{stream.steps_per_epoch} steps an epoch, shapes {stream.shapes}")
    model = RewardModel(ModelOptions(vocab_size=stream.tokenizer.vocab_size, max_length=stream.shapes[-1][1]))
    loss = (RewardLoss if options.layout == "mindformers" else RewardTokenLoss)(model)
    optimizer = nn.AdamWeightDecay(model.trainable_params(), learning_rate=options.learning_rate, beta2=0.98)
    value_and_grad = ms.value_and_grad(loss, None, optimizer.parameters, has_aux=True)

    @ms.jit  # compiled once for each of the shapes
    def train_step(*columns: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        (value, accuracy), gradients = value_and_grad(*columns)
        optimizer(gradients)
        return value, accuracy

    curves = Curves("reward", options.epochs * stream.steps_per_epoch, options)
    for batch in batches(stream.dataset(), options):
        value, accuracy = train_step(*batch.values())
        curves.add(loss=float(value), pair_accuracy=float(accuracy))
    curves.finish(loss=math.log(2), pair_accuracy=0.5)

    print(stream.report)
    hits = curves.mean("pair_accuracy", stream.steps_per_epoch)
    check(options, f"pair accuracy {100 * hits:.0f} % in the last epoch, at least 75 % expected", hits >= 0.75)


if __name__ == "__main__":
    main()
