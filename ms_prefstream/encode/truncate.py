"""Truncation: cuts encoded conversations to their budgets, at places that a model can do without.

``prompt_left`` (default)
    Whole old turns go first (an exchange at a time), then text of the oldest turn left, down to BOS, system message
    and generation header. If that is not enough the response is cut on the right; it then has no end of turn.
``response_right``
    The prompt stays (up to its own limit, if it has one), the response is cut on the right.
``drop``
    A row that does not fit is dropped.

Both sides of a pair share one cut of the prompt; no cut divides a character.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Record
from ms_prefstream.sample import Block, Ids, Span
from ms_prefstream.sample import Sequence as TokenSequence

TRUNCATIONS = ("prompt_left", "response_right", "drop")


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long a sequence may be.

    Attributes:
        max_length: Tokens of prompt and response together.
        max_prompt_length: Tokens of the prompt, generation header included; None for no limit of its own.
        truncation: ``prompt_left``, ``response_right`` or ``drop``.
        reserve: Tokens kept free after the response (1 for a reward token).
    """

    max_length: int
    max_prompt_length: int | None = None
    truncation: str = "prompt_left"
    reserve: int = 0

    @property
    def room(self) -> int:
        """Tokens that prompt and response may have."""
        return self.max_length - self.reserve

    @property
    def prompt_room(self) -> int:
        """Tokens that the prompt may have."""
        return self.room if self.max_prompt_length is None else min(self.room, self.max_prompt_length)


@dataclass(slots=True)
class Flat:
    """One conversation as flat ids, and its cut map on demand.

    Attributes:
        ids: (n,) int32.
        prompt: How many of them are the prompt.
        spans: Token ranges under the loss; empty for a prompt without response.
        cuts: Returns the cut map.
    """

    ids: Ids
    prompt: int
    spans: tuple[Span, ...]
    cuts: Callable[[], CutMap]


@dataclass(slots=True)
class Uncut:
    """Conversations of n rows as flat ids, S a row, that are still to be cut; the tasks work on `block`.

    Attributes:
        block: Their ids, and the token ranges under the loss.
        prompts: (n, S) int64, how many tokens of each are the prompt; -1 where a row has no such conversation.
        cuts: Returns the cut map of a conversation, given row and side.
        records: The record of each row.
    """

    block: Block
    prompts: NDArray[np.int64]
    cuts: Callable[[int, int], CutMap]
    records: Sequence[Record] = ()

    def sides_of(self, row: int) -> list[int]:
        """Returns which conversations a row has."""
        return [side for side in range(self.block.sides) if self.prompts[row, side] >= 0]

    def flat(self, row: int, side: int) -> Flat:
        """Returns one conversation."""
        block = self.block
        begin = int(block.begins[row, side])
        ids = block.ids[begin : begin + int(block.lengths[row, side])]
        prompt, spans = int(self.prompts[row, side]), block.spans_of(row, side)
        return Flat(ids, prompt, spans, lambda: self.cuts(row, side))

    def fit(self, budget: Budget, *sides: int) -> None:
        """Cuts these sides of every row that does not fit, like the function `fit`, or refuses the row."""
        lengths, prompts = self.block.lengths[:, sides], self.prompts[:, sides]
        is_long = (lengths > budget.room) | (prompts > budget.prompt_room)
        cut: list[tuple[int, int, TokenSequence]] = []
        for row in np.flatnonzero(is_long.any(axis=1) & self.block.good).tolist():
            try:
                sequences = fit([self.flat(row, side) for side in sides], budget)
            except RowError as error:
                self.block.refuse(row, error)
                continue
            cut += [(row, *both) for both in zip(sides, sequences, strict=True)]
        if cut:
            self.block.replace(cut)


