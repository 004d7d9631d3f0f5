"""`to_dataset`: steps as a `GeneratorDataset` of ready batches; MindSpore is imported when one is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ms_prefstream.mindspore import BatchStream
from ms_prefstream.packages import needs
from ms_prefstream.steps.collate import Steps

if TYPE_CHECKING:
    from mindspore.dataset import GeneratorDataset


def to_dataset(
    steps: Steps,
    *,
    start_epoch: int = 0,
    init_step: int = 0,
    resumed: bool = False,
    moved: Callable[[int], None] = lambda step: None,
    stream: BatchStream | None = None,
) -> GeneratorDataset:
    """Wraps steps for `Model.train`, a functional loop or a MindFormers trainer; one dataset row is one step.

    Every new iterator starts at `start_epoch` again, as MindSpore has it: a second `model.train(1, dataset)` repeats
    the epoch. Pass a dataset with the next `start_epoch`, or let one call train all epochs. An error inside a step
    reaches the user as it was raised, through `create_dict_iterator`, `create_tuple_iterator` and `Model.train`.

    Args:
        steps: Makes the batches of an epoch.
        start_epoch: The epoch that an iterator starts with, from 0.
        init_step: The step of that epoch to start at. The first pass is short; `get_dataset_size()` stays
            `steps_per_epoch`.
        resumed: Whether the stream was resumed, so that `set_init_step` is refused.
        moved: Called when a trainer calls `set_init_step`, with the absolute step that is now the first.
        stream: The stream that the dataset's attribute `stream` returns.

    Returns:
        A `GeneratorDataset` with the columns of `steps`, in their order.
    """
    with needs("mindspore", "stream.dataset()"):
        from ms_prefstream.mindspore.generator import StepDataset, StepSource

    first = start_epoch * steps.steps_per_epoch
    source = StepSource(steps, first, stream, resumed, moved)
    dataset: GeneratorDataset = StepDataset(source, init_step)
    return dataset
