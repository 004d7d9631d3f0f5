"""Tokenizer backends: one file each, and the table that says which of them loads which tokenizer.

`tokenizers_backend` is the reference, `fastokens_backend` the fast path for BPE, `tiktoken_backend` the next one for
byte-level BPE, `sentencepiece_backend` reads SentencePiece models, `bytes_backend` is the built-in tokenizer, and
`object_backend` wraps tokenizers that exist only as Python objects.

To add a backend, write one file and add one line to `LOADERS`. The file holds a class that keeps `TextEncoder`
(`text_encoder.PlainTextEncoder` does most of it) and a function ``load(source) -> Tokenizer``. The function raises
`NotServedError` with the reason where the ids would differ from those of the reference.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

from ms_prefstream.encode.backends.base import Form, Tokenizer
from ms_prefstream.encode.backends.tokenizer_source import TokenizerSource


class Loader(NamedTuple):
    """One way to load a tokenizer.

    Attributes:
        backend: The value of the option `backend` that asks for it; ``auto`` where nothing else does.
        reads: The form of tokenizer that it reads.
        function: Its function, as ``module:name``; the module is imported when it is needed.
    """

    backend: str
    reads: Form
    function: str

    def load(self, source: TokenizerSource) -> Tokenizer:
        """Loads the tokenizer.

        Raises:
            NotServedError: If this backend cannot give the tokenizer's ids.
        """
        module, _, name = self.function.partition(":")
        loaded: Tokenizer = getattr(importlib.import_module(f"{__name__}.{module}"), name)(source)
        return loaded


# In order of preference: ``auto`` takes the first that reads a form the tokenizer has and does not refuse it.
LOADERS = (
    Loader("auto", Form.BYTES, "bytes_backend:load"),
    Loader("fastokens", Form.JSON, "fastokens_backend:load"),
    Loader("tiktoken", Form.JSON, "tiktoken_backend:load"),
    Loader("tokenizers", Form.JSON, "tokenizers_backend:load"),
    Loader("sentencepiece", Form.MODEL, "sentencepiece_backend:load"),
    Loader("sentencepiece", Form.OBJECT, "object_backend:load_sentencepiece"),
    Loader("auto", Form.OBJECT, "object_backend:load"),
)

BACKENDS = ("auto", *dict.fromkeys(loader.backend for loader in LOADERS if loader.backend != "auto"))
