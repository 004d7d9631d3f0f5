"""The two datasets of steps: random access with an epoch sampler, and one pass for each epoch.

This module imports MindSpore; import it only where a dataset is made. As measured on MindSpore 2.9.0, a dataset is
copied for every iterator; the copies share its source, but not its sampler. State of a single iterator therefore
belongs to the copy: `prepare_multiprocessing`, which runs on it, gives it a source of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore.dataset import GeneratorDataset, Sampler
from mindspore.dataset.engine.datasets import MapDataset, ProjectDataset, RenameDataset, RepeatDataset

from ms_prefstream.errors import OptionError, SourceError
from ms_prefstream.mindspore import BatchStream
from ms_prefstream.mindspore.readable import PIPELINE, Readable, error_row, stand_in
from ms_prefstream.mindspore.samples import Samples
from ms_prefstream.steps.collate import OnePassSteps, Steps

Row = tuple[Any, ...]


@dataclass(slots=True)
class ResumeState:
    """Where a dataset begins and who decided it; shared by all copies of the dataset.

    Attributes:
        first: The absolute step that init steps count from.
        resumed: Whether the stream was resumed, so that the trainer must not move the beginning.
        moved: Called with the absolute step that `set_init_step` moved the beginning to.
        stream: The stream that makes the steps.
    """

    first: int = 0
    resumed: bool = False
    moved: Callable[[int], None] = lambda step: None
    stream: BatchStream | None = None


class _StreamDataset(Readable):
    """Base of both datasets; its source holds the steps and the resume state."""

    source: Any

    @property
    def stream(self) -> Any:
        """The stream that makes the batches; its `report` says what was read and dropped."""
        return self.source.resume.stream

    def set_init_step(self, init_step: int) -> None:
        """Starts at a step counted from the dataset's first epoch; MindFormers' resume calls this."""
        resume: ResumeState = self.source.resume
        if resume.resumed:
            raise OptionError(
                f"set_init_step({init_step}) on a dataset whose stream was resumed already: both would skip steps. "
                "Resume the stream (stream.resume) or the trainer (set_init_step, resume_training), not both."
            )
        super().set_init_step(init_step)
        resume.moved(resume.first + init_step)


class _StepSource:
    """Steps as tuples for MindSpore's random access. Indexes are absolute and may exceed the length."""

    def __init__(self, steps: Steps, resume: ResumeState, in_band: bool = False) -> None:
        self.steps, self.resume, self._in_band = steps, resume, in_band
        self._columns = tuple(steps.column_names)

    def __len__(self) -> int:
        return self.steps.steps_per_epoch

    def __getitem__(self, step: int) -> Row:
        try:
            batch = self.steps[int(step)]
            return tuple(batch[name] for name in self._columns)
        except Exception as error:
            failure = error
        if self._in_band:
            return error_row(failure, len(self._columns))
        raise stand_in(failure)


class EpochSampler(Sampler):  # type: ignore[misc]
    """Sampler of epoch * K + i. MindSpore copies it for every iterator and iterates over the copy once an epoch."""

    def __init__(self, steps_per_epoch: int, start_epoch: int) -> None:
        super().__init__(num_samples=steps_per_epoch)
        self._next_epoch = start_epoch

    def __iter__(self) -> Iterator[int]:
        first = self._next_epoch * self.num_samples
        self._next_epoch += 1
        return iter(range(first, first + self.num_samples))


class StepDataset(_StreamDataset, GeneratorDataset):  # type: ignore[misc]
    """A `GeneratorDataset` over steps with random access: any step of any epoch without reading another."""

    def __init__(self, steps: Steps, start_epoch: int, resume: ResumeState) -> None:
        super().__init__(
            _StepSource(steps, resume),
            column_names=list(steps.column_names),
            sampler=EpochSampler(steps.steps_per_epoch, start_epoch),
            num_parallel_workers=1,
            python_multiprocessing=False,
        )

    def prepare_multiprocessing(self) -> None:
        """Gives this copy of the dataset a source that passes errors on as this iterator expects them."""
        self.source = _StepSource(self.source.steps, self.source.resume, PIPELINE.get().in_band)
        super().prepare_multiprocessing()


