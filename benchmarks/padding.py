"""The share of padding in batches, against the best that so many widths can do.

    python benchmarks/padding.py --data ../shared/data/cvalues_like_2k.jsonl --tokenizer ../shared/tokenizers/qwen2_5

Every figure is read from the batches of a stream, one value for each epoch. Of pairs two shares are given: of the
longer sides alone, which is what the choice of widths decides, and of everything, where the shorter side is padded to
the longer. The optimum is the share that the best k widths leave of these very batches: sorted windows, cut into steps
of a fixed size. A step by a token budget holds rows of one width only, so it can fall below that. Beside packs stands
what no packing of these rows can be below: long rows cannot share a packed row, however they are put.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from typing import Any, NamedTuple

import numpy as np
from common import Figure, arguments, show
from numpy.typing import NDArray

import ms_prefstream as mps
from ms_prefstream.batch.best_widths import best_widths
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer

ROUND_TO = 16
SHAPES = (4, 8, 16)


class Padding(NamedTuple):
    """Percent of padding in one epoch."""

    longer: float  # of the longer sides
    all: float
    maxima: NDArray[Any]  # tokens of the longest sequence of each batch
    filled: float  # tokens of the longer sides in a batch, on average


def padding(stream: mps.Stream, epoch: int) -> Padding:
    """What the batches of an epoch hold; `longer` has no meaning for packs."""
    tokens = longer = cells = 0
    maxima = []
    for batch in stream.batches(epoch):
        if "segment_ids" in batch:
            tokens += int((batch["segment_ids"] > 0).sum())
            cells += batch["segment_ids"].size
            continue
        lengths = batch["attention_mask"].sum(axis=1).reshape(2, -1)  # (2, B), chosen first
        tokens += int(lengths.sum())
        longer += int(lengths.max(axis=0).sum())
        maxima.append(int(lengths.max()))
        cells += batch["input_ids"].size
    return Padding(
        100 * (1 - 2 * longer / cells),
        100 * (1 - tokens / cells),
        np.array(maxima),
        longer / len(maxima) if maxima else 0,
    )


def optimum(batches: Padding, size: int, max_length: int, shapes: int) -> float:
    """Percent of padding of the longer sides with the best widths for batches of so many rows."""
    widths = np.array(best_widths(batches.maxima, max_length, shapes, ROUND_TO))
    return float(100 * (1 - batches.filled / (size * widths[np.searchsorted(widths, batches.maxima)].mean())))


def least_packing(sizes: NDArray[np.int64], capacity: int) -> float:
    """Percent of padding that no packing can be below: the bound L2 of Martello and Toth (1990) on the bins needed."""
    bins = 1
    for least in range(capacity // 2 + 1):
        alone = np.count_nonzero(sizes > capacity - least)
        large = sizes[(sizes > capacity // 2) & (sizes <= capacity - least)]  # no two of these share a bin
        small = sizes[(sizes >= least) & (sizes <= capacity // 2)]
        over = int(small.sum()) - (large.size * capacity - int(large.sum()))
        bins = max(bins, alone + large.size + max(0, -(-over // capacity)))
    return float(100 * (1 - sizes.sum() / (bins * capacity)))


def measure(data: str, tokenizer: Tokenizer, options: argparse.Namespace) -> None:
    name = pathlib.Path(data).stem
    length, size = options.max_length, options.batch_size

    def say(what: str, values: list[float], target: str = "") -> None:
        show(Figure(part="d", what=f"{name}, {what}", values=values, form=".1f", target=target), options.json)

    def stream(batching: Any, layout: str = "concat", **more: Any) -> mps.Stream:
        return mps.stream(
            data,
            task=mps.DPO(length, layout=layout),
            tokenizer=tokenizer,
            batching=batching,
            on_bad_row="drop",
            **{"index": None, **more},
        )

    with tempfile.TemporaryDirectory() as folder:
        index = stream(mps.Pad(1)).build_index(pathlib.Path(folder, "lengths"))
        good = index.good()
        keys, lengths = np.array(index.keys[good], np.int64), np.array(index.lengths[good], np.int64)
        epochs = range(options.repeats)
        size = min(size, max(1, len(keys) // 30))  # a small file still has some steps
        say("% that the shorter side of a pair costs by itself", [100 * (1 - lengths.sum() / (2 * keys.sum()))])
        say(f"% of padding, Pad({length})", [padding(stream(mps.Pad(size)), epoch).all for epoch in epochs])
        for multiple in (16, 64):
            made = stream(mps.Bucket(size, multiple_of=multiple))
            found = [padding(made, epoch) for epoch in epochs]
            shapes = f"Bucket(multiple_of={multiple}), {len(made.shapes)} shapes"
            say(f"% of the longer sides, {shapes}", [one.longer for one in found])
            say(f"% of padding, {shapes}", [one.all for one in found])
        for count in SHAPES:
            made = stream(mps.Bucket(size, max_shapes=count))
            found = [padding(made, epoch) for epoch in epochs]
            best = [optimum(one, size, length, count) for one in found]
            say(f"% of the longer sides, Bucket(max_shapes={count})", [one.longer for one in found])
            say(f"% of the longer sides, the best {count} widths for these batches", best)
            above = [one.longer - least for one, least in zip(found, best, strict=True)]
            say(f"points of Bucket(max_shapes={count}) above the optimum", above, "<= 1")
            say(f"% of padding, Bucket(max_shapes={count})", [one.all for one in found])
        budget = mps.Bucket(max_tokens=2 * length * max(1, size // 4), max_shapes=8)
        made = stream(budget, index=pathlib.Path(folder, "lengths"))
        found = [padding(made, epoch) for epoch in epochs]
        say(f"% of the longer sides, Bucket(max_tokens={budget.max_tokens}, max_shapes=8)", [o.longer for o in found])
        say(f"% of padding, Bucket(max_tokens={budget.max_tokens}, max_shapes=8)", [one.all for one in found])
        for tokens in (2 * length, 4 * length):
            own = pathlib.Path(folder, f"packed{tokens}")
            made = stream(mps.Pack(tokens), "paired", steps_per_epoch=1)
            made.build_index(own)
            say(f"% of padding, Pack({tokens})", [padding(made, epoch).all for epoch in epochs], "< 2")
            say(f"% that no packing into {tokens} can be below", [least_packing(lengths.sum(axis=1), tokens)])


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(repeats=3)
    parser.add_argument("--more", nargs="*", default=[], help="further files of preference pairs")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.tokenizer)
    for data in (options.data, *options.more):
        measure(data, tokenizer, options)


if __name__ == "__main__":
    main()
