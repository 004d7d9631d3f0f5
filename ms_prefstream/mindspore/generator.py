"""The datasets themselves: random access over steps with an epoch sampler, and one pass for each epoch.

This module imports MindSpore; import it only where a dataset is made. What MindSpore does with sources and samplers
was measured on 2.9.0: a dataset is copied for every iterator, its source is shared between the copies, its sampler is
not. So whatever one iterator must remember is given to the copy, in `prepare_multiprocessing`, which runs on the copy.
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
from ms_prefstream.mindspore.readable import PIPELINE, Readable, error_row, stand_in
from ms_prefstream.mindspore.samples import Samples
from ms_prefstream.steps.collate import OnePassSteps, Steps


@dataclass(slots=True)
class ResumeState:
    """Through which door a run was resumed, shared by all copies of a dataset.

    Attributes:
        moved: Told the absolute step that `set_init_step` moved the beginning to.
        resumed: Whether the dataset already begins where a stream was resumed.
        stream: The stream behind the steps, for whoever holds the dataset alone.
        first: The absolute step that init steps count from.
    """

    moved: Callable[[int], None] = lambda step: None
    resumed: bool = False
    stream: Any = None
    first: int = 0


Row = tuple[Any, ...]


class _StepSource:
    """Steps as tuples, for MindSpore's random access. Indexes are absolute and may lie beyond the length."""

    def __init__(self, steps: Steps, doors: ResumeState, in_band: bool = False) -> None:
        self.steps = steps
        self.doors = doors
        self._columns = tuple(steps.column_names)
        self._in_band = in_band

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
    """Yields epoch * K + i. MindSpore copies it for every iterator and asks the copy once for each epoch."""

    def __init__(self, steps_per_epoch: int, start_epoch: int) -> None:
        super().__init__(num_samples=steps_per_epoch)
        self._next_epoch = start_epoch

    def __iter__(self) -> Iterator[int]:
        first = self._next_epoch * self.num_samples
        self._next_epoch += 1
        return iter(range(first, first + self.num_samples))


class _OneDoor:
    """Refuses a second door to resuming, tells the stream where the dataset begins, and knows the stream.

    `ResumeState` lives on the source, which MindSpore shares between the copies of a dataset.
    """

    source: Any

    @property
    def stream(self) -> Any:
        """The stream that makes the batches; its `report` says what was read and dropped."""
        return self.source.doors.stream

    def set_init_step(self, init_step: int) -> None:
        """Start at a step counted from the dataset's first epoch; what MindFormers' resume calls."""
        doors: ResumeState = self.source.doors
        if doors.resumed:
            raise OptionError(
                f"set_init_step({init_step}) on a dataset whose stream was resumed already: both would skip steps. "
                "Resume the stream (stream.resume) or the trainer (set_init_step, resume_training), not both."
            )
        super().set_init_step(init_step)  # type: ignore[misc]
        doors.moved(doors.first + init_step)


class StepDataset(_OneDoor, Readable, GeneratorDataset):  # type: ignore[misc]
    """A `GeneratorDataset` over steps with random access: any step of any epoch without reading another."""

    source: Any

    def __init__(self, steps: Steps, start_epoch: int, doors: ResumeState) -> None:
        super().__init__(
            _StepSource(steps, doors),
            column_names=list(steps.column_names),
            sampler=EpochSampler(steps.steps_per_epoch, start_epoch),
            num_parallel_workers=1,
            python_multiprocessing=False,
        )

    def prepare_multiprocessing(self) -> None:
        """Tells the source of this copy (one for each iterator) how its errors travel."""
        self.source = _StepSource(self.source.steps, self.source.doors, PIPELINE.get().in_band)
        super().prepare_multiprocessing()


