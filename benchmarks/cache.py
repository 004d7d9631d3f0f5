"""Writing and reading caches.

    python benchmarks/cache.py --data rows.jsonl --tokenizer DIR [--workers 2] [--write-repeats 5] [--mindrlhf PATH]

(a) every layout by turns: rows/s from text to files on disk, MB a thousand rows; with a checkout of mindrlhf also its
script for reward data (`cvalues_comparison.py`), on the first of the same rows, padded to the same length; (b) shuffled
batches from the ragged cache against batches from the text, and against the bare tokenizer on the same texts, in CPU
time; pin it to one core (`taskset -c 0`); (c) rows in random order by MindSpore's own readers against this library's.
Without --data it takes the bundled pairs, which are too few to mean much.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from peers import mindrlhf
from throughput import measure_of, unique_texts

import ms_prefstream as mps
from ms_prefstream.demo import data_path
from ms_prefstream.encode.tokenizer import load_tokenizer

TOGETHER = 32  # rows that are read together in random order
REPEATS = 5


def seconds(work: Any, clock: Callable[[], float] = time.perf_counter) -> float:
    """The time that a call takes."""
    begin = clock()
    work()
    return clock() - begin


def drain(stream: mps.Stream, epoch: int) -> None:
    """Read an epoch: another one each time, because a window that is held must not be measured."""
    for _ in stream.batches(epoch):
        pass


def writing(
    data: str, tokenizer: str, length: int, workers: int, repeats: int, folder: pathlib.Path, theirs: float | None
) -> int:
    """(a); the rows.

    Args:
        repeats: How often each layout is written; 0 writes only the one that is read, once.
        theirs: Rows/s of mindrlhf's script, or None.
    """
    cases = [
        ("ragged", mps.DPO(length)),
        ("mindrlhf", mps.DPO(length)),
        ("mindformers", mps.Reward(length)),
        ("mindrlhf", mps.RLHF(length // 4, length)),
        ("megatron", mps.DPO(length)),
    ]
    cases, repeats = cases if repeats else cases[:1], max(repeats, 1)
    rows, rates = 0, [list[float]() for _ in cases]
    for at, (layout, task) in itertools.chain.from_iterable(itertools.repeat(list(enumerate(cases)), repeats)):
        stream = mps.stream(data, task=task, tokenizer=tokenizer, batching=mps.Pad(1), index=None)
        out = folder / f"{layout}-{task.name}"
        shutil.rmtree(out, ignore_errors=True)
        os.sync()  # the disk need not finish what was written before
        spent = seconds(lambda: mps.write_cache(stream, out, layout=layout, workers=workers))  # noqa: B023
        rates[at].append(len(stream.data.records) / spent)
        size = sum(path.stat().st_size for path in out.iterdir())
        rows = len(stream.data.records)
        if len(rates[at]) < repeats:
            continue
        if layout != "ragged":  # which is read below
            shutil.rmtree(out)
        than = "" if theirs is None else f"   {statistics.median(rates[at]) / theirs:.1f} times mindrlhf's script"
        speed = spread(rates[at], ",.0f") if repeats > 1 else f"{rates[at][0]:10,.0f}"
        print(f"  {layout:12} {task.name:7} {speed} rows/s {size / rows / 1e3:10,.2f} MB a thousand rows{than}")
    return rows


def spread(values: list[float], form: str) -> str:
    """The median, and the smallest and largest value."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def reading(data: str, path: str, length: int, folder: pathlib.Path) -> None:
    """(b): CPU time of all threads; bare tokenizer, text and cache take turns, so that each pair met the same load."""
    used = load_tokenizer(path, "auto")
    measure, texts, rows = measure_of(path, used), unique_texts(data), sum(1 for _ in mps.read(data))
    for batching in (mps.Bucket(32), mps.Bucket(8)):
        options = {"task": mps.DPO(length), "batching": batching}
        text = mps.stream(data, tokenizer=used, index=None, **options)
        cache = mps.stream(str(folder / "ragged-dpo"), tokenizer=None, **options)
        bare, rates = [], {text: list[float](), cache: list[float]()}
        for epoch in range(REPEATS):
            bare.append(1e6 / rows * seconds(lambda: measure.encoder.encode(texts), time.process_time))
            for stream, found in rates.items():
                done = stream.steps_per_epoch * batching.batch_size
                found.append(done / seconds(lambda: drain(stream, epoch), time.process_time))  # noqa: B023 - called at once
        scaled = [rate * us / 100 for rate, us in zip(rates[cache], bare, strict=True)]
        times = [fast / slow for slow, fast in zip(*rates.values(), strict=True)]
        print(f"  batches of {batching.batch_size}")
        print(f"    bare {measure.backend}, us a row:      {spread(bare, '9,.1f')}")
        print(f"    text ({used.backend}), rows/s:    {spread(rates[text], '9,.0f')}")
        print(f"    cache, rows/s:                {spread(rates[cache], '9,.0f')}")
        print(f"    cache against text:           {spread(times, '9,.2f')}   (target >= 3)")
        print(f"    cache, bare at 100 us a row:  {spread(scaled, '9,.0f')}   (target >= 60,000)")


