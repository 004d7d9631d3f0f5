"""Records to token ids: many at a time, every distinct piece of text once, the response's border exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.layout import Kind, Layout, Unit
from ms_prefstream.encode.pieces import ControlTokens
from ms_prefstream.encode.template import LaidOut, Template
from ms_prefstream.encode.text import Place, TextEncoder
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Completion, Messages, Pair
from ms_prefstream.tasks.sample import Ids, Span

SYSTEM_CACHE = 4096  # distinct system prompts whose ids are kept


@dataclass(slots=True)
class Encoded:
    """One conversation as ids, not cut yet.

    Attributes:
        laid: The units it is made of.
        arrays: (n_units) int32 arrays, the ids of each unit.
        bodies: Token ranges of the response text in each unit that holds some, by unit index.
        prompt: Tokens of the prompt, the header that makes the model answer included.
        length: Tokens in all.
        spans: What is trained on: the response's tokens and its end of turn.
        differs: Whether the prompt's ids at generation time are not a prefix of the joint encoding.
    """

    laid: LaidOut
    arrays: list[Ids]
    bodies: dict[int, tuple[Span, ...]]
    prompt: int
    length: int
    spans: tuple[Span, ...]
    differs: bool

    def ids(self) -> Ids:
        """(length,) int32, freshly allocated."""
        return np.concatenate(self.arrays)


class _Texts:
    """Texts waiting to be encoded in one call; a ticket is an index into the results."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.places: dict[Place, list[int]] = {}

    def add(self, text: str, place: Place) -> int:
        self.places.setdefault(place, []).append(len(self.texts))
        self.texts.append(text)
        return len(self.texts) - 1

    def encode(self, encoder: TextEncoder) -> list[Ids]:
        if len(self.places) == 1:
            return encoder.encode(self.texts, next(iter(self.places)))
        results: list[Ids] = [np.empty(0, np.int32)] * len(self.texts)
        for place, tickets in self.places.items():
            for ticket, ids in zip(tickets, encoder.encode([self.texts[t] for t in tickets], place), strict=True):
                results[ticket] = ids
        return results


