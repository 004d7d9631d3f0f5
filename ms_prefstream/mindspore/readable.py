"""Dataset mix-in: its iterators raise the errors of a step as they were, and read only a few steps ahead.

This module imports MindSpore; import it only where a dataset is made.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn

import numpy as np
from mindspore.dataset import config
from mindspore.dataset.engine.datasets import Dataset
from mindspore.dataset.engine.iterators import DictIterator, TupleIterator

from ms_prefstream.errors import OptionError, PrefStreamError

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


class Pipeline(NamedTuple):
    """The pipeline under construction, as its outermost dataset sees it.

    Attributes:
        in_band: Whether it ends in one of our iterators, with nothing between that looks into rows.
        init_step: Rows that MindSpore leaves out in front, whole epochs included.
        size: Rows of one epoch.
    """

    in_band: bool = False
    init_step: int = 0
    size: int = 1


_OTHERS = Pipeline()

PIPELINE: ContextVar[Pipeline] = ContextVar("ms_prefstream_pipeline", default=_OTHERS)
"""Pipelines that are built by others, such as a zip of our dataset with another one, keep the default."""


_MINDSPORE_PREFETCH = 16  # MindSpore's default; another value was chosen by the user and is left alone
_ENDLESS = 2**31 - 1  # epochs; the most that MindSpore takes
_PREFETCH = 2  # whole batches: measured faster than 16, and 14 batches of memory less


class _Translating:
    """Iterator mix-in. An iterator that has failed goes on failing; MindSpore's would end silently or skip a row.

    Where an init step leaves out whole passes, MindSpore has fewer of them than it was asked for, and fails when a
    trainer that counts from the first epoch asks for them all. Here they are empty.
    """

    _failure: Exception | None = None
    _skipped: int = 0  # passes that are left out
    _passes: int = 0  # passes that are there, if some are left out

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


class StepTupleIterator(_Translating, TupleIterator):  # type: ignore[misc]
    """`TupleIterator` whose errors keep their type."""


class StepDictIterator(_Translating, DictIterator):  # type: ignore[misc]
    """`DictIterator` whose errors keep their type."""


_TRANSLATING = {TupleIterator: StepTupleIterator, DictIterator: StepDictIterator}


@contextmanager
def _building(pipeline: Pipeline) -> Iterator[None]:
    """Builds a pipeline with short queues; the global setting is read while the pipeline is built, then restored."""
    token = PIPELINE.set(pipeline)
    before = config.get_prefetch_size()
    if before == _MINDSPORE_PREFETCH:
        config.set_prefetch_size(_PREFETCH)
    try:
        yield
    finally:
        config.set_prefetch_size(before)
        PIPELINE.reset(token)


def _iterator(dataset: Readable, create: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """An iterator as MindSpore makes it, with our methods.

    Raises:
        OptionError: The init step leaves nothing to iterate over.
    """
    init_step = dataset.get_init_step()
    size = dataset.get_dataset_size() if init_step else 1  # not asked needlessly: a changed pipeline runs to find it
    skipped = init_step // size
    call = inspect.signature(create).bind(*args, **kwargs)
    epochs = call.arguments.get("num_epochs", -1)
    if init_step and epochs == -1:  # MindSpore counts to where it begins, and cannot do so in endlessly many epochs
        call.arguments["num_epochs"] = _ENDLESS
    counted = skipped > 0 and isinstance(epochs, int) and epochs > 0
    if counted and epochs <= skipped:
        raise OptionError(
            f"{init_step} steps are to be skipped, but {epochs} times {size} steps are all there are. Skip fewer "
            "(data_skip_steps, set_init_step, the step of stream.resume), take more, or train more epochs."
        )
    with _building(Pipeline(dataset._keeps_rows, init_step, size)):
        made = create(*call.args, **call.kwargs)
    # Same layout, other methods: what MindSpore put into the iterator stays as it is.
    made.__class__ = _TRANSLATING.get(type(made), type(made))
    if counted:
        made._skipped, made._passes = skipped, epochs - skipped
    return made


def _raise_original(error: RuntimeError) -> NoReturn:
    original = recovered(str(error))
    if original is None:
        raise error
    raise original from None


class Readable(Dataset):  # type: ignore[misc]
    """Mix-in for datasets; stands before the MindSpore class in the list of bases.

    MindSpore asks the outermost dataset for iterators, so its operations (`repeat`, `take`, ...) hand the mix-in on.
    """

    _keeps_rows = True

    @property
    def stream(self) -> Any:
        """The stream behind this dataset, through `batch`, `take` and the like; None if there is none."""
        return next((child.stream for child in self.children if isinstance(child, Readable)), None)

    def create_tuple_iterator(self, *args: Any, **kwargs: Any) -> Any:
        """As MindSpore's, with errors that keep their type."""
        return _iterator(self, super().create_tuple_iterator, args, kwargs)

    def create_dict_iterator(self, *args: Any, **kwargs: Any) -> Any:
        """As MindSpore's, with errors that keep their type."""
        return _iterator(self, super().create_dict_iterator, args, kwargs)

    def output_shapes(self, *args: Any, **kwargs: Any) -> Any:
        """As MindSpore's (it makes one step), with errors that keep their type."""
        try:
            return super().output_shapes(*args, **kwargs)
        except RuntimeError as error:
            _raise_original(error)

    def output_types(self) -> Any:
        """As MindSpore's (it makes one step), with errors that keep their type."""
        try:
            return super().output_types()
        except RuntimeError as error:
            _raise_original(error)


_KINDS: dict[type[Any], type[Any]] = {}


def _handing_on(name: str, keeps_rows: bool) -> Callable[..., Any]:
    """The operation as MindSpore has it; the dataset it returns gets the mix-in as well."""

    @functools.wraps(getattr(Dataset, name))
    def operation(self: Readable, *args: Any, **kwargs: Any) -> Any:
        dataset = getattr(super(Readable, self), name)(*args, **kwargs)
        kind = type(dataset)
        if not issubclass(kind, Readable):
            dataset.__class__ = _KINDS.setdefault(kind, type(kind.__name__, (Readable, kind), {}))
        dataset._keeps_rows = keeps_rows and self._keeps_rows
        return dataset

    return operation


for _name in ("repeat", "take", "skip", "project", "rename"):
    setattr(Readable, _name, _handing_on(_name, keeps_rows=True))
for _name in ("map", "filter", "batch", "padded_batch"):
    setattr(Readable, _name, _handing_on(_name, keeps_rows=False))
