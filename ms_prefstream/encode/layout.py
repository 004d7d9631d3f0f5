"""The layout of a conversation: its control tokens, the runs of text between them, and which of them are trained on.

A control token in the template is a hard border. No token ever spans it, so every unit is encoded on its own and
units that repeat are encoded once. Inside a unit, pieces record the message that each text belongs to::

    <|im_start|>assistant\\nHello<|im_end|>\\n

    unit 0  control <|im_start|>    owner 1  HEAD
    unit 1  "assistant\\n" + slot    owner 1  HEAD, BODY
    unit 2  control <|im_end|>      owner 1  TAIL         the end of turn
    unit 3  "\\n"                    owner 1  TAIL

Neighbouring units whose ids are known in advance form one step, so a row costs one step for each of its contents and
one for each stretch of template between them. `under_loss` decides which pieces are trained on.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ms_prefstream.encode.backends.added import BLANKS
from ms_prefstream.encode.backends.base import Place, TextEncoder
from ms_prefstream.sample import Ids, Note, Span


class Kind(enum.IntEnum):
    """Role of a piece in a rendered conversation."""

    PREAMBLE = 0  # BOS, the template's own system block, the row's system message: truncation always keeps it
    HEAD = 1  # template text before a message's content
    BODY = 2  # the content; for a response, everything that the model writes before its end of turn
    TAIL = 3  # template text after the content: the end of turn and the text that follows it


class Piece(NamedTuple):
    """A run of text with one owner (the index of its message).

    `text` is None for a slot; `slot` is the index of the content, or other value of the row, that fills it.
    """

    owner: int
    kind: Kind
    text: str | None
    slot: int = 0


class Stretch(NamedTuple):
    """A stretch of a unit that is encoded alone: contents, with fixed texts before, between and after them.

    Attributes:
        texts: The fixed texts, one more than slots.
        slots: The contents.
        place: Where the stretch stands.
    """

    texts: tuple[str, ...]
    slots: tuple[int, ...]
    place: Place

    def text(self, contents: Sequence[str]) -> str:
        """Returns the text with these contents."""
        first, *others = self.texts
        for slot, text in zip(self.slots, others, strict=True):
            first += contents[slot] + text
        return first


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One control token, or one run of text between control tokens.

    Attributes:
        pieces: Its pieces; exactly one for a control token.
        place: Where the text stands (it matters to tokenizers with a dummy prefix).
        control: The id of the control token, -1 for text.
        trained: Indices of the pieces under the loss: response text, or the end of turn.
        border: Index of the piece at which the text is split into tokens before and after: the first one under the
            loss, else the first content; 0 if nothing stands before it.
        ids: (n,) int32 if every piece is fixed, so that the unit is encoded once per layout.
        head: The ids of the pieces before `border`, if these are fixed.
        system: Whether it ends with a system message, which rows are likely to repeat.
        stripped: Whether the control tokens before and after it take white space of it with them; None if neither.
        stretches: What its ids are joined from: stretches of text, and the ids of fixed text at added tokens between
            them. None if the text is encoded as a whole.
    """

    pieces: tuple[Piece, ...]
    place: Place = Place.AFTER_SPECIAL
    control: int = -1
    trained: tuple[int, ...] = ()
    border: int = 0
    ids: Ids | None = None
    head: tuple[int, ...] | None = None
    system: bool = False
    stripped: tuple[bool, bool] | None = None
    stretches: tuple[Stretch | Ids, ...] | None = None

    def text(self, contents: Sequence[str], first: int = 0, last: int | None = None) -> str:
        """Returns the text of the pieces [first, last) with the contents filled in, as the tokenizer reads it."""
        if self.stripped is None:
            return self.written(contents, first, last)
        whole, (left, right) = self.written(contents), self.stripped
        begin = len(whole) - len(whole.lstrip(BLANKS)) if left else 0
        end = len(whole.rstrip(BLANKS)) if right else len(whole)
        before, until = (len(self.written(contents, 0, at)) for at in (first, last))
        return whole[max(begin, before) : min(end, until)]

    @property
    def open(self) -> tuple[Stretch | None, ...]:
        """The stretches of text; None stands for the whole unit."""
        return (None,) if self.stretches is None else tuple([one for one in self.stretches if isinstance(one, Stretch)])

    def to_encode(self, contents: Sequence[str]) -> list[tuple[str, Place]]:
        """Returns the texts that are encoded with these contents, and their places; see `open`."""
        if self.stretches is None:
            return [(self.text(contents), self.place)]
        return [(one.text(contents), one.place) for one in self.stretches if isinstance(one, Stretch)]

    def joined(self, encoded: Iterator[Ids]) -> Ids:
        """Returns the ids of the unit from those of the texts to encode."""
        if self.stretches is None:
            return next(encoded)
        return np.concatenate([next(encoded) if isinstance(one, Stretch) else one for one in self.stretches])

    def written(self, contents: Sequence[str], first: int = 0, last: int | None = None) -> str:
        """Returns the text of the pieces [first, last) as the template writes it."""
        return "".join([contents[p.slot] if p.text is None else p.text for p in self.pieces[first:last]])