@dataclass(slots=True)
class _Draft:
    """A conversation whose texts wait to be encoded.

    `units` holds ids or tickets. `heads` holds, for units in which the response begins behind text that is not
    fixed, the ticket of that text; `rests` the ticket of what follows it (inference boundary only).
    """

    laid: LaidOut
    units: list[Ids | int]
    heads: dict[int, int]
    rests: dict[int, int]


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

    def encode(self, records: Sequence[Pair | Completion]) -> list[tuple[Encoded, ...] | RowError]:
        """Encode records: (chosen, rejected) for a pair; (prompt alone[, prompt + response]) for a completion.

        A record that cannot be encoded gives its `RowError` in its place.
        """
        texts = _Texts()
        drafts: list[tuple[_Draft, ...] | RowError] = []
        for record in records:
            try:
                drafts.append(self._draft_pair(record, texts) if isinstance(record, Pair) else self._draft_completion(record, texts))  # fmt: skip
            except RowError as error:
                drafts.append(error.at(record.origin))
        results = texts.encode(self._encoder)
        return [d if isinstance(d, RowError) else tuple(self._finish(x, results) for x in d) for d in drafts]

    def _draft_pair(self, pair: Pair, texts: _Texts) -> tuple[_Draft, ...]:
        self._check(pair.prompt, texts=())
        self._check(pair.chosen, ("chosen",))
        self._check(pair.rejected, ("rejected",))
        if pair.chosen == pair.rejected:
            raise RowError(Reason.IDENTICAL, "chosen and rejected are the same text")
        chosen = self._draft(self._template.lay_out(pair.prompt, pair.chosen, pair.tools), texts)
        rejected = self._draft(self._template.lay_out(pair.prompt, pair.rejected, pair.tools), texts, chosen)
        return chosen, rejected

    def _draft_completion(self, record: Completion, texts: _Texts) -> tuple[_Draft, ...]:
        self._check(record.prompt, texts=())
        prompt = self._draft(self._template.lay_out(record.prompt, (), record.tools), texts)
        if not record.response:
            return (prompt,)
        self._check(record.response, ("response",))
        return prompt, self._draft(self._template.lay_out(record.prompt, record.response, record.tools), texts)

    def _check(self, messages: Messages, texts: tuple[str, ...]) -> None:
        """Refuse control tokens where they are not allowed; `texts` names a side that must say something."""
        if self._refused is not None:
            for message in messages:
                found = self._refused.find(message.content)
                if found is not None:
                    raise RowError(
                        Reason.SPECIAL_TOKEN,
                        f"the {message.role} turn holds the control token {found!r}; expected text without it",
                        'Remove it from the row, or pass special_tokens_in_content="escape" to take it as plain text',
                    )
        if texts and not any(
            m.role == "assistant" and (m.content.strip() or (m.extra and m.extra.get("tool_calls"))) for m in messages
        ):
            raise RowError(Reason.EMPTY_RESPONSE, f"the {texts[0]} side is empty; expected a response with text")

    def _draft(self, laid: LaidOut, texts: _Texts, other: _Draft | None = None) -> _Draft:
        layout, contents = laid.layout, laid.contents
        draft = _Draft(laid, [], {}, {})
        begin = 0
        if other is not None and other.laid.layout is layout:
            begin = layout.shared
            draft.units.extend(other.units[:begin])
        for index in range(begin, len(layout.units)):
            unit = layout.units[index]
            draft.units.append(unit.ids if unit.ids is not None else self._ticket(unit, layout, contents, texts))
            if unit.border:
                if unit.head is None:
                    shared = other.heads.get(index) if other is not None and other.laid.layout is layout else None
                    head = texts.add(unit.text(contents, 0, unit.border), unit.place) if shared is None else shared
                    draft.heads[index] = head
                if self._inference:
                    draft.rests[index] = texts.add(unit.text(contents, unit.border), Place.CONTINUATION)
        return draft

    def _ticket(self, unit: Unit, layout: Layout, contents: Sequence[str], texts: _Texts) -> Ids | int:
        text = unit.text(contents)
        if layout.roles[unit.pieces[-1].owner] != "system":
            return texts.add(text, unit.place)
        key = (text, unit.place)
        if key not in self._systems:
            if len(self._systems) >= SYSTEM_CACHE:
                self._systems.clear()
            self._systems[key] = self._encoder.encode([text], unit.place)[0]
        return self._systems[key]

    def _finish(self, draft: _Draft, results: list[Ids]) -> Encoded:
        layout = draft.laid.layout
        arrays = [results[x] if isinstance(x, int) else x for x in draft.units]
        encoded = Encoded(draft.laid, arrays, {}, 0, 0, (), False)
        for index in range(layout.shared, len(arrays)):
            unit = layout.units[index]
            if not unit.bodies:
                continue
            border = 0
            if unit.border:
                head = unit.head if unit.head is not None else results[draft.heads[index]]
                border = self._border(encoded, index, head)
                if index in draft.rests:
                    arrays[index] = np.concatenate([head, results[draft.rests[index]]])
                    border = len(head)
            if len(unit.bodies) == len(unit.pieces) - unit.border:
                encoded.bodies[index] = ((border, len(arrays[index])),)
            else:
                encoded.bodies[index] = self._ranges(encoded, index, border)
        _measure(encoded)
        return encoded

    def _border(self, encoded: Encoded, index: int, head: Ids) -> int:
        """Tokens of a unit that lie wholly before its response: one that straddles belongs to the response."""
        ids = encoded.arrays[index]
        size = len(head)
        if len(ids) >= size and (ids[:size] == head).all():
            return size
        encoded.differs = True
        unit, contents = encoded.laid.layout.units[index], encoded.laid.contents
        starts = self._encoder.starts(unit.text(contents), unit.place)
        return tokens_before(starts, len(unit.text(contents, 0, unit.border)))

    def _ranges(self, encoded: Encoded, index: int, border: int) -> tuple[Span, ...]:
        """Token ranges of the response pieces of a unit that holds other text behind or between them."""
        unit, contents = encoded.laid.layout.units[index], encoded.laid.contents
        starts = self.starts(encoded, index)
        ranges = []
        for piece in unit.bodies:
            begin = border if piece == unit.border else tokens_before(starts, len(unit.text(contents, 0, piece)))
            behind = len(unit.text(contents, 0, piece + 1))
            ranges.append((begin, int(np.flatnonzero(starts >= behind)[0])))
        return tuple(ranges)

    def starts(self, encoded: Encoded, index: int) -> NDArray[np.int64]:
        """Character offsets at which the tokens of one unit begin (see `TextEncoder.starts`)."""
        unit = encoded.laid.layout.units[index]
        if unit.control >= 0:
            return np.array([0, len(unit.pieces[0].text or "")], np.int64)
        contents = encoded.laid.contents
        if not (self._inference and unit.border):
            return self._encoder.starts(unit.text(contents), unit.place)
        head, rest = unit.text(contents, 0, unit.border), unit.text(contents, unit.border)
        behind = self._encoder.starts(rest, Place.CONTINUATION)
        return np.concatenate(
            [self._encoder.starts(head, unit.place)[:-1], np.where(behind < 0, behind, behind + len(head))]
        )


def tokens_before(starts: NDArray[np.int64], border: int) -> int:
    """How many tokens end at or before a character offset, from where tokens begin (-1: inside a character)."""
    behind = int(np.flatnonzero(starts >= border)[0])
    if starts[behind] == border:
        return behind
    # The token that crosses the border is the last one that begins before it; pieces of a split character that
    # follow it begin at -1 and may hold the border themselves.
    first = int(np.flatnonzero((starts >= 0) & (starts < border))[-1])
    return first if first + 1 == behind else first + 1


def _measure(encoded: Encoded) -> None:
    """Fill in prompt, length and spans."""
    layout = encoded.laid.layout
    arrays = encoded.arrays
    position = 0
    for ids in arrays[: layout.shared]:
        position += len(ids)
    spans: list[Span] = []
    waiting: int | None = None  # the message whose end of turn has not come yet
    prompt = -1
    for index in range(layout.shared, len(arrays)):
        unit, size = layout.units[index], len(arrays[index])
        ranges: tuple[Span, ...] = ()
        if unit.bodies:
            ranges = encoded.bodies[index]
            waiting = unit.pieces[unit.bodies[-1]].owner
        elif unit.control >= 0 and unit.pieces[0].kind is Kind.TAIL and waiting == unit.pieces[0].owner:
            ranges, waiting = ((0, 1),), None
        for begin, end in ranges:
            if begin < end:
                prompt = position + begin if prompt < 0 else prompt
                first = spans.pop()[0] if spans and spans[-1][1] == position + begin else position + begin
                spans.append((first, position + end))
        position += size
    encoded.prompt = position if prompt < 0 else prompt
    encoded.length = position
    encoded.spans = tuple(spans)
