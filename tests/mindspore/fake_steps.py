"""Tiny steps whose batches name the step they belong to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np


class FakeSteps:
    """Random access: column `step` (2,) and `wide` (2, 3) hold the absolute step; one step may fail."""

    def __init__(self, steps_per_epoch: int, failing: dict[int, Exception] | None = None) -> None:
        self.column_names = ["step", "wide"]
        self.steps_per_epoch = steps_per_epoch
        self.failing = failing or {}
        self.asked: list[int] = []
        self.lock = threading.Lock()  # cannot be copied: a pipeline must share the steps, not copy them

    def __getitem__(self, step: int) -> dict[str, Any]:
        self.asked.append(step)
        if step in self.failing:
            raise self.failing[step]
        return {"wide": np.full((2, 3), step, np.int32), "step": np.full(2, step, np.int32)}


class FakeOnePass:
    """One pass an epoch; like a spent generator it refuses the epochs beyond `passes`."""

    def __init__(self, steps_per_epoch: int, failing: dict[int, Exception] | None = None, passes: int = 99) -> None:
        self._steps = FakeSteps(steps_per_epoch, failing)
        self.column_names = self._steps.column_names
        self.steps_per_epoch = steps_per_epoch
        self.delivers = steps_per_epoch
        self.passes = passes
        self.started: list[int] = []

    @property
    def asked(self) -> list[int]:
        """The absolute steps that were made, in order."""
        return self._steps.asked

    def start(self, epoch: int, step: int = 0) -> Iterator[dict[str, Any]]:
        from ms_prefstream.errors import SourceError

        self.started.append(epoch)
        if epoch >= self.passes:
            raise SourceError("the generator is spent after one pass. Give a function that makes a new one.")
        return (self._steps[epoch * self.steps_per_epoch + i] for i in range(step, self.delivers))
