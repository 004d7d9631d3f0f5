"""Records to token ids: many at a time, every distinct piece of text once, the response's border exact."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import Place, TextEncoder
from ms_prefstream.encode.backends.unicode import check_text
from ms_prefstream.encode.layout import Unit, merged
from ms_prefstream.encode.pieces import ControlTokens
from ms_prefstream.encode.template import LaidOut, Template
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Completion, Messages, Pair
from ms_prefstream.sample import Ids, Span


class Texts:
    """A batch of texts; a ticket is an index into what `encode` returns."""

    def __init__(self) -> None:
        self._size = 0
        self._by_place: dict[Place, dict[str, int]] = {}  # text -> ticket
        self._place: Place | None = None  # the place of the last text, and what waits there
        self._known: dict[str, int] = {}

    def add(self, text: str, place: Place) -> int:
        """The ticket of a text at a place."""
        if place is not self._place:
            self._place = place
            self._known = self._by_place.setdefault(place, {})
        ticket = self._known.setdefault(text, self._size)
        if ticket == self._size:
            self._size += 1
        return ticket

    def encode(self, encoder: TextEncoder) -> list[Ids]:
        """The ids of every ticket."""
        if len(self._by_place) == 1:
            return encoder.encode(list(self._known), self._place or Place.START)
        results: list[Ids] = [np.empty(0, np.int32)] * self._size
        for place, tickets in self._by_place.items():
            for ticket, ids in zip(tickets.values(), encoder.encode(list(tickets), place), strict=True):
                results[ticket] = ids
        return results


def tokens_before(starts: NDArray[np.int64], border: int, at_least: int = 0) -> int:
    """How many tokens end at or before a character offset.

    Args:
        starts: (n + 1,) where tokens begin, -1 inside a character.
        border: The offset.
        at_least: A number of tokens that are known to lie before it. It decides where the border falls into
            characters that are split over several tokens, about which the offsets say nothing.
    """
    behind = tokens_until(starts, border)
    if starts[behind] == border:
        return behind
    first = int(np.flatnonzero((starts >= 0) & (starts < border))[-1])  # the last token known to begin before it
    return max(first, min(at_least, behind - 1))


def tokens_until(starts: NDArray[np.int64], border: int) -> int:
    """How many tokens begin before a character offset."""
    return int(np.flatnonzero(starts >= border)[0])


_NONE = np.empty(0, np.int32)
_SPACES = " \n\t\u3000"  # what a normaliser may trim
SYSTEM_CACHE = 4096  # distinct system prompts whose ids are kept


@dataclass(slots=True)
class Encoded:
    """One conversation as ids, not cut yet.

    Attributes:
        laid: The units it is made of.
        arrays: int32 ids of each step of the layout.
        prompt: Tokens of the prompt, the header that makes the model answer included.
        length: Tokens in all.
        spans: What is trained on: the response's tokens and its end of turn.
        differs: Whether the prompt's ids at generation time are not a prefix of the joint encoding.
        ids: (length,) int32, part of one array for all conversations that were encoded together.
    """

    laid: LaidOut
    arrays: list[Ids]
    prompt: int
    length: int
    spans: tuple[Span, ...]
    differs: bool
    ids: Ids


class _Draft:
    """A conversation whose texts wait to be encoded.

    `steps` holds ids or tickets. `heads` holds, for steps in which the response begins behind text that is not
    fixed, the ticket of that text; `rests` the ticket of what follows it (inference boundary only).
    """

    __slots__ = ("heads", "laid", "rests", "steps")

    def __init__(self, laid: LaidOut, steps: Sequence[Ids | int | None]) -> None:
        self.laid = laid
        self.steps = list(steps)
        self.heads: dict[int, int] | None = None
        self.rests: dict[int, int] | None = None


class ConversationEncoder:
    """Encodes the conversations of records.

    Args:
        encoder: The tokenizer's text encoder.
        template: Lays conversations out as units.
        boundary: ``joint`` encodes the text as the model will see it and finds the response by offsets;
            ``inference`` keeps the prompt's ids as they are at generation time and goes on from there.
        refused: Control tokens that no content may hold (all of them, or a reward token); None refuses nothing.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        template: Template,
        boundary: str = "joint",
        refused: ControlTokens | None = None,
    ) -> None:
        self._encoder = encoder
        self._template = template
        self._inference = boundary == "inference"
        self._refused = refused
        self._systems: dict[tuple[str, Place], Ids] = {}
        self.keeps_ends = keeps_ends(encoder)
        self._starts = functools.lru_cache(maxsize=8)(encoder.starts)  # both sides of a pair ask for the prompt's
        self.decode = encoder.decode

    def encode(self, records: Sequence[Pair | Completion]) -> list[tuple[Encoded, ...] | RowError]:
        """Encode records: (chosen, rejected) for a pair; (prompt alone[, prompt + response]) for a completion.

        A record that cannot be encoded gives its `RowError` in its place.
        """
        texts = Texts()
        drafts: list[tuple[_Draft, ...] | RowError] = []
        for record in records:
            try:
                drafts.append(self._draft_record(record, texts))
            except RowError as error:
                drafts.append(error.at(record.origin))
        try:
            results = texts.encode(self._encoder)
            found = [d if isinstance(d, RowError) else tuple([self._finish(x, results) for x in d]) for d in drafts]
            _join([side for sides in found if not isinstance(sides, RowError) for side in sides])
            return found
        except RowError as error:  # a text that no tokenizer takes: find the record it belongs to
            if len(records) == 1:
                return [_blame(records[0], error).at(records[0].origin)]
            return [self.encode([record])[0] for record in records]

    def _draft_record(self, record: Pair | Completion, texts: Texts) -> tuple[_Draft, ...]:
        lay_out, prompt = self._template.lay_out, record.prompt
        if self._refused is not None:
            self._refuse(record)
        if isinstance(record, Pair):
            _check_text(record.chosen, "chosen")
            _check_text(record.rejected, "rejected")
            if record.chosen == record.rejected:
                raise RowError(Reason.IDENTICAL, "chosen and rejected are the same text")
            chosen = self._draft(lay_out(prompt, record.chosen, record.tools), texts)
            return chosen, self._draft(lay_out(prompt, record.rejected, record.tools), texts, chosen)
        asked = self._draft(lay_out(prompt, (), record.tools), texts)
        if not record.response:
            return (asked,)
        _check_text(record.response, "response")
        return asked, self._draft(lay_out(prompt, record.response, record.tools), texts)

    def _refuse(self, record: Pair | Completion) -> None:
        """Refuse control tokens where they are not allowed."""
        assert self._refused is not None
        sides = (record.chosen, record.rejected) if isinstance(record, Pair) else (record.response,)
        found = self._refused.find_in(record.tools)
        where = "the tool schemas hold"
        for message in (*record.prompt, *(message for side in sides for message in side)):
            if found is not None:
                break
            found = self._refused.find_in((message.content, message.extra))
            where = f"the {message.role} turn holds"
        if found is not None:
            raise RowError(
                Reason.SPECIAL_TOKEN,
                f"{where} the control token {found!r}; expected text without it",
                "Remove it from the row; a control token that is not the reward token can also be taken as plain text "
                'with special_tokens_in_content="escape"',
            )

    def _draft(self, laid: LaidOut, texts: Texts, other: _Draft | None = None) -> _Draft:
        layout, contents = laid.layout, laid.contents
        begin = 0
        if other is not None and other.laid.layout is layout:
            begin = layout.shared
            draft = _Draft(laid, other.steps)
        else:
            draft = _Draft(laid, layout.known)
        for index, unit in layout.open:
            if index < begin:
                continue
            draft.steps[index] = self._ticket(unit, contents, texts)
            if unit.trained and unit.border:
                if unit.head is None:
                    draft.heads = draft.heads or {}
                    draft.heads[index] = texts.add(unit.text(contents, 0, unit.border), unit.place)
                if self._inference:
                    draft.rests = draft.rests or {}
                    draft.rests[index] = texts.add(unit.text(contents, unit.border), Place.CONTINUATION)
        return draft

    def _ticket(self, unit: Unit, contents: Sequence[str], texts: Texts) -> Ids | int:
        text = unit.text(contents)
        if not unit.system:
            return texts.add(text, unit.place)
        key = (text, unit.place)
        if key not in self._systems:
            if len(self._systems) >= SYSTEM_CACHE:
                self._systems.clear()
            self._systems[key] = self._encoder.encode([text], unit.place)[0]
        return self._systems[key]

    def _finish(self, draft: _Draft, results: list[Ids]) -> Encoded:
        layout = draft.laid.layout
        arrays: list[Ids] = [results[it] if it.__class__ is int else it for it in draft.steps]  # type: ignore[misc]
        if layout.answer is not None and draft.rests is None and self.keeps_ends:
            at, head, trained, behind = layout.answer
            answer = arrays[at]
            if answer[: len(head)].tolist() == head:
                first = sum(map(len, arrays[:at]))
                end = first + len(answer)
                begin, last = first + len(head), end + trained
                return Encoded(
                    draft.laid,
                    arrays,
                    begin,
                    end + behind,
                    ((begin, last),) if begin < last else (),
                    layout.differs,
                    answer,
                )
        return self._finish_any(draft, arrays, results)

    def _finish_any(self, draft: _Draft, arrays: list[Ids], results: list[Ids]) -> Encoded:
        layout = draft.laid.layout
        encoded = Encoded(draft.laid, arrays, 0, 0, (), layout.differs, _NONE)
        spans: list[Span] = []
        position = 0
        for index, step in enumerate(layout.steps):
            trained = step.spans
            if step.ids is None and layout.units[step.first].trained:
                trained = self._trained(encoded, draft, index, results)
            for begin, end in trained:
                spans.append((position + begin, position + end))
            position += len(encoded.arrays[index])
        encoded.length = position
        encoded.spans = merged(spans)
        encoded.prompt = encoded.spans[0][0] if spans else position
        return encoded

    def _trained(self, encoded: Encoded, draft: _Draft, index: int, results: list[Ids]) -> tuple[Span, ...]:
        """Token ranges under the loss in a step that was encoded: a token that straddles belongs to the response."""
        layout, contents = encoded.laid.layout, encoded.laid.contents
        unit = layout.units[layout.steps[index].first]
        border = 0
        if unit.border:
            head = unit.head
            if head is None:
                assert draft.heads is not None
                head = tuple(results[draft.heads[index]].tolist())
            border = len(head)
            ids = tuple(encoded.arrays[index][:border].tolist())
            if ids != head or not self.keeps_ends:
                alike = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(ids, head))))  # noqa: B905
                starts = self.starts(unit, contents, joint=True)
                border = tokens_before(starts, len(unit.text(contents, 0, unit.border)), alike)
                encoded.differs = encoded.differs or ids != head or border != len(head)
            if draft.rests is not None and index in draft.rests:
                border = len(head)
                encoded.arrays[index] = np.concatenate([np.array(head, np.int32), results[draft.rests[index]]])
        size = len(encoded.arrays[index])
        if len(unit.trained) == len(unit.pieces) - unit.border:
            return ((border, size),)
        starts = self.starts(unit, contents)
        ranges = []
        for piece in unit.trained:
            first = border
            if piece != unit.border:
                first = tokens_before(starts, len(unit.text(contents, 0, piece)))
            ranges.append((first, tokens_until(starts, len(unit.text(contents, 0, piece + 1)))))
        return tuple(ranges)

    def ids(self, text: str, place: Place) -> Ids:
        """Ids of a text by itself."""
        return self._encoder.encode([text], place)[0]

    def starts(self, unit: Unit, contents: Sequence[str], joint: bool = False) -> NDArray[np.int64]:
        """Character offsets at which the tokens of a unit of text begin, (n + 1,) (see `TextEncoder.starts`).

        Args:
            unit: The unit.
            contents: What fills its slots.
            joint: Whether to take the unit as one text even where the boundary is that of inference.
        """
        if joint or not (self._inference and unit.trained and unit.border):
            return self._starts(unit.text(contents), unit.place)
        head, rest = unit.text(contents, 0, unit.border), unit.text(contents, unit.border)
        behind = self._starts(rest, Place.CONTINUATION)
        return np.concatenate([self._starts(head, unit.place)[:-1], np.where(behind < 0, behind, behind + len(head))])


