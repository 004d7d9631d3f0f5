"""How a rendered conversation falls into units: control tokens, and the runs of text between them.

A control token in the template is a hard border: no token ever spans it, so every unit is encoded on its own and
units that repeat are encoded once. Inside a unit, pieces say whose text it is::

    <|im_start|>assistant\\nHello<|im_end|>\\n

    unit 0  control <|im_start|>    owner 1  HEAD
    unit 1  "assistant\\n" + slot    owner 1  HEAD, BODY
    unit 2  control <|im_end|>      owner 1  TAIL         the end of turn
    unit 3  "\\n"                    owner 1  TAIL

Neighbouring units whose ids are known in advance form one step, so that a row costs a step for each of its contents
and one for each stretch of template between them.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ms_prefstream.encode.backends.base import Place, TextEncoder
from ms_prefstream.encode.tracked_text import Edits
from ms_prefstream.sample import Ids, Span


class Kind(enum.IntEnum):
    """What a piece of a rendered conversation is."""

    PREAMBLE = 0  # BOS, the template's own system block, the row's system message: what truncation never touches
    HEAD = 1  # template text before a message's content
    BODY = 2  # the content; for a response, all that the model writes before its end of turn
    TAIL = 3  # template text behind that: the end of turn and what follows it


class Piece(NamedTuple):
    """A run of text with one owner (the index of its message).

    `text` is None where the content of the owner is to be filled in, and the text itself elsewhere.
    """

    owner: int
    kind: Kind
    text: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One control token, or one run of text between control tokens.

    Attributes:
        pieces: What the unit is made of; exactly one for a control token.
        place: Where the text stands (tokenizers with a dummy prefix care).
        control: The id of the control token, -1 for text.
        trained: Indices of the pieces under the loss: response text, or the end of turn.
        border: Index of the piece before which a token count is wanted: the first one under the loss, else the first
            content; 0 if nothing stands before it.
        ids: (n,) int32 if every piece is fixed, so that the unit is encoded once per layout.
        head: The ids of the pieces before `border`, if these are fixed.
        system: Whether it holds a system message, so that rows are likely to repeat it.
    """

    pieces: tuple[Piece, ...]
    place: Place = Place.AFTER_SPECIAL
    control: int = -1
    trained: tuple[int, ...] = ()
    border: int = 0
    ids: Ids | None = None
    head: tuple[int, ...] | None = None
    system: bool = False

    def text(self, contents: Sequence[str], first: int = 0, last: int | None = None) -> str:
        """The text of the pieces [first, last) with the contents filled in."""
        if len(self.pieces) == 2 and last is None and not first:  # the usual header + content
            head, body = self.pieces
            if head.text is not None and body.text is None:
                return head.text + contents[body.owner]
        return "".join([contents[p.owner] if p.text is None else p.text for p in self.pieces[first:last]])


