"""The command `bench`: how fast a stream makes batches, and how much of them is padding."""

from __future__ import annotations

import statistics
import time
from typing import Any

import click
import cloup

from ms_prefstream.cli.options import command, run_group, source_argument, stream_options, verbose_option
from ms_prefstream.cli.terminal import show, with_flags
from ms_prefstream.cli.values import Count, Suggested


@command(
    example="""
ms-prefstream bench train.jsonl --task dpo --max-length 1024 --tokenizer Qwen2.5 --batch-size 8
ms-prefstream bench train.jsonl --config run.yaml --pack 4096 --steps-per-epoch 100
"""
)
@source_argument
@stream_options
@run_group(
    cloup.option("--repeats", type=Count(min=1), default=3, show_default=True, help="Passes that are timed."),
    cloup.option(
        "--index",
        type=Suggested("auto", "build", "none"),
        default="auto",
        show_default=True,
        help="auto, build, none, or the path of a length index.",
    ),
    cloup.option("--workers", type=int, default=0, show_default=True, help="Processes that tokenise; 0 for none."),
    verbose_option,
)
def bench(source: tuple[str, ...], repeats: int, **options: Any) -> None:
    """Measure how fast SOURCE becomes batches, and padding."""
    from ms_prefstream.cli.building import make_stream

    stream = make_stream(source, options)
    begin = time.perf_counter()
    next(stream.batches())
    click.echo(f"first batch: {time.perf_counter() - begin:.3f} s")
    rows, tokens = [], []
    sides = stream.layout.sides * stream.layout.repeat  # rows of an array for each sample
    for epoch in range(repeats):
        before, begin = stream.report.tokens, time.perf_counter()
        read = 0
        for batch in stream.batches(epoch):
            packed = "pair_ids" in batch
            read += int(batch["pair_ids"].max(axis=1).sum()) if packed else len(next(iter(batch.values()))) // sides
        seconds = time.perf_counter() - begin
        rows.append(read / seconds)
        tokens.append((stream.report.tokens - before) / seconds)
    click.echo(f"rows/s:      {statistics.median(rows):,.0f} (min {min(rows):,.0f}, max {max(rows):,.0f})")
    click.echo(f"tokens/s:    {statistics.median(tokens):,.0f}")
    click.echo(f"shapes:      {', '.join(map(str, stream.shapes))}")
    show(with_flags(str(stream.report)))
