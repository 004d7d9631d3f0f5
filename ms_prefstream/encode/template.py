"""Conversations to layouts by a chat template: learned once for a sequence of roles, rendered in full elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ms_prefstream.encode.dissect import Anatomy, Dissector, placeholders
from ms_prefstream.encode.jinja import TemplateRefusal, renderer
from ms_prefstream.encode.layout import Kind, Layout, Piece, build_layout
from ms_prefstream.encode.pieces import ControlTokens
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.tracked_text import Run, Sight, Tracked, edited, plain
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Message, Messages

PROOFS = 3  # rows of each role sequence that are also rendered in full, to check what was learned
LAYOUTS = 1024  # role sequences whose layouts are kept


class LaidOut(NamedTuple):
    """A conversation ready to be encoded.

    Attributes:
        layout: Its units.
        contents: The text of each message's slot.
        rewritten: Whether the template changed a content (stripped it, removed a part).
    """

    layout: Layout
    contents: Sequence[str]
    rewritten: bool


class Template(Protocol):
    """Turns messages into units of control tokens and text."""

    def lay_out(self, prompt: Messages, response: Messages, tools: Any = None) -> LaidOut:
        """The layout of a conversation; without response, of the prompt with the header that makes a model answer.

        Raises:
            RowError: If the template refuses this conversation.
        """


@dataclass(slots=True)
class _Learned:
    """What is known about conversations with certain roles.

    Attributes:
        layout: Their layout; None if it depends on more than the roles.
        proofs: How many more rows are to be rendered in full and compared.
    """

    layout: Layout | None
    proofs: int


class ChatTemplate:
    """A Jinja chat template.

    Args:
        text: The Jinja source.
        tokenizer: Gives the encoder, the special tokens and the variables that templates name.
        allow_special: Whether special tokens in contents act as such.
        inference: Whether conversations begin with exactly what a model is asked with (see `Dissector`).
    """

    def __init__(self, text: str, tokenizer: Tokenizer, allow_special: bool = False, inference: bool = False) -> None:
        named = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self._render = renderer(text, {name: token for name, token in named.items() if token is not None})
        self._encoder = tokenizer.encoder
        self._control = ControlTokens(tokenizer.special)
        self._allow = allow_special
        self._inference = inference
        self._learned: dict[tuple[tuple[str, ...], int], _Learned] = {}
        self._headers: dict[str, str] = {}

    def lay_out(self, prompt: Messages, response: Messages, tools: Any = None) -> LaidOut:
        messages = prompt + response
        roles, contents, extras = zip(*messages, strict=True) if messages else ((), (), ())
        if tools is None and not any(extras) and not (self._allow and any(map(self._control.find, contents))):
            key = roles, len(prompt)
            learned = self._learned.get(key)
            if learned is None:
                if len(self._learned) >= LAYOUTS:
                    self._learned.clear()
                learned = self._learned[key] = _Learned(self._learn(*key), PROOFS)
            layout = learned.layout
            if layout is not None:
                laid = _filled(layout, contents)
                if laid is not None and (not learned.proofs or self._prove(learned, laid, messages)):
                    return laid
        return self._in_full(messages, len(prompt), tools)

    def _learn(self, roles: tuple[str, ...], prompt_messages: int) -> Layout | None:
        """The layout for all conversations with these roles; None if the text depends on more than the roles."""
        try:
            found = self._dissect(placeholders(roles), prompt_messages, None, self.header)
        except TemplateRefusal:
            return None
        written = sorted(run.owner for run in found.runs if run.whole)
        if found.looked or len(found.runs) != len(roles) or written != list(range(len(roles))):
            return None
        return build_layout(
            self._pieces(found, slots=True),
            prompt_messages,
            roles,
            self._encoder,
            edits=tuple((run.owner, run.edits) for run in found.runs if run.edits),
            needed=tuple(sorted(found.needed)),
            differs=found.differs,
        )

    def _dissect(self, messages: Any, prompt_messages: int, tools: Any, header: Any) -> Anatomy:
        return Dissector(
            self._render, messages, prompt_messages, tools, self._control, header, self._inference
        ).dissect()

    def _pieces(self, found: Anatomy, slots: bool) -> Iterator[tuple[Piece, int]]:
        """The parts cut at control tokens; contents as slots to be filled, or as they are in this conversation."""
        for owner, kind, begin, end, run in found.parts:
            if slots and run is not None:
                yield Piece(owner, kind, None), -1
                continue
            for cut in self._control.cut(found.text, begin, end):
                text = found.text[cut.begin : cut.end]
                yield Piece(owner, kind, text if cut.id >= 0 or self._allow else self._control.reveal(text)), cut.id

    def _prove(self, learned: _Learned, laid: LaidOut, messages: Messages) -> bool:
        """Compare what was learned with a rendering of this row; forget it if they differ."""
        asks = len(messages) == laid.layout.prompt_messages
        try:
            text = self._render([_as_dict(message, message.content) for message in messages], None, asks)
        except TemplateRefusal:
            text = ""
        begun_as_asked = self._inference and laid.layout.differs  # no rendering has this text
        if begun_as_asked or text == "".join([unit.text(laid.contents) for unit in laid.layout.units]):
            learned.proofs -= 1
            return True
        learned.layout = None
        return False

    def header(self, role: str) -> str:
        """What the template writes before the content of a later message of this role; "" if that is not fixed."""
        if role not in self._headers:
            roles = ("user", "assistant") if role == "assistant" else ("user", "assistant", role)
            self._headers[role] = ""
            try:
                found = self._dissect(placeholders(roles), len(roles), None, self.header)
            except TemplateRefusal:
                return ""
            last = len(roles) - 1
            head = [part for part in found.parts if part.owner == last and part.kind is Kind.HEAD]
            self._headers[role] = "".join(found.text[part.begin : part.end] for part in head)
        return self._headers[role]

    def _in_full(self, messages: Messages, prompt_messages: int, tools: Any) -> LaidOut:
        hide: Callable[[Any], Any] = _as_it_is if self._allow else self._control.hide
        hidden = [Message(role, hide(content), hide(extra)) for role, content, extra in messages]
        calls = any(message.extra and message.extra.get("tool_calls") for message in messages)
        try:
            dicts = self._with_calls(hidden, hide(tools)) if calls else _tracked(hidden)
            found = self._dissect(dicts, prompt_messages, hide(tools), self.header)
        except TemplateRefusal as refusal:
            raise RowError(
                Reason.TEMPLATE_REFUSED,
                f"the chat template refuses this conversation ({' + '.join(m.role for m in messages)}): {refusal}",
                "Correct the row, or pass a template that accepts such conversations",
            ) from None
        roles = tuple([message.role for message in messages])
        layout = build_layout(self._pieces(found, slots=False), prompt_messages, roles, None, differs=found.differs)
        written = {run.owner for run in found.runs if run.whole and not _changes(run, messages[run.owner].content)}
        rewritten = any(owner not in written for owner, message in enumerate(messages) if message.content)
        return LaidOut(layout, (), rewritten)

    def _with_calls(self, messages: Sequence[Message], tools: Any) -> list[dict[str, Any]]:
        """Messages in a form in which the template writes their tool calls.

        Some templates write them only where the content is none, as in OpenAI's form, others only where it is text.

        Raises:
            TemplateRefusal: If the template leaves them out in either form.
        """
        silent = [_as_dict(message, message.content) | {"tool_calls": None} for message in messages]
        for empty in ("", None):
            dicts = _tracked(messages, empty)
            try:
                if plain(self._render(dicts, tools)) != self._render(silent, tools):
                    return dicts
            except TemplateRefusal:
                if empty is None:
                    break
        raise TemplateRefusal("it leaves out the tool calls of an assistant turn")


def _tracked(messages: Sequence[Message], empty: str | None = "") -> list[dict[str, Any]]:
    """Messages as templates read them, contents tracked; `empty` takes the place of "" beside tool calls."""
    sight = Sight()
    dicts = []
    for owner, message in enumerate(messages):
        content = Tracked(message.content, (Run(0, len(message.content), owner),), sight)
        found = _as_dict(message, content)
        if not message.content and found.get("tool_calls"):
            found["content"] = content if empty == "" else empty
        dicts.append(found)
    return dicts


def _filled(layout: Layout, given: Sequence[str]) -> LaidOut | None:
    """The layout with these contents; None if one is empty and the template writes that differently."""
    if not layout.edits and not layout.needed:
        return LaidOut(layout, given, False)
    contents = list(given)
    for owner, edits in layout.needed:
        if not edited(contents[owner], edits):
            return None
    rewritten = False
    for owner, edits in layout.edits:
        content = edited(contents[owner], edits)
        rewritten |= content != contents[owner]
        contents[owner] = content
    return LaidOut(layout, contents, rewritten)


def _as_it_is(value: Any) -> Any:
    return value


def _changes(run: Run, content: str) -> bool:
    return edited(content, run.edits) != content


def _as_dict(message: Message, content: str | None) -> dict[str, Any]:
    """A message as templates read it."""
    return {"role": message.role, "content": content, **(message.extra or {})}