def _blame(record: Pair | Completion, error: RowError) -> RowError:
    """The error of the message whose text no tokenizer takes, counted in that text; `error` if none is to blame."""
    sides = {"chosen": record.chosen, "rejected": record.rejected} if isinstance(record, Pair) else {}
    if isinstance(record, Completion):
        sides = {"response": record.response}
    for side, messages in {"prompt": record.prompt, **sides}.items():
        for message in messages:
            try:
                check_text(message.content)
            except RowError as found:
                where = (
                    f"the {message.role} turn of the {side} side" if side != "prompt" else f"the {message.role} turn"
                )
                return RowError(found.reason, f"{where}: {found.problem}", found.remedy)
    return error


def keeps_ends(encoder: TextEncoder) -> bool:
    """Whether white space at the end of a text has tokens.

    SentencePiece trims it unless it was trained not to, and so do some normalisers. A header that ends in white space
    then has fewer tokens by itself than in front of a content, and says nothing about where it ends there.
    """
    bare, *others = encoder.encode(["x", *(f"x{space}" for space in _SPACES)])
    return all(len(ids) > len(bare) or ids.tolist() != bare.tolist() for ids in others)


def _join(sides: Sequence[Encoded]) -> None:
    """Give every conversation its ids, as a part of one array: one copy for all rather than one for each."""
    if not sides:
        return
    joined = np.concatenate([ids for side in sides for ids in side.arrays])
    begin = 0
    for side in sides:
        end = begin + side.length
        side.ids = joined[begin:end]
        begin = end


def _check_text(messages: Messages, side: str) -> None:
    """Refuse a side on which the assistant says nothing, or no turn is the assistant's."""
    for message in messages:
        if message.role == "assistant":
            content = message.content
            if (content and not content.isspace()) or (message.extra and message.extra.get("tool_calls")):
                return
    roles = [message.role for message in messages]
    if "assistant" not in roles and any(message.content.strip() for message in messages):
        raise RowError(
            Reason.UNKNOWN_ROLE,
            f"the {side} side has turns of {' and '.join(roles)} only; expected one of the assistant",
        )
    raise RowError(Reason.EMPTY_RESPONSE, f"the {side} side is empty; expected a response with text")
