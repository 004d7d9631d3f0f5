"""Text to padded batches against the bare tokenizer, the share GeneratorDataset adds, and the time to the first batch.

    python benchmarks/throughput.py --data ../shared/data/cvalues_like_2k.jsonl --tokenizer ../shared/tokenizers/qwen2_5

(a) and (b) are ratios of CPU time within one run, on one core: where machines differ, or are shared, wall time says
more about the neighbours. (b) hands out batches that were made before, since the difference of two long times would say
as much about the neighbours. (c) is wall time with all cores, and the data is written out to ``--rows`` rows first.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from common import Figure, arguments, repeated_rows, show

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer
from ms_prefstream.formats import resolve_format
from ms_prefstream.formats.record import Pair
from ms_prefstream.mindspore.dataset import to_dataset
from ms_prefstream.sample import Batch
from ms_prefstream.sources import open_source

if TYPE_CHECKING:
    from mindspore.dataset import GeneratorDataset


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
    """Seconds of CPU of this process, all threads."""
    begin = clock()
    work()
    return clock() - begin


def drain(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


EPOCHS = 10  # of finished batches through GeneratorDataset, so that its start weighs as little as in a training run


class Made:
    """The batches of an epoch, made before: what is left is what GeneratorDataset costs."""

    def __init__(self, stream: mps.Stream) -> None:
        self.column_names = stream.column_names
        self.steps_per_epoch = stream.steps_per_epoch
        self._batches = list(stream.batches())

    def start(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        return iter(self._batches[step:])


def drain_epochs(dataset: GeneratorDataset, epochs: int) -> None:
    rows = dataset.create_tuple_iterator(num_epochs=epochs, output_numpy=True)
    for _ in range(epochs):
        drain(rows)


USUAL_BATCH = 8  # of the README's examples; a window of 64 such steps is tokenised before the first


def stream_of(data: str, tokenizer: Tokenizer, batch_size: int) -> mps.Stream:
    return mps.stream(
        data,
        task=mps.DPO(1024, layout="concat"),
        tokenizer=tokenizer,
        batching=mps.Bucket(batch_size, multiple_of=64),
        on_bad_row="drop",
        index=None,
    )


def measure_of(path: str, used: Tokenizer) -> Tokenizer:
    """The tokenizer that the stream is measured by, whatever it uses: tiktoken, or tokenizers where that cannot."""
    for backend in ("tiktoken", "tokenizers"):
        with contextlib.suppress(mps.TokenizerError):
            return load_tokenizer(path, backend)
    return used


def text_to_batches(options: argparse.Namespace, tokenizer: Tokenizer) -> None:
    """(a) and (b)."""
    measure = measure_of(options.tokenizer, tokenizer)
    texts = unique_texts(options.data)
    tokens = sum(map(len, tokenizer.encoder.encode(texts)))
    rows = len(open_source(options.data))
    ratios, shares, rates = [], [], []
    for repeat in range(options.repeats):
        bare = timed(lambda: measure.encoder.encode(texts))
        stream = stream_of(options.data, tokenizer, options.batch_size)
        ours = timed(lambda: drain(stream.batches(epoch=repeat)))  # noqa: B023 - called at once
        done = stream.steps_per_epoch * options.batch_size
        rates.append(done / ours)
        ratios.append((done / rows) * bare / ours)
        made = Made(stream)
        handed = timed(lambda: drain_epochs(to_dataset(made), EPOCHS))  # noqa: B023
        shares.append(100 * handed / EPOCHS / ours)
    real = tokenizer.backend != "bytes" and rows >= 1000  # else the targets mean nothing
    figures = (
        ("text to padded batches, rows/s of CPU time", rates, ",.0f", ""),
        ("the same, tokens/s", [rate * tokens / rows for rate in rates], ",.0f", ""),
        (
            f"the same, of the rate at which bare {measure.backend} encodes the same unique texts",
            ratios,
            ".2f",
            (">= 2.5" if tokenizer.backend == "fastokens" else ">= 0.7") * real,
        ),
    )
    for what, values, form, target in figures:
        show(Figure(part="a", what=what, values=values, form=form, target=target), options.json)
    what = "% added by GeneratorDataset"
    show(Figure(part="b", what=what, values=shares, form=".1f", target="< 5" * real), options.json)


def first_batch(options: argparse.Namespace, tokenizer: Tokenizer) -> None:
    """(c)."""
    with tempfile.TemporaryDirectory() as folder:
        big = str(repeated_rows(options.data, options.rows, pathlib.Path(folder, "big.jsonl")))

        for size in sorted({USUAL_BATCH, options.batch_size}):

            def opened(size: int = size) -> object:
                dataset = stream_of(big, tokenizer, size).dataset()
                return next(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))

            whole = [timed(opened, time.perf_counter) for _ in range(options.repeats)]
            what = f"seconds to the first batch of {options.rows:,} rows, batches of {size}, tokenizer loaded"
            show(Figure(part="c", what=what, values=whole, target="< 0.5"), options.json)
        file = [timed(lambda: len(open_source(big)), time.perf_counter) for _ in range(options.repeats)]
        texts = unique_texts(options.data)[: 3 * 64 * options.batch_size]
        bare = [timed(lambda: tokenizer.encoder.encode(texts), time.perf_counter) for _ in range(options.repeats)]
    show(Figure(part="c", what="of these, finding the rows of the file", values=file), options.json)
    what = f"of the last, the bare tokenizer on the first window ({len(texts) // 3:,} rows)"
    show(Figure(part="c", what=what, values=bare), options.json)


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(repeats=15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rows", type=int, default=116_536, help="rows of the file for the time to the first batch")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--parts", default="abc", help="ab, c or abc")
    options = parser.parse_args()
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the bare tokenizer gets one core, as the stream does

    begin = time.perf_counter()
    tokenizer = load_tokenizer(options.tokenizer, options.backend)
    if not options.json:
        seconds = time.perf_counter() - begin
        print(f"tokenizer loaded in {seconds:.2f} s: {tokenizer.backend} ({tokenizer.reason})")
    if set("ab") & set(options.parts):
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
        if cores:
            os.sched_setaffinity(0, {min(cores)})
        text_to_batches(options, tokenizer)
        if cores:
            os.sched_setaffinity(0, cores)
    if "c" in options.parts:
        first_batch(options, tokenizer)


if __name__ == "__main__":
    main()
