"""The file of a length index: .npy arrays one behind the other.

    lengths (N, 2) int32 | keys (N,) int32 | verdict (N,) uint8 | about (n,) uint8 | checksum (1,) uint32

`numpy.load(path, mmap_mode="r")` gives the lengths; `open` and `numpy.load` of the file object, once an array, gives
all of them. `about` is JSON: the fingerprint and the numbers of the reasons. The checksum is the CRC-32 of every byte
before its own array.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import OptionError, SourceError, StateError
from ms_prefstream.lengths.index import CODES, LengthIndex, Measured

VERSION = 1
_BLOCK = 1 << 22
_format: Any = np.lib.format


class Contents(NamedTuple):
    """What a file holds; the arrays are mapped."""

    lengths: NDArray[np.int32]
    keys: NDArray[np.int32]
    verdict: NDArray[np.uint8]
    fingerprint: dict[str, Any]
    checksum: str


def write_contents(path: str, rows: int, parts: Iterable[Measured], fingerprint: Mapping[str, Any]) -> None:
    """Write the file aside and put it in place in one move.

    Args:
        path: The file; replaced if it exists.
        rows: How many rows the parts have together.
        parts: Measured rows, in order.
        fingerprint: Plain values for JSON.

    Raises:
        SourceError: The file cannot be written.
    """
    aside = f"{path}.tmp"  # one process at a time builds an index, see `Journal`
    try:
        try:
            _write(aside, rows, parts, fingerprint)
            os.replace(aside, path)
        except BaseException:
            if os.path.exists(aside):
                os.unlink(aside)
            raise
    except OSError as error:
        raise unwritable(path, error) from error


def read_contents(path: str) -> Contents:
    """Map a file and prove that it is whole.

    Raises:
        StateError: It is damaged, of another version, or no length index.
        OSError: It cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            checksum = _check_sum(file)
            lengths, keys, verdict, about = arrays = [_mapped(file) for _ in range(4)]
            known = json.loads(bytes(about))
            version, fingerprint = known["version"], dict(known["fingerprint"])
            shapes = (len(keys), 2) == lengths.shape and keys.shape == verdict.shape
            if not shapes or [array.dtype for array in arrays] != [np.int32, np.int32, np.uint8, np.uint8]:
                raise ValueError("the arrays do not belong together")
        except Exception as error:  # numpy's reader of headers raises many kinds
            raise StateError(
                f"{path} is damaged or no length index ({error}). Delete it and build the index anew."
            ) from error
        if version != VERSION:
            raise StateError(
                f"{path} is a length index of version {version}; expected version {VERSION}. Delete it and build the "
                "index anew."
            )
    return Contents(lengths, keys, verdict, fingerprint, checksum)


def unwritable(path: str, error: OSError) -> SourceError:
    """The sentence for a file that cannot be written."""
    return SourceError(
        f"the length index {path} cannot be written: {error.strerror}. Give the index a path in a folder that exists "
        "and can be written to."
    )


def _write(path: str, rows: int, parts: Iterable[Measured], fingerprint: Mapping[str, Any]) -> None:
    heads = [_header((rows, 2), np.int32), _header((rows,), np.int32), _header((rows,), np.uint8)]
    begins, end = [], 0
    for head, width in zip(heads, (8, 4, 1), strict=True):
        begins.append(end + len(head))
        end += len(head) + width * rows
    with open(path, "w+b") as file:
        for head, begin in zip(heads, begins, strict=True):
            file.seek(begin - len(head))
            file.write(head)
        done = 0
        for part in parts:
            arrays: tuple[NDArray[Any], ...] = part.lengths, part.keys, part.verdict
            for array, begin in zip(arrays, begins, strict=True):
                file.seek(begin + array[:1].nbytes * done)
                file.write(array.tobytes())
            done += len(part.verdict)
        assert done == rows, f"{done} of {rows} rows were measured"
        about = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "reasons": {str(reason): code for reason, code in CODES.items()},
        }
        file.seek(end)
        np.save(file, np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8))
        checksum = _checksum(file, file.tell())
        file.write(_SUM_HEAD + checksum.to_bytes(4, "little"))
        file.flush()
        os.fsync(file.fileno())


def _header(shape: tuple[int, ...], dtype: Any) -> bytes:
    head = io.BytesIO()
    described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    _format.write_array_header_1_0(head, described)
    return head.getvalue()


