"""The file of a length index: consecutive .npy arrays.

    lengths (N, 2) int32 | keys (N,) int32 | verdict (N,) uint8 | about (n,) uint8 | checksum (1,) uint32

An index that was built with `order_by` has a further array before `about`: order (N,) float64.

`numpy.load(path)` gives the lengths; `open` and `numpy.load` of the file object, once an array, gives all of them.
`about` is JSON: the fingerprint and the numbers of the reasons. The checksum is the CRC-32 of all bytes before its own
array. Every header has 128 bytes, so the number of rows and the size of the file give the place of everything.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ms_prefstream.disk import (
    MOST_BYTES,
    cause_and_remedy,
    cause_of,
    check_own,
    open_regular,
    parse_json,
    shown,
    written,
)
from ms_prefstream.errors import OptionError, SourceError, StateError, printable
from ms_prefstream.lengths.index import CODES, GOOD, LATER_CODES, LengthIndex, Measured, first_wrong

SUFFIX = ".mprefidx"
VERSION = 1
_WHAT = "the length index"
_HEADER = 128
_ROW, _ORDER = 13, 8  # bytes of a row
_CHECKSUM = _HEADER + 4
_FIRST = re.compile(rb"\x93NUMPY\x01\x00v\x00\{'descr': '<i4', 'fortran_order': False, 'shape': \((\d{1,15}), 2\)")
_MOST_CHANGES = 10  # that an error names
_ROWS_AT_ONCE = 2**17  # that are read and checked together
_BYTES_AT_ONCE = 2**20
_format: Any = np.lib.format


class _Versioned(msgspec.Struct, frozen=True):
    version: int


class _About(msgspec.Struct, frozen=True):
    fingerprint: dict[str, str | int | float | bool | None]
    reasons: dict[str, int]


def beside(source: Any) -> str | None:
    """Returns the default path of a source's index: beside its file; None if it has not exactly one file."""
    if getattr(source, "selection", ""):  # some rows of it: they have an index beside the same file
        source = source.parts[0]
    paths: Sequence[str] = getattr(source, "paths", ()) or [source.name]
    return paths[0] + SUFFIX if len(paths) == 1 and os.path.isfile(paths[0]) else None


def index_path(source: Any, given: str | os.PathLike[str] | None) -> str:
    """Returns the path of an index that is going to be written: as given, else beside the source's only file."""
    if given == "" or not isinstance(given, (str, os.PathLike, type(None))):
        raise OptionError(f"index is {given!r}; expected the path of a file.")
    path = beside(source) if given is None else os.fspath(given)
    if path is None:
        raise OptionError(
            f"{source.name} is not a single file, so its length index has no place of its own. Give the index a path, "
            f'such as "train{SUFFIX}".'
        )
    return path


def open_index(
    path: str | os.PathLike[str], fingerprint: Mapping[str, Any], rows: int, ignored: Collection[str] = ()
) -> LengthIndex:
    """Opens an index that must belong to the present data and settings.

    Args:
        path: The file.
        fingerprint: Everything that determines lengths and verdicts now, by name.
        rows: The number of rows now.
        ignored: Names in the fingerprint that are not compared.

    Raises:
        StateError: The file does not exist, is damaged, or was built for other data or settings; names the differences
            with their old and new values.
    """
    index = read_index(os.fspath(path), rows)
    _check_same(index.path, index.fingerprint, json.loads(json.dumps(dict(fingerprint))), ignored)
    return index


def changes_of(path: str, fingerprint: Mapping[str, Any], rows: int, ignored: Collection[str] = ()) -> dict[str, str]:
    """Returns how the data or settings of an index differ from the present ones, by name; reads only its description.

    Arguments as for `open_index`.

    Raises:
        StateError: The file cannot be read, or is no length index.
    """
    with _opened(path) as file:
        found, size, _ = _sizes(file)
        about = _parsed(_about(file, size), path)
    now = json.loads(json.dumps(dict(fingerprint)))
    return differences({"rows": found, **about.fingerprint}, {"rows": rows, **now}, ignored)


def read_index(path: str, rows: int) -> LengthIndex:
    """Reads the index of a source of so many rows, after checking that it is complete.

    Raises:
        StateError: It does not exist, cannot be read, is damaged, of another version or of another number of rows, or
            is no length index.
    """
    with _opened(path) as file:
        found, size, has_order = _sizes(file)
        _check_same(path, {"rows": found}, {"rows": rows})
        before = os.fstat(file.fileno())
        checksum = _checked(file, before.st_size)
        file.seek(before.st_size - _CHECKSUM - size)
        about = _parsed(file.read(size), path)
        sides, reasons = _read_rows(file, rows)
        order = _read_order(file, rows) if has_order else None
        after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise ValueError("it was written to while it was read")
    return LengthIndex(
        path=path, sides=sides, reasons=reasons, fingerprint=about.fingerprint, checksum=f"{checksum:08x}", order=order
    )


