"""Python's cycle collector, held back while rows are loaded."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_holders = 0
_was_enabled = False


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Holds the collector back for the body; what is no cycle is freed as always.

    A window makes some ten thousand objects that live until it is batched, and none of them in a cycle. To the
    collector they are a reason to look at every object of the program again: with MindSpore imported 0.1 s each time,
    which made a window of 2,000 rows a fifth slower (`benchmarks/throughput.py`). Bodies may overlap, in several
    threads too; the last one to end restores what the first one found.
    """
    global _holders, _was_enabled
    with _lock:
        if not _holders:
            _was_enabled = gc.isenabled()
            gc.disable()
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders and _was_enabled:
                gc.enable()
