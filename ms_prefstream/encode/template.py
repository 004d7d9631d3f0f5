"""Templates: from the messages of a conversation to its layout.

A chat template is rendered once for a sequence of roles, and the layout learned from that serves all conversations with
these roles. Where the text depends on more than the roles, each conversation is rendered in full.
"""

from __future__ import annotations

import hashlib
import operator
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ms_prefstream.encode.dissect import Anatomy, Dissector
from ms_prefstream.encode.jinja import TemplateRefusal, renderer
from ms_prefstream.encode.layout import Kind, Layout, Piece, build_layout
from ms_prefstream.encode.pieces import ControlTokens
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.tracked_text import ContentReads, Edits, Run, Tracked, edited, plain
from ms_prefstream.errors import OptionError, Reason, RowError, TemplateError
from ms_prefstream.formats.record import Message, Messages

PROOFS = 3  # rows of each role sequence that are also rendered in full, to check the learned layout
LAYOUTS = 1024  # role sequences whose layouts are cached


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
        """Returns the layout of a conversation; without response, of the prompt with the generation header.

        Raises:
            RowError: If the template refuses this conversation.
        """


@dataclass(slots=True)
class _Learned:
    """The layout of all conversations with certain roles, learned from one rendering with placeholders.

    Attributes:
        layout: The layout; None if it depends on more than the roles.
        edits: (message, strips) of contents that the template strips.
        needed: (message, strips) of contents that must not be empty for this layout to hold.
        proofs: How many more rows are rendered in full and compared.
    """

    layout: Layout | None = None
    edits: tuple[tuple[int, Edits], ...] = ()
    needed: tuple[tuple[int, Edits], ...] = ()
    proofs: int = PROOFS

    def fill(self, given: Sequence[str]) -> LaidOut | None:
        """Returns the layout with these contents; None if there is none, or one is empty that must not be."""
        if self.layout is None:
            return None
        if not self.edits and not self.needed:
            return LaidOut(self.layout, given, False)
        if not all(edited(given[owner], edits) for owner, edits in self.needed):
            return None
        contents = list(given)
        for owner, edits in self.edits:
            contents[owner] = edited(contents[owner], edits)
        return LaidOut(self.layout, contents, any(map(operator.ne, contents, given)))


