"""Dataset mix-in: its iterators raise the errors of a step as they were, and read only a few steps ahead.

This module imports MindSpore; import it only where a dataset is made.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from mindspore.dataset import config
from mindspore.dataset.engine.datasets import Dataset
from mindspore.dataset.engine.iterators import DictIterator, TupleIterator

from ms_prefstream.adapters.carry import error_in, recovered
from ms_prefstream.adapters.pipeline import PIPELINE, Pipeline
from ms_prefstream.errors import OptionError

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
