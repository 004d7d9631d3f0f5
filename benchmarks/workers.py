"""What worker processes are worth: rows/s with 0, 1 and 2 of them, and what is left for the training process to do.

    python benchmarks/workers.py --data ../shared/data/cvalues_like_2k.jsonl --tokenizer ../shared/tokenizers/qwen2_5

Everything is compared with no workers on one core, in turns. Workers run before the clock starts; with them, batches
are taken as fast as they come.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import time
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
    next(stream.batches(epoch + 100))  # starts the workers
    batches = stream.batches(epoch)
    begin, cpu = time.perf_counter(), time.process_time()
    rows = sum(options.batch_size for _ in batches)
    return Pass(rows / (time.perf_counter() - begin), (time.process_time() - cpu) / rows)


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
    for name in ("0", "1", "2"):
        ratios = [one.rate / base.rate for one, base in zip(found[name], alone, strict=True)]
        what = f"workers={name}, rows/s against that ({len(cores) or os.cpu_count()} cores)"
        target = ">= 1.7" if name == "2" else ""
        show(Figure(part="g", what=what, values=ratios, target=target), options.json)
        if name != "0":
            own = [100 * one.own / base.own for one, base in zip(found[name], alone, strict=True)]
            what = f"workers={name}, % of the work that the training process still does"
            show(Figure(part="g", what=what, values=own, form=".0f"), options.json)


if __name__ == "__main__":
    main()
