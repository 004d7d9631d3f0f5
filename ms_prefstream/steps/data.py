"""The data of a stream on this rank: the opened source, its records, and how they are loaded and counted.

The options of a stream that concern them come in two frozen groups, `Encoding` and `BadRowPolicy`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ms_prefstream.checks import check_made
from ms_prefstream.disk import shown
from ms_prefstream.encode.template import checked_variables, first_day, is_day, template_text
from ms_prefstream.encode.tokenizer import choose_pad_id, load_tokenizer
from ms_prefstream.errors import OptionError, StateError
from ms_prefstream.lengths import LengthIndex, raise_malformed_of
from ms_prefstream.load.cached import check_cache, encoding_of, tokenizer_of
from ms_prefstream.load.index_files import Part, build_indexes, find_index, index_parts, indexed_date
from ms_prefstream.load.loader import Load, Recipe
from ms_prefstream.load.one_pass import MixedOnePassRecords, PassWindow, SingleOnePassRecords, open_one_pass
from ms_prefstream.load.records import MixedRecords, fingerprint_of, formats_of, open_records
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.load.workers.prefetch import Prefetch
from ms_prefstream.plan import Ranks
from ms_prefstream.progress import progress_on
from ms_prefstream.report.bad_rows import BadRows, Quarantine
from ms_prefstream.report.report import PartReport, Report
from ms_prefstream.sources import open_source
from ms_prefstream.sources.cached import caches_in, only_caches
from ms_prefstream.sources.files import check_target
from ms_prefstream.sources.mix import Mix
from ms_prefstream.sources.own_files import is_quarantine
from ms_prefstream.sources.paths import own_files_beside
from ms_prefstream.tasks import Task
from ms_prefstream.tasks.base import check_room

_RELOADED_TOGETHER = 2048  # rows


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Options of `ms_prefstream.stream` that decide the tokens of a row; documented there."""

    task: Task
    tokenizer: Any
    format: Any = "auto"
    fields: Mapping[str, str] | None = None
    template: str | None = "auto"
    template_variables: Mapping[str, Any] | None = None
    pad_token_id: int | None = None
    vocab_size: int | None = None
    boundary: str = "joint"
    special_tokens_in_content: str = "escape"
    content_lost: str = "report"
    continue_final_message: str = "error"
    train_empty_think: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_made("task", self.task, "sampler", "mps.DPO(max_length=1024)")
        if self.tokenizer is ...:
            raise OptionError(
                "tokenizer is missing; expected a directory, a file or an object, or None for rows that are already "
                "tokenized, as those of a cache are."
            )

    def recipe(self, ready: bool) -> Recipe:
        """Loads the tokenizer and the template.

        Args:
            ready: Whether the records are samples already.
        """
        tokenizer = None if self.tokenizer is None else load_tokenizer(self.tokenizer, self.backend)
        template = None if tokenizer is None else template_text(self.template, tokenizer)
        variables = checked_variables(self.template_variables)
        return Recipe(
            records=None,
            task=self.task,
            tokenizer=tokenizer,
            template=template,
            template_variables=variables or None,
            template_date=None if ready else first_day(template, variables),
            boundary=self.boundary,
            special_tokens_in_content=self.special_tokens_in_content,
            content_lost=self.content_lost,
            continue_final_message=self.continue_final_message,
            train_empty_think=self.train_empty_think,
            ready=ready,
        )


@dataclass(frozen=True, kw_only=True)
class BadRowPolicy:
    """Options of `ms_prefstream.stream` for bad rows; documented there."""

    on_bad_row: str = "raise"
    quarantine: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.on_bad_row not in ("raise", "drop"):
            raise OptionError(f"on_bad_row is {self.on_bad_row!r}; expected 'raise' or 'drop'.")


