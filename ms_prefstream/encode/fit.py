"""Truncation: fit encoded conversations into their budgets without losing what a model needs.

``prompt_left`` (default)
    Whole old turns go first (an exchange at a time), then text of the oldest turn left, down to BOS, system message
    and generation header. If that is not enough the response is cut on the right; it then has no end of turn.
``response_right``
    The prompt stays (up to its own limit), the response is cut on the right.
``drop``
    A row that does not fit is dropped.

Both sides of a pair share one cut of the prompt; no cut divides a character.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ms_prefstream.encode.cutmap import CutMap, Turn
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.tasks.sample import Ids, Sequence as TokenSequence, Span

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
    """One conversation as flat ids with a way to learn where it may be cut."""

    ids: Ids
    prompt: int
    spans: tuple[Span, ...]
    cuts: Callable[[], CutMap]


def fits(prompt: int, length: int, budget: Budget) -> bool:
    """Whether nothing needs to be cut."""
    return length <= budget.room and prompt <= budget.prompt_room


def fit(sides: Sequence[Flat], budget: Budget) -> tuple[TokenSequence, ...]:
    """Cut the sides of one row, with one common cut of the prompt.

    Raises:
        RowError: ``too_long`` if what must stay does not fit, ``no_response_tokens`` if nothing to train on is left.
    """
    if all(fits(side.prompt, len(side.ids), budget) for side in sides):
        return tuple(TokenSequence(side.ids, side.spans) for side in sides)
    if budget.truncation == "drop":
        longest = max(len(side.ids) for side in sides)
        raise RowError(Reason.TOO_LONG, f"the row needs {longest} tokens; expected at most {budget.room}")
    maps = [side.cuts() for side in sides]
    rooms = [budget.prompt_room] * len(sides)
    if budget.truncation == "prompt_left":
        rooms = [min(room, budget.room - (len(s.ids) - s.prompt)) for room, s in zip(rooms, sides, strict=True)]
    cuts = _common_cut(maps, rooms)
    return tuple(_apply(side, cut_map, cut, budget) for side, cut_map, cut in zip(sides, maps, cuts, strict=True))


Cut = tuple[tuple[int, int], ...]
"""Token ranges of the prompt that stay."""


def _size(cut: Cut) -> int:
    return sum(end - begin for begin, end in cut)


def _common_cut(maps: Sequence[CutMap], rooms: Sequence[int]) -> list[Cut]:
    """The smallest cut, the same for all sides, with which every prompt fits its room; the bare minimum if none does."""

    def fitting(cuts: list[Cut]) -> bool:
        return all(_size(cut) <= room for cut, room in zip(cuts, rooms, strict=True))

    count = len(maps[0].turns)
    opening = [index for index in range(count) if index == 0 or maps[0].turns[index].opens]
    for first in opening:
        cuts = [((0, m.keep), (m.turns[first].begin, m.prompt)) for m in maps]
        if fitting(cuts):
            return cuts
    for index in range(opening[-1] if opening else count, count):
        texts = _cut_text(maps, [m.turns[index] for m in maps], rooms)
        if texts is not None:
            return texts
        cuts = [((0, m.keep), (m.turns[index].end, m.prompt)) for m in maps]
        if index + 1 < count and fitting(cuts):
            return cuts
    return [((0, m.keep), (m.header, m.prompt)) for m in maps]


def _cut_text(maps: Sequence[CutMap], turns: Sequence[Turn], rooms: Sequence[int]) -> list[Cut] | None:
    """Shorten the text of one turn on its left, at a character where a token begins on every side."""
    if any(turn.body == turn.body_end for turn in turns):
        return None
    divided = [m.points(turn) for m, turn in zip(maps, turns, strict=True)]
    common = divided[0][1]
    for _, characters in divided[1:]:
        common = np.intersect1d(common, characters)
    allowed = np.ones(len(common), bool)
    where = []
    for m, turn, room, (positions, characters) in zip(maps, turns, rooms, divided, strict=True):
        at = positions[np.searchsorted(characters, common)]
        allowed &= m.keep + (turn.body - turn.begin) + (m.prompt - at) <= room
        allowed &= at < turn.body_end  # an empty turn is dropped, not kept
        where.append(at)
    if not allowed.any():
        return None
    first = int(np.flatnonzero(allowed)[0])
    return [
        ((0, m.keep), (turn.begin, turn.body), (int(at[first]), m.prompt))
        for m, turn, at in zip(maps, turns, where, strict=True)
    ]


def _apply(side: Flat, cut_map: CutMap, cut: Cut, budget: Budget) -> TokenSequence:
    """One side with its prompt cut, and its response too where that is not enough."""
    prompt = _size(cut)
    if prompt > budget.prompt_room or (side.spans and prompt >= budget.room):
        if budget.truncation == "response_right" and prompt <= budget.prompt_room:
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
    ids = np.concatenate([*(side.ids[a:b] for a, b in cut), side.ids[side.prompt : end]])
    shift = prompt - side.prompt
    spans = tuple((a + shift, min(b, end) + shift) for a, b in side.spans if a < end)
    if side.spans and not any(a < b for a, b in spans):
        raise RowError(Reason.NO_RESPONSE_TOKENS, f"no token of the response fits into {budget.room} tokens")
    lost = prompt < side.prompt or bool(side.spans and side.spans[-1][1] > end)
    return TokenSequence(ids, spans, lost)
