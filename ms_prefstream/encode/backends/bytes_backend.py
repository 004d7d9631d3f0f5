"""The embedded tokenizer: a token for each byte and four control tokens, so that nothing has to be fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import Place, Tokenizer
from ms_prefstream.encode.backends.spelling import Spelling
from ms_prefstream.encode.backends.unicode import check_size, check_unicode

CONTROL = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258, "<|pad|>": 259}

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ByteEncoder:
    """Text to ids by UTF-8: ids 0 to 255 are the bytes."""

    backend = "bytes"

    def __init__(self) -> None:
        shown = [bytes([byte]) for byte in range(256)] + [content.encode() for content in CONTROL]
        lengths = np.array([1] * 256 + [-1] * len(CONTROL), dtype=np.int64)
        self._spelling = Spelling(shown=shown, lengths=lengths)

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[NDArray[np.int32]]:
        """Ids of each text; see `TextEncoder`."""
        check_size(texts)
        try:
            return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32) for text in texts]
        except UnicodeEncodeError:
            check_unicode(texts)
            raise

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL) -> NDArray[np.int64]:
        """Where each token begins; see `TextEncoder`."""
        starts = self._spelling.starts(self.encode((text,))[0], text, place)
        assert starts is not None  # bytes always spell their text
        return starts

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens included."""
        return self._spelling.decode(ids)


def byte_tokenizer() -> Tokenizer:
    """The tokenizer called ``"bytes"``, with a ChatML template."""
    return Tokenizer(
        name="bytes",
        encoder=ByteEncoder(),
        backend="bytes",
        reason="it was asked for by name; its ids are the bytes of the text",
        special=CONTROL,
        special_in_template=CONTROL,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        eos_id=CONTROL["<|im_end|>"],
        pad_id=CONTROL["<|pad|>"],
        vocab_size=256 + len(CONTROL),
        chat_template=CHATML,
        fingerprint=hashlib.blake2b(f"bytes {CONTROL} {CHATML}".encode(), digest_size=16).hexdigest(),
    )
