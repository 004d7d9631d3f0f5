"""Truncation: fit encoded conversations into their budgets without losing what a model needs.

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
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.sample import Ids, Span
from ms_prefstream.sample import Sequence as TokenSequence

Points: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]
"""(token positions, character offsets) at which a text can be divided."""


class Turn(NamedTuple):
    """Token positions of one prompt message.

    A token that straddles the border between the template's text and the content is the only thing between `content`
    and `body`, and between `tail` and `body_end`.

    Attributes:
        begin: Its first token, header included.
        content: The first token that holds a character of its content.
        body: The first token that begins in its content.
        body_end: Behind the last token that begins in its content.
        tail: The first token that holds a character behind its content.
        end: Behind its last token.
        opens: Whether an exchange begins with it (a user message).
        divisible: Whether its text can be cut.
        pinned: Whether the template wrote the system message into its header, which must stay then.
        unit: The unit in which its content begins.
        header: Which pieces of that unit are its header.
    """

    begin: int
    content: int
    body: int
    body_end: int
    tail: int
    end: int
    opens: bool
    divisible: bool
    pinned: bool = False
    unit: int = -1
    header: Span = (0, 0)


@dataclass(slots=True)
class CutMap:
    """What truncation needs to know about one encoded conversation.

    Attributes:
        ids: Its ids.
        keep: Leading tokens that always stay: BOS, the template's or the row's system message.
        turns: The other prompt messages in order.
        prompt: Where the response begins.
        headed: Whether the template has a header of its own that makes the model answer.
        frame: The header of a turn, to stand before content that was cut.
        points: For a turn: where its content can be divided.
        clean: Largest position <= the given one at which the response can be cut without splitting a character.
    """

    ids: Ids
    keep: int
    turns: list[Turn]
    prompt: int
    headed: bool
    frame: Callable[[Turn], Ids]
    points: Callable[[Turn], Points]
    clean: Callable[[int], int]

    def floor(self) -> Cut:
        """What is left of the prompt when all text is gone: BOS, system message and generation header.

        Where the template has no header of its own for answers ([INST] style), the frame of the last turn serves as
        one.
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


Cut: TypeAlias = tuple[Ids, ...]
"""The parts of a prompt that stay."""


def size(cut: Cut) -> int:
    """Tokens of a cut prompt."""
    return sum(map(len, cut))


def token_cut_map(ids: Ids, prompt: int) -> CutMap:
    """The cut map of a row that came as ids: one turn, to be divided anywhere."""
    positions = np.arange(prompt + 1)
    turns = [Turn(0, 0, 0, prompt, prompt, prompt, opens=True, divisible=True)] if prompt else []
    return CutMap(
        ids, 0, turns, prompt, False, lambda _: ids[:0], lambda _: (positions, positions), lambda position: position
    )


TRUNCATIONS = ("prompt_left", "response_right", "drop")


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long a sequence may be.

    Attributes:
        max_length: Tokens of prompt and response together.
        max_prompt_length: Tokens of the prompt, generation header included; None for no limit of its own.
        truncation: ``prompt_left``, ``response_right`` or ``drop``.
        reserve: Tokens kept free behind the response (1 for a reward token).
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
    """One conversation as flat ids with a way to learn where it may be cut.

    Attributes:
        ids: (n,) int32.
        prompt: How many of them are the prompt.
        spans: Token ranges under the loss; empty for a prompt without response.
        cuts: Gives the cut map.
    """

    ids: Ids
    prompt: int
    spans: tuple[Span, ...]
    cuts: Callable[[], CutMap]


def fit(sides: Sequence[Flat], budget: Budget) -> tuple[TokenSequence, ...]:
    """Cut the sides of one row, with one common cut of the prompt.

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
        raise _too_long(sides, budget)
    maps = [side.cuts() for side in sides]
    if budget.truncation == "prompt_left":
        rooms = [min(prompt_room, room - (len(side.ids) - side.prompt)) for side in sides]
    else:
        rooms = [side.prompt if budget.max_prompt_length is None else prompt_room for side in sides]
    cuts = _common_cut(maps, rooms)
    return tuple(_apply(side, m, cut, budget) for side, m, cut in zip(sides, maps, cuts, strict=True))


def _too_long(sides: Sequence[Flat], budget: Budget) -> RowError:
    longest, prompt = max(len(side.ids) for side in sides), max(side.prompt for side in sides)
    if longest > budget.room:
        return RowError(Reason.TOO_LONG, f"the row has {longest} tokens; expected at most {budget.room}")
    return RowError(Reason.TOO_LONG, f"the prompt has {prompt} tokens; expected at most {budget.prompt_room}")


def _common_cut(maps: Sequence[CutMap], rooms: Sequence[int]) -> list[Cut]:
    """The smallest cut, the same for all sides, with which every prompt fits its room; the floor if none does."""
    for cuts in _cuts(maps, rooms):
        if all(size(cut) <= room for cut, room in zip(cuts, rooms, strict=True)):
            return cuts
    return [m.floor() for m in maps]


def _cuts(maps: Sequence[CutMap], rooms: Sequence[int]) -> Iterator[list[Cut]]:
    """Candidates, the one that keeps most first."""
    turns = maps[0].turns
    if any([turn.opens for turn in m.turns] != [turn.opens for turn in turns] for m in maps):
        # The template wrote the prompt differently for the two sides: there is no common place to cut it at.
        yield [(m.ids[: m.prompt],) for m in maps]
        return
    opening = [index for index, turn in enumerate(turns) if index == 0 or turn.opens]
    for index in opening:
        yield [_from_turn(m, index) for m in maps]
    for index in range(opening[-1] if opening else 0, len(turns)):
        divided = _divided(maps, index, rooms)
        if divided is not None:
            yield divided
        if index + 1 < len(turns):
            yield [_from_turn(m, index + 1) for m in maps]


def _before(m: CutMap, index: int) -> Cut:
    """What stays of everything before a turn: BOS, system message, the headers that it was written into."""
    return (m.ids[: m.keep], *(m.frame(turn) for turn in m.turns[:index] if turn.pinned))


def _front(m: CutMap, index: int) -> Cut:
    """What stays in front of the text of a turn: `_before`, and the turn's own header if none is pinned."""
    before = _before(m, index)
    return before if len(before) > 1 else (*before, m.frame(m.turns[index]))


def _from_turn(m: CutMap, index: int) -> Cut:
    """The cut that drops all turns before this one; behind a pinned header the text goes on without one of its own."""
    before = _before(m, index)
    turn = m.turns[index]
    return (*before, m.ids[turn.begin if len(before) == 1 else turn.content : m.prompt])


def _divided(maps: Sequence[CutMap], index: int, rooms: Sequence[int]) -> list[Cut] | None:
    """Shorten the text of one turn on its left, at a character where a token begins on every side."""
    turns = [m.turns[index] for m in maps]
    fronts = [_front(m, index) for m in maps]
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
    """One side with its prompt cut, and its response too where that is not enough."""
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
    # Template text behind the end of turn is nobody's: a row that loses only that counts as whole.
    lost = prompt < side.prompt or bool(side.spans and side.spans[-1][1] > end)
    return TokenSequence(ids, spans, lost, prompt < side.prompt and prompt <= cut_map.least)