class Step(NamedTuple):
    """What is done for one stretch of a conversation: put ids that are known, or encode one unit.

    Attributes:
        first: Its first unit.
        last: Behind its last unit; exactly one unit where there is something to encode.
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
        step: Its index.
        head: The ids that its unit begins with before the response does.
        trained: Tokens under the loss right behind it.
        behind: All tokens behind it.
    """

    step: int
    head: list[int]
    trained: int
    behind: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The units of a conversation and where its response part begins.

    Attributes:
        units: All units in order.
        steps: The same, ready to be carried out.
        known: The ids of each step, None where there is something to encode.
        open: (index, unit) of the steps that have something to encode.
        shared: How many leading steps hold nothing of the response messages: both sides of a pair have them.
        prompt_messages: How many leading messages are the prompt.
        roles: The role of each message.
        edits: (message, strips) of contents that the template strips.
        needed: (message, strips) of contents that must not be empty for this layout to hold.
        differs: Whether the template asks a model with something else than the text up to the response.
        answer: Where the response begins and ends, for the usual layout with one answer at its end; else None.
    """

    units: tuple[Unit, ...]
    steps: tuple[Step, ...]
    known: tuple[Ids | None, ...]
    open: tuple[tuple[int, Unit], ...]
    shared: int
    prompt_messages: int
    roles: tuple[str, ...]
    edits: tuple[tuple[int, Edits], ...] = ()
    needed: tuple[tuple[int, Edits], ...] = ()
    differs: bool = False
    answer: Answer | None = None


def build_layout(
    pieces: Iterable[tuple[Piece, int]],
    prompt_messages: int,
    roles: tuple[str, ...],
    encoder: TextEncoder | None,
    *,
    edits: tuple[tuple[int, Edits], ...] = (),
    needed: tuple[tuple[int, Edits], ...] = (),
    differs: bool = False,
    bos_begins: bool = False,
) -> Layout:
    """Group pieces into units and encode what is fixed.

    Args:
        pieces: (piece, control id or -1) in rendering order; empty fixed texts are left out here.
        prompt_messages: How many leading messages are the prompt.
        roles: The role of each message.
        encoder: Encodes the fixed parts; None leaves them to be encoded with the contents, for a layout of one row.
        edits: See `Layout`.
        needed: See `Layout`.
        differs: See `Layout`.
        bos_begins: Whether the text behind a leading control token still counts as the beginning of the text, as it
            does for a BOS that the tokenizer itself sets.
    """
    units: list[Unit] = []
    response = _Response(prompt_messages, roles)
    place = Place.START
    for control, run in itertools.groupby(
        (pair for pair in pieces if pair[0].text != ""), lambda pair: pair[1] if pair[1] >= 0 else -1
    ):
        if control < 0:
            units.append(_text_unit(tuple(piece for piece, _ in run), place, response, encoder))
            continue
        for piece, id_ in run:
            trained = response.trained((piece,), control=True)
            units.append(Unit((piece,), place, id_, trained, 0, np.array([id_], np.int32)))
        place = Place.START if bos_begins and len(units) == 1 else Place.AFTER_SPECIAL
    steps = tuple(_steps(units, encoder))
    shared = next(
        (at for at, step in enumerate(steps) if _answers(units[step.first], prompt_messages, step)), len(steps)
    )
    known = tuple(step.ids for step in steps)
    unknown = tuple((at, units[step.first]) for at, step in enumerate(steps) if step.ids is None)
    answer = _answer(units, steps)
    return Layout(tuple(units), steps, known, unknown, shared, prompt_messages, roles, edits, needed, differs, answer)


def _answers(unit: Unit, prompt_messages: int, step: Step) -> bool:
    """Whether a step has to encode something of the response messages."""
    return step.ids is None and any(piece.owner >= prompt_messages for piece in unit.pieces)


def _answer(units: Sequence[Unit], steps: Sequence[Step]) -> Answer | None:
    """The last step that has to be encoded, if it is the answer and all that is under the loss is one run of tokens."""
    open_ = [at for at, step in enumerate(steps) if step.ids is None]
    under = [at for at in open_ if units[steps[at].first].trained]
    if not under or under != open_[-1:] or any(step.spans for step in steps[: under[0]]):
        return None
    unit, fixed = units[steps[under[0]].first], steps[under[0] + 1 :]
    if len(unit.trained) != len(unit.pieces) - unit.border or (unit.border and unit.head is None):
        return None
    spans = [span for step in fixed for span in step.spans]
    if spans and (len(spans) > 1 or not fixed[0].spans or spans[0][0]):
        return None
    behind = sum(len(step.ids) for step in fixed if step.ids is not None)
    return Answer(under[0], list(unit.head or ()), spans[0][1] if spans else 0, behind)


class _Response:
    """Tells what is under the loss: the text of assistant turns of the response, and the end of each turn."""

    def __init__(self, prompt_messages: int, roles: tuple[str, ...]) -> None:
        self._first, self._roles = prompt_messages, roles
        self._open = -1  # the message whose end of turn has not come yet

    def role(self, owner: int) -> str:
        """The role of a message; "" for the header that makes a model answer."""
        return self._roles[owner] if owner < len(self._roles) else ""

    def trained(self, pieces: tuple[Piece, ...], control: bool) -> tuple[int, ...]:
        found = []
        for index, (owner, kind, _) in enumerate(pieces):
            if owner < self._first or self.role(owner) != "assistant":
                continue
            if kind is Kind.BODY:
                self._open = owner
                found.append(index)
            elif kind is Kind.TAIL and control and self._open == owner:
                self._open = -1
                found.append(index)
        return tuple(found)


def _text_unit(pieces: tuple[Piece, ...], place: Place, response: _Response, encoder: TextEncoder | None) -> Unit:
    trained = response.trained(pieces, control=False)
    border = trained[0] if trained else next((i for i, piece in enumerate(pieces) if piece.kind is Kind.BODY), 0)
    ids = head = None
    if encoder is not None and all(piece.text is not None for piece in pieces):
        ids = encoder.encode(["".join([piece.text or "" for piece in pieces])], place)[0]
    if encoder is not None and border and all(piece.text is not None for piece in pieces[:border]):
        head = tuple(encoder.encode(["".join([piece.text or "" for piece in pieces[:border]])], place)[0].tolist())
    return Unit(pieces, place, -1, trained, border, ids, head, response.role(pieces[-1].owner) == "system")


def _steps(units: Sequence[Unit], encoder: TextEncoder | None) -> Iterable[Step]:
    """Units with known ids together, the others one by one; a fixed unit partly under the loss stands alone."""

    def known(unit: Unit) -> bool:
        return unit.ids is not None and len(unit.trained) in (0, len(unit.pieces))

    first = 0
    for fixed, group in itertools.groupby(units, known):
        run = list(group)
        if fixed:
            ids = [unit.ids for unit in run if unit.ids is not None]
            ends = list(itertools.accumulate(map(len, ids)))
            spans = [(end - len(own), end) for end, own, unit in zip(ends, ids, run, strict=True) if unit.trained]
            yield Step(first, first + len(run), np.concatenate(ids), merged(spans))
        else:
            yield from (Step(at, at + 1, None) for at in range(first, first + len(run)))
        first += len(run)


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The spans in order, those that touch or overlap joined, empty ones left out."""
    joined: list[Span] = []
    for begin, end in spans:
        if begin >= end:
            continue
        if joined and joined[-1][1] >= begin:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return tuple(joined)
