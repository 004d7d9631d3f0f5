"""A program that writes caches in children of its own, so that what is imported once can be killed many times.

    python -m tests.cache.writer SOURCE OUT WORKERS LAYOUT

A line "go" on its input starts a child and is answered with its pid, "wait" waits for it and is answered with its
exit code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import ms_prefstream as mps

TASK = mps.DPO(128)
PART = 8


def in_children(work: Callable[[], None]) -> None:
    """Does the work in a child for each line of input."""
    pid = 0
    for line in sys.stdin:
        if line == "wait\n":
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        pid = os.fork()
        if not pid:
            work()
            os._exit(0)
        print(pid, flush=True)


def main(source: str, out: str, workers: int, layout: str) -> None:
    """Writes the cache in a child for each line of input."""

    def write() -> None:
        stream = mps.stream(source, task=TASK, tokenizer="bytes", batching=mps.Pad(1))
        mps.write_cache(stream, out, layout=layout, rows_per_part=PART, workers=workers, overwrite=True)

    in_children(write)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
