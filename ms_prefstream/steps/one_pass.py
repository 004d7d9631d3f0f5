"""Steps from a source that can only be read from the front: the same plan, one window of rows in memory."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ms_prefstream.load.one_pass import PassWindow, Position
from ms_prefstream.plan.packed import PackedWindows
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.windows import WindowedPlan
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.sample import Batch
from ms_prefstream.steps.planned import PackedSteps, WindowedSteps

_POSITIONS = 64  # windows that may be read ahead of the step that a state is taken for

"""(origin, raw row, record)."""


class OnePassSteps:
    """The batches of one rank, epoch by epoch, from the front.

    Every rank reads all rows and uses its share; resuming skips rows without formatting or tokenising them.

    Args:
        plan: Made with ``one_pass=True``, so that a window's rows stand together in the source.
        ranks: Whose share of it.
        records: Opens a pass: (position in the epoch, records of earlier epochs, known, passed) -> records; see
            `PassWindow`.
        continues: Whether an epoch goes on in the data where the one before ended.
        loader: Makes the loader of a pass.
        ledger: Makes the ledger of a pass.
        collate: Samples, or packs of them, to a batch.
        column_names: The names of the arrays `collate` gives.
        steps: Makes the random access to the steps of a pass.
    """

    def __init__(
        self,
        plan: WindowedPlan | PackedWindows,
        ranks: Ranks,
        records: Callable[..., PassWindow],
        continues: bool,
        loader: Callable[[PassWindow], Any],
        ledger: Callable[[PassWindow], BadRows],
        collate: Callable[[Any], Batch],
        column_names: Sequence[str],
        steps: Callable[..., WindowedSteps | PackedSteps] = WindowedSteps,
    ) -> None:
        self.plan = plan
        self.column_names = list(column_names)
        self.steps_per_epoch = plan.steps_per_epoch
        self._ranks = ranks
        self._records = records
        self._continues = continues
        self._loader = loader
        self._ledger = ledger
        self._collate = collate
        self._steps = steps
        self._positions: deque[tuple[int, Position]] = deque(maxlen=_POSITIONS)  # (epoch, where its windows began)
        self._resumed: tuple[int, Position] | None = None

    def start(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from a step on."""
        first = self.plan.window_start(self.plan.locate(step)[0])
        before = self._before(epoch)
        known = None
        if self._resumed is not None and self._resumed[0] == epoch and self._resumed[1].first <= before + first:
            known = self._resumed[1]
        records = self._records(first, before, known, lambda position: self._positions.append((epoch, position)))
        steps = self._steps(
            self.plan, self._ranks, self._loader(records), self._ledger(records), self._collate, self.column_names
        )
        for index in range(step, self.steps_per_epoch):
            yield steps[epoch * self.steps_per_epoch + index]

    def source_state(self, step: int) -> dict[str, Any] | None:
        """The source's own state at the beginning of the window of an absolute step, or the last one known before it.

        Plain values for JSON; None where the source has no state of its own, or one that JSON cannot hold: its rows
        are skipped then.
        """
        epoch, inside = divmod(step, self.steps_per_epoch)
        first = self._before(epoch) + self.plan.window_start(self.plan.locate(inside)[0])
        known = [*self._positions] if self._resumed is None else [self._resumed, *self._positions]
        usable = [position for at, position in known if at == epoch and position.first <= first]
        if not usable:
            return None
        nearest = max(usable, key=lambda position: position.first)
        found = {"epoch": epoch, "first": nearest.first, "state": nearest.state}
        try:
            return found if json.loads(json.dumps(found)) == found else None
        except (TypeError, ValueError):
            return None

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Begin the pass of an epoch where `source_state`, which returned this, was taken."""
        self._resumed = state["epoch"], Position(state["first"], state["state"])

    def _before(self, epoch: int) -> int:
        """Records of earlier epochs, for sources whose epochs go on in the data."""
        return epoch * self.steps_per_epoch * self.plan.options.global_batch if self._continues else 0
