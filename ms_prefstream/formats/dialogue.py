"""Dialogues written as one string with the markers ``\\n\\nHuman:`` and ``\\n\\nAssistant:``."""

from __future__ import annotations

import re

from ms_prefstream.formats.fields import wrong_type
from ms_prefstream.formats.record import Message, Messages

_MARKER = re.compile(r"\n\n(Human|Assistant):")  # a literal prefix, which re finds as fast as str.split does
_ROLES = {"Human": "user", "Assistant": "assistant"}


def marked(text: str) -> bool:
    r"""Whether a text is a dialogue: it begins with ``\n\nHuman:`` or ``\n\nAssistant:``."""
    return text.startswith(("\n\nHuman:", "\n\nAssistant:"))


def dialogue(text: str, field: str) -> Messages:
    r"""The turns of a marked dialogue.

    ``"\n\nHuman: Hi \n\nAssistant: Hello\n"`` -> ``(Message("user", "Hi "), Message("assistant", "Hello\n"))``

    A marker is two newlines, the name and a colon; at the very beginning the newlines may be missing. One space
    behind the marker belongs to it. Everything else, white space at the end of a turn included, is the turn's text.

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
            "If these are plain texts, use format='strings', with the prompt in a field 'prompt'",
        )
    named = zip(pieces[1::2], pieces[2::2], strict=True)
    return tuple([Message(_ROLES[name], turn.removeprefix(" ")) for name, turn in named])
