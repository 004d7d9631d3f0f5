"""Inspection of single rows: what a raw row becomes, as text, or why it is dropped."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ms_prefstream.checks import checked_call, whole_number
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer
from ms_prefstream.errors import Reason, RowError, printable
from ms_prefstream.formats.spelling import without_filled_nulls
from ms_prefstream.lines import at_most
from ms_prefstream.load.cached import check_cache
from ms_prefstream.load.records import formats_of
from ms_prefstream.report.findings import NO_TEMPLATE
from ms_prefstream.sample import Loaded, Note, Ready, Sample
from ms_prefstream.sample import Sequence as TokenSequence
from ms_prefstream.sources.base import RandomAccess, fills_nulls
from ms_prefstream.sources.cached import caches_in, only_caches
from ms_prefstream.sources.open import open_source
from ms_prefstream.steps.data import Encoding
from ms_prefstream.steps.look import LOOKED_AT, can_look, first_rows, formats_in
from ms_prefstream.steps.summary import encoding_lines, rows_line
from ms_prefstream.tasks.base import Task

MOST_LINES = 12  # of a printed row
_SHOWN = 160  # characters of a text that are printed

_NOTES = {
    Note.TRUNCATED: "cut to fit",
    Note.QUESTION_CUT: "the whole question was cut away",
    Note.REWRITTEN: "the chat template changed a content",
    Note.BOUNDARY_DIFFERS: "the prompt's ids differ at generation",
    Note.CONTENT_LOST: "the chat template left out words of a trained turn",
    Note.EMPTY_THINK: "an empty think block is not trained",
    Note.MARKERS: "the text looks rendered already",
}


@dataclass(frozen=True)
class EncodedSide:
    """A sequence of a sample, as text.

    Attributes:
        name: ``chosen``, ``rejected``, ``response``, or ``prompt`` for a prompt without response.
        ids: Its token ids.
        prompt: The text before the first token under the loss.
        trained: The texts under the loss, end of turn included.
        rest: The text after the last token under the loss.
        tokens: (before the loss, under the loss, in all).
        truncated: Whether something was cut off.
    """

    name: str
    ids: tuple[int, ...]
    prompt: str
    trained: tuple[str, ...]
    rest: str
    tokens: tuple[int, int, int]
    truncated: bool

    def __str__(self) -> str:
        before, under, total = self.tokens
        lines = [f"{self.name}: {total} tokens, {before} before the loss, {under} under it" + ", cut" * self.truncated]
        lines.append(f"  prompt   {_short(self.prompt)}")
        lines += [f"  trained  {_short(text)}" for text in self.trained]
        if self.rest:
            lines.append(f"  after    {_short(self.rest)}")
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True)
class EncodedRow:
    """The sample that a row becomes, as text, or the reason why it is dropped; `print` shows it.

    Attributes:
        task: Name of the task.
        sample: Its sample, None if the row is dropped.
        sides: The sequences of the sample, as text.
        rollout: The text of the prompt that a rollout starts from; None for tasks without one.
        notes: What else happened to a row that is kept, in words.
        reason: Why the row is dropped; None if it is kept, or if the format leaves it out.
        problem: The reason as a sentence; "" if the row is kept.
        others: The further records of a row of which the format makes several.
        unread: Fields of the row that hold text, messages, tools or media and that nothing read.
    """

    task: str
    sample: Sample | None
    sides: tuple[EncodedSide, ...] = ()
    rollout: str | None = None
    notes: tuple[str, ...] = ()
    reason: Reason | None = None
    problem: str = ""
    others: tuple[EncodedRow, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Returns whether the row becomes a sample."""
        return self.sample is not None

    @property
    def truncated(self) -> bool:
        """Returns whether something was cut off on any side."""
        return any(side.truncated for side in self.sides)

    def __str__(self) -> str:
        if self.sample is None:
            lines = [f"dropped: {self.problem}"]
        else:
            lines = [f"kept ({self.task})" + "".join(f"; {note}" for note in self.notes)]
            if self.unread:
                lines.append(f"fields that nothing read: {', '.join(self.unread)}")
            if self.sample.margin is not None:
                lines.append(f"margin {self.sample.margin:g}")
            if self.rollout is not None and self.sample.prompt is not None:
                lines.append(f"rollout: {len(self.sample.prompt)} tokens\n  prompt   {_short(self.rollout)}")
            lines += map(str, self.sides)
        others = [line for other in self.others for line in str(other).splitlines()]
        shown = [line for text in lines for line in printable(text, most=None).splitlines()]
        return "\n".join(at_most([shown, others], MOST_LINES))

    __repr__ = __str__


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
    backend: str = "auto",
) -> EncodedRow:
    """Encodes one raw row and shows what it becomes, or why it is dropped.

    Args:
        row: A row as the source gives it.
        task: `DPO`, `Reward` or `RLHF`.
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
        backend: ``auto``, ``fastokens``, ``tiktoken``, ``tokenizers`` or ``sentencepiece``.

    Raises:
        PrefStreamError: An option that cannot be used. The result says what is wrong with the row itself.
    """
    loaded = _loaded(tokenizer, backend)
    encoding = Encoding(
        task=task,
        tokenizer=loaded,
        template=template,
        template_variables=template_variables,
        vocab_size=vocab_size,
        boundary=boundary,
        special_tokens_in_content=special_tokens_in_content,
        content_lost=content_lost,
        continue_final_message=continue_final_message,
        train_empty_think=train_empty_think,
    )
    recipe, (read,) = encoding.recipe(ready=False), formats_of(None, format, fields)
    loader = recipe.loader()
    try:
        found: Any = row if isinstance(row, (Ready, RowError)) else read(row)  # an error is a line that is not JSON
    except RowError as error:
        found = error
    records: Sequence[Any] = found if type(found) is tuple else (found,)
    if not records:
        return EncodedRow(task.name, None, problem="the format leaves this row out")
    always = (NO_TEMPLATE,) if loaded is not None and recipe.template is None else ()
    first, *others = [_describe(task, loaded, one, always) for one in loader.samples(records)]
    return dataclasses.replace(first, others=tuple(others))


