"""Builds the conversation encoder from the options that a user gives: template, boundary, special tokens in content."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping

from ms_prefstream.encode.cut_points import cut_map
from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.encode.pieces import ControlTokens
from ms_prefstream.encode.template import ChatTemplate, PlainTemplate, Template
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import OptionError, RowError, TemplateError
from ms_prefstream.formats.record import Completion, Message

BOUNDARIES = ("joint", "inference")
SPECIAL_TOKENS = ("escape", "error", "allow")


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


def fingerprint_of(text: str | None) -> str | None:
    """Returns a short hash of a template's text; None for None."""
    return None if text is None else hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def build_encoder(
    tokenizer: Tokenizer,
    *,
    template: str | None = "auto",
    boundary: str = "joint",
    special_tokens_in_content: str = "escape",
    refused: Mapping[str, int] | None = None,
) -> ConversationEncoder:
    """Returns the encoder for text records.

    Args:
        tokenizer: A loaded tokenizer.
        template: See `template_text`.
        boundary: ``joint`` or ``inference`` (see `ConversationEncoder`).
        special_tokens_in_content: ``escape`` takes control strings in content as plain text, ``error`` refuses such
            rows, ``allow`` takes them as control tokens.
        refused: Control tokens that are always refused.

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
    """Returns the smallest useful max_length: the tokens of the template alone, and one of response."""
    question, answer = Message("user", "a"), Message("assistant", "a")
    (found,) = encoder.encode([Completion((question,), (answer,))])
    if isinstance(found, RowError):
        return 1
    return cut_map(encoder, found[1]).least + 1