def rows_of(path: str) -> int:
    """Returns the number of rows of an index.

    Raises:
        StateError: It does not exist, cannot be read, or is no length index.
    """
    with _opened(path) as file:
        return _sizes(file)[0]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Opens an index for reading; an OSError or ValueError of the body becomes a `StateError`."""
    try:
        with open_regular(path, StateError, _WHAT) as file:
            yield file
    except FileNotFoundError:
        raise StateError(
            f"there is no length index {shown(path)}. Build it with mps.build_index or `ms-prefstream index`."
        ) from None
    except OSError as error:
        raise StateError(f"the length index {shown(path)} cannot be read: {cause_and_remedy(error)}.") from error
    except ValueError as error:
        raise StateError(
            f"{shown(path)} is damaged or no length index ({error}). Delete it and build the index again."
        ) from error


def _checked(file: IO[bytes], size: int) -> int:
    """Returns the checksum of an index of so many bytes; raises ValueError if it is not the one that is stored."""
    checksum, end = 0, size - _CHECKSUM
    file.seek(0)
    for begin in range(0, end, _BYTES_AT_ONCE):
        checksum = zlib.crc32(file.read(min(_BYTES_AT_ONCE, end - begin)), checksum)
    if file.read(_CHECKSUM) != _checksum_bytes(checksum):
        raise ValueError("its checksum does not fit")
    return checksum


def _read_rows(file: IO[bytes], rows: int) -> tuple[NDArray[np.integer[Any]], NDArray[np.uint8]]:
    """Returns `sides` and `reasons` of `LengthIndex`; needs little more memory than they take.

    Raises:
        ValueError: The file holds a row that `measure` cannot have given, or ends too early.
    """
    sides: NDArray[np.integer[Any]] = np.empty((rows, 2), np.uint16)
    reasons = [np.empty(0, np.uint8)]
    for begin in range(0, rows, _ROWS_AT_ONCE):
        end, places = min(begin + _ROWS_AT_ONCE, rows), _headers(rows, 1)
        lengths, keys, verdict = (_some(file, next(places)[0], dtype, begin, end) for dtype in ("2<i4", "<i4", "|u1"))
        wrong = first_wrong(lengths, keys, verdict)
        if wrong is not None:
            found = f"lengths {lengths[wrong].tolist()}, key {keys[wrong]}, verdict {verdict[wrong]}"
            raise ValueError(f"row {begin + wrong} has {found}, which do not belong together")
        if lengths.max() > np.iinfo(sides.dtype).max:
            sides = sides.astype(np.int32)
        sides[begin:end] = lengths
        reasons.append(verdict[verdict != GOOD])
    codes = np.concatenate(reasons)
    sides.flags.writeable = codes.flags.writeable = False
    return sides, codes


def _read_order(file: IO[bytes], rows: int) -> NDArray[np.float64]:
    """Returns `order` of `LengthIndex`.

    Raises:
        ValueError: It holds a value that no row can have, or ends too early.
    """
    *_, (header, _), _ = _headers(rows, 1, True)
    order = _some(file, header, "<f8", 0, rows)
    if not np.isfinite(order).all():
        raise ValueError("a value that rows are ordered by is not finite")
    return order


def _some(file: IO[bytes], header: int, dtype: str, begin: int, end: int) -> NDArray[Any]:
    """Returns some entries of the array whose header is at an offset."""
    entry = np.dtype(dtype).itemsize
    file.seek(header + _HEADER + begin * entry)
    return np.frombuffer(file.read((end - begin) * entry), dtype, end - begin)


def check_replaceable(path: str) -> None:
    """Checks that an index may be written to a path: it holds nothing, an empty file, or an index (see `is_index`).

    Raises:
        OptionError: Something else is there.
    """
    check_own(path, is_index, OptionError, "index:")


def is_index(file: IO[bytes]) -> bool:
    """Returns whether an open file is an index by its size, headers and description; its rows may be damaged."""
    try:
        _, size, _ = _sizes(file)
        _parsed(_about(file, size), "")
    except (ValueError, StateError):
        return False
    return True


def write_contents(path: str, parts: Iterable[Measured], fingerprint: Mapping[str, Any]) -> None:
    """Writes the measured rows and the fingerprint, plain values for JSON, to a file, atomically.

    Raises:
        SourceError: The file cannot be written.
    """
    parts = list(parts)
    has_order = parts[0].order is not None
    names = ("lengths", "keys", "verdict", *(("order",) if has_order else ()))
    columns: list[Sequence[NDArray[Any]]] = [[getattr(part, name) for part in parts] for name in names]
    unused = LATER_CODES.difference(*(np.unique(part.verdict).tolist() for part in parts))
    reasons = {str(reason): code for reason, code in CODES.items() if code not in unused}
    about = json.dumps({"version": VERSION, "fingerprint": fingerprint, "reasons": reasons}, sort_keys=True).encode()
    columns.append([np.frombuffer(about, np.uint8)])
    checksum, rows = 0, sum(len(part.keys) for part in parts)
    with written(path, SourceError, _WHAT) as file:
        for (_, header), arrays in zip(_headers(rows, len(about), has_order), columns, strict=True):
            contents = (np.ascontiguousarray(array).data.cast("B") for array in arrays if array.size)
            for piece in itertools.chain[Any]([header], contents):
                checksum = zlib.crc32(piece, checksum)
                file.write(piece)
        file.write(_checksum_bytes(checksum))


def unwritable(path: str, error: OSError | ValueError) -> SourceError:
    """Returns the error for an index that cannot be written."""
    return SourceError(
        f"the length index {shown(path)} cannot be written: {cause_of(error)}. Give the index a path in a folder that "
        "exists and can be written to."
    )


def _check_same(path: str, old: Mapping[str, Any], new: Mapping[str, Any], ignored: Collection[str] = ()) -> None:
    """Raises `StateError` if an index was built for other data or settings, given by name."""
    if changes := differences(old, new, ignored):
        raise StateError(
            f"the length index {shown(path)} was built for other data or settings: {listed(changes)}. Build it again "
            "(mps.build_index or `ms-prefstream index`), use the former settings, or leave index out."
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], ignored: Collection[str] = ()) -> dict[str, str]:
    """Returns the names of values that differ, each with a clause about its old and new value."""
    return {
        name: f"{printable(name)} was {printable(repr(old.get(name)))} and is {printable(repr(new.get(name)))} now"
        for name in dict.fromkeys([*new, *old])
        if name not in ignored and (name not in old or name not in new or old[name] != new[name])
    }


def listed(changes: Mapping[str, str]) -> str:
    """Returns the first changes as part of a sentence."""
    return "; ".join(itertools.islice(changes.values(), _MOST_CHANGES))


def _sizes(file: IO[bytes]) -> tuple[int, int, bool]:
    """Returns the rows of an index, the bytes of its description and whether it has an order; checks every header.

    Raises:
        ValueError: It is no length index, or not whole.
    """
    number = file.fileno()
    first = _FIRST.match(os.pread(number, _HEADER, 0))
    if first is None:
        raise ValueError("it does not begin with an array of lengths")
    size, rows = os.fstat(number).st_size, int(first[1])
    about = size - _ROW * rows - 4 * _HEADER - _CHECKSUM
    order = _npy_header("<f8", (rows,))
    has_order = os.pread(number, _HEADER, 3 * _HEADER + _ROW * rows) == order
    if has_order:
        about -= _HEADER + _ORDER * rows
    if not 0 < about <= MOST_BYTES:
        raise ValueError(f"it has {size:,} bytes, which do not fit its {rows:,} rows")
    for offset, header in _headers(rows, about, has_order):
        if os.pread(number, _HEADER, offset) != header:
            raise ValueError(f"the header of an array was expected at byte {offset:,}")
    return rows, about, has_order


def _about(file: IO[bytes], size: int) -> bytes:
    """Returns the description of an index, of so many bytes."""
    return os.pread(file.fileno(), size, os.fstat(file.fileno()).st_size - _CHECKSUM - size)


def _headers(rows: int, about: int, has_order: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yields the offset and the bytes of the header of each array but the checksum."""
    offset = 0
    order = (("<f8", (rows,)),) if has_order else ()
    for dtype, shape in (("<i4", (rows, 2)), ("<i4", (rows,)), ("|u1", (rows,)), *order, ("|u1", (about,))):
        yield offset, _npy_header(dtype, shape)
        offset += _HEADER + np.dtype(dtype).itemsize * math.prod(shape)


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    _format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _checksum_bytes(checksum: int) -> bytes:
    return _npy_header("<u4", (1,)) + checksum.to_bytes(4, "little")


def _parsed(about: bytes, path: str) -> _About:
    version = parse_json(about, _Versioned, path, StateError, _WHAT).version
    if version != VERSION:
        raise StateError(
            f"{shown(path)} is a length index of version {version}; expected version {VERSION}. Delete it and build "
            "the index again."
        )
    return parse_json(about, _About, path, StateError, _WHAT)
