"""The data of a stream on this rank: the opened source, its records, and how they are loaded and counted.

The options of a stream that concern them come in two frozen groups, `Encoding` and `BadRowPolicy`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.checks import check_made, process_count
from ms_prefstream.disk import shown
from ms_prefstream.encode.build import AUTO, BOUNDARIES
from ms_prefstream.encode.template_limits import SECONDS
from ms_prefstream.encode.template_text import checked_variables, first_day, is_day, template_text
from ms_prefstream.encode.tokenizer import choose_pad_id, load_tokenizer, with_embedding
from ms_prefstream.errors import OptionError, StateError
from ms_prefstream.formats.carry import Carry, carry_of
from ms_prefstream.lengths import IndexInUseError, LengthIndex, raise_malformed_of
from ms_prefstream.lengths.index import REASONS, Loader
from ms_prefstream.load.ahead import RECORDS_AHEAD, SAMPLES_AHEAD, ReadAhead
from ms_prefstream.load.cached import check_cache, encoding_of, tokenizer_of
from ms_prefstream.load.carried import carried_by
from ms_prefstream.load.index_files import (
    FoundIndex,
    Part,
    begun_with,
    build_indexes,
    built_with_of,
    find_beside,
    find_index,
    index_parts,
)
from ms_prefstream.load.loader import Load, Recipe
from ms_prefstream.load.marks import LEFT_OUT, Noted, excluded_questions, order_key
from ms_prefstream.load.one_pass import (
    MixedOnePassRecords,
    PassWindow,
    SingleOnePassRecords,
    open_one_pass,
)
from ms_prefstream.load.records import MixedRecords, fingerprint_of, formats_of, open_records
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.load.workers.prefetch import Prefetch
from ms_prefstream.part_range import PartRange
from ms_prefstream.plan import Ranks
from ms_prefstream.progress import progress_on
from ms_prefstream.report.bad_rows import BadRows, Quarantine
from ms_prefstream.report.findings import NO_TEMPLATE
from ms_prefstream.report.report import PartReport, Report
from ms_prefstream.sources.cached import caches_in, only_caches
from ms_prefstream.sources.copies import Remote
from ms_prefstream.sources.files import check_target
from ms_prefstream.sources.mix import open_rows
from ms_prefstream.sources.own_files import is_quarantine
from ms_prefstream.sources.paths import own_files_beside
from ms_prefstream.steps.look import Look
from ms_prefstream.tasks import Task
from ms_prefstream.tasks.base import check_room, traits

_RELOADED_TOGETHER = 2048  # rows
# Settings that may be left open, with what their values must fulfil.
_OPEN: Mapping[str, Callable[[Any], bool]] = {"boundary": BOUNDARIES.__contains__, "template_date": is_day}
_PAUSE = 0.2  # seconds between two looks at an index that another process is building
_log = logging.getLogger("ms_prefstream")


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
    boundary: str = AUTO
    special_tokens_in_content: str = "escape"
    content_lost: str = "report"
    continue_final_message: str = "error"
    train_empty_think: bool = False
    template_limit_s: float | None = SECONDS
    backend: str = "auto"
    carry: Any = None

    def __post_init__(self) -> None:
        carry_of(self.carry)
        check_made("task", self.task, "sampler", "mps.DPO(max_length=1024)")
        if self.tokenizer is ...:
            raise OptionError(
                "tokenizer is missing; expected a directory, a file or an object, or None for rows that are already "
                "tokenized, as those of a cache are."
            )

    def carried(self, source: Any) -> Carry | None:
        """Returns the fields of an opened source that are carried, see `carried_by`."""
        return carried_by(source, carry_of(self.carry))

    def recipe(self, ready: bool, carry: Carry | None = None) -> Recipe:
        """Loads the tokenizer and the template.

        Args:
            ready: Whether the records are samples already.
            carry: What `carried` returned.
        """
        tokenizer = None
        if self.tokenizer is not None:
            tokenizer = with_embedding(load_tokenizer(self.tokenizer, self.backend), self.vocab_size)
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
            template_limit_s=self.template_limit_s,
            carry=carry,
            ready=ready,
        )


def _warn(report: Report, is_logged: bool, problem: str) -> None:
    """Notes what the user should hear about in the report, and logs it the first time."""
    if problem not in report.warnings:
        report.warnings.append(problem)
        if is_logged:
            _log.warning("%s", problem)


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
        order_by: The option of a stream; an index must hold what it needs.
        remote: How stores are opened, for the source and for other data that are named later.
        workers: Processes that load samples; 0 loads them here.
        index: ``auto``, ``build``, the path of a length index, or None.
        verbose: Whether warnings are logged; the report has them in any case.

    Attributes:
        source: The opened source.
        remote: How stores are opened.
        records: Random access to the records; None for a one-pass source.
        recipe: What rows become; can be sent to other processes.
        encoding: What decides about tokens, by name, as plain values: a length index must have been built with the
            same.
        open_settings: Names in `encoding` that the user left open: a saved file that is found decides them.
        pad_token_id: The id that arrays are padded with.
        local: Loads samples in this process.
        pool: Loads them in worker processes; None without workers.
        raise_malformed: Whether a malformed row is an error.
        quarantine: The file of dropped rows, or None.
        report: Counts.
        index: The length index in use, or None.
        joined: Whether prompt and response are joined as text although a chat template was asked for (``auto``).
        look: What was noticed about the first rows.
        warn: Notes a sentence in the report, and logs it the first time.
    """

    def __init__(
        self,
        source: Any,
        encoding: Encoding,
        policy: BadRowPolicy,
        ranks: Ranks,
        order_by: str | None,
        remote: Remote,
        *,
        workers: int,
        verbose: bool,
        index: str | os.PathLike[str] | None = None,
    ) -> None:
        self._noted, self._given = Noted(order_by=order_key(order_by)), encoding
        if not isinstance(verbose, bool):
            raise OptionError(f"verbose is {verbose!r}; expected True or False.")
        self.verbose = verbose
        workers = process_count(workers)
        if index is not None and not isinstance(index, (str, os.PathLike)):
            raise OptionError(f"index is {index!r}; expected 'auto', 'build', the path of a length index, or None.")
        self.remote = remote
        self.source = open_rows(source, remote)
        recipe = encoding.recipe(only_caches(self.source), encoding.carried(self.source))
        self._formats = formats_of(
            self.source, encoding.format, encoding.fields, recipe.carry, traits(encoding.task).unpairs
        )
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
        self.look = Look(self.source, self._formats, self.recipe, self.joined, self.warn, self.records, ranks.world)
        self._find_index(index)
        self.report.tokenizer = self.described
        if self.local.encoder is not None:
            check_room(self.task, self.local.encoder)

    def _open_encoding(self, given: Encoding, recipe: Recipe) -> Recipe:
        """Fix what decides about tokens: as given, and checked against the caches among the sources.

        Returns the recipe, with the boundary and the day of the caches where these are open.
        """
        task, tokenizer, pad_id = given.task, recipe.tokenizer, given.pad_token_id
        caches = caches_in(self.source)
        is_open = {"boundary": given.boundary == AUTO, "template_date": recipe.template_date is not None}
        named: dict[str, Any] = {}
        for cache in reversed(caches):  # the first one decides
            named |= {name: value for name, value in encoding_of(cache, task).items() if name in _OPEN}
        taken = {name: named[name] for name in named if is_open[name] and _OPEN[name](named[name])}
        recipe = dataclasses.replace(recipe, **taken)
        self.open_settings = frozenset(name for name in _OPEN if is_open[name] and name not in named)
        encoding = recipe.encoding(self._formats)
        compared = encoding if tokenizer is not None else {**encoding, "boundary": given.boundary}
        for cache in caches:
            check_cache(cache, task, tokenizer, compared, given.format if recipe.ready else "auto", given.template)
        self.encoding, self.report = encoding, Report()
        self._tokenizer_text = "" if tokenizer is None else tokenizer.description
        if recipe.ready:
            self.encoding, self._tokenizer_text = encoding_of(caches[0], task, recipe.carry), tokenizer_of(caches[0])
            pad_id = caches[0].pad_token_id if pad_id is None else pad_id
        # No bound method: a cycle of references would keep worker processes alive after their stream.
        self.warn: Callable[[str], None] = functools.partial(_warn, self.report, self.verbose)
        self.pad_token_id = choose_pad_id(pad_id, tokenizer, given.vocab_size)
        self.joined = tokenizer is not None and recipe.template is None and given.template == "auto"
        if tokenizer is not None and recipe.template is None and not recipe.ready:
            self.report.template = NO_TEMPLATE
        return recipe

    @property
    def described(self) -> str:
        """The tokenizer and the boundary, for reports; "" for rows that came as ids."""
        if not self._tokenizer_text:
            return ""
        auto = " (auto)" if "boundary" in self.open_settings else ""
        return f"{self._tokenizer_text}\n  boundary {self.encoding['boundary']}{auto}"

    def with_settings_of(self, saved: Any) -> StreamData:
        """Returns the same data with the open settings that a saved file names; reports and counts are shared.

        Args:
            saved: What the file says of its settings, by name; anything but valid values of open settings is ignored.
        """
        other = copy.copy(self)
        return other if other._take_over(saved if isinstance(saved, Mapping) else {}) else self

    def with_index_of(self, state: Any) -> StreamData:
        """Returns the same data with the index that a state was saved with, if that lies beside the data, too.

        An index that was named stays, whatever the state says.

        Args:
            state: The state. Without an index in use only its open settings count, see `with_settings_of`.
        """
        other = self.with_settings_of(state)
        if self.index is None or other is self:
            return other
        found = find_beside(other._parts()) if self._takes_beside else None
        if found is None or found.index is None or found.index.checksum != state.get("index"):
            return self
        other._use_found(found)
        return other

    def _take_over(self, saved: Mapping[str, Any]) -> bool:
        """Takes over the open settings that a saved file names; returns whether one changed."""
        named: dict[str, Any] = {name: saved.get(name) for name in self.open_settings}
        taken: dict[str, Any] = {
            name: value for name, value in named.items() if isinstance(value, str) and _OPEN[name](value)
        }
        if all(value == self.encoding[name] for name, value in taken.items()):
            return False
        self.recipe = dataclasses.replace(self.recipe, **taken)
        self.encoding = {**self.encoding, **taken}
        self.local = self.recipe.loader()
        self.pool = None if self.pool is None else LoaderPool(self.recipe, self.pool.workers, self.local)
        return True

    @property
    def task(self) -> Task:
        """What rows become."""
        return self.recipe.task

    @property
    def carried(self) -> dict[str, str]:
        """The columns that rows carry, in order: name -> dtype."""
        return {} if self.recipe.carry is None else self.recipe.carry.columns

    @property
    def workers(self) -> int:
        """The number of worker processes."""
        return 0 if self.pool is None else self.pool.workers

    @functools.cached_property
    def one_pass(self) -> SingleOnePassRecords | MixedOnePassRecords:
        """The records of a one-pass source."""
        return open_one_pass(self.source, self._formats, self.warn)

    @functools.cached_property
    def counted(self) -> int:
        """The rows of an epoch of a one-pass source; reads the source unless it states the number."""
        return self.one_pass.count()

    def loader(self) -> Load:
        """Returns the loader of a source with random access: the worker processes, or this process."""
        if self.pool is not None:
            return Prefetch(self.pool)
        records, is_cache = self.recipe.records, self.recipe.ready
        if records is None or not (is_cache or self.index is not None):  # without an index a window is loaded at once
            return self.local
        return ReadAhead(self.local, min(len(records), SAMPLES_AHEAD if is_cache else RECORDS_AHEAD))

    def bad_rows(self) -> BadRows:
        """Returns what counts, raises or drops the bad rows of a source with random access."""
        assert self.records is not None
        records = self.records
        return self._bad_rows(records.read, origin=records.origin, raw=records.raw, part=self._part())

    def pass_loader(self, window: PassWindow) -> Load:
        """Returns the loader of the records of one pass."""
        return self.local.over(window) if self.pool is None else Prefetch(self.pool, window)

    def pass_bad_rows(self, window: PassWindow) -> BadRows:
        """Returns what counts, raises or drops the bad rows of one pass; rows are numbered over all epochs."""
        records, part = self.one_pass, None
        if isinstance(records, MixedOnePassRecords):
            reports = list(self.report.parts.values())
            part = lambda number: reports[records.part_of(number)]  # noqa: E731
        return self._bad_rows(window.read, origin=window.origin, raw=window.raw, part=part, first=window.before)

    def build_index(
        self,
        path: str | os.PathLike[str] | None,
        progress: bool,
        dedup: str | None = None,
        exclude: Any = (),
        by: Callable[[Recipe], contextlib.AbstractContextManager[Loader]] | None = None,
        part_range: PartRange | None = None,
    ) -> LengthIndex:
        """Measure every row, write the length index and use it from now on. A part range of it is not used.

        Args:
            path: Where to write it, for a mix a folder; None puts it beside a single file, for a mix beside each.
            progress: Whether to show a progress bar.
            dedup: The option of `ms_prefstream.Stream.build_index`, like `exclude`.
            exclude: Other data whose prompts no row may have.
            by: Opens what measures, given the recipe; None takes this process or the worker processes of the stream.
            part_range: The rows that are measured; None for all.

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
        excluded = excluded_questions(exclude, self._given.format, self._given.fields, self.warn, self.remote)
        if part_range is not None:
            self._take_over(begun_with(self._parts(), path))
        local = contextlib.nullcontext(self.local if self.pool is None else self.pool)
        with local if by is None else by(self.recipe) as loader:
            index = build_indexes(
                self._parts(),
                loader,
                path,
                origin=self.records.origin,
                raise_malformed=self.raise_malformed,
                progress=progress_on(sys.stderr) if progress else None,
                noted=dataclasses.replace(self._noted, dedup=dedup, excludes=bool(excluded)),
                excluded=excluded,
                part_range=part_range,
            )
        if part_range is None:
            self._use_index(index)
        return index

    def fingerprint(self) -> str:
        """Returns a hash that changes when the data change."""
        found: str = self.source.fingerprint() if self.records is None else fingerprint_of(self.records)
        return found

    def fingerprints(self) -> dict[str, Any]:
        """Returns everything that decides about samples, by name: data, encoding, rows that an index leaves out."""
        built_with = {} if self.index is None else built_with_of(self.index.fingerprint)
        return {"data": self.fingerprint(), **self.encoding, **built_with}

    def left_out(self) -> NDArray[np.uint8] | None:
        """Returns the verdicts of an index that leaves out good rows, (N,); None where there is none."""
        index = self.index
        return index.verdict if index is not None and built_with_of(index.fingerprint) else None

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

    def _bad_rows(self, read: Callable[[Sequence[int]], Sequence[Any]], **origin_of: Any) -> BadRows:
        watch = functools.partial(self.look.at_window, read)
        return BadRows(self.report, self.raise_malformed, quarantine=self.quarantine, watch=watch, **origin_of)

    def _part(self) -> Callable[[int], PartReport] | None:
        """Returns the function from a row to the report of its part; None without a mix."""
        if not isinstance(self.records, MixedRecords):
            return None
        part_of, reports = self.records.part_of, list(self.report.parts.values())
        return lambda row: reports[part_of(row)]

    def _find_index(self, index: str | os.PathLike[str] | None) -> None:
        """Use the index that was named, or the one that lies beside the data."""
        named = index is not None and index != "auto"
        self._takes_beside = index in ("auto", "build")
        if named and self.records is None:
            raise OptionError(f"index is {str(index)!r}, but {self.source.name} can only be read from the front.")
        if named and index != "build" and self._cached:
            raise OptionError(f"index is {str(index)!r}, but {self.source.name} has an index of its own. Leave it out.")
        if index == "build":
            self._build_or_take_index()
        elif named and index is not None:
            self._use_found(find_index(self._parts(), index))
        elif index is not None and self.records is not None:
            found = find_beside(self._parts())
            if not self._use_found(found) and found.problem:
                remedy = 'Pass index="build" for one with these settings, or index=None.'
                self.warn(f"{found.problem} It is not used. {remedy}")

    def _build_or_take_index(self) -> None:
        """Use the index beside the data; if there is none, build it, or wait until another rank has."""
        while not self._use_found(found := find_beside(self._parts())):
            self._take_over(found.settings)  # parts of a mix that have an index keep it
            try:
                self.build_index(None, progress=self.verbose)
                return
            except IndexInUseError:
                time.sleep(_PAUSE)

    def _parts(self) -> list[Part]:
        """Returns what each index file covers."""
        assert self.records is not None  # a one-pass source has no index
        key = self._noted.order_by
        settings = self.encoding if key is None else {**self.encoding, "order_by": key}
        return index_parts(self.source, self.records, self._formats, settings, self.open_settings)

    def _use_found(self, found: FoundIndex) -> bool:
        """Uses an index, and the open settings that it was built with; returns whether there is one."""
        if found.index is None:
            return False
        self._take_over(found.settings)
        self._use_index(found.index)
        return True

    def _use_index(self, index: LengthIndex) -> None:
        """Use an index: report the rows that it knows to be bad, or raise the first malformed one."""
        self.index, records, quarantine = index, self.records, self.quarantine
        assert records is not None
        if index.longest > self.task.length:
            raise StateError(
                f"the length index {shown(index.path)} has a row of {index.longest:,} tokens, but {self.task!r} gives "
                f"at most {self.task.length:,}. It is damaged: build it again."
            )
        if self.raise_malformed and not self._cached:
            raise_malformed_of(index.verdict, self.local, records.origin, self._noted.measure)
        counts = [(str(one.reason), one.rows, [records.origin(row) for row in one.first]) for one in index.counts]
        self.report.known(counts)
        if quarantine is None:
            return
        verdict = index.verdict
        bad = np.flatnonzero(verdict)[quarantine.rank :: quarantine.world].tolist()
        for begin in range(0, len(bad), _RELOADED_TOGETHER):
            rows = bad[begin : begin + _RELOADED_TOGETHER]
            errors = dict(self._noted.measure(self.local, rows).errors)
            for at, row in enumerate(rows):
                error = errors.get(at) or LEFT_OUT.get(REASONS[int(verdict[row])])
                if error is not None:
                    quarantine.add(error.at(records.origin(row)), records.raw(row))
