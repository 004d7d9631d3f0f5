"""Batches as a MindSpore dataset, and what belongs to it: checkpoints of its position, ranks, checks of its use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from ms_prefstream.plan.state import State
from ms_prefstream.sample import Batch


class BatchStream(Protocol):
    """A stream as this folder uses it; `ms_prefstream.Stream` is one."""

    task: Any
    batching: Any

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    @property
    def column_names(self) -> list[str]: ...

    @property
    def shapes(self) -> list[tuple[int, int]]: ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def start_step(self) -> int: ...

    def batches(self, epoch: int | None = None, start_step: int | None = None) -> Iterator[Batch]: ...

    def state(self, step: int) -> State: ...
