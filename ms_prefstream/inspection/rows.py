"""Rows as the trainer gets them: a row, or rows of a source, encoded, with what was cut, changed and lost."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ms_prefstream.checks import checked_call, group_of, whole_number
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer
from ms_prefstream.encode.truncate import CutMap, Flat, Uncut
from ms_prefstream.errors import RowError
from ms_prefstream.formats.record import Message, Messages, Pair, Record
from ms_prefstream.formats.spelling import without_filled_nulls
from ms_prefstream.inspection.encoded import CUT, EncodedRow
from ms_prefstream.inspection.parts import Decode, Describer, Texts
from ms_prefstream.load.cached import check_cache
from ms_prefstream.load.loader import Recipe
from ms_prefstream.load.records import formats_of
from ms_prefstream.report.findings import NO_TEMPLATE
from ms_prefstream.sample import Loaded, Note, Ready
from ms_prefstream.sources.base import RandomAccess, fills_nulls
from ms_prefstream.sources.cached import caches_in, only_caches
from ms_prefstream.sources.open import open_source
from ms_prefstream.steps.data import Encoding
from ms_prefstream.steps.look import LOOKED_AT, can_look, first_rows, formats_in
from ms_prefstream.steps.summary import encoding_lines, rows_line
from ms_prefstream.tasks.base import Task, traits

_TOGETHER = 64  # rows that are encoded at a time

_NOTES = {
    Note.TRUNCATED: CUT,
    Note.QUESTION_CUT: "the whole question was cut away",
    Note.REWRITTEN: "the chat template changed a content",
    Note.BOUNDARY_DIFFERS: "the prompt's ids differ at generation",
    Note.CONTENT_LOST: "the chat template left out words of a trained turn",
    Note.EMPTY_THINK: "an empty think block is not trained",
    Note.MARKERS: "the text looks rendered already",
    Note.SEPARATOR_TRIMMED: "the chat template trims the last separator: its label is at the end of the step",
}


@checked_call
def encode(
    row: Mapping[str, Any],
    *,
    task: Task,
    tokenizer: Any,
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
) -> EncodedRow:
    """Encodes one raw row and shows what it becomes, or why it is dropped.

    Args:
        row: A row as the source gives it.
        task: `DPO`, `Reward`, `RLHF`, `KTO`, `ProcessReward` or `Prompts`.
        tokenizer: As for `ms_prefstream.stream`, like all that follows. One named by a path is loaded once.
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
        carry: Fields of the row that become further columns.
        backend: ``auto``, ``fastokens``, ``tiktoken``, ``tokenizers`` or ``sentencepiece``.

    Raises:
        PrefStreamError: An option that cannot be used. The result says what is wrong with the row itself.
    """
    encoding = group_of(Encoding, locals() | {"tokenizer": _loaded(tokenizer, backend)})
    carried = None if carry is None else encoding.carried(open_source([row]))
    (read,) = formats_of(None, format, fields, carried, traits(task).unpairs)
    return RowEncoder(encoding.recipe(ready=False, carry=carried)).rows([row], read)[0]


class RowEncoder:
    """Encodes raw rows and describes what they become.

    Args:
        recipe: What rows become.
        with_tokens: Whether each token gets a text of its own.
    """

    def __init__(self, recipe: Recipe, with_tokens: bool = False) -> None:
        self.task = recipe.task
        loader = recipe.loader()
        self._sides: dict[int, list[Flat]] = {}  # by the place of the record among those that are encoded together
        self._loader = loader.over(None, watch=self._keep)
        self._notes = (NO_TEMPLATE,) if recipe.tokenizer is not None and recipe.template is None else ()
        self._decode: Decode = _ids_as_text if recipe.tokenizer is None else recipe.tokenizer.decode
        self._describer = Describer(
            texts=Texts(self._decode, with_tokens),
            controls=np.array([] if recipe.tokenizer is None else sorted(recipe.tokenizer.special.values()), np.int64),
            scored=traits(recipe.task).scores,
        )

    def rows(
        self, raws: Sequence[Any], read: Callable[[Any], Any], origins: Sequence[str] = ("the row",)
    ) -> list[EncodedRow]:
        """Returns what raw rows become; `read` is their format."""
        found = [self._records_of(raw, read) for raw in raws]
        self._sides.clear()
        every = [(record, at) for at, records in enumerate(found) for record in records]
        loaded = enumerate(self._loader.samples([record for record, _ in every], lambda at: origins[every[at][1]]))
        rows = []
        for raw, records in zip(raws, found, strict=True):
            kept = None if isinstance(raw, (Ready, RowError)) else raw
            if not records:
                problem = "the format leaves this row out"
                rows.append(EncodedRow(self.task.name, None, problem=problem, raw=kept))
                continue
            first, *others = [self._described(record, *next(loaded), kept) for record in records]
            rows.append(dataclasses.replace(first, others=tuple(others)) if others else first)
        return rows

    def _records_of(self, raw: Any, read: Callable[[Any], Any]) -> Sequence[Any]:
        try:
            found: Any = raw if isinstance(raw, (Ready, RowError)) else read(raw)  # an error is a line that is not JSON
        except RowError as error:
            found = error
        return found if type(found) is tuple else (found,)

    def _keep(self, places: Sequence[int], conversations: Uncut) -> None:
        """Stores conversations as they are before the task's sampler cuts them."""
        for row, place in enumerate(places):
            self._sides[place] = [conversations.flat(row, side) for side in conversations.sides_of(row)]

    def _described(self, record: Record | Ready | RowError, place: int, loaded: Loaded, raw: Any) -> EncodedRow:
        sample, error, notes, unread = loaded
        task = self.task
        made = None if isinstance(record, (Ready, RowError)) else record
        if sample is None:
            assert error is not None  # a row has one or the other
            return EncodedRow(task.name, None, reason=error.reason, problem=str(error), raw=raw, record=made)
        alone = "response" if sample.sequences[0].spans else "prompt"
        names = ["chosen", "rejected"] if task.pairs else [alone]
        wholes: Sequence[Flat | None] = self._sides.get(place, [None])[-len(names) :]
        wholes = wholes if len(wholes) == len(names) else [None] * len(names)
        roles, cuts = _roles(record), self._cut_maps(wholes)
        sides = tuple(
            self._describer.side(name, sequence, whole, cut_map, roles)
            for name, sequence, whole, cut_map in zip(names, sample.sequences, wholes, cuts, strict=True)
        )
        changed, lost = self._left_out(record, notes, wholes, names)
        return EncodedRow(
            task.name,
            sample,
            sides,
            None if sample.prompt is None else self._decode(sample.prompt.tolist()),
            tuple(text for note, text in _NOTES.items() if note in notes) + self._notes,
            unread=unread,
            changed=changed,
            lost=lost,
            record=made,
        )

    def _cut_maps(self, wholes: Sequence[Flat | None]) -> list[CutMap | None]:
        """Returns the cut map of each side; sides with one prompt share one."""
        first = wholes[0]
        if first is None:
            return [None] * len(wholes)
        cuts = first.cuts()
        prompt = first.ids[: first.prompt]
        return [
            cuts if whole is None or np.array_equal(whole.ids[: whole.prompt], prompt) else whole.cuts()
            for whole in wholes
        ]

    def _left_out(
        self, record: Any, notes: Note, wholes: Sequence[Flat | None], names: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns the turns whose content the template changed, and the words that it left out of trained turns."""
        changed: dict[str, None] = {}
        lost: dict[str, None] = {}
        if not notes & (Note.REWRITTEN | Note.CONTENT_LOST):
            return (), ()
        for name, whole in zip(names, wholes, strict=True):
            assert whole is not None  # a cached sample has no turns
            text = self._decode(whole.ids.tolist())
            for of, message in _turns(record, name):
                if message.content and message.content not in text:
                    changed[f"the {message.role} turn" + f" of {of}" * bool(of)] = None
                    if of and notes & Note.CONTENT_LOST:
                        lost |= dict.fromkeys(_missing(message.content, text))
        return tuple(changed), tuple(lost)


class FoundRow(NamedTuple):
    """A row of a source.

    Attributes:
        number: Its number in the source, from 0.
        origin: Where it comes from, for people.
        row: What it becomes.
    """

    number: int
    origin: str
    row: EncodedRow


def rows_of(
    source: Any,
    rows: int | Sequence[int] | None,
    options: Mapping[str, Any],
    *,
    with_tokens: bool = False,
    log: bool = True,
) -> Iterator[FoundRow]:
    """Yields what rows of a source become.

    Args:
        source: What `ms_prefstream.read` takes.
        rows: So many first rows, or the numbers of rows, from 0; None for all.
        options: Arguments of `encode`.
        with_tokens: Whether each token gets a text of its own.
        log: Whether to log what the rows are and what makes tokens of them.

    Raises:
        PrefStreamError: The source cannot be opened, or an option cannot be used.
    """
    found = open_source(source)
    for cache in caches_in(found):
        check_cache(cache, options["task"], format=options.get("format", "auto"))
    backend = options.get("backend", "auto")
    encoding = Encoding(**{**options, "tokenizer": _loaded(options["tokenizer"], backend)})
    recipe = encoding.recipe(ready=only_caches(found), carry=encoding.carried(found))
    if log:
        _log_header(found, encoding, recipe)
    (read,) = formats_of(None, encoding.format, encoding.fields, recipe.carry, traits(recipe.task).unpairs)
    encoder, filled = RowEncoder(recipe, with_tokens), fills_nulls(found)
    passed = _raw_rows(found, rows)
    while together := list(itertools.islice(passed, _TOGETHER)):
        raws = [without_filled_nulls(raw) if filled else raw for _, _, raw in together]
        origins = [origin for _, origin, _ in together]
        for (number, origin, _), row in zip(together, encoder.rows(raws, read, origins), strict=True):
            yield FoundRow(number, origin, row)


def _raw_rows(source: Any, rows: int | Sequence[int] | None) -> Iterator[tuple[int, str, Any]]:
    """Yields (number, origin, raw row)."""
    if isinstance(source, RandomAccess):
        if not isinstance(rows, Sequence):
            rows = range(len(source) if rows is None else min(rows, len(source)))
        for row in rows:
            number = whole_number("row", row, 0, len(source) - 1)
            yield number, source.origin(number), source.read([number])[0]
        return
    last = max(rows) + 1 if isinstance(rows, Sequence) else rows
    for number, (origin, raw) in enumerate(itertools.islice(source.start(), last)):
        if not isinstance(rows, Sequence) or number in rows:
            yield number, origin, raw


def _log_header(source: Any, encoding: Encoding, recipe: Recipe) -> None:
    """Logs what the rows are and what makes tokens of them, as a stream does."""
    formats = formats_of(source, encoding.format, encoding.fields, recipe.carry)
    raws = [raw for _, raw, _ in first_rows(source, formats, LOOKED_AT)] if can_look(source, formats) else []
    rows = len(source) if isinstance(source, RandomAccess) else None
    lines = [rows_line(encoding.task, source, rows, formats_in(formats, raws)), *encoding_lines(recipe)]
    logging.getLogger("ms_prefstream").info("%s", "\n".join(lines))


def _loaded(tokenizer: Any, backend: str) -> Tokenizer | None:
    if isinstance(tokenizer, (str, os.PathLike)):
        return _load_path(os.fspath(tokenizer), backend)
    return None if tokenizer is None else load_tokenizer(tokenizer, backend)


_load_path = functools.lru_cache(maxsize=4)(load_tokenizer)  # loading takes a thousand times as long as one row


def _ids_as_text(ids: Sequence[int]) -> str:
    return "".join(f"<{i}>" for i in ids)


def _roles(record: Any) -> list[str]:
    """Returns the roles of the prompt's turns, without system messages at its beginning; none for rows of ids."""
    prompt: Messages = getattr(record, "prompt", ())
    return [message.role for message in itertools.dropwhile(lambda message: message.role == "system", prompt)]


def _turns(record: Any, side: str) -> Iterator[tuple[str, Message]]:
    """Yields the turns of one side of a record: ("", turn) in the prompt, (side, turn) in the response."""
    yield from (("", message) for message in record.prompt)
    response = getattr(record, side, None)
    if response is None and isinstance(record, Pair):
        response = record.chosen  # a task of single responses
    yield from ((side, message) for message in response or ())


def _missing(content: str, text: str) -> list[str]:
    """Returns the runs of words of a content that a text lacks."""
    words, written = content.split(), text.split()
    matcher = difflib.SequenceMatcher(None, words, written, autojunk=False)
    return [" ".join(words[a:b]) for tag, a, b, _, _ in matcher.get_opcodes() if tag in ("delete", "replace")]
