"""Reference log-probabilities of a cache: computed once, bound to the tokens and to the checkpoint they belong to."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch import Bucket, Pack, Pad, make_layout
from ms_prefstream.cache.folder import BEGINS, left_behind
from ms_prefstream.errors import OptionError, StateError
from ms_prefstream.mindrecord.files import guarded, note_of, write_whole
from ms_prefstream.mindrecord.manifest import Manifest, read_manifest, write_manifest
from ms_prefstream.progress import Progress
from ms_prefstream.sample import Sample
from ms_prefstream.sources.cached import CachedRows, token_hash
from ms_prefstream.tasks.base import Task

Reference: TypeAlias = Callable[[Mapping[str, NDArray[Any]]], tuple[Any, Any]]
"""A batch of the layout `paired` -> log-probabilities of both sides, (B,) each, summed over the loss mask."""

_PLAN = "plan.json"


def check_reference(reference: Reference | None, reference_id: str | None, layout: str, task: Task) -> None:
    """Refuse what cannot be stored.

    Raises:
        OptionError: One option without the other, another task than DPO, or another layout than ragged.
    """
    if reference is None and reference_id is None:
        return
    if not callable(reference):
        raise OptionError(
            f"reference is {reference!r}; expected a function batch -> (chosen_logps, rejected_logps) beside "
            "reference_id."
        )
    if not isinstance(reference_id, str) or not reference_id:
        raise OptionError(
            f"reference_id is {reference_id!r}; expected a text that names the checkpoint, as 'qwen2_5-7b step 900'."
        )
    if task.name != "dpo":
        raise OptionError(f"reference is for the task DPO, not for {type(task).__name__}. Leave it out.")
    if layout != "ragged":
        raise OptionError(
            f"reference goes with layout='ragged', not with {layout!r}. Write that cache first, then write the other "
            "from a stream of it: mps.write_cache(mps.stream(ragged, ...), out, layout='mindrlhf') has the columns."
        )


class ReferencePass:
    """One pass of a reference model over a cache; what is computed survives an interruption.

    Args:
        folder: The cache, whole.
        work: A folder for what is computed, which is made and left to the caller, who holds a lock on the cache.
        task: Its task.
        batching: Rows of a batch, and to which widths they are padded.
        reference: The model.
        reference_id: Names its checkpoint.

    Attributes:
        folder: The cache.
        reference_id: The checkpoint.
    """

    def __init__(
        self, folder: str, work: str, task: Task, batching: Pad | Bucket | Pack, reference: Reference, reference_id: str
    ) -> None:
        self._rows, self._known = CachedRows(folder, reference=False), read_manifest(folder).reference
        self.folder, self.reference_id = folder, reference_id
        self._task, self._reference = task, reference
        self._batching = Pad(batching.batch_size) if isinstance(batching, Pack) else batching
        keys = self._rows.index.keys
        self._widths = self._batching.widths(task.length, keys[keys > 0])
        budget = getattr(self._batching, "max_tokens", None)  # as many pairs as it has room for at the largest width
        self._size = self._batching.batch_size or max(1, (budget or 0) // (2 * self._widths[-1]))
        self._layout = make_layout("paired")
        self._work = work

    def known(self, overwrite: bool) -> bool:
        """Whether the cache has these log-probabilities already.

        Raises:
            StateError: It has those of another checkpoint, and they may not be replaced.
        """
        if self._known is None or overwrite:
            return False
        if self._known["reference_id"] != self.reference_id:
            raise StateError(
                f"the cache {self._rows.name} has log-probabilities of the reference {self._known['reference_id']!r}, "
                f"and reference_id is {self.reference_id!r} now. Pass overwrite=True to replace them."
            )
        return True

    def run(self, shown: Progress) -> Manifest:
        """Compute what is missing and add it to the cache, which is whole at any moment."""
        rows, size = self._rows, self._rows.manifest.about["rows_per_part"]
        with guarded(self.folder):
            tokens = token_hash(rows.places)
            self._begin({"reference_id": self.reference_id, "tokens": tokens, "batch": [self._size, *self._widths]})
        shown.begin(len(rows), 0)
        try:
            parts = [self._part(number, first, min(first + size, len(rows)), shown)
                     for number, first in enumerate(range(0, len(rows), size))]  # fmt: skip
        finally:
            shown.end()
        with guarded(self.folder):
            return self._add(np.concatenate(parts), tokens)

    def _begin(self, plan: Mapping[str, Any]) -> None:
        """Keep what an interrupted pass of the same kind has computed."""
        text, path = json.dumps(plan).encode(), os.path.join(self._work, _PLAN)
        if os.path.exists(path):
            with open(path, "rb") as file:
                if file.read() == text:
                    return
            shutil.rmtree(self._work)
        os.makedirs(self._work, exist_ok=True)
        write_whole(path, text)

    def _add(self, logps: NDArray[np.float32], tokens: str) -> Manifest:
        """A file named by its content, then the manifest that names it, and only then the former file goes."""
        folder, data = self._rows.name, _saved(logps)
        name = f"{BEGINS}{hashlib.sha256(data).hexdigest()[:12]}.npy"
        write_whole(os.path.join(folder, name), data)
        manifest = dataclasses.replace(
            self._rows.manifest,
            files={**self._rows.manifest.files, name: note_of(os.path.join(folder, name), 0)},
            reference={"reference_id": self.reference_id, "tokens": tokens, "file": name},
        )
        write_manifest(folder, manifest)
        for other in left_behind(folder, {name}):
            with contextlib.suppress(OSError):  # it is in nobody's way
                os.unlink(os.path.join(folder, other))
        return manifest

    def _part(self, number: int, first: int, end: int, shown: Progress) -> NDArray[np.float32]:
        """(n, 2) float32 of some rows, NaN for dropped ones."""
        path = os.path.join(self._work, f"part-{number:05d}.npy")
        if os.path.exists(path):
            known: NDArray[np.float32] = np.load(path)
            shown.advance(end - first)
            return known
        logps = np.full((end - first, 2), np.nan, np.float32)
        for rows in self._batches(first, end):
            logps[rows - first] = self._logps(rows)
            shown.advance(len(rows))
        shown.advance(int(np.isnan(logps[:, 0]).sum()))
        write_whole(path, _saved(logps))
        return logps

    def _batches(self, first: int, end: int) -> Iterator[NDArray[np.int64]]:
        """The good rows of a range, those of like length together."""
        keys = self._rows.index.keys[first:end]
        order = first + np.argsort(keys, kind="stable")[np.count_nonzero(keys < 0) :]
        for begin in range(0, len(order), self._size):
            yield order[begin : begin + self._size]

    def _logps(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, 2) float32 of one batch; its last rows are repeats if there are too few."""
        samples: list[Sample] = [one.sample for one in self._rows.read(rows.tolist())]  # type: ignore[union-attr]
        samples += [samples[-1]] * (self._size - len(samples))
        width = self._batching.width_for(max(sample.length for sample in samples), self._widths)
        batch = self._layout.build(samples, width, self._rows.pad_token_id, self._task.shifted)
        found = self._reference(batch)
        if not isinstance(found, tuple) or len(found) != 2:
            raise OptionError(
                f"reference returned {type(found).__name__}; expected a tuple (chosen_logps, rejected_logps)."
            )
        sides = []
        for name, side in zip(("chosen", "rejected"), found, strict=True):
            try:
                values = np.asarray(side.asnumpy() if hasattr(side, "asnumpy") else side, np.float32)
            except (TypeError, ValueError) as error:
                raise OptionError(
                    f"reference returned {name} log-probabilities that are no array of numbers ({error}); expected "
                    "one finite number a row, the sum over its loss mask."
                ) from error
            if values.size != len(samples) or not np.isfinite(values).all():
                raise OptionError(
                    f"reference returned {name} log-probabilities of shape {values.shape} for a batch of "
                    f"{len(samples)} rows, {np.count_nonzero(~np.isfinite(values))} of them not finite; expected one "
                    "finite number a row, the sum over its loss mask."
                )
            sides.append(values.reshape(-1))
        logps: NDArray[np.float32] = np.stack(sides, axis=1)[: len(rows)]
        return logps


def _saved(values: NDArray[Any]) -> bytes:
    """An array as a file of NumPy's."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()
