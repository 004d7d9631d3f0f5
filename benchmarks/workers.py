"""What worker processes are worth: rows/s with 0, 1 and 2 of them, and what is left for the training process to do.

    python benchmarks/workers.py --data ../shared/data/cvalues_like_2k.jsonl --tokenizer ../shared/tokenizers/qwen2_5

Everything is compared with no workers on one core, in turns. An epoch is read before the clock starts, so that workers
are at work; with them, batches are taken as fast as they come. Two cores of a shared machine are often two threads of
one: what the machine can give at all is measured by the bare tokenizer, in two processes against one.
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
        index=None,
    )
    for _ in stream.batches(epoch + 100) if workers else ():
        pass
    batches = stream.batches(epoch)
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


def ceiling(options: argparse.Namespace) -> list[float]:
    """What two processes encode against one."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    for _, theirs in pipes:
        context.Process(target=bare, args=(options.tokenizer, options.data, theirs), daemon=True).start()
    ours = [pipe for pipe, _ in pipes]
    for pipe in ours:
        pipe.recv()

    def seconds(some: list[Connection]) -> float:
        begin = time.perf_counter()
        for pipe in some:
            pipe.send(True)
        for pipe in some:
            pipe.recv()
        return time.perf_counter() - begin

    ratios = [2 * seconds(ours[:1]) / seconds(ours) for _ in range(3 * options.repeats)]
    for pipe in ours:
        pipe.send(False)
    return ratios


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(repeats=3)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--window", type=int, default=16, help="short windows, so that the pass has many of them")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.tokenizer)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    settings = {"0 on one core": 0, "0": 0, "1": 1, "2": 2}
    found: dict[str, list[Pass]] = {name: [] for name in settings}
    with tempfile.TemporaryDirectory() as folder:
        data = str(repeated_rows(options.data, options.rows, pathlib.Path(folder, "rows.jsonl")))
        for repeat in range(options.repeats):
            for name, workers in settings.items():
                if cores:
                    os.sched_setaffinity(0, {min(cores)} if "one core" in name else cores)
                found[name].append(one_pass(data, tokenizer, workers, options, repeat))
    alone = found["0 on one core"]
    rates = [one.rate for one in alone]
    show(Figure(part="g", what="workers=0 on one core, rows/s", values=rates, form=",.0f"), options.json)
    what = f"the bare tokenizer in two processes against one ({len(cores) or os.cpu_count()} cores): the most there is"
    show(Figure(part="g", what=what, values=ceiling(options)), options.json)
    for name in ("0", "1", "2"):
        ratios = [one.rate / base.rate for one, base in zip(found[name], alone, strict=True)]
        what = f"workers={name}, rows/s against that ({len(cores) or os.cpu_count()} cores)"
        target = ">= 1.7, where two cores are two" if name == "2" else ""
        show(Figure(part="g", what=what, values=ratios, target=target), options.json)
        if name != "0":
            own = [100 * one.own / base.own for one, base in zip(found[name], alone, strict=True)]
            what = f"workers={name}, % of the work that the training process still does"
            show(Figure(part="g", what=what, values=own, form=".0f"), options.json)


if __name__ == "__main__":
    main()
