"""Bytes of the rows of a MindRecord file: encoded and decoded here, many rows at once, without MindSpore.

A row's arrays lie in a page as

    size u64 | column | column | ...         columns by name; size in little, what follows in big endian
    whole numbers  bytes u64 | count u32 | 2 bits a value: its width | the values, 1, 2, 4 or 8 bytes each
    other values   bytes u64 | the values

with values in little endian. The numbers that MindSpore can search for lie in pages of their own, in MessagePack.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PaddedBlock:
    """Rows that end with many repeats of one number, stored without most of the repeats.

    Attributes:
        block: (n, width), the beginning of each row. Width is a multiple of four, or the length itself.
        length: How many numbers a row has; the last column of the block is repeated up to it.
    """

    block: NDArray[Any]
    length: int

    def __len__(self) -> int:
        return len(self.block)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers."""
        return self.block.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all rows at full length."""
        return len(self) * self.length * self.block.itemsize


Arrays = NDArray[Any] | PaddedBlock | Sequence[NDArray[Any]]
"""One array a row: (n, length), the same without most of its padding, or n arrays of any length."""

_Pieces = tuple[bytes | memoryview, ...]
_KEPT = {  # size of a number -> width -> for each of its bytes whether it is stored, in one word
    4: np.array([0x1, 0x101, 0x1010101], "<u4"),
    8: np.array([0x1, 0x101, 0x1010101, 0x101010101010101], "<u8"),
}
_INTS: dict[str, np.dtype[Any]] = {"int32": np.dtype(np.int32), "int64": np.dtype(np.int64)}
_FOUR, _BIG_ENDIAN = np.arange(4), np.array([1 << 24, 1 << 16, 1 << 8, 1])
_BYTES, _SHIFTS = np.array([1, 2, 4, 8]), np.array([6, 4, 2, 0], np.uint8)


def encode(columns: Sequence[Arrays]) -> Iterator[bytes]:
    """Yields the bytes of each row, from two or more int32, int64 or float32 columns in the order of their names."""
    for fields in zip(*map(_encode_column, columns), strict=True):
        pieces = list(itertools.chain.from_iterable(fields))  # joined once: a padded row is long
        yield b"".join((sum(map(len, pieces)).to_bytes(8, "little"), *pieces))


def decode(blocks: Sequence[bytes], dtypes: Sequence[str]) -> list[list[NDArray[Any]]]:
    """Returns the values of some rows: for each column, in the order of their names, the array of each row.

    Raises:
        ValueError: A row is not made of these columns.
    """
    bounds = _column_bounds(blocks, len(dtypes))  # (columns, rows, 2)
    data = np.frombuffer(b"".join(blocks) + bytes(8), np.uint8)  # the zeros let every value be read as 8 bytes
    whole = [column for column, dtype in enumerate(dtypes) if dtype in _INTS]
    decoded = iter(_decode_numbers(data, bounds[whole].reshape(-1, 2)))
    values: list[list[NDArray[Any]]] = []
    for column, dtype in enumerate(dtypes):
        if dtype in _INTS:
            values.append([next(decoded).astype(_INTS[dtype], copy=False) for _ in blocks])
        else:
            kind = np.dtype(dtype).newbyteorder("<")
            values.append([data[begin:end].view(kind) for begin, end in bounds[column].tolist()])
    return values


def encode_searchable(names: Sequence[str], numbers: Sequence[int]) -> bytes:
    """Returns the numbers, from 0 on, that a row is searched by, in MessagePack; MindRecord needs at least one.

    There are at most 15 names of at most 31 letters.
    """
    pairs = list(zip(names, numbers, strict=True)) or [("id", 0)]
    packed = b"".join(bytes([0xA0 + len(name)]) + name.encode() + _pack_number(number) for name, number in pairs)
    return (1 + len(packed)).to_bytes(8, "little") + bytes([0x80 + len(pairs)]) + packed


def _pack_number(number: int) -> bytes:
    """Returns a number in 7 bits, or behind a byte that says its size in 8, 16, 32 or 64 bits."""
    if number < 1 << 7:
        return number.to_bytes(1, "big")
    power = next(power for power in range(4) if number < 1 << (8 << power))
    return bytes([0xCC + power]) + number.to_bytes(1 << power, "big")


def _encode_column(arrays: Arrays) -> list[_Pieces]:
    """Returns the pieces of one column for each row."""
    fields: list[_Pieces]
    if isinstance(arrays, PaddedBlock):
        fields = _encode_padded(arrays.block, arrays.length)
    elif arrays[0].dtype.kind == "f":
        fields = [(array.tobytes(),) for array in arrays]
    elif isinstance(arrays, np.ndarray):
        fields = _encode_padded(arrays, arrays.shape[1])
    else:
        counts = np.array([len(array) for array in arrays])
        fields = [
            (len(array).to_bytes(4, "big"), widths, stored)
            for array, widths, stored in zip(arrays, *_encode_numbers(np.concatenate(arrays), counts), strict=True)
        ]
    return [(sum(map(len, field)).to_bytes(8, "big"), *field) for field in fields]


def _encode_padded(block: NDArray[Any], length: int) -> list[_Pieces]:
    """Returns the pieces of rows that end with repeats of their last number; see `PaddedBlock`."""
    if len(block) > 1 and block.strides[0] == 0:  # one row, broadcast
        return _encode_padded(block[:1], length) * len(block)
    # Four widths share a byte: padding begins with a byte of its own, so that its bytes are the same in every row.
    bodies = np.minimum(-(-_body_ends(block != block[:, -1:]) // 4) * 4, length)
    body = np.concatenate([row[:end] for row, end in zip(block, bodies.tolist(), strict=True)])
    last = np.ascontiguousarray(block[:, -1])
    values, widths_of_last, count = last.tobytes(), _widths(last).tolist(), length.to_bytes(4, "big")
    paddings: dict[bytes, memoryview] = {}
    fields: list[_Pieces] = []
    for begin, end, width, widths, stored in zip(
        range(0, len(values), last.itemsize), bodies.tolist(), widths_of_last, *_encode_numbers(body, bodies),
        strict=True,
    ):  # fmt: skip
        value, rest = values[begin : begin + (1 << width)], length - end
        if value not in paddings:
            paddings[value] = memoryview(value * length)
        fields.append((count, widths, _repeated_width(width, rest), stored, paddings[value][: rest << width]))
    return fields


def _body_ends(differs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the end of the last true value of each row, 0 where none is true."""
    anywhere = np.flatnonzero(differs.any(axis=0))
    most = int(anywhere[-1]) + 1 if len(anywhere) else 1  # nothing beyond it needs to be searched
    backwards = differs[:, most - 1 :: -1]
    last = backwards.argmax(axis=1)
    return np.where(backwards[np.arange(len(last)), last], most - last, 0)


