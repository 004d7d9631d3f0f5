"""What planning costs and what it saves: python benchmarks/planning.py

(a) milliseconds to find the rows of one step, for both plans; (b) padding and straggling of simulated ranks against
random batches; (c) bytes of memory a row; (d) a cluster: 1,000 ranks and 100 M rows, planned in this process
as each rank would plan them, with Pad, Bucket and Pack. It needs 4 GB of memory; ``--cluster-rows 0`` leaves it out.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch import Bucket
from ms_prefstream.plan import (
    BudgetOptions,
    BudgetPlan,
    IndexedPlan,
    PackedPlan,
    PackedWindows,
    PlanOptions,
    WindowedPlan,
)

Lengths = NDArray[np.int32]
LONGEST = 4096


def preference_lengths(rows: int, seed: int) -> Lengths:
    """Key lengths of simulated pairs: a prompt and the longer of two sides, lognormal; mean about 530, at most 4096."""
    numbers = np.random.default_rng(seed)
    prompt = numbers.lognormal(4.6, 0.8, rows)
    sides = numbers.lognormal(5.36, 0.75, (2, rows)).max(axis=0)
    lengths: Lengths = np.clip(prompt + sides, 1, LONGEST).astype(np.int32)
    return lengths


def milliseconds(find: Callable[[int], object], times: int) -> str:
    """Median and worst time of finding a step; the argument is the epoch, so that nothing is found twice."""
    spent = []
    for epoch in range(times):
        begun = time.perf_counter()
        find(epoch)
        spent.append(1e3 * (time.perf_counter() - begun))
    return f"{statistics.median(spent):7.2f} ms   worst of {times}: {max(spent):7.2f} ms"


def finding_a_step(lengths: Lengths, step: int, global_batch: int, times: int) -> None:
    rows = len(lengths)
    options = PlanOptions(rows=rows, global_batch=global_batch)
    step = min(step, options.rows // global_batch - 1)
    usable = np.random.default_rng(1).random(rows) >= 0.03
    masked = IndexedPlan(options, np.where(usable, lengths, -1))
    indexed = IndexedPlan(options, lengths)
    unsorted = WindowedPlan(PlanOptions(rows=rows, global_batch=global_batch, logical_shards=8, sort=False))
    sharded = WindowedPlan(PlanOptions(rows=rows, global_batch=global_batch, logical_shards=8))
    window, _ = sharded.locate(step)
    step_masked = min(step, masked.steps_per_epoch - 1)
    print(f"  global batch {global_batch}, window 64, step {step:,}, rank 3 of 8")
    print("    length index, sorted              ", milliseconds(lambda e: indexed.rows(e, step, 3, 8), times))
    print("    length index, 3 % of rows unusable", milliseconds(lambda e: masked.rows(e, step_masked, 3, 8), times))
    print("    no index, unsorted                ", milliseconds(lambda e: unsorted.rows(e, step, 3, 8), times))
    print("    no index, the window to tokenise  ", milliseconds(lambda e: sharded.shard_rows(e, window, 3), times))


class Shape(NamedTuple):
    """One step: the real lengths of each rank's rows, and the width each rank pads to."""

    lengths: Lengths  # (world, rows of a rank)
    widths: Lengths  # (world,)


def random_steps(lengths: Lengths, world: int, batch: int, steps: int) -> Iterator[Shape]:
    order = np.random.default_rng(2).permutation(len(lengths))[: steps * world * batch]
    for step in lengths[order].reshape(steps, world, batch):
        yield Shape(step, step.max(axis=1))


