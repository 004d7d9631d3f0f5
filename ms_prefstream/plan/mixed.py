"""Which row stands at a position of a mixed epoch: the schedule names the part, the part's own order the row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.plan.keys import Use, use_sequence
from ms_prefstream.plan.mixture import Mixture
from ms_prefstream.plan.permutation import KeyedPermutation

# The multipliers of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
_MULTIPLY_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_SECOND = np.uint64(0x94D049BB133111EB)


class MixedOrder:
    """The rows of a mixture at the positions of an epoch, in closed form.

    Each part is shuffled on its own, anew for each pass over it, so the shares stay exact wherever one looks: every
    global batch has its share of every part before it is sorted, and so has every window.

    Args:
        mixture: The parts.
        seed: The plan's seed.
        shuffle: True, False or "window"; for the last, a part's rows stay within their window of that part.
        global_batch: Rows of a step over all ranks. When shuffling, the positions of a step change places, lest a
            pattern in the turns (every second row, say) always falls to the same rank.
        window_rows: Rows of a window of the plan; a part's windows are its share of that.
    """

    def __init__(
        self, mixture: Mixture, *, seed: int, shuffle: bool | str, global_batch: int, window_rows: int
    ) -> None:
        self.mixture = mixture
        self._seed, self._shuffle, self._batch, self._window_rows = seed, shuffle, global_batch, window_rows

    def rows_at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows at these positions, (n,) int64; positions behind the last row begin again at the first."""
        if self._shuffle is not False:
            positions = self._dealt(epoch, positions)
        parts, numbers = self.mixture.schedule.locate(positions % self.mixture.rows)
        rows = np.empty_like(positions)
        for part in np.unique(parts).tolist():
            here = np.flatnonzero(parts == part)
            rows[here] = self.mixture.firsts[part] + self._rows_of(epoch, part, numbers[here])
        return rows

    def _rows_of(self, epoch: int, part: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of a part, counted from its first, that its turns with these numbers take."""
        turns, inside = np.divmod(numbers, self.mixture.sizes[part])  # which pass over the part, and where in it
        if self._shuffle is False:
            return inside
        order = self._near if self._shuffle == "window" else self._anywhere
        for turn in np.unique(turns).tolist():
            here = turns == turn
            inside[here] = order(epoch, part, turn, inside[here])
        return inside

    def _anywhere(self, epoch: int, part: int, turn: int, inside: NDArray[np.int64]) -> NDArray[np.int64]:
        """A permutation of the whole part."""
        key = use_sequence(self._seed, epoch, Use.ROWS_OF_PART, part, turn)
        return KeyedPermutation(self.mixture.sizes[part], key).row_of(inside)

    def _near(self, epoch: int, part: int, turn: int, inside: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part's windows change places, except for one that is not full; rows change places within them."""
        size, weights = self.mixture.sizes[part], self.mixture.weights
        share = max(1, self._window_rows * weights[part] // sum(weights))
        windows, rows = np.divmod(inside, share)
        full = size // share
        if full:
            key = use_sequence(self._seed, epoch, Use.WINDOWS_OF_PART, part, turn)
            movable = windows < full
            windows[movable] = KeyedPermutation(full, key).row_of(windows[movable])
        if share > 1:
            for window in np.unique(windows).tolist():
                here = windows == window
                key = use_sequence(self._seed, epoch, Use.ROWS_OF_PART_WINDOW, part, turn, window)
                rows[here] = KeyedPermutation(min(share, size - window * share), key).row_of(rows[here])
        found: NDArray[np.int64] = windows * share + rows
        return found

    def _dealt(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions that change places with these within their global batch."""
        if self._batch == 1:
            return positions
        steps, inside = np.divmod(positions, self._batch)
        found, which = np.unique(steps, return_inverse=True)
        mixed = (found[:, None] * self._batch + np.arange(self._batch)).astype(np.uint64)  # (steps, G)
        for key in use_sequence(self._seed, epoch, Use.TURNS_OF_STEP).generate_state(2, np.uint64):
            mixed = (mixed ^ key) * _MULTIPLY_FIRST
            mixed = (mixed ^ (mixed >> np.uint64(32))) * _MULTIPLY_SECOND
            mixed ^= mixed >> np.uint64(29)
        places = np.argsort(mixed, axis=1, kind="stable")
        dealt: NDArray[np.int64] = steps * self._batch + places[which, inside]
        return dealt
