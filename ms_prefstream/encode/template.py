"""Conversations to layouts: learned once per role sequence where the template allows it, rendered in full elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from ms_prefstream.encode.jinja import TemplateRefusal, renderer
from ms_prefstream.encode.layout import Kind, Layout, Piece, build_layout
from ms_prefstream.encode.learn import Learned, learn
from ms_prefstream.encode.pieces import ControlTokens
from ms_prefstream.encode.rendered import render_pieces
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import Reason, RowError, TemplateError
from ms_prefstream.formats.record import Messages

PROOFS = 3  # rows of each role sequence that are also rendered in full, to check what was learned


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
        bos = [] if tokenizer.bos_id is None else [(Piece(0, Kind.PREAMBLE, tokenizer.bos_token), tokenizer.bos_id)]
        eos = [] if tokenizer.eos_id is None else [(Piece(1, Kind.TAIL, tokenizer.eos_token), tokenizer.eos_id)]
        self._encoder = tokenizer.encoder
        roles = ("user", "assistant")
        prompt, response = (Piece(0, Kind.BODY, None), -1), (Piece(1, Kind.BODY, None), -1)
        self._bos, self._eos, self._roles = bos, eos, roles
        self._full = build_layout([*bos, prompt, response, *eos], 1, roles, self._encoder)
        self._prompt = build_layout([*bos, prompt], 1, roles[:1], self._encoder)

    def lay_out(self, prompt: Messages, response: Messages, tools: Any = None) -> LaidOut:
        if len(prompt) != 1 or len(response) > 1:
            shape = " + ".join(message.role for message in (*prompt, *response))
            raise TemplateError(
                f"a row has the turns {shape}, and without a chat template only one prompt and one response can be "
                'joined as text. Use a tokenizer with a chat template, or pass template="<Jinja text>".'
            )
        contents = [message.content for message in (*prompt, *response)]
        if self._control is not None and any(map(self._control.find, contents)):
            pieces = [cut for i, text in enumerate(contents) for cut in self._control.cut(text, i, Kind.BODY)]
            tail = self._eos if response else []
            layout = build_layout([*self._bos, *pieces, *tail], 1, self._roles[: len(contents)], self._encoder)
            return LaidOut(layout, contents, False)
        return LaidOut(self._full if response else self._prompt, contents, False)


class ChatTemplate:
    """A Jinja chat template.

    Args:
        text: The Jinja source.
        tokenizer: Gives the encoder, the special tokens and the variables that templates name.
        allow_special: Whether special tokens in contents act as such.
    """

    def __init__(self, text: str, tokenizer: Tokenizer, allow_special: bool = False) -> None:
        variables = {
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
            "pad_token": tokenizer.pad_token or "",
            "unk_token": tokenizer.unk_token or "",
        }
        self._encoder = tokenizer.encoder
        self._control = ControlTokens(tokenizer.special)
        self._render = renderer(text, variables)
        self._allow = allow_special
        self._learned: dict[tuple[tuple[str, ...], int], Layout | None] = {}
        self._proofs: dict[tuple[tuple[str, ...], int], int] = {}
        self._headers: dict[str, str] = {}

    def lay_out(self, prompt: Messages, response: Messages, tools: Any = None) -> LaidOut:
        messages = prompt + response
        key = (tuple([message.role for message in messages]), len(prompt))
        plain = tools is None and all([message.extra is None for message in messages])
        if plain and not (self._allow and any(self._control.find(message.content) for message in messages)):
            if key not in self._learned:
                self._learned[key] = self._learn(*key)
                self._proofs[key] = PROOFS
            layout = self._learned[key]
            if layout is not None:
                contents = [message.content for message in messages]
                rewritten = False
                for index in layout.trims:
                    stripped = contents[index].strip()
                    rewritten |= stripped != contents[index]
                    contents[index] = stripped
                if not self._proofs[key] or self._prove(key, layout, messages, contents):
                    return LaidOut(layout, contents, rewritten)
        return self._in_full(messages, len(prompt), tools)

    def _prove(self, key: tuple[tuple[str, ...], int], layout: Layout, messages: Messages, contents: list[str]) -> bool:
        """Compare what was learned with a rendering of this row; forget it if they differ."""
        roles, prompt_messages = key
        try:
            text = self._render(as_dicts(messages), generation=len(roles) == prompt_messages)
        except TemplateRefusal:
            text = None
        if text == "".join(unit.text(contents) for unit in layout.units):
            self._proofs[key] -= 1
            return True
        self._learned[key] = None
        return False

    def _learn(self, roles: tuple[str, ...], prompt_messages: int) -> Layout | None:
        learned = learn(self._render, roles, len(roles) == prompt_messages, self._control)
        if learned is None or learned.looks:
            return None
        pieces: list[tuple[Piece, int]] = []
        for owner, kind, text in learned.parts:
            if text is None:
                pieces.append((Piece(owner, kind, None), -1))
                continue
            for part, part_kind in self._split_head(learned, roles, owner, kind, text, prompt_messages):
                pieces.extend(self._control.cut(part, owner, part_kind))
        return build_layout(pieces, prompt_messages, roles, self._encoder, learned.trims)

    def _split_head(
        self, learned: Learned, roles: tuple[str, ...], owner: int, kind: Kind, text: str, prompt_messages: int
    ) -> list[tuple[str, Kind]]:
        """Set apart what a HEAD holds besides the header: a preamble in front, fixed response text behind."""
        if kind is not Kind.HEAD or owner >= len(roles):
            return [(text, kind)]
        if owner == 0 and roles[0] != "system":
            header = self.header(roles[0])
            if text.endswith(header):
                return [(text[: len(text) - len(header)], Kind.PREAMBLE), (header, Kind.HEAD)]
            return [(text, Kind.PREAMBLE)]
        if owner >= prompt_messages and roles[owner] == "assistant":
            asked = learn(self._render, roles[:owner], True, self._control)
            header = asked.head(owner) if asked is not None else ""
            if header and text.startswith(header):
                return [(header, Kind.HEAD), (text[len(header) :], Kind.BODY)]
        return [(text, kind)]

    def header(self, role: str) -> str:
        """What the template writes before the content of a later message of this role; "" if that is not fixed."""
        if role not in self._headers:
            roles = ("user", "assistant", "user") if role != "assistant" else ("user", "assistant")
            learned = learn(self._render, (*roles[:-1], role), False, self._control)
            self._headers[role] = learned.head(len(roles) - 1) if learned is not None else ""
        return self._headers[role]

    def _in_full(self, messages: Messages, prompt_messages: int, tools: Any) -> LaidOut:
        hide = (lambda value: value) if self._allow else self._control.hide
        dicts = hide(as_dicts(messages))
        try:
            pieces, text = render_pieces(
                self._render, dicts, prompt_messages, hide(tools), self._control, self.header
            )
        except TemplateRefusal as refusal:
            raise RowError(
                Reason.TEMPLATE_REFUSED,
                f"the chat template refuses this conversation ({' + '.join(m.role for m in messages)}): {refusal}",
                "Correct the row, or pass a template that accepts such conversations",
            ) from None
        roles = tuple(message.role for message in messages)
        if prompt_messages == len(messages):
            roles += ("assistant",)
        rewritten = any(message["content"] and message["content"] not in text for message in dicts)
        return LaidOut(build_layout(pieces, prompt_messages, roles, self._encoder), (), rewritten)


def as_dicts(messages: Messages) -> list[dict[str, Any]]:
    """Messages as the dicts that templates read."""
    return [{"role": m.role, "content": m.content, **(m.extra or {})} for m in messages]
