"""Reference log-probabilities of a cache: computed once, bound to their tokens and to the checkpoint they come from."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch import Bucket, Pack, Pad, make_layout
from ms_prefstream.cache.own_files import reference_files
from ms_prefstream.disk import read_file, remove_leftovers, sync_folder
from ms_prefstream.errors import CacheError, OptionError, StateError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.mindrecord.files import NPY_HEAD, guarded, note_of, npy_begin, npy_bytes, write_small
from ms_prefstream.mindrecord.manifest import LOGPS, MANIFEST, Manifest, check_cache_file, read_manifest
from ms_prefstream.progress import Progress
from ms_prefstream.sample import Batch, Block, Sample
from ms_prefstream.sources.cached import CachedRows
from ms_prefstream.tasks import TASKS
from ms_prefstream.tasks.base import Task, traits

Reference: TypeAlias = Callable[[Mapping[str, NDArray[Any]]], Any]
"""A batch -> log-probabilities summed over the loss mask: (chosen, rejected), (B,) each, for a batch of the layout
`paired`; (B,) for one of the layout `kto`."""


@dataclass(frozen=True)
class ReferenceModel:
    """Reference model of a cache, and the batches that it is called with.

    Attributes:
        function: The model.
        reference_id: Names its checkpoint.
        layout: The layout of the cache.
        task: The task of the samples.
        batching: Rows of a batch, and the widths they are padded to.

    Raises:
        OptionError: One option without the other, a task without such log-probabilities, or another layout than ragged.
    """

    function: Reference | None
    reference_id: str | None
    layout: str
    task: Task
    batching: Pad | Bucket | Pack

    def __post_init__(self) -> None:
        if not callable(self.function):
            returns = "(chosen_logps, rejected_logps)" if self.task.pairs else "logps"
            raise OptionError(
                f"reference is {self.function!r}; expected a function batch -> {returns} beside reference_id."
            )
        if not isinstance(self.reference_id, str) or not self.reference_id:
            raise OptionError(
                f"reference_id is {self.reference_id!r}; expected a text that names the checkpoint, as "
                "'qwen2_5-7b step 900'."
            )
        if traits(self.task).reference_layout is None:
            able = " and ".join(made.__name__ for made in TASKS.values() if made.reference_layout is not None)
            raise OptionError(f"reference is for {able}, not for {type(self.task).__name__}. Leave it out.")
        if self.layout != "ragged":
            raise OptionError(
                f"reference goes with layout='ragged', not with {self.layout!r}. Write that cache first, then write "
                "the other from a stream of it: mps.write_cache(mps.stream(ragged, ...), out, layout='mindrlhf') has "
                "the columns."
            )

    def logps(self, batch: Batch, rows: int) -> NDArray[np.float32]:
        """Returns the log-probabilities of a batch of `rows` rows, (rows, S) float32, one for each of S sequences.

        Raises:
            OptionError: The function returned something else.
        """
        assert self.function is not None  # as checked
        found = self.function(batch)
        names = ("chosen ", "rejected ") if self.task.pairs else ("",)
        if not self.task.pairs:
            found = (found,)
        elif not isinstance(found, tuple) or len(found) != 2:
            raise OptionError(
                f"reference returned {type(found).__name__}; expected a tuple (chosen_logps, rejected_logps)."
            )
        logps = np.empty((rows, len(names)), np.float32)
        expected = "expected one finite number a row, the sum over its loss mask."
        for column, (name, side) in enumerate(zip(names, found, strict=True)):
            returned = f"reference returned {name}log-probabilities"
            try:
                values = np.asarray(side.asnumpy() if hasattr(side, "asnumpy") else side, np.float32)
            except (TypeError, ValueError) as error:
                raise OptionError(f"{returned} that are no array of numbers ({error}); {expected}") from error
            bad = np.count_nonzero(~np.isfinite(values))
            if values.size != rows or bad:
                raise OptionError(
                    f"{returned} of shape {values.shape} for a batch of {rows} rows, {bad} of them not finite; "
                    + expected
                )
            logps[:, column] = values.reshape(-1)
        return logps


def add_reference(model: ReferenceModel, folder: str, work: str, shown: Progress, overwrite: bool) -> Manifest:
    """Computes the log-probabilities of a complete cache and adds them to it. The cache is complete at any moment.

    The caller holds the lock on the cache. An interrupted pass resumes with the finished parts in the folder `work`.

    Raises:
        CacheError: The cache lacks a file.
        OptionError: The cache has them already.
        StateError: The cache has those of another checkpoint.
    """
    reference_pass = _ReferencePass(model, CachedRows(folder, reference=False))  # checks the files of the cache
    known = read_manifest(folder).reference
    if known is not None and not overwrite:
        if known["reference_id"] != model.reference_id:
            raise StateError(
                f"the cache {folder} has log-probabilities of the reference {known['reference_id']!r}, and "
                f"reference_id is {model.reference_id!r} now. Pass overwrite=True to replace them."
            )
        raise OptionError(
            f"{folder} has the log-probabilities of the reference {model.reference_id!r} already. Pass overwrite=True "
            "to compute them again."
        )
    return reference_pass.run(work, shown)


class _ReferencePass:
    """One pass of a reference model over a cache, in batches of similar length; see `add_reference`."""

    def __init__(self, model: ReferenceModel, cache: CachedRows) -> None:
        self._model, self._cache = model, cache
        batching, keys = model.batching, cache.index.keys
        self._sides = 2 if model.task.pairs else 1
        self._batching = Pad(batching.batch_size) if isinstance(batching, Pack) else batching
        self._widths = self._batching.widths(model.task.length, keys[keys > 0])
        budget = getattr(self._batching, "max_tokens", None)  # as many pairs as it has room for at the largest width
        self._size = self._batching.batch_size or max(1, (budget or 0) // (self._sides * self._widths[-1]))
        self._layout = make_layout(traits(model.task).reference_layout or "")

    def run(self, work: str, shown: Progress) -> Manifest:
        """Computes what is missing and adds it to the cache."""
        count, folder = len(self._cache), self._cache.name
        with guarded(folder):
            tokens = self._cache.token_hash()
            # Parts of another model, other tokens or other batches are in another folder.
            plan = [self._model.reference_id, tokens, self._size, *self._widths]
            work = os.path.join(work, hash_of([json.dumps(plan).encode()]))
            os.makedirs(work, exist_ok=True)
        shown.begin(count, 0)
        try:
            size = self._cache.manifest.about["rows_per_part"]
            ranges = [range(first, min(first + size, count)) for first in range(0, count, size)]
            parts = [
                self._part(os.path.join(work, f"part-{number:05d}.npy"), rows, shown)
                for number, rows in enumerate(ranges)
            ]
        finally:
            shown.end()
        with guarded(folder):
            return self._add(np.concatenate(parts), tokens, work)

    def _part(self, path: str, part: range, shown: Progress) -> NDArray[np.float32]:
        """Returns the log-probabilities of some rows, (n, S) float32, NaN for dropped ones."""
        keys = self._cache.index.keys_of(slice(part.start, part.stop))
        if (known := _read_part(path, keys >= 0, self._sides)) is not None:
            shown.advance(len(part))
            return known
        logps = np.full((len(part), self._sides), np.nan, np.float32)
        good = part.start + np.argsort(keys, kind="stable")[np.count_nonzero(keys < 0) :]
        for begin in range(0, len(good), self._size):
            rows = good[begin : begin + self._size]
            logps[rows - part.start] = self._logps(rows)
            shown.advance(len(rows))
        shown.advance(len(part) - len(good))
        data = npy_bytes(logps)
        check_cache_file(path)
        write_small(path, data + _digest(path, data))
        return logps

    def _logps(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns those of one batch, (n, S) float32. A short batch is filled with its last row."""
        samples: list[Sample] = [one.sample for one in self._cache.read(rows.tolist())]  # type: ignore[union-attr]
        samples += [samples[-1]] * (self._size - len(samples))
        width = self._batching.width_for(max(sample.length for sample in samples), self._widths)
        batch = self._layout.build(Block.of(samples), width, self._cache.pad_token_id, self._model.task.shifted)
        return self._model.logps(batch, len(samples))[: len(rows)]

    def _add(self, logps: NDArray[np.float32], tokens: str, work: str) -> Manifest:
        """Writes a file named by its content, then the manifest that names it, and deletes the former file last.

        Both are written in the staging folder, so that a killed process leaves nothing in the cache.
        """
        folder, data = self._cache.name, npy_bytes(logps)
        name = f"reference-{hashlib.sha256(data).hexdigest()[:12]}.npy"
        path = os.path.join(folder, name)
        _put(work, folder, name, data)
        manifest = dataclasses.replace(
            self._cache.manifest,
            files={**self._cache.manifest.files, name: note_of(path, 0)},
            reference={"reference_id": self._model.reference_id, "tokens": tokens, "file": name},
        )
        _put(work, folder, MANIFEST, manifest.bytes())
        for other in reference_files(folder):
            if other != name:
                with contextlib.suppress(OSError):  # it does no harm
                    os.unlink(os.path.join(folder, other))
        return manifest


