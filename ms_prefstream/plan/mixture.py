"""Mixtures: an epoch of several weighted parts, its number of rows, and the row at each position."""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.checks import whole_number
from ms_prefstream.errors import NoUsableRowsError, OptionError
from ms_prefstream.plan.shuffle import MULTIPLY_FIRST, MULTIPLY_SECOND, KeyedPermutation, SeedUse, moved, use_sequence

LARGEST_TOTAL = 2**30
"""The largest sum of weights, so that products of two of them fit 64 bits."""


Stop: TypeAlias = Literal["first", "all"]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Parts with their sizes and weights. Row ids count through all parts, part by part.

        sizes 4, 10   weights 1, 1      stop="first": 8 rows, 4 + 4       stop="all": 20 rows, 10 + 10 (4 repeated)

    Attributes:
        sizes: Rows of each part.
        weights: Whole numbers in proportion to the shares of the parts.
        stop: When the epoch ends. ``first``: when a part has no row left for its turn. The epoch then has all rows of
            that part, and of the others as many as their shares allow, different ones each epoch when shuffling.
            ``all``: when every part was read completely; shorter parts are repeated, in a new order each time.
    """

    sizes: tuple[int, ...]
    weights: tuple[int, ...]
    stop: Stop = "first"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(whole_number("size of a part", size, 1) for size in self.sizes))
        object.__setattr__(self, "weights", tuple(whole_number("weight", weight, 1) for weight in self.weights))
        if not self.sizes or len(self.sizes) != len(self.weights):
            raise OptionError(f"{len(self.weights)} weights for {len(self.sizes)} parts; expected one for each part.")
        if self.stop not in ("first", "all"):
            raise OptionError(f"stop={self.stop!r} is not allowed; expected 'first' or 'all'.")

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The part of each position."""
        return Schedule(self.weights)

    @functools.cached_property
    def rows(self) -> int:
        """Rows of an epoch, repeated ones included."""
        parts = range(len(self.sizes))
        if self.stop == "first":
            return min(self.schedule.position(part, self.sizes[part]) for part in parts)
        return max(self.schedule.position(part, self.sizes[part] - 1) for part in parts) + 1

    @functools.cached_property
    def left_out_and_repeated(self) -> tuple[int, int]:
        """How many rows of all parts an epoch does not reach, and how many of its rows have come before."""
        found = list(zip(self.sizes, self.schedule.counts(self.rows), strict=True))
        return sum(max(0, size - turns) for size, turns in found), sum(max(0, turns - size) for size, turns in found)

    @functools.cached_property
    def firsts(self) -> tuple[int, ...]:
        """The row id of each part's first row, and at the end the number of rows of all parts."""
        return tuple(sum(self.sizes[:part]) for part in range(len(self.sizes) + 1))

    def over(self, usable: NDArray[np.bool_]) -> Mixture:
        """Returns the same weights over the usable rows alone; `usable` is (rows of all parts,) bool.

        Raises:
            NoUsableRowsError: A part has none.
        """
        before = np.concatenate([[0], np.cumsum(usable)])[list(self.firsts)]
        sizes: list[int] = np.diff(before).tolist()
        if not all(sizes):
            raise NoUsableRowsError(
                f"The length index marks all rows of part {sizes.index(0)} of the mix (counted from 0) as unusable, so "
                "the mix cannot be made. Leave the part out, or correct its rows."
            )
        return replace(self, sizes=tuple(sizes))


