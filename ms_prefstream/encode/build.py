"""Chooses the template and puts the encoder together from what a user typed."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

from ms_prefstream.encode.cut_points import cut_map
from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.encode.layout import Kind, Layout, Piece, build_layout
from ms_prefstream.encode.pieces import ControlTokens
from ms_prefstream.encode.template import ChatTemplate, LaidOut, Template
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import OptionError, Reason, RowError, TemplateError
from ms_prefstream.formats.record import Completion, Message, Messages


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


BOUNDARIES = ("joint", "inference")
SPECIAL_TOKENS = ("escape", "error", "allow")


def template_text(template: str | None, tokenizer: Tokenizer) -> str | None:
    """The Jinja source that an option stands for; None joins prompt and response as text.

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
    """The Jinja source of an option that names no tokenizer's: Jinja source, the path of a ``.jinja`` file, or None."""
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


def fingerprint_of(text: str | None) -> str | None:
    """A short hash of a template's text, None for none."""
    return None if text is None else hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def build_encoder(
    tokenizer: Tokenizer,
    *,
    template: str | None = "auto",
    boundary: str = "joint",
    special_tokens_in_content: str = "escape",
    refused: Mapping[str, int] | None = None,
) -> ConversationEncoder:
    """The encoder for text records.

    Args:
        tokenizer: A loaded tokenizer.
        template: See `template_text`.
        boundary: ``joint`` or ``inference`` (see `ConversationEncoder`).
        special_tokens_in_content: ``escape`` takes control strings in content as plain text, ``error`` refuses such
            rows, ``allow`` lets them act.
        refused: Control tokens that are refused in any case.

    Raises:
        OptionError: An option has another value.
        TemplateError: The template is missing or does not compile.
    """
    if boundary not in BOUNDARIES:
        raise OptionError(f"boundary is {boundary!r}; expected 'joint' or 'inference'.")
    if special_tokens_in_content not in SPECIAL_TOKENS:
        raise OptionError(
            f"special_tokens_in_content is {special_tokens_in_content!r}; expected 'escape', 'error' or 'allow'."
        )
    allow = special_tokens_in_content == "allow"
    text = template_text(template, tokenizer)
    chosen: Template
    if text is None:
        chosen = PlainTemplate(tokenizer, ControlTokens(tokenizer.special) if allow else None)
    else:
        chosen = ChatTemplate(text, tokenizer, allow, boundary == "inference")
    never = dict(refused or {})
    if special_tokens_in_content == "error":
        never.update(tokenizer.special)
    return ConversationEncoder(tokenizer.encoder, chosen, boundary, ControlTokens(never) if never else None)


def least_length(encoder: ConversationEncoder) -> int:
    """Tokens that the template takes by itself, with one token of response: no max_length can be smaller."""
    question, answer = Message("user", "a"), Message("assistant", "a")
    (found,) = encoder.encode([Completion((question,), (answer,))])
    if isinstance(found, RowError):
        return 1
    return cut_map(encoder, found[1]).least + 1