def fit(sides: Sequence[Flat], budget: Budget) -> tuple[TokenSequence, ...]:
    """Cuts the sides of one row, with one common cut of the prompt.

    Raises:
        RowError: ``too_long`` if what must stay does not fit, ``no_response_tokens`` if nothing to train on is left.
    """
    room, prompt_room = budget.room, budget.prompt_room
    for side in sides:
        if len(side.ids) > room or side.prompt > prompt_room:
            break
    else:
        return tuple([TokenSequence(side.ids, side.spans) for side in sides])
    if budget.truncation == "drop":
        tokens, part, most = max(len(side.ids) for side in sides), "row", room
        if tokens <= room:
            tokens, part, most = max(side.prompt for side in sides), "prompt", prompt_room
        raise RowError(Reason.TOO_LONG, f"the {part} has {tokens} tokens; expected at most {most}")
    maps = [side.cuts() for side in sides]
    if budget.truncation == "prompt_left":
        rooms = [min(prompt_room, room - (len(side.ids) - side.prompt)) for side in sides]
    else:
        rooms = [side.prompt if budget.max_prompt_length is None else prompt_room for side in sides]
    fitting = (cuts for cuts in _cuts(maps, rooms) if all(size(cut) <= most for cut, most in zip(cuts, rooms)))  # noqa: B905
    cuts = next(fitting, None) or [m.floor() for m in maps]
    return tuple(_apply(side, m, cut, budget) for side, m, cut in zip(sides, maps, cuts, strict=True))


Points: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]
"""(token positions, character offsets) at which a text can be divided."""


class Turn:
    """Token positions of one prompt message.

    A token that straddles the border between the template's text and the content is the only thing between `content`
    and `body`, and between `tail` and `body_end`.

    Attributes:
        begin: Its first token, header included.
        content: The first token that holds a character of its content.
        body: The first token that begins in its content.
        body_end: One past the last token that begins in its content.
        tail: The first token that holds a character after its content.
        end: One past its last token.
        opens: Whether an exchange begins with it (a user message).
        pinned: Whether the template wrote the system message into its header, which must stay then.
        first: (unit, piece) with which it begins.
        units: The units that hold its content.
        header: The pieces [first, last) of the unit with its content that are its header.
    """

    def __init__(self, begin: int, opens: bool, first: Span = (0, 0)) -> None:
        self.begin = self.content = self.body = self.body_end = self.tail = self.end = begin
        self.opens = opens
        self.pinned = False
        self.first = first
        self.units: list[int] = []
        self.header: Span = (0, 0)

    @property
    def divisible(self) -> bool:
        """True if its text can be cut."""
        return len(set(self.units)) == 1 and self.body < self.body_end


Cut: TypeAlias = tuple[Ids, ...]
"""The parts of a prompt that stay."""


def size(cut: Cut) -> int:
    """Returns the number of tokens of a cut prompt."""
    return sum(map(len, cut))


class CutMap:
    """The places at which one encoded conversation may be cut.

    The methods here serve a row that came as ids, which can be divided at any token without a header.

    Args:
        ids: Its ids.
        keep: Leading tokens that always stay: BOS, the template's or the row's system message.
        turns: The other prompt messages in order.
        prompt: The first token of the response.
        headed: Whether the template has a generation header of its own.
    """

    def __init__(self, ids: Ids, keep: int, turns: list[Turn], prompt: int, headed: bool) -> None:
        self.ids, self.keep, self.turns, self.prompt, self.headed = ids, keep, turns, prompt, headed

    def frame(self, turn: Turn) -> Ids:
        """Returns the header of a turn, to stand before content that was cut."""
        return self.ids[:0]

    def points(self, turn: Turn) -> Points:
        """Returns where the content of a turn can be divided."""
        positions = np.arange(turn.body, turn.body_end + 1)
        return positions, positions

    def clean(self, position: int) -> int:
        """Returns the last position up to this one at which the response can be cut without dividing a character."""
        return position

    def places(self, content: str) -> NDArray[np.int64]:
        """Returns the token that holds each character of the content of the first response turn, (n,) int64.

        It is -1 for a character that the template leaves out.
        """
        raise NotImplementedError("a row that came as ids has no text")

    def floor(self) -> Cut:
        """Returns the prompt without any text: BOS, system message and generation header.

        Where the template has no generation header of its own ([INST] style), the frame of the last turn replaces it.
        """
        if not self.turns:
            return (self.ids[: self.prompt],)
        last = self.turns[-1]
        frames = [self.frame(turn) for turn in self.turns if turn.pinned]
        if not frames and not self.headed:
            frames = [self.frame(last)]
        rest = last.end if self.headed and not last.pinned else max(last.tail, last.body)
        return (self.ids[: self.keep], *frames, self.ids[rest : self.prompt])

    @property
    def least(self) -> int:
        """Tokens of the floor."""
        return size(self.floor())

    def before(self, index: int) -> Cut:
        """Returns the part before a turn that stays: BOS, system message, the headers that it was written into."""
        return (self.ids[: self.keep], *(self.frame(turn) for turn in self.turns[:index] if turn.pinned))

    def front(self, index: int) -> Cut:
        """Returns the part before the text of a turn that stays; the turn's own header if none is pinned."""
        before = self.before(index)
        return before if len(before) > 1 else (*before, self.frame(self.turns[index]))

    def from_turn(self, index: int) -> Cut:
        """Returns the cut that drops all turns before this one; after a pinned header its own header goes too."""
        before = self.before(index)
        turn = self.turns[index]
        return (*before, self.ids[turn.begin if len(before) == 1 else turn.content : self.prompt])


