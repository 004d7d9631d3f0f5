"""The contract between text and token ids that every tokenizer backend keeps."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer, wherever it came from.

    Attributes:
        name: What reports call it.
        encoder: Text to ids and back.
        backend: The machinery in use: ``tiktoken``, ``tokenizers``, ``sentencepiece``, ``bytes`` or ``object``.
        reason: Why that one, in a sentence.
        special: Control tokens, content to id: never produced by user text.
        special_in_template: All added tokens, content to id: what is recognised in a template's own text.
        bos_token: The token at the beginning of a sequence, or None.
        eos_token: The token at the end, or None.
        pad_token: The token that fills rows, or None.
        unk_token: The token for what the vocabulary lacks, or None.
        bos_id: Id of `bos_token`.
        eos_id: Id of `eos_token`.
        pad_id: Id of `pad_token`.
        add_bos: Whether the tokenizer itself sets BOS before plain text.
        vocab_size: The highest id plus 1.
        chat_template: Jinja source, or None.
        fingerprint: A hash of all that decides about ids and of the chat template.
        reserved: A token that is named as reserved or unused, or None.
        notes: What a person should know about this tokenizer, as sentences.
    """

    name: str
    encoder: TextEncoder
    backend: str
    reason: str
    special: Mapping[str, int]
    special_in_template: Mapping[str, int]
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    add_bos: bool = False
    vocab_size: int
    chat_template: str | None = None
    fingerprint: str
    reserved: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """Its name, what runs it and why, and what a person should know about it."""
        notes = "".join(f"\n  {note}" for note in self.notes)
        return f"{self.name}, backend {self.backend}: {self.reason}{notes}"

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens as they are written in templates."""
        return self.encoder.decode(ids)

    def reserved_id(self) -> int | None:
        """The id of a reserved token such as ``<|reserved_special_token_0|>``; None if the vocabulary has none."""
        return self.reserved
