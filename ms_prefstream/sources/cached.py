"""A cache that `write_cache` wrote, as a source: its rows are finished samples, read in any order."""

from __future__ import annotations

import functools
import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import CacheError, DroppedRowError, SourceError, StateError
from ms_prefstream.lengths.index import REASONS, LengthIndex
from ms_prefstream.lengths.index_file import read_index
from ms_prefstream.mindrecord.files import note_of, part_name
from ms_prefstream.mindrecord.manifest import LENGTHS, PLACES, Manifest, check_files, read_manifest, without_reference
from ms_prefstream.mindrecord.ragged import ragged_samples
from ms_prefstream.mindrecord.sidecar import PLACE
from ms_prefstream.sample import Ready
from ms_prefstream.sources.base import as_row_ids, sources_in
from ms_prefstream.sources.files import Handles, read_at

_REMEDY = "Copy the file again, or write the cache again; `ms-prefstream verify` checks every file."


@dataclass(frozen=True, eq=False)
class _Tables:
    """Tables of a cache with an entry for each of N rows, mapped from files."""

    places: NDArray[Any]  # (N,) of `PLACE`: the bytes of each row
    index: LengthIndex
    logps: NDArray[np.float32] | None  # (N, 2), reference log-probabilities


class CachedRows:
    """Rows of a cache, numbered as in the source that it was made from; a dropped row is an error here too.

    Args:
        folder: The cache.
        reference: Whether to use its reference log-probabilities, if it has any.

    Attributes:
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
        self.name = folder
        self.manifest: Manifest = read_manifest(folder)
        if not reference:
            self.manifest = without_reference(self.manifest)
        check_files(folder, self.manifest)
        about = self.manifest.about
        if about["layout"] != "ragged":
            raise SourceError(
                f"{folder} has the layout {about['layout']!r}, which is padded for other trainers: read it with "
                "mindspore.dataset.MindDataset. mps.stream reads caches of layout 'ragged'."
            )
        self.paths = tuple(os.path.join(folder, name) for name in self.manifest.files if name.endswith(".mindrecord"))
        self._rows_per_part: int = about["rows_per_part"]
        self._dtypes = {name: column["dtype"] for name, column in self.manifest.columns.items()}
        self._handles = Handles()

    def __len__(self) -> int:
        return self.manifest.source_rows

    def read(self, rows: Sequence[int]) -> list[Ready | DroppedRowError]:
        """Returns the samples of these rows, in this order.

        Raises:
            CacheError: A file is damaged; names it.
        """
        ids = as_row_ids(rows, len(self), self.name)
        places = self._tables.places[ids]
        is_good = places["size"] > 0
        good = ids[is_good]
        parts = (good // self._rows_per_part).tolist()
        blocks = [self._block(part, place) for part, place in zip(parts, places[is_good].tolist(), strict=True)]
        try:
            ready = ragged_samples(self._dtypes, blocks, good.tolist())
        except ValueError as error:  # the bytes passed their checksums, so the places are wrong
            raise CacheError(f"{self.name}: a part does not hold what {PLACES} says ({error}). {_REMEDY}") from error
        if self._tables.logps is not None:
            ready = [_with_logps(*both) for both in zip(ready, self._tables.logps[good].tolist(), strict=True)]
        samples = dict(zip(good.tolist(), ready, strict=True))
        return [samples[row] if row in samples else self._dropped(row) for row in ids.tolist()]

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
        reference = self.manifest.reference
        for name in (LENGTHS, PLACES, *([] if reference is None else [reference["file"]])):
            path = os.path.join(self.name, name)
            if note_of(path, 0).sha256 != self.manifest.files[name].sha256:
                raise CacheError(f"{path} is damaged: its SHA-256 is not that of the manifest. {_REMEDY}")
        index = read_index(os.path.join(self.name, LENGTHS), len(self))
        places = np.asarray(np.load(os.path.join(self.name, PLACES), mmap_mode="r"))
        if places.dtype != PLACE or places.shape != (len(self),) or ((places["size"] > 0) != index.good()).any():
            raise CacheError(f"{os.path.join(self.name, PLACES)} does not fit the manifest. {_REMEDY}")
        if reference is None:
            return _Tables(places, index, None)
        logps = os.path.join(self.name, reference["file"])
        now, then = _token_hash(places), reference["tokens"]
        if now != then:
            raise StateError(
                f"{logps} belongs to other tokens: their hash was {then} and is {now} now. Add the "
                "reference log-probabilities again: mps.write_cache(stream, out, reference=..., reference_id=..., "
                "overwrite=True)."
            )
        return _Tables(places, index, np.load(logps, mmap_mode="r"))

    def _block(self, part: int, place: tuple[int, int, int]) -> bytes:
        begin, size, checksum = place
        path = os.path.join(self.name, part_name(part))
        block = read_at(self._handles.get(path), path, begin, size)
        if zlib.crc32(block) != checksum:
            raise CacheError(
                f"{path} is damaged between bytes {begin} and {begin + size}: the bytes differ from those that were "
                f"written. {_REMEDY}"
            )
        return block

    def _dropped(self, row: int) -> DroppedRowError:
        reason = REASONS[int(self.index.verdict[row])]
        return DroppedRowError(reason, "the row was left out when the cache was written")


def _token_hash(places: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(places["crc"]).tobytes()).hexdigest()


def _with_logps(ready: Ready, logps: list[float]) -> Ready:
    return ready._replace(sample=ready.sample._replace(ref_logps=(logps[0], logps[1])))


def caches_in(source: Any) -> list[CachedRows]:
    """Returns the caches among the parts of a source or a mix."""
    return [one for one in sources_in(source) if isinstance(one, CachedRows)]


def only_caches(source: Any) -> bool:
    """Returns whether every part of a source or a mix is a cache, so that nothing has to be tokenised."""
    return all(isinstance(one, CachedRows) for one in sources_in(source))
