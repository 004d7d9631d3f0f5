"""Takes a rendered conversation apart: the message of each character, the ends of turns, the start of the response.

Contents are `Tracked` while the template renders, so their places are known. A turn ends where the rendering of the
messages up to it ends. A response begins where the rendering with a generation header ends, see `_response_begin`. Only
where a template writes such a prefix differently is the first control token after the content the end of the turn.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello<|im_end|>\\n
    HEAD 0           B  TAIL 0       HEAD 1                BODY TAIL 1
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ms_prefstream.encode.content_lost import REASONING
from ms_prefstream.encode.control_tokens import ControlTokens
from ms_prefstream.encode.jinja import Render, TemplateRefusal
from ms_prefstream.encode.layout import Kind
from ms_prefstream.encode.tracked_text import ContentReads, Run, Tracked, joined, plain
from ms_prefstream.encode.tracked_values import has_text


class Part(NamedTuple):
    """Characters [begin, end) of the text: their message, their kind, and the content that they are, if any."""

    owner: int
    kind: Kind
    begin: int
    end: int
    run: Run | None = None


class Anatomy(NamedTuple):
    """A rendered conversation, taken apart.

    Attributes:
        text: The whole text, with the runs of contents in it.
        parts: Its parts, in order and without gaps.
        differs: Whether the prompt that the template gives a model is not the text up to the response.
        empty_think: Whether the template inserted an empty think block into an answer, which counts as prompt.
    """

    text: Tracked
    parts: tuple[Part, ...]
    differs: bool
    empty_think: bool = False


_EMPTY_THINK = re.compile(r"(?:<(think|thinking|thought|reasoning|seed:think)>\s*</\1>|\[THINK\]\s*\[/THINK\])\s*")
_THOUGHT = ("</think>", "</thinking>", "</thought>", "</reasoning>", "</seed:think>", "[/THINK]")


class Dissector:
    """Renders one conversation and takes it apart.

    Args:
        messages: As the template reads them, each content a `Tracked` of its index.
        prompt_messages: How many of them are the prompt; if all of them are, the text ends with the generation header.
        header: Gives the template text before the content of a role, "" where that is not known.
        inference: Whether the text begins with the prompt of a model at inference, even where the template, given the
            response, would write the prompt differently.
        written: The text that the template renders of the conversation, if the caller has it.
        joined_at: Where the response begins inside the content of its first message, if the prompt ends with the
            beginning of that message.
        train_empty_think: Whether an empty think block that the template inserts counts as response.
    """

    def __init__(
        self,
        render: Render,
        messages: Sequence[Mapping[str, Any]],
        prompt_messages: int,
        tools: Any,
        control: ControlTokens,
        header: Callable[[str], str],
        inference: bool,
        written: str | None = None,
        joined_at: int | None = None,
        train_empty_think: bool = False,
    ) -> None:
        self._render, self._tools, self._control, self._header = render, tools, control, header
        self._messages, self._prompt = messages, prompt_messages
        self._asks = prompt_messages == len(messages)
        self._joined_at, self._train_empty_think = joined_at, train_empty_think
        self._differs = self._empty_think = False
        written = render(messages, tools, self._asks) if written is None else written
        if inference and not self._asks and joined_at is None:
            written = self._begun_as_asked(written)
        self._text = plain(written)
        runs = written.runs if isinstance(written, Tracked) else ()
        self._runs = tuple([run for run in runs if run.owner >= 0 > run.held])  # the contents, as they are
        self._values = [run.begin for run in runs if run.owner < 0]
        self._tracked = Tracked(self._text, runs, written.reads if isinstance(written, Tracked) else ContentReads())
        self._where = self._places()
        self._systems = next((at for at, m in enumerate(messages) if m["role"] != "system"), len(messages))
        # (role, next role, text between their contents) -> offset of the end of the turn
        self._turn_borders: dict[tuple[str, str, str], int] = {}
        # (role before, text before the content) -> (offset of the response, whether the prompt alone differs)
        self._response_begins: dict[tuple[str, str], tuple[int, bool]] = {}
        self._parts: list[Part] = []
        self._next_run = 0

    def dissect(self) -> Anatomy:
        """Returns the anatomy.

        Raises:
            TemplateRefusal: If the start of a response cannot be found.
        """
        begin = 0
        for index, end in enumerate(self._turn_ends()):
            if index < self._prompt:
                self._prompt_turn(index, begin, end)
            else:
                self._response_turn(index, begin, end)
            begin = end
        if self._asks:
            self._add(self._prompt, Kind.HEAD, begin, len(self._text))
        return Anatomy(self._tracked, tuple(self._parts), self._differs, self._empty_think)

    def _begun_as_asked(self, written: str) -> str:
        """Returns the prompt at inference and the response, if the text does not begin with that prompt."""
        try:
            asked = self._render(self._messages[: self._prompt], self._tools, True)
        except TemplateRefusal:
            return written
        if not isinstance(written, Tracked) or plain(written).startswith(plain(asked)):
            return written
        begin = next((run.begin for run in written.runs if run.owner == self._prompt and run.held < 0), None)
        if begin is None:
            return written
        self._differs = True
        return joined((asked, written.clip(begin, len(plain(written)))))

    def _places(self) -> list[tuple[int, int] | None]:
        """Returns (begin, end) of each content; None for a missing one, or one before an earlier turn's."""
        where: list[tuple[int, int] | None] = [None] * len(self._messages)
        for run in self._runs:
            known = where[run.owner]
            where[run.owner] = (run.begin, run.end) if known is None else (known[0], run.end)
        reached = 0
        for index, place in enumerate(where):
            if place is None or self._messages[index]["role"] == "system":
                continue
            if place[0] < reached:
                where[index] = None
            else:
                reached = place[1]
        return where

    def _turn_ends(self) -> list[int]:
        """Returns where the text of each message ends; a system message inside a later turn has no length."""
        ends: list[int] = []
        position = 0
        for index, place in enumerate(self._where):
            later = (self._where[at] for at in range(index + 1, len(self._where)))
            upper = next((spot[0] for spot in later if spot is not None and spot[0] >= position), len(self._text))
            lower = position if place is None else max(position, place[1])
            if index + 1 == len(self._messages) and not self._asks:
                position = len(self._text)
            elif lower <= upper:
                position = self._turn_end(index, position, lower, upper)
            ends.append(position)
        return ends

    def _turn_end(self, index: int, begin: int, lower: int, upper: int) -> int:
        """Returns where the turn from `begin` ends: not before `lower`, where its content ends, nor after `upper`."""
        role = self._messages[index]["role"]
        then = "" if index + 1 == len(self._messages) else self._messages[index + 1]["role"]
        gap = self._text[lower:upper]
        if (role, then, gap) in self._turn_borders:
            return lower + self._turn_borders[role, then, gap]
        prefix = self._prefix(index + 1, asking=False)
        if prefix is not None and lower <= prefix <= upper:
            end = prefix
        else:
            found = self._control.first(gap, 0, len(gap))
            if found is None and index < self._systems:
                return begin  # no control token in between: the message is a part of the turn it was written into
            end = lower if found is None or self._where[index] is None else lower + found.end
            if end > lower and self._text[end : min(end + 1, upper)] == "\n":
                end += 1
        self._turn_borders[role, then, gap] = end - lower
        return end

    def _prefix(self, count: int, asking: bool) -> int | None:
        """Returns the length of the rendering of the first messages, if the text begins with it."""
        try:
            prefix = plain(self._render(self._messages[:count], self._tools, asking))
        except TemplateRefusal:
            return None
        return len(prefix) if self._text.startswith(prefix) else None

    def _add(self, owner: int, kind: Kind, begin: int, end: int) -> None:
        """Adds the characters [begin, end); the contents inside them become parts of their own."""
        position = begin
        while self._next_run < len(self._runs) and self._runs[self._next_run].begin < end:
            run = self._runs[self._next_run]
            self._next_run += 1
            if run.begin < position or run.begin == run.end:
                continue
            if position < run.begin:
                self._parts.append(Part(owner, kind, position, run.begin))
            position = min(run.end, end)
            inside = Kind.PREAMBLE if run.owner < self._systems else kind
            self._parts.append(Part(run.owner, inside, run.begin, position, run if position == run.end else None))
        if position < end:
            self._parts.append(Part(owner, kind, position, end))

    def _prompt_turn(self, index: int, begin: int, end: int) -> None:
        """Adds the characters of a prompt message."""
        place = self._where[index]
        if index < self._systems:
            self._add(index, Kind.PREAMBLE, begin, end)
        elif place is None or not begin <= place[0] <= place[1] <= end:
            self._add(index, Kind.PREAMBLE if index == self._systems else Kind.HEAD, begin, end)
        else:
            head = begin
            if begin == 0 and not any(run.owner < self._systems and run.end <= place[0] for run in self._runs):
                # Before the header of the first turn stand BOS, the template's own system block and the like.
                header = self._header(self._messages[index]["role"])
                head = place[0] - (len(header) if self._text.endswith(header, 0, place[0]) else 0)
                self._add(index, Kind.PREAMBLE, 0, head)
            self._add(index, Kind.HEAD, head, place[0])
            self._add(index, Kind.BODY, place[0], place[1])
            self._add(index, Kind.TAIL, place[1], end)

    def _response_turn(self, index: int, begin: int, end: int) -> None:
        """Adds the characters of a response message: header, the text that the model writes, end of turn."""
        if self._messages[index]["role"] != "assistant":
            self._add(index, Kind.HEAD, begin, end)
            return
        place = self._where[index]
        if place is not None and not begin <= place[0] <= place[1] <= end:
            place = None
        if self._joined_at is not None and index == self._prompt:
            body = self._continuation_begin(index, self._joined_at)
        else:
            body = self._after_empty_think(index, begin, end, self._response_begin(index, begin, end, place))
        body_end = body if place is None else max(body, place[1])
        more = place is None or any(place[1] <= value < end for value in self._values)  # tool calls follow the content
        stop = (self._control.last if more else self._control.first)(self._text, body_end, end)
        if stop is not None:
            body_end = stop.begin
        elif more:
            body_end += len(self._text[body_end:end].rstrip())
        self._add(index, Kind.HEAD, begin, body)
        self._add(index, Kind.BODY, body, body_end)
        self._add(index, Kind.TAIL, body_end, end)

    def _continuation_begin(self, index: int, joined_at: int) -> int:
        """Returns the start of a response that continues the turn of a message: where its own characters begin."""
        last = None
        for run in self._runs:
            if run.owner == index:
                last = run
                at, end = run.source
                if end >= joined_at:
                    return run.begin + max(0, joined_at - at)
        content = self._messages[index]["content"]
        if last is None or plain(content)[last.source[1] :].strip():
            raise TemplateRefusal("the answer that the response continues cannot be found in its text")
        return last.end

    def _after_empty_think(self, index: int, begin: int, end: int, body: int) -> int:
        """Returns the start of a response, after an empty think block that the template inserted before it."""
        place = self._where[index]
        first = end if place is None else place[0]
        first = min([first, *(value for value in self._values if begin <= value < first)])
        for found in _EMPTY_THINK.finditer(self._text, begin, first):
            if found.end() > body and not self._text[body : found.start()].strip():
                if self._train_empty_think or self._thinks(index):
                    return body
                self._empty_think = True
                return found.end()
        return body

    def _thinks(self, index: int) -> bool:
        """Returns whether a message has reasoning of its own, be it empty."""
        message = self._messages[index]
        content = message["content"]
        if isinstance(content, str):
            shown = self._control.reveal(plain(content))
            text = content if shown == plain(content) else shown  # a content that is asked itself keeps a record of it
            if any(end in text for end in _THOUGHT):
                return True
        return any(has_text(message[key]) for key in REASONING if key in message)

    def _response_begin(self, index: int, begin: int, end: int, place: tuple[int, int] | None) -> int:
        """Returns the start of the response, the response border in characters: the end of the generation header."""
        if place is None:
            asked = self._prefix(index, asking=True)
            if asked is not None and begin < asked <= end:
                return asked
            header = self._header("assistant")
            if header and self._text.startswith(header, begin, end):
                return begin + len(header)
            if asked == begin < end:  # nothing asks for an answer, as in Mistral's templates
                return begin
            raise TemplateRefusal(
                "the start of the response cannot be found: its text does not start with the prompt's"
            )
        head = self._text[begin : place[0]]
        key = self._messages[index - 1]["role"], head
        if key not in self._response_begins:
            asked = self._prefix(index, asking=True)
            differs = asked is None or not begin <= asked <= place[0]
            offset = len(head)
            # Where the generation prompt adds nothing, the header before the content counts as prompt if it has text.
            if asked is not None and not differs and (asked > begin or not head.strip()):
                offset = asked - begin
            self._response_begins[key] = offset, differs
        offset, differs = self._response_begins[key]
        self._differs |= differs
        return begin + offset