def token_cut_map(ids: Ids, prompt: int) -> CutMap:
    """Returns the cut map of a row that came as ids: one turn, divisible anywhere."""
    turn = Turn(0, opens=True)
    turn.body_end = turn.tail = turn.end = prompt
    turn.units.append(0)
    return CutMap(ids, 0, [turn] if prompt else [], prompt, False)


def _cuts(maps: Sequence[CutMap], rooms: Sequence[int]) -> Iterator[list[Cut]]:
    """Yields common cuts of all sides, the one that keeps most first."""
    turns = maps[0].turns
    if any([turn.opens for turn in m.turns] != [turn.opens for turn in turns] for m in maps):
        # The template wrote the prompt differently for the two sides: they have no common place for a cut.
        yield [(m.ids[: m.prompt],) for m in maps]
        return
    opening = [index for index, turn in enumerate(turns) if index == 0 or turn.opens]
    for index in opening:
        yield [m.from_turn(index) for m in maps]
    for index in range(opening[-1] if opening else 0, len(turns)):
        divided = _divided(maps, index, rooms)
        if divided is not None:
            yield divided
        if index + 1 < len(turns):
            yield [m.from_turn(index + 1) for m in maps]


def _divided(maps: Sequence[CutMap], index: int, rooms: Sequence[int]) -> list[Cut] | None:
    """Shortens the text of one turn on its left, at a character where a token begins on every side."""
    turns = [m.turns[index] for m in maps]
    fronts = [m.front(index) for m in maps]
    for m, turn, front, room in zip(maps, turns, fronts, rooms, strict=True):
        if not turn.divisible or size(front) + 1 + m.prompt - turn.body_end > room:
            return None  # no token of it can stay
    points = [m.points(turn) for m, turn in zip(maps, turns, strict=True)]
    common = points[0][1]
    for _, characters in points[1:]:
        common = np.intersect1d(common, characters, assume_unique=True)
    allowed = np.ones(len(common), bool)
    places = []
    for m, turn, front, room, (positions, characters) in zip(maps, turns, fronts, rooms, points, strict=True):
        at = positions[np.searchsorted(characters, common)]
        allowed &= size(front) + (m.prompt - at) <= room
        allowed &= at < turn.body_end  # an empty turn is dropped, not kept
        places.append(at)
    if not allowed.any():
        return None
    first = int(np.flatnonzero(allowed)[0])
    return [(*front, m.ids[at[first] : m.prompt]) for m, front, at in zip(maps, fronts, places, strict=True)]


def _apply(side: Flat, cut_map: CutMap, cut: Cut, budget: Budget) -> TokenSequence:
    """Cuts the prompt of one side, and its response too where that is not enough."""
    prompt = size(cut)
    if prompt > budget.prompt_room or (side.spans and prompt >= budget.room):
        if budget.truncation == "response_right" and (budget.max_prompt_length is None or prompt <= budget.prompt_room):
            raise RowError(
                Reason.NO_RESPONSE_TOKENS, f"the prompt has {prompt} tokens; expected fewer than {budget.room}"
            )
        raise RowError(
            Reason.TOO_LONG,
            f"the system message and the template alone need {prompt} tokens; expected at most {budget.prompt_room} "
            "with at least one for the response",
        )
    end = len(side.ids)
    if prompt + end - side.prompt > budget.room:
        end = cut_map.clean(side.prompt + budget.room - prompt)
    ids = np.concatenate([*cut, side.ids[side.prompt : end]])
    shift = prompt - side.prompt
    spans = tuple((a + shift, min(b, end) + shift) for a, b in side.spans if a < end)
    if side.spans and not spans:
        raise RowError(Reason.NO_RESPONSE_TOKENS, f"no token of the response fits into {budget.room} tokens")
    # A row that loses only template text after the end of turn counts as whole.
    lost = prompt < side.prompt or bool(side.spans and side.spans[-1][1] > end)
    return TokenSequence(ids, spans, lost, prompt < side.prompt and prompt <= cut_map.least)
