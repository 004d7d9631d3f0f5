"""Real training with everything padded to one length, with buckets, and packed.

    python benchmarks/training.py --data ../shared/data/cvalues_like_2k.jsonl --tokenizer ../shared/tokenizers/qwen2_5

The same small causal model, weights, rows, optimiser and pairs a step (as nearly as packs allow) train on the CPU, in
compiled steps, from `stream.dataset()`: reading, tokenising, padding and the dense mask of packed rows are inside the
times. Compiling is not: each shape runs once beforehand, which is reported apart. The three take turns, and each ratio
is that of one turn. Token ids are folded to ``--vocab`` so that a small model's embedding is small as well; lengths
stay as they are. A side has at most half of ``--length`` tokens, so that a pair fits a packed row.

Attention grows with the square of the columns, and in a model this small it is most of the work: that is why narrow
buckets gain more than the columns they save. "Columns a pair" is what a model would gain whose cost is its columns.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from common import Figure, arguments, repeated_rows, show
from mindspore import nn

import ms_prefstream as mps
from ms_prefstream.demo.losses import DPOLoss, RewardTokenLoss
from ms_prefstream.demo.model import CausalLM, ModelOptions, RewardModel
from ms_prefstream.demo.packed_losses import PackedDPOLoss, PackedRewardLoss
from ms_prefstream.demo.train import train_step
from ms_prefstream.encode.tokenizer import load_tokenizer

MAX_SEGMENTS = 33
TARGETS = (">= 3.5", ">= 4.5")  # of 8 shapes and of packed rows, at the defaults below


class Way(NamedTuple):
    """One way of batching.

    Attributes:
        stream: Its batches.
        step: Trains on the columns of a batch.
        packed: Whether the columns are those of packed rows.
    """

    stream: mps.Stream
    step: Callable[..., Any]
    packed: bool


def columns(batch: dict[str, Any], vocab: int, packed: bool) -> list[Any]:
    """A batch as tensors; ids folded, and the dense mask behind packed columns."""
    arrays = dict(batch)
    arrays["input_ids"] = arrays["input_ids"] % vocab
    labels = arrays["labels"]
    arrays["labels"] = np.where(labels >= 0, labels % vocab, labels)
    if packed:
        arrays["masked"] = mps.causal_mask(batch)
    return [ms.Tensor(array) for array in arrays.values()]


def pairs_in(batch: dict[str, Any]) -> int:
    return int(batch["pair_ids"].max(axis=1).sum()) if "pair_ids" in batch else len(batch["input_ids"]) // 2


class Run(NamedTuple):
    """One epoch."""

    seconds: float
    pairs: int
    cells: int

    @property
    def rate(self) -> float:
        return self.pairs / self.seconds

    @property
    def cells_a_pair(self) -> float:
        return self.cells / self.pairs


def epoch(way: Way, number: int, vocab: int) -> Run:
    """Trains on one epoch, from the first batch that is asked for to the end of the last step."""
    pairs = cells = 0
    batches = way.stream.dataset(start_epoch=number).create_dict_iterator(num_epochs=1, output_numpy=True)
    begin = time.perf_counter()
    for batch in batches:
        loss, _ = way.step(*columns(batch, vocab, way.packed))
        loss.asnumpy()  # waits for the step, as a loop that logs its loss does
        pairs += pairs_in(batch)
        cells += batch["input_ids"].size
    return Run(time.perf_counter() - begin, pairs, cells)


def compiled(way: Way, epochs: int, vocab: int) -> tuple[float, int]:
    """Seconds of compiling, one step each included, and how many shapes these epochs hold."""
    of_each = {batch["input_ids"].shape: batch for number in range(epochs) for batch in way.stream.batches(number)}
    begin = time.perf_counter()
    for batch in of_each.values():
        way.step(*columns(batch, vocab, way.packed))[0].asnumpy()
    return time.perf_counter() - begin, len(of_each)


def training(options: argparse.Namespace, packed: bool) -> Callable[..., Any]:
    """A compiled training step of a fresh model, which begins with the same weights each time."""
    ms.set_seed(0)
    sizes = ModelOptions(
        vocab_size=options.vocab,
        max_length=options.length,
        hidden=options.hidden,
        layers=options.layers,
        heads=options.heads,
    )
    pairs = MAX_SEGMENTS // 2
    if options.task == "dpo":
        model = CausalLM(sizes)
        loss = PackedDPOLoss(model, 0.1, pairs) if packed else DPOLoss(model, 0.1)
    else:
        model = RewardModel(sizes)
        loss = PackedRewardLoss(model, pairs) if packed else RewardTokenLoss(model)
    return train_step(loss, nn.AdamWeightDecay(model.trainable_params(), learning_rate=1e-4))


def ways(data: str, options: argparse.Namespace) -> dict[str, Way]:
    """Padded first, which the others are compared with."""
    tokenizer = load_tokenizer(options.tokenizer)
    longest = options.length // 2  # so that every pair fits a packed row, and all three train on the same tokens
    reward = mps.Reward(longest, layout="reward_token", reward_token=options.reward_token)

    def way(batching: mps.Pad | mps.Bucket | mps.Pack) -> Way:
        packed = isinstance(batching, mps.Pack)
        dpo = mps.DPO(longest) if packed else mps.DPO(longest, layout="concat")
        stream = mps.stream(
            data,
            task=dpo if options.task == "dpo" else reward,
            tokenizer=tokenizer,
            batching=batching,
            on_bad_row="drop",
            steps_per_epoch=1 if packed else None,
        )
        if packed:
            stream.build_index(pathlib.Path(data).with_suffix(".lengths"))
        return Way(stream, training(options, packed), packed)

    return {
        "padded": way(mps.Pad(options.batch_size, length=options.length)),
        "buckets": way(mps.Bucket(options.batch_size, max_shapes=options.shapes)),
        "packed": way(mps.Pack(options.length, max_segments=MAX_SEGMENTS, batch_size=options.packed_rows)),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(repeats=3)
    parser.add_argument("--task", choices=("dpo", "reward"), default="dpo")
    parser.add_argument("--rows", type=int, default=128, help="rows that are trained on")
    parser.add_argument("--length", type=int, default=1024, help="columns of padded and of packed rows")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs of a step, padded and in buckets")
    parser.add_argument("--packed-rows", type=int, default=3, help="packed rows of a step, for about as many pairs")
    parser.add_argument("--shapes", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--reward-token", help="for --task reward, where the tokenizer has none in reserve")
    options = parser.parse_args()
    ms.set_context(mode=ms.PYNATIVE_MODE)

    with tempfile.TemporaryDirectory() as folder:
        made = ways(str(repeated_rows(options.data, options.rows, pathlib.Path(folder, "rows.jsonl"))), options)
        for name, way in made.items():
            seconds, shapes = compiled(way, options.repeats, options.vocab)
            what = f"{options.task}, {name}: seconds of compiling (shapes: {shapes}), not in the figures below"
            show(Figure(part="e", what=what, values=[seconds], form=".1f"), options.json)
        runs = [
            {name: epoch(way, number, options.vocab) for name, way in made.items()} for number in range(options.repeats)
        ]
    for name in made:
        mine = [run[name] for run in runs]
        a_step = mine[0].pairs / made[name].stream.steps_per_epoch
        what = f"{options.task}, {name}: seconds an epoch of {mine[0].pairs} pairs, {a_step:.1f} a step"
        show(Figure(part="e", what=what, values=[run.seconds for run in mine]), options.json)
    for name, target in (("buckets", TARGETS[0]), ("packed", TARGETS[1])):
        ratios = [run[name].rate / run["padded"].rate for run in runs]
        what = f"{options.task}, {name}: samples/s against everything padded to {options.length}"
        show(Figure(part="e", what=what, values=ratios, target=target), options.json)
        cells = [run["padded"].cells_a_pair / run[name].cells_a_pair for run in runs]
        what = f"{options.task}, {name}: columns a pair that padding to {options.length} takes over its own"
        show(Figure(part="e", what=what, values=cells), options.json)


if __name__ == "__main__":
    main()
