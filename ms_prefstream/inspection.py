"""What one raw row becomes, or why it is dropped: for eyes, before anything is trained on."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ms_prefstream.checks import check_made, whole_number
from ms_prefstream.encode.build import build_encoder
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats import resolve_format
from ms_prefstream.load.cached import check_cache
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.sample import Loaded, Note, Ready, Sample
from ms_prefstream.sample import Sequence as TokenSequence
from ms_prefstream.sources.base import RandomAccess
from ms_prefstream.sources.cached import caches_in
from ms_prefstream.sources.open import open_source
from ms_prefstream.tasks.base import Task

_SHOWN = 160  # characters of a text that are printed

_NOTES = {
    Note.TRUNCATED: "cut to fit",
    Note.QUESTION_CUT: "the whole question was cut away",
    Note.REWRITTEN: "the chat template changed a content",
    Note.BOUNDARY_DIFFERS: "the prompt's ids differ at generation",
}


@dataclass(frozen=True)
class EncodedSide:
    """One sequence of a sample, as text.

    Attributes:
        name: ``chosen``, ``rejected``, ``response``, or ``prompt`` for a prompt without response.
        ids: Its token ids.
        prompt: The text before the first token under the loss.
        trained: The texts under the loss, end of turn included.
        rest: The text behind the last token under the loss.
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
            lines.append(f"  behind   {_short(self.rest)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class EncodedRow:
    """What one row becomes; `print` shows it.

    Attributes:
        task: Name of the task.
        sample: Its sample, None if the row is dropped.
        sides: The sequences of the sample, as text.
        rollout: The text of the prompt that a rollout starts from; None for tasks without one.
        notes: What is worth knowing about a row that is kept, in words.
        reason: Why the row is dropped; None if it is kept, or if the format leaves it out.
        problem: The same as a sentence; "" if the row is kept.
        others: The further records of a row of which the format makes several.
    """

    task: str
    sample: Sample | None
    sides: tuple[EncodedSide, ...] = ()
    rollout: str | None = None
    notes: tuple[str, ...] = ()
    reason: Reason | None = None
    problem: str = ""
    others: tuple[EncodedRow, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the row becomes a sample."""
        return self.sample is not None

    @property
    def truncated(self) -> bool:
        """Whether something was cut off on any side."""
        return any(side.truncated for side in self.sides)

    def __str__(self) -> str:
        if self.sample is None:
            lines = [f"dropped: {self.problem}"]
        else:
            lines = [f"kept ({self.task})" + "".join(f"; {note}" for note in self.notes)]
            if self.sample.margin is not None:
                lines.append(f"margin {self.sample.margin:g}")
            if self.rollout is not None and self.sample.prompt is not None:
                lines.append(f"rollout: {len(self.sample.prompt)} tokens\n  prompt   {_short(self.rollout)}")
            lines += map(str, self.sides)
        return "\n".join([*lines, *map(str, self.others)])


def encode(
    row: Mapping[str, Any],
    *,
    task: Task,
    tokenizer: Any,
    format: Any = "auto",
    template: str | None = "auto",
    boundary: str = "joint",
    special_tokens_in_content: str = "escape",
    backend: str = "auto",
) -> EncodedRow:
    """What one raw row becomes, or why it is dropped.

    Args:
        row: A row as the source gives it.
        task: `DPO`, `Reward` or `RLHF`.
        tokenizer: As for `ms_prefstream.stream`, like all that follows. One named by a path is loaded once.
        format: A preset's name, a preset, or a function row -> row.
        template: ``auto``, ``chat``, Jinja text, the path of a .jinja file, or None.
        boundary: ``joint`` or ``inference``.
        special_tokens_in_content: ``escape``, ``error`` or ``allow``.
        backend: ``auto``, ``tiktoken``, ``tokenizers`` or ``sentencepiece``.

    Raises:
        PrefStreamError: An option that cannot be used. What is wrong with the row itself is told by the result.
    """
    check_made("task", task, "sampler", "mps.DPO(max_length=1024)")
    loaded = None if tokenizer is None else _loaded(tokenizer, backend)
    encoder = None
    if loaded is not None:
        encoder = build_encoder(
            loaded,
            template=template,
            boundary=boundary,
            special_tokens_in_content=special_tokens_in_content,
            refused=task.refused(loaded),
        )
    loader = SampleLoader(None, task, task.sampler(loaded), encoder)
    read = resolve_format(format)
    try:
        if isinstance(row, RowError):  # a line that could not be parsed
            raise row
        found = row if isinstance(row, Ready) else read(row)
    except RowError as error:
        return _dropped(task, error)
    records: Sequence[Any] = found if type(found) is tuple else (found,)
    if not records:
        return EncodedRow(task.name, None, problem="the format leaves this row out")
    first, *others = [_explained(task, loaded, one) for one in loader.samples(records)]
    return first if not others else EncodedRow(**{**vars(first), "others": tuple(others)})


def inspect(source: Any, rows: int | Sequence[int], options: Mapping[str, Any]) -> Iterator[str]:
    """What rows of a source become, as text with their origins.

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
    if isinstance(found, RandomAccess):
        if not isinstance(rows, int):
            for row in rows:
                whole_number("row", row, 0, len(found) - 1)
        numbers = range(min(rows, len(found))) if isinstance(rows, int) else rows
        shown = ((found.origin(row), found.read([row])[0]) for row in numbers)
    else:
        wanted = range(rows) if isinstance(rows, int) else rows
        passed = enumerate(itertools.islice(found.start(), max(wanted) + 1))
        shown = (both for row, both in passed if row in wanted)
    for origin, raw in shown:
        yield f"{origin}  {encode(raw, **options)}\n"


def _loaded(tokenizer: Any, backend: str) -> Tokenizer:
    if isinstance(tokenizer, (str, os.PathLike)):
        return _loaded_by_path(os.fspath(tokenizer), backend)
    return load_tokenizer(tokenizer, backend)


@functools.lru_cache(maxsize=4)  # loading takes a thousand times as long as one row
def _loaded_by_path(path: str, backend: str) -> Tokenizer:
    return load_tokenizer(path, backend)


def _dropped(task: Task, error: RowError) -> EncodedRow:
    return EncodedRow(task.name, None, reason=error.reason, problem=str(error))


def _explained(task: Task, tokenizer: Tokenizer | None, loaded: Loaded) -> EncodedRow:
    sample, error, notes = loaded
    if sample is None:
        assert error is not None  # a row has one or the other
        return _dropped(task, error)
    decode = _show_ids if tokenizer is None else tokenizer.decode
    alone = "response" if sample.sequences[0].spans else "prompt"
    names = ["chosen", "rejected"] if task.pairs else [alone]
    return EncodedRow(
        task.name,
        sample,
        tuple(_side(name, sequence, decode) for name, sequence in zip(names, sample.sequences, strict=True)),
        None if sample.prompt is None else decode(sample.prompt.tolist()),
        tuple(text for note, text in _NOTES.items() if note in notes),
    )


def _side(name: str, sequence: TokenSequence, decode: Callable[[Sequence[int]], str]) -> EncodedSide:
    ids, spans = sequence.ids, sequence.spans
    borders = [border for span in spans for border in span]
    parts = _parts(ids.tolist(), [0, *borders, len(ids)] if spans else [0, len(ids), len(ids)], decode)
    under = sum(end - begin for begin, end in spans)
    return EncodedSide(
        name,
        tuple(ids.tolist()),
        parts[0],
        tuple(parts[1:-1:2]),
        parts[-1],
        (spans[0][0] if spans else len(ids), under, len(ids)),
        sequence.truncated,
    )


def _parts(ids: list[int], borders: list[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The texts between token positions, as parts of the whole text wherever they are that."""
    upto = [decode(ids[:border]) for border in borders]
    pairs = list(itertools.pairwise(upto))
    if all(longer.startswith(shorter) for shorter, longer in pairs):
        return [longer[len(shorter) :] for shorter, longer in pairs]
    return [decode(ids[begin:end]) for begin, end in itertools.pairwise(borders)]


def _show_ids(ids: Sequence[int]) -> str:
    return "".join(f"<{i}>" for i in ids)


def _short(text: str) -> str:
    if len(text) > _SHOWN:
        return f"{text[: _SHOWN // 2]!r} … {text[-_SHOWN // 2 :]!r} ({len(text):,} characters)"
    return repr(text)