def windowed_steps(lengths: Lengths, world: int, batch: int, steps: int, window: int) -> Iterator[Shape]:
    plan = WindowedPlan(
        PlanOptions(rows=len(lengths), global_batch=world * batch, logical_shards=world, window=window, seed=2)
    )
    for number in range(-(-steps // window)):
        shards = [plan.shard_rows(0, number, shard) for shard in range(world)]
        batches = np.stack([lengths[rows[plan.arrange(lengths[rows], rows).batches]] for rows in shards])
        for place in plan.batch_order(0, number)[: steps - number * window]:
            yield Shape(batches[:, place], batches[:, place].max(axis=1))


def indexed_steps(lengths: Lengths, world: int, batch: int, steps: int, window: int) -> Iterator[Shape]:
    plan = IndexedPlan(PlanOptions(rows=len(lengths), global_batch=world * batch, window=window, seed=2), lengths)
    for number in range(steps):
        dealt = plan.rows(0, number, 0, 1).reshape(batch, world).T  # rank r takes batch[r::world]
        step = lengths[dealt]
        yield Shape(step, step.max(axis=1))


def padding_and_straggling(steps: Iterator[Shape]) -> str:
    """Padding with each rank's own width and with one width for all; how far the slowest rank is above the mean."""
    real = own = shared = 0
    slowest = []
    for lengths, widths in steps:
        real += int(lengths.sum())
        own += int(widths.sum()) * lengths.shape[1]
        shared += int(widths.max()) * lengths.size
        slowest.append(float(widths.max() / widths.mean()) - 1)
    return f"{1 - real / own:8.1%} {1 - real / shared:14.1%} {statistics.mean(slowest):+16.1%}"


def simulated_ranks(lengths: Lengths, worlds: list[int], batch: int, steps: int) -> None:
    print(f"  {batch} rows a rank, {steps} steps" + " " * 17 + "padding   one width/step   slowest over mean")
    for world in worlds:
        if world * batch * steps > len(lengths):
            raise SystemExit(f"--ranks {world} needs {world * batch * steps:,} rows: raise --rows or lower --steps")
        print(f"  {world} ranks")
        print("    random batches                 ", padding_and_straggling(random_steps(lengths, world, batch, steps)))
        for window in (16, 64):
            found = windowed_steps(lengths, world, batch, steps, window)
            print(f"    no index, window {window}            ", padding_and_straggling(found))
        for window in (16, 64):
            found = indexed_steps(lengths, world, batch, steps, window)
            print(f"    length index, window {window}        ", padding_and_straggling(found))


def memory(lengths: Lengths) -> None:
    rows = len(lengths)
    numbers = np.random.default_rng(3)
    options = PlanOptions(rows=rows, global_batch=256)
    for share in (0.0, 0.03, 0.5):
        masked = np.where(numbers.random(rows) >= share, lengths, -1).astype(np.int16)  # as those of a length index
        tracemalloc.start()
        plan = IndexedPlan(options, masked)
        plan.rows(0, 5, 0, 8)
        plan.rows(1, 5, 0, 8)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        total = masked.itemsize + held / rows
        print(f"    length index, {share:3.0%} unusable   {total:6.3f} bytes a row (lengths: {masked.itemsize})")
    tracemalloc.start()
    windowed = WindowedPlan(PlanOptions(rows=rows, global_batch=256, logical_shards=8))
    windowed.shard_rows(0, 5, 0)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(f"    no index                    {held / rows:7.3f} bytes a row ({held:,} bytes in all)")


class Work(NamedTuple):
    """One step of a cluster: the tokens of each rank, and the columns that it computes."""

    tokens: NDArray[np.int64]  # (world,)
    columns: NDArray[np.int64]  # (world,)


class Cluster:
    """A run of many ranks over many rows. Each method plans it with one batching rule.

    A method yields the plan as soon as it is made, and then the `Work` of each step.

    Args:
        lengths: Tokens of the longer side of each row.
        world: Ranks.
        batch: Pairs of a rank in a step; packed rows of `capacity` tokens hold twice as many tokens as a pair.
        window: Steps of a window.
    """

    def __init__(self, lengths: NDArray[np.int16], world: int, batch: int, window: int) -> None:
        self.lengths, self.world, self.batch, self.window = lengths, world, batch, window
        self.options = PlanOptions(
            rows=len(lengths), global_batch=world * batch, logical_shards=world, window=window, seed=2
        )
        rule = Bucket(batch, max_shapes=8)
        self.widths = np.array(rule.widths(LONGEST, lengths[:: max(1, len(lengths) // 2000)]))  # as a stream probes

    def _padded(self, lengths: NDArray[np.int16]) -> Work:
        """The work of a step, lengths (world, rows of a rank), each rank padded to its own width."""
        widths = self.widths[np.searchsorted(self.widths, lengths.max(axis=1))]
        return Work(lengths.sum(axis=1, dtype=np.int64), widths * lengths.shape[1])

    def pad(self) -> Iterator[Any]:
        plan = WindowedPlan(dataclasses.replace(self.options, sort=False))
        yield plan, lambda step: plan.rows(0, step, 3, self.world)
        for step in range(self.window):
            rows = np.stack([plan.rows(0, step, rank, self.world) for rank in range(self.world)])
            tokens = self.lengths[rows].sum(axis=1, dtype=np.int64)
            yield Work(tokens, np.full(self.world, self.batch * LONGEST))

    def bucket(self) -> Iterator[Any]:
        plan = WindowedPlan(self.options)

        def find(step: int) -> Any:
            if step % self.window:
                return None  # the window is arranged
            rows = plan.shard_rows(0, step // self.window, 3)
            return plan.arrange(self.lengths[rows], rows)

        yield plan, find
        shards = [plan.shard_rows(0, 0, shard) for shard in range(self.world)]
        batches = np.stack([self.lengths[rows[plan.arrange(self.lengths[rows], rows).batches]] for rows in shards])
        for place in plan.batch_order(0, 0):
            yield self._padded(batches[:, place])

    def bucket_with_index(self) -> Iterator[Any]:
        plan = IndexedPlan(self.options, self.lengths)
        yield plan, lambda step: plan.rows(0, step, 3, self.world)
        for step in range(self.window):
            rows = plan.rows(0, step, 0, 1).reshape(self.batch, self.world).T
            yield self._padded(self.lengths[rows])

    def budget_with_index(self) -> Iterator[Any]:
        options = BudgetOptions(
            rows=len(self.lengths), tokens=self.world * 2 * LONGEST, sequences=2, seed=2,
            widths=tuple(self.widths.tolist()), logical_shards=self.world,
        )  # fmt: skip
        plan = BudgetPlan(options, self.lengths)
        yield plan, lambda step: plan.rows(0, step, 3, self.world)
        for step in range(self.window):
            rows = plan.rows(0, step, 0, 1)
            yield self._padded(self.lengths[rows.reshape(-1, self.world).T])

    def pack(self) -> Iterator[Any]:
        mean = 2 * float(self.lengths[:100_000].mean())
        steps = int(len(self.lengths) * mean / (self.world * 2 * LONGEST) * 1.05)
        plan = PackedWindows(dataclasses.replace(self.options, global_batch=self.world), steps, 2 * LONGEST, 64)

        def packed(shard: int) -> Any:
            sizes = 2 * self.lengths[plan.shard_rows(0, 0, shard)].astype(np.int32)
            return sizes, plan.pack(sizes, 0, 0, shard).bins

        yield plan, lambda step: None if step % self.window else packed(3)
        shards = [packed(shard) for shard in range(self.world)]
        tokens = np.array([[sizes[bins.of(step)].sum() for step in range(self.window)] for sizes, bins in shards])
        for step in range(self.window):
            yield Work(tokens[:, step], np.full(self.world, 2 * LONGEST))

    def pack_with_index(self) -> Iterator[Any]:
        sizes = self.lengths * np.int16(2)
        plan = PackedPlan(dataclasses.replace(self.options, global_batch=self.world, logical_shards=1),
                          sizes, 2 * LONGEST, 64)  # fmt: skip
        yield plan, lambda step: plan.rows(0, step, 3, self.world)
        for step in range(self.window):
            tokens = np.array([sizes[rows].sum() for rows in plan.rows(0, step, 0, 1)])
            yield Work(tokens, np.full(self.world, 2 * LONGEST))


def cluster(rows: int, world: int, batch: int, window: int) -> None:
    """Prints what each batching rule costs a rank, in CPU time, and how even its steps are."""
    parts = [
        preference_lengths(min(rows - at, 5_000_000), seed=at).astype(np.int16) for at in range(0, rows, 5_000_000)
    ]
    run = Cluster(np.concatenate(parts), world, batch, window)
    del parts
    print(f"  {world:,} ranks, {rows:,} rows, {batch} pairs or one pack of {2 * LONGEST} tokens a rank, {window} steps")
    print("                                s to plan   MB a rank  (peak)   ms a step   ms at most   padding   slowest")
    for name, indexed, plans in (
        ("Pad(4096)", False, run.pad),
        ("Bucket(max_shapes=8)", False, run.bucket),
        ("Bucket(max_shapes=8), index", True, run.bucket_with_index),
        ("Bucket(max_tokens), index", True, run.budget_with_index),
        ("Pack(8192)", False, run.pack),
        ("Pack(8192), index", True, run.pack_with_index),
    ):
        tracemalloc.start()
        begun = time.process_time()
        found = plans()
        _, find = next(found)
        made = time.process_time() - begun
        spent = []
        for step in range(2 * window):
            begun = time.process_time()
            find(step)
            spent.append(1e3 * (time.process_time() - begun))
        held, peak = (number / 1e6 for number in tracemalloc.get_traced_memory())
        tracemalloc.stop()
        held += run.lengths.nbytes / 1e6 * indexed
        steps = list(found)
        tokens, columns = (np.stack([step[at] for step in steps]) for at in (0, 1))
        padding = 1 - tokens.sum() / columns.sum()
        slowest = (columns.max(axis=1) / columns.mean(axis=1)).mean() - 1
        print(f"    {name:27} {made:9.1f} {held:11.1f} {peak:8.0f} {statistics.mean(spent):11.2f} "
              f"{max(spent):12.1f} {padding:9.1%} {slowest:+9.1%}", flush=True)  # fmt: skip
    print(f"    widths of Bucket: {', '.join(map(str, run.widths))}; of Pack and Pad one")


def main() -> None:
    parser = argparse.ArgumentParser(description="What planning costs and what it saves.")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--step", type=int, default=15_000)
    parser.add_argument("--global-batch", type=int, nargs="+", default=[32, 256, 512])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--batch-size", type=int, default=4, help="rows of a rank in part (b)")
    parser.add_argument("--steps", type=int, default=256, help="simulated steps in part (b)")
    parser.add_argument("--times", type=int, default=15, help="repetitions in part (a)")
    parser.add_argument("--cluster-rows", type=int, default=100_000_000, help="rows of part (d); 0 for no part (d)")
    parser.add_argument("--cluster-ranks", type=int, default=1000, help="ranks of part (d)")
    options = parser.parse_args()

    lengths = preference_lengths(options.rows, seed=0)
    print(f"{options.rows:,} rows, mean length {lengths.mean():.0f}, median {np.median(lengths):.0f}")
    print("(a) finding the rows of a step")
    for global_batch in options.global_batch:
        finding_a_step(lengths, options.step, global_batch, options.times)
    print("(b) padding and straggling")
    simulated_ranks(lengths, options.ranks, options.batch_size, options.steps)
    print("(c) memory")
    memory(lengths)
    if options.cluster_rows:
        print("(d) a cluster")
        del lengths
        cluster(options.cluster_rows, options.cluster_ranks, options.batch_size, window=64)


if __name__ == "__main__":
    main()
