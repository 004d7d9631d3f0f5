"""The canonical records: one class per kind of row, independent of the field names of data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias


class Message(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``, after the role names of the data set were mapped.
        content: The text of the turn, unchanged.
        extra: Further keys that chat templates read (``tool_calls``, ``name``, ``reasoning_content``), or None.
    """

    role: str
    content: str
    extra: Mapping[str, Any] | None = None


Messages: TypeAlias = tuple[Message, ...]


@dataclass(slots=True)  # not frozen: that would make a record three times as expensive
class Pair:
    """A prompt with a preferred and a less preferred continuation.

    Attributes:
        prompt: The turns both sides share.
        chosen: The preferred continuation after the point where the two sides divide, at least one turn.
        rejected: The other continuation, likewise.
        margin: How much better the chosen side is, in the data set's unit; None when the row does not say.
        tools: Tool schemas for the chat template, or None.
        origin: Where the row comes from, e.g. ``"train.jsonl:17"``.
        unread: Names of the row's fields that nothing read.
        variables: Template variables of this row, by name; None if it states none.
        carried: Values of the fields that the option `carry` names, in its order.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    margin: float | None = None
    tools: tuple[Any, ...] | None = None
    origin: str = ""
    unread: tuple[str, ...] = ()
    variables: Mapping[str, Any] | None = None
    carried: tuple[Any, ...] = ()


@dataclass(slots=True)
class Completion:
    """A prompt with at most one response (RLHF). An empty `response` means prompt only.

    Attributes:
        desirable: Whether the response is a good one, where the row says so (KTO); None if it does not. Fields that
            should say it and hold something else, or contradict each other, stand here by name.
        margin: That of the pair whose side it is; None for other rows.
    """

    prompt: Messages
    response: Messages = ()
    tools: tuple[Any, ...] | None = None
    origin: str = ""
    unread: tuple[str, ...] = ()
    variables: Mapping[str, Any] | None = None
    desirable: bool | Mapping[str, Any] | None = None
    carried: tuple[Any, ...] = ()
    margin: float | None = None


@dataclass(slots=True)
class Stepwise(Completion):
    """A prompt with a response in steps, each with a label. The task that trains on steps joins the response of them.

    Attributes:
        steps: The steps, as the row has them.
        labels: One for each step: True, False, or a number.
    """

    steps: tuple[str, ...] = ()
    labels: tuple[bool | float, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranked:
    """A prompt with several responses, each with a score (higher is better). A named policy turns it into pairs."""

    prompt: Messages
    responses: tuple[tuple[Messages, float], ...]
    tools: tuple[Any, ...] | None = None
    origin: str = ""
    unread: tuple[str, ...] = ()
    carried: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A pair that is already tokenized: ids of the shared prompt and of each continuation (end of turn included)."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    margin: float | None = None
    origin: str = ""
    unread: tuple[str, ...] = ()
    carried: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenCompletion:
    """A prompt and a response that are already tokenized; an empty response means prompt only.

    Attributes:
        desirable: As in `Completion`, like `margin`.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...] = field(default=())
    origin: str = ""
    unread: tuple[str, ...] = ()
    carried: tuple[Any, ...] = ()
    desirable: bool | Mapping[str, Any] | None = None
    margin: float | None = None


Record: TypeAlias = Pair | Completion | Stepwise | Ranked | TokenPair | TokenCompletion