def random_access(rows: int, folder: pathlib.Path) -> None:
    """(c)."""
    from mindspore.dataset import MindDataset, SubsetSampler
    from mindspore.mindrecord import FileReader

    out = folder / "ragged-dpo"
    files = sorted(str(path) for path in out.glob("*.mindrecord"))
    columns = ["row_id", "chosen_ids", "rejected_ids", "marks"]
    count = min(TOGETHER * 20, rows // TOGETHER * TOGETHER)
    wanted = np.random.default_rng(0).permutation(rows)[:count].reshape(-1, TOGETHER).tolist()

    def pipelines() -> None:
        for some in wanted:
            dataset = MindDataset(files, columns_list=columns, sampler=SubsetSampler(some))
            assert sum(1 for _ in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)) == TOGETHER

    def forward() -> None:
        for file in files:
            reader = FileReader(file, num_consumer=1)
            for _ in reader.get_next():
                pass
            reader.close()

    stream = mps.stream(str(out), task=mps.DPO(stream_length(out)), tokenizer=None, batching=mps.Pad(TOGETHER))
    source = stream.data.source
    count = len(wanted) * TOGETHER
    print(f"  MindDataset, a SubsetSampler for {TOGETHER} rows: {count / seconds(pipelines):9,.0f} rows/s")
    print(f"  FileReader, from the front only:       {rows / seconds(forward):9,.0f} rows/s")
    ours = min(seconds(lambda: [source.read(some) for some in wanted]) for _ in range(3))
    print(f"  this library, {TOGETHER} rows at a time:       {count / ours:9,.0f} rows/s")


def stream_length(out: pathlib.Path) -> int:
    """The task's length that a cache was written with."""
    from ms_prefstream.mindrecord.manifest import read_manifest

    return int(read_manifest(str(out)).about["task"]["max_length"])


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", default=str(data_path()))
    parser.add_argument("--tokenizer", default="bytes")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument(
        "--write-repeats", type=int, default=1, help="how often each layout is written, by turns; 0: the one to read"
    )
    parser.add_argument("--mindrlhf", help="a checkout of mindspore-lab/mindrlhf, whose script wants CValues rows")
    parser.add_argument("--mindrlhf-rows", type=int, default=8000, help="rows that its script gets")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        import mindspore.mindrecord  # noqa: F401  # its import is not what is measured

        theirs = None
        if given.mindrlhf:
            some = folder / "some.jsonl"  # every row takes it as long as any other
            with open(given.data, "rb") as lines:
                some.write_bytes(b"".join(itertools.islice(lines, given.mindrlhf_rows)))
            found = mindrlhf(str(some), given.tokenizer, given.mindrlhf, given.length)
            assert found is not None  # the checkout is named
            theirs = sum(1 for _ in mps.read(str(some))) / seconds(found[1])
            print(f"mindrlhf's script for reward data, length {given.length}: {theirs:,.0f} rows/s")
        print(f"writing, length {given.length}, {given.workers} workers")
        rows = writing(given.data, given.tokenizer, given.length, given.workers, given.write_repeats, folder, theirs)
        print("reading")
        reading(given.data, given.tokenizer, given.length, folder)
        print("random order")
        random_access(rows, folder)


if __name__ == "__main__":
    main()
