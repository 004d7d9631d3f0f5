"""How fast a stream makes batches, and how much of them is padding."""

from __future__ import annotations

import statistics
import time
from typing import Any

from numpy.typing import NDArray

from ms_prefstream.batch import Batch
from ms_prefstream.stream import Stream


def bench(stream: Stream, repeats: int) -> None:
    """Print the time to the first batch, rows and tokens a second over several epochs, padding, and the report."""
    begin = time.perf_counter()
    next(stream.batches())
    print(f"first batch: {time.perf_counter() - begin:.3f} s")
    rows, tokens = [], []
    sides = 2 if stream.task.pairs and stream.task.layout != "paired" else 1  # rows of an array for each sample
    for epoch in range(repeats):
        before, begin = stream.report.tokens, time.perf_counter()
        read = 0
        for batch in stream.batches(epoch):
            read += int(batch["pair_ids"].max(axis=1).sum()) if "pair_ids" in batch else len(_first(batch)) // sides
        seconds = time.perf_counter() - begin
        rows.append(read / seconds)
        tokens.append((stream.report.tokens - before) / seconds)
    print(f"rows/s:      {statistics.median(rows):,.0f} (min {min(rows):,.0f}, max {max(rows):,.0f})")
    print(f"tokens/s:    {statistics.median(tokens):,.0f}")
    print(f"shapes:      {', '.join(map(str, stream.shapes))}")
    print(stream.report)


def _first(batch: Batch) -> NDArray[Any]:
    return next(iter(batch.values()))
