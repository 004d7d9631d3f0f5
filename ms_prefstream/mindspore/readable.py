"""Dataset mix-in whose iterators raise the errors of a step unchanged and prefetch only a few steps.

A Python error inside MindSpore's pipeline arrives as text in a `RuntimeError`, after rows may have been lost. Here the
exception is kept and the pipeline carries its number: as a row of text where one of our iterators reads the rows ("in
band"), else in the text of a `StepError`. This module imports MindSpore; import it only where a dataset is made.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
from mindspore.dataset import config
from mindspore.dataset.engine.datasets import Dataset

from ms_prefstream.errors import OptionError, PrefStreamError

_TAG = re.compile(r"\[ms_prefstream error (\d+)\]")
_numbers = itertools.count(1)
_kept: deque[tuple[int, Exception]] = deque(maxlen=16)  # an abandoned iterator never collects its error


class StepError(PrefStreamError):
    """Replacement for an error inside the pipeline; visible only to readers other than this library's iterators."""


def _tag(error: Exception) -> str:
    number = next(_numbers)
    _kept.append((number, error))
    return f"[ms_prefstream error {number}]"


def error_row(error: Exception, columns: int) -> tuple[Any, ...]:
    """Returns the row that replaces a batch: the tag in every column, so that any projection keeps it."""
    return (np.array(_tag(error)),) * columns


def stand_in(error: Exception) -> StepError:
    """Returns the error to raise inside the pipeline: the sentence, without words that kill the process, and a tag."""
    sentence = str(error) if isinstance(error, PrefStreamError) else f"{type(error).__name__}: {error}"
    harmless = sentence.replace("Out of memory", "out of memory").replace("MemoryError", "memory error")
    return StepError(f"{harmless} {_tag(error)}")


def error_in(row: Sequence[Any]) -> Exception | None:
    """Returns the exception that a row stands for, or None for a batch."""
    first = row[0] if row else None
    is_array = isinstance(first, np.ndarray)
    if not is_array and str(getattr(first, "dtype", "")).lower() == "string":  # MindSpore 2.7 returns text as a Tensor
        first, is_array = first.asnumpy(), True  # type: ignore[union-attr]
    if is_array and first.dtype.kind in "US":  # type: ignore[union-attr]
        return recovered(str(first))
    return None


def recovered(text: str) -> Exception | None:
    """Returns the exception that a pipeline's text stands for, or None for MindSpore's own errors."""
    found = _TAG.findall(text)
    return dict(_kept.copy()).get(int(found[-1])) if found else None


IN_BAND: ContextVar[bool] = ContextVar("ms_prefstream_in_band", default=False)
"""Whether one of our iterators will read the pipeline under construction, and no operation looks into its rows."""

_MINDSPORE_PREFETCH = 16  # MindSpore's default; another value was set by the user and is kept
_PREFETCH = 2  # whole batches: measured faster than 16, with 14 batches less in memory
_ENDLESS = 2**31 - 1  # epochs; MindSpore's maximum


class _Translating:
    """Iterator mix-in. A failed iterator keeps raising its error; MindSpore's would end silently or skip a row.

    An init step that skips whole passes leaves MindSpore with fewer passes than requested. A trainer that counts from
    the first epoch requests them all, so the skipped ones are delivered as empty.
    """

    _failure: Exception | None = None
    _skipped: int = 0  # empty passes to deliver
    _passes: int = 0  # passes of MindSpore that come first, if some are skipped

    def __next__(self) -> Any:
        if self._skipped and not self._passes:
            self._skipped -= 1
            raise StopIteration
        if self._failure is None:
            try:
                row = super().__next__()  # type: ignore[misc]
            except StopIteration:
                self._passes -= 1
                raise
            except RuntimeError as error:
                self._failure = recovered(str(error)) or error
            else:
                self._failure = error_in(list(row.values()) if isinstance(row, dict) else row)
        if self._failure is not None:
            raise self._failure
        return row


@functools.cache
def _with_mixin(mixin: type[Any], kind: type[Any]) -> type[Any]:
    """Returns MindSpore's class with the mix-in in front. Objects of both have the same layout."""
    return type(kind.__name__, (mixin, kind), {})


@contextlib.contextmanager
def _building(in_band: bool) -> Iterator[None]:
    """Sets short queues while a pipeline is built, which is when MindSpore reads that global setting."""
    token = IN_BAND.set(in_band)
    before = config.get_prefetch_size()
    if before == _MINDSPORE_PREFETCH:
        config.set_prefetch_size(_PREFETCH)
    try:
        yield
    finally:
        config.set_prefetch_size(before)
        IN_BAND.reset(token)


def _iterator(dataset: Readable, create: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Creates MindSpore's iterator and gives it our methods.

    Raises:
        OptionError: The init step skips everything.
    """
    init_step = dataset.get_init_step()
    size = dataset.get_dataset_size() if init_step else 1  # only where needed: it may run a changed pipeline
    skipped = init_step // size
    call = inspect.signature(create).bind(*args, **kwargs)
    epochs = call.arguments.get("num_epochs", -1)
    if init_step and epochs == -1:  # MindSpore needs a number of epochs to find the init step
        call.arguments["num_epochs"] = _ENDLESS
    counted = skipped > 0 and isinstance(epochs, int) and epochs > 0
    if counted and epochs <= skipped:
        raise OptionError(
            f"{init_step} steps are to be skipped, but {epochs} times {size} steps are all there are. Skip fewer "
            "(data_skip_steps, set_init_step, the step of stream.resume), take more, or train more epochs."
        )
    with _building(dataset._keeps_rows):
        made = create(*call.args, **call.kwargs)
    made.__class__ = _with_mixin(_Translating, made.__class__)
    if counted:
        made._skipped, made._passes = skipped, epochs - skipped
    return made


class Readable(Dataset):  # type: ignore[misc]
    """Mix-in for datasets; precedes the MindSpore class in the list of bases.

    MindSpore creates iterators from the outermost dataset, so operations (`repeat`, `take`, ...) pass the mix-in on.
    """

    _keeps_rows = True

    @property
    def stream(self) -> Any:
        """The stream of this dataset, through `batch`, `take` and the like; None if there is none."""
        return next((child.stream for child in self.children if isinstance(child, Readable)), None)

    def create_tuple_iterator(self, *args: Any, **kwargs: Any) -> Any:
        """Creates MindSpore's iterator, with errors that keep their type."""
        return _iterator(self, super().create_tuple_iterator, args, kwargs)

    def create_dict_iterator(self, *args: Any, **kwargs: Any) -> Any:
        """Creates MindSpore's iterator, with errors that keep their type."""
        return _iterator(self, super().create_dict_iterator, args, kwargs)


def _passing_on(name: str, keeps_rows: bool) -> Callable[..., Any]:
    """Returns MindSpore's operation; the dataset that it returns gets the mix-in as well."""

    @functools.wraps(getattr(Dataset, name))
    def operation(self: Readable, *args: Any, **kwargs: Any) -> Any:
        dataset = getattr(super(Readable, self), name)(*args, **kwargs)
        if not isinstance(dataset, Readable):
            dataset.__class__ = _with_mixin(Readable, dataset.__class__)
        dataset._keeps_rows = keeps_rows and self._keeps_rows
        return dataset

    return operation


for _name in ("repeat", "take", "skip", "project", "rename"):
    setattr(Readable, _name, _passing_on(_name, keeps_rows=True))
for _name in ("map", "filter", "batch", "padded_batch"):
    setattr(Readable, _name, _passing_on(_name, keeps_rows=False))