def _repeated_width(width: int, count: int) -> bytes:
    """Returns the widths of `count` numbers of the same width."""
    whole, rest = divmod(count, 4)
    four = width * 0b01010101
    return bytes([four]) * whole + (bytes([four & (0xFF00 >> 2 * rest) & 0xFF]) if rest else b"")


def _encode_numbers(values: NDArray[Any], counts: NDArray[np.int64]) -> tuple[list[bytes], list[bytes]]:
    """Returns the widths and the values of whole numbers as bytes of every row; `counts` belong to each row."""
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
    """Returns 0 for numbers that fit into a signed byte, 1 into two bytes, 2 into four, 3 for all others."""
    widths: NDArray[np.uint8] = (values != values.astype(np.int8)).view(np.uint8)
    for kind in (np.int16, np.int32)[: {4: 1, 8: 2}[values.itemsize]]:
        widths += (values != values.astype(kind)).view(np.uint8)
    return widths


def _cut(data: bytes, ends: NDArray[np.int64]) -> list[bytes]:
    bounds = [0, *ends.tolist()]
    return [data[begin:end] for begin, end in itertools.pairwise(bounds)]


def _column_bounds(blocks: Sequence[bytes], columns: int) -> NDArray[np.int64]:
    """Returns where each column of each row lies in all blocks together, (columns, rows, 2) int64."""
    bounds: list[list[tuple[int, int]]] = [[] for _ in range(columns)]
    at = 0
    for block in blocks:
        here, size = 8, len(block)
        if int.from_bytes(block[:8], "little") != size - 8:
            raise ValueError("a row has another size than it says")
        for column in bounds:
            end = here + 8 + int.from_bytes(block[here : here + 8], "big")
            column.append((at + here + 8, at + end))
            here = end
        if here != size:
            raise ValueError("a row has other columns")
        at += size
    return np.array(bounds, np.int64).reshape(columns, len(blocks), 2)


def _decode_numbers(data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Returns n arrays of whole numbers, int32 if all values are stored with 4 bytes or less, else int64.

    `bounds`, (n, 2), are where each array lies: count, widths, values.
    """
    begins, ends = bounds.T
    counts = data[begins[:, None] + _FOUR].astype(np.int64) @ _BIG_ENDIAN
    starts = begins + 4 + (counts + 3) // 4
    if (starts > ends).any():
        raise ValueError("a row claims more values than it has bytes")
    total = int(counts.sum())
    lasts = np.cumsum(counts)
    firsts = lasts - counts
    inside = np.arange(total) - np.repeat(firsts, counts)
    maps = np.repeat(begins + 4, counts)
    widths = data[maps + (inside >> 2)] >> _SHIFTS[inside & 3] & 3
    sizes = _BYTES[widths]
    stored = np.concatenate([[0], np.cumsum(sizes)])  # bytes before each value
    if (starts + stored[lasts] - stored[firsts] != ends).any():
        raise ValueError("a row's values have another size than it says")
    places = stored[:-1] + np.repeat(starts - stored[firsts], counts)
    dtype = np.dtype("<i8" if (widths == 3).any() else "<i4")
    words: NDArray[Any] = np.ndarray((len(data) - 7,), dtype, data, 0, (1,))  # one begins at every byte
    spare = (8 * dtype.itemsize - 8 * sizes).astype(dtype)
    decoded: NDArray[Any] = words[places] << spare >> spare  # the upper bytes belong to the next value
    return [decoded[first:last] for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)]
