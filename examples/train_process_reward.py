"""A process reward model: every step of a response is scored at the token that ends it.

    python examples/train_process_reward.py
    python examples/train_process_reward.py --data steps.jsonl --tokenizer path/to/Qwen2.5 --max-length 1024

Rows are ``{prompt, completions: [step, ...], labels: [true, ...]}``, as TRL has them. Without --data the script makes
some: numbers are doubled step by step, and from the first wrong sign on every step counts as wrong.
"""

from __future__ import annotations

import random

import numpy as np
from common import Curves, batches, begin, check, parser, sources
from mindspore import nn

import ms_prefstream as mps
from ms_prefstream.demo.losses import ProcessRewardLoss
from ms_prefstream.demo.model import ModelOptions, RewardModel
from ms_prefstream.demo.train import train_step


def made_up(count: int) -> list[dict[str, object]]:
    """Rows that double some numbers; about half of them with a wrong sign from some step on."""
    draw, rows = random.Random(0), []
    for _ in range(count):
        numbers = [draw.randrange(1, 50) for _ in range(draw.randint(2, 4))]
        first_wrong = draw.randrange(2 * len(numbers))
        rows.append(
            {
                "prompt": f"Double {', '.join(map(str, numbers))}.",
                "completions": [
                    f"2 * {number} = {'-' * (at == first_wrong)}{2 * number}" for at, number in enumerate(numbers)
                ],
                "labels": [at < first_wrong for at in range(len(numbers))],
            }
        )
    return rows


def main() -> None:
    cli = parser(__doc__, epochs=8, data=None)
    options = begin(cli)

    stream = mps.stream(
        made_up(240) if options.data is None else sources(options),
        task=mps.ProcessReward(max_length=options.max_length),
        tokenizer=options.tokenizer,
        batching=mps.Bucket(batch_size=options.batch_size, multiple_of=128),
        seed=options.seed,
        window=4,  # the rows are few: longer windows would sort them into the same batches every epoch
    )
    print(stream)
    first = next(stream.batches())
    print(f"steps in the first batch: {np.count_nonzero(first['labels'] >= 0)}, right: {np.sum(first['labels'] == 1)}")
    model = RewardModel(ModelOptions(vocab_size=stream.tokenizer.vocab_size, max_length=stream.shapes[-1][1]))
    optimizer = nn.AdamWeightDecay(model.trainable_params(), learning_rate=options.learning_rate, beta2=0.98)
    step = train_step(ProcessRewardLoss(model), optimizer)

    curves = Curves("process reward", options.epochs * stream.steps_per_epoch, options)
    for batch in batches(stream.dataset(), options):
        value, accuracy = step(*batch.values())
        curves.add(loss=float(value), step_accuracy=float(accuracy))
    curves.finish(loss=float(np.log(2)), step_accuracy=0.5)

    print(stream.report)
    hits = curves.mean("step_accuracy", stream.steps_per_epoch)
    check(options, f"{100 * hits:.0f} % of steps judged right in the last epoch, 80 % expected", hits >= 0.8)


if __name__ == "__main__":
    main()
