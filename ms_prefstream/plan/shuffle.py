"""Seed sequences by use, and permutations of 0..n-1 that are computed instead of stored."""

from __future__ import annotations

import enum
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

LARGEST = 2**60
_ROUNDS = 10  # with fewer, domains of a handful of rows are visibly uneven
_BLOCK = 16384  # rows at a time: the working arrays stay in the second-level cache
_HALF = np.uint64(32)
# The multipliers of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
MULTIPLY_FIRST = np.uint64(0xBF58476D1CE4E5B9)
MULTIPLY_SECOND = np.uint64(0x94D049BB133111EB)


class SeedUse(enum.IntEnum):
    """The use of a seed sequence; two uses never share random numbers."""

    BATCH_ORDER = 1
    ROWS_OF_WINDOW = 2
    WINDOW_ORDER = 3
    ROWS_OF_PART = 4
    ROWS_OF_PART_WINDOW = 5
    WINDOWS_OF_PART = 6
    TURNS_OF_STEP = 7
    PACKING = 100
    MADE_TO_FIT = 101
    LEFT_OUT = 102
    ROWS_OF_WIDTH = 103
    STEPS_BY_BUDGET = 104
    DRAWN_FOR_SHAPES = 105
    ORDER_NOISE = 106


def epoch_sequence(seed: int, epoch: int) -> np.random.SeedSequence:
    """Returns the seed of one epoch's permutation of all rows."""
    return np.random.SeedSequence([seed, epoch])


def window_sequence(seed: int, epoch: int, window: int, use: SeedUse, *which: int) -> np.random.SeedSequence:
    """Returns the seed of one use in one window, or in a shard of it.

    `SeedSequence` pads with zeros, so ``[seed, epoch, 0]`` alone would equal ``[seed, epoch]``: window 0 would repeat
    the epoch's key. The use is a spawn key, which follows the padding and keeps them apart.
    """
    return np.random.SeedSequence([seed, epoch, window], spawn_key=(int(use), *which))


def use_sequence(seed: int, epoch: int, use: SeedUse, *which: int) -> np.random.SeedSequence:
    """Returns the seed of one use in an epoch, or in a part of it: of a mixture, a pass over it, a width."""
    return np.random.SeedSequence([seed, epoch], spawn_key=(int(use), *which))


def keyed_order(count: int, sequence: np.random.SeedSequence) -> NDArray[np.int64]:
    """Returns a permutation of a few items, (count,) int64: the order of their random 64-bit words.

    `numpy.random.Generator.permutation` may change between numpy versions; the words of a `SeedSequence` may not.
    """
    return np.argsort(sequence.generate_state(count, np.uint64), kind="stable").astype(np.int64, copy=False)


def moved(
    positions: NDArray[np.int64], count: int, share: float, seed: int, epoch: int, *which: int
) -> NDArray[np.int64]:
    """Returns which of `count` items in order are at these positions of an epoch that moves each by at most a share.

    Items are permuted within stretches of the order; where these begin differs from epoch to epoch.

        count 8, share 0.3      an epoch 0 | 3 1 2 | 4 6 5 | 7      another one 1 2 0 | 4 3 5 | 7 6

    Args:
        positions: (n,) places in the epoch, each below `count`.
        count: The number of items.
        share: An item moves by at most this share of `count`, 0 to 1.
        seed: The plan's seed.
        epoch: The epoch.
        which: The part of a mixture and the pass over it.
    """
    stretch = min(int(share * count) + 1, count)
    if stretch == 1:
        return positions
    first = use_sequence(seed, epoch, SeedUse.ORDER_NOISE, *which, 0).generate_state(1, np.uint64)
    shift = int(first[0] % np.uint64(stretch)) if stretch < count else 0
    stretches = (positions + shift) // stretch
    found = np.empty_like(positions)
    for number in np.unique(stretches).tolist():
        here = stretches == number
        begin, end = max(0, number * stretch - shift), min(count, (number + 1) * stretch - shift)
        key = use_sequence(seed, epoch, SeedUse.ORDER_NOISE, *which, 1 + number)
        found[here] = begin + KeyedPermutation(end - begin, key).row_of(positions[here] - begin)
    return found


class KeyedPermutation:
    """A bijection of 0..n-1, chosen by a key, in constant memory.

    A Feistel network over a rectangle of a x b >= n cells, with a and b close to the square root of n. In each round a
    keyed hash of one coordinate is added to the other, modulo its side, which is invertible. The few results outside
    0..n-1 (fewer than a) are mapped again until they are inside (cycle walking: Black and Rogaway, "Ciphers with
    Arbitrary Finite Domains", 2002).

        positions   0  1  2  3  4  5  6
        row_of      4  0  6  1  5  2  3

    Args:
        n: The number of rows, 1..2**60.
        key: The seed sequence that selects the permutation.
    """

    def __init__(self, n: int, key: np.random.SeedSequence) -> None:
        if not 1 <= n <= LARGEST:
            raise ValueError(f"a permutation needs 1 to 2**60 rows, not {n}")
        self.n = n
        self._tall = math.isqrt(n - 1) + 1
        self._wide = -(-n // self._tall)
        self._keys = key.generate_state(_ROUNDS, np.uint64)

    def row_of(self, positions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Returns the rows at these positions; int64 of the same shape."""
        flat = positions.reshape(-1)
        if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= self.n):
            raise ValueError(f"positions lie in 0..{self.n - 1}, found {flat.min()}..{flat.max()}")
        out = np.empty(flat.size, np.int64)
        limit = np.uint64(self.n)
        for start in range(0, flat.size, _BLOCK):
            block = self._encrypt(flat[start : start + _BLOCK].astype(np.uint64))
            outside = np.flatnonzero(block >= limit)
            while outside.size:
                block[outside] = self._encrypt(block[outside])
                outside = outside[block[outside] >= limit]
            out[start : start + block.size] = block
        return out.reshape(positions.shape)

    def _encrypt(self, cells: Words) -> Words:
        """Maps each cell of the rectangle to another one."""
        wide = np.uint64(self._wide)
        high = cells // wide
        low = cells - high * wide
        for turn in range(_ROUNDS):
            if turn % 2:
                low = _add(low, self._hash(high, turn, self._wide), self._wide)
            else:
                high = _add(high, self._hash(low, turn, self._tall), self._tall)
        return high * wide + low

    def _hash(self, half: Words, turn: int, size: int) -> Words:
        """Hashes each half to a number in 0..size-1: two keyed multiplications, then the upper 32 bits scaled down."""
        mixed: Words = half ^ self._keys[turn]
        mixed *= MULTIPLY_FIRST
        mixed ^= mixed >> _HALF
        mixed *= MULTIPLY_SECOND
        mixed >>= _HALF
        mixed *= np.uint64(size)
        mixed >>= _HALF
        return mixed


def _add(half: Words, step: Words, size: int) -> Words:
    """Adds modulo size, both below size: unsigned numbers wrap, so the wrong candidate is the huge one."""
    total = half + step
    reduced: Words = np.minimum(total, total - np.uint64(size))
    return reduced
