"""Row ids to samples: read, format, encode, truncate, make the task's sample. Runs here or in a worker process."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from ms_prefstream.encode.build import AUTO, build_encoder, resolve_boundary
from ms_prefstream.encode.cut_points import EncodedCutMap
from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.encode.template_limits import SECONDS
from ms_prefstream.encode.template_text import template_hash
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.truncate import CutMap, Uncut, token_cut_map
from ms_prefstream.errors import OptionError, Reason, RowError, TemplateError
from ms_prefstream.formats.base import Format
from ms_prefstream.formats.carry import Carry
from ms_prefstream.formats.record import Completion, Pair, Record, TokenCompletion, TokenPair
from ms_prefstream.load.records import RecordAccess
from ms_prefstream.sample import LARGEST, TEXT, Block, Loaded, Note, Ready
from ms_prefstream.sample import Sequence as TokenSequence
from ms_prefstream.tasks.base import Sampler, Task, columns_of, traits

Unit = TypeVar("Unit", bound=Hashable)


class Load(Protocol):
    """Loader of samples, in order."""

    def load(self, rows: Sequence[int]) -> Block: ...


class LoadNext(Load, Protocol):
    """Loader that works ahead. What it was told of next units decides when rows are loaded, never what is loaded.

    `load_next` returns the rows of the first unit and their samples. `units` names that unit and those behind it,
    perhaps without end; a unit always has the same rows.
    """

    def load_next(self, units: Iterable[Unit], rows_of: Callable[[Unit], list[int]]) -> tuple[list[int], Block]: ...


_lock = threading.Lock()
_holders = 0
_was_enabled = False
_is_frozen = False  # whether the program has frozen objects itself; counting them takes long


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Disables the cyclic garbage collector inside the `with` block.

    A window creates some ten thousand objects that live until it is batched, none of them in a cycle. They trigger full
    collections, which take 0.1 s each with MindSpore imported and made a window of 2,000 rows a fifth slower
    (`benchmarks/throughput.py`). Blocks may overlap, also in several threads: the last one to end restores the state
    that the first one found.

    At the end the objects are handed to the oldest generation (`gc.freeze`, `gc.unfreeze`), which takes no time. The
    collector would otherwise walk through all of them at once, a fifth of our own work on a row.
    """
    global _holders, _was_enabled, _is_frozen
    with _lock:
        if not _holders:
            _was_enabled = gc.isenabled()
            gc.disable()
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders and _was_enabled:
                _is_frozen = _is_frozen or gc.get_freeze_count() > 0
                if not _is_frozen:  # what the program has frozen stays frozen
                    gc.freeze()
                    gc.unfreeze()
                gc.enable()


_NOTHING: Mapping[str, str] = {}