class MixedOrder:
    """The rows of a mixture at the positions of an epoch, in closed form.

    Each part is shuffled separately, again for each pass over it, so the shares are exact everywhere: every global
    batch has its share of every part before it is sorted, and so has every window.

    Args:
        mixture: The parts.
        seed: The plan's seed.
        shuffle: True, False or "window"; for the last, a part's rows stay within their window of that part.
        global_batch: Rows of a step over all ranks. When shuffling, the positions of a step are permuted. Otherwise a
            pattern in the turns (every second row, say) would always go to the same rank.
        window_rows: Rows of a window of the plan; a part's windows have its share of them.
        order_noise: Share of a part's rows by which one may move without shuffling; see `shuffle.moved`.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        seed: int,
        shuffle: bool | str,
        global_batch: int,
        window_rows: int,
        order_noise: float = 0.0,
    ) -> None:
        self.mixture, self._order_noise = mixture, order_noise
        self._seed, self._shuffle, self._batch, self._window_rows = seed, shuffle, global_batch, window_rows

    def rows_at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows at these positions, (n,) int64; positions after the last row wrap to the first."""
        parts, numbers = self.mixture.schedule.locate(self.turns(epoch, positions) % self.mixture.rows)
        rows = np.empty_like(positions)
        for part in np.unique(parts).tolist():
            here = np.flatnonzero(parts == part)
            rows[here] = self.mixture.firsts[part] + self._rows_of(epoch, part, numbers[here])
        return rows

    def turns(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the numbers of the turns at these positions; those from the mixture's `rows` on are repeats."""
        return positions if self._shuffle is False else self._dealt(epoch, positions)

    def _rows_of(self, epoch: int, part: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows of a part, counted from its first, for its turns with these numbers."""
        turns, inside = np.divmod(numbers, self.mixture.sizes[part])  # the pass over the part, and the place in it
        if self._shuffle is False and not self._order_noise:
            return inside
        order = {"window": self._near, True: self._anywhere, False: self._moved}[self._shuffle]
        for turn in np.unique(turns).tolist():
            here = turns == turn
            inside[here] = order(epoch, part, turn, inside[here])
        return inside

    def _anywhere(self, epoch: int, part: int, turn: int, inside: NDArray[np.int64]) -> NDArray[np.int64]:
        """Permutes the whole part."""
        key = use_sequence(self._seed, epoch, SeedUse.ROWS_OF_PART, part, turn)
        return KeyedPermutation(self.mixture.sizes[part], key).row_of(inside)

    def _near(self, epoch: int, part: int, turn: int, inside: NDArray[np.int64]) -> NDArray[np.int64]:
        """Permutes the part's windows, except for one that is not full, and the rows within each."""
        size, weights = self.mixture.sizes[part], self.mixture.weights
        share = max(1, self._window_rows * weights[part] // sum(weights))
        windows, rows = np.divmod(inside, share)
        full = size // share
        if full:
            key = use_sequence(self._seed, epoch, SeedUse.WINDOWS_OF_PART, part, turn)
            movable = windows < full
            windows[movable] = KeyedPermutation(full, key).row_of(windows[movable])
        if share > 1:
            for window in np.unique(windows).tolist():
                here = windows == window
                key = use_sequence(self._seed, epoch, SeedUse.ROWS_OF_PART_WINDOW, part, turn, window)
                rows[here] = KeyedPermutation(min(share, size - window * share), key).row_of(rows[here])
        found: NDArray[np.int64] = windows * share + rows
        return found

    def _moved(self, epoch: int, part: int, turn: int, inside: NDArray[np.int64]) -> NDArray[np.int64]:
        """Moves the rows of the part a little."""
        return moved(inside, self.mixture.sizes[part], self._order_noise, self._seed, epoch, part, turn)

    def _dealt(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Permutes positions within their global batch."""
        if self._batch == 1:
            return positions
        steps, inside = np.divmod(positions, self._batch)
        found, which = np.unique(steps, return_inverse=True)
        mixed = (found[:, None] * self._batch + np.arange(self._batch)).astype(np.uint64)  # (steps, G)
        for key in use_sequence(self._seed, epoch, SeedUse.TURNS_OF_STEP).generate_state(2, np.uint64):
            mixed = (mixed ^ key) * MULTIPLY_FIRST
            mixed = (mixed ^ (mixed >> np.uint64(32))) * MULTIPLY_SECOND
            mixed ^= mixed >> np.uint64(29)
        places = np.argsort(mixed, axis=1, kind="stable")
        dealt: NDArray[np.int64] = steps * self._batch + places[which, inside]
        return dealt


class Schedule:
    """The part of each position 0, 1, 2, …, such that each part has its share of the first n for every n.

    Two parts share by rounding: after n turns one has had round(n * share) of them. More parts form a tree of such
    pairs. So part and count at any position cost one division for each level of the tree. After as many turns as the
    sum of the weights, every part has had exactly its weight in turns.

        weights 3, 2        positions  0 1 2 3 4 5 6 7 8 9
                            parts      0 1 0 1 0 0 1 0 1 0
                            numbers    0 0 1 1 2 3 2 4 3 5

    Args:
        weights: Positive whole numbers, as `whole_weights` gives them.

    Attributes:
        weights: Divided by their greatest common divisor.
        error_bound: The largest distance of any part from its share, in rows: 0.5 with two parts, below 1 with three
            and four, below 1.7 with any number.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        divisor = int(np.gcd.reduce(np.array(weights, np.int64)))
        self.weights = tuple(weight // divisor for weight in weights)
        leaves = [_Node(weight, part, part) for part, weight in enumerate(self.weights)]
        self._root = min((_by_weight(leaves), _by_halves(leaves)), key=_error_bound)
        self.error_bound = float(_error_bound(self._root))

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the part of each position, and how many turns that part had before; (n,) int64 each."""
        parts, numbers = np.empty_like(positions), np.empty_like(positions)
        todo = [(self._root, np.arange(positions.size), positions)]
        while todo:
            node, where, turns = todo.pop()
            if node.part >= 0:
                parts[where], numbers[where] = node.part, turns
                continue
            before = node.left_of(turns)
            is_left = node.left_of(turns + 1) > before
            todo.append((node.left, where[is_left], before[is_left]))
            todo.append((node.right, where[~is_left], (turns - before)[~is_left]))
        return parts, numbers

    def counts(self, positions: int) -> list[int]:
        """Returns how many of the first `positions` turns each part has."""
        counts = [0] * len(self.weights)
        todo = [(self._root, positions)]
        while todo:
            node, turns = todo.pop()
            if node.part >= 0:
                counts[node.part] = turns
                continue
            left = int(node.left_of(np.array(turns, np.int64)))
            todo += [(node.left, left), (node.right, turns - left)]
        return counts

    def position(self, part: int, number: int) -> int:
        """Returns the position of a part's turn, counted from 0; the inverse of `locate`."""
        above: list[tuple[_Node, bool]] = []
        node = self._root
        while node.part != part:
            is_left = part in _parts(node.left)
            above.append((node, is_left))
            node = node.left if is_left else node.right
        for parent, is_left in reversed(above):
            half = parent.weight * (2 * number + 1)  # exact: Python's integers are unbounded
            # The first n for which round(n * left / weight) is above the number; halves are rounded up.
            number = -(-half // (2 * parent.left.weight)) - 1 if is_left else half // (2 * parent.right.weight)
        return number


def whole_weights(weights: Sequence[float | Fraction]) -> tuple[int, ...]:
    """Returns positive whole numbers in the same proportions as these positive, finite weights.

    They are exact for common weights (0.7 and 0.3, 1/3, numbers of rows), otherwise within one part in 10**9.
    """
    exact = [_as_written(weight) for weight in weights]
    unit = Fraction(math.gcd(*(w.numerator for w in exact)), math.lcm(*(w.denominator for w in exact)))
    total = sum(exact)
    if total <= LARGEST_TOTAL * unit:
        return tuple(int(weight / unit) for weight in exact)
    return tuple(max(1, round(weight * LARGEST_TOTAL / total)) for weight in exact)


def _as_written(weight: float | Fraction) -> Fraction:
    """Returns the simple fraction that a float stands for: 0.7 means 7/10, although the nearest float differs."""
    exact = Fraction(weight)
    simple = exact.limit_denominator(10**6)
    return simple if float(simple) == float(weight) else exact


class _Node(NamedTuple):
    """A set of parts: a single one (`part`), or two sets (`left` and `right`) that share its turns."""

    weight: int
    first: int  # the lowest part in it
    part: int = -1
    left: Any = None
    right: Any = None

    def left_of(self, turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns how many of this many turns the left set has: its share, rounded; int64 of the same shape."""
        periods, rest = np.divmod(turns, self.weight)
        whole = periods * self.left.weight
        rounded: NDArray[np.int64] = whole + (2 * rest * self.left.weight + self.weight) // (2 * self.weight)
        return rounded


def _by_weight(leaves: Sequence[_Node]) -> _Node:
    """Joins the two lightest sets until one is left (Huffman's tree): heavy parts end up near the root."""
    heap = [(leaf.weight, leaf.first, leaf) for leaf in leaves]
    heapq.heapify(heap)
    while len(heap) > 1:
        light, heavy = heapq.heappop(heap)[2], heapq.heappop(heap)[2]
        node = _join(heavy, light)
        heapq.heappush(heap, (node.weight, node.first, node))
    return heap[0][2]


def _by_halves(leaves: Sequence[_Node]) -> _Node:
    """Joins half of the parts with the other half: no part is deeper than necessary."""
    if len(leaves) == 1:
        return leaves[0]
    middle = (len(leaves) + 1) // 2
    return _join(_by_halves(leaves[:middle]), _by_halves(leaves[middle:]))


def _join(left: _Node, right: _Node) -> _Node:
    return _Node(left.weight + right.weight, min(left.first, right.first), -1, left, right)


def _parts(node: _Node) -> set[int]:
    return {node.part} if node.part >= 0 else _parts(node.left) | _parts(node.right)


def _error_bound(node: _Node, error: Fraction = Fraction(0)) -> Fraction:
    """Returns the largest error of any part: half a row from each rounding above it, scaled by the shares below."""
    if node.part >= 0:
        return error
    shares = ((child, Fraction(child.weight, node.weight)) for child in (node.left, node.right))
    return max(_error_bound(child, error * share + Fraction(1, 2)) for child, share in shares)
