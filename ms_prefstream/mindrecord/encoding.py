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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.mindrecord.schema import VALUES
from ms_prefstream.sample import runs


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
SPARE = 40
"""Bytes after the last row that `decode` may look at: four values of eight bytes, and those of the last of them."""

_FOURS_TOGETHER = 1 << 13  # the working arrays stay in the cache, and their memory is used again

# By the byte that holds the widths of four values:
_FOUR_BYTES = 1 << (np.arange(256)[:, None] >> np.array([6, 4, 2, 0]) & 3)  # (256, 4), the bytes of each value
_STORED = np.concatenate([np.zeros((256, 1), np.int64), np.cumsum(_FOUR_BYTES, axis=1)], axis=1)
"""(256, 5), the bytes of the first values, from none to all four."""
_BEFORE, _ALL_FOUR = _STORED[:, :4].copy(), _STORED[:, 4].copy()
_WIDEST = (_FOUR_BYTES == 8).any(axis=1)  # (256,), whether one has eight bytes
_SPARE_BITS = {size: (8 * size - 8 * _FOUR_BYTES).astype(f"<i{size}") for size in (4, 8)}
"""Size of a word -> (256, 4), the bits of a word that do not belong to each value."""


def encode(columns: Sequence[Arrays]) -> Iterator[bytes]:
    """Yields the bytes of each row, from two or more columns in the order of their names."""
    for fields in zip(*map(_encode_column, columns), strict=True):
        pieces = list(itertools.chain.from_iterable(fields))  # joined once: a padded row is long
        yield b"".join((sum(map(len, pieces)).to_bytes(8, "little"), *pieces))


class Flat(NamedTuple):
    """One column of n rows.

    Attributes:
        values: The values of all rows, in any order; all int32 columns share it.
        begins: (n,) int64, where the values of each row begin.
        lengths: (n,) int64, how many there are.
    """

    values: NDArray[Any]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]


def decode(
    data: NDArray[np.uint8], begins: NDArray[np.int64], sizes: NDArray[np.int64], dtypes: Sequence[str]
) -> list[Flat]:
    """Returns the values of n rows: each column, in the order of their names.

    Args:
        data: The bytes of all rows, in any order, and at least `SPARE` bytes after them.
        begins: (n,), where each row begins.
        sizes: (n,), the bytes of each row.
        dtypes: Of each column: ``int32``, ``int64``, ``float32`` or ``bytes``.

    Raises:
        ValueError: A row is not made of these columns.
    """
    bounds = _column_bounds(data, begins, sizes, len(dtypes))  # (columns, n, 2)
    whole = [column for column, dtype in enumerate(dtypes) if dtype.startswith("int")]
    numbers = _decode_numbers(data, bounds[whole].reshape(-1, 2))
    shared = numbers.values.astype(np.int32, copy=False)
    columns = zip(*(part.reshape(-1, len(sizes)) for part in numbers[1:]), strict=True)
    found = []
    for dtype, (firsts, ends) in zip(dtypes, bounds.swapaxes(1, 2), strict=True):
        if dtype == "int32":
            found.append(Flat(shared, *next(columns)))
        elif dtype == "int64":
            own = _own_values(numbers.values, *next(columns))
            found.append(own._replace(values=own.values.astype(np.int64)))
        else:
            kind = np.dtype(VALUES.get(dtype, dtype)).newbyteorder("<")
            counts, rest = np.divmod(ends - firsts, kind.itemsize)
            if rest.any():
                raise ValueError("a row's values have another size than it says")
            found.append(_own_values(_words(data, kind), firsts, counts, kind.itemsize))
    return found


def _own_values(values: NDArray[Any], begins: NDArray[np.int64], lengths: NDArray[np.int64], apart: int = 1) -> Flat:
    """Returns values that are not shared with other columns; those of a row are this many entries apart."""
    ends = np.cumsum(lengths)
    places = np.repeat(begins - apart * (ends - lengths), lengths) + apart * np.arange(int(lengths.sum()))
    return Flat(values[places], ends - lengths, lengths)


def encode_searchable(names: Sequence[str], numbers: Sequence[int]) -> bytes:
    """Returns the numbers, from 0 on, that a row is searched by, in MessagePack; MindRecord needs at least one.

    There are at most 15 names of at most 31 letters.
    """
    pairs = list(zip(names, numbers, strict=True)) or [("id", 0)]
    packed = b"".join(bytes([0xA0 + len(name)]) + name.encode() + _pack_number(number) for name, number in pairs)
    return (1 + len(packed)).to_bytes(8, "little") + bytes([0x80 + len(pairs)]) + packed


def _pack_number(number: int) -> bytes:
    """Returns a number in 7 bits, or after a byte that says its size in 8, 16, 32 or 64 bits."""
    if number < 1 << 7:
        return number.to_bytes(1, "big")
    power = next(power for power in range(4) if number < 1 << (8 << power))
    return bytes([0xCC + power]) + number.to_bytes(1 << power, "big")