def inspect(source: Any, rows: int | Sequence[int], options: Mapping[str, Any]) -> Iterator[str]:
    """Yields what rows of a source become, as text with their origins, safe to print.

    Args:
        source: What `ms_prefstream.read` takes.
        rows: So many first rows, or the numbers of rows, from 0.
        options: Arguments of `encode`.

    Raises:
        PrefStreamError: The source cannot be opened, or an option cannot be used.
    """
    found = open_source(source)
    for cache in caches_in(found):
        check_cache(cache, options["task"], format=options.get("format", "auto"))
    _log_header(found, options)
    numbers = range(rows) if isinstance(rows, int) else rows
    if isinstance(found, RandomAccess):
        if isinstance(rows, int):
            numbers = range(min(rows, len(found)))
        shown = ((found.origin(whole_number("row", n, 0, len(found) - 1)), found.read([n])[0]) for n in numbers)
    else:
        passed = enumerate(itertools.islice(found.start(), max(numbers) + 1))
        shown = (both for number, both in passed if number in numbers)
    filled = fills_nulls(found)
    for origin, raw in shown:
        raw = without_filled_nulls(raw) if filled else raw
        yield f"{printable(origin)}  {encode(raw, **options)}\n"


def _log_header(source: Any, options: Mapping[str, Any]) -> None:
    """Logs what the rows are and what makes tokens of them, as a stream does."""
    tokenizer = _loaded(options["tokenizer"], options.get("backend", "auto"))
    encoding = Encoding(**{**options, "tokenizer": tokenizer})
    formats = formats_of(source, encoding.format, encoding.fields)
    raws = [raw for _, raw, _ in first_rows(source, formats, LOOKED_AT)] if can_look(source, formats) else []
    recipe = encoding.recipe(ready=only_caches(source))
    rows = len(source) if isinstance(source, RandomAccess) else None
    lines = [rows_line(encoding.task, source, rows, formats_in(formats, raws)), *encoding_lines(recipe)]
    logging.getLogger("ms_prefstream").info("%s", "\n".join(lines))


def _loaded(tokenizer: Any, backend: str) -> Tokenizer | None:
    if isinstance(tokenizer, (str, os.PathLike)):
        return _load_path(os.fspath(tokenizer), backend)
    return None if tokenizer is None else load_tokenizer(tokenizer, backend)


_load_path = functools.lru_cache(maxsize=4)(load_tokenizer)  # loading takes a thousand times as long as one row


def _describe(task: Task, tokenizer: Tokenizer | None, loaded: Loaded, always: tuple[str, ...]) -> EncodedRow:
    sample, error, notes, unread = loaded
    if sample is None:
        assert error is not None  # a row has one or the other
        return EncodedRow(task.name, None, reason=error.reason, problem=str(error))
    decode = _ids_as_text if tokenizer is None else tokenizer.decode
    alone = "response" if sample.sequences[0].spans else "prompt"
    names = ["chosen", "rejected"] if task.pairs else [alone]
    return EncodedRow(
        task.name,
        sample,
        tuple(_side(name, sequence, decode) for name, sequence in zip(names, sample.sequences, strict=True)),
        None if sample.prompt is None else decode(sample.prompt.tolist()),
        tuple(text for note, text in _NOTES.items() if note in notes) + always,
        unread=unread,
    )


def _side(name: str, sequence: TokenSequence, decode: Callable[[Sequence[int]], str]) -> EncodedSide:
    ids, spans = sequence.ids.tolist(), sequence.spans
    borders = [border for span in spans for border in span] or [len(ids)]
    prompt, *between, rest = _parts(ids, [0, *borders, len(ids)], decode)
    return EncodedSide(
        name=name,
        ids=tuple(ids),
        prompt=prompt,
        trained=tuple(between[::2]),
        rest=rest,
        tokens=(borders[0], sum(end - begin for begin, end in spans), len(ids)),
        truncated=sequence.truncated,
    )


def _parts(ids: list[int], borders: list[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Returns the texts between token positions, as parts of the whole text where decoding allows it."""
    upto = [decode(ids[:border]) for border in borders]
    pairs = list(itertools.pairwise(upto))
    if all(longer.startswith(shorter) for shorter, longer in pairs):
        return [longer[len(shorter) :] for shorter, longer in pairs]
    return [decode(ids[begin:end]) for begin, end in itertools.pairwise(borders)]


def _ids_as_text(ids: Sequence[int]) -> str:
    return "".join(f"<{i}>" for i in ids)


def _short(text: str) -> str:
    if len(text) > _SHOWN:
        return f"{text[: _SHOWN // 2]!r} … {text[-_SHOWN // 2 :]!r} ({len(text):,} characters)"
    return repr(text)
