"""Values to the bytes of rows, many rows together; `ms_prefstream.cache.pages` shows how they lie and reads them.

MindSpore's own writer takes 50 nanoseconds a number, more than a millisecond for a padded row of six columns of 4,096.
Here numpy takes whole batches, and what fills a row up to its length is not looked at number by number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Filled:
    """Rows of numbers that end with one number, many times.

    Attributes:
        block: (n, width), where each row begins. Width is a multiple of four, or the length itself.
        length: How many numbers a row has; the last one in the block stands in all places behind it.
    """

    block: NDArray[Any]
    length: int

    def __len__(self) -> int:
        return len(self.block)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        rest = self.length - self.block.shape[1]
        return (np.concatenate([row, np.repeat(row[-1:], rest)]) for row in self.block)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers."""
        return self.block.dtype

    @property
    def nbytes(self) -> int:
        """Of all rows, written out."""
        return len(self) * self.length * self.block.itemsize


Arrays = NDArray[Any] | Filled | Sequence[NDArray[Any]]
"""One array a row: (n, length), the same in short, or n arrays of any length."""

_Pieces = tuple[bytes | memoryview, ...]
_KEPT = {  # size of a number -> width -> for each of its bytes whether it is stored, in one word
    4: np.array([0x1, 0x101, 0x1010101], "<u4"),
    8: np.array([0x1, 0x101, 0x1010101, 0x101010101010101], "<u8"),
}


def encode(columns: Sequence[Arrays]) -> Iterator[bytes]:
    """The bytes of some rows, one row after the other.

    Args:
        columns: int32, int64 or float32 arrays for two columns or more, in the order of the columns' names.
    """
    for fields in zip(*map(_column, columns), strict=True):
        pieces = list(itertools.chain.from_iterable(fields))  # joined once: a padded row is long
        yield b"".join((sum(map(len, pieces)).to_bytes(8, "little"), *pieces))


def encode_numbers(names: Sequence[str], numbers: Sequence[int]) -> bytes:
    """What a row is searched by, in MessagePack; MindRecord wants a number where there is none.

    Args:
        names: Names of at most 31 letters, 15 of them at most.
        numbers: From 0 on.
    """
    pairs = list(zip(names, numbers, strict=True)) or [("id", 0)]
    packed = b"".join(bytes([0xA0 + len(name)]) + name.encode() + _number(number) for name, number in pairs)
    return (1 + len(packed)).to_bytes(8, "little") + bytes([0x80 + len(pairs)]) + packed


def _number(number: int) -> bytes:
    """The shortest of 7, 8, 16, 32 and 64 bits."""
    if number < 1 << 7:
        return number.to_bytes(1, "big")
    power = next(power for power in range(4) if number < 1 << (8 << power))
    return bytes([0xCC + power]) + number.to_bytes(1 << power, "big")


def _column(arrays: Arrays) -> list[_Pieces]:
    """A column's part of each row."""
    fields: list[_Pieces]
    if isinstance(arrays, Filled):
        fields = _filled(arrays.block, arrays.length)
    elif arrays[0].dtype.kind == "f":
        fields = [(array.tobytes(),) for array in arrays]
    elif isinstance(arrays, np.ndarray):
        fields = _filled(arrays, arrays.shape[1])
    else:
        counts = np.array([len(array) for array in arrays])
        fields = [
            (len(array).to_bytes(4, "big"), widths, stored)
            for array, widths, stored in zip(arrays, *_numbers(np.concatenate(arrays), counts), strict=True)
        ]
    return [(sum(map(len, field)).to_bytes(8, "big"), *field) for field in fields]


def _filled(block: NDArray[Any], length: int) -> list[_Pieces]:
    """What stands before the number that a row ends with, and how often that does; see `Filled`."""
    if len(block) > 1 and block.strides[0] == 0:  # one row, broadcast
        return _filled(block[:1], length) * len(block)
    # Four widths share a byte: what fills begins with a byte of its own, so that it is the same in every row.
    bodies = np.minimum(-(-_ends(block != block[:, -1:]) // 4) * 4, length)
    body = np.concatenate([row[:end] for row, end in zip(block, bodies.tolist(), strict=True)])
    last = np.ascontiguousarray(block[:, -1])
    values, widths_of_last, count = last.tobytes(), _widths(last).tolist(), length.to_bytes(4, "big")
    fillings: dict[bytes, memoryview] = {}
    fields: list[_Pieces] = []
    for begin, end, width, widths, stored in zip(
        range(0, len(values), last.itemsize), bodies.tolist(), widths_of_last, *_numbers(body, bodies), strict=True
    ):
        value, rest = values[begin : begin + (1 << width)], length - end
        if value not in fillings:
            fillings[value] = memoryview(value * length)
        filling = fillings[value][: rest << width]
        fields.append((count, widths, _same_widths(width, rest), stored, filling))
    return fields


def _ends(differs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where the last true value of each row ends, 0 where none is true."""
    anywhere = np.flatnonzero(differs.any(axis=0))
    most = int(anywhere[-1]) + 1 if len(anywhere) else 1  # beyond it nothing need be searched
    backwards = differs[:, most - 1 :: -1]
    last = backwards.argmax(axis=1)
    return np.where(backwards[np.arange(len(last)), last], most - last, 0)


def _same_widths(width: int, count: int) -> bytes:
    """The widths of `count` numbers that have the same."""
    whole, rest = divmod(count, 4)
    four = width * 0b01010101
    return bytes([four]) * whole + (bytes([four & (0xFF00 >> 2 * rest) & 0xFF]) if rest else b"")


def _numbers(values: NDArray[Any], counts: NDArray[np.int64]) -> tuple[list[bytes], list[bytes]]:
    """Widths and values of whole numbers.

    Args:
        values: Those of all rows, one after the other.
        counts: How many belong to each row.
    """
    widths = _widths(values)
    sizes = np.left_shift(np.uint8(1), widths)
    if widths.any():
        kept = _KEPT[values.itemsize][widths].view(np.bool_)  # the lower bytes of each value
        stored = values.view(np.uint8)[kept].tobytes()
    else:
        stored = values.astype(np.int8).tobytes()
    lasts, groups = np.cumsum(counts), -(-counts // 4)
    group_ends = np.cumsum(groups)
    if (counts % 4).any():  # each row begins with a byte of its own
        places = np.arange(len(values)) + np.repeat(4 * (group_ends - groups) - (lasts - counts), counts)
        widths_of_groups = np.zeros(4 * int(group_ends[-1]), np.uint8)
        widths_of_groups[places] = widths
        widths = widths_of_groups
    first, second, third, fourth = widths.reshape(-1, 4).T
    packed = (first << 6 | second << 4 | third << 2 | fourth).tobytes()
    return _cut(packed, group_ends), _cut(stored, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[lasts])


def _widths(values: NDArray[Any]) -> NDArray[np.uint8]:
    """0 for numbers that fit into a signed byte, 1 into two bytes, 2 into four, 3 for all others."""
    widths: NDArray[np.uint8] = (values != values.astype(np.int8)).view(np.uint8)
    for kind in (np.int16, np.int32)[: {4: 1, 8: 2}[values.itemsize]]:
        widths += (values != values.astype(kind)).view(np.uint8)
    return widths


def _cut(data: bytes, ends: NDArray[np.int64]) -> list[bytes]:
    bounds = [0, *ends.tolist()]
    return [data[begin:end] for begin, end in itertools.pairwise(bounds)]
