"""A reward model with `Model.fit` and `Model.eval`: every held-out pair counts once, whatever the batch size.

    python examples/evaluate_reward.py
    python examples/evaluate_reward.py --data cvalues.jsonl --tokenizer path/to/Qwen2.5 --max-length 512

``drop_remainder="mask"`` fills the last step up and adds the column `row_mask`, 0 for what only fills it. The metric
multiplies with it; a mean over batches would count these pairs twice. It holds with several ranks, too: add up the hits
and the masks of all of them.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from common import Curves, begin, check, parser, sources
from mindspore import Tensor, nn, ops

import ms_prefstream as mps
from ms_prefstream.demo.losses import RewardLoss, end_scores
from ms_prefstream.demo.model import ModelOptions, RewardModel


class Loss(nn.Cell):
    """The loss alone, as `Model.train` takes it."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__(auto_prefix=False)
        self.loss = RewardLoss(model)

    def construct(self, *columns: Tensor) -> Tensor:
        return self.loss(*columns)[0]


class Scored(nn.Cell):
    """The loss of a batch, whether the chosen side of each pair is rated higher, (B,), and the row mask."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(
        self, input_ids: Tensor, position_id: Tensor, attention_mask: Tensor, loss_mask: Tensor, end_ind: Tensor,
        row_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        scores = end_scores(self.model(input_ids), end_ind)
        margins = scores[: row_mask.shape[0]] - scores[row_mask.shape[0] :]
        mask = row_mask.astype(ms.float32)
        loss = -(ops.logsigmoid(margins) * mask).sum() / ops.clamp(mask.sum(), min=1.0)
        return loss, (ops.sign(margins) + 1.0) * 0.5, row_mask


class PairAccuracy(ms.train.Metric):
    """Share of pairs of which the chosen side is rated higher; pairs with a mask of 0 do not count."""

    def clear(self) -> None:
        self.hits, self.pairs = 0.0, 0

    def update(self, *inputs: Tensor) -> None:
        hits, mask = (one.asnumpy() for one in inputs)
        self.hits += float((hits * mask).sum())
        self.pairs += int(mask.sum())

    def eval(self) -> float:
        return self.hits / self.pairs


class Progress(ms.train.Callback):
    """Keeps the loss of every step; ends the run after `--steps`."""

    def __init__(self, curves: Curves) -> None:
        super().__init__()
        self.curves = curves

    def on_train_step_end(self, run_context: Any) -> None:
        self.curves.add(loss=float(run_context.original_args().net_outputs))
        if len(self.curves) >= self.curves.steps:
            run_context.request_stop()


def main() -> None:
    options = begin(parser(__doc__, epochs=6))
    rows = list(mps.read(sources(options)))
    held_out = rows[::4]
    common = {
        "task": mps.Reward(max_length=options.max_length),
        "tokenizer": options.tokenizer,
        "batching": mps.Bucket(batch_size=options.batch_size, multiple_of=64),
    }
    train = mps.stream([row for at, row in enumerate(rows) if at % 4], seed=options.seed, window=4, **common)
    test = mps.stream(held_out, shuffle=False, drop_remainder="mask", on_bad_row="drop", **common)
    print(f"{train.steps_per_epoch} steps an epoch, {test.steps_per_epoch} of evaluation, shapes {test.shapes}")

    network = RewardModel(ModelOptions(vocab_size=train.tokenizer.vocab_size, max_length=train.shapes[-1][1]))
    metric = PairAccuracy()
    model = ms.train.Model(
        Loss(network),
        loss_fn=None,
        optimizer=nn.AdamWeightDecay(network.trainable_params(), learning_rate=options.learning_rate, beta2=0.98),
        eval_network=Scored(network),
        eval_indexes=[0, 1, 2],
        metrics={"pair accuracy": metric},
    )
    curves = Curves("evaluated reward", options.epochs * train.steps_per_epoch, options)
    before = model.eval(test.dataset(), dataset_sink_mode=False)["pair accuracy"]
    model.fit(
        options.epochs, train.dataset(), test.dataset(), callbacks=[Progress(curves)], dataset_sink_mode=False,
        valid_dataset_sink_mode=False,
    )  # fmt: skip
    after = model.eval(test.dataset(), dataset_sink_mode=False)["pair accuracy"]
    curves.finish()

    print(test.report)
    usable = len(held_out) - test.report.dropped.total()
    print(f"{metric.pairs} of {usable} held-out pairs counted, in {test.steps_per_epoch} steps of {options.batch_size}")
    claim = f"held-out pair accuracy {100 * before:.0f} % -> {100 * after:.0f} %, each of {usable} pairs once"
    check(options, f"{claim}; at least 60 % expected", metric.pairs == usable and after >= 0.6)


if __name__ == "__main__":
    main()
