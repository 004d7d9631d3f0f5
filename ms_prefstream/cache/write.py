"""`mps.write_cache`: writes the samples of a stream to the files of a cache. An interrupted run resumes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ms_prefstream.batch import Pad
from ms_prefstream.cache.compatibility import can_resume, describe, has_reference_logps, has_samples
from ms_prefstream.cache.folder import StagingFolder
from ms_prefstream.cache.layouts import ROWS_PER_PART, Job
from ms_prefstream.cache.parts import NOTES, PartDone, PartTask, write_part
from ms_prefstream.cache.publish import RemoteStagingFolder
from ms_prefstream.cache.ray import write_on_ray
from ms_prefstream.cache.reference import Reference, ReferenceModel, add_reference
from ms_prefstream.checks import check_made, checked_call
from ms_prefstream.disk import check_path
from ms_prefstream.errors import NoUsableRowsError, OptionError, RowError, SourceError
from ms_prefstream.lengths.index import GOOD, REASONS, Measured
from ms_prefstream.lengths.index_file import write_contents
from ms_prefstream.load.one_pass import RecordWithOrigin
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.mindrecord.files import FileNote, guarded, note_of, npy_bytes, write_small
from ms_prefstream.mindrecord.manifest import LENGTHS, PLACES, Manifest, without_reference
from ms_prefstream.mindrecord.megatron import JOINED_FILES, MEGATRON, join
from ms_prefstream.progress import Progress, progress_on
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.report.report import ORIGINS_KEPT
from ms_prefstream.sample import Block, Loaded, Note
from ms_prefstream.sources.cached import CachedRows
from ms_prefstream.sources.copies import Remote
from ms_prefstream.sources.mix import Mix
from ms_prefstream.sources.store import is_url, without_secrets
from ms_prefstream.steps.data import StreamData
from ms_prefstream.tasks import Task
from ms_prefstream.version import VERSION


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
    rows_per_part: int = ROWS_PER_PART,
    progress: bool = False,
    reference: Reference | None = None,
    reference_id: str | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Manifest:
    """Writes the samples of a stream to MindRecord files, in the order of their rows.

    The folder `out` appears only when it is complete. Until then finished parts are in ``out.writing``, and an
    interrupted run resumes with them. The output is byte-identical for any number of workers and interruptions.

    Args:
        stream: Makes the samples. Its order and batching do not matter, except for the length of `Pad`, to which the
            fixed layouts are padded (the task's length otherwise).
        out: The folder, or its URL. A remote cache is written to a staging folder in `cache_dir`. Then it is uploaded
            file by file, the manifest last.
        layout: ``ragged``: no padding, read back by `mps.stream(out, …)`. ``mindrlhf`` (DPO, RLHF),
            ``mindrlhf-grpo`` (RLHF, the answer alone in pretrain_ids) and ``mindformers`` (reward): every row padded,
            as their trainers read them.
        overwrite: Whether an existing cache may be replaced, once the new one is complete.
        workers: Processes that tokenise and write; None takes the stream's.
        rows_per_part: Rows of the source for each file.
        progress: Whether to show rows a second and the time left, on standard error.
        reference: For DPO: a function from a batch of the layout `paired` to the log-probabilities of both sides,
            (B,) each, summed over the loss mask; for KTO: from a batch without kl columns to those of its rows. The
            cache holds them, and streams of it have the columns `chosen_ref_logps` and `rejected_ref_logps`, or
            `ref_logps`. They are added to an existing cache of the same samples, and
            to the cache that the stream itself reads, without writing it again.
        reference_id: Names the checkpoint of `reference`.
        engine: ``local``: this machine. ``ray``: a Ray cluster whose machines share the file system of `out`.
        ray_address: Of a running cluster; None starts one on this machine with `workers` processes.
        storage_options: Credentials and address of the store of `out`, as for `mps.stream`; None takes the stream's.
        cache_dir: Likewise, where the staging folder of a remote `out` lies.

    Returns:
        The manifest.

    Raises:
        CacheError: A file cannot be written.
        OptionError: `out` exists, or the layout does not fit the task.
        RowError: The first malformed row, if these are errors.
    """
    check_made("stream", stream, "data", "mps.stream(...)")
    if not isinstance(out, (str, os.PathLike)) or not os.fspath(out):
        raise OptionError(f"out is {out!r}; expected the path of the folder that is to be written.")
    out, data = os.fspath(out), stream.data
    check_path(out, OptionError, "out")
    check_source(data)
    check_engine(engine, ray_address)
    model = None
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
        rows_per_part=rows_per_part,
        reference=has_reference_logps(data.source, layout),
        carried=data.carried,
    )
    about, resume = describe(job, data), can_resume(data)
    with staging_folder(out, data.remote.with_(storage_options, cache_dir)) as folder:
        planned = folder.planned()
        other = data.with_settings_of(planned.get("fingerprint"))
        if other is not data:
            described = describe(job, other)
            adds = model is not None and has_samples(out, described, complete=overwrite)
            if adds or described == planned:
                data, about = other, described
        run = functools.partial(ENGINES[engine], data, data.workers if workers is None else workers, ray_address)
        if model is not None and resume and has_samples(out, about, complete=overwrite):
            added = add_reference(model, out, folder.reference, reference_bar, overwrite)
            folder.remove_reference()
            return added
        manifest = folder.begin(about, overwrite, resume)
        if manifest is None:
            write_missing(job, data, folder, run, _bar("cache", progress))
            manifest = folder.seal(merge_parts(job, data, about, folder))
        if (manifest.reference or {}).get("reference_id") != reference_id:  # an interrupted run may have added some
            manifest = folder.seal(without_reference(manifest))
            if model is not None:
                manifest = add_reference(model, folder.new, folder.reference, reference_bar, overwrite)
        folder.publish()
        return manifest


def staging_folder(out: str, remote: Remote) -> StagingFolder:
    """Returns the staging folder of a cache at a path or a URL."""
    return RemoteStagingFolder(out, remote) if is_url(out) else StagingFolder(out)


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


def write_locally(
    data: StreamData, workers: int, address: str | None, tasks: Iterator[PartTask]
) -> Generator[PartDone, None, None]:
    """Yields the finished parts in order, written in this process or by worker processes. The address is unused."""
    first = list(itertools.islice(tasks, 2)) if workers != 0 else []
    tasks = itertools.chain(first, tasks)
    if len(first) < 2:  # starting a process for a single part costs more than it gains
        yield from (write_part(data.local, task) for task in tasks)
        return
    with LoaderPool(data.recipe, workers, data.local) as pool:
        yield from pool.calls(write_part, tasks, PartTask.row_ids)


ENGINES: dict[str, Callable[..., Generator[PartDone, None, None]]] = {"local": write_locally, "ray": write_on_ray}


def check_engine(name: str, address: str | None) -> None:
    """Checks the options `engine` and `ray_address`.

    Raises:
        OptionError: Names what is allowed.
    """
    if name not in ENGINES:
        raise OptionError(f"engine is {name!r}; expected one of {', '.join(map(repr, ENGINES))}.")
    if address is not None and name != "ray":
        raise OptionError(f"ray_address is {address!r}, but engine is {name!r}. Pass engine='ray', or leave it out.")


def write_missing(
    job: Job,
    data: StreamData,
    folder: StagingFolder,
    run: Callable[..., Generator[PartDone, None, None]],
    shown: Progress,
) -> None:
    """Writes every part that no earlier run has finished."""
    total = 0 if data.records is None else len(data.records)
    finished = [folder.done(number) for number in range(-(-total // job.rows_per_part))]
    shown.begin(total, sum(len(done.rows) for done in finished if done is not None))
    try:
        if data.quarantine is not None:
            for done in filter(None, finished):
                _settle_again(job, data, done)
        tasks, queue = itertools.tee(missing_parts(job, data, folder))
        with contextlib.closing(run(queue)) as parts:
            for task, done in zip(tasks, parts, strict=True):
                folder.add(
                    done._replace(origins=_settle(data, done.errors, done.unread, task.first, task.read)), task.folder
                )
                shown.advance(task.count)
    finally:
        shown.end()


def missing_parts(job: Job, data: StreamData, folder: StagingFolder) -> Iterator[PartTask]:
    """Yields the parts that are not finished, in order. Rows of finished parts are not read where possible."""
    size = job.rows_per_part
    if data.records is not None:
        left_out = data.left_out()
        for number, first in enumerate(range(0, len(data.records), size)):
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


def merge_parts(job: Job, data: StreamData, about: dict[str, Any], folder: StagingFolder) -> Manifest:
    """Writes the tables of all rows and returns the manifest, which is not written yet.

    Raises:
        NoUsableRowsError: No part has a good row. The staging folder is deleted.
    """
    files: dict[str, FileNote] = {}
    of_parts: list[dict[str, FileNote]] = []
    origins: dict[str, list[str]] = {}
    dropped: Counter[str] = Counter()
    notes = np.zeros(len(NOTES), np.int64)
    rows = good = 0
    for part in folder.parts():
        of_parts.append(part.files)
        notes += part.notes
        rows += len(part.rows)
        verdicts = np.bincount(part.rows["verdict"], minlength=256)
        good += int(verdicts[GOOD])
        dropped.update({str(reason): int(verdicts[code]) for code, reason in REASONS.items() if verdicts[code]})
        for name, found in part.origins.items():
            origins[name] = (origins.get(name, []) + found)[:ORIGINS_KEPT]
    if not good:
        folder.remove()
        what = "; ".join(f"{name} {count:,}, first at {origins[name][0]}" for name, count in dropped.most_common())
        raise NoUsableRowsError(f"no row of {data.source.name} can be used ({what or 'it has none'}).")
    tables = (part.rows for part in folder.parts())
    measured = (Measured(table["lengths"], table["key"], table["verdict"], []) for table in tables)
    write_contents(folder.place(LENGTHS), measured, data.fingerprints())
    files = _finish_parts(job, folder, [files for files in of_parts if files])
    with guarded(folder.new):
        files[LENGTHS] = note_of(folder.file(LENGTHS), 0)
    return Manifest(
        about=about,
        columns={name: {"dtype": column.dtype, "shape": list(column.shape)} for name, column in job.columns.items()},
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


def _finish_parts(job: Job, folder: StagingFolder, parts: Sequence[dict[str, FileNote]]) -> dict[str, FileNote]:
    """Returns the notes on the files that hold the rows: those of the parts and a table, or what these are joined to.

    Raises:
        CacheError: A file cannot be written.
    """
    if job.layout == MEGATRON:
        for name in JOINED_FILES:
            folder.place(name)
        lengths = [part.rows["lengths"][part.rows["verdict"] == GOOD] for part in folder.parts()]
        return join(folder.new, parts, np.concatenate(lengths))
    write_small(folder.place(PLACES), npy_bytes(np.concatenate([part.rows["place"] for part in folder.parts()])))
    with guarded(folder.new):
        places = {PLACES: note_of(folder.file(PLACES), 0)}
    return {name: note for files in parts for name, note in files.items()} | places


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
    for row, error in errors:
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
