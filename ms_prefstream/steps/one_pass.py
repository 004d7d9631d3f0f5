"""Steps over a one-pass source: the same plan, with one window of rows in memory."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from ms_prefstream.errors import SourceError
from ms_prefstream.load.loader import Load
from ms_prefstream.load.one_pass import PassWindow, Position
from ms_prefstream.plan.packed import PackedWindows
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.windows import WindowedPlan
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.sample import Batch
from ms_prefstream.steps.planned import WindowedSteps

_POSITIONS = 64  # windows that may be read ahead of the step that a state is taken for


class OnePassSteps:
    """The batches of one rank, epoch by epoch, in order.

    Every rank reads all rows and uses its share. Resuming skips rows without formatting or tokenising them.

    Args:
        plan: Made with ``one_pass=True``, so that the rows of a window are consecutive in the source.
        ranks: Which share of each step is loaded here.
        open_window: Opens a pass; takes the arguments of `PassWindow` from `first` on.
        continues: Whether an epoch continues in the data where the previous one ended.
        loader: Makes the loader of a pass.
        bad_rows: Makes what decides about the bad rows of a pass.
        collate: Samples, or packs of them, to a batch.
        column_names: The names of the arrays that `collate` returns.
        kind: Makes the steps of a pass.
    """

    def __init__(
        self,
        plan: WindowedPlan | PackedWindows,
        ranks: Ranks,
        open_window: Callable[..., PassWindow],
        continues: bool,
        loader: Callable[[PassWindow], Load],
        bad_rows: Callable[[PassWindow], BadRows],
        collate: Callable[..., Batch],
        column_names: Sequence[str],
        kind: type[WindowedSteps] = WindowedSteps,
    ) -> None:
        self.plan = plan
        self.column_names = list(column_names)
        self.steps_per_epoch = plan.steps_per_epoch
        self._ranks = ranks
        self._open_window, self._continues = open_window, continues
        self._loader, self._bad_rows, self._collate, self._kind = loader, bad_rows, collate, kind
        self._positions: deque[tuple[int, Position]] = deque(maxlen=_POSITIONS)  # (epoch, where its windows began)
        self._resumed: tuple[int, Position] | None = None

    def start(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from a step on."""
        first = self.plan.window_start(self.plan.locate(step)[0])
        before = self._before(epoch)
        known = None
        if self._resumed is not None and self._resumed[0] == epoch and self._resumed[1].first <= before + first:
            known = self._resumed[1]
        window = self._open_window(first, before, known, lambda position: self._positions.append((epoch, position)))
        steps = self._kind(
            self.plan, self._ranks, self._loader(window), self._bad_rows(window), self._collate, self.column_names
        )
        for index in range(step, self.steps_per_epoch):
            yield steps[epoch * self.steps_per_epoch + index]

    def rows(self, epoch: int, step: int, resolved: bool = False) -> NoReturn:
        """Raises a `SourceError`: the rows of a step are only known once they are read."""
        raise SourceError(
            "a source that is read from the front has no row ids to look up. Pass a plain JSON Lines file or a list "
            "to ask for the rows of a step."
        )

    def source_state(self, step: int) -> dict[str, Any] | None:
        """Returns the source's own state at the beginning of a step's window, or the last one known before it.

        Plain values for JSON. None if the source has no state of its own, or one that JSON cannot hold: a resumed run
        then skips its rows.

        Args:
            step: Absolute.
        """
        epoch, inside = divmod(step, self.steps_per_epoch)
        first = self._before(epoch) + self.plan.window_start(self.plan.locate(inside)[0])
        known = [*self._positions] if self._resumed is None else [self._resumed, *self._positions]
        usable = [position for at, position in known if at == epoch and position.first <= first]
        if not usable:
            return None
        nearest = max(usable, key=lambda position: position.first)
        found = {"epoch": epoch, **nearest._asdict()}
        try:
            return found if json.loads(json.dumps(found)) == found else None
        except (TypeError, ValueError):
            return None

    def resume_source(self, state: Mapping[str, Any]) -> None:
        """Begin the pass of an epoch where `source_state`, which returned `state`, was taken."""
        position = {name: value for name, value in state.items() if name != "epoch"}
        self._resumed = state["epoch"], Position(**position)

    def _before(self, epoch: int) -> int:
        """Returns the number of records of earlier epochs, if the source continues; else 0."""
        return epoch * self.steps_per_epoch * self.plan.options.global_batch if self._continues else 0
