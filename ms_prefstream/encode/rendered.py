"""The slow and general way: render a conversation in full and find the borders of its messages by their prefixes.

Used for tool calls, for templates that look into contents (thinking models), and for whatever else is not fixed text
around contents. A border is the length of the rendering of the messages before it, never the result of a search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ms_prefstream.encode.jinja import TemplateRefusal
from ms_prefstream.encode.layout import Kind, Piece
from ms_prefstream.encode.pieces import ControlTokens

Render = Callable[..., str]


def render_pieces(
    render: Render,
    messages: Sequence[dict[str, Any]],
    prompt_messages: int,
    tools: Any,
    control: ControlTokens,
    header: Callable[[str], str],
) -> tuple[list[tuple[Piece, int]], str]:
    """The pieces of one conversation, and its text.

    Args:
        render: The template.
        messages: As the template reads them, control tokens in contents hidden.
        prompt_messages: How many of them are the prompt; all of them asks for the generation header.
        tools: For the template.
        control: Cuts the text at control tokens.
        header: The template text before a content, by role.

    Raises:
        TemplateRefusal: If the template refuses, or the start of the response cannot be told from its prefix.
    """
    ask = prompt_messages == len(messages)
    text = render(messages, tools=tools, generation=ask)
    pieces: list[tuple[Piece, int]] = []
    begin = _prompt(render, messages[:prompt_messages], tools, text, control, header, pieces)
    if ask:
        pieces.extend(control.cut(text[begin:], prompt_messages, Kind.HEAD))
        return pieces, text
    for index in range(prompt_messages, len(messages)):
        end = len(text)
        if index + 1 < len(messages):
            end = _length(render, messages[: index + 1], tools, text, False) or -1
            if end < begin:
                raise TemplateRefusal("it writes a turn of the response differently once another turn follows")
        if messages[index]["role"] != "assistant":
            pieces.extend(control.cut(text[begin:end], index, Kind.HEAD))
        else:
            body = _body(render, messages[:index], tools, text, begin, header("assistant"))
            tail = body + control.last(text[body:end])
            pieces.extend(control.cut(text[begin:body], index, Kind.HEAD))
            pieces.extend(control.cut(text[body:tail], index, Kind.BODY))
            pieces.extend(control.cut(text[tail:end], index, Kind.TAIL))
        begin = end
    return pieces, text


def _length(render: Render, messages: Sequence[dict[str, Any]], tools: Any, text: str, generation: bool) -> int | None:
    """Length of the rendering of the first messages if the whole text begins with it."""
    try:
        prefix = render(messages, tools=tools, generation=generation)
    except TemplateRefusal:
        return None
    return len(prefix) if text.startswith(prefix) else None


def _body(
    render: Render, before: Sequence[dict[str, Any]], tools: Any, text: str, begin: int, header: str
) -> int:
    """Where the response text of an assistant turn begins: behind the header that makes the model answer."""
    asked = _length(render, before, tools, text, True)
    if asked is not None and asked > begin:
        return asked
    if header and text.startswith(header, begin):
        return begin + len(header)
    raise TemplateRefusal("where the response begins cannot be told: its text does not start with the prompt's")


def _prompt(
    render: Render,
    messages: Sequence[dict[str, Any]],
    tools: Any,
    text: str,
    control: ControlTokens,
    header: Callable[[str], str],
    pieces: list[tuple[Piece, int]],
) -> int:
    """Append the pieces of the prompt and return where it ends; turns whose border is not known stay together."""
    begin = 0
    for index, message in enumerate(messages):
        end = _length(render, messages[: index + 1], tools, text, False)
        if end is None or end < begin:
            continue
        start = begin
        if index == 0 and message["role"] != "system":
            start = max(0, text.find(header(message["role"]), 0, end)) if header(message["role"]) else 0
            pieces.extend(control.cut(text[:start], 0, Kind.PREAMBLE))
        body = start
        if text.startswith(header(message["role"]), start, end):
            body = start + len(header(message["role"]))
        tail = body + control.last(text[body:end])
        pieces.extend(control.cut(text[start:body], index, Kind.HEAD))
        pieces.extend(control.cut(text[body:tail], index, Kind.BODY))
        pieces.extend(control.cut(text[tail:end], index, Kind.TAIL))
        begin = end
    if begin == 0 and messages:
        asked = _length(render, messages, tools, text, True)
        if asked is None:
            raise TemplateRefusal("the prompt is written differently once a response follows")
        pieces.extend(control.cut(text[:asked], 0, Kind.PREAMBLE))
        begin = asked
    return begin
