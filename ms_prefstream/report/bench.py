"""How fast a stream makes batches, and how much of them is padding."""

from __future__ import annotations

import statistics
import time

from ms_prefstream.stream import Stream


def bench(stream: Stream, repeats: int) -> None:
    """Print the time to the first batch, rows and tokens a second over several epochs, padding, and the report."""
    begin = time.perf_counter()
    next(stream.batches())
    print(f"first batch: {time.perf_counter() - begin:.3f} s")
    rows, tokens = [], []
    for epoch in range(repeats):
        before, begin = stream.report.tokens, time.perf_counter()
        read = 0
        for batch in stream.batches(epoch):
            read += int(batch["pair_ids"].max(axis=1).sum()) if "pair_ids" in batch else stream.batching.batch_size
        seconds = time.perf_counter() - begin
        rows.append(read / seconds)
        tokens.append((stream.report.tokens - before) / seconds)
    print(f"rows/s:      {statistics.median(rows):,.0f} (min {min(rows):,.0f}, max {max(rows):,.0f})")
    print(f"tokens/s:    {statistics.median(tokens):,.0f}")
    print(f"shapes:      {', '.join(map(str, stream.shapes))}")
    print(stream.report)
