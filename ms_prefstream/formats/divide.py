"""The point where the two sides of a pair divide: always between messages, never inside one.

Below, u and v are turns of the user, a to d of the assistant, x and y of a tool.

===================  ==================  ==================  ==================================
chosen / rejected    prompt, strict      prompt, common      why
===================  ==================  ==================  ==================================
u a v c / u a v d    u a v               u a v               one history, shared
u a x c / u b y d    u                   u                   no turn of the user follows
u a v c / u b v d    history_differs     u                   v answered a on one side, b on the other
u a / v b            history_differs     history_differs     nothing in common
===================  ==================  ==================  ==================================
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats.fields import short
from ms_prefstream.formats.record import Message, Messages

History: TypeAlias = Literal["strict", "common"]

INPUT_ROLES = frozenset({"system", "user"})
_COMMON = (
    'Pass format=mps.formats.messages(history="common"), or the preset that reads these rows with that option, to take '
    "the longest common run of turns as the prompt; or drop the row"
)


def check_history(history: str) -> None:
    """Checks that a policy exists."""
    if history not in get_args(History):
        raise OptionError(f"history is {history!r}; allowed: 'strict' (the default) or 'common'.")


def divide(
    prompt: Messages,
    chosen: Messages,
    rejected: Messages,
    history: History = "strict",
    sides: tuple[str, str] = ("chosen", "rejected"),
) -> tuple[Messages, Messages, Messages]:
    """Splits a pair at the first message that differs, with at least one assistant turn on each side.

    Args:
        prompt: The turns that both sides share by the row; empty when the sides are whole conversations.
        chosen: A continuation of the prompt, or the whole conversation with the prompt repeated in it.
        rejected: Likewise.
        history: ``"strict"`` refuses sides with a user or system turn after the point where they divide;
            ``"common"`` takes the longest common run of messages as the prompt whatever follows.
        sides: The names of the two sides in errors.

    Returns:
        (prompt, chosen, rejected).

    Raises:
        RowError: history_differs, missing_field (no prompt at all), empty_response (a side without turns),
            unknown_role (a side with turns of others only).
    """
    if prompt and len(chosen) == 1 == len(rejected) and chosen[0].role == "assistant" == rejected[0].role:
        return prompt, chosen, rejected
    last_assistant(chosen, sides[0])
    last_assistant(rejected, sides[1])
    left, floor = complete(prompt, chosen, sides[0])
    right, right_floor = complete(prompt, rejected, sides[1])
    limit = min(last_assistant(left, sides[0], floor), last_assistant(right, sides[1], right_floor))
    shared = next((turn for turn in range(limit) if left[turn] != right[turn]), limit)
    if shared < max(floor, right_floor) or shared == 0:
        raise _nothing_shared(left, right, shared, sides)
    if history == "strict" and any(message.role in INPUT_ROLES for message in (*left[shared:], *right[shared:])):
        raise RowError(
            Reason.HISTORY_DIFFERS,
            f"the two sides divide at turn {shared + 1} ({sides[0]!r}: {_turn(left, shared)}; {sides[1]!r}: "
            f"{_turn(right, shared)}), but user or system turns follow; expected equal histories",
            _COMMON,
        )
    return left[:shared], left[shared:], right[shared:]


def complete(prompt: Messages, side: Messages, name: str) -> tuple[Messages, int]:
    """Returns the whole conversation of one side, and how many of its turns belong to the prompt field.

    A side that begins with an assistant or tool turn continues the prompt. One that begins with a user or system
    turn is a whole conversation that must contain the prompt exactly: at the front (a system message may precede it),
    or, if the prompt is one user turn, as the last user turn.

    Raises:
        RowError: history_differs when the prompt is not found.
    """
    count = len(prompt)
    if not prompt:
        return side, 0
    if not side or side[0].role not in INPUT_ROLES:
        return prompt + side, count
    before = 1 if side[0].role == "system" and prompt[0].role != "system" else 0
    if side[before : before + count] == prompt:
        return side, before + count
    if count == 1 and prompt[0].role == "user":
        last = max((i for i, message in enumerate(side) if message.role == "user"), default=-1)
        if last >= 0 and side[last] == prompt[0]:
            return side, last + 1
    if prompt[-1].role in ("assistant", "tool"):
        return prompt + side, count
    raise RowError(
        Reason.HISTORY_DIFFERS,
        f"field {name!r} is a whole conversation ({_turn(side, before)} at turn {before + 1}), but does not repeat "
        f"the prompt given beside it ({_turn(prompt, 0)})",
        "Remove the prompt field if the conversations are right, or keep only the last turns in the sides",
    )


def split_response(conversation: Messages) -> tuple[Messages, Messages]:
    """Splits a conversation into prompt and response, which follows the last user or system turn.

    A conversation that does not end with the assistant is a prompt only.
    """
    if not conversation or conversation[-1].role != "assistant":
        return conversation, ()
    start = len(conversation)
    while start and conversation[start - 1].role not in INPUT_ROLES:
        start -= 1
    return conversation[:start], conversation[start:]


def last_assistant(side: Messages, name: str, floor: int = 0) -> int:
    """Returns the place of the last turn of the assistant, at or after `floor`.

    Raises:
        RowError: empty_response, or unknown_role if there are only turns of others.
    """
    for index in range(len(side) - 1, floor - 1, -1):
        if side[index].role == "assistant":
            return index
    after = side[floor:]
    roles = ", ".join(message.role for message in after) or "none"
    raise RowError(
        Reason.UNKNOWN_ROLE if any(message.content.strip() for message in after) else Reason.EMPTY_RESPONSE,
        f"field {name!r} has no turn of the assistant after the prompt; found roles: {roles}; expected assistant",
    )


def _turn(side: Messages, index: int) -> str:
    if index >= len(side):
        return "no turn"
    message: Message = side[index]
    return f"{message.role} {short(message.content)}"


def _nothing_shared(left: Messages, right: Messages, shared: int, sides: tuple[str, str]) -> RowError:
    if left[0].role in INPUT_ROLES or right[0].role in INPUT_ROLES:
        return RowError(
            Reason.HISTORY_DIFFERS,
            f"the two sides share no prompt: turn {shared + 1} is {_turn(left, shared)} in {sides[0]!r} and "
            f"{_turn(right, shared)} in {sides[1]!r}",
            "Both sides of a pair must answer the same prompt: correct or drop the row",
        )
    return RowError(
        Reason.MISSING_FIELD,
        f"there is no prompt: no prompt field is filled, and {sides[0]!r} and {sides[1]!r} begin with the assistant",
        "Add the field 'prompt', or write whole conversations on both sides",
    )
