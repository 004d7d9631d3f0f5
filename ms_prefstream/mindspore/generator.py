"""`StepDataset`: a MindSpore dataset whose rows are the steps of a stream, epoch after epoch.

This module imports MindSpore; import it only where a dataset is made. As measured on MindSpore 2.9.0, a dataset is
copied for every iterator; the copies share its source, but not its sampler. State of a single iterator therefore
belongs to the copy: `prepare_multiprocessing`, which runs on it, gives it a source of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from mindspore.dataset import GeneratorDataset, Sampler
from mindspore.dataset.engine.datasets import MapDataset, ProjectDataset, RenameDataset, RepeatDataset

from ms_prefstream.errors import OptionError, SourceError
from ms_prefstream.lines import at_most, joined
from ms_prefstream.mindspore import BatchStream
from ms_prefstream.mindspore.readable import IN_BAND, Readable, error_row, stand_in
from ms_prefstream.mindspore.samples import Samples
from ms_prefstream.sample import Batch
from ms_prefstream.steps.collate import Steps

Row = tuple[Any, ...]


@dataclasses.dataclass(eq=False)
class StepSource:
    """Rows of a dataset by absolute step. Consecutive steps are read in one pass, so any kind of source will do.

    Attributes:
        first_step: The absolute step that a dataset begins with and that init steps count from.
        steps, stream, resumed, moved: As for `to_dataset`.
        in_band: Whether a failed step becomes an `error_row`.
    """

    steps: Steps
    first_step: int = 0
    stream: BatchStream | None = None
    resumed: bool = False
    moved: Callable[[int], None] = lambda step: None
    in_band: bool = False
    _pass: Iterator[Batch] = dataclasses.field(default=iter(()), init=False)
    _next: int = dataclasses.field(default=-1, init=False)  # the step that the pass continues with
    _failure: Exception | None = dataclasses.field(default=None, init=False)

    def __len__(self) -> int:
        return self.steps.steps_per_epoch

    def __getitem__(self, step: int) -> Row:
        failure = self._failure
        if failure is None:
            try:
                return self._read(int(step))
            except Exception as error:
                failure = error
        if not self.in_band:
            raise stand_in(failure)
        self._failure = failure  # the reader stops at the first failed step: make no more
        return error_row(failure, len(self.steps.column_names))

    def _read(self, step: int) -> Row:
        epoch, inside = divmod(step, len(self))
        if step != self._next or inside == 0:
            self._pass = self.steps.start(epoch, inside)
        self._next = -1  # if the pass fails
        batch = next(self._pass, None)
        if batch is None:
            raise SourceError(
                f"epoch {epoch} ended after {inside} of {len(self)} steps. "
                "Give steps_per_epoch as the source has them, or leave it out to have the rows counted."
            )
        self._next = step + 1
        return tuple(batch[name] for name in self.steps.column_names)


class EpochSampler(Sampler):  # type: ignore[misc]
    """Sampler of epoch * K + i. MindSpore copies it for every iterator and iterates over the copy once an epoch."""

    def __init__(self, steps_per_epoch: int, first_step: int) -> None:
        super().__init__(num_samples=steps_per_epoch)
        self._next = first_step

    def __iter__(self) -> Iterator[int]:
        first = self._next
        self._next += self.num_samples
        return iter(range(first, self._next))


class StepDataset(Readable, GeneratorDataset):  # type: ignore[misc]
    """A `GeneratorDataset` of steps.

    Args:
        source: The steps.
        init_step: The step of the source's first epoch to start at.
    """

    source: StepSource

    def __init__(self, source: StepSource, init_step: int = 0) -> None:
        super().__init__(
            source,
            column_names=list(source.steps.column_names),
            sampler=EpochSampler(len(source), source.first_step),
            num_parallel_workers=1,
            python_multiprocessing=False,
        )
        if init_step:
            super().set_init_step(init_step)

    @property
    def stream(self) -> Any:
        """The stream that makes the batches; its `report` says what was read and dropped."""
        return self.source.stream

    def __repr__(self) -> str:
        """Returns steps, columns, shapes and the first lines of the stream, twelve lines at most."""
        stream, steps = self.source.stream, len(self.source)
        epoch, step = divmod(self.source.first_step + (self.get_init_step() or 0), steps)
        head = f"MindSpore dataset · {steps:,} steps an epoch, begins with step {step:,} of epoch {epoch}"
        columns = joined([f"     {self.source.steps.column_names[0]}", *self.source.steps.column_names[1:]], "     ")
        if stream is None:
            return "\n".join([head, *columns])
        first, *rest = [f"({rows}, {width})" for rows, width in stream.shapes]
        shapes = joined([f"     {first}", *rest], "     ")
        return "\n".join(at_most([[head], columns, shapes, repr(stream).splitlines()[:3]], 12))

    __str__ = __repr__

    def set_init_step(self, init_step: int) -> None:
        """Starts at a step counted from the dataset's first epoch; MindFormers' resume calls this."""
        if self.source.resumed:
            raise OptionError(
                f"set_init_step({init_step}) on a dataset whose stream was resumed already: both would skip steps. "
                "Resume the stream (stream.resume) or the trainer (set_init_step, resume_training), not both."
            )
        super().set_init_step(init_step)
        self.source.moved(self.source.first_step + init_step)

    def prepare_multiprocessing(self) -> None:
        """Gives this copy of the dataset a source whose pass and errors belong to this iterator alone."""
        self.source = dataclasses.replace(self.source, in_band=IN_BAND.get())
        super().prepare_multiprocessing()


def gives_steps(dataset: Any) -> bool:
    """Returns whether a dataset is a stream's own, with its batches as rows, in the order of its plan."""
    if not isinstance(dataset, StepDataset) or gives_samples(dataset):
        return False
    return isinstance(dataset.sampler, EpochSampler)


def gives_samples(dataset: Any) -> bool:
    """Returns whether a dataset is a stream's own, with single samples as rows."""
    steps = dataset.source.steps if isinstance(dataset, StepDataset) else None
    return isinstance(getattr(steps, "steps", steps), Samples)  # with selected columns too


def first_step(dataset: Any, stream: Any) -> int:
    """Returns the absolute step that is the first row of a training's dataset.

    Raises:
        OptionError: Its rows are not the steps of this stream, one for one.
    """
    found = dataset
    while isinstance(found, (MapDataset, ProjectDataset, RenameDataset, RepeatDataset)):
        found = found.children[0]
    if gives_steps(found) and found.stream is stream:
        return int(found.source.first_step + dataset.get_init_step())
    other = " of another stream" if gives_steps(found) else ""
    raise OptionError(
        f"StreamCheckpoint: the rows of this training's dataset, a {type(found).__name__}{other}, are not the steps of "
        "the stream, one for one, so that a state would name the wrong step. Train on stream.dataset() of that stream "
        "(map, project, rename and repeat may follow it), or leave StreamCheckpoint out."
    )