def _mapped(file: Any) -> NDArray[Any]:
    """The array that begins at the file's position, mapped; the position moves behind it."""
    if _format.read_magic(file) != (1, 0):
        raise ValueError("an array has another header")
    shape, _, dtype = _format.read_array_header_1_0(file)
    begin = file.tell()
    array: NDArray[Any] = np.asarray(np.memmap(file, dtype, "r", begin, shape))
    file.seek(begin + array.nbytes)
    return array


_SUM_HEAD = _header((1,), "<u4")


def _check_sum(file: Any) -> str:
    """The checksum of a file that was proven to be what was written; the position goes to its beginning."""
    size = os.fstat(file.fileno()).st_size - len(_SUM_HEAD) - 4
    if size < 0:
        raise ValueError("it is too short")
    file.seek(size)
    tail, checksum = file.read(), _checksum(file, size)
    if tail != _SUM_HEAD + checksum.to_bytes(4, "little"):
        raise ValueError("its checksum does not fit")
    file.seek(0)
    return f"{checksum:08x}"


def _checksum(file: Any, size: int) -> int:
    """CRC-32 of the first bytes of a file; its position is kept."""
    position, found = file.tell(), 0
    file.seek(0)
    while size:
        block = file.read(min(size, _BLOCK))
        if not block:
            break
        found, size = zlib.crc32(block, found), size - len(block)
    file.seek(position)
    return found


SUFFIX = ".mprefidx"


class Named(Protocol):
    """A source, as far as the place of its index depends on it; files have `paths` as well."""

    @property
    def name(self) -> str: ...


def beside(source: Named) -> str | None:
    """Where the index of a source lies if no path is given: beside its one file; None when it has not one file."""
    paths: Sequence[str] = getattr(source, "paths", ())
    if len(paths) == 1:
        return paths[0] + SUFFIX
    return source.name + SUFFIX if not paths and os.path.isfile(source.name) else None


def index_path(source: Named, given: str | os.PathLike[str] | None) -> str:
    """The path of an index that is going to be written.

    Args:
        source: The rows.
        given: What the user gave.

    Raises:
        OptionError: Nothing is given, and the source is not one file.
    """
    path = beside(source) if given is None else os.fspath(given)
    if path is None:
        raise OptionError(
            f"{source.name} is not a single file, so its length index has no place of its own. Give the index a path, "
            f'such as "train{SUFFIX}".'
        )
    return path


def open_index(path: str | os.PathLike[str], fingerprint: Mapping[str, Any], rows: int) -> LengthIndex:
    """The index in a file.

    Args:
        path: The file.
        fingerprint: What decides about lengths and verdicts now, by name.
        rows: How many rows there are now.

    Raises:
        StateError: There is none, it is damaged, or it was built for other data or settings; names what differs with
            its old and new value.
    """
    path = os.fspath(path)
    try:
        lengths, keys, verdict, known, checksum = read_contents(path)
    except FileNotFoundError:
        raise StateError(
            f"there is no length index {path}. Build it with stream.build_index() or `ms-prefstream index`."
        ) from None
    except OSError as error:
        raise StateError(f"the length index {path} cannot be read: {error.strerror}.") from error
    old, new = {"rows": len(verdict), **known}, {"rows": rows, **json.loads(json.dumps(dict(fingerprint)))}
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r} now"
        for name in dict.fromkeys([*new, *old])
        if name not in old or name not in new or old[name] != new[name]
    ]
    if changes:
        raise StateError(
            f"the length index {path} was built for other data or settings: {'; '.join(changes)}. Build it anew "
            "(stream.build_index() or `ms-prefstream index`), use the former settings, or pass index=None."
        )
    return LengthIndex(path=path, lengths=lengths, keys=keys, verdict=verdict, fingerprint=known, checksum=checksum)


def valid_index(path: str | os.PathLike[str] | None, fingerprint: Mapping[str, Any], rows: int) -> LengthIndex | None:
    """The index in a file, None when there is no such file (``index="auto"``).

    Raises:
        StateError: The file is there and is damaged or stale; using another order than last time must not go unseen.
    """
    if path is None or not os.path.exists(path):
        return None
    return open_index(path, fingerprint, rows)
