"""Steps with some of their columns, in another order: what a network takes need not be all that a batch holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar, cast

from ms_prefstream.adapters.mindspore import Batch, OnePassSteps, Steps
from ms_prefstream.errors import OptionError

Kind = TypeVar("Kind", bound="Steps | OnePassSteps")


class _Chosen:
    """The steps under other columns."""

    def __init__(self, steps: Steps | OnePassSteps, columns: list[str]) -> None:
        self.steps, self.column_names, self.steps_per_epoch = steps, columns, steps.steps_per_epoch

    def of(self, batch: Batch) -> Batch:
        return {name: batch[name] for name in self.column_names}


class _ChosenSteps(_Chosen):
    def __getitem__(self, step: int) -> Batch:
        return self.of(cast(Steps, self.steps)[step])


class _ChosenPasses(_Chosen):
    def start(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        return map(self.of, cast(OnePassSteps, self.steps).start(epoch, step))


def select_columns(steps: Kind, columns: Sequence[str]) -> Kind:
    """Steps whose batches hold exactly these columns, in this order.

    Raises:
        OptionError: A column is none of theirs, comes twice, or there are none.
    """
    names, wanted = ", ".join(steps.column_names), [columns] if isinstance(columns, str) else list(columns)
    for name in wanted:
        if name not in steps.column_names:
            raise OptionError(f"column {name!r} is none of this stream; its batches hold {names}.")
    if not wanted or len(set(wanted)) < len(wanted):
        raise OptionError(f"columns is {wanted!r}; expected some of {names}, each once.")
    chosen = _ChosenSteps if hasattr(steps, "__getitem__") else _ChosenPasses
    return cast(Kind, chosen(steps, wanted))
