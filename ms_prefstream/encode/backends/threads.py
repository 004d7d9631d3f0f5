"""The texts of a window on a few cores at once, where encoding leaves Python's lock alone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

MOST_THREADS = 4  # what is done under Python's lock is the longer part from here on
LEAST_TEXTS = 512  # for each thread; more than a worker process is given at a time


def in_threads(work: Callable[[Sequence[str]], list[Result]], texts: Sequence[str]) -> list[Result]:
    """`work` on parts of the texts, its results in order; the threads end with the call.

    A window is waited for, the first one before training begins, so it is worth more than one core. Few texts, as a
    step with a length index or a worker process has them, are not.

    Args:
        work: Texts to as many results; called from several threads at once.
        texts: What to work on.

    Raises:
        BaseException: What `work` raises, of the first part that fails.
    """
    threads = min(MOST_THREADS, len(texts) // LEAST_TEXTS, cores())
    if threads < 2:
        return work(texts)
    size = -(-len(texts) // (2 * threads))  # two parts a thread: texts differ in length
    parts = [texts[begin : begin + size] for begin in range(0, len(texts), size)]
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        return list(itertools.chain.from_iterable(pool.map(work, parts)))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
