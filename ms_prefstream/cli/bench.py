"""The command `bench`: how fast a stream makes batches, and how much of them is padding."""

from __future__ import annotations

import statistics
import time
from typing import Any

import click

from ms_prefstream.cli.options import source_argument, stream_options
from ms_prefstream.cli.terminal import show


@click.command()
@source_argument
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Passes that are timed.")
@click.option("--index", help="auto (default), build, none, or the path of a length index.")
@stream_options
def bench(source: tuple[str, ...], repeats: int, **options: Any) -> None:
    """Measure how fast SOURCE becomes batches, and how much of them is padding."""
    from ms_prefstream.cli.building import make_stream

    stream = make_stream(source, options)
    begin = time.perf_counter()
    next(stream.batches())
    click.echo(f"first batch: {time.perf_counter() - begin:.3f} s")
    rows, tokens = [], []
    sides = 2 if stream.task.pairs and stream.task.layout != "paired" else 1  # rows of an array for each sample
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
    show(stream.report)
