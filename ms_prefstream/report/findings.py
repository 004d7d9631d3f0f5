"""What looks wrong with some rows: one list of checks, for the warnings of a stream and for `mps.doctor`.

To add a check, write a function that yields `Finding`s from what was `Seen`, and name it in `CHECKS`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Completion, Messages, Pair, TokenCompletion, TokenPair
from ms_prefstream.report.bad_rows import REMEDIES
from ms_prefstream.sample import Loaded, Note
from ms_prefstream.sources.content_hash import rows_hash
from ms_prefstream.tasks import Task
from ms_prefstream.tasks.base import traits

NO_TEMPLATE = "no chat template: prompt and response joined as text"

_FEW = 20  # rows below which shares say nothing
_QUESTION_LOST = 0.05
_CUT = 0.2
_ONE_SIDE = 0.95
_REPEATED = 0.05
_TURNS = re.compile(r"""\s*\[?\s*\{\s*["'](role|from|content|value)["']\s*:""")
_ROUND = 16  # suggested lengths are multiples of it


@dataclass(frozen=True)
class Finding:
    """One thing that looks wrong.

    Attributes:
        text: What was found, with numbers.
        remedy: What to do about it, such as the option that mends it; may be empty.
        must: Whether it has to be mended: training would stop, or learn something else than meant.
    """

    text: str
    remedy: str = ""
    must: bool = False

    def __str__(self) -> str:
        return f"{self.text}. {self.remedy}." if self.remedy else f"{self.text}."


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was looked at. All lists may be empty; the checks use those that are not.

    Attributes:
        task: What rows become.
        tokenizer: The tokenizer, or None.
        joined: Whether prompt and response are joined as text although a chat template was asked for (``auto``).
        pad_id: The id that arrays are padded with, or None.
        drops: Whether malformed rows are dropped (``on_bad_row="drop"``).
        raws: Raw rows.
        records: Their records or errors.
        origins: Where the records come from.
        loaded: Samples, or why there are none.
        lengths: Tokens of samples before anything was cut, by the name of the option that limits them.
    """

    task: Task
    tokenizer: Tokenizer | None = None
    joined: bool = False
    pad_id: int | None = None
    drops: bool = False
    raws: Sequence[Any] = ()
    records: Sequence[Any] = ()
    origins: Sequence[str] = ()
    loaded: Sequence[Loaded] = ()
    lengths: Mapping[str, Sequence[int]] | None = None

    @property
    def pairs(self) -> list[Pair | TokenPair]:
        """The records that are pairs."""
        return [record for record in self.records if isinstance(record, (Pair, TokenPair))]

    @property
    def kept(self) -> list[Loaded]:
        """The rows that became samples."""
        return [one for one in self.loaded if one.sample is not None]

    def with_note(self, note: Note) -> int:
        """Returns how many rows have a note."""
        return sum(bool(one.notes & note) for one in self.loaded)


def findings(seen: Seen, without: Sequence[Any] = ()) -> list[Finding]:
    """Returns everything that looks wrong, what must be mended first, but not what the checks `without` find."""
    found = [one for check in CHECKS if check not in without for one in check(seen)]
    return sorted(found, key=lambda one: not one.must)


def no_template(seen: Seen) -> Iterator[Finding]:
    """Finds a tokenizer without a chat template."""
    tokens = [isinstance(record, (TokenPair, TokenCompletion)) for record in seen.records]
    if seen.joined and seen.tokenizer is not None and not (tokens and all(tokens)):
        remedy = (
            f"The tokenizer {seen.tokenizer.name} has none: take one that has, give template=<Jinja text or .jinja "
            "file>, or template=None if that is meant"
        )
        yield Finding(NO_TEMPLATE, remedy, must=True)


def cut(seen: Seen) -> Iterator[Finding]:
    """Finds a length that is too short: rows lose their question, or anything."""
    rows, lost, short = len(seen.kept), seen.with_note(Note.QUESTION_CUT), seen.with_note(Note.TRUNCATED)
    if not rows or (lost <= _QUESTION_LOST * rows and short <= _CUT * rows):
        return
    remedies = _lengths_that_keep(seen)
    names = [name for name in ("max_prompt_length", "max_length", "seq_length") if getattr(seen.task, name, None)]
    limits = [*remedies] or names
    what = "lose their whole question" if lost > _QUESTION_LOST * rows else "are cut"
    count = lost if lost > _QUESTION_LOST * rows else short
    yield Finding(
        f"{', '.join(f'{name} {getattr(seen.task, name)}' for name in limits)}: {count:,} of {rows:,} rows {what}",
        "; ".join(remedies.values()) or f"Raise {' or '.join(names)}",
        must=lost > _QUESTION_LOST * rows,
    )


def _lengths_that_keep(seen: Seen) -> dict[str, str]:
    """Returns what to do about each limit that is exceeded, by the name of its option."""
    found: dict[str, str] = {}
    for name, lengths in (seen.lengths or {}).items():
        limit = getattr(seen.task, name, None)
        if limit is None or not len(lengths) or max(lengths) <= limit:
            continue
        most, all_but = (int(-(-np.quantile(lengths, share) // _ROUND) * _ROUND) for share in (0.9, 0.99))
        found[name] = f"{name}={most} keeps 90 % of the rows whole, {name}={all_but} 99 %"
    return found


def unread(seen: Seen) -> Iterator[Finding]:
    """Finds fields that hold something and that nothing reads."""
    names: Counter[str] = Counter()
    first: dict[str, str] = {}
    for at, one in enumerate(seen.loaded or seen.records):
        for name in getattr(one, "unread", ()):
            names[name] += 1
            if at < len(seen.origins):
                first.setdefault(name, seen.origins[at])
    for name, count in names.most_common(3):
        where = f" (first: {first[name]})" if name in first else ""
        remedy = (
            f'Name it in fields={{"<standard name>": "{name}"}} if it belongs to the text, or in carry if it is to be '
            "a column; else remove it"
        )
        yield Finding(f"{_of(count, seen)} hold {name!r}, which nothing reads{where}", remedy)


def no_response(seen: Seen) -> Iterator[Finding]:
    """Finds prompts alone, where a task trains on responses."""
    if seen.task.pairs or not traits(seen.task).trains:
        return
    alone = [one for one in seen.records if type(one) in (Completion, TokenCompletion)]
    count = sum(not (one.response if isinstance(one, Completion) else one.response_ids) for one in alone)
    if count:
        remedy = 'Name the response, as fields={"response": "answer"}, unless only rollouts use these rows'
        yield Finding(f"{_of(count, seen)} have no response, so that nothing of them is under the loss", remedy)


def one_side_longer(seen: Seen) -> Iterator[Finding]:
    """Finds pairs of which nearly always the same side is longer."""
    sizes = [(_size(pair.chosen), _size(pair.rejected)) for pair in seen.pairs if isinstance(pair, Pair)]
    for name, longer in (
        ("chosen", sum(one > other for one, other in sizes)),
        ("rejected", sum(one < other for one, other in sizes)),
    ):
        if len(sizes) >= _FEW and longer >= _ONE_SIDE * len(sizes):
            text = f"{name} is longer in {longer:,} of {len(sizes):,} pairs, so length alone distinguishes the sides"
            yield Finding(text, "Balance the lengths, or expect a model that learns them")


def repeated(seen: Seen) -> Iterator[Finding]:
    """Finds copies of rows."""
    rows = [*{id(raw): raw for raw in seen.raws if raw is not None}.values()]  # one that gives several records, once
    count = len(rows) - len({rows_hash([raw]) for raw in rows})
    if len(rows) >= _FEW and count > _REPEATED * len(rows):
        yield Finding(f"{count:,} of the first {len(rows):,} rows repeat another row", "Remove the copies")


def swapped(seen: Seen) -> Iterator[Finding]:
    """Finds margins below 0: the rejected side has the better score."""
    margins = [pair.margin for pair in seen.pairs if pair.margin is not None]
    below = sum(margin < 0 for margin in margins)
    if margins and below > len(margins) / 2:
        remedy = 'Swap the sides, as fields={"chosen": "rejected", "rejected": "chosen"}, or the scores'
        yield Finding(f"the margin is negative in {below:,} of {len(margins):,} pairs: sides look swapped", remedy)


def turns_as_text(seen: Seen) -> Iterator[Finding]:
    """Finds conversations that were saved as the JSON text of a list."""
    count = sum(any(_TURNS.match(message.content) for message in _messages(one)) for one in seen.records)
    if count:
        remedy = "Parse it, as format=lambda row: {**row, 'prompt': json.loads(row['prompt'])}"
        yield Finding(f"{_of(count, seen)} have the JSON text of turns as content", remedy, must=True)


def rendered(seen: Seen) -> Iterator[Finding]:
    """Finds texts with markers of turns; a chat template would wrap them a second time."""
    if count := seen.with_note(Note.MARKERS):
        remedy = 'Pass the messages, or template=None with special_tokens_in_content="allow"'
        yield Finding(f"{_of(count, seen)} look rendered already: markers would be trained as text", remedy)


def content_lost(seen: Seen) -> Iterator[Finding]:
    """Finds words of a trained turn that the chat template leaves out."""
    if count := seen.with_note(Note.CONTENT_LOST):
        remedy = 'Pass template= that keeps them, or content_lost="drop"'
        yield Finding(f"{_of(count, seen)} lose words of a trained turn to the chat template", remedy)


def dropped(seen: Seen) -> Iterator[Finding]:
    """Finds rows that become no sample, by reason."""
    errors: dict[Reason, list[tuple[int, RowError]]] = {}
    for at, one in enumerate(seen.loaded):
        if one.error is not None:
            errors.setdefault(one.error.reason, []).append((at, one.error))
    for reason, found in sorted(errors.items(), key=lambda entry: -len(entry[1])):
        at, error = found[0]
        where = error.origin or (seen.origins[at] if at < len(seen.origins) else "")
        stops = reason.malformed and not seen.drops
        remedy = error.remedy or _REMEDIES.get(str(reason), _CORRECT if reason.malformed else "")
        text = f"{_of(len(found), seen)}: {reason} (first: {where}: {error.problem})"
        yield Finding(text, remedy, must=stops or len(found) == len(seen.loaded))


_CORRECT = 'Correct them, or pass on_bad_row="drop"'
_REMEDIES = REMEDIES | {
    "prompt_ends_with_answer": 'Pass continue_final_message="join" if the response continues that answer',
    "identical": "They are left out; both sides are the same",
    "tie": "They are left out; both sides have the same score",
    "empty_response": "They are left out; a side has no text",
}


def pad_is_end(seen: Seen) -> Iterator[Finding]:
    """Finds a pad id that is the end token's."""
    end = None if seen.tokenizer is None else seen.tokenizer.eos_id
    if end is not None and end == seen.pad_id:
        remedy = "Pass pad_token_id=<id of an unused token> if your model masks by the id instead of the masks here"
        yield Finding(f"the pad id {seen.pad_id} is the end token's", remedy)


CHECKS: tuple[Callable[[Seen], Iterator[Finding]], ...] = (
    no_template,
    dropped,
    cut,
    turns_as_text,
    swapped,
    unread,
    no_response,
    content_lost,
    rendered,
    one_side_longer,
    repeated,
    pad_is_end,
)


def _of(count: int, seen: Seen) -> str:
    total = len(seen.loaded or seen.records)
    return f"{count:,} of {total:,} rows"


def _size(messages: Messages) -> int:
    return sum(len(message.content) for message in messages)


def _messages(record: Any) -> Messages:
    if not isinstance(record, (Pair, Completion)):
        return ()
    answers = record.chosen + record.rejected if isinstance(record, Pair) else record.response
    return record.prompt + answers
