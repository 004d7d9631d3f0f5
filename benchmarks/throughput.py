"""Text to padded batches against the bare tokenizer, the share GeneratorDataset adds, and the time to the first batch.

    python benchmarks/throughput.py --data ../shared/data/cvalues_like_2k.jsonl --tokenizer ../shared/tokenizers/qwen2_5

All figures come from one run on one core, as ratios of CPU time where machines differ; the time to the first batch
is wall time. With ``--rows 116536`` the data
is written out (the given rows, repeated) to that size first, for the time to the first batch.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.formats import resolve_format
from ms_prefstream.formats.record import Pair
from ms_prefstream.sources import open_source


def unique_texts(data: str) -> list[str]:
    """The texts that must be encoded at least once: every prompt and every response of the rows."""
    source, fmt = open_source(data), resolve_format("auto")
    texts = []
    for raw in source.read(range(len(source))):
        record = fmt(raw)
        assert isinstance(record, Pair)
        texts += [m.content for m in (*record.prompt, *record.chosen, *record.rejected)]
    return texts


def timed(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of CPU of this process, all threads: on a shared machine wall time says more about the neighbours."""
    begin = clock()
    work()
    return clock() - begin


def drain(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def spread(values: list[float], form: str = ".2f") -> str:
    return f"{statistics.median(values):{form}} (min {min(values):{form}}, max {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=116_536, help="rows of the file for the time to the first batch")
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the bare tokenizer gets one core, as the stream does
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    begin = time.perf_counter()
    tokenizer = load_tokenizer(options.tokenizer, options.backend)
    print(f"tokenizer loaded in {time.perf_counter() - begin:.2f} s: {tokenizer.backend} ({tokenizer.reason})")

    def make(data: str = options.data) -> mps.Stream:
        return mps.stream(
            data,
            task=mps.DPO(1024, layout="concat"),
            tokenizer=tokenizer,
            batching=mps.Bucket(options.batch_size, multiple_of=64),
            on_bad_row="drop",
        )

    texts = unique_texts(options.data)
    tokens = sum(map(len, tokenizer.encoder.encode(texts)))
    rows = len(open_source(options.data))
    ratios, shares, rates = [], [], []
    for repeat in range(options.repeats):
        bare = timed(lambda: tokenizer.encoder.encode(texts))
        stream = make()
        ours = timed(lambda: drain(stream.batches(epoch=repeat)))  # noqa: B023 - called at once
        done = stream.steps_per_epoch * options.batch_size
        rates.append(done / ours)
        ratios.append((done / rows) * bare / ours)
        plain = timed(lambda: [drain(stream.batches(epoch=100 + 3 * repeat + e)) for e in range(3)])  # noqa: B023
        rows_out = stream.dataset(start_epoch=100 + 3 * repeat).create_tuple_iterator(num_epochs=3, output_numpy=True)
        through = timed(lambda: [drain(rows_out) for _ in range(3)])  # noqa: B023
        shares.append(100 * (through / plain - 1))
    per_second = statistics.median(rates) * tokens / rows
    print(f"text to batches: {spread(rates, ',.0f')} rows/s of CPU time, {per_second:,.0f} tokens/s")
    print(f"  of the bare tokenizer's rate on the same unique texts: {spread(ratios)}")
    print(f"GeneratorDataset adds {spread(shares, '.1f')} %")

    with tempfile.TemporaryDirectory() as folder:
        big = pathlib.Path(folder, "big.jsonl")
        with open(big, "wb") as file:
            lines = itertools.cycle(pathlib.Path(options.data).read_bytes().splitlines(keepends=True))
            file.writelines(itertools.islice(lines, options.rows))
        first = [
            timed(
                lambda: next(make(str(big)).dataset().create_tuple_iterator(num_epochs=1, output_numpy=True)),
                time.perf_counter,
            )
            for _ in range(options.repeats)
        ]
        print(f"first batch of {options.rows:,} rows, tokenizer loaded: {spread(first)} s")


if __name__ == "__main__":
    main()