class SampleLoader:
    """Loads samples by row id.

    Args:
        records: Random access to records; None if only `samples` is called.
        task: What they become.
        sampler: The task's function from conversations to samples.
        encoder: Encodes text records; None when every row is already tokenized.
        ready: Whether the records are samples already, see `Recipe`.
        carried: The columns that records carry, in order: name -> dtype.
        watch: Called with conversations before the task cuts them, and with the places of their records among those
            that are loaded together.
    """

    def __init__(
        self,
        records: RecordAccess | None,
        task: Task,
        sampler: Sampler,
        encoder: ConversationEncoder | None,
        ready: bool = False,
        carried: Mapping[str, str] = _NOTHING,
        watch: Callable[[Sequence[int], Uncut], None] | None = None,
    ) -> None:
        self._watch, self._carried = watch, carried
        self._records = records
        self._ready = ready
        self._task, self._columns = task, columns_of(task)
        self.sampler = sampler
        self.encoder = encoder

    @property
    def records(self) -> RecordAccess | None:
        """The records that `load` reads."""
        return self._records

    def over(
        self, records: RecordAccess | None, watch: Callable[[Sequence[int], Uncut], None] | None = None
    ) -> SampleLoader:
        """Returns the same loader for other records, with a `watch` of its own."""
        return SampleLoader(records, self._task, self.sampler, self.encoder, carried=self._carried, watch=watch)

    def load(self, rows: Sequence[int]) -> Block:
        """Returns the samples of these rows, in this order."""
        assert self._records is not None
        with collector_paused():
            if self._ready:
                records: Any = self._records
                block: Block = records.read_block(rows)
                return block
            origin = self._records.origin
            return self.samples(self._records.read(rows), lambda at: origin(rows[at]))

    def samples(self, found: Sequence[Record | Ready | RowError], origin: Callable[[int], str] | None = None) -> Block:
        """Returns the samples of these records, in this order.

        Args:
            found: The records, or why there is none.
            origin: Gives the origin of the record at a place, for errors about the template; None if it is not known.
        """
        with collector_paused():
            try:
                return self._samples(found)
            except TemplateError as error:
                raise (error if origin is None else error.at(origin)) from None

    def _samples(self, found: Sequence[Record | Ready | RowError]) -> Block:
        if self._task.pairs and set(map(type, found)) == {Pair}:  # the usual window
            every = range(len(found))
            return self._made(self._encoded(found, every), found, every)  # type: ignore[arg-type]  # all are pairs
        wanted = traits(self._task).record
        texts: list[Any] = []
        tokens: list[Any] = []
        done: list[Loaded] = []
        places: tuple[list[int], list[int], list[int]] = [], [], []  # of the three kinds
        for index, record in enumerate(found):
            try:
                if isinstance(record, RowError):
                    raise record
                if isinstance(record, Ready):
                    places[2].append(index)
                    done.append(Loaded(record.sample, None, Note(record.notes)))
                    continue
                record = wanted(record)
            except RowError as error:
                places[2].append(index)
                done.append(Loaded(None, error))
                continue
            is_tokens = isinstance(record, (TokenPair, TokenCompletion))
            (tokens if is_tokens else texts).append(record)
            places[is_tokens].append(index)
        parts = [self._made(self._encoded(texts, places[0]), texts, places[0])] if texts else []
        if tokens:
            parts.append(self._made(_token_sides(tokens), tokens, places[1]))
        if done:
            block = Block.empty(len(done), 2 if self._task.pairs else 1)
            block.put(enumerate(done))
            parts.append(block)
        if len(parts) == 1:
            return parts[0]
        joined = Block.join(parts) if parts else Block.empty(0, 2 if self._task.pairs else 1)
        return joined.take(np.argsort([*places[0], *places[1], *places[2]]))

    def origin(self, row: int) -> str:
        """Returns where a row comes from, for people."""
        assert self._records is not None
        return self._records.origin(row)

    def _encoded(self, records: Sequence[Pair | Completion], places: Sequence[int]) -> Uncut:
        if self.encoder is None:
            raise OptionError(
                "tokenizer=None is for rows that are already tokenized (prompt_ids, chosen_ids, rejected_ids), but the "
                "source has rows with text. Pass tokenizer= a directory, a file or an object."
            )
        encoder = self.encoder
        try:
            found = encoder.encode(records)
        except TemplateError as error:
            error.row = None if error.row is None else places[error.row]
            raise
        sides_of = functools.lru_cache(maxsize=1)(found.__getitem__)  # asked for each side of a row

        def cuts(row: int, side: int) -> CutMap:
            return EncodedCutMap(encoder, sides_of(row)[side])

        return Uncut(*found.block(), cuts, records)

    def _made(self, conversations: Uncut, records: Sequence[Record], places: Sequence[int]) -> Block:
        """Returns the samples that the task makes of the conversations of some records."""
        if self._watch is not None:
            self._watch(places, conversations)
        block = conversations.block
        for row, record in enumerate(records):
            if record.unread:
                block.unread[row] = tuple(dict.fromkeys((*record.unread, *block.unread.get(row, ()))))
        self._set_columns(block, records)
        block = self.sampler(conversations)
        lost = np.bitwise_or.reduce(block.lost, axis=1)
        if lost.any():
            block.notes[lost & 1 > 0] |= int(Note.TRUNCATED)
            block.notes[lost & 2 > 0] |= int(Note.QUESTION_CUT)
        for row in block.errors:
            block.notes[row] = 0
            block.unread.pop(row, None)
        block.compact()
        return block

    def _set_columns(self, block: Block, records: Sequence[Record]) -> None:
        """Sets the columns that the task adds, those carried, and the margins of pairs, which are shown to people."""
        for at, (name, dtype) in enumerate(self._carried.items()):
            values = [record.carried[at] for record in records]
            block.columns[name] = np.array(values, object if dtype == TEXT else dtype)
        for name, dtype in (({"margin": "float32"} if self._task.pairs else {}) | dict(self._columns)).items():
            stated = [getattr(record, name, None) for record in records]
            if stated.count(None) == len(stated) and name not in self._columns:
                continue
            is_number = dtype == "float32"
            given = block.column(name, np.float64 if is_number else dtype)
            for row, value in enumerate(stated):
                if value is not None and (not is_number or abs(value) <= LARGEST):
                    given[row] = value
                elif value is not None or name in self._columns:
                    block.refuse(row, _column_error(name, value))


def _column_error(name: str, value: float | None) -> RowError:
    if value is None:
        return RowError(
            Reason.MISSING_FIELD,
            f"the row has no {name}; expected a number, since the task asks for a {name} column",
            f"Add the field, or leave {name} out of the task's options",
        )
    return RowError(
        Reason.BAD_TYPE,
        f"the row's {name} is {value}; expected a number that float32 can hold, up to {LARGEST:.1e}",
        f"Scale the {name}s or scores",
    )


