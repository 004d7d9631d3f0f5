"""The contract between text and token ids that every tokenizer backend keeps."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Place(enum.Enum):
    """Where a piece of text stands; tokenizers that add a dummy prefix treat the places differently."""

    START = "start"  # the first text of the sequence (a BOS id may stand before it)
    AFTER_SPECIAL = "after_special"  # directly behind a control token
    CONTINUATION = "continuation"  # goes on from text that was encoded before it: never a dummy prefix


class TextEncoder(Protocol):
    """Turns text into ids. Special tokens inside the text are ordinary text; nothing (BOS, EOS) is added.

    Added tokens that the tokenizer does not mark as special (``<think>``, ``<tool_call>``) are ordinary vocabulary
    and are recognised in text, as Hugging Face tokenizers with ``split_special_tokens=True`` do.
    """

    backend: str  # "tiktoken", "tokenizers", "sentencepiece" or "bytes"

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[NDArray[np.int32]]:
        """Ids of each text, one (n,) int32 array per text."""

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL) -> NDArray[np.int64]:
        """Where each token of `encode([text])` begins in `text`: (n + 1,) character offsets, the last len(text).

        A token that begins inside a character (byte-level tokens of a split character) has -1. Texts that the
        tokenizer normalises (NFC) give offsets into the original text wherever a token begins at the border of a
        normalisation unit, and -1 elsewhere.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included as they are written in templates."""
