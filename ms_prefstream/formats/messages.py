"""Messages from raw rows: turns of a conversation, dialogues with role markers, and the fields system, history, tools.

Turns come in two spellings: role / content and from / value.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.fields import missing, nearest, short, two_strings, wrong_type
from ms_prefstream.formats.record import Message, Messages
from ms_prefstream.formats.spelling import is_missing, parsed_json
from ms_prefstream.formats.unread import MEDIA, check_media, holds

ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "observation": "tool",
    "ipython": "tool",
    "function": "tool",
    "tool_response": "tool",
}
"""The role names of data sets, in any case -> the four canonical roles."""

CALL_ROLES = ("function_call", "tool_call")
"""Further roles: a turn of the assistant whose text is the JSON of its tool calls."""

_CALL_KEYS = frozenset({"tool_calls", "function_call"})
_TEXT_KEYS = frozenset({"role", "content", "from", "value"})
_BLOCK_KEYS = frozenset({"type", "text"})

_MARKER = re.compile(r"\n\n(Human|Assistant):")  # a literal prefix, which re finds as fast as str.split does


def turns(value: Any, field: str, lone: str, keep_empty_system: bool = False) -> Messages:
    """Returns the messages in a field: a list of turns, a single turn, or plain text.

    ``[{"role": "user", "content": "Hi"}]`` -> ``(Message("user", "Hi"),)``; ``"Hi"`` likewise when `lone` is user

    `lone` is the role of plain text. A system message without text is absent unless `keep_empty_system` is set.

    Raises:
        RowError: bad_type, missing_field or unknown_role, naming field and turn.
    """
    if isinstance(value, (list, tuple, np.ndarray)):
        messages = tuple([message(raw, field, index) for index, raw in enumerate(value, 1)])
    elif isinstance(value, str):
        return (Message(lone, str(value)),)
    elif isinstance(value, Mapping):
        messages = (message(value, field),)
    else:
        raise wrong_type(field, value, "a string, a turn {role, content}, or a list of turns")
    before = False  # whether the turn before has further keys
    for role, content, extra in messages:
        if (extra is not None and before) or (role == "system" and not content):
            return _tidied(messages, keep_empty_system)
        before = extra is not None
    return messages


def _tidied(messages: Messages, keep_empty_system: bool) -> Messages:
    """Returns messages without empty system messages, and each run of tool calls as one turn with all of them."""
    found: list[Message] = []
    for one in messages:
        if one.role == "system" and not (one.content or one.extra or keep_empty_system):
            continue
        calls, before = _calls(one), _calls(found[-1]) if found else []
        if calls and before and not one.content and one.extra is not None and len(one.extra) == 1:
            last = found.pop()
            one = Message(last.role, last.content, {**(last.extra or {}), "tool_calls": [*before, *calls]})
        found.append(one)
    return tuple(found)


def _calls(message: Message) -> list[Any]:
    """Returns the tool calls of a turn of the assistant."""
    calls = (message.extra or {}).get("tool_calls") if message.role == "assistant" else None
    return list(calls) if isinstance(calls, (list, tuple, np.ndarray)) else []


def message(raw: Any, field: str, index: int = 0) -> Message:
    """Returns one raw turn as a message; `index` counts from 1, and 0 means a turn that is not in a list."""
    if type(raw) is not dict and not isinstance(raw, Mapping):
        raise wrong_type(_place(field, index), raw, "a turn such as {'role': 'user', 'content': '...'}")
    name = raw.get("role")
    content = raw.get("content")
    if name is None:
        name, content = raw.get("from"), raw.get("value")
    if len(raw) == 2 and type(content) is str:
        role = ROLES.get(name) if type(name) is str else None
        if role is not None:
            return Message(role, content)
    if len(raw) == 3 and type(content) is str and type(name) is str and (role := ROLES.get(name)) is not None:
        calls = raw.get("tool_calls")
        if type(calls) is list and all(map(_is_plain_call, calls)):
            return Message(role, content, {"tool_calls": calls})
    return _careful_message(raw, name, content, _place(field, index))


def _careful_message(raw: Mapping[str, Any], name: Any, content: Any, place: str) -> Message:
    """Converts turns with further keys, text blocks, tool calls of every form, or faults."""
    if name is None:
        raise missing(raw, "role", place)
    if raw.get("role") is not None and raw.get("from") is not None:
        raise RowError(Reason.AMBIGUOUS_FORMAT, f"{place} has both 'role' and 'from'", "Keep one of the two")
    if not isinstance(name, str):
        raise wrong_type(f"the role of {place}", name, "a string")
    extra = {key: value for key, value in raw.items() if key not in _TEXT_KEYS and not is_missing(value)}
    if isinstance(content, (list, tuple, np.ndarray)):
        extra = {**_beside_texts(content), **extra}
    for key in MEDIA & extra.keys():
        check_media(key, extra[key], place)
    for key in _CALL_KEYS & extra.keys():
        extra[key] = parsed_json(extra[key])
    lower = name.lower()
    if lower in CALL_ROLES:
        return Message("assistant", "", {**extra, "tool_calls": tool_calls(content, place)})
    role = ROLES.get(lower)
    if role is None:
        guess = nearest(lower, [*ROLES, *CALL_ROLES])
        raise RowError(
            Reason.UNKNOWN_ROLE,
            f"{place} has the role {short(name)}; known roles: {', '.join([*ROLES, *CALL_ROLES])}",
            (f"Did you mean {guess!r}? " if guess else "")
            + "Rename the role with a function row -> row given as format=",
        )
    if extra.get("tool_calls"):
        check_tool_calls(extra["tool_calls"], place)
    return Message(role, _text(raw, content, place, bool(extra.get("tool_calls"))), extra or None)


def _text(raw: Mapping[str, Any], content: Any, place: str, calls: bool) -> str:
    if isinstance(content, str):
        return str(content)
    if isinstance(content, (list, tuple, np.ndarray)):
        return "".join([_block(block, number, place) for number, block in enumerate(content, 1)])
    if content is None and calls:
        return ""
    key = "value" if raw.get("role") is None else "content"
    if content is None and key not in raw:
        raise missing(raw, key, place)
    raise wrong_type(f"the {key} of {place}", content, "a string or a list of text blocks (null only with tool_calls)")


def _beside_texts(blocks: Any) -> dict[str, Any]:
    """Returns what text blocks hold beside their texts, by key."""
    objects = [block for block in blocks if isinstance(block, Mapping)]
    return {
        k: v for block in objects for k, v in block.items() if k not in _BLOCK_KEYS and not is_missing(v) and holds(v)
    }


def _block(block: Any, number: int, place: str) -> str:
    if isinstance(block, Mapping) and block.get("type") == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    raise wrong_type(
        f"block {number} of {place}", block, "{'type': 'text', 'text': '...'}", "Only text is supported: drop such rows"
    )


def _place(field: str, index: int) -> str:
    name = field if " " in field else f"field {field!r}"  # callers may pass a phrase: "item 2 of field 'responses'"
    return f"turn {index} of {name}" if index else f"the turn in {name}"


def marked(text: str) -> bool:
    r"""Returns whether a text is a dialogue: it begins with ``\n\nHuman:`` or ``\n\nAssistant:``."""
    return text.startswith(("\n\nHuman:", "\n\nAssistant:"))


def dialogue(text: str, field: str) -> Messages:
    r"""Returns the turns of a dialogue with role markers.

    ``"\n\nHuman: Hi \n\nAssistant: Hello\n"`` -> ``(Message("user", "Hi "), Message("assistant", "Hello\n"))``

    A marker is two newlines, the name and a colon; at the very beginning the newlines may be missing. One space after
    the marker belongs to it. Everything else, including white space at the end of a turn, is the turn's text.

    Raises:
        RowError: bad_type when the text does not begin with a marker.
    """
    bare = text.startswith(("Human:", "Assistant:"))
    # pieces: the text before the first marker, then name, turn, name, turn, ...
    pieces = _MARKER.split(f"\n\n{text}" if bare else text)
    if len(pieces) < 3 or pieces[0]:
        raise wrong_type(
            field,
            text,
            r"a dialogue that begins with '\n\nHuman:' or '\n\nAssistant:'",
            "If these are plain texts, use format='strings', with the prompt in a field 'prompt'"
            if parsed_json(text) is text
            else 'It is JSON text: lead into it, as fields={"chosen": "chosen.messages", "rejected": '
            '"rejected.messages"}, or parse it in a function given as format=',
        )
    named = zip(pieces[1::2], pieces[2::2], strict=True)
    return tuple([Message(ROLES[name.lower()], turn.removeprefix(" ")) for name, turn in named])


def lead_with_system(row: Mapping[str, Any], prompt: Messages, keep_empty_system: bool = False) -> Messages:
    """Puts the optional field `system` (a string beside the conversation) before the prompt."""
    system = row.get("system")
    if system is None or (system == "" and not keep_empty_system):
        return prompt
    if not isinstance(system, str):
        raise wrong_type("system", system, "a string")
    inside = [m.content for m in prompt if m.role == "system"]
    if not inside:
        return (Message("system", system), *prompt)
    if inside[0] == system:
        return prompt
    raise RowError(
        Reason.AMBIGUOUS_FORMAT,
        f"field 'system' is {short(system)}, but the conversation has another system message, {short(inside[0])}",
        "Keep one of the two",
    )


def earlier_turns(row: Mapping[str, Any]) -> Messages:
    """Returns the turns of the optional field `history`: pairs of question and answer that precede the prompt."""
    history = parsed_json(row.get("history"))
    if history is None or (isinstance(history, str) and not history.strip()):
        return ()
    if not isinstance(history, (list, tuple, np.ndarray)):
        raise wrong_type("history", history, "a list of [question, answer] pairs")
    found: list[Message] = []
    for index, exchange in enumerate(history, 1):
        question, answer = two_strings(exchange, f"item {index} of field 'history'", "[question, answer]")
        found += [Message("user", question), Message("assistant", answer)]
    return tuple(found)


def tools_of(row: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Returns the tool schemas of the field `tools`: a list, or the JSON text of one. None when there are none."""
    value = row.get("tools")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    schemas = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):  # text that is no JSON is refused below
            schemas = json.loads(value)
    if not isinstance(schemas, (list, tuple)):
        raise wrong_type("tools", value, "a list of tool schemas, or JSON text of such a list")
    return tuple(schemas) or None


def tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Returns the OpenAI form of the calls in a ShareGPT function_call turn, as JSON text or as what it stands for.

    ``'{"name": "add", "arguments": {"a": 1}}'`` -> ``[{"type": "function", "function": {"name": "add", ...}}]``
    """
    expected = "JSON text of a call {'name', 'arguments'}, or of a list of calls"
    calls = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, str):
        try:
            calls = json.loads(value)
        except (ValueError, RecursionError):
            raise wrong_type(where, value, expected) from None
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, (list, tuple)) or not calls or not all(map(_is_call, calls)):
        raise wrong_type(where, value, expected)
    return [{"type": "function", "function": call} for call in calls]


def check_tool_calls(value: Any, where: str) -> None:
    """Checks that a field `tool_calls` has OpenAI's form, or the shorter one without `function`.

    Templates would silently leave out calls of another form.
    """
    calls = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    for call in calls:
        if not (isinstance(call, Mapping) and _is_call(call.get("function", call))):
            raise wrong_type(
                f"a call in the tool_calls of {where}", call, "{'type': 'function', 'function': {'name', 'arguments'}}"
            )


def _is_plain_call(call: Any) -> bool:
    """Returns whether a call is a plain dict in OpenAI's form; most are."""
    function = call.get("function") if type(call) is dict else None
    return type(function) is dict and type(function.get("name")) is str


def _is_call(call: Any) -> bool:
    return isinstance(call, Mapping) and isinstance(call.get("name"), str)
