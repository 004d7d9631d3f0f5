"""A program that writes a cache in three part ranges and merges them, in children of its own that can be killed.

    python -m tests.cache.range_writer SOURCE OUT

A line "go" on its input starts a child and is answered with its pid, "wait" waits for it and is answered with its
exit code.
"""

from __future__ import annotations

import os
import sys

import ms_prefstream as mps
from tests.cache.writer import PART, TASK, in_children

RANGES = 3


def main(source: str, out: str) -> None:
    """Writes what is missing of the cache in a child for each line of input."""

    def write() -> None:
        if not os.path.exists(out):
            for number in range(1, RANGES + 1):
                stream = mps.stream(source, task=TASK, tokenizer="bytes", batching=mps.Pad(1))
                mps.write_cache(stream, out, rows_per_part=PART, workers=0, part_range=(number, RANGES))
        if os.path.exists(out + ".writing"):
            mps.merge(out)

    in_children(write)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
