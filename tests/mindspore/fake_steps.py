"""Tiny steps whose batches name the step they belong to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ms_prefstream.errors import SourceError


class FakeSteps:
    """Column `step` (2,) and `wide` (2, 3) hold the absolute step; one step may fail, and so may late passes.

    Attributes:
        delivers: The number of steps that a pass really has.
        passes: The number of epochs; like a spent generator the steps refuse later ones.
        asked: The absolute steps that were made, in order.
    """

    def __init__(self, steps_per_epoch: int, failing: dict[int, Exception] | None = None, passes: int = 99) -> None:
        self.column_names = ["step", "wide"]
        self.steps_per_epoch = self.delivers = steps_per_epoch
        self.failing, self.passes = failing or {}, passes
        self.asked: list[int] = []
        self.started: list[int] = []
        self.lock = threading.Lock()  # cannot be copied: a pipeline must share the steps, not copy them

    def start(self, epoch: int, step: int = 0) -> Iterator[dict[str, Any]]:
        self.started.append(epoch)
        if epoch >= self.passes:
            raise SourceError("the generator is spent after one pass. Give a function that makes a new one.")
        return (self._made(epoch * self.steps_per_epoch + i) for i in range(step, self.delivers))

    def _made(self, step: int) -> dict[str, Any]:
        self.asked.append(step)
        if step in self.failing:
            raise self.failing[step]
        return {"wide": np.full((2, 3), step, np.int32), "step": np.full(2, step, np.int32)}
