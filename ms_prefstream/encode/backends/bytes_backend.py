"""The built-in tokenizer ``"bytes"``: a token for each byte and four control tokens, without any file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.added import AddedTokens
from ms_prefstream.encode.backends.base import Place, Tokenizer
from ms_prefstream.encode.backends.spelling import build_spelling
from ms_prefstream.encode.backends.text_encoder import PlainTextEncoder
from ms_prefstream.encode.backends.tokenizer_source import TokenizerSource
from ms_prefstream.encode.backends.unicode import check_size, check_unicode
from ms_prefstream.sample import Ids

CONTROL = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258, "<|pad|>": 259}

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ByteEncoder(PlainTextEncoder):
    """Text to ids by UTF-8: ids 0 to 255 are the bytes."""

    backend = "bytes"
    added = AddedTokens(())

    def __init__(self) -> None:
        written = ((bytes([byte]), 1) for byte in range(256))
        self.spelling = build_spelling(range(256), written, CONTROL)

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[Ids]:
        """Returns the ids of each text; see `TextEncoder`."""
        check_size(texts)
        try:
            return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32) for text in texts]
        except UnicodeEncodeError:
            check_unicode(texts)
            raise

    def plain_ids(self, text: str, place: Place) -> Ids:
        return self.encode((text,))[0]

    def piece_id(self, piece: str) -> int | None:
        return None

    def offset_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        raise AssertionError("bytes always spell their text")


def load(source: TokenizerSource) -> Tokenizer:
    """Returns the tokenizer called ``"bytes"``, with a ChatML template."""
    return Tokenizer(
        name=source.name,
        encoder=ByteEncoder(),
        backend="bytes",
        reason="it was asked for by name; its ids are the bytes of the text",
        special=CONTROL,
        special_in_template=CONTROL,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        vocab_size=256 + len(CONTROL),
        chat_template=CHATML,
        fingerprint=hashlib.blake2b(f"bytes {CONTROL} {CHATML}".encode(), digest_size=16).hexdigest(),
    )
