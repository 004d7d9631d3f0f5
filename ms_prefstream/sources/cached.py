"""A cache that `write_cache` wrote, as a source: its rows are finished samples, read in any order."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.disk import below, cause_of
from ms_prefstream.errors import CacheError, DroppedRowError, RowError, SourceError, StateError
from ms_prefstream.lengths.index import GOOD, REASONS, LengthIndex, measure
from ms_prefstream.lengths.index_file import read_index
from ms_prefstream.mindrecord.encoding import SPARE
from ms_prefstream.mindrecord.files import NPY_HEAD, note_of, npy_begin, part_name
from ms_prefstream.mindrecord.manifest import (
    LENGTHS,
    LOGPS,
    PLACES,
    Manifest,
    check_files,
    read_manifest,
    without_reference,
)
from ms_prefstream.mindrecord.megatron import MEGATRON, PREFIX
from ms_prefstream.mindrecord.ragged import has_pairs, ragged_block
from ms_prefstream.mindrecord.sidecar import PLACE
from ms_prefstream.sample import Block, Ready
from ms_prefstream.sources.base import as_row_ids, sources_in
from ms_prefstream.sources.files import (
    Handle,
    Handles,
    Ranges,
    check_unchanged,
    ranges_of,
    read_at,
    read_ranges,
    stamp_of,
)
from ms_prefstream.sources.store import is_url

_CHUNK = 1 << 16  # rows
_REMEDY = "Copy the file again, or write the cache again; `ms-prefstream verify` checks every file."


class _Table:
    """Rows of a .npy file, read when they are asked for. A file that is cut off or replaced meanwhile is an error."""

    def __init__(self, path: str, handles: Handles, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._path, self._handles, self._dtype, self._shape = path, handles, dtype, shape
        handle = handles.get(path)
        self._stamp = stamp_of(path, handle.fd)
        head = read_at(handle, path, 0, min(NPY_HEAD, self._stamp.size))
        try:
            self._begin = npy_begin(head, self._stamp.size, dtype, shape)
        except ValueError as error:
            raise CacheError(f"{path} does not fit the manifest: {error}. {_REMEDY}") from error
        self._row_bytes = dtype.itemsize * math.prod(shape[1:])

    def __getitem__(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Returns the rows with these ids, at least one, in this order."""
        size, handle = self._row_bytes, self._handle()
        ranges = ranges_of(self._begin + size * ids, np.full(len(ids), size))
        data = np.empty(ranges.size, np.uint8)
        read_ranges(handle, self._path, ranges, data.data)
        rows: NDArray[Any] = self._array(data)[ranges.places // size]
        return rows

    def chunks(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yields all rows, some at a time, and where they are."""
        for begin in range(0, self._shape[0], _CHUNK):
            end = min(begin + _CHUNK, self._shape[0])
            first, size = self._begin + begin * self._row_bytes, (end - begin) * self._row_bytes
            yield slice(begin, end), self._array(read_at(self._handle(), self._path, first, size))

    def _handle(self) -> Handle:
        handle = self._handles.get(self._path)
        check_unchanged(self._path, self._stamp, handle.fd)
        return handle

    def _array(self, data: bytes | NDArray[np.uint8]) -> NDArray[Any]:
        return np.frombuffer(data, self._dtype).reshape(-1, *self._shape[1:])


@dataclass(frozen=True, eq=False)
class _Tables:
    """Tables of a cache with an entry for each of N rows."""

    places: _Table  # (N,) of `PLACE`: the bytes of each row
    index: LengthIndex
    verdict: NDArray[np.uint8]  # (N,), that of the index
    logps: _Table | None  # (N, 2) float32, reference log-probabilities


class CachedRows:
    """Rows of a cache, numbered as in the source that it was made from; a dropped row is an error here too.

    Args:
        folder: The cache, which may be a local copy.
        reference: Whether to use its reference log-probabilities, if it has any.

    Attributes:
        folder: The cache.
        paths: Its files of samples.
        manifest: The cache's description of itself.

    Raises:
        CacheError: It is damaged or incomplete, as far as sizes and small files show; names the file.
        StateError: It is of another version.
        SourceError: It has a layout for other readers.
    """

    ready = True  # rows are samples
    exact = True  # the fingerprint covers every file

    def __init__(self, folder: str, reference: bool = True) -> None:
        self.folder, self.name = folder, str(folder)
        self.manifest: Manifest = read_manifest(folder)
        if not reference:
            self.manifest = without_reference(self.manifest)
        check_files(folder, self.manifest)
        about = self.manifest.about
        check_readable(folder, self.manifest)
        room = self.manifest.files[PLACES].bytes - PLACE.itemsize * self.manifest.source_rows
        if not 0 <= room <= NPY_HEAD:
            raise CacheError(
                f"{folder}: {PLACES} has {self.manifest.files[PLACES].bytes:,} bytes, which is no table of "
                f"{self.manifest.source_rows:,} rows. {_REMEDY}"
            )
        self.paths = tuple(below(folder, name) for name in self.manifest.files if name.endswith(".mindrecord"))
        self._rows_per_part: int = about["rows_per_part"]
        self._dtypes = {name: column["dtype"] for name, column in self.manifest.columns.items()}
        self._handles = Handles()

    def __len__(self) -> int:
        return self.manifest.source_rows

    def read(self, rows: Sequence[int]) -> list[Ready | RowError]:
        """Returns the samples of these rows, in this order.

        Raises:
            CacheError: A file is damaged; names it.
        """
        found: list[Ready | RowError] = []
        for sample, error, notes, _ in self.read_block(rows):
            found.append(Ready(sample, int(notes)) if sample is not None else cast(RowError, error))
        return found

    def read_block(self, rows: Sequence[int]) -> Block:
        """Returns the samples of these rows, in this order, as one block.

        Raises:
            CacheError: A file is damaged; names it.
        """
        ids = as_row_ids(rows, len(self), self.name)
        if not len(ids):
            return Block.empty(0, 1)
        places = self._tables.places[ids]
        is_good = places["size"] > 0
        if is_good.all():
            return self._good_block(ids, places)
        good, dropped = np.flatnonzero(is_good), np.flatnonzero(~is_good)
        found = self._good_block(ids[good], places[good]) if len(good) else Block.empty(0, 1)
        bad = Block.empty(len(dropped), found.sides)
        for at, row in enumerate(ids[dropped].tolist()):
            bad.refuse(at, self._dropped(row))
        return Block.join([found, bad]).take(np.argsort(np.concatenate([good, dropped])))

    def _good_block(self, ids: NDArray[np.int64], places: NDArray[Any]) -> Block:
        """Returns the samples of one or more good rows."""
        sizes = places["size"].astype(np.int64)
        data, begins = self._bytes(ids // self._rows_per_part, places["begin"].astype(np.int64), sizes, places["crc"])
        try:
            block = ragged_block(self._dtypes, data, begins, sizes, ids)
            self._check_lengths(block, ids)
        except ValueError as error:  # the bytes passed their checksums, so the places are wrong
            raise CacheError(f"{self.name}: a part does not hold what {PLACES} says ({error}). {_REMEDY}") from error
        if self._tables.logps is not None:
            block.ref_logps = self._tables.logps[ids]
        return block

    @property
    def pad_token_id(self) -> int:
        """Padding id of the stream that the cache was written from."""
        return int(self.manifest.about["pad_token_id"])

    def origin(self, row: int) -> str:
        """Returns where a row comes from: ``"cache[16]"``, its number in the source of the cache."""
        return f"{self.name}[{row}]"

    def fingerprint(self) -> str:
        """Returns the manifest's checksum, which covers the checksums of all files."""
        return self.manifest.checksum[:16]

    @property
    def index(self) -> LengthIndex:
        """Length index that is part of the cache."""
        return self._tables.index

    def token_hash(self) -> str:
        """Returns a hash of the row ids, tokens and masks, from the checksums of the rows."""
        return _token_hash(self._tables.places)

    @property
    def reference_id(self) -> str | None:
        """Checkpoint that the reference log-probabilities come from; None if there are none."""
        reference = self.manifest.reference
        return None if reference is None else str(reference["reference_id"])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tables"}

    @functools.cached_property
    def _tables(self) -> _Tables:
        reference, count = self.manifest.reference, len(self)
        for name in (LENGTHS, PLACES, *([] if reference is None else [reference["file"]])):
            path = below(self.folder, name)
            try:
                found = note_of(path, 0)
            except OSError as error:
                raise CacheError(f"{path} cannot be read: {cause_of(error)}. {_REMEDY}") from error
            if found.sha256 != self.manifest.files[name].sha256:
                raise CacheError(f"{path} is damaged: its SHA-256 is not that of the manifest. {_REMEDY}")
        try:
            index = read_index(below(self.folder, LENGTHS), count)
        except StateError as error:
            raise CacheError(f"{self.name} is damaged: {error}") from error
        places = _Table(below(self.folder, PLACES), self._handles, PLACE, (count,))
        verdict = index.verdict
        self._check_tables(index, verdict, places)
        if reference is None:
            return _Tables(places, index, verdict, None)
        path = below(self.folder, reference["file"])
        now, then = _token_hash(places), reference["tokens"]
        if now != then:
            raise StateError(
                f"{path} belongs to other tokens: their hash was {then} and is {now} now. Add the "
                "reference log-probabilities again: mps.write_cache(stream, out, reference=..., reference_id=..., "
                "overwrite=True)."
            )
        logps = _Table(path, self._handles, LOGPS, (count, 1 + has_pairs(self._dtypes)))
        for rows, values in logps.chunks():
            if (np.isfinite(values) != (verdict[rows] == GOOD)[:, None]).any():
                raise CacheError(f"{path} lacks finite log-probabilities for some rows, or has some for dropped ones.")
        return _Tables(places, index, verdict, logps)

    def _check_tables(self, index: LengthIndex, verdict: NDArray[np.uint8], places: _Table) -> None:
        """Raises CacheError unless the tables and the manifest describe the same rows."""
        if index.rows != len(self) or index.usable != self.manifest.rows:
            raise CacheError(
                f"{index.path} has {index.rows} rows, {index.usable} of them good; expected {len(self)} and "
                f"{self.manifest.rows} by the manifest. {_REMEDY}"
            )
        task = self.manifest.about["task"]
        most = task.get("max_length") or task.get("seq_length") or 0
        if index.longest > most:
            raise CacheError(f"{index.path} has a row of {index.longest:,} tokens, but {most:,} is the most. {_REMEDY}")
        for rows, found in places.chunks():
            if ((found["size"] > 0) != (verdict[rows] == GOOD)).any():
                raise CacheError(f"{below(self.folder, PLACES)} has other rows than {LENGTHS}. {_REMEDY}")

    def _check_lengths(self, block: Block, rows: NDArray[np.int64]) -> None:
        """Raises ValueError unless samples have the lengths that the index gives them."""
        found, expected = measure(block).lengths, self.index.sides[rows]
        if (wrong := (found != expected).any(axis=1)).any():
            at = int(wrong.argmax())
            (first, last), lengths = found[at].tolist(), expected[at].tolist()
            raise ValueError(f"row {rows[at]} has {first} and {last} tokens, and not {lengths}")

    def _bytes(
        self, parts: NDArray[np.int64], begins: NDArray[np.int64], sizes: NDArray[np.int64], checksums: NDArray[Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Returns the bytes of one or more rows, see `decode`, and where each row begins in them.

        Raises:
            CacheError: A part does not have these bytes, or they have other checksums.
        """
        read: list[tuple[str, Ranges]] = []
        places, end = np.empty_like(begins), 0
        for part in np.unique(parts).tolist():
            here, name = np.flatnonzero(parts == part), part_name(part)
            note = self.manifest.files.get(name)
            if note is None or (begins[here] < 0).any() or (begins[here] > note.bytes - sizes[here]).any():
                raise CacheError(f"{self.name}: {PLACES} names bytes that {name} does not have. {_REMEDY}")
            ranges = ranges_of(begins[here], sizes[here])
            read.append((below(self.folder, name), ranges))
            places[here] = end + ranges.places
            end += ranges.size
        data = np.empty(end + SPARE, np.uint8)
        data[end:] = 0
        view, at = data.data, 0
        for path, ranges in read:
            read_ranges(self._handles.get(path), path, ranges, view[at : at + ranges.size])
            at += ranges.size
        ends = places + sizes
        sums = list(map(zlib.crc32, map(view.__getitem__, map(slice, places.tolist(), ends.tolist()))))
        if (wrong := np.array(sums) != checksums).any():
            row = int(wrong.argmax())
            raise CacheError(
                f"{below(self.folder, part_name(int(parts[row])))} is damaged between bytes {begins[row]} and "
                f"{begins[row] + sizes[row]}: the bytes differ from those that were written. {_REMEDY}"
            )
        return data, places

    def _dropped(self, row: int) -> DroppedRowError:
        reason = REASONS[int(self._tables.verdict[row])]
        return DroppedRowError(reason, "the row was left out when the cache was written")


def check_readable(folder: str, manifest: Manifest) -> None:
    """Raises `SourceError` if a cache has a layout for other readers."""
    if (layout := manifest.about["layout"]) != "ragged":
        what = "is padded for other trainers: read it with mindspore.dataset.MindDataset"
        if layout == MEGATRON:
            what = f"is for MindSpeed: train on it with --data-path {os.path.join(str(folder), PREFIX)}"
        if is_url(str(folder)):
            what = "is for other trainers, which do not read from stores: copy the folder to a disk for them"
        raise SourceError(
            f"{folder} has the layout {layout!r}, which {what}. mps.stream reads caches of layout 'ragged'."
        )


def _token_hash(places: _Table) -> str:
    digest = hashlib.sha256()
    for _, rows in places.chunks():
        digest.update(rows["crc"].tobytes())
    return digest.hexdigest()


def caches_in(source: Any) -> list[CachedRows]:
    """Returns the caches among the parts of a source or a mix."""
    return [one for one in sources_in(source) if isinstance(one, CachedRows)]


def only_caches(source: Any) -> bool:
    """Returns whether every part of a source or a mix is a cache, so that nothing has to be tokenised."""
    return all(isinstance(one, CachedRows) for one in sources_in(source))