def _encode_column(arrays: Arrays) -> list[_Pieces]:
    """Returns the pieces of one column for each row."""
    fields: list[_Pieces]
    if isinstance(arrays, PaddedBlock):
        fields = _encode_padded(arrays.block, arrays.length)
    elif arrays[0].dtype.kind in "fu":
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


def _words(data: NDArray[np.uint8], kind: np.dtype[Any] | str) -> NDArray[Any]:
    """Returns the bytes as numbers of this kind, of which one begins at every byte."""
    kind = np.dtype(kind)
    return np.ndarray((len(data) - kind.itemsize + 1,), kind, data, 0, (1,))


def _column_bounds(
    data: NDArray[np.uint8], begins: NDArray[np.int64], sizes: NDArray[np.int64], columns: int
) -> NDArray[np.int64]:
    """Returns where each column of each row lies, (columns, rows, 2) int64."""
    bounds = np.empty((columns, len(sizes), 2), np.int64)
    if (_words(data, "<u8")[begins].view(np.int64) != sizes - 8).any():
        raise ValueError("a row has another size than it says")
    here, ends, lengths = begins + 8, begins + sizes, _words(data, ">u8")
    for column in bounds:
        length = lengths[here].astype(np.int64)
        here = here + 8
        if ((length < 0) | (length > ends - here)).any():
            raise ValueError("a row has other columns")
        column[:, 0] = here
        here = here + length
        column[:, 1] = here
    if (here != ends).any():
        raise ValueError("a row has other columns")
    return bounds


def _decode_numbers(data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> Flat:
    """Returns n arrays of whole numbers, int32 if all values are stored with 4 bytes or less, else int64.

    `bounds`, (n, 2), are where each array lies: count, widths, values. Four values have their widths in one byte, and
    are decoded together; an array whose length is no multiple of four is followed by up to three meaningless values.
    """
    order = np.argsort(bounds[:, 0])  # what is decoded together then lies together
    begins, ends = bounds[order].T
    counts = _words(data, ">u4")[begins].astype(np.int64)
    fours = (counts + 3) >> 2
    starts = begins + 4 + fours
    if (starts > ends).any():
        raise ValueError("a row claims more values than it has bytes")
    lasts = np.concatenate([[0], np.cumsum(fours)])
    total = int(lasts[-1])
    values: NDArray[Any] = np.empty((total, 4), np.int32)
    cuts = [0, *np.searchsorted(lasts, np.arange(_FOURS_TOGETHER, total, _FOURS_TOGETHER)).tolist(), len(counts)]
    for part in [slice(first, end) for first, end in itertools.pairwise(cuts) if first < end]:
        maps, places = _four_by_four(data, begins[part], starts[part], ends[part], counts[part])
        if values.itemsize == 4 and _WIDEST.take(maps).any():
            values = values.astype(np.int64)
        first, end = int(begins[part.start]), int(ends[part.stop - 1]) + SPARE
        words = _words(data[first:end], values.dtype.newbyteorder("<")).copy()  # numpy is slow where words overlap
        found = words.take((places - first)[:, None] + _BEFORE.take(maps, axis=0))  # (fours, 4)
        bits = _SPARE_BITS[values.itemsize].take(maps, axis=0)  # the upper bytes belong to the next value
        found <<= bits
        np.right_shift(found, bits, out=values[lasts[part.start] : lasts[part.stop]])
    firsts, lengths = np.empty_like(counts), np.empty_like(counts)
    firsts[order], lengths[order] = 4 * lasts[:-1], counts
    return Flat(values.reshape(-1), firsts, lengths)


def _four_by_four(
    data: NDArray[np.uint8],
    begins: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Returns of each four values of some arrays the byte with their widths, and where the first of them lies.

    Args:
        data: All bytes.
        begins: Where the arrays begin, with the count of their values.
        starts: Where their values begin.
        ends: Where they end.
        counts: How many values they have.
    """
    fours = (counts + 3) >> 2
    lasts = np.cumsum(fours)
    firsts = lasts - fours
    maps = data[runs(begins + 4, fours)].astype(np.intp)
    stored = np.concatenate([[0], np.cumsum(_ALL_FOUR.take(maps))])  # bytes before each four
    sizes = stored[lasts] - stored[firsts]
    rest = counts & 3
    fewer = np.flatnonzero(rest)  # arrays whose last four are fewer
    ending = maps[lasts[fewer] - 1]
    sizes[fewer] -= _ALL_FOUR[ending] - _STORED[ending, rest[fewer]]
    if (starts + sizes != ends).any():
        raise ValueError("a row's values have another size than it says")
    return maps, stored[:-1] + np.repeat(starts - stored[firsts], fours)
