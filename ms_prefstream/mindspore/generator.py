"""`StepDataset`: a MindSpore dataset whose rows are the steps of a stream, epoch after epoch.

This module imports MindSpore; import it only where a dataset is made. As measured on MindSpore 2.9.0, a dataset is
copied for every iterator, and the copies share its source. State of a single iterator therefore belongs to the copy:
`prepare_multiprocessing`, which runs on it, gives it a source of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from mindspore.dataset import GeneratorDataset, config
from mindspore.dataset.engine.datasets import MapDataset, ProjectDataset, RenameDataset, RepeatDataset

from ms_prefstream.errors import OptionError, SourceError
from ms_prefstream.mindspore import BatchStream
from ms_prefstream.mindspore.readable import IN_BAND, Readable, error_row, stand_in
from ms_prefstream.mindspore.samples import Samples
from ms_prefstream.steps.collate import Steps

Row = tuple[Any, ...]


@dataclasses.dataclass(eq=False)
class StepSource:
    """The rows of a dataset: one pass over an epoch for each call of `__iter__`, with exactly `steps_per_epoch` rows.

    Attributes:
        epoch: The epoch of the next pass.
        steps, stream, resumed, moved: As for `to_dataset`.
        skip: Rows that MindSpore drops at the front; they are placeholders that cost nothing.
        in_band: Whether a failed step becomes an `error_row`.
    """

    steps: Steps
    epoch: int = 0
    stream: BatchStream | None = None
    resumed: bool = False
    moved: Callable[[int], None] = lambda step: None
    skip: int = 0
    in_band: bool = False
    _failed: Row | None = dataclasses.field(default=None, init=False)  # the row for all that follows a failed step

    @property
    def first_step(self) -> int:
        """The absolute step that init steps count from."""
        return self.epoch * len(self)

    def __len__(self) -> int:
        return self.steps.steps_per_epoch

    def __iter__(self) -> Iterator[Row]:
        epoch, columns = self.epoch, len(self.steps.column_names)
        self.epoch += 1
        done = min(self.skip, len(self))
        self.skip -= done
        yield from itertools.repeat((np.zeros(0, np.int32),) * columns, done)
        if self._failed is None and done < len(self):
            try:
                for row in self._rows(epoch, done):
                    yield row
                    done += 1
                return
            except Exception as error:
                failure = error
            if not self.in_band:
                raise stand_in(failure)
            self._failed = error_row(failure, columns)
        # MindSpore checks the number of rows before it returns the last ones: fill the pass up with the error.
        yield from itertools.repeat(self._failed, len(self) - done)

    def _rows(self, epoch: int, done: int) -> Iterator[Row]:
        for batch in itertools.islice(self.steps.start(epoch, done), len(self) - done):
            yield tuple(batch[name] for name in self.steps.column_names)
            done += 1
        if done < len(self):
            raise SourceError(
                f"epoch {epoch} ended after {done} of {len(self)} steps. "
                "Give steps_per_epoch as the source has them, or leave it out to have the rows counted."
            )


class StepDataset(Readable, GeneratorDataset):  # type: ignore[misc]
    """A `GeneratorDataset` of steps.

    The size is declared, so MindSpore never reads the source to count it. Up to a few steps of the next epoch are
    made while the last ones of this epoch are still unread.

    Args:
        source: The steps.
        init_step: The step of the source's first epoch to start at.
    """

    source: StepSource

    def __init__(self, source: StepSource, init_step: int = 0) -> None:
        super().__init__(
            source,
            column_names=list(source.steps.column_names),
            num_parallel_workers=1,
            shuffle=False,
            python_multiprocessing=False,
        )
        self.dataset_size = len(source)
        if init_step:
            super().set_init_step(init_step)

    @property
    def stream(self) -> Any:
        """The stream that makes the batches; its `report` says what was read and dropped."""
        return self.source.stream

    def set_init_step(self, init_step: int) -> None:
        """Starts at a step counted from the dataset's first epoch; MindFormers' resume calls this."""
        if self.source.resumed:
            raise OptionError(
                f"set_init_step({init_step}) on a dataset whose stream was resumed already: both would skip steps. "
                "Resume the stream (stream.resume) or the trainer (set_init_step, resume_training), not both."
            )
        super().set_init_step(init_step)
        self.source.moved(self.source.first_step + init_step)

    def add_sampler(self, new_sampler: Any) -> None:
        """Refuses a sampler, which MindSpore would ignore here; `use_sampler` calls this as well."""
        raise OptionError(
            f"a {type(new_sampler).__name__} cannot order or share out the steps of a stream. Use shuffle=, seed=, "
            "num_shards= and shard_id= of mps.stream, or skip and take of the dataset."
        )

    def prepare_multiprocessing(self) -> None:
        """Gives this copy of the dataset a source that counts epochs on its own, from the epoch of the init step.

        For an init step MindSpore reduces the number of epochs and drops rows of the first pass, whichever epoch it is.
        """
        source = self.source
        pipeline: list[Any] = [self]
        while pipeline[-1].parent:
            pipeline.append(pipeline[-1].parent[0]())  # a weak reference
        size = next(one.dataset_size for one in reversed(pipeline) if one.dataset_size)  # of the outermost, if known
        epochs, skip = divmod(0 if config.get_debug_mode() else pipeline[-1].get_init_step(), size)
        passes = -(-size // len(source))  # of the source, in one epoch of the pipeline
        epoch = source.epoch + epochs * passes
        self.source = dataclasses.replace(source, epoch=epoch, skip=skip, in_band=IN_BAND.get())
        super().prepare_multiprocessing()


def gives_steps(dataset: Any) -> bool:
    """Returns whether a dataset is a stream's own, with its batches as rows, in the order of its plan."""
    return isinstance(dataset, StepDataset) and not gives_samples(dataset)


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