class ChatTemplate:
    """A Jinja chat template.

    Args:
        text: The Jinja source.
        tokenizer: Gives the encoder, the special tokens and the variables that templates name.
        allow_special: Whether special tokens in contents act as such.
        inference: Whether conversations begin with exactly the prompt of a model at inference (see `Dissector`).
    """

    def __init__(self, text: str, tokenizer: Tokenizer, allow_special: bool = False, inference: bool = False) -> None:
        named = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self._render = renderer(text, {name: token for name, token in named.items() if token is not None})
        self._encoder = tokenizer.encoder
        self._control = ControlTokens(tokenizer.special, tokenizer.flagged)
        self._allow = allow_special
        self._inference = inference
        self._learned: dict[tuple[tuple[str, ...], int], _Learned] = {}
        self._headers: dict[str, str] = {}

    def lay_out(self, prompt: Messages, response: Messages, tools: Any = None) -> LaidOut:
        messages = prompt + response
        roles, contents, extras = zip(*messages, strict=True) if messages else ((), (), ())
        if (
            tools is None
            and not any(extras)
            and not self._control.in_words
            and not (self._allow and any(map(self._control.find, contents)))
        ):
            key = roles, len(prompt)
            learned = self._learned.get(key)
            if learned is None:
                if len(self._learned) >= LAYOUTS:
                    self._learned.clear()
                learned = self._learned[key] = self._learn(*key)
            laid = learned.fill(contents)
            if laid is not None and (not learned.proofs or self._prove(learned, laid, messages)):
                return laid
        return self._in_full(messages, len(prompt), tools)

    def separates(self) -> bool:
        """Returns whether a control token stands between the last message of a prompt and the response."""
        for roles in (("user", "assistant"), ("system", "user", "assistant")):
            *prompt, response = (Message(role, "a") for role in roles)
            try:
                units = self.lay_out(tuple(prompt), (response,)).layout.units
            except RowError:
                continue
            owners = [{piece.owner for piece in unit.pieces if piece.kind is Kind.BODY} for unit in units]
            last = max((at for at, found in enumerate(owners) if len(prompt) - 1 in found), default=-1)
            first = next((at for at, found in enumerate(owners) if len(prompt) in found), len(units))
            return any(unit.control >= 0 for unit in units[last + 1 : first])
        return True  # a template that refuses both refuses other rows in its own way

    def _learn(self, roles: tuple[str, ...], prompt_messages: int) -> _Learned:
        """Learn the layout of all conversations with these roles from a rendering with placeholders."""
        try:
            found = self._dissect(_placeholders(roles), prompt_messages)
        except TemplateRefusal:
            return _Learned()
        written = sorted(run.owner for run in found.text.runs if run.whole)
        if found.text.reads.was_read or len(found.text.runs) != len(roles) or written != list(range(len(roles))):
            return _Learned()
        layout = build_layout(
            self._pieces(found, slots=True),
            prompt_messages,
            roles,
            self._encoder,
            differs=found.differs,
            strips=self._control.strips,
        )
        edits = tuple((run.owner, run.edits) for run in found.text.runs if run.edits)
        return _Learned(layout, edits, tuple(sorted(found.text.reads.needed)))

    def _dissect(self, messages: Sequence[Mapping[str, Any]], prompt_messages: int, tools: Any = None) -> Anatomy:
        """Render messages and take the text apart."""
        return Dissector(
            self._render, messages, prompt_messages, tools, self._control, self.header, self._inference
        ).dissect()

    def _pieces(self, found: Anatomy, slots: bool) -> Iterator[tuple[Piece, int]]:
        """Cut the parts at control tokens; contents become slots, or stay as they are in this conversation."""
        whole = plain(found.text)
        for owner, kind, begin, end, run in found.parts:
            if slots and run is not None:
                yield Piece(owner, kind, None), -1
                continue
            for cut in self._control.cut(whole, begin, end):
                text = whole[cut.begin : cut.end]
                yield Piece(owner, kind, text if cut.id >= 0 or self._allow else self._control.reveal(text)), cut.id

    def _prove(self, learned: _Learned, laid: LaidOut, messages: Messages) -> bool:
        """Compare a learned layout with a rendering of this row; drop the layout if they differ."""
        asks = len(messages) == laid.layout.prompt_messages
        try:
            text = self._render([_as_dict(message, message.content) for message in messages], None, asks)
        except TemplateRefusal:
            text = ""
        not_rendered = self._inference and laid.layout.differs  # the text is two renderings, joined
        if not_rendered or text == "".join([unit.written(laid.contents) for unit in laid.layout.units]):
            learned.proofs -= 1
            return True
        learned.layout = None
        return False

    def header(self, role: str) -> str:
        """Returns the template text before the content of a later message of this role; "" if that is not fixed."""
        if role not in self._headers:
            roles = ("user", "assistant") if role == "assistant" else ("user", "assistant", role)
            self._headers[role] = ""
            try:
                found = self._dissect(_placeholders(roles), len(roles))
            except TemplateRefusal:
                return ""
            last = len(roles) - 1
            head = [part for part in found.parts if part.owner == last and part.kind is Kind.HEAD]
            self._headers[role] = "".join(plain(found.text)[part.begin : part.end] for part in head)
        return self._headers[role]

    def _in_full(self, messages: Messages, prompt_messages: int, tools: Any) -> LaidOut:
        """Returns the layout of this one conversation, from its own rendering."""
        hidden, hidden_tools = messages, tools
        if not self._allow:
            hide, hidden_tools = self._control.hide, self._control.hide(tools)
            hidden = tuple(Message(role, hide(content), hide(extra)) for role, content, extra in messages)
        calls = any(message.extra and message.extra.get("tool_calls") for message in messages)
        try:
            dicts = self._with_calls(hidden, hidden_tools) if calls else _tracked(hidden)
            found = self._dissect(dicts, prompt_messages, hidden_tools)
        except TemplateRefusal as refusal:
            raise RowError(
                Reason.TEMPLATE_REFUSED,
                f"the chat template refuses this conversation ({' + '.join(m.role for m in messages)}): {refusal}",
                "Correct the row, or pass a template that accepts such conversations",
            ) from None
        roles = tuple([message.role for message in messages])
        pieces, strips = self._pieces(found, slots=False), self._control.strips
        layout = build_layout(pieces, prompt_messages, roles, None, differs=found.differs, strips=strips)
        written = {
            run.owner
            for run in found.text.runs
            if run.whole and edited(messages[run.owner].content, run.edits) == messages[run.owner].content
        }
        rewritten = any(owner not in written for owner, message in enumerate(messages) if message.content)
        return LaidOut(layout, (), rewritten)

    def _with_calls(self, messages: Sequence[Message], tools: Any) -> list[dict[str, Any]]:
        """Returns messages in a form in which the template writes their tool calls, or raises `TemplateRefusal`.

        Some templates write them only where the content is None, as in OpenAI's form, others only where it is text.
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


class PlainTemplate:
    """Prompt and response as text: BOS if the tokenizer has one, prompt, response, EOS.

    Args:
        tokenizer: Gives BOS and EOS.
        control: Special tokens that act in contents; None takes every content as ordinary text.
        append_eos: Whether EOS follows the response.
    """

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens | None = None, append_eos: bool = True) -> None:
        self._control = control
        self._bos = (
            [] if tokenizer.bos_id is None else [(Piece(0, Kind.PREAMBLE, tokenizer.bos_token), tokenizer.bos_id)]
        )
        eos = tokenizer.eos_id if append_eos else None
        self._eos = [] if eos is None else [(Piece(1, Kind.TAIL, tokenizer.eos_token), eos)]
        self._encoder = tokenizer.encoder
        slots = [(Piece(0, Kind.BODY, None), -1)], [(Piece(1, Kind.BODY, None), -1)]
        self._full = self._build(slots[0] + slots[1] + self._eos, 2)
        self._prompt = self._build(slots[0], 1)

    def _build(self, pieces: list[tuple[Piece, int]], messages: int) -> Layout:
        roles, strips = ("user", "assistant")[:messages], {} if self._control is None else self._control.strips
        return build_layout([*self._bos, *pieces], 1, roles, self._encoder, bos_begins=bool(self._bos), strips=strips)

    def lay_out(self, prompt: Messages, response: Messages, tools: Any = None) -> LaidOut:
        if len(prompt) != 1 or len(response) > 1 or tools is not None or any(m.extra for m in (*prompt, *response)):
            shape = " + ".join(message.role for message in (*prompt, *response)) + (" with tools" if tools else "")
            raise RowError(
                Reason.TEMPLATE_REFUSED,
                f"the row has the turns {shape}; expected one prompt and one response without tools, all that can be "
                "joined as text without a chat template",
                'Use a tokenizer with a chat template, or pass template="<Jinja text>"',
            )
        contents = [message.content for message in (*prompt, *response)]
        if self._control is not None and any(map(self._control.find, contents)):
            pieces = [
                (Piece(owner, Kind.BODY, text[cut.begin : cut.end]), cut.id)
                for owner, text in enumerate(contents)
                for cut in self._control.cut(text)
            ]
            return LaidOut(self._build(pieces + (self._eos if response else []), len(contents)), contents, False)
        return LaidOut(self._full if response else self._prompt, contents, False)


def _tracked(messages: Sequence[Message], empty: str | None = "") -> list[dict[str, Any]]:
    """Returns messages as templates read them, contents tracked; `empty` replaces "" beside tool calls."""
    reads = ContentReads()
    dicts = []
    for owner, message in enumerate(messages):
        content = Tracked(message.content, (Run(0, len(message.content), owner),), reads)
        found = _as_dict(message, content)
        if not message.content and found.get("tool_calls"):
            found["content"] = content if empty == "" else empty
        dicts.append(found)
    return dicts


def _placeholders(roles: Sequence[str]) -> list[dict[str, Any]]:
    """Returns messages with these roles, and contents that stand for any text."""
    # private-use characters, which no template writes
    return _tracked([Message(role, f"\ue000{index}\ue001") for index, role in enumerate(roles)])


def _as_dict(message: Message, content: str | None) -> dict[str, Any]:
    """Returns a message as templates read it."""
    return {"role": message.role, "content": content, **(message.extra or {})}


def template_text(template: str | None, tokenizer: Tokenizer) -> str | None:
    """Returns the Jinja source that an option stands for; None joins prompt and response as text.

    Args:
        template: ``auto`` (the tokenizer's own if it has one), ``chat`` (the tokenizer's own, which it must have),
            Jinja source, the path of a ``.jinja`` file, or None.
        tokenizer: May have a chat template.
    """
    if template == "auto":
        return tokenizer.chat_template
    if template == "chat":
        if tokenizer.chat_template is None:
            raise TemplateError(
                f'template="chat" needs a tokenizer with a chat template, and {tokenizer.name} has none. '
                "Pass the Jinja text as template=, or template=None to join prompt and response as text."
            )
        return tokenizer.chat_template
    return given_text(template)


def given_text(template: str | None) -> str | None:
    """Returns the Jinja source of an option that is Jinja source itself, the path of a ``.jinja`` file, or None."""
    if template is None:
        return None
    if isinstance(template, str) and ("{{" in template or "{%" in template):
        return template
    if isinstance(template, str) and template.endswith(".jinja"):
        path = pathlib.Path(template)
        if not path.is_file():
            raise TemplateError(f"template file {template} does not exist. Give the path of a Jinja file.")
        return path.read_text("utf-8")
    raise OptionError(
        f"template is {template!r}; expected 'auto', 'chat', None, Jinja text (with {{{{ }}}} or {{% %}}), or the path "
        "of a .jinja file."
    )


def template_hash(text: str | None) -> str | None:
    """Returns a short hash of a template's text; None for None."""
    return None if text is None else hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()
