"""Where a prompt may be cut: what must stay, its turns, and the characters at which its text can be divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.tasks.sample import Ids, Span

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
