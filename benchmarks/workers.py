"""What worker processes are worth: rows/s with 0, 1 and 2 of them, and what is left for the training process to do.

    python benchmarks/workers.py --data ../shared/data/cvalues_like_2k.jsonl --tokenizer ../shared/tokenizers/qwen2_5

Everything is compared with no workers on one core, measured before it and behind it, for the speed of a shared machine
changes within seconds. With workers, batches are taken as fast as they come, in the midst of a run: all workers have
begun, and an epoch was read. Two cores of a shared machine are often two threads of one: what the machine can give at
all is measured by the bare tokenizer, in two processes against one, in the same turns. What workers cost beside their
rows shows where they and the training process share one core: two whole cores give twice that figure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pathlib
import tempfile
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

from common import Figure, arguments, repeated_rows, show

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer


class Pass(NamedTuple):
    """One pass."""

    rate: float  # rows/s
    own: float  # seconds of CPU in this process for each row


def one_pass(data: str, tokenizer: Tokenizer, workers: int, options: argparse.Namespace, epoch: int) -> Pass:
    stream = mps.stream(
        data,
        task=mps.DPO(1024, layout="concat"),
        tokenizer=tokenizer,
        batching=mps.Bucket(options.batch_size, multiple_of=64),
        on_bad_row="drop",
        window=options.window,
        workers=workers,
        index="build" if options.index else None,
    )
    pool = stream.data.pool
    if pool is not None:
        next(stream.batches(epoch))
        while not all(worker.ready for worker in pool._processes):
            time.sleep(0.05)
        for _ in stream.batches(epoch):
            pass
    batches = stream.batches(epoch + 1)
    begin, cpu = time.perf_counter(), time.process_time()
    rows = sum(options.batch_size for _ in batches)
    return Pass(rows / (time.perf_counter() - begin), (time.process_time() - cpu) / rows)


def bare(tokenizer: str, data: str, told: Connection) -> None:
    """A process of its own: encodes all texts of the file whenever it is told to, on one thread."""
    encoder = load_tokenizer(tokenizer).encoder
    texts = pathlib.Path(data).read_text("utf-8").splitlines()
    chunks = [texts[begin : begin + 64] for begin in range(0, len(texts), 64)]  # too few for threads
    told.send(True)
    while told.recv():
        for chunk in chunks:
            encoder.encode(chunk)
        told.send(True)


class Bare:
    """Two processes with nothing but the tokenizer."""

    def __init__(self, tokenizer: str, data: str) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(2)]
        for _, theirs in pipes:
            context.Process(target=bare, args=(tokenizer, data, theirs), daemon=True).start()
        self._ours = [pipe for pipe, _ in pipes]
        for pipe in self._ours:
            pipe.recv()

    def ratio(self) -> float:
        """What both encode in a time against one."""
        one = self._seconds(self._ours[:1])
        both = self._seconds(self._ours)
        return (one + self._seconds(self._ours[1:])) / both

    def _seconds(self, some: list[Connection]) -> float:
        begin = time.perf_counter()
        for pipe in some:
            pipe.send(True)
        for pipe in some:
            pipe.recv()
        return time.perf_counter() - begin

    def close(self) -> None:
        for pipe in self._ours:
            pipe.send(False)


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(repeats=9)
    parser.add_argument("--rows", type=int, default=40_000, help="many, for workers take seconds to start")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--index", action="store_true", help="with a length index")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.tokenizer)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    count = len(cores) or os.cpu_count()
    alone: list[float] = []
    rates: dict[int, list[float]] = {0: [], 1: [], 2: []}  # against no workers on one core, as the next
    own: dict[int, list[float]] = {0: [], 1: [], 2: []}
    shared: dict[int, list[float]] = {1: [], 2: []}
    ceiling: list[float] = []
    bare_pair = Bare(options.tokenizer, options.data)
    with tempfile.TemporaryDirectory() as folder:
        data = str(repeated_rows(options.data, options.rows, pathlib.Path(folder, "rows.jsonl")))

        def on_one_core(epoch: int, workers: int = 0) -> Pass:
            if cores:
                os.sched_setaffinity(0, {min(cores)})
            found = one_pass(data, tokenizer, workers, options, epoch)
            if cores:
                os.sched_setaffinity(0, cores)
            return found

        on_one_core(0)  # the first pass is slower
        for repeat in range(options.repeats):
            for workers in rates:
                before = on_one_core(repeat)
                found = one_pass(data, tokenizer, workers, options, repeat)
                behind = on_one_core(repeat)
                alone += [before.rate, behind.rate]
                rates[workers].append(found.rate * (1 / before.rate + 1 / behind.rate) / 2)
                own[workers].append(200 * found.own / (before.own + behind.own))
                if workers and cores:
                    together = on_one_core(repeat, workers)
                    shared[workers].append(together.rate * (1 / behind.rate + 1 / on_one_core(repeat).rate) / 2)
            ceiling.append(bare_pair.ratio())
    bare_pair.close()
    show(Figure(part="g", what="workers=0 on one core, rows/s", values=alone, form=",.0f"), options.json)
    what = f"the bare tokenizer in two processes against one ({count} cores): the most there is"
    show(Figure(part="g", what=what, values=ceiling), options.json)
    for workers, values in rates.items():
        what = f"workers={workers}, rows/s against that ({count} cores)"
        target = ">= 1.7, where two cores are two" if workers == 2 else ""
        show(Figure(part="g", what=what, values=values, target=target), options.json)
        if workers:
            what = f"workers={workers}, % of the work that the training process still does"
            show(Figure(part="g", what=what, values=own[workers], form=".0f"), options.json)
        if shared.get(workers):
            what = f"workers={workers}, all processes on one core, rows/s against that"
            show(Figure(part="g", what=what, values=shared[workers]), options.json)


if __name__ == "__main__":
    main()
