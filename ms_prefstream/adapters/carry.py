"""Brings an exception through MindSpore's C++ pipeline without losing its type, its step or the steps before it.

The pipeline turns whatever a source raises into a `RuntimeError` with the traceback as text, throws away the finished
rows in front of it, and a dictionary iterator kills its own process when that text contains "Out of memory" or
"MemoryError", even where the words come from a row of the data. So the exception stays here under a number, and a
row of strings with that number takes its place in the queue. Our iterators exchange it for the exception:

    source: SourceError("a.jsonl:17: ...")  ->  C++: (array("[ms_prefstream error 3]"), ...)  ->  user: SourceError(...)

Where the reader of the queue is not one of our iterators, a stand-in is raised whose text holds sentence and number.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ms_prefstream.errors import PrefStreamError

_KEEP = 16  # an iterator that is dropped never collects its error; only the newest ones are kept
_TAG = re.compile(r"\[ms_prefstream error (\d+)\]")
_kept: OrderedDict[int, Exception] = OrderedDict()
_numbers = itertools.count(1)
_lock = threading.Lock()


class StepError(PrefStreamError):
    """Stands in for an error inside the pipeline; seen only where rows are read past this library's iterators."""


def _tag(error: Exception) -> str:
    with _lock:
        number = next(_numbers)
        _kept[number] = error
        while len(_kept) > _KEEP:
            _kept.popitem(last=False)
    return f"[ms_prefstream error {number}]"


def error_row(error: Exception, columns: int) -> tuple[Any, ...]:
    """The row that takes the place of a batch: the tag in every column, so that any projection keeps it."""
    return (np.array(_tag(error)),) * columns


def stand_in(error: Exception) -> StepError:
    """The error to raise inside the pipeline: the sentence, harmless to MindSpore, and the tag."""
    sentence = str(error) if isinstance(error, PrefStreamError) else f"{type(error).__name__}: {error}"
    harmless = sentence.replace("Out of memory", "out of memory").replace("MemoryError", "memory error")
    return StepError(f"{harmless} {_tag(error)}")


def error_in(row: Sequence[Any]) -> Exception | None:
    """The exception whose row this is, or None for a batch."""
    first = row[0] if row else None
    if str(getattr(first, "dtype", "")).lower() == "string":  # a Tensor of text, as MindSpore 2.7 hands it out
        first = first.asnumpy()  # type: ignore[union-attr]
    if isinstance(first, np.ndarray) and first.dtype.kind in "US":
        return recovered(str(first))
    return None


def recovered(text: str) -> Exception | None:
    """The exception that a pipeline's text stands for, or None when it is MindSpore's own."""
    found = _TAG.findall(text)
    with _lock:
        return _kept.get(int(found[-1])) if found else None
