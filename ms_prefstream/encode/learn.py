"""Learns what a chat template writes around the contents, once per sequence of roles.

Most templates are fixed text around the contents. Rendering placeholders that notice being looked at (`Watched`)
shows that text and proves that it does not depend on the contents, so rows need no rendering at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ms_prefstream.encode.jinja import TemplateRefusal
from ms_prefstream.encode.layout import Kind
from ms_prefstream.encode.pieces import SLOT, ControlTokens, slot
from ms_prefstream.encode.watch import Watched

Render = Callable[..., str]


class Learned(NamedTuple):
    """Template text around each message: parts of (owner, kind, text or None for the slot), in order.

    Attributes:
        parts: What the template writes; a None text is the owner's content.
        looks: Whether the template looked into a content, so that the parts hold only for the placeholders.
        trims: Messages whose content was stripped of white space.
    """

    parts: tuple[tuple[int, Kind, str | None], ...]
    looks: bool
    trims: frozenset[int]

    def head(self, owner: int) -> str:
        """The template text before the content of a message."""
        return "".join(text or "" for who, kind, text in self.parts if who == owner and kind is Kind.HEAD)


def learn(render: Render, roles: tuple[str, ...], generation: bool, control: ControlTokens) -> Learned | None:
    """Render placeholders for a sequence of roles; None if a content is left out, repeated or moved.

    Args:
        render: The template.
        roles: The role of each message.
        generation: Whether to end with the header that makes the model answer.
        control: The control tokens, which mark ends of turns where prefixes of the conversation cannot be rendered.
    """
    events: list[list[str]] = [[] for _ in roles]
    messages = [{"role": role, "content": Watched(slot(i), events[i])} for i, role in enumerate(roles)]
    try:
        text = render(messages, generation=generation)
    except TemplateRefusal:
        return None
    fields = SLOT.split(text)
    if [int(field) for field in fields[1::2]] != list(range(len(roles))):
        return None
    fixed = fields[0::2]
    parts: list[tuple[int, Kind, str | None]] = [(0, Kind.HEAD, fixed[0])]
    looks = any(event == "look" for seen in events for event in seen)  # of the full rendering, not of the prefixes
    for index in range(len(roles)):
        parts.append((index, Kind.BODY, None))
        after = fixed[index + 1]
        last = index == len(roles) - 1
        tail = after if last and not generation else _tail(render, messages[: index + 1], after, control)
        parts.append((index, Kind.TAIL, tail))
        if tail != after or not last:
            parts.append((index + 1, Kind.HEAD, after[len(tail) :]))
    trims = frozenset(index for index, seen in enumerate(events) if "strip" in seen)
    return Learned(tuple(part for part in parts if part[2] != ""), looks, trims)


def _tail(render: Render, messages: list[dict[str, object]], after: str, control: ControlTokens) -> str:
    """How much of the text behind a content still belongs to its message."""
    try:
        tail = SLOT.split(render(messages))[-1]
        if after.startswith(tail):
            return tail
    except TemplateRefusal:
        pass
    # No rendering of the shorter conversation: up to the first control token and the line end behind it.
    found = control.find(after)
    if found is None:
        return ""
    end = after.index(found) + len(found)
    return after[: end + 1] if after[end : end + 1] == "\n" else after[:end]