class _OnePassSource:
    """One pass for each call of `__iter__`: exactly `steps_per_epoch` rows, starting with the given epoch.

    The first `skip` rows, which MindSpore drops, are placeholders that cost nothing.
    """

    def __init__(
        self, steps: OnePassSteps, epoch: int, resume: ResumeState, in_band: bool = False, skip: int = 0
    ) -> None:
        self.steps, self.resume, self._in_band = steps, resume, in_band
        self._next_epoch, self._skip = epoch, skip
        self._columns = tuple(steps.column_names)
        self._error_row: Row | None = None  # once a step has failed

    def __len__(self) -> int:
        return self.steps.steps_per_epoch

    def __iter__(self) -> Iterator[Row]:
        epoch = self._next_epoch
        self._next_epoch += 1
        done = min(self._skip, len(self))
        self._skip -= done
        yield from itertools.repeat((np.zeros(0, np.int32),) * len(self._columns), done)
        if self._error_row is None and done < len(self):
            try:
                for row in self._rows(epoch, done):
                    yield row
                    done += 1
                return
            except Exception as error:
                failure = error
            if not self._in_band:
                raise stand_in(failure)
            self._error_row = error_row(failure, len(self._columns))
        # MindSpore checks the number of rows before it returns the last ones: fill the pass up with the error.
        yield from itertools.repeat(self._error_row, len(self) - done)

    def _rows(self, epoch: int, done: int) -> Iterator[Row]:
        for batch in itertools.islice(self.steps.start(epoch, done), len(self) - done):
            yield tuple(batch[name] for name in self._columns)
            done += 1
        if done < len(self):
            raise SourceError(
                f"epoch {epoch} ended after {done} of {len(self)} steps. "
                "Give steps_per_epoch as the source has them, or leave it out to have the rows counted."
            )


class OnePassDataset(_StreamDataset, GeneratorDataset):  # type: ignore[misc]
    """A `GeneratorDataset` over steps that can only be read from the front.

    The size is declared, so MindSpore never reads the source to count it. Up to a few steps of the next epoch are
    made while the last ones of this epoch are still unread.
    """

    def __init__(self, steps: OnePassSteps, start_epoch: int, resume: ResumeState) -> None:
        super().__init__(
            _OnePassSource(steps, start_epoch, resume),
            column_names=list(steps.column_names),
            num_parallel_workers=1,
            shuffle=False,
            python_multiprocessing=False,
        )
        self._start_epoch = start_epoch
        self.dataset_size = steps.steps_per_epoch

    def prepare_multiprocessing(self) -> None:
        """Gives this copy of the dataset a source that counts epochs on its own, from the epoch of the init step.

        For an init step MindSpore reduces the number of epochs and drops rows of the first pass, whichever epoch it is.
        """
        source, pipeline = self.source, PIPELINE.get()
        epochs, skip = divmod(pipeline.init_step, pipeline.size)
        passes = -(-pipeline.size // len(source))  # of the source, in one epoch of the pipeline
        epoch = self._start_epoch + epochs * passes
        self.source = _OnePassSource(source.steps, epoch, source.resume, pipeline.in_band, skip)
        super().prepare_multiprocessing()


_SAME_ROWS = (MapDataset, ProjectDataset, RenameDataset, RepeatDataset)


def gives_steps(dataset: Any) -> bool:
    """Returns whether a dataset is a stream's own, with its batches as rows, in the order of its plan."""
    if isinstance(dataset, StepDataset) and not isinstance(dataset.sampler, EpochSampler):
        return False
    return isinstance(dataset, _StreamDataset) and not gives_samples(dataset)


def gives_samples(dataset: Any) -> bool:
    """Returns whether a dataset is a stream's own, with single samples as rows."""
    steps = dataset.source.steps if isinstance(dataset, _StreamDataset) else None
    return isinstance(getattr(steps, "steps", steps), Samples)  # with chosen columns too


def first_step(dataset: Any, stream: Any) -> int:
    """Returns the absolute step that is the first row of a training's dataset.

    Args:
        dataset: What the trainer was given.
        stream: Whose steps are counted.

    Raises:
        OptionError: Its rows are not the steps of this stream, one for one.
    """
    kinds, found = [], dataset
    while isinstance(found, _SAME_ROWS):
        found = found.children[0]
    while not isinstance(found, _StreamDataset) and len(children := getattr(found, "children", [])) == 1:
        kinds.append(type(found).__name__)
        found = children[0]
    if not kinds and gives_steps(found) and found.stream is stream:
        return int(found.source.resume.first + dataset.get_init_step())
    if not isinstance(found, _StreamDataset):
        problem = f"the dataset of this training, {type(dataset).__name__}, is not the stream's own"
    elif found.stream is not stream:
        problem = "the dataset of this training comes from another stream than the one given"
    else:
        changed = f"after {' and '.join(reversed(kinds))}" if kinds else "as single samples or with another sampler"
        problem = f"the dataset of this training has the stream's steps {changed}, no longer one for one"
    raise OptionError(
        f"StreamCheckpoint: {problem}, so that a state would name the wrong step. Train on stream.dataset() of that "
        "stream (map, project, rename and repeat may follow it), or leave StreamCheckpoint out."
    )
