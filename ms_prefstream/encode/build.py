"""The encoder that the options of a stream describe, and the boundary that they stand for."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from ms_prefstream.encode.control_tokens import ControlTokens
from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.encode.plain_template import PlainTemplate
from ms_prefstream.encode.template import ChatTemplate, Template, TemplateOptions
from ms_prefstream.encode.template_limits import SECONDS, checked_seconds
from ms_prefstream.encode.template_text import checked_variables, template_text
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import OptionError, RowError, TokenizerError

BOUNDARIES = ("joint", "inference")
AUTO = "auto"  # the boundary that `resolve_boundary` chooses
SPECIAL_TOKENS = ("escape", "error", "allow")
CONTENT_LOST = ("report", "drop", "error")
CONTINUE = ("error", "join")


def build_encoder(
    tokenizer: Tokenizer,
    *,
    template: str | None = "auto",
    boundary: str = "joint",
    special_tokens_in_content: str = "escape",
    refused: Mapping[str, int] | None = None,
    append_eos: bool = True,
    template_variables: Mapping[str, Any] | None = None,
    template_date: str | None = None,
    content_lost: str = "report",
    continue_final_message: str = "error",
    train_empty_think: bool = False,
    template_limit_s: float | None = SECONDS,
) -> ConversationEncoder:
    """Returns the encoder for text records.

    Args:
        tokenizer: A loaded tokenizer.
        template: See `template_text`.
        boundary: ``joint`` or ``inference`` (see `ConversationEncoder`).
        special_tokens_in_content: ``escape`` takes control strings in content as plain text, ``error`` refuses such
            rows, ``allow`` takes them as control tokens.
        refused: Control tokens that are always refused.
        append_eos: Whether the end token follows the response where there is no chat template.
        template_variables: Further variables of a chat template.
        template_date: The day that a template gets which asks for the date, in ISO form; None for today.
        content_lost: See `ConversationEncoder`.
        continue_final_message: ``error`` refuses a prompt that ends with an answer, ``join`` lets the response
            continue it.
        train_empty_think: Whether an empty think block that the template inserts is under the loss.
        template_limit_s: Seconds that the template may take for one conversation; None for no limit.

    Raises:
        OptionError: An option has another value.
        TemplateError: The template is missing or does not compile.
    """
    if boundary not in BOUNDARIES:
        raise OptionError(f"boundary is {boundary!r}; expected 'joint' or 'inference'.")
    for name, value, known in (
        ("special_tokens_in_content", special_tokens_in_content, SPECIAL_TOKENS),
        ("content_lost", content_lost, CONTENT_LOST),
        ("continue_final_message", continue_final_message, CONTINUE),
        ("train_empty_think", train_empty_think, (False, True)),
    ):
        if not any(value is one or (isinstance(value, str) and value == one) for one in known):
            *some, last = map(repr, known)
            raise OptionError(f"{name} is {value!r}; expected {', '.join(some)} or {last}.")
    limit_s = checked_seconds(template_limit_s)
    variables = checked_variables(template_variables)
    allow = special_tokens_in_content == "allow"
    text = template_text(template, tokenizer)
    chosen: Template
    if text is None:
        if variables:
            raise OptionError(
                f"template_variables is {variables!r}, but there is no chat template that could read them. Leave "
                "it out, or pass a template."
            )
        chosen = PlainTemplate(
            tokenizer, ControlTokens(tokenizer.special, tokenizer.flagged) if allow else None, append_eos
        )
    else:
        options = TemplateOptions(
            allow_special=allow,
            inference=boundary == "inference",
            variables=variables,
            date=None if template_date is None else datetime.date.fromisoformat(template_date),
            join=continue_final_message == "join",
            train_empty_think=train_empty_think,
            limit_s=limit_s,
        )
        chosen = ChatTemplate(text, tokenizer, options)
    never = dict(refused or {})
    if special_tokens_in_content == "error":
        never.update(tokenizer.special)
    refusing = ControlTokens(never) if never else None
    try:
        return ConversationEncoder(tokenizer.encoder, chosen, boundary, refusing, content_lost)
    except RowError as error:  # the texts that it asks about are no rows
        raise TokenizerError(
            f"{tokenizer.name}: {error.problem}. Pass a tokenizer that has ids for any text."
        ) from None


def resolve_boundary(
    boundary: str,
    tokenizer: Tokenizer | None,
    template: str | None,
    pairs: bool = True,
    variables: Mapping[str, Any] | None = None,
    join: bool = False,
    limit_s: float | None = SECONDS,
) -> str:
    """Returns the boundary that an option stands for.

    ``auto`` is ``inference`` for pairs with no control token between prompt and response: the joint encoding could
    merge the end of the prompt with the two responses in two ways, and DPO's log-ratio assumes one prompt. Elsewhere
    ``auto`` is ``joint``.

    Args:
        boundary: ``auto``, ``joint`` or ``inference``.
        tokenizer: None for rows that are already tokenized.
        template: See `template_text`.
        pairs: Whether rows are pairs.
        variables: Further variables of the template.
        join: Whether a response may continue the answer that a prompt ends with; no control token stands between.
        limit_s: Seconds that the template may take for one conversation; None for no limit.

    Raises:
        OptionError: The option has another value.
    """
    if boundary not in (AUTO, *BOUNDARIES):
        raise OptionError(f"boundary is {boundary!r}; expected 'auto', 'joint' or 'inference'.")
    if boundary != AUTO:
        return boundary
    if tokenizer is None or not pairs:
        return "joint"
    text = template_text(template, tokenizer)
    if text is None or join:
        return "inference"
    probe = ChatTemplate(
        text, tokenizer, TemplateOptions(variables=dict(variables or {}), limit_s=checked_seconds(limit_s))
    )
    return "joint" if probe.separates() else "inference"
