"""The file of a length index: consecutive .npy arrays.

    lengths (N, 2) int32 | keys (N,) int32 | verdict (N,) uint8 | about (n,) uint8 | checksum (1,) uint32

`numpy.load(path, mmap_mode="r")` gives the lengths; `open` and `numpy.load` of the file object, once an array, gives
all of them. `about` is JSON: the fingerprint and the numbers of the reasons. The checksum is the CRC-32 of all bytes
before its own array.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import OptionError, SourceError, StateError
from ms_prefstream.lengths.index import CODES, LengthIndex, Measured

SUFFIX = ".mprefidx"
VERSION = 1
_format: Any = np.lib.format


def beside(source: Any) -> str | None:
    """Returns the default path of a source's index: beside its file; None if it has not exactly one file."""
    paths: Sequence[str] = getattr(source, "paths", ()) or [source.name]
    return paths[0] + SUFFIX if len(paths) == 1 and os.path.isfile(paths[0]) else None


def index_path(source: Any, given: str | os.PathLike[str] | None) -> str:
    """Returns the path of an index that is going to be written: as given, else beside the source's only file."""
    path = beside(source) if given is None else os.fspath(given)
    if path is None:
        raise OptionError(
            f"{source.name} is not a single file, so its length index has no place of its own. Give the index a path, "
            f'such as "train{SUFFIX}".'
        )
    return path


def open_index(path: str | os.PathLike[str], fingerprint: Mapping[str, Any], rows: int) -> LengthIndex:
    """Opens an index that must belong to the present data and settings.

    Args:
        path: The file.
        fingerprint: Everything that determines lengths and verdicts now, by name.
        rows: The number of rows now.

    Raises:
        StateError: The file does not exist, is damaged, or was built for other data or settings; names the differences
            with their old and new values.
    """
    path = os.fspath(path)
    try:
        index = read_index(path)
    except FileNotFoundError:
        raise StateError(
            f"there is no length index {path}. Build it with stream.build_index() or `ms-prefstream index`."
        ) from None
    except OSError as error:
        raise StateError(f"the length index {path} cannot be read: {error.strerror}.") from error
    old = {"rows": index.rows, **index.fingerprint}
    new = {"rows": rows, **json.loads(json.dumps(dict(fingerprint)))}
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r} now"
        for name in dict.fromkeys([*new, *old])
        if name not in old or name not in new or old[name] != new[name]
    ]
    if changes:
        raise StateError(
            f"the length index {path} was built for other data or settings: {'; '.join(changes)}. Build it again "
            "(stream.build_index() or `ms-prefstream index`), use the former settings, or pass index=None."
        )
    return index


def read_index(path: str) -> LengthIndex:
    """Maps a file after checking that it is complete.

    Raises:
        StateError: It is damaged, of another version, or no length index.
        OSError: It cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            checksum = _verified_checksum(file)
            lengths, keys, verdict, about = arrays = [_mapped(file) for _ in range(4)]
            known = json.loads(bytes(about))
            version, fingerprint = known["version"], dict(known["fingerprint"])
            shapes = (len(keys), 2) == lengths.shape and keys.shape == verdict.shape
            if not shapes or [array.dtype for array in arrays] != [np.int32, np.int32, np.uint8, np.uint8]:
                raise ValueError("the arrays do not belong together")
        except Exception as error:  # numpy's reader of headers raises many kinds
            raise StateError(
                f"{path} is damaged or no length index ({error}). Delete it and build the index again."
            ) from error
    if version != VERSION:
        raise StateError(
            f"{path} is a length index of version {version}; expected version {VERSION}. Delete it and build the "
            "index again."
        )
    return LengthIndex(
        path=path, lengths=lengths, keys=keys, verdict=verdict, fingerprint=fingerprint, checksum=checksum
    )


def write_contents(path: str, parts: Iterable[Measured], fingerprint: Mapping[str, Any]) -> None:
    """Writes the measured rows and the fingerprint, plain values for JSON, to a file, atomically.

    Raises:
        SourceError: The file cannot be written.
    """
    reasons = {str(reason): code for reason, code in CODES.items()}
    about = json.dumps({"version": VERSION, "fingerprint": fingerprint, "reasons": reasons}, sort_keys=True).encode()
    lengths, keys, verdict, _ = zip(*parts, strict=True)
    arrays = *map(np.concatenate, (lengths, keys, verdict)), np.frombuffer(about, np.uint8)
    body = b"".join(map(_npy_bytes, arrays))
    temporary = f"{path}.tmp"  # one process at a time builds an index, see `Journal`
    try:
        with open(temporary, "wb") as file:
            file.write(body)
            file.write(_checksum_bytes(zlib.crc32(body)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def unwritable(path: str, error: OSError) -> SourceError:
    """Returns the error for an index that cannot be written."""
    return SourceError(
        f"the length index {path} cannot be written: {error.strerror}. Give the index a path in a folder that exists "
        "and can be written to."
    )


def _npy_bytes(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _checksum_bytes(checksum: int) -> bytes:
    return _npy_bytes(np.array([checksum], "<u4"))


def _mapped(file: BinaryIO) -> NDArray[Any]:
    """Maps the array that begins at the file's position, and moves the position to its end."""
    if _format.read_magic(file) != (1, 0):
        raise ValueError("an array has another header")
    shape, _, dtype = _format.read_array_header_1_0(file)
    begin = file.tell()
    array: NDArray[Any] = np.asarray(np.memmap(file, dtype, "r", begin, shape))
    file.seek(begin + array.nbytes)
    return array


def _verified_checksum(file: BinaryIO) -> str:
    """Returns the checksum of a file after comparing it with the contents; moves the position to the beginning."""
    content = np.memmap(file, np.uint8, "r").data
    end = max(0, len(content) - len(_checksum_bytes(0)))
    checksum = zlib.crc32(content[:end])
    if content[end:] != _checksum_bytes(checksum):
        raise ValueError("its checksum does not fit")
    file.seek(0)
    return f"{checksum:08x}"