class StreamData:
    """The data of a stream, without order and batches.

    Args:
        source: The source of a stream, opened or not.
        encoding: What decides about the tokens of a row.
        policy: What happens to bad rows.
        ranks: Which rank writes the quarantine file.
        workers: Processes that load samples; 0 loads them here.
        index: ``auto``, the path of a length index, or None.

    Attributes:
        source: The opened source.
        records: Random access to the records; None for a one-pass source.
        recipe: What rows become; can be sent to other processes.
        encoding: What decides about tokens, by name, as plain values: a length index must have been built with the
            same.
        pad_token_id: The id that arrays are padded with.
        local: Loads samples in this process.
        pool: Loads them in worker processes; None without workers.
        raise_malformed: Whether a malformed row is an error.
        quarantine: The file of dropped rows, or None.
        report: Counts.
        index: The length index in use, or None.
    """

    def __init__(
        self,
        source: Any,
        encoding: Encoding,
        policy: BadRowPolicy,
        ranks: Ranks,
        *,
        workers: int = 0,
        index: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise OptionError(f"workers is {workers!r}; expected a whole number of processes, 0 for none.")
        if index is not None and not isinstance(index, (str, os.PathLike)):
            raise OptionError(f"index is {index!r}; expected 'auto', the path of a length index, or None.")
        self.source: Any = source if isinstance(source, Mix) else open_source(source)
        recipe = encoding.recipe(ready=only_caches(self.source))
        self._formats = formats_of(self.source, encoding.format, encoding.fields)
        recipe = self._open_encoding(encoding, recipe)
        self.records = open_records(self.source, self._formats)
        self.recipe = dataclasses.replace(recipe, records=self.records)
        self.local = self.recipe.loader()
        self.pool = LoaderPool(self.recipe, workers, self.local) if workers else None
        self.raise_malformed, self.quarantine = policy.on_bad_row == "raise", None
        if policy.quarantine is not None:
            self.quarantine = Quarantine(policy.quarantine, ranks.rank, ranks.world)
            check_target("quarantine", self.quarantine.path, self.source, is_quarantine)
        self.report.left_out_files = own_files_beside(self.source)
        self.index: LengthIndex | None = None
        if self.records is not None:
            self.report.filtered, self.report.rows = self.records.filtered, len(self.records)
        self._find_index(index)
        if self.local.encoder is not None:
            check_room(self.task, self.local.encoder)

    def _open_encoding(self, given: Encoding, recipe: Recipe) -> Recipe:
        """Fix what decides about tokens: as given, and checked against the caches among the sources.

        Returns the recipe, with the day of the first cache that has one.
        """
        task, tokenizer, pad_id = given.task, recipe.tokenizer, given.pad_token_id
        caches = caches_in(self.source)
        dates = [cache.manifest.about["fingerprint"].get("template_date") for cache in caches]
        if recipe.template_date is not None and is_day(first := next(filter(None, dates), None)):
            recipe = dataclasses.replace(recipe, template_date=first)
        encoding = recipe.encoding(self._formats)
        for cache in caches:
            check_cache(cache, task, tokenizer, encoding, given.format if recipe.ready else "auto", given.template)
        self.encoding, self.report = encoding, Report(tokenizer="" if tokenizer is None else tokenizer.description)
        if recipe.ready:
            self.encoding, self.report.tokenizer = encoding_of(caches[0], task), tokenizer_of(caches[0])
            pad_id = caches[0].pad_token_id if pad_id is None else pad_id
        self.pad_token_id = choose_pad_id(pad_id, tokenizer)
        return recipe

    def use_template_date(self, date: str) -> None:
        """Renders the template with this day from now on, that of the run which a state, index or cache comes from.

        Steps that are open keep the former day.
        """
        if date == self.recipe.template_date:
            return
        self.recipe = dataclasses.replace(self.recipe, template_date=date)
        self.encoding = {**self.encoding, "template_date": date}
        self.local = self.recipe.loader()
        if self.pool is not None:
            self.pool = LoaderPool(self.recipe, self.pool.workers, self.local)

    @property
    def task(self) -> Task:
        """What rows become."""
        return self.recipe.task

    @property
    def workers(self) -> int:
        """The number of worker processes."""
        return 0 if self.pool is None else self.pool.workers

    @functools.cached_property
    def one_pass(self) -> SingleOnePassRecords | MixedOnePassRecords:
        """The records of a one-pass source."""
        return open_one_pass(self.source, self._formats)

    @functools.cached_property
    def counted(self) -> int:
        """The rows of an epoch of a one-pass source; reads the source unless it states the number."""
        return self.one_pass.count()

    def loader(self) -> Load:
        """Returns the loader of a source with random access: the worker processes, or this process."""
        return self.local if self.pool is None else Prefetch(self.pool)

    def bad_rows(self) -> BadRows:
        """Returns what counts, raises or drops the bad rows of a source with random access."""
        assert self.records is not None
        return self._bad_rows(origin=self.records.origin, raw=self.records.raw, part=self._part())

    def pass_loader(self, window: PassWindow) -> Load:
        """Returns the loader of the records of one pass."""
        return self.local.over(window) if self.pool is None else Prefetch(self.pool, window)

    def pass_bad_rows(self, window: PassWindow) -> BadRows:
        """Returns what counts, raises or drops the bad rows of one pass; rows are numbered over all epochs."""
        records, part = self.one_pass, None
        if isinstance(records, MixedOnePassRecords):
            reports = list(self.report.parts.values())
            part = lambda number: reports[records.part_of(number)]  # noqa: E731
        return self._bad_rows(origin=window.origin, raw=window.raw, part=part, first=window.before)

    def build_index(self, path: str | os.PathLike[str] | None, progress: bool) -> LengthIndex:
        """Measure every row, write the length index and use it from now on.

        Args:
            path: Where to write it, for a mix a folder; None puts it beside a single file, for a mix beside each.
            progress: Whether to show a progress bar.

        Raises:
            OptionError: The source can only be read in one pass, or is a cache.
            RowError: The first malformed row, if such rows are errors.
        """
        if self.records is None:
            raise OptionError(
                f"{self.source.name} can only be read from the front, so it has no length index. Unpack it to plain "
                "JSON Lines, or write it to a cache."
            )
        if self._cached:
            raise OptionError(f"{self.source.name} is a cache, which has a length index of its own already.")
        index = build_indexes(
            self._parts(),
            self.local if self.pool is None else self.pool,
            path,
            origin=self.records.origin,
            raise_malformed=self.raise_malformed,
            progress=progress_on(sys.stderr) if progress else None,
        )
        self._use_index(index)
        return index

    def fingerprint(self) -> str:
        """Returns a hash that changes when the data change."""
        found: str = self.source.fingerprint() if self.records is None else fingerprint_of(self.records)
        return found

    def fingerprints(self) -> dict[str, Any]:
        """Returns everything that decides about samples, by name: the data and the encoding."""
        return {"data": self.fingerprint(), **self.encoding}

    def mix(self) -> dict[str, Any] | None:
        """Returns what a state says of a mix, its weights and when its epochs end; None for other sources."""
        mix: Any = self.one_pass if self.records is None else getattr(self.records, "mixture", None)
        if not hasattr(mix, "weights"):
            return None
        return {"weights": list(mix.weights), "stop": mix.stop}

    def resume_quarantine(self) -> None:
        """Keep what the quarantine file holds: the run continues one that wrote it."""
        if self.quarantine is not None:
            self.quarantine.keep()

    @property
    def _cached(self) -> bool:
        return bool(getattr(self.source, "ready", False))

    def _bad_rows(self, **origin_of: Any) -> BadRows:
        return BadRows(self.report, self.raise_malformed, quarantine=self.quarantine, **origin_of)

    def _part(self) -> Callable[[int], PartReport] | None:
        """Returns the function from a row to the report of its part; None without a mix."""
        if not isinstance(self.records, MixedRecords):
            return None
        part_of, reports = self.records.part_of, list(self.report.parts.values())
        return lambda row: reports[part_of(row)]

    def _find_index(self, index: str | os.PathLike[str] | None) -> None:
        """Use the index that was named, or the one that lies beside the data."""
        named = index is not None and index != "auto"
        if named and self.records is None:
            raise OptionError(f"index is {str(index)!r}, but {self.source.name} can only be read from the front.")
        if named and self._cached:
            raise OptionError(f"index is {str(index)!r}, but {self.source.name} has an index of its own. Leave it out.")
        if self.recipe.template_date is not None and index is not None and self.records is not None:
            self.use_template_date(indexed_date(self._parts(), index) or self.recipe.template_date)
        if index is not None and self.records is not None and (found := find_index(self._parts(), index)) is not None:
            self._use_index(found)

    def _parts(self) -> list[Part]:
        """Returns what each index file covers."""
        assert self.records is not None  # a one-pass source has no index
        return index_parts(self.source, self.records, self._formats, self.encoding)

    def _use_index(self, index: LengthIndex) -> None:
        """Use an index: report the rows that it knows to be bad, or raise the first malformed one."""
        self.index, records, quarantine = index, self.records, self.quarantine
        assert records is not None
        longest = int(index.keys.max(initial=0))
        if longest > self.task.length:
            raise StateError(
                f"the length index {shown(index.path)} has a row of {longest:,} tokens, but {self.task!r} gives at "
                f"most {self.task.length:,}. It is damaged: build it again."
            )
        if self.raise_malformed and not self._cached:
            raise_malformed_of(index.verdict, self.local, records.origin)
        counts = [(str(one.reason), one.rows, [records.origin(row) for row in one.first]) for one in index.counts]
        self.report.known(counts)
        if quarantine is None:
            return
        bad = np.flatnonzero(index.verdict)[quarantine.rank :: quarantine.world].tolist()
        for begin in range(0, len(bad), _RELOADED_TOGETHER):
            rows = bad[begin : begin + _RELOADED_TOGETHER]
            for row, one in zip(rows, self.local.load(rows), strict=True):
                if one.error is not None:
                    quarantine.add(one.error.at(records.origin(row)), records.raw(row))
