"""Whose turn it is: exact shares of several parts by counting, known at any position without the ones before."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST_TOTAL = 2**30
"""Weights add up to about this much at most, so that products of two of them fit 64 bits."""


class _Node(NamedTuple):
    """A set of parts: a single one (`part`), or two sets that share its turns (`left` and `right`)."""

    weight: int
    first: int  # the lowest part in it
    part: int = -1
    left: Any = None
    right: Any = None

    def left_of(self, turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of this many turns are the left set's: its share, rounded; int64 of the same shape."""
        periods, rest = np.divmod(turns, self.weight)
        whole = periods * self.left.weight
        rounded: NDArray[np.int64] = whole + (2 * rest * self.left.weight + self.weight) // (2 * self.weight)
        return rounded


class Schedule:
    """Deals positions 0, 1, 2, … out to parts, so that each part has its share of every beginning of them.

    Two parts share by rounding: after n turns one has had round(n * share) of them. More parts form a tree of such
    pairs. So part and count at any position cost one division for each level of the tree, and after each sum of the
    weights every part has had exactly its weight in turns.

        weights 3, 2        positions  0 1 2 3 4 5 6 7 8 9
                            parts      0 1 0 1 0 0 1 0 1 0
                            numbers    0 0 1 1 2 3 2 4 3 5

    Args:
        weights: Positive whole numbers, as `whole_weights` gives them.

    Attributes:
        weights: Divided by their greatest common divisor.
        error_bound: No part is ever further from its share than this many rows: 0.5 with two parts, below 1 with
            three and four, below 1.7 with any number.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        divisor = int(np.gcd.reduce(np.array(weights, np.int64)))
        self.weights = tuple(weight // divisor for weight in weights)
        leaves = [_Node(weight, part, part) for part, weight in enumerate(self.weights)]
        self._root = min((_by_weight(leaves), _by_halves(leaves)), key=_error_bound)
        self.error_bound = float(_error_bound(self._root))

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each position its part, and how many turns that part had before; (n,) int64 each."""
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
        """How many of the first `positions` turns each part has."""
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
        """The position of a part's turn, its first one having number 0; the inverse of `locate`."""
        above: list[tuple[_Node, bool]] = []
        node = self._root
        while node.part != part:
            is_left = part in _parts(node.left)
            above.append((node, is_left))
            node = node.left if is_left else node.right
        for parent, is_left in reversed(above):
            half = parent.weight * (2 * number + 1)  # exact: Python's numbers have no largest one
            # The first n for which round(n * left / weight) is above the number; halves are rounded up.
            number = -(-half // (2 * parent.left.weight)) - 1 if is_left else half // (2 * parent.right.weight)
        return number


def whole_weights(weights: Sequence[float | Fraction]) -> tuple[int, ...]:
    """Positive whole numbers in the same proportions.

    Exact for what people write (0.7 and 0.3, 1/3, numbers of rows); otherwise right to one part in 10**9.

    Args:
        weights: Positive and finite.
    """
    exact = [_as_written(weight) for weight in weights]
    unit = Fraction(math.gcd(*(w.numerator for w in exact)), math.lcm(*(w.denominator for w in exact)))
    total = sum(exact)
    if total <= LARGEST_TOTAL * unit:
        return tuple(int(weight / unit) for weight in exact)
    return tuple(max(1, round(weight * LARGEST_TOTAL / total)) for weight in exact)


def _as_written(weight: float | Fraction) -> Fraction:
    """0.7 is meant as 7/10, although the float nearest to it is another number."""
    exact = Fraction(weight)
    simple = exact.limit_denominator(10**6)
    return simple if float(simple) == float(weight) else exact


def _by_weight(leaves: Sequence[_Node]) -> _Node:
    """The two lightest sets become one, again and again (Huffman's tree): heavy parts end up near the root."""
    heap = [(leaf.weight, leaf.first, leaf) for leaf in leaves]
    heapq.heapify(heap)
    while len(heap) > 1:
        light, heavy = heapq.heappop(heap)[2], heapq.heappop(heap)[2]
        node = _join(heavy, light)
        heapq.heappush(heap, (node.weight, node.first, node))
    return heap[0][2]


def _by_halves(leaves: Sequence[_Node]) -> _Node:
    """Half of the parts against the other half: no part is deeper than it must be."""
    if len(leaves) == 1:
        return leaves[0]
    middle = (len(leaves) + 1) // 2
    return _join(_by_halves(leaves[:middle]), _by_halves(leaves[middle:]))


def _join(left: _Node, right: _Node) -> _Node:
    return _Node(left.weight + right.weight, min(left.first, right.first), -1, left, right)


def _parts(node: _Node) -> set[int]:
    return {node.part} if node.part >= 0 else _parts(node.left) | _parts(node.right)


def _error_bound(node: _Node, error: Fraction = Fraction(0)) -> Fraction:
    """The largest error of any part: half a row from each rounding above it, of which only a share is passed on."""
    if node.part >= 0:
        return error
    shares = ((child, Fraction(child.weight, node.weight)) for child in (node.left, node.right))
    return max(_error_bound(child, error * share + Fraction(1, 2)) for child, share in shares)
