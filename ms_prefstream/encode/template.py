"""Conversations to layouts: learned once per sequence of roles where the template allows it, rendered elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from ms_prefstream.encode.anatomy import Anatomy, Borders, Dissector, placeholders
from ms_prefstream.encode.jinja import TemplateRefusal, renderer
from ms_prefstream.encode.layout import Kind, Layout, Piece, build_layout
from ms_prefstream.encode.pieces import ControlTokens
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.track import Run, Sight, Tracked, edited
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


class PlainTemplate:
    """Prompt and response as text: BOS if the tokenizer has one, prompt, response, EOS.

    Args:
        tokenizer: Gives BOS and EOS.
        control: Special tokens that are honoured in contents; None takes every content as ordinary text.
    """

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens | None = None) -> None:
        self._control = control
        self._bos = (
            [] if tokenizer.bos_id is None else [(Piece(0, Kind.PREAMBLE, tokenizer.bos_token), tokenizer.bos_id)]
        )
        self._eos = [] if tokenizer.eos_id is None else [(Piece(1, Kind.TAIL, tokenizer.eos_token), tokenizer.eos_id)]
        self._encoder = tokenizer.encoder
        slots = [(Piece(0, Kind.BODY, None), -1)], [(Piece(1, Kind.BODY, None), -1)]
        self._full = self._build(slots[0] + slots[1] + self._eos, 2)
        self._prompt = self._build(slots[0], 1)

    def _build(self, pieces: list[tuple[Piece, int]], messages: int) -> Layout:
        roles = ("user", "assistant")[:messages]
        return build_layout([*self._bos, *pieces], 1, roles, self._encoder, bos_begins=bool(self._bos))

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
        self._borders = Borders()
        self._layouts: dict[tuple[tuple[str, ...], int], Layout | None] = {}
        self._proofs: dict[tuple[tuple[str, ...], int], int] = {}
        self._headers: dict[str, str] = {}

    def lay_out(self, prompt: Messages, response: Messages, tools: Any = None) -> LaidOut:
        messages = prompt + response
        plain = tools is None and not any([message.extra for message in messages])
        if plain and not (self._allow and any(self._control.find(message.content) for message in messages)):
            key = (tuple([message.role for message in messages]), len(prompt))
            if key not in self._layouts:
                if len(self._layouts) >= LAYOUTS:
                    self._layouts.clear()
                self._layouts[key] = self._learn(*key)
                self._proofs[key] = PROOFS
            layout = self._layouts[key]
            if layout is not None:
                laid = _filled(layout, messages)
                if laid is not None and (not self._proofs[key] or self._prove(key, laid, messages)):
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
            self._render, messages, prompt_messages, tools, self._control, self._borders, header, self._inference
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

    def _prove(self, key: tuple[tuple[str, ...], int], laid: LaidOut, messages: Messages) -> bool:
        """Compare what was learned with a rendering of this row; forget it if they differ."""
        roles, prompt_messages = key
        asks = len(roles) == prompt_messages
        try:
            text = self._render([_as_dict(message, message.content) for message in messages], None, asks)
        except TemplateRefusal:
            text = ""
        begun_as_asked = self._inference and laid.layout.differs  # no rendering has this text
        if begun_as_asked or text == "".join([unit.text(laid.contents) for unit in laid.layout.units]):
            self._proofs[key] -= 1
            return True
        self._layouts[key] = None
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
        sight = Sight()
        dicts = []
        for owner, message in enumerate(messages):
            content = hide(message.content)
            run = Run(0, len(content), owner)
            dicts.append(_as_dict(message._replace(extra=hide(message.extra)), Tracked(content, (run,), sight)))
        try:
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


def _filled(layout: Layout, messages: Messages) -> LaidOut | None:
    """The layout with these contents; None if one is empty and the template writes that differently."""
    contents = [message.content for message in messages]
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


def _as_dict(message: Message, content: str) -> dict[str, Any]:
    """A message as templates read it."""
    return {"role": message.role, "content": content, **(message.extra or {})}