def _put(work: str, folder: str, name: str, data: bytes) -> None:
    """Writes a file in the staging folder and moves it into the cache, unless they are on different disks."""
    for place in (work, folder):
        check_cache_file(os.path.join(place, name))
    write_small(os.path.join(work, name), data)
    try:
        os.replace(os.path.join(work, name), os.path.join(folder, name))
        sync_folder(folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        write_small(os.path.join(folder, name), data)
        remove_leftovers(os.path.join(folder, name))


def _digest(path: str, data: bytes) -> bytes:
    """Returns what follows the contents of a part: it binds them to their pass and to their place in it."""
    folder, name = os.path.split(path)
    return hashlib.sha256(f"{os.path.basename(folder)}/{name}".encode() + data).digest()


def _read_part(path: str, good: NDArray[np.bool_], sides: int) -> NDArray[np.float32] | None:
    """Returns a part that an interrupted pass has finished; None if there is none, or it is damaged.

    Raises:
        CacheError: It cannot be read, or is no regular file.
    """
    shape = (len(good), sides)
    try:
        data = read_file(path, CacheError, "the part of a reference pass", NPY_HEAD + math.prod(shape) * 4 + 32)
    except FileNotFoundError:
        return None
    data, digest = data[:-32], data[-32:]
    try:
        if digest != _digest(path, data):
            raise ValueError
        logps = np.frombuffer(data, LOGPS, offset=npy_begin(data[:NPY_HEAD], len(data), LOGPS, shape))
    except ValueError:
        return None
    logps = logps.reshape(shape)
    return logps if (np.isfinite(logps) == good[:, None]).all() else None