class Step(NamedTuple):
    """One stretch of a conversation: known ids, or one unit to encode.

    Attributes:
        first: Its first unit.
        last: One past its last unit; exactly one unit where there is something to encode.
        ids: (n,) int32, or None where `first` has to be encoded.
        spans: Token ranges of `ids` under the loss.
    """

    first: int
    last: int
    ids: Ids | None
    spans: tuple[Span, ...] = ()


class Answer(NamedTuple):
    """The one step under the loss whose ids are not known, in a layout that ends with it and fixed steps.

    Attributes:
        first: Where it begins in `Layout.parts`.
        last: One past its last part.
        border: How many of its tokens come before the response.
        part: The first of its parts that is encoded.
        head: The ids with which this part must begin for that.
        trained: Tokens under the loss directly after it.
    """

    first: int
    last: int
    border: int
    part: int
    head: list[int]
    trained: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The units of a conversation, grouped into steps.

    Attributes:
        units: All units in order.
        steps: The same units as work for the encoder.
        known: The ids of each step, None where there is something to encode.
        open: (index, unit) of the steps that have something to encode.
        parts: What a conversation is joined from: known ids, or the number of a text that is encoded.
        texts: The stretches of text to encode, in order, with their units; None stands for the whole unit.
        shared_open: How many of `open` hold nothing of the response messages: both sides of a pair have them.
        shared_texts: How many texts these have.
        prompt_messages: How many leading messages are the prompt.
        roles: The role of each message.
        differs: Whether the prompt that the template gives a model is not the text up to the response.
        answer: Where the response begins and ends, for the usual layout with one answer at its end; else None.
    """

    units: tuple[Unit, ...]
    steps: tuple[Step, ...]
    known: tuple[Ids | None, ...]
    open: tuple[tuple[int, Unit], ...]
    parts: tuple[Ids | int, ...]
    texts: tuple[tuple[Unit, Stretch | None], ...]
    shared_open: int
    shared_texts: int
    prompt_messages: int
    roles: tuple[str, ...]
    differs: bool = False
    answer: Answer | None = None


class LaidOut(NamedTuple):
    """A conversation ready to be encoded.

    Attributes:
        layout: Its units.
        contents: The text of each message's slot.
        rewritten: Whether the template changed a content (stripped it, removed a part).
        notes: What else a report counts about it.
        unread: Names of the fields with text that the template does not write.
    """

    layout: Layout
    contents: Sequence[str]
    rewritten: bool
    notes: Note = Note.NONE
    unread: tuple[str, ...] = ()


def build_layout(
    pieces: Iterable[tuple[Piece, int]],
    prompt_messages: int,
    roles: tuple[str, ...],
    encoder: TextEncoder | None,
    *,
    differs: bool = False,
    bos_begins: bool = False,
    strips: Mapping[int, tuple[bool, bool]] = MappingProxyType({}),
) -> Layout:
    """Groups pieces into units and encodes those that are fixed.

    Args:
        pieces: (piece, control id or -1) in rendering order; empty fixed texts are left out.
        prompt_messages: See `Layout`, also for `roles` and `differs`.
        encoder: Encodes the fixed parts; None leaves them to be encoded with the contents, for a layout of one row.
        bos_begins: Whether the text after a leading control token still counts as the beginning of the text, as it
            does for a BOS that the tokenizer itself sets.
        strips: See `ControlTokens`.
    """
    given = [(piece, control) for piece, control in pieces if piece.text != ""]
    loss = under_loss(given, prompt_messages, roles)
    units: list[Unit] = []
    place = Place.START
    controls = [control for _, control in given]
    reached = 0
    for is_control, group in itertools.groupby(zip(given, loss, strict=True), lambda item: item[0][1] >= 0):
        run = list(group)
        before, reached = reached, reached + len(run)
        if not is_control:
            trained = tuple(at for at, (_, under) in enumerate(run) if under)
            stripped = (
                before > 0 and strips.get(controls[before - 1], (False, False))[1],
                reached < len(given) and strips.get(controls[reached], (False, False))[0],
            )
            pieces_of = tuple(piece for (piece, _), _ in run)
            unit = Unit(pieces_of, place, trained=trained, stripped=stripped if any(stripped) else None)
            units.append(_text_unit(unit, roles, encoder))
            continue
        for (piece, control), under in run:
            units.append(Unit((piece,), place, control, (0,) if under else (), 0, np.array([control], np.int32)))
        place = Place.START if bos_begins and len(units) == 1 else Place.AFTER_SPECIAL
    steps = tuple(_steps(units))
    unknown = tuple((at, units[step.first]) for at, step in enumerate(steps) if step.ids is None)
    responses = (
        at for at, (_, unit) in enumerate(unknown) if any(piece.owner >= prompt_messages for piece in unit.pieces)
    )
    shared = next(responses, len(unknown))
    parts = tuple(_parts(steps, units))
    return Layout(
        units=tuple(units),
        steps=steps,
        known=tuple(step.ids for step in steps),
        open=unknown,
        parts=parts,
        texts=tuple([(unit, stretch) for _, unit in unknown for stretch in unit.open]),
        shared_open=shared,
        shared_texts=sum(len(unit.open) for _, unit in unknown[:shared]),
        prompt_messages=prompt_messages,
        roles=roles,
        differs=differs,
        answer=_answer(steps, unknown, parts),
    )


def under_loss(pieces: Sequence[tuple[Piece, int]], prompt_messages: int, roles: tuple[str, ...]) -> list[bool]:
    """Returns for each (piece, control id or -1) whether it is trained on.

    Trained on are the texts of the response's assistant turns, and the end of each of these turns: the first control
    token after its text.
    """
    flags: list[bool] = []
    unended = -1  # the message whose end of turn has not come yet
    for (owner, kind, *_), control in pieces:
        answers = prompt_messages <= owner < len(roles) and roles[owner] == "assistant"
        ends = answers and kind is Kind.TAIL and control >= 0 and owner == unended
        flags.append(ends or (answers and kind is Kind.BODY))
        if flags[-1]:
            unended = -1 if ends else owner
    return flags


def _text_unit(unit: Unit, roles: tuple[str, ...], encoder: TextEncoder | None) -> Unit:
    """Returns a unit of text with its border; an encoder encodes the texts in it that are fixed."""
    pieces, trained = unit.pieces, unit.trained
    border = trained[0] if trained else next((at for at, piece in enumerate(pieces) if piece.kind is Kind.BODY), 0)

    def fixed_ids(last: int) -> Ids | None:
        if encoder is None or any(piece.text is None for piece in pieces[:last]):
            return None
        text = unit.text(["x"] * (1 + max(piece.slot for piece in pieces)), 0, last)  # a slot holds some text
        return encoder.encode([text], unit.place)[0]

    head = fixed_ids(border) if border else None
    owner = pieces[-1].owner
    return dataclasses.replace(
        unit,
        border=border,
        ids=fixed_ids(len(pieces)),
        head=None if head is None else tuple(head.tolist()),
        system=owner < len(roles) and roles[owner] == "system",
        stretches=_stretches(unit, encoder),
    )


def _stretches(unit: Unit, encoder: TextEncoder | None) -> tuple[Stretch | Ids, ...] | None:
    """Returns the stretches of a unit with contents, cut at the added tokens of its fixed texts; None for another."""
    texts, slots = [""], list[int]()
    for piece in unit.pieces:
        if piece.text is None:
            slots.append(piece.slot)
            texts.append("")
        else:
            texts[-1] += piece.text
    if encoder is None or unit.stripped is not None or not slots:
        return None
    found: list[Stretch | Ids] = []
    begun, place = list[str](), unit.place
    for at, text in enumerate(texts):
        first, last = encoder.sure_part(text, unit.place, begins=at == 0, ends=at == len(slots))
        if first < last:
            if at or first:
                found.append(Stretch((*begun, text[:first]), tuple(slots[at - len(begun) : at]), place))
                place = Place.AFTER_SPECIAL
            found.append(encoder.encode([text[first:last]], place)[0])
            text, begun, place = text[last:], [], Place.AFTER_SPECIAL
        begun.append(text)
    if begun != [""]:
        found.append(Stretch(tuple(begun), tuple(slots[len(slots) + 1 - len(begun) :]), place))
    return tuple(found)


def _steps(units: Sequence[Unit]) -> Iterator[Step]:
    """Groups units with known ids; the others, and fixed ones partly under the loss, stay alone."""

    def is_known(unit: Unit) -> bool:
        return unit.ids is not None and len(unit.trained) in (0, len(unit.pieces))

    first = 0
    for fixed, group in itertools.groupby(units, is_known):
        run = list(group)
        if fixed:
            ids = [unit.ids for unit in run if unit.ids is not None]
            ends = list(itertools.accumulate(map(len, ids)))
            spans = [(end - len(own), end) for end, own, unit in zip(ends, ids, run, strict=True) if unit.trained]
            yield Step(first, first + len(run), np.concatenate(ids), merged(spans))
        else:
            yield from (Step(at, at + 1, None) for at in range(first, first + len(run)))
        first += len(run)


def _parts(steps: Sequence[Step], units: Sequence[Unit]) -> Iterator[Ids | int]:
    """Yields the parts of a layout."""
    numbers = itertools.count()
    for step in steps:
        if step.ids is not None:
            yield step.ids
            continue
        for stretch in units[step.first].stretches or (None,):
            yield stretch if isinstance(stretch, np.ndarray) else next(numbers)


def _answer(steps: Sequence[Step], unknown: Sequence[tuple[int, Unit]], parts: Sequence[Ids | int]) -> Answer | None:
    """Returns the last step to encode, if it is the answer and everything under the loss is one run of tokens."""
    if not unknown or any(unit.trained for _, unit in unknown[:-1]):
        return None
    at, unit = unknown[-1]
    fixed = steps[at + 1 :]
    if not unit.trained or any(step.spans for step in steps[:at]):
        return None
    if len(unit.trained) != len(unit.pieces) - unit.border or (unit.border and unit.head is None):
        return None
    spans = [span for step in fixed for span in step.spans]
    if spans and (len(spans) > 1 or not fixed[0].spans or spans[0][0]):
        return None
    last, head = len(parts) - len(fixed), list(unit.head or ())
    first = last - len(unit.stretches or (None,))
    part = next(number for number in range(first, last) if isinstance(parts[number], int))
    known = [id_ for ids in parts[first:part] if not isinstance(ids, int) for id_ in ids.tolist()]
    if known[: len(head)] != head[: len(known)]:
        return None
    return Answer(first, last, len(head), part, head[len(known) :], spans[0][1] if spans else 0)


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Returns the spans in order, those that touch or overlap joined, empty ones left out."""
    joined: list[Span] = []
    for begin, end in spans:
        if begin >= end:
            continue
        if joined and joined[-1][1] >= begin:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return tuple(joined)