def _token_sides(records: Sequence[TokenPair | TokenCompletion]) -> Uncut:
    """Returns the conversations of rows that are already tokenized, two a row."""
    block, prompts = Block.empty(len(records), 2), np.full((len(records), 2), -1, np.int64)
    sequences: list[tuple[int, int, TokenSequence]] = []
    for row, record in enumerate(records):
        try:
            sides = _responses(record)
        except RowError as error:
            block.refuse(row, error)
            continue
        prompt = np.array(record.prompt_ids, np.int32)
        for side, response in enumerate(sides):
            ids = np.concatenate([prompt, np.array(response, np.int32)])
            spans = ((len(prompt), len(ids)),) if response else ()
            sequences.append((row, side, TokenSequence(ids, spans)))
            prompts[row, side] = len(prompt)
    block.replace(sequences)
    wholes = {(row, side): sequence.ids for row, side, sequence in sequences}
    return Uncut(block, prompts, lambda row, side: token_cut_map(wholes[row, side], int(prompts[row, side])))


def _responses(record: TokenPair | TokenCompletion) -> list[tuple[int, ...]]:
    """Returns what follows the prompt on each side: chosen and rejected ids, or nothing and the response."""
    if isinstance(record, TokenPair):
        if record.chosen_ids == record.rejected_ids:
            raise RowError(Reason.IDENTICAL, "chosen_ids and rejected_ids are the same")
        if not record.chosen_ids or not record.rejected_ids:
            raise RowError(Reason.EMPTY_RESPONSE, "chosen_ids or rejected_ids is empty; expected at least one id")
        return [record.chosen_ids, record.rejected_ids]
    return [(), record.response_ids] if record.response_ids else [()]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a row becomes; can be sent to worker processes.

    Attributes:
        records: Random access to records; None if tasks carry the records (one-pass sources).
        task: What records become.
        tokenizer: A loaded tokenizer; None for rows that are already tokenized.
        template: The option of `ms_prefstream.stream`, with the text of a file instead of its path.
        template_variables: The option of that name, like those that follow it.
        template_date: The day that the template gets, in ISO form; None if it asks for none.
        boundary: ``joint`` or ``inference``; ``auto`` is resolved when a recipe is made.
        carry: The fields of rows that are carried; None for none.
        ready: Whether the records are samples already, as those of a cache are.
    """

    records: RecordAccess | None
    task: Task
    tokenizer: Tokenizer | None
    template: str | None = "auto"
    template_variables: Mapping[str, Any] | None = None
    template_date: str | None = None
    boundary: str = AUTO
    special_tokens_in_content: str = "escape"
    content_lost: str = "report"
    continue_final_message: str = "error"
    train_empty_think: bool = False
    template_limit_s: float | None = SECONDS
    carry: Carry | None = None
    ready: bool = False

    def __post_init__(self) -> None:
        tokenizer = None if self.ready else self.tokenizer
        boundary = resolve_boundary(
            self.boundary,
            tokenizer,
            self.template,
            self.task.pairs,
            self.template_variables,
            self.continue_final_message == "join",
            self.template_limit_s,
        )
        object.__setattr__(self, "boundary", boundary)

    def encoding(self, formats: Sequence[Format]) -> dict[str, Any]:
        """Returns everything that decides about tokens, by name, as plain values for saved states and indexes."""
        found = {
            "task": repr(self.task),
            "format": ", ".join(map(repr, formats)),
            "tokenizer": None if self.tokenizer is None else self.tokenizer.fingerprint,
            "template": template_hash(self.template),
            "boundary": self.boundary,
            "special_tokens_in_content": self.special_tokens_in_content,
        }
        # Younger than the first saved files, which do not name them: left out where they have their defaults.
        added = {name: getattr(self, name) for name, default in ADDED_OPTIONS.items() if getattr(self, name) != default}
        if self.template_variables is not None:
            added["template_variables"] = json.dumps(self.template_variables, sort_keys=True, ensure_ascii=False)
        if self.carry is not None:
            added["carry"] = self.carry.text()
        return found | added

    def loader(self) -> SampleLoader:
        """Returns a loader for this process."""
        if self.ready:
            return SampleLoader(self.records, self.task, _no_sampler, None, ready=True)
        encoder = None
        if self.tokenizer is not None:
            encoder = build_encoder(
                self.tokenizer,
                template=self.template,
                boundary=self.boundary,
                special_tokens_in_content=self.special_tokens_in_content,
                refused=self.task.refused(self.tokenizer),
                append_eos=getattr(self.task, "append_eos", True),  # a task of a user may lack it
                template_variables=self.template_variables,
                template_date=self.template_date,
                content_lost=self.content_lost,
                continue_final_message=self.continue_final_message,
                train_empty_think=self.train_empty_think,
                template_limit_s=self.template_limit_s,
            )
        carried = {} if self.carry is None else self.carry.columns
        return SampleLoader(self.records, self.task, self.task.sampler(self.tokenizer), encoder, carried=carried)


ADDED_OPTIONS = {
    "template_variables": None,
    "template_date": None,
    "content_lost": "report",
    "continue_final_message": "error",
    "train_empty_think": False,
    "carry": None,
}
"""What decides about tokens and is younger than the first saved files: these name it where it is not the default."""


def _no_sampler(rows: Uncut) -> Block:
    raise AssertionError("a cache holds samples already")
