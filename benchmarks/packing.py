"""What packing saves and what it costs: python benchmarks/packing.py

(a) padding and time of packing, against first-fit and against sorting first, for several row lengths; (b) the plan with
a length index: the one-off packing, finding a step, memory, steps; (c) without an index: padding, rows left out; (d)
building the arrays of a packed batch.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch.layouts.packed import PackedLayout
from ms_prefstream.plan import PlanOptions
from ms_prefstream.plan.bin_packing import pack_rows
from ms_prefstream.plan.packed import PackedPlan, PackedWindows, steps_for
from ms_prefstream.sample import Block, Sample, Sequence

Sizes = NDArray[np.int32]
MOST = 63  # pairs in a row with max_segments=128


def cvalues_like(rows: int, seed: int, longest: int) -> NDArray[np.int32]:
    """Tokens of both sides of simulated CValues-like pairs, (rows, 2): 161 and 200 on average, template included."""
    numbers = np.random.default_rng(seed)
    prompt = 24 + 0.6 * numbers.lognormal(2.75, 0.35, rows)
    sides = [prompt + 0.6 * numbers.lognormal(mean, 0.55, rows) for mean in (5.2, 5.45)]
    lengths: NDArray[np.int32] = np.clip(np.stack(sides, axis=1), 1, longest).astype(np.int32)
    return lengths


def first_fit(sizes: Sizes, tokens: int, most: int, open_bins: int) -> int:
    """Bins of first-fit that keeps a few bins open and closes the fullest."""
    room: list[int] = []
    places: list[int] = []
    bins = 0
    for size in sizes.tolist():
        at = next((at for at, free in enumerate(room) if size <= free and places[at]), -1)
        if at < 0:
            if len(room) == open_bins:
                fullest = room.index(min(room))
                del room[fullest], places[fullest]
            room.append(tokens)
            places.append(most)
            bins += 1
            at = len(room) - 1
        room[at] -= size
        places[at] -= 1
    return bins


def best_fit_sorted(sizes: Sizes, tokens: int) -> int:
    """Bins of best-fit, the longest rows first, all bins open."""
    rooms: list[int] = []
    bins = 0
    for size in np.sort(sizes)[::-1].tolist():
        at = bisect.bisect_left(rooms, size)
        bins += at == len(rooms)
        room = tokens if at == len(rooms) else rooms.pop(at)
        bisect.insort(rooms, room - size)
    return bins


WAYS: list[tuple[str, Callable[[Sizes, int], int]]] = [
    ("first-fit, 8 open", functools.partial(first_fit, most=MOST, open_bins=8)),
    ("best-fit, longest first", best_fit_sorted),
    ("pack_rows", lambda sizes, tokens: pack_rows(sizes, tokens, MOST).count),
]


def packing_alone(rows: int, tokens: list[int], repeats: int) -> None:
    print(f"  {rows:,} pairs" + " " * 22 + "padding    microseconds a row")
    for width in tokens:
        sizes: Sizes = cvalues_like(rows, 0, width // 2).sum(axis=1, dtype=np.int32)
        for name, way in WAYS:
            spent = []
            for _ in range(repeats):
                begun = time.perf_counter()
                bins = way(sizes, width)
                spent.append(1e6 * (time.perf_counter() - begun) / rows)
            padding = 1 - float(sizes.sum()) / (bins * width)
            print(f"    {width:6} tokens  {name:24} {padding:7.2%}   {min(spent):6.2f} to {max(spent):.2f}")


def with_an_index(rows: list[int], tokens: int, world: int, batch: int) -> None:
    for count in rows:
        sizes: Sizes = cvalues_like(count, 0, tokens // 2).sum(axis=1, dtype=np.int32)
        options = PlanOptions(rows=count, global_batch=world * batch)
        tracemalloc.start()
        begun = time.perf_counter()
        plan = PackedPlan(options, sizes, tokens, MOST)
        spent = time.perf_counter() - begun
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        begun = time.perf_counter()
        PackedPlan(options, sizes, tokens, MOST)
        spent = min(spent, time.perf_counter() - begun)
        step = plan.steps_per_epoch * 2 // 3
        found = []
        for epoch in range(15):
            begun = time.perf_counter()
            plan.rows(epoch, step, world - 1, world)
            found.append(1e3 * (time.perf_counter() - begun))
        padding = 1 - float(sizes.sum()) / (plan.packs_per_epoch * tokens)
        print(
            f"    {count:12,} pairs: packed in {spent:6.2f} s, a step in {statistics.median(found):5.2f} ms (worst "
            f"{max(found):.2f}), {held / count:.1f} bytes a row kept, {peak / count:.0f} at the peak, "
            f"{plan.steps_per_epoch:,} steps, padding {padding:.2%}"
        )


def without_an_index(rows: int, tokens: int, world: int, batch: int, windows: list[int]) -> None:
    sizes: Sizes = cvalues_like(rows, 0, tokens // 2).sum(axis=1, dtype=np.int32)
    for window in windows:
        options = PlanOptions(rows=rows, global_batch=world * batch, logical_shards=world, window=window)
        steps = steps_for(sizes[:2048], options, tokens, MOST)
        plan = PackedWindows(options, steps, tokens, MOST)
        held = left_out = 0
        for number in range(plan.windows_per_epoch):
            for shard in range(world):
                mine = sizes[plan.shard_rows(0, number, shard)]
                packs = plan.pack(mine, 0, number, shard)
                held += int(mine[packs.bins.rows].sum())
                left_out += packs.left_out
        padding = 1 - held / (steps * world * batch * tokens)
        print(f"    window {window:4}: padding {padding:.2%}, rows left out {left_out / rows:.2%}, {steps:,} steps")


def building(tokens: int, batch: int, repeats: int) -> None:
    lengths = cvalues_like(60 * batch, 0, tokens // 2)
    samples = Block.of(
        [
            Sample(tuple(Sequence(np.arange(size, dtype=np.int32), ((size // 2, size),)) for size in pair))
            for pair in lengths.tolist()
        ]
    )
    bins = pack_rows(lengths.sum(axis=1), tokens, MOST)
    packs = [samples.take(bins.of(number)) for number in range(batch)]
    layout = PackedLayout(tokens=tokens, max_segments=128)
    spent = []
    for _ in range(repeats):
        begun = time.perf_counter()
        layout.build(packs, 0)
        spent.append(1e6 * (time.perf_counter() - begun))
    pairs = sum(map(len, packs))
    print(
        f"    {batch} rows of {tokens} tokens, {pairs} pairs: {statistics.median(spent):.0f} microseconds, "
        f"{statistics.median(spent) / pairs:.1f} a pair"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What packing saves and what it costs.")
    parser.add_argument("--rows", type=int, default=100_000, help="pairs in parts (a) and (c)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--index-rows", type=int, nargs="+", default=[116_536, 1_000_000, 10_000_000])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    print("(a) packing lengths")
    packing_alone(options.rows, options.tokens, options.repeats)
    print(f"(b) with a length index, {options.ranks} ranks of {options.batch_size} rows of {options.tokens[-1]} tokens")
    with_an_index(options.index_rows, options.tokens[-1], options.ranks, options.batch_size)
    print(f"(c) without an index, 2 ranks of {options.batch_size} rows of {options.tokens[0]} tokens")
    without_an_index(options.rows, options.tokens[0], 2, options.batch_size, [16, 64, 256])
    print("(d) building a batch")
    for width in options.tokens:
        building(width, options.batch_size, 200)


if __name__ == "__main__":
    main()