class _OnePassSource:
    """One pass for each call of `__iter__`: exactly `steps_per_epoch` rows, beginning with the epoch given.

    The first `skip` rows, which MindSpore is going to drop, are placeholders that cost nothing.
    """

    def __init__(
        self, steps: OnePassSteps, epoch: int, doors: ResumeState, in_band: bool = False, skip: int = 0
    ) -> None:
        self.steps = steps
        self.doors = doors
        self._next_epoch = epoch
        self._in_band = in_band
        self._skip = skip
        self._placeholder: Row = (np.zeros(0, np.int32),) * len(steps.column_names)
        self._filler: Row | None = None  # what every row is once a step has failed

    def __len__(self) -> int:
        return self.steps.steps_per_epoch

    def __iter__(self) -> Iterator[Row]:
        epoch = self._next_epoch
        self._next_epoch += 1
        done = min(self._skip, len(self))
        self._skip -= done
        yield from itertools.repeat(self._placeholder, done)
        if self._filler is None and done < len(self):
            try:
                for row in self._rows(epoch, done):
                    yield row
                    done += 1
                return
            except Exception as error:
                failure = error
            if not self._in_band:
                raise stand_in(failure)
            self._filler = error_row(failure, len(self.steps.column_names))
        # MindSpore checks the number of rows before it hands out the last ones: the pass is filled up with the error.
        yield from itertools.repeat(self._filler, len(self) - done)

    def _rows(self, epoch: int, done: int) -> Iterator[Row]:
        columns = tuple(self.steps.column_names)
        for batch in itertools.islice(self.steps.start(epoch, done), len(self) - done):
            yield tuple(batch[name] for name in columns)
            done += 1
        if done < len(self):
            raise SourceError(
                f"epoch {epoch} ended after {done} of {len(self)} steps. "
                "Give steps_per_epoch as the source has them, or leave it out to have the rows counted."
            )


class OnePassDataset(_OneDoor, Readable, GeneratorDataset):  # type: ignore[misc]
    """A `GeneratorDataset` over steps that can only be read from the front.

    The size is declared, so MindSpore never reads the source to count it. Up to a few steps of the next epoch are
    made while the last ones of this epoch are still unread.
    """

    source: Any

    def __init__(self, steps: OnePassSteps, start_epoch: int, doors: ResumeState) -> None:
        super().__init__(
            _OnePassSource(steps, start_epoch, doors),
            column_names=list(steps.column_names),
            num_parallel_workers=1,
            shuffle=False,
            python_multiprocessing=False,
        )
        self._start_epoch = start_epoch
        self.dataset_size = steps.steps_per_epoch

    def prepare_multiprocessing(self) -> None:
        """Gives this copy of the dataset (one for each iterator) a source that counts epochs on its own.

        For an init step MindSpore shortens the number of epochs and drops rows from the first pass it gets, whatever
        epoch the step lies in: the source must begin with that epoch itself.
        """
        steps, pipeline = self.source.steps, PIPELINE.get()
        epochs, skip = divmod(pipeline.init_step, pipeline.size)
        passes = -(-pipeline.size // steps.steps_per_epoch)  # of the source, in one epoch of the pipeline
        self.source = _OnePassSource(
            steps, self._start_epoch + epochs * passes, self.source.doors, pipeline.in_band, skip
        )
        super().prepare_multiprocessing()


_OURS = (StepDataset, OnePassDataset)
_SAME = (MapDataset, ProjectDataset, RenameDataset, RepeatDataset)


def gives_steps(dataset: Any) -> bool:
    """Whether a dataset is one of a stream whose rows are its batches, in the order of its plan."""
    if isinstance(dataset, StepDataset) and not isinstance(dataset.sampler, EpochSampler):
        return False
    return isinstance(dataset, _OURS) and not gives_samples(dataset)


def gives_samples(dataset: Any) -> bool:
    """Whether a dataset is one of a stream whose rows are single samples."""
    steps = dataset.source.steps if isinstance(dataset, _OURS) else None
    return isinstance(getattr(steps, "steps", steps), Samples)  # behind chosen columns too


def first_step(dataset: Any, stream: Any) -> int:
    """The absolute step that is the first row of a dataset that is trained on.

    Args:
        dataset: What the trainer was given.
        stream: Whose steps are to be counted.

    Raises:
        OptionError: Its rows are not the steps of this stream, one for one.
    """
    kinds, found = [], dataset
    while isinstance(found, _SAME):
        found = found.children[0]
    while not isinstance(found, _OURS) and len(children := getattr(found, "children", [])) == 1:
        kinds.append(type(found).__name__)
        found = children[0]
    if not kinds and gives_steps(found) and found.stream is stream:
        return int(found.source.doors.first + dataset.get_init_step())
    if not isinstance(found, _OURS):
        problem = f"the dataset of this training, {type(dataset).__name__}, is not the stream's own"
    elif found.stream is not stream:
        problem = "the dataset of this training comes from another stream than the one given"
    else:
        changed = f"behind {' and '.join(reversed(kinds))}" if kinds else "as single samples or with another sampler"
        problem = f"the dataset of this training gives the stream's steps {changed}, and no longer one for one"
    raise OptionError(
        f"StreamCheckpoint: {problem}, so that a state would name the wrong step. Train on stream.dataset() of that "
        "stream (map, project, rename and repeat may stand behind it), or leave StreamCheckpoint out."
    )
