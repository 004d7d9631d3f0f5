"""`mps.write_cache`: the samples of a stream as files, whatever happens in between."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ms_prefstream.batch import Pad
from ms_prefstream.cache.columns import described
from ms_prefstream.cache.feed import Range, can_go_on, check_material, ranges
from ms_prefstream.cache.files import note_of, unwritable, write_whole
from ms_prefstream.cache.job import ROWS_PER_PART, Job
from ms_prefstream.cache.manifest import LENGTHS, PLACES, Manifest
from ms_prefstream.cache.pages import PLACE
from ms_prefstream.cache.part import NOTES, PartDone, PartTask, write_part
from ms_prefstream.cache.workplace import Workplace
from ms_prefstream.errors import NoUsableRowsError
from ms_prefstream.lengths import progress_on
from ms_prefstream.lengths.layout import write_contents
from ms_prefstream.lengths.measure import Measured
from ms_prefstream.lengths.progress import Progress, Silent
from ms_prefstream.lengths.verdict import GOOD, REASONS
from ms_prefstream.report.report import ORIGINS_KEPT
from ms_prefstream.runtime.ledger import Ledger
from ms_prefstream.runtime.loader import Loaded
from ms_prefstream.runtime.material import Material
from ms_prefstream.runtime.pool import LoaderPool
from ms_prefstream.version import VERSION

if TYPE_CHECKING:
    from ms_prefstream.stream import Stream


def write_cache(
    stream: Stream,
    out: str | os.PathLike[str],
    *,
    layout: str = "ragged",
    overwrite: bool = False,
    workers: int | None = None,
    rows_per_part: int = ROWS_PER_PART,
    progress: bool = False,
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

    Returns:
        The manifest.

    Raises:
        CacheError: A file cannot be written.
        OptionError: `out` exists, or the layout does not fit the task.
        RowError: The first malformed row, if these are errors.
    """
    material = stream.material()
    check_material(material)
    width = stream.batching.length if isinstance(stream.batching, Pad) and stream.batching.length else None
    job = Job(
        layout=layout,
        task=stream.task,
        width=width or stream.task.length,
        pad_id=stream.pad_token_id,
        rows_per_part=rows_per_part,
    )
    workers = material.workers if workers is None else workers
    shown = progress_on(sys.stderr, "cache") if progress else Silent()
    with Workplace(os.fspath(out), _about(job, material), overwrite, can_go_on(material)) as place:
        if place.finished is None:
            parts = 2 if material.records is None else -(-len(material.records) // rows_per_part)
            with contextlib.closing(_engine(material, workers if parts > 1 else 0)) as engine:
                parts = _write_parts(material, job, place, engine.run, shown)
            place.finish(_manifest(material, job, place, parts))
        else:
            place.finish(place.finished)
        assert place.finished is not None  # it is whole now
        return place.finished


class _Local:
    """Parts written one after the other in this process, or by worker processes."""

    def __init__(self, material: Material, workers: int) -> None:
        self._loader = material.loader
        self._pool = LoaderPool(material.recipe, workers, material.loader) if workers != 0 else None

    def run(self, tasks: Iterable[PartTask]) -> Iterator[PartDone]:
        """The parts, in order."""
        if self._pool is None:
            return (write_part(self._loader, task) for task in tasks)
        return self._pool.calls(write_part, tasks)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()


def _engine(material: Material, workers: int) -> _Local:
    return _Local(material, workers)


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
    ledger = Ledger(material.report, material.raise_malformed, origin, raw, material.quarantine)
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
    tokenizer = material.recipe.tokenizer
    return {
        **job.about(),
        "source": material.source.name,
        "tokenizer": None if tokenizer is None else tokenizer.name,
        "fingerprint": dict(material.fingerprint),
        "on_bad_row": "raise" if material.raise_malformed else "drop",
        "library": VERSION,
    }


def _manifest(material: Material, job: Job, place: Workplace, parts: int) -> Manifest:
    """Write the tables of all parts; what there is to say about them."""
    rows, good, files = 0, 0, {}
    dropped: Counter[str] = Counter()
    origins: dict[str, list[str]] = {}
    notes = np.zeros(len(NOTES), np.int64)
    for one in _parts(place, parts):
        rows += len(one.verdict)
        good += int(np.count_nonzero(one.verdict == GOOD))
        files.update(one.files)
        notes += one.notes
        for code, reason in REASONS.items():
            if count := int(np.count_nonzero(one.verdict == code)):
                dropped[str(reason)] += count
        for name, found in one.origins.items():
            origins[name] = (origins.get(name, []) + found)[:ORIGINS_KEPT]
    if not good:
        what = "; ".join(f"{name} {count:,}, first at {origins[name][0]}" for name, count in dropped.most_common())
        raise NoUsableRowsError(f"no row of {material.source.name} can be used ({what or 'it has none'}).")
    measured = (Measured(one.lengths, one.keys, one.verdict, []) for one in _parts(place, parts))
    write_contents(place.path(LENGTHS), rows, measured, material.fingerprint)
    _write_places(place, parts, rows)
    try:
        files |= {name: note_of(place.path(name), 0) for name in (LENGTHS, PLACES)}
    except OSError as error:
        raise unwritable(place.folder, error) from error
    return Manifest(
        about=_about(job, material),
        columns=described(job.columns),
        rows=good,
        source_rows=rows,
        dropped={name: {"rows": count, "first": origins[name]} for name, count in dropped.most_common()},
        notes={str(note.name).lower(): int(count) for note, count in zip(NOTES, notes, strict=True)},
        files=files,
        library=VERSION,
    )


def _parts(place: Workplace, parts: int) -> Iterator[PartDone]:
    for number in range(parts):
        found = place.done(number)
        assert found is not None  # it was written a moment ago
        yield found


def _write_places(place: Workplace, parts: int, rows: int) -> None:
    file = io.BytesIO()
    header = {"descr": PLACE.descr, "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
    for one in _parts(place, parts):
        file.write(one.places.tobytes())
    write_whole(place.path(PLACES), file.getvalue())
