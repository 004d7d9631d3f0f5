"""The demo from start to end: stream the bundled pairs, train a reward model, then DPO, and sum up."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ms_prefstream.batch import Bucket
from ms_prefstream.demo import data_path
from ms_prefstream.demo.show import Summary, progress, summary_table
from ms_prefstream.packages import needs
from ms_prefstream.stream import Stream, stream
from ms_prefstream.tasks import DPO, Reward

if TYPE_CHECKING:
    from ms_prefstream.demo.train import Progress

MAX_LENGTH = 256
BATCHING = Bucket(batch_size=8, multiple_of=64)
REWARD_EPOCHS, DPO_EPOCHS = 6, 3
ACCURACY = 0.9  # target of the reward model on its training pairs
DPO_LOSS = 0.9 * math.log(2)  # upper bound of DPO's last epoch


@dataclass
class _Phase:
    """The records of one training phase."""

    records: list[Progress] = field(default_factory=list)

    def first_and_last(self, steps_per_epoch: int) -> tuple[float, float]:
        """Returns the loss of the first step, and the mean of the last epoch."""
        last = self.records[-steps_per_epoch:]
        return self.records[0].loss, sum(record.loss for record in last) / len(last)


def run(seed: int = 0) -> bool:
    """Runs the demo and prints what happens.

    Args:
        seed: Of the order of rows and the initial weights.

    Returns:
        True if both models reached their targets.
    """
    begin = time.perf_counter()
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's deprecation notices would break the progress bar
    console = Console()
    pairs = data_path()
    console.print(f"Streaming {os.path.basename(pairs)} into MindSpore ...", highlight=False)
    with needs("mindspore", "ms-prefstream demo"):
        import mindspore as ms

        from ms_prefstream.demo.model import CausalLM, ModelOptions, RewardModel
        from ms_prefstream.demo.train import reward_accuracy, train_dpo, train_reward

    options: dict[str, Any] = {
        "tokenizer": "bytes",
        "batching": BATCHING,
        "seed": seed,
        "window": 4,  # steps; a longer one pads less, but puts the few pairs into the same batches every epoch
        "drop_remainder": False,
    }
    ms.set_seed(seed)
    rewards = stream(pairs, task=Reward(max_length=MAX_LENGTH), **options)
    size = ModelOptions(vocab_size=rewards.tokenizer.vocab_size, max_length=MAX_LENGTH)  # type: ignore[union-attr]
    model = RewardModel(size)
    first = _train(console, "reward model", rewards, REWARD_EPOCHS, partial(train_reward, model))
    after = reward_accuracy(model, rewards.batches(0))
    preferences = stream(pairs, task=DPO(max_length=MAX_LENGTH, layout="concat"), **options)
    policy = CausalLM(size)
    second = _train(console, "DPO", preferences, DPO_EPOCHS, partial(train_dpo, policy))

    steps = first.records + second.records
    tokens = sum(step.tokens for step in steps)
    summary = Summary(
        pairs=rewards.report.read,
        tokens=tokens,
        padding=1 - tokens / sum(step.rows * step.length for step in steps),
        padding_to_max=1 - tokens / sum(step.rows * MAX_LENGTH for step in steps),
        max_length=MAX_LENGTH,
        shapes=[(step.rows, step.length) for step in steps],
        seconds=time.perf_counter() - begin,
        accuracy=(first.records[0].accuracy, after),
        reward_loss=first.first_and_last(rewards.steps_per_epoch),
        dpo_loss=second.first_and_last(preferences.steps_per_epoch),
    )
    console.print(summary_table(summary))
    return _verdict(console, summary)


def _train(console: Console, title: str, source: Stream, epochs: int, train: Any) -> _Phase:
    from ms_prefstream.demo.train import passes

    phase = _Phase()
    steps = epochs * source.steps_per_epoch
    with progress(console, title, steps) as bar:
        for record in train(passes(source.dataset(), epochs), steps=steps):
            phase.records.append(record)
            bar.advance(record.loss, record.accuracy)
    return phase


def _verdict(console: Console, summary: Summary) -> bool:
    learned = summary.accuracy[1] >= ACCURACY and summary.dpo_loss[1] < DPO_LOSS
    if learned:
        console.print("Both models learned the preferences.", highlight=False)
    else:
        console.print(
            f"Expected a pair accuracy of at least {ACCURACY} and a DPO loss below {DPO_LOSS:.2f}: "
            "the models did not learn the preferences.",
            highlight=False,
            soft_wrap=True,
        )
    return learned
