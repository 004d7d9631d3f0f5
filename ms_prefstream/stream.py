"""Wires the steps: source -> records -> samples -> plan -> batches -> MindSpore. Read it as a table of contents."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch import Bucket, Layout, Pack, PackedLayout, Pad, make_layout
from ms_prefstream.batch.best_widths import batch_maxima
from ms_prefstream.cache.compatibility import check_cache, encoding_of, has_reference, tokenizer_of
from ms_prefstream.checks import check_made, whole_number
from ms_prefstream.encode.build import fingerprint_of, template_text
from ms_prefstream.encode.tokenizer import Tokenizer, choose_pad_id, load_tokenizer
from ms_prefstream.errors import OptionError, SourceError, StateError
from ms_prefstream.lengths import LengthIndex
from ms_prefstream.load.loader import Recipe
from ms_prefstream.load.records import formats_of
from ms_prefstream.mindspore.dataset import to_dataset
from ms_prefstream.mindspore.ranks import known_ranks
from ms_prefstream.plan import BudgetOptions, Ranks
from ms_prefstream.plan.state import State, check_state, make_state
from ms_prefstream.report.bad_rows import Quarantine
from ms_prefstream.report.report import Report
from ms_prefstream.sample import Batch
from ms_prefstream.sources import open_source
from ms_prefstream.sources.cached import caches_in, only_caches
from ms_prefstream.sources.mix import Mix
from ms_prefstream.steps.collate import Collate, CollatePacks, select_columns
from ms_prefstream.steps.data import Material, Rows
from ms_prefstream.steps.one_pass import OnePassSteps
from ms_prefstream.steps.open import Opening, Order, Steps, check_steps_per_epoch, key_lengths
from ms_prefstream.tasks import Task
from ms_prefstream.tasks.base import check_room

if TYPE_CHECKING:
    from mindspore.dataset import GeneratorDataset

_log = logging.getLogger(__name__)


def stream(
    source: Any,
    *,
    task: Task,
    tokenizer: Any = ...,
    format: Any = "auto",
    batching: Pad | Bucket | Pack,
    shuffle: Any = True,
    seed: int = 0,
    template: str | None = "auto",
    pad_token_id: int | None = None,
    boundary: str = "joint",
    special_tokens_in_content: str = "escape",
    backend: str = "auto",
    on_bad_row: str = "raise",
    quarantine: str | os.PathLike[str] | None = None,
    num_shards: int | None = None,
    shard_id: int | None = None,
    logical_shards: int | None = None,
    window: int = 64,
    drop_remainder: bool = True,
    longest_first: bool = False,
    steps_per_epoch: int | None = None,
    index: str | os.PathLike[str] | None = "auto",
    workers: int = 0,
) -> Stream:
    """A stream of ready batches from raw preference rows.

    Args:
        source: Path, glob or list of them (JSON Lines, JSON, .gz, .zst), a list or any object with ``__len__`` and
            ``__getitem__``, an iterable of dicts, a function that returns one, or the folder of a cache.
        task: `DPO`, `Reward` or `RLHF`: what a row becomes.
        tokenizer: A local directory, a tokenizer.json, a SentencePiece .model, a tokenizer object, ``"bytes"``, or
            None for rows that are already tokenized, caches among them. One of these must be given.
        format: A preset's name, a preset made by `ms_prefstream.formats`, or a function row -> row.
        batching: `Pad` or `Bucket`: how many samples a step has and how they are padded. `Pack`: several samples share
            a row.
        shuffle: True: a new order of all rows for each epoch. ``"window"``: rows stay near their place in the source.
            False: source order. One-pass sources are shuffled within windows.
        seed: Of the order, 0 to 2**32 - 1.
        template: ``auto`` (the tokenizer's chat template if it has one), ``chat`` (must have one), Jinja text, the
            path of a .jinja file, or None: prompt and response joined as text.
        pad_token_id: What ids are padded with; None takes the tokenizer's pad, else a reserved token, else EOS.
        boundary: ``joint`` encodes the text as the model sees it; ``inference`` keeps the prompt's ids as they are at
            generation time.
        special_tokens_in_content: Control strings in content: ``escape`` (plain text), ``error`` or ``allow``.
        backend: ``auto``, ``tiktoken``, ``tokenizers`` or ``sentencepiece``.
        on_bad_row: What malformed rows do: ``raise`` or ``drop``. Unusable rows are always dropped and counted.
        quarantine: A JSON Lines file for dropped rows.
        num_shards: Ranks that share the data; None asks MindSpore's communication, which must be initialised where
            several processes were started together.
        shard_id: This rank, with `num_shards`.
        logical_shards: Shards that are planned; ranks that divide them may share the run. None: `num_shards`.
        window: Steps whose rows are sorted by length together.
        drop_remainder: Whether rows that do not fill a last step are left out (True) or filled up with repeats.
        longest_first: Whether step 0 holds the longest rows of its window.
        steps_per_epoch: For one-pass sources: the steps of an epoch, instead of counting the rows once. For `Pack`
            without a length index: the steps into which the rows are packed, required.
        index: ``auto`` uses the length index that lies beside a file, if there is one (`Stream.build_index` writes
            it), for a mix those beside all its parts; a path, for a mix a folder, names one that must be there; None
            uses none.
        workers: Processes that tokenise ahead; 0 does it in the training process. The batches are the same.

    Raises:
        PrefStreamError: Anything a user can cause, as one sentence.
    """
    if on_bad_row not in ("raise", "drop"):
        raise OptionError(f"on_bad_row is {on_bad_row!r}; expected 'raise' or 'drop'.")
    if tokenizer is ...:
        raise OptionError(
            "tokenizer is missing; expected a directory, a file or an object, or None for rows that are already "
            "tokenized, as those of a cache are."
        )
    check_made("task", task, "sampler", "mps.DPO(max_length=1024)")
    check_made("batching", batching, "batch_size", "mps.Bucket(batch_size=8)")
    if isinstance(batching, Pack):
        batching.check(task)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise OptionError(f"workers is {workers!r}; expected a whole number of processes, 0 for none.")
    loaded = None if tokenizer is None else load_tokenizer(tokenizer, backend)
    jinja = None if loaded is None else template_text(template, loaded)
    opened = source if isinstance(source, Mix) else open_source(source)
    caches, ready = caches_in(opened), only_caches(opened)
    recipe = Recipe(
        records=None,
        task=task,
        tokenizer=loaded,
        template=jinja,
        boundary=boundary,
        special_tokens_in_content=special_tokens_in_content,
        ready=ready,
    )
    ranks = Ranks.given(*known_ranks(num_shards, shard_id), logical_shards)
    report = Report(tokenizer="" if loaded is None else loaded.description)
    fmts = formats_of(opened, format)
    encoding = {
        "task": repr(task),
        "format": ", ".join(map(repr, fmts)),
        "tokenizer": None if loaded is None else loaded.fingerprint,
        "template": fingerprint_of(jinja),
        "boundary": boundary,
        "special_tokens_in_content": special_tokens_in_content,
    }
    for cache in caches:
        check_cache(cache, task, loaded, encoding, format if ready else "auto", template)
    if ready:
        encoding, report.tokenizer = encoding_of(caches[0], task), tokenizer_of(caches[0])
        pad_token_id = caches[0].pad_token_id if pad_token_id is None else pad_token_id
    rows = Rows(
        source=opened,
        formats=fmts,
        recipe=recipe,
        encoding=encoding,
        report=report,
        raise_malformed=on_bad_row == "raise",
        quarantine=None if quarantine is None else Quarantine(quarantine, ranks.rank, ranks.world),
        workers=workers,
        index=index,
    )
    check_steps_per_epoch(steps_per_epoch, rows, isinstance(batching, Pack))
    if rows.encoder is not None:
        check_room(task, rows.encoder)
    order = Order(shuffle=shuffle, seed=seed, window=window, drop_remainder=drop_remainder, longest_first=longest_first)
    return Stream(
        rows, task, batching, order, ranks, loaded, choose_pad_id(pad_token_id, loaded), report, encoding,
        logical_shards is not None, steps_per_epoch,
    )  # fmt: skip


class Stream:
    """Ready batches of one rank. Made by `ms_prefstream.stream`.

    Attributes:
        report: What was read, dropped and why; filled as rows are read.
        task: What rows become.
        tokenizer: The loaded tokenizer, or None.
        batching: How samples are batched.
        layout: The arrays of a batch.
    """

    def __init__(
        self,
        rows: Rows,
        task: Task,
        batching: Pad | Bucket | Pack,
        order: Order,
        ranks: Ranks,
        tokenizer: Tokenizer | None,
        pad_id: int,
        report: Report,
        encoding: dict[str, Any],
        shards_given: bool,
        steps_given: int | None,
    ) -> None:
        self.task, self.tokenizer, self.batching, self.report = task, tokenizer, batching, report
        self.layout: Layout | PackedLayout
        reference = has_reference(rows.source, task, isinstance(batching, Pack))
        if isinstance(batching, Pack):
            self.layout = batching.layout(task)
        else:
            self.layout = make_layout(
                task.layout,
                with_margin=task.margin,
                with_ref_logps=reference,
                max_prompt_length=task.prompt_columns,
            )
        self._rows, self._order, self._ranks, self._pad_id = rows, order, ranks, pad_id
        self._encoding, self._shards_given, self._steps_given = encoding, shards_given, steps_given
        self._resumed: int | None = None
        self._begins = 0
        self._choose_widths()
        self._open(ranks)

    def _choose_widths(self) -> None:
        lengths = None
        if isinstance(self.batching, Bucket) and self.batching.max_shapes:
            lengths, order = key_lengths(self._rows, self._order.seed), self._order
            if self.batching.batch_size is not None:  # a step by a token budget has rows of one width only
                rows = self.batching.batch_size * self._ranks.world
                lengths = batch_maxima(lengths, rows, order.window, order.seed, order.shuffle is not False)
        self._widths = self.batching.widths(self.task.length, lengths)
        if lengths is not None:
            self.report.chosen_widths = self._widths
            _log.info("widths chosen for the data: %s", ", ".join(map(str, self._widths)))

    def _open(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._steps = self._opened(ranks)
        self.report.repeats_per_epoch = self._steps.plan.repeats_per_epoch
        self.report.remainder_per_epoch = self._steps.plan.remainder_per_epoch

    def _opened(self, ranks: Ranks) -> Steps:
        opening = Opening(self._rows, self._order, ranks, self.layout.columns, self._steps_given)
        if isinstance(self.batching, Pack):
            assert isinstance(self.layout, PackedLayout)
            packs = CollatePacks(self.layout, self.batching, self._pad_id, self.task, self.report)
            return opening.packed(self.batching, packs)
        assert isinstance(self.layout, Layout)
        collate = Collate(self.layout, self.batching, self._widths, self._pad_id, self.task, self.report)
        if isinstance(self.batching, Bucket) and self.batching.max_tokens is not None:
            return opening.budget(self.batching, self._widths, collate)
        assert self.batching.batch_size is not None
        sort = isinstance(self.batching, Bucket) and len(self._widths) > 1
        return opening.fixed(self.batching.batch_size, sort, collate)

    @property
    def column_names(self) -> list[str]:
        """The arrays of a batch, in order."""
        return list(self.layout.columns)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Every (rows, columns) that the token arrays of a batch can have; a closed set."""
        sides = self.layout.sides if isinstance(self.layout, Layout) else 1
        return [(sides * self._batch_size(width), width) for width in self._widths]

    def _batch_size(self, width: int) -> int:
        """Rows of a batch of this width on this rank."""
        options = self._steps.plan.options
        if isinstance(options, BudgetOptions):
            return options.rows_at(width) // self._ranks.world
        assert self.batching.batch_size is not None
        return self.batching.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps of every epoch, the same on all ranks."""
        return self._steps.steps_per_epoch

    def rows(self, epoch: int, step: int, resolved: bool = False) -> NDArray[np.int64]:
        """The row ids that a step of this rank is planned to hold, (B,) int64; B varies with a token budget.

        Packs hold different numbers of rows: theirs are given one packed row after the other, and without a length
        index the step's window is tokenised to find them.

        Args:
            epoch: From 0.
            step: Step in the epoch.
            resolved: Name the stand-ins of dropped rows instead of the dropped rows.

        Raises:
            SourceError: If the source can only be read from the front.
        """
        if isinstance(self._steps, OnePassSteps):
            raise SourceError(
                "a source that is read from the front has no row ids to look up. Pass a plain JSON Lines file or a "
                "list to ask for the rows of a step."
            )
        return self._steps.rows(epoch, step, resolved)

    def batches(self, epoch: int | None = None, start_step: int | None = None) -> Iterator[Batch]:
        """The batches of one epoch as dicts of numpy arrays, without MindSpore.

        Args:
            epoch: From 0. None is the epoch that a resumed stream goes on in, and 0 for others.
            start_step: The first step to yield; nothing before its window is read. None is the step that a resumed
                stream goes on with if `epoch` is None too, and 0 otherwise.
        """
        resumed = divmod(self._resumed or 0, self.steps_per_epoch) if epoch is None else (epoch, 0)
        epoch, step = resumed[0], resumed[1] if start_step is None else start_step
        epoch, step = whole_number("epoch", epoch, 0), whole_number("start_step", step, 0)
        if step > self.steps_per_epoch:
            raise OptionError(
                f"epoch {epoch}, start_step {step}: expected an epoch from 0 on and a step from 0 to "
                f"{self.steps_per_epoch}."
            )
        if isinstance(self._steps, OnePassSteps):
            return self._steps.start(epoch, step)
        first = epoch * self.steps_per_epoch
        return map(self._steps.__getitem__, range(first + step, first + self.steps_per_epoch))

    def dataset(self, start_epoch: int | None = None, *, columns: Sequence[str] | None = None) -> GeneratorDataset:
        """A MindSpore dataset of ready batches: one dataset row is one training step. Its `stream` is this stream.

        Args:
            start_epoch: The epoch that its iterators begin with, 0 if not given. MindSpore begins every new iterator
                at the first epoch again, so a second ``model.train`` call wants a dataset with the next epoch. A
                resumed stream begins at its own step; any later epoch may be given.
            columns: The columns that it delivers, in this order; None for all (`column_names`).

        Raises:
            OptionError: If the epoch lies before the step that a resumed stream goes on with, or a column is none of
                `column_names`.
        """
        steps = self._steps if columns is None else select_columns(self._steps, columns)
        at, step = divmod(self._resumed or 0, self.steps_per_epoch)
        start_epoch = None if start_epoch is None else whole_number("start_epoch", start_epoch, 0)
        if start_epoch is not None and start_epoch != at:
            if self._resumed is not None and start_epoch < at:
                raise OptionError(
                    f"start_epoch is {start_epoch}, but the stream was resumed in epoch {at}. Leave start_epoch out, "
                    "or make a fresh stream to train that epoch again."
                )
            at, step = start_epoch, 0
        self._begins = at * self.steps_per_epoch + step
        return to_dataset(
            steps,
            start_epoch=at,
            init_step=step,
            resumed=self._resumed is not None,
            moved=self._moved,
            stream=self,
        )

    def _moved(self, step: int) -> None:
        self._begins = step
        self._rows.go_on()

    def build_index(self, path: str | os.PathLike[str] | None = None, *, progress: bool = False) -> LengthIndex:
        """Measure every row in one pass and write the length index, which this stream then uses.

        With it plans are exact and global: rows that would be dropped are gone beforehand, every rank pads to the same
        width at every step, and any number of ranks that divides the global batch may resume the run. An interrupted
        pass goes on where it ended. With ``workers`` the pass runs in several processes. Of several ranks one builds
        the index, before the others open their streams. For `Pack` the steps follow from the index from now on, and
        steps_per_epoch no longer counts.

        Args:
            path: Where to write it, for a mix a folder; None puts it beside the source if that is a single file, for a
                mix beside each part.
            progress: Whether to show rows a second and the time left, on standard error.

        Raises:
            OptionError: If there is no place for it, the source can only be read from the front, or the stream was
                resumed: the rest of that run belongs to the plan it began with.
            RowError: The first malformed row, if these are errors.
        """
        if self._resumed is not None:
            raise OptionError(
                "the stream was resumed, and an index would give its remaining steps other rows. Build the index "
                "before a run begins, or begin a new one."
            )
        index = self._rows.build_index(path, progress)
        self._choose_widths()
        self._open(self._ranks)
        return index

    def material(self) -> Material:
        """What `write_cache` takes of the stream: its rows without order and batches."""
        return self._rows.material()

    @property
    def pad_token_id(self) -> int:
        """What ids are padded with."""
        return self._pad_id

    def state(self, step: int) -> State:
        """What to save once `step` steps (of all epochs together) are finished: plain values for JSON.

        Args:
            step: Absolute: epoch * steps_per_epoch + steps finished in that epoch.

        Raises:
            OptionError: It is no whole number from 0 on.
        """
        step = whole_number("step", step, 0)
        state = make_state(self._settings(), step, self.steps_per_epoch)
        if isinstance(self._steps, OnePassSteps) and (found := self._steps.source_state(step)) is not None:
            state["source"] = found
        return state

    def resume(self, state: Mapping[str, Any]) -> Stream:
        """Go on behind the last finished step of a saved state; the number of ranks may be another one.

        Args:
            state: What `state` returned. The global batch and everything that decides about rows must be the same.

        Returns:
            This stream. `dataset()` now starts at epoch step // K with a short first pass; `batches()` likewise.

        Raises:
            StateError: If the data or a setting differ; names the old and the new value.
            OptionError: If this number of ranks cannot share the logical shards of the state.
        """
        before = self._ranks
        shards = self._shards_of(state)
        if shards != before.logical_shards:
            self._open(Ranks(before.world, before.rank, shards))
        try:
            step = check_state(state, self._settings(), self.steps_per_epoch)
        except StateError:
            if shards != before.logical_shards:
                self._open(before)  # a state that is refused leaves no trace
            raise
        self._resumed = self._begins = step
        if isinstance(self._steps, OnePassSteps) and state.get("source") is not None:
            self._steps.go_on(state["source"])
        self._rows.go_on()
        return self

    def _shards_of(self, state: Any) -> int:
        """The logical shards to go on with: the state's, unless they were given or its global batch is another one."""
        found = state.get("logical_shards") if isinstance(state, Mapping) else None
        same_batch = found is not None and state.get("global_batch") == self._steps.plan.options.global_batch
        usable = same_batch and isinstance(found, int) and found > 0 and not self._shards_given
        return int(found) if usable else self._ranks.logical_shards  # type: ignore[arg-type]  # found is an int

    @property
    def rank(self) -> int:
        """This rank, from 0."""
        return self._ranks.rank

    @property
    def world(self) -> int:
        """Ranks that share the data."""
        return self._ranks.world

    @property
    def start_step(self) -> int:
        """The absolute step that training begins with: where the latest dataset begins, or the stream was resumed."""
        return self._begins

    def _settings(self) -> dict[str, Any]:
        """Everything that decides which rows form which step and what they become."""
        options = self._steps.plan.options
        budget = isinstance(options, BudgetOptions)
        packed = isinstance(self.batching, Pack)
        return {
            "seed": options.seed,
            "global_batch": options.global_batch,
            "global_batch_of": "tokens" if budget else "packed rows" if packed else "rows",
            "logical_shards": options.logical_shards if budget or self._rows.index is None else None,
            "window": options.window,
            "shuffle": options.shuffle,
            "drop_remainder": options.drop_remainder,
            "longest_first": options.longest_first,
            "sorted": options.sorts,
            "rows": options.rows,
            "widths": list(self._widths),
            "max_segments": self.batching.max_segments if isinstance(self.batching, Pack) else None,
            "pad_token_id": self._pad_id,
            "data": self._rows.fingerprint(),
            "mix": self._rows.mix(),
            "index": self._rows.index_id(),
            **self._encoding,
        }

    def __repr__(self) -> str:
        return (
            f"Stream(task={self.task}, batching={self.batching}, steps_per_epoch={self.steps_per_epoch}, "
            f"rank {self._ranks.rank} of {self._ranks.world})"
        )
