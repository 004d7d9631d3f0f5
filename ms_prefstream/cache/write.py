"""`mps.write_cache`: writes the samples of a stream to the files of a cache. An interrupted run resumes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ms_prefstream.batch import Pad
from ms_prefstream.cache.compatibility import can_resume, describe, has_reference_logps, has_samples
from ms_prefstream.cache.folder import StagingFolder
from ms_prefstream.cache.layouts import ROWS_PER_PART, Job
from ms_prefstream.cache.part_size import check_size, rows_of_size
from ms_prefstream.cache.parts import NOTES, PartDone, PartTask, write_part, write_part_apart
from ms_prefstream.cache.publish import staging_folder
from ms_prefstream.cache.ranges import RangePlan, check_range
from ms_prefstream.cache.reference import Reference, ReferenceModel, add_reference
from ms_prefstream.checks import check_made, checked_call, process_count
from ms_prefstream.disk import check_path
from ms_prefstream.errors import NoUsableRowsError, OptionError, RowError, SourceError
from ms_prefstream.lengths.index import GOOD, REASONS, Measured
from ms_prefstream.lengths.index_file import write_contents
from ms_prefstream.load.one_pass import RecordWithOrigin
from ms_prefstream.load.workers.engines import check_engine, open_engine
from ms_prefstream.mindrecord.files import FileNote, guarded, note_of, npy_bytes, write_small
from ms_prefstream.mindrecord.manifest import LENGTHS, PLACES, Manifest, without_reference
from ms_prefstream.mindrecord.megatron import JOINED_FILES, MEGATRON, join
from ms_prefstream.part_range import PartRange, part_range_of
from ms_prefstream.progress import Progress, progress_on
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.report.report import ORIGINS_KEPT
from ms_prefstream.sample import Block, Loaded, Note
from ms_prefstream.sources.cached import CachedRows
from ms_prefstream.sources.mix import Mix
from ms_prefstream.sources.store import is_url, without_secrets
from ms_prefstream.steps.data import StreamData
from ms_prefstream.tasks import Task
from ms_prefstream.version import VERSION

_MAY_DIFFER = ("rows_per_part", "fingerprint")  # an interrupted run decides the former, and open settings of the latter


class CacheableStream(Protocol):
    """What `write_cache` needs of a stream."""

    task: Task
    batching: Any

    @property
    def pad_token_id(self) -> int: ...

    data: StreamData


@checked_call
def write_cache(
    stream: CacheableStream,
    out: str | os.PathLike[str],
    *,
    layout: str = "ragged",
    overwrite: bool = False,
    workers: int | None = None,
    rows_per_part: int | None = None,
    mb_per_part: float | None = None,
    part_range: tuple[int, int] | None = None,
    progress: bool = False,
    reference: Reference | None = None,
    reference_id: str | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Manifest:
    """Writes the samples of a stream to the files of a cache, in the order of their rows.

    The folder `out` appears only when it is complete. Until then finished parts are in ``out.writing``, and an
    interrupted run resumes with them. The output is byte-identical for any number of workers and interruptions.

    Args:
        stream: Makes the samples. Its order and batching do not matter, except for the length of `Pad`, to which the
            fixed layouts are padded (the task's length otherwise).
        out: The folder, or its URL. A remote cache is written to a staging folder in `cache_dir`. Then it is uploaded
            file by file, the manifest last.
        layout: ``ragged``: no padding, read back by `mps.stream(out, …)`. ``mindrlhf`` (DPO, RLHF),
            ``mindrlhf-grpo`` (RLHF, the answer alone in pretrain_ids) and ``mindformers`` (reward): every row padded,
            as their trainers read them. ``megatron`` (DPO, reward): the files of MindSpeed, nothing padded.
        overwrite: Whether an existing cache may be replaced, once the new one is complete.
        workers: Processes that tokenise and write; None takes the stream's.
        rows_per_part: Rows of the source for each file; 8,192 if neither this nor `mb_per_part` is given.
        mb_per_part: The size of a file in MB instead. It is converted to rows once, by the size of the first 1,000
            rows; a run that resumes and other ranges take this number.
        part_range: Writes only the parts of a range, such as (3, 8) for the third of eight, and keeps them in
            ``out.writing``. The ranges may be written at the same time, by hosts that share the folder; where `out` is
            a URL, each uploads its parts. `mps.merge` then makes the cache of them.
        progress: Whether to show rows a second and the time left, on standard error.
        reference: For DPO: a function from a batch of the layout `paired` to the log-probabilities of both sides,
            (B,) each, summed over the loss mask; for KTO: from a batch without kl columns to those of its rows. The
            cache holds them, and streams of it have the columns `chosen_ref_logps` and `rejected_ref_logps`, or
            `ref_logps`. They are added to an existing cache of the same samples, and to the cache that the stream
            itself reads, without writing it again.
        reference_id: Names the checkpoint of `reference`.
        engine: ``local``: this machine. ``ray``: a Ray cluster whose machines share the file system of `out`.
        ray_address: Of a running cluster; None starts one on this machine with `workers` processes.
        storage_options: Credentials and address of the store of `out`, as for `mps.stream`; None takes the stream's.
        cache_dir: Likewise, where the staging folder of a remote `out` lies.

    Returns:
        The manifest. With `part_range`, what a manifest says of these parts.

    Raises:
        CacheError: A file cannot be written.
        OptionError: `out` exists, or the layout does not fit the task.
        RowError: The first malformed row, if these are errors.
        StateError: Another process writes the cache or the range, or other ranges belong to another cache.
    """
    check_made("stream", stream, "data", "mps.stream(...)")
    if not isinstance(out, (str, os.PathLike)) or not os.fspath(out):
        raise OptionError(f"out is {out!r}; expected the path of the folder that is to be written.")
    out, data = os.fspath(out), stream.data
    check_path(out, OptionError, "out")
    check_source(data)
    check_engine(engine, ray_address)
    share, model = part_range_of(part_range), None
    if reference is not None or reference_id is not None:
        model = ReferenceModel(reference, reference_id, layout, stream.task, stream.batching)
    reference_bar = _bar("reference", progress)
    if is_cache_of(data.source, out):
        if is_url(out) and model is not None:
            raise OptionError(
                f"{without_secrets(out)} is the cache that the stream reads. A remote cache is not changed in place: "
                "write it to another URL with reference=, from the rows that it was made of."
            )
        if model is None:
            raise OptionError(f"{out} is the cache that the stream reads. Name another folder; nothing was changed.")
        with StagingFolder(out) as folder:
            added = add_reference(model, out, folder.reference, reference_bar, overwrite)
            folder.remove_reference()
            return added
    job = Job(
        layout=layout,
        task=stream.task,
        width=(stream.batching.length if isinstance(stream.batching, Pad) else None) or stream.task.length,
        pad_id=stream.pad_token_id,
        rows_per_part=ROWS_PER_PART if rows_per_part is None else rows_per_part,
        reference=has_reference_logps(data.source, layout),
        carried=data.carried,
    )
    check_size(rows_per_part, mb_per_part, data)
    if share is not None:
        check_range(data, reference)
        data = with_quarantine_of(data, share)
    about, resume = describe(job, data), can_resume(data)
    with staging_folder(out, data.remote.with_(storage_options, cache_dir), share) as folder:
        if mb_per_part is not None:
            begun = folder.begun() or {}
            is_same = all(begun.get(name) == about[name] for name in about if name not in _MAY_DIFFER)
            rows = begun["rows_per_part"] if is_same else rows_of_size(mb_per_part, job, data)
            job, about = dataclasses.replace(job, rows_per_part=rows), {**about, "rows_per_part": rows}
        planned = folder.planned()
        other = data.with_settings_of(planned.get("fingerprint"))
        if other is not data:
            described = describe(job, other)
            adds = model is not None and has_samples(out, described, complete=overwrite)
            if adds or described == planned:
                data, about = other, described
        run = functools.partial(
            written_parts, data, engine, ray_address, data.workers if workers is None else process_count(workers)
        )
        if model is not None and resume and has_samples(out, about, complete=overwrite):
            added = add_reference(model, out, folder.reference, reference_bar, overwrite)
            folder.remove_reference()
            return added
        if share is not None:
            assert data.records is not None  # see `check_range`
            plan = RangePlan(about, column_table(job), len(data.records))
            folder.begin_range(plan, overwrite)
            parts = share.of(plan.parts)
            write_missing(job, data, folder, run, parts, _bar("cache", progress))
            folder.publish_range(plan)
            return manifest_of(filter(None, map(folder.done, parts)), about, plan.columns)
        manifest = folder.begin(about, overwrite, resume)
        if manifest is None:
            write_missing(job, data, folder, run, None, _bar("cache", progress))
            manifest = folder.seal(merge_parts(folder, about, column_table(job)))
        if (manifest.reference or {}).get("reference_id") != reference_id:  # an interrupted run may have added some
            manifest = folder.seal(without_reference(manifest))
            if model is not None:
                manifest = add_reference(model, folder.new, folder.reference, reference_bar, overwrite)
        folder.publish()
        return manifest


def is_cache_of(source: Any, out: str) -> bool:
    """Returns whether a source is the cache at a path or a URL."""
    if not isinstance(source, CachedRows):
        return False
    if is_url(out):
        return source.name == without_secrets(out.rstrip("/"))
    return os.path.realpath(source.folder) == os.path.realpath(out)


def check_source(data: StreamData) -> None:
    """Checks that a source has the same rows in every epoch.

    Raises:
        SourceError: It is a mix, or still being written.
    """
    if isinstance(data.source, Mix):
        raise SourceError(
            "a mix has other rows in each epoch, so it cannot be written to a cache. Write each part to a cache of its "
            "own and mix these: mps.mix([(cache_a, 2), (cache_b, 1)])."
        )
    if data.one_pass is not None and data.one_pass.continues:
        raise SourceError(
            f"{data.one_pass.name} is still being written, so a cache of it would never be complete. Write the cache "
            "when the file is finished."
        )


def with_quarantine_of(data: StreamData, share: PartRange) -> StreamData:
    """Returns the same data with a quarantine file of the range: ``bad.3-of-8.jsonl``."""
    if data.quarantine is None:
        return data
    other = copy.copy(data)
    other.quarantine = data.quarantine.of_range(share)
    return other


def written_parts(
    data: StreamData, engine: str, address: str | None, workers: int, tasks: Iterator[PartTask]
) -> Generator[PartDone, None, None]:
    """Yields the finished parts in order, as an engine writes them."""
    is_local = engine == "local"
    first = [] if is_local and not workers else list(itertools.islice(tasks, 2))
    if not is_local and not first:
        return
    if is_local and len(first) < 2:  # starting a process for a single part costs more than it gains
        workers = 0
    with open_engine(engine, address, data.recipe, workers, data.local) as opened:
        function = write_part if is_local else write_part_apart
        yield from opened.calls(function, itertools.chain(first, tasks), PartTask.row_ids)


def write_missing(
    job: Job,
    data: StreamData,
    folder: StagingFolder,
    run: Callable[..., Generator[PartDone, None, None]],
    numbers: range | None,
    shown: Progress,
) -> None:
    """Writes every part that no earlier run has finished, of all or of those of a range."""
    rows, size = 0 if data.records is None else len(data.records), job.rows_per_part
    numbers = range(-(-rows // size)) if numbers is None else numbers
    finished = [folder.done(number) for number in numbers]
    total = max(0, min(rows, numbers.stop * size) - numbers.start * size)
    shown.begin(total, sum(len(done.rows) for done in finished if done is not None))
    try:
        if data.quarantine is not None:
            for done in filter(None, finished):
                _settle_again(job, data, done)
        tasks, queue = itertools.tee(missing_parts(job, data, folder, numbers))
        with contextlib.closing(run(queue)) as parts:
            for task, done in zip(tasks, parts, strict=True):
                folder.add(
                    done._replace(origins=_settle(data, done.errors, done.unread, task.first, task.read)), task.folder
                )
                shown.advance(task.count)
    finally:
        shown.end()


def missing_parts(job: Job, data: StreamData, folder: StagingFolder, numbers: range) -> Iterator[PartTask]:
    """Yields the parts that are not finished, in order. Rows of finished parts are not read where possible.

    The numbers are those of the parts of a source with random access.
    """
    size = job.rows_per_part
    if data.records is not None:
        left_out = data.left_out()
        for number in numbers:
            first = number * size
            count = min(size, len(data.records) - first)
            verdict = None if left_out is None else left_out[first : first + count]
            if (known := folder.done(number)) is None or len(known.rows) != count:
                yield PartTask(job, number, first, count, folder.temporary(number), verdict)
        return
    assert data.one_pass is not None  # a source has one of the two
    number = 0
    for done in folder.parts():
        if len(done.rows) < size:
            return  # a short part is the last one
        number += 1
    rows = data.one_pass.start(number * size)
    while read := list(itertools.islice(rows, size)):
        known = folder.done(number)
        if known is None or len(known.rows) != len(read):
            yield PartTask(job, number, number * size, len(read), folder.temporary(number), read=read)
        number += 1


def column_table(job: Job) -> dict[str, Any]:
    """Returns the columns of a cache as its manifest names them."""
    return {name: {"dtype": column.dtype, "shape": list(column.shape)} for name, column in job.columns.items()}


def merge_parts(folder: StagingFolder, about: Mapping[str, Any], columns: Mapping[str, Any]) -> Manifest:
    """Writes the tables of all rows and returns the manifest, which is not written yet.

    It needs neither the rows nor a tokenizer: everything is in the finished parts.

    Args:
        folder: Holds all parts.
        about: Everything that decides the bytes of the cache, see `describe`.
        columns: See `column_table`.

    Raises:
        NoUsableRowsError: No part has a good row. The staging folder is deleted.
    """
    manifest = manifest_of(folder.parts(), about, columns)
    if not manifest.rows:
        folder.remove()
        what = "; ".join(
            f"{name} {entry['rows']:,}, first at {entry['first'][0]}" for name, entry in manifest.dropped.items()
        )
        raise NoUsableRowsError(f"no row of {about['source']} can be used ({what or 'it has none'}).")
    tables = (part.rows for part in folder.parts())
    measured = (Measured(table["lengths"], table["key"], table["verdict"], []) for table in tables)
    write_contents(folder.place(LENGTHS), measured, about["fingerprint"])
    files = _finish_parts(about["layout"], folder, dict(manifest.files))
    with guarded(folder.new):
        files[LENGTHS] = note_of(folder.file(LENGTHS), 0)
    return dataclasses.replace(manifest, files=files)


def manifest_of(parts: Iterable[PartDone], about: Mapping[str, Any], columns: Mapping[str, Any]) -> Manifest:
    """Returns the manifest of some parts, without the tables of all rows; other arguments as for `merge_parts`."""
    files: dict[str, FileNote] = {}
    origins: dict[str, list[str]] = {}
    dropped: Counter[str] = Counter()
    notes = np.zeros(len(NOTES), np.int64)
    rows = good = 0
    for part in parts:
        files |= part.files
        notes += part.notes
        rows += len(part.rows)
        verdicts = np.bincount(part.rows["verdict"], minlength=256)
        good += int(verdicts[GOOD])
        dropped.update({str(reason): int(verdicts[code]) for code, reason in REASONS.items() if verdicts[code]})
        for name, found in part.origins.items():
            origins[name] = (origins.get(name, []) + found)[:ORIGINS_KEPT]
    return Manifest(
        about=about,
        columns=columns,
        rows=good,
        source_rows=rows,
        dropped={name: {"rows": count, "first": origins[name]} for name, count in dropped.most_common()},
        notes={
            str(note.name).lower(): int(count)
            for note, count in zip(NOTES, notes, strict=True)
            if count or note <= Note.QUESTION_CUT
        },
        files=files,
        library=VERSION,
    )


def _finish_parts(layout: str, folder: StagingFolder, files: dict[str, FileNote]) -> dict[str, FileNote]:
    """Returns the notes on the files that hold the rows: those of the parts and a table, or what these are joined to.

    Args:
        layout: The layout of the cache.
        folder: Holds the finished parts.
        files: Their files in order, with their notes.

    Raises:
        CacheError: A file cannot be written.
    """
    if layout == MEGATRON:
        for name in JOINED_FILES:
            folder.place(name)
        lengths = [part.rows["lengths"][part.rows["verdict"] == GOOD] for part in folder.parts()]
        return join(folder.new, files, np.concatenate(lengths))
    write_small(folder.place(PLACES), npy_bytes(np.concatenate([part.rows["place"] for part in folder.parts()])))
    with guarded(folder.new):
        return files | {PLACES: note_of(folder.file(PLACES), 0)}


def _settle(
    data: StreamData,
    errors: Sequence[tuple[int, RowError]],
    unread: Sequence[tuple[int, Sequence[str]]] = (),
    first: int = 0,
    read: Sequence[RecordWithOrigin] | None = None,
) -> dict[str, list[str]]:
    """Raises, counts or quarantines bad rows, given with their ids. Returns the first few origins for each reason.

    Fields of good rows that nothing read are counted, likewise given with the ids of the rows.
    A source without random access gives the rows that were read, and the id of the first.
    """
    if read is None:
        assert data.records is not None
        origin, raw = data.records.origin, data.records.raw
    else:
        origin, raw = (lambda row: read[row - first][0]), (lambda row: read[row - first][1])
    bad_rows = BadRows(data.report, data.raise_malformed, origin, raw, data.quarantine)
    origins: dict[str, list[str]] = {}
    bad = [row for row, _ in errors]
    by_index = [False] * len(bad) if data.index is None or not bad else (data.index.keys_of(bad) < 0).tolist()
    for (row, error), is_known in zip(errors, by_index, strict=True):
        if not is_known:  # the stream has counted the rows that its index leaves out
            bad_rows.settle([row], Block.of([Loaded(None, error)]))
        known = origins.setdefault(str(error.reason), [])
        if len(known) < ORIGINS_KEPT:
            known.append(origin(row))
    for row, fields in unread:
        data.report.note_unread(fields, origin(row))
    return origins


def _settle_again(job: Job, data: StreamData, done: PartDone) -> None:
    """Puts the bad rows of a part that an earlier run has finished into this run's quarantine file."""
    rows = (done.number * job.rows_per_part + np.flatnonzero(done.rows["verdict"] != GOOD)).tolist()
    loaded = data.local.load(rows)
    _settle(data, [(row, one.error) for row, one in zip(rows, loaded, strict=True) if one.error is not None])


def _bar(label: str, progress: bool) -> Progress:
    return progress_on(sys.stderr, label) if progress else Progress()
