"""Which datasets still give the steps of a stream: one row for each, in their order.

    stream.dataset().map(...).rename(...)     yes: the first row is the step that the dataset begins with
    stream.dataset().batch(2), .skip(5)       no: what the trainer counts are no steps of the stream

This module imports MindSpore; import it only where a dataset is at hand.
"""

from __future__ import annotations

from typing import Any

from mindspore.dataset.engine.datasets import MapDataset, ProjectDataset, RenameDataset, RepeatDataset

from ms_prefstream.adapters.generator import EpochSampler, OnePassDataset, StepDataset
from ms_prefstream.adapters.samples import Samples
from ms_prefstream.errors import OptionError

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
