"""The door to MindSpore: steps in, a `mindspore.dataset.GeneratorDataset` of ready batches out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ms_prefstream.errors import OptionError, needs
from ms_prefstream.steps.collate import OnePassSteps, Steps

if TYPE_CHECKING:
    from mindspore.dataset import GeneratorDataset


def to_dataset(
    steps: Steps | OnePassSteps,
    *,
    start_epoch: int = 0,
    init_step: int = 0,
    resumed: bool = False,
    moved: Callable[[int], None] = lambda step: None,
    stream: Any = None,
) -> GeneratorDataset:
    """Wraps steps for `Model.train`, a functional loop or a MindFormers trainer; one dataset row is one step.

    Every new iterator begins at `start_epoch` again, as MindSpore has it: a second `model.train(1, dataset)` repeats
    the epoch. Pass a dataset with the next `start_epoch`, or let one call train all epochs. An error inside a step
    reaches the user as it was raised, through `create_dict_iterator`, `create_tuple_iterator` and `Model.train`.

    Args:
        steps: Batches by absolute step, or one pass for each epoch.
        start_epoch: The epoch that an iterator starts with, from 0.
        init_step: The step of that epoch to start at: the first pass is short, `get_dataset_size()` stays
            `steps_per_epoch`.
        resumed: Whether `set_init_step` is refused from now on, since the stream was resumed already.
        moved: Told when a trainer calls `set_init_step`, with the absolute step that is then the first.
        stream: What the dataset hands out as `stream`.

    Returns:
        A `GeneratorDataset` with the columns of `steps`, in their order.

    Raises:
        OptionError: `start_epoch` is negative, `init_step` lies outside the epoch, or there are no steps.
    """
    if steps.steps_per_epoch < 1:
        raise OptionError(
            f"there are {steps.steps_per_epoch} steps in an epoch; at least 1 is needed. "
            "Give more rows or a smaller batch_size."
        )
    if start_epoch < 0:
        raise OptionError(f"start_epoch is {start_epoch}; epochs count from 0.")
    if not 0 <= init_step < steps.steps_per_epoch:
        raise OptionError(
            f"init_step is {init_step}, but an epoch has the steps 0 to {steps.steps_per_epoch - 1}. "
            "Name whole epochs with start_epoch."
        )
    with needs("mindspore", "stream.dataset()"):
        from ms_prefstream.mindspore import trainer_hooks  # noqa: F401 - MindFormers' trainers look from now on
        from ms_prefstream.mindspore.generator import OnePassDataset, ResumeState, StepDataset

    dataset: GeneratorDataset
    doors = ResumeState(first=start_epoch * steps.steps_per_epoch)
    if hasattr(steps, "__getitem__"):
        dataset = StepDataset(cast(Steps, steps), start_epoch, doors)
    else:
        dataset = OnePassDataset(steps, start_epoch, doors)
    if init_step:
        dataset.set_init_step(init_step)
    doors.moved, doors.resumed, doors.stream = moved, resumed, stream
    return dataset
