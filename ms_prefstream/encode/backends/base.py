"""The contract between text and token ids that every tokenizer backend keeps."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.added import AddedToken
from ms_prefstream.sample import Ids


class Place(enum.Enum):
    """Where a piece of text stands; tokenizers that add a dummy prefix treat the places differently."""

    START = "start"  # the first text of the sequence (a BOS id may stand before it)
    AFTER_SPECIAL = "after_special"  # directly after a control token
    CONTINUATION = "continuation"  # continues text that was encoded before it: never a dummy prefix


class Form(enum.Enum):
    """Form in which a tokenizer exists; the values complete "needs ..." in errors."""

    BYTES = "the name 'bytes'"
    JSON = "a tokenizer.json"
    MODEL = "a SentencePiece model"
    OBJECT = "a Python object with its own tokenize()"


class NotServedError(Exception):
    """Refusal of a tokenizer by a backend; the message completes "it does not fit, because ..."."""


def is_panic(error: BaseException) -> bool:
    """Returns whether a package written in Rust panicked. Its class is no `Exception` and cannot be imported."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises a panic inside the `with` block as a ValueError."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise ValueError(f"it panics: {error}") from None


class FlatIds(Sequence[Ids]):
    """The ids of n texts as parts of one array.

    Attributes:
        ids: (t,) int32, the ids of all texts, in any order.
        begins: (n,) int64, where those of each text begin.
        lengths: (n,) int64, how many there are of each.
    """

    __slots__ = ("begins", "ids", "lengths")

    def __init__(self, ids: Ids, begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        self.ids, self.begins, self.lengths = ids, begins, lengths

    @classmethod
    def of(cls, arrays: Sequence[Ids]) -> FlatIds:
        """Returns the same ids in one array."""
        if isinstance(arrays, cls):
            return arrays
        ends = np.cumsum([0, *map(len, arrays)])
        ids = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
        return cls(ids, ends[:-1], np.diff(ends))

    def replaced(self, texts: Sequence[int], arrays: Sequence[Ids]) -> FlatIds:
        """Returns the ids with other ones for some texts."""
        new, begins, lengths = FlatIds.of(arrays), self.begins.copy(), self.lengths.copy()
        begins[texts], lengths[texts] = new.begins + len(self.ids), new.lengths
        return FlatIds(np.concatenate([self.ids, new.ids]), begins, lengths)

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, text: Any) -> Any:
        begin = int(self.begins[text])
        return self.ids[begin : begin + int(self.lengths[text])]


class TextEncoder(Protocol):
    """Text to ids. Special tokens inside the text are ordinary text; nothing (BOS, EOS) is added.

    Added tokens that the tokenizer does not mark as special (``<think>``, ``<tool_call>``) are ordinary vocabulary
    and are recognised in text, as Hugging Face tokenizers with ``split_special_tokens=True`` do.
    """

    backend: str  # "fastokens", "tiktoken", "tokenizers", "sentencepiece" or "bytes"

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> Sequence[Ids]:
        """Returns the ids of each text, one (n,) int32 array per text; as `FlatIds` where that saves time."""

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL, dropped_after: bool = False) -> NDArray[np.int64]:
        """Returns where the tokens of `encode([text])` begin: (n + 1,) character offsets, the last is len(text).

        A token that begins inside a character (byte-level tokens of a split character) has -1. Texts that the
        tokenizer normalises (NFC) give offsets into the original text wherever a token begins at the border of a
        normalisation unit, and -1 elsewhere. White space that the tokenizer drops between two tokens belongs to the
        first of them, with `dropped_after` to the second; the last offset is then the end of the last token.
        """

    def sure_part(self, text: str, place: Place, *, begins: bool, ends: bool) -> tuple[int, int]:
        """Returns the longest part [first, last) of a text that can be encoded alone, whatever surrounds the text.

        It begins and ends with added tokens, so what follows it stands after one (`Place.AFTER_SPECIAL`). If nothing
        precedes the text (`begins`) it may begin there, and if nothing follows (`ends`) it may end there. (0, 0) if
        there is none.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids, special tokens included as they are written in templates."""

    def piece_id(self, piece: str) -> int | None:
        """Returns the id of a piece as the vocabulary writes it; None if it is in no vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer, wherever it came from.

    Attributes:
        name: Its name in reports.
        encoder: Text to ids and back.
        backend: The backend in use: ``fastokens``, ``tiktoken``, ``tokenizers``, ``sentencepiece``, ``bytes`` or
            ``object``.
        reason: Why this backend was chosen, in a sentence.
        special: Control tokens, content to id: never produced by user text.
        flagged: Those of them to which their surroundings matter, by content.
        special_in_template: All added tokens, content to id: those recognised in a template's own text.
        bos_token: The token at the beginning of a sequence, or None.
        eos_token: The token at the end, or None.
        pad_token: The token that fills rows, or None.
        unk_token: The token for what the vocabulary lacks, or None.
        add_bos: Whether the tokenizer itself sets BOS before plain text.
        vocab_size: The highest id plus 1.
        embedding_size: Rows of the model's embedding where the user states them; never fewer than `vocab_size`.
        chat_template: Jinja source, or None.
        fingerprint: A hash of everything that determines the ids, and of the chat template.
        reserved: Reserved tokens such as ``<|reserved_special_token_0|>`` by name, in the order of their ids: the
            added ones, or else pieces of the vocabulary that no text gives.
        notes: Peculiarities that a person should know, as sentences.
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
    add_bos: bool = False
    vocab_size: int
    chat_template: str | None = None
    fingerprint: str
    embedding_size: int | None = None
    flagged: Mapping[str, AddedToken] = field(default_factory=dict)
    reserved: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def bos_id(self) -> int | None:
        """Id of `bos_token`."""
        return self._id(self.bos_token)

    @property
    def eos_id(self) -> int | None:
        """Id of `eos_token`."""
        return self._id(self.eos_token)

    @property
    def pad_id(self) -> int | None:
        """Id of `pad_token`."""
        return self._id(self.pad_token)

    @property
    def reserved_id(self) -> int | None:
        """Id of the first reserved token."""
        return next(iter(self.reserved.values()), None)

    @property
    def ids(self) -> int:
        """How many ids there are: rows of the model's embedding, else of the vocabulary."""
        return self.vocab_size if self.embedding_size is None else self.embedding_size

    def token_id(self, token: str) -> int | None:
        """Returns the id of an added token or of another piece of the vocabulary by its name; None without one."""
        found = self._id(token)
        return self.encoder.piece_id(token) if found is None else found

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.special_in_template.get(token)

    @property
    def description(self) -> str:
        """Its name, its backend with the reason, and its notes."""
        notes = "".join(f"\n  {note}" for note in self.notes)
        return f"{self.name}, backend {self.backend}: {self.reason}{notes}"

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids, control tokens as they are written in templates."""
        return self.encoder.decode(ids)
