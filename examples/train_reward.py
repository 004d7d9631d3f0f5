"""A reward model in a functional loop: `value_and_grad` over the batches of a stream's dataset.

    python examples/train_reward.py
    python examples/train_reward.py --data cvalues.jsonl --tokenizer path/to/Qwen2.5 --max-length 512

The columns are those of MindFormers' reward layout: input_ids, position_id, attention_mask, loss_mask, end_ind.
"""

from __future__ import annotations

import mindspore as ms
from common import parser, report, sources
from mindspore import nn

import ms_prefstream as mps
from ms_prefstream.demo.losses import RewardLoss
from ms_prefstream.demo.model import ModelOptions, RewardModel


def main() -> None:
    cli = parser(__doc__)
    cli.set_defaults(epochs=6)
    options = cli.parse_args()
    ms.set_seed(options.seed)
    ms.set_device(options.device)
    ms.set_context(mode=ms.GRAPH_MODE if options.mode == "graph" else ms.PYNATIVE_MODE)

    stream = mps.stream(
        sources(options),
        task=mps.Reward(max_length=options.max_length),
        tokenizer=options.tokenizer,
        batching=mps.Bucket(batch_size=options.batch_size, multiple_of=64),
        seed=options.seed,
        window=4,  # the bundled set is small: longer windows would sort it into the same batches every epoch
    )
    print(f"{stream.steps_per_epoch} steps an epoch, shapes {stream.shapes}")
    model = RewardModel(ModelOptions(vocab_size=stream.tokenizer.vocab_size, max_length=stream.shapes[-1][1]))
    optimizer = nn.AdamWeightDecay(model.trainable_params(), learning_rate=options.learning_rate, beta2=0.98)
    value_and_grad = ms.value_and_grad(RewardLoss(model), None, optimizer.parameters, has_aux=True)

    @ms.jit
    def train_step(*columns: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        (loss, accuracy), gradients = value_and_grad(*columns)
        optimizer(gradients)
        return loss, accuracy

    step, steps = 0, options.epochs * stream.steps_per_epoch
    accuracies: list[float] = []
    rows = stream.dataset().create_tuple_iterator(num_epochs=options.epochs)  # one iterator moves from epoch to epoch
    for _ in range(options.epochs):
        for columns in rows:
            if options.steps is not None and step >= options.steps:
                break
            loss, accuracy = train_step(*columns)
            step += 1
            accuracies.append(float(accuracy))
            if step == 1 or step % 5 == 0:
                report("reward", step, steps, float(loss), accuracies[-1])

    print(stream.report)
    last = accuracies[-stream.steps_per_epoch :]
    print(f"pair accuracy {100 * sum(last) / len(last):.0f} % in the last epoch")
    if options.steps is None and sum(last) / len(last) < 0.75:
        raise SystemExit("the reward model did not learn: expected a pair accuracy of at least 75 % at the end.")


if __name__ == "__main__":
    main()
