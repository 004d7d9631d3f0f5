"""`mps.stats`: one pass over a source, here or in worker processes."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from ms_prefstream.checks import checked_call, group_of, process_count, whole_number
from ms_prefstream.errors import OptionError, RowError
from ms_prefstream.load.one_pass import RecordWithOrigin, records_of
from ms_prefstream.load.records import formats_of
from ms_prefstream.load.workers.engines import Engine, check_engine, open_engine
from ms_prefstream.progress import Progress, progress_on
from ms_prefstream.sample import Ready
from ms_prefstream.sources.base import RandomAccess, RawPass, no_rows
from ms_prefstream.sources.cached import only_caches
from ms_prefstream.sources.concat import begin_pass
from ms_prefstream.sources.copies import Remote
from ms_prefstream.sources.mix import open_rows, parts_of
from ms_prefstream.stats.collect import Collected, Described, kind_of, type_of
from ms_prefstream.stats.measure import NO_LIMIT, Chunk, Measured, MeasureRecipe, measure
from ms_prefstream.stats.near import is_installed
from ms_prefstream.stats.result import Stats
from ms_prefstream.steps.data import Encoding
from ms_prefstream.steps.look import formats_in
from ms_prefstream.tasks import DPO, RLHF, Task
from ms_prefstream.tasks.base import traits

LIMITS = (512, 1024, 2048, 4096)
_LEAST = 16  # tokens of a limit
_Measure = Callable[[Any, Chunk], Measured]
_TOGETHER = 256  # rows that are measured at a time
_LOOKED_AT = 64  # rows whose preset is looked up
_WITHOUT_TOKENIZER: Mapping[str, Any] = {
    "tokenizer": "bytes",
    "template": "auto",
    "template_variables": None,
    "vocab_size": None,
    "backend": "auto",
}
"""Options that find the rows which every stream would drop."""


@checked_call
def stats(
    source: Any,
    *,
    tokenizer: Any = None,
    task: Task | None = None,
    format: Any = "auto",
    fields: Mapping[str, str] | None = None,
    template: str | None = "auto",
    template_variables: Mapping[str, Any] | None = None,
    vocab_size: int | None = None,
    boundary: str = "auto",
    special_tokens_in_content: str = "escape",
    content_lost: str = "report",
    continue_final_message: str = "error",
    train_empty_think: bool = False,
    template_limit_s: float | None = 10.0,
    carry: Sequence[str] | Mapping[str, Any] | None = None,
    backend: str = "auto",
    against: Any = None,
    limits: Sequence[int] = LIMITS,
    batch_size: int = 8,
    workers: int = 0,
    engine: str = "local",
    ray_address: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Stats:
    """Counts what preference data are, in one pass: lengths, duplicates, drops, padding.

    Memory grows by 24 bytes a row, and by 128 more where near duplicates are looked for, which needs the package rensa
    (`pip install "ms-prefstream[report]"`). No text is kept.

    Args:
        source: What `ms_prefstream.stream` takes; an iterator is consumed.
        tokenizer: As for `ms_prefstream.stream`, like all that follows up to `backend`. None counts characters alone,
            and tokens of rows that are tokenized.
        task: What rows become; None takes `DPO` for pairs and `RLHF` for rows with one response, without limits.
        format: A preset's name, a preset, or a function row -> row.
        fields: Standard name -> the row's field.
        template: ``auto``, ``chat``, Jinja text, the path of a .jinja file, or None.
        template_variables: Further variables of a chat template.
        vocab_size: Rows of the model's embedding.
        boundary: ``auto``, ``joint`` or ``inference``.
        special_tokens_in_content: ``escape``, ``error`` or ``allow``.
        content_lost: ``report``, ``drop`` or ``error``.
        continue_final_message: ``error`` or ``join``.
        train_empty_think: Whether an empty think block is under the loss.
        template_limit_s: Seconds that a chat template may take for one conversation; None for no limit.
        carry: Fields of the row that become further columns; rows without one of them are counted as dropped.
        backend: ``auto``, ``fastokens``, ``tiktoken``, ``tokenizers`` or ``sentencepiece``.
        against: Other data, such as an evaluation set, whose prompts should not be among the rows.
        limits: Tokens at which rows are cut, to see what is lost; the task's own limit is added.
        batch_size: Rows of a step, for padding and steps.
        workers: Processes that measure; 0 does it in this one. The result is the same.
        engine: ``local``: this machine. ``ray``: a Ray cluster, to which this process sends the rows.
        ray_address: Of a running cluster; None starts one on this machine with `workers` processes.
        storage_options: Credentials and addresses of the stores of URLs, as for `ms_prefstream.stream`.
        cache_dir: Folder of the local copies of remote files, likewise.
        progress: Whether to show progress on standard error.

    Returns:
        A `Stats`; `print` shows it, `to_dict` gives plain values. Bad rows are counted, never raised.

    Raises:
        PrefStreamError: An option cannot be used, or the source cannot be opened.
    """
    given, begin = locals(), time.monotonic()
    check_engine(engine, ray_address)
    batch_size, workers = whole_number("batch_size", batch_size, 1), process_count(workers)
    remote = group_of(Remote, given)
    opened = open_rows(source, remote)
    if tokenizer is None:
        given |= _WITHOUT_TOKENIZER
    encoding = group_of(Encoding, given | {"task": task or DPO(NO_LIMIT)})
    carried = None if carry is None else encoding.carried(opened)
    formats = formats_of(opened, format, fields, carried, task is not None and traits(task).unpairs)
    ready = only_caches(opened)
    limits = () if ready else _checked_limits(limits, task)  # samples of a cache were cut before
    recipe = encoding.recipe(ready)
    alone = None
    if task is None:
        alone = dataclasses.replace(recipe, task=RLHF(NO_LIMIT // 2, NO_LIMIT), boundary=boundary)
    bare = None if tokenizer is None else recipe.tokenizer
    measuring = MeasureRecipe(recipe=recipe, alone=alone, bare=bare, limits=limits, near=is_installed())
    rows, collected, other, named = _Rows(opened, formats), Collected(limits), None, ""
    asked: Any = measuring  # an engine asks it for nothing but its loader
    with open_engine(engine, ray_address, asked, workers) as by:
        if against is not None:
            there = open_rows(against, remote)
            other, named = Collected(limits), there.name
            _pass(_Rows(there, formats_of(there, format, fields)), by, other, Progress())
        _pass(rows, by, collected, progress_on(label="stats") if progress else Progress())
    found = collected.result(
        source=opened.name,
        formats=tuple(formats_in(formats, rows.first)) if rows.first else (),
        tokenizer=None if bare is None else os.path.basename(bare.name.rstrip("/")),
        task=task,
        batch_size=batch_size,
        against=other,
        against_name=named,
    )
    return dataclasses.replace(found, seconds=time.monotonic() - begin)


def _checked_limits(limits: Sequence[int], task: Task | None) -> tuple[int, ...]:
    """Returns the limits with that of the task, ascending."""
    if isinstance(limits, str) or not isinstance(limits, Sequence):
        raise OptionError(f"limits is {limits!r}; expected numbers of tokens, such as {LIMITS}.")
    found = {whole_number(f"limits[{place}]", limit, _LEAST, NO_LIMIT - 1) for place, limit in enumerate(limits)}
    return tuple(sorted(found | ({task.length} if task is not None else set())))


class _Rows:
    """The rows of a source or of a mix, as chunks of records.

    Attributes:
        name: The name of the source.
        total: How many rows there are; None where they must be read to find out.
        read: How many were read.
        first: The first raw rows.
    """

    def __init__(self, source: Any, formats: Sequence[Any]) -> None:
        self._parts = parts_of(source)
        self._formats = formats
        self.name = source.name
        known = [len(part) if isinstance(part, RandomAccess) else None for part in self._parts]
        self.total = None if None in known else sum(filter(None, known))
        self.read = 0
        self.first: list[Any] = []

    def chunks(self) -> Iterator[tuple[Chunk, Described]]:
        """Yields the records, and what is kept of them here while they are measured."""
        records, count = self._records(), 0
        while some := list(itertools.islice(records, _TOGETHER)):
            origins, raws, found = zip(*some, strict=True)
            kinds = [kind_of(record) for record in found]
            types = [type_of(raw) if kind else "" for raw, kind in zip(raws, kinds, strict=True)]
            yield Chunk(count, found), Described(origins, kinds, types)
            count += len(some)

    def _records(self) -> Iterator[RecordWithOrigin]:
        for part, fmt in zip(self._parts, self._formats, strict=True):
            yield from records_of(self._raw(part), fmt)

    def _raw(self, part: Any) -> RawPass:
        for origin, raw in begin_pass(part, 0)[1]:
            self.read += 1
            if len(self.first) < _LOOKED_AT and not isinstance(raw, (RowError, Ready)):
                self.first.append(raw)
            yield origin, raw


def _pass(rows: _Rows, by: Engine, collected: Collected, bar: Progress) -> None:
    """Measures and counts all rows of a source."""
    waiting: deque[Described] = deque()

    def chunks() -> Iterator[Chunk]:
        shown = 0
        for chunk, described in rows.chunks():
            waiting.append(described)
            bar.advance(rows.read - shown)
            shown = rows.read
            yield chunk

    bar.begin(rows.total, 0)
    try:
        for found in by.calls(cast(_Measure, measure), chunks(), lambda chunk: ()):
            collected.add(found, waiting.popleft())
    finally:
        bar.end()
    if not collected.rows:
        raise no_rows(rows.name)
