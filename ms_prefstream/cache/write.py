"""`mps.write_cache`: the samples of a stream as files, whatever happens in between."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ms_prefstream.batch import Pad
from ms_prefstream.cache.compatibility import has_reference_logps, has_samples
from ms_prefstream.cache.folder import REFERENCE, WorkFolder, Workplace
from ms_prefstream.cache.parts import ROWS_PER_PART, Job, PartDone, PartTask, write_part
from ms_prefstream.cache.ray import RayEngine
from ms_prefstream.cache.reference import Reference, ReferencePass, check_reference
from ms_prefstream.cache.tables import merged
from ms_prefstream.checks import check_made
from ms_prefstream.errors import NoUsableRowsError, OptionError, SourceError
from ms_prefstream.lengths.index import GOOD
from ms_prefstream.load.records import MixedRecords
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.mindrecord.manifest import Manifest, without_reference
from ms_prefstream.progress import Progress, Silent, progress_on
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.report.report import ORIGINS_KEPT
from ms_prefstream.sample import Loaded
from ms_prefstream.sources.cached import CachedRows
from ms_prefstream.sources.content_hash import whole_hash
from ms_prefstream.sources.mix import Mix
from ms_prefstream.steps.data import Material
from ms_prefstream.tasks import Task
from ms_prefstream.version import VERSION


class CacheableStream(Protocol):
    """A stream, as far as writing its samples needs it."""

    task: Task
    batching: Any

    @property
    def pad_token_id(self) -> int: ...

    def material(self) -> Material: ...


Found = tuple[str, Any, Any]
"""Origin, raw row and record of a row that was read from the front."""


@dataclass(frozen=True)
class Range:
    """The rows of one part.

    Attributes:
        number: Which part.
        first: Its first row id.
        count: Its rows.
        found: The rows themselves where they are read from the front.
    """

    number: int
    first: int
    count: int
    found: list[Found] | None = None

    def task(self, job: Job, folder: str) -> PartTask:
        """What a worker is told."""
        records = None if self.found is None else [record for _, _, record in self.found]
        return PartTask(job, self.number, self.first, self.count, folder, records)


def check_material(material: Material) -> None:
    """Refuse sources that have no fixed rows.

    Raises:
        SourceError: A mix, or a source whose rows go on.
    """
    if isinstance(material.source, Mix) or isinstance(material.records, MixedRecords):
        raise SourceError(
            "a mix has other rows in each epoch, so it cannot be written to a cache. Write each part to a cache of its "
            "own and mix these: mps.mix([(cache_a, 2), (cache_b, 1)])."
        )
    if material.one_pass is not None and material.one_pass.continues:
        raise SourceError(
            f"{material.one_pass.name} is still being written, so a cache of it would never be whole. Write the cache "
            "when the file is finished."
        )


def can_go_on(material: Material) -> bool:
    """Returns whether the finished parts of an interrupted run still hold the same rows."""
    return material.records is not None or bool(getattr(material.source, "paths", ()))


def source_hash(material: Material) -> str | None:
    """A hash of all rows, where the fingerprint looks at samples: parts of one cache come from one state of them.

    None if the fingerprint says as much, or if every run begins at the front.
    """
    return whole_hash(material.source) if can_go_on(material) else None


def ranges(material: Material, rows_per_part: int, done: Callable[[int], PartDone | None]) -> Iterator[Range]:
    """The parts that must be written, in order; of those that are finished nothing is read if that is possible.

    Args:
        material: The source.
        rows_per_part: Rows of a part; the last one has the rest.
        done: What is known of a part that is finished.
    """
    if material.records is not None:
        total = len(material.records)
        for number, first in enumerate(range(0, total, rows_per_part)):
            if done(number) is None:
                yield Range(number, first, min(rows_per_part, total - first))
        return
    assert material.one_pass is not None  # one of the two
    number = 0
    while (known := done(number)) is not None:
        if len(known.verdict) < rows_per_part:
            return  # a short part is the last one
        number += 1
    rows = material.one_pass.start(number * rows_per_part)
    while found := list(itertools.islice(rows, rows_per_part)):
        known = done(number)
        if known is None or len(known.verdict) != len(found):
            yield Range(number, number * rows_per_part, len(found), found)
        number += 1


ENGINES = ("local", "ray")


class Engine(Protocol):
    """Writes parts."""

    def run(self, tasks: Iterable[PartTask]) -> Iterator[PartDone]:
        """The parts, in order."""

    def close(self) -> None:
        """End the processes."""


class LocalEngine:
    """Parts written one after the other in this process, or by worker processes.

    Args:
        material: The source and what its rows become.
        workers: Processes; 0 for none.
    """

    def __init__(self, material: Material, workers: int) -> None:
        self._loader = material.loader
        self._pool = LoaderPool(material.recipe, workers, material.loader) if workers != 0 else None

    def run(self, tasks: Iterable[PartTask]) -> Iterator[PartDone]:
        """See `Engine`."""
        if self._pool is None:
            return (write_part(self._loader, task) for task in tasks)
        return self._pool.calls(write_part, tasks)

    def close(self) -> None:
        """See `Engine`."""
        if self._pool is not None:
            self._pool.close()


def check_engine(name: str, address: str | None) -> None:
    """Refuse an unknown engine, or an address without its engine.

    Raises:
        OptionError: Names what is allowed.
    """
    if name not in ENGINES:
        raise OptionError(f"engine is {name!r}; expected one of {', '.join(map(repr, ENGINES))}.")
    if address is not None and name != "ray":
        raise OptionError(f"ray_address is {address!r}, but engine is {name!r}. Pass engine='ray', or leave it out.")


def open_engine(name: str, address: str | None, material: Material, workers: int) -> Engine:
    """The engine with that name."""
    return RayEngine(material, workers, address) if name == "ray" else LocalEngine(material, workers)


def write_cache(
    stream: CacheableStream,
    out: str | os.PathLike[str],
    *,
    layout: str = "ragged",
    overwrite: bool = False,
    workers: int | None = None,
    rows_per_part: int = ROWS_PER_PART,
    progress: bool = False,
    reference: Reference | None = None,
    reference_id: str | None = None,
    engine: str = "local",
    ray_address: str | None = None,
) -> Manifest:
    """Write the samples of a stream to MindRecord files, in the order of their rows.

    The folder `out` appears when everything is in it; until then finished parts stand in ``out.writing``, and a run
    that was interrupted goes on with them. The bytes depend on neither workers nor interruptions.

    Args:
        stream: What rows become; its order and batching do not matter, except for the length of `Pad`, to which the
            fixed layouts are padded (the task's length otherwise).
        out: The folder.
        layout: ``ragged``: nothing padded, read back by `mps.stream(out, …)`. ``mindrlhf`` (DPO, RLHF) and
            ``mindformers`` (reward): every row padded, as their trainers read them.
        overwrite: Whether a cache that is there may be replaced, once the new one is whole.
        workers: Processes that tokenise and write; None takes the stream's.
        rows_per_part: Rows of the source for each file.
        progress: Whether to show rows a second and the time left, on standard error.
        reference: For DPO: a function from a batch of the layout `paired` to the log-probabilities of both sides,
            (B,) each, summed over the loss mask. The cache holds them, and streams of it have the columns
            `chosen_ref_logps` and `rejected_ref_logps`. A cache that is there already with the same samples, or that
            the stream itself reads, gets them without being written again.
        reference_id: Names the checkpoint behind `reference`.
        engine: ``local``: this machine. ``ray``: a Ray cluster whose machines share the file system of `out`.
        ray_address: Of a running cluster; None starts one on this machine with `workers` processes.

    Returns:
        The manifest.

    Raises:
        CacheError: A file cannot be written.
        OptionError: `out` exists, or the layout does not fit the task.
        RowError: The first malformed row, if these are errors.
    """
    check_made("stream", stream, "material", "mps.stream(...)")
    if not isinstance(out, (str, os.PathLike)) or not os.fspath(out):
        raise OptionError(f"out is {out!r}; expected the path of the folder that is to be written.")
    material = stream.material()
    check_material(material)
    check_engine(engine, ray_address)
    check_reference(reference, reference_id, layout, stream.task)
    out = os.fspath(out)
    shown = progress_on(sys.stderr, "reference") if progress else Silent()

    def reference_pass(folder: str, work: WorkFolder) -> ReferencePass:
        assert reference is not None  # both were checked
        assert reference_id is not None
        return ReferencePass(folder, work.inside(REFERENCE), stream.task, stream.batching, reference, reference_id)

    def added() -> Manifest:
        adding = reference_pass(out, work)
        if adding.known(overwrite):
            raise OptionError(
                f"{out} has the log-probabilities of the reference {reference_id!r} already. Pass overwrite=True to "
                "compute them again."
            )
        manifest = adding.run(shown)
        shutil.rmtree(work.inside(REFERENCE), ignore_errors=True)
        return manifest

    if isinstance(material.source, CachedRows) and os.path.realpath(material.source.name) == os.path.realpath(out):
        if reference is None:
            raise OptionError(f"{out} is the cache that the stream reads. Name another folder; nothing was changed.")
        with WorkFolder(out) as work:
            return added()
    width = stream.batching.length if isinstance(stream.batching, Pad) and stream.batching.length else None
    job = Job(
        layout=layout,
        task=stream.task,
        width=width or stream.task.length,
        pad_id=stream.pad_token_id,
        rows_per_part=rows_per_part,
        reference=has_reference_logps(material.source, layout),
    )
    workers = material.workers if workers is None else workers
    if engine == "local" and material.records is not None and len(material.records) <= rows_per_part:
        workers = 0  # a process of its own for the only part would only cost
    about = _about(job, material)
    opens = functools.partial(open_engine, engine, ray_address, material, workers)
    goes_on = can_go_on(material)
    with WorkFolder(out) as work:
        if reference is not None and goes_on and has_samples(out, about, whole=overwrite):
            return added()
        place = Workplace(work, out, about, overwrite, goes_on)
        if place.finished is None:
            _write(material, job, about, place, opens, progress)
        assert place.finished is not None  # it is whole now
        if (place.finished.reference or {}).get("reference_id") != reference_id:  # an interrupted run may have some
            place.seal(without_reference(place.finished))
            if reference is not None:
                place.finished = reference_pass(place.folder, work).run(shown)
        place.publish()
        return place.finished


def _write(
    material: Material,
    job: Job,
    about: dict[str, Any],
    place: Workplace,
    opens: Callable[[], Engine],
    progress: bool,
) -> None:
    """Write what is missing of all parts, the tables and the manifest."""
    shown = progress_on(sys.stderr, "cache") if progress else Silent()
    with contextlib.closing(opens()) as engine:
        parts = _write_parts(material, job, place, engine.run, shown)
    try:
        place.seal(merged(material, job, about, place, parts))
    except NoUsableRowsError:
        place.discard()
        raise


def _write_parts(
    material: Material,
    job: Job,
    place: Workplace,
    run: Callable[[Iterable[PartTask]], Iterator[PartDone]],
    shown: Progress,
) -> int:
    """Write what is missing; the number of parts."""
    flying: dict[int, tuple[Range, str]] = {}

    def tasks() -> Iterator[PartTask]:
        for one in ranges(material, job.rows_per_part, place.done):
            folder = place.temporary(one.number)
            flying[one.number] = one, folder
            yield one.task(job, folder)

    total = 0 if material.records is None else len(material.records)
    count = -(-total // job.rows_per_part)
    before = [place.done(number) for number in range(count)]
    shown.begin(total, sum(len(one.verdict) for one in before if one is not None))
    for known in before:
        if known is not None and material.quarantine is not None:
            _settle_again(material, known, job)
    del before
    try:
        for done in run(tasks()):
            one, folder = flying.pop(done.number)
            place.add(done._replace(origins=_settle(material, one, done)), folder)
            shown.advance(one.count)
    finally:
        shown.end()
    while place.done(count) is not None:  # what is read from the front is counted by reading it
        count += 1
    return count


def _settle(material: Material, one: Range, done: PartDone) -> dict[str, list[str]]:
    """Raise, count or quarantine the bad rows of a part; where the first few of each reason come from."""
    found, records = one.found, material.records
    if found is not None:
        origin: Callable[[int], str] = lambda row: found[row - one.first][0]  # noqa: E731
        raw: Callable[[int], Any] = lambda row: found[row - one.first][1]  # noqa: E731
    else:
        assert records is not None  # or the rows would have come along
        origin, raw = records.origin, records.raw
    ledger = BadRows(material.report, material.raise_malformed, origin, raw, material.quarantine)
    origins: dict[str, list[str]] = {}
    for row, error in done.errors:
        ledger.settle([row], [Loaded(None, error)])
        known = origins.setdefault(str(error.reason), [])
        if len(known) < ORIGINS_KEPT:
            known.append(origin(row))
    return origins


def _settle_again(material: Material, known: PartDone, job: Job) -> None:
    """The bad rows of a part that an earlier run finished, for this run's quarantine file."""
    first = known.number * job.rows_per_part
    rows = (first + np.flatnonzero(known.verdict != GOOD)).tolist()
    errors = [(row, one.error) for row, one in zip(rows, material.loader.load(rows), strict=True) if one.error]
    _settle(material, Range(known.number, first, len(known.verdict)), known._replace(errors=errors))


def _about(job: Job, material: Material) -> dict[str, Any]:
    """What decides about the bytes, as plain values for JSON, so that it compares with what a manifest says."""
    tokenizer = material.recipe.tokenizer
    values = {
        **job.about(),
        "source": material.source.name,
        "tokenizer": None if tokenizer is None else tokenizer.name,
        "fingerprint": dict(material.fingerprint),
        "contents": source_hash(material),
        "on_bad_row": "raise" if material.raise_malformed else "drop",
        "library": VERSION,
        "reference_id": material.source.reference_id if job.reference else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
