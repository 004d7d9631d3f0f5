"""Text of rows that looks as if a chat template had rendered it already."""

from __future__ import annotations

from collections.abc import Sequence

from ms_prefstream.encode.backends.added import BLANKS
from ms_prefstream.formats.record import Messages

MARKERS = {  # of conversations that are rendered already, by their first characters
    "<": (
        *("<|im_start|>", "<|start_header_id|>", "<|begin_of_text|>", "<start_of_turn>", "<|user|>", "<|assistant|>"),
        *("<|User|>", "<｜User｜>"),
    ),
    "[": ("[INST]",),
    "\n\n": ("\n\nHuman:", "\n\nAssistant:"),
    "#": ("### Instruction:",),
}
_BEGINNINGS = (*MARKERS["<"], *MARKERS["["], "<s>[INST]", "<s> [INST]", "<bos><start_of_turn>")
# First characters of the texts that `begins_rendered` may recognise: other texts need no look.
_DOUBTFUL = frozenset([text[0] for text in _BEGINNINGS] + list(BLANKS + "\x1c\x1d\x1e\x1f"))


def looks_rendered(text: str) -> bool:
    """Returns whether a text has markers of turns, as a conversation that a template has rendered already."""
    return any([sign in text and any([name in text for name in names]) for sign, names in MARKERS.items()])


def any_rendered(messages: Messages) -> bool:
    """Returns whether a message begins as a conversation that a chat template has rendered already."""
    for _, content, _ in messages:  # noqa: SIM110 - every row is asked, and a generator costs more than the answer
        if content[:1] in _DOUBTFUL and begins_rendered(content):
            return True
    return False


def rendered_at(texts: Sequence[str]) -> list[int]:
    """Returns which texts begin as a conversation that a chat template has rendered already."""
    doubtful = [at for at, text in enumerate(texts) if text[:1] in _DOUBTFUL]
    return [at for at in doubtful if begins_rendered(texts[at])]


def begins_rendered(text: str) -> bool:
    """Returns whether a text begins as a conversation that a chat template has rendered already."""
    return text.lstrip().startswith(_BEGINNINGS)
