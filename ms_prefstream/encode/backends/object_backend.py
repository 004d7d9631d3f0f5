"""The backend for tokenizer objects of transformers and mindformers; neither package is imported.

A fast tokenizer holds a tokenizer.json and goes to the backends for that form. A slow one is encoded by the
SentencePiece model that it holds, or else by its own ``tokenize``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer

from ms_prefstream.encode.backends.added import FLAGS, AddedToken, AddedTokens, alternation, stretching
from ms_prefstream.encode.backends.base import Form, NotServedError, Place, TextEncoder, Tokenizer
from ms_prefstream.encode.backends.self_check import corpus
from ms_prefstream.encode.backends.sentencepiece_backend import SentencePieceEncoder
from ms_prefstream.encode.backends.sentencepiece_proto import read_model, with_dummy_prefix
from ms_prefstream.encode.backends.spelling import Spelling, build_spelling, from_byte_alphabet
from ms_prefstream.encode.backends.text_encoder import PlainTextEncoder
from ms_prefstream.encode.backends.tokenizer_source import (
    ACCEPTED,
    Names,
    TokenizerSource,
    chat_template_of,
    find_reserved,
    read_names,
)
from ms_prefstream.encode.backends.unicode import check_unicode, nfc
from ms_prefstream.errors import TokenizerError
from ms_prefstream.sample import Ids


def read_object(obj: Any) -> TokenizerSource:
    """Returns what an object offers: a tokenizer.json (a copy, the object stays as it is) or its own methods.

    Raises:
        TokenizerError: If it is not a tokenizer.
    """
    rust = next((it for it in (obj, getattr(obj, "backend_tokenizer", None), getattr(obj, "_tokenizer", None))
                 if isinstance(it, RustTokenizer)), None)  # fmt: skip
    methods = ("tokenize", "convert_tokens_to_ids", "convert_ids_to_tokens", "get_vocab")
    if rust is None and not all(callable(getattr(obj, name, None)) for name in methods):
        raise TokenizerError(f"an object of type {type(obj).__name__} is not a tokenizer. {ACCEPTED}.")
    # `special_tokens_map` leaves out what is not set, where the attribute of a token would log an error.
    names = Names() if rust is obj else read_names(getattr(obj, "special_tokens_map", None) or {})
    return TokenizerSource(
        name=str(getattr(obj, "name_or_path", "") or "") or type(obj).__name__,
        forms={Form.OBJECT: obj} if rust is None else {Form.JSON: orjson.loads(rust.to_str())},
        # Of a fast one its own ids say it: the attribute is False in transformers 5 where the post-processor sets BOS.
        config={"add_bos_token": getattr(obj, "add_bos_token", None) if rust is None else None},
        names=names,
        chat_template=chat_template_of({"chat_template": getattr(obj, "chat_template", None)}),
    )


def load(source: TokenizerSource) -> Tokenizer:
    """Returns the tokenizer of an object, encoded by the object itself."""
    obj = source.forms[Form.OBJECT]
    tokens = _added_tokens(obj, source.names)
    encoder = ObjectEncoder(obj, tokens, source.name)
    return _tokenizer(source, tokens, encoder, "the object brings no faster backend with it")


def load_sentencepiece(source: TokenizerSource) -> Tokenizer:
    """Returns the tokenizer of an object, encoded by the SentencePiece model inside it.

    Raises:
        NotServedError: If there is no such model, or it gives other ids than the object.
    """
    obj = source.forms[Form.OBJECT]
    processor: Any = getattr(obj, "sp_model", None)
    if not callable(getattr(processor, "serialized_model_proto", None)):
        raise NotServedError("the object holds no SentencePiece model")
    tokens = _added_tokens(obj, source.names)
    data = processor.serialized_model_proto()
    prefixed = frozenset({Place.START, Place.AFTER_SPECIAL})
    if not read_model(data).dummy_prefix:  # the object itself sets the prefix, before a whole text only
        data, prefixed = with_dummy_prefix(data, True), frozenset({Place.START})
    model = read_model(data)
    extra = [token for token in tokens if token.id >= len(model.pieces)]
    encoder = SentencePieceEncoder(data, model, _special(tokens), prefixed, extra)
    if model.suffix or not all(_agree(obj, encoder, text) for text in corpus()):
        raise NotServedError("the object gives other ids than the SentencePiece model that it holds")
    return _tokenizer(
        source, tokens, encoder, "the object holds a SentencePiece model, and a self-check agreed with its ids"
    )


def _agree(obj: Any, encoder: TextEncoder, text: str) -> bool:
    """Returns whether an object and an encoder give the same ids at the start and after a special token."""
    pieces = {
        Place.START: obj.tokenize(text, split_special_tokens=True) if text else [],
        Place.AFTER_SPECIAL: obj._tokenize(text) if text else [],
    }
    return all(
        np.array_equal(np.array(obj.convert_tokens_to_ids(own), dtype=np.int64), encoder.encode((text,), place)[0])
        for place, own in pieces.items()
    )


def _tokenizer(source: TokenizerSource, tokens: Sequence[AddedToken], encoder: TextEncoder, reason: str) -> Tokenizer:
    obj, names, template = source.forms[Form.OBJECT], source.names, source.chat_template
    vocab = obj.get_vocab()
    digest = hashlib.blake2b(repr(sorted((i, str(t)) for t, i in vocab.items())).encode(), digest_size=16)
    digest.update(repr((type(obj).__name__, sorted((t.id, t.content, t.special) for t in tokens), template)).encode())
    flagged = stretching(token for token in tokens if token.special)
    if flagged:
        digest.update(b"2")  # the first version gave other ids, see `tokenizer_json.fingerprint`
    ids = {token.content: token.id for token in tokens}
    add_bos = source.config["add_bos_token"]
    if not isinstance(add_bos, bool):
        build, bos = getattr(obj, "build_inputs_with_special_tokens", None), names.tokens["bos_token"]
        add_bos = bos is not None and callable(build) and list(build([0]))[:1] == [ids.get(bos)]
    return Tokenizer(
        name=source.name,
        encoder=encoder,
        backend=encoder.backend,
        reason=reason,
        special=_special(tokens),
        flagged=flagged,
        special_in_template=ids,
        **names.tokens,
        add_bos=add_bos,
        vocab_size=1 + max([*map(int, vocab.values()), *ids.values()]),
        chat_template=template,
        fingerprint=digest.hexdigest(),
        reserved=find_reserved(ids.items(), names),
    )


def _special(tokens: Sequence[AddedToken]) -> Mapping[str, int]:
    return {token.content: token.id for token in tokens if token.special}


def _added_tokens(obj: Any, names: Names) -> list[AddedToken]:
    """Returns the object's added tokens, and its named ones even where it does not list them."""
    listed: Mapping[int, Any] = getattr(obj, "added_tokens_decoder", None) or {}

    tokens: dict[str, AddedToken] = {}
    for id_, token in listed.items():
        content, special = str(getattr(token, "content", token)), bool(getattr(token, "special", True))
        flags = {flag: bool(getattr(token, flag, False)) for flag in FLAGS}
        tokens[content] = AddedToken(content=content, id=int(id_), special=special, **flags)
    for content in names.control:
        if content in tokens:
            tokens[content] = dataclasses.replace(tokens[content], special=True)
        elif isinstance(number := obj.convert_tokens_to_ids(content), int):
            tokens[content] = AddedToken(content=content, id=number, special=True)
    strict = [token.content for token in tokens.values() if token.stretches and not token.special]
    if strict:
        raise TokenizerError(
            f"the added token {strict[0]!r} of {type(obj).__name__} takes its surroundings with it, which is only "
            "supported for tokenizers with a tokenizer.json. Pass its directory."
        )
    return list(tokens.values())


class ObjectEncoder(PlainTextEncoder):
    """Text to ids by an object's own ``tokenize``, for byte-level tokenizers without a dummy prefix.

    Raises:
        TokenizerError: The object changes texts in an unsupported way (a prefix, a normalisation other than NFC).
    """

    backend = "object"
    max_chars = 2**17  # merging in Python takes quadratic time on long words

    def __init__(self, obj: Any, tokens: Sequence[AddedToken], name: str) -> None:
        self._obj = obj
        self._control = _special(tokens)
        self.added = AddedTokens(tokens)
        self.spelling = _spelling(obj, tokens)
        # Control strings that the object recognises in text although it is asked not to.
        ids = set(self._control.values())
        leaked = [content for content in self._control if len(content) > 1 and ids & set(self._own(content))]
        self._breaks = alternation(leaked) if leaked else None
        self._check(name)

    def plain_ids(self, text: str, place: Place) -> Ids:
        """Returns the ids; a string that the object would take for a control token is passed to it in two parts."""
        check_unicode((text,))
        cuts = [match.start() + 1 for match in self._breaks.finditer(text)] if self._breaks else []
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        ids = [id_ for piece in pieces if piece for id_ in self._own(piece)]
        return np.array(ids, dtype=np.int32)

    def _own(self, text: str) -> list[int]:
        found: list[int] = self._obj.convert_tokens_to_ids(self._obj.tokenize(text, split_special_tokens=True))
        return found

    def piece_id(self, piece: str) -> int | None:
        found = self._obj.get_vocab().get(piece)
        return None if found is None else int(found)

    def offset_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        raise TokenizerError(
            f"the tokens of {type(self._obj).__name__} do not spell the text {text[:40]!r}. "
            "Pass a directory with tokenizer.json instead of the object."
        )

    def _check(self, name: str) -> None:
        accent = "e\u0301"
        self.nfc = self.decode(self.plain_ids(accent, Place.START).tolist()) == nfc(accent)
        for text in corpus([*self._control][:64]):
            ids = self.ids_by_parts(text, Place.START).tolist()
            wanted = nfc(text) if self.nfc else text
            if self.decode(ids) != wanted or set(ids) & set(self._control.values()):
                raise TokenizerError(
                    f"the tokenizer object {name} changes the text {text[:24]!r} or turns it into control tokens, so "
                    "the border of a response cannot be found in its ids. Pass a directory with tokenizer.json, a "
                    ".model file or a fast tokenizer."
                )


def _spelling(obj: Any, tokens: Sequence[AddedToken]) -> Spelling:
    """Returns what the ids write: tokens are bytes, or strings in the byte-level alphabet."""
    added = {token.content: token.id for token in tokens}
    size = 1 + max([*map(int, obj.get_vocab().values()), *added.values()])
    ids = sorted(set(range(size)) - set(added.values()))
    return build_spelling(ids, (_written(obj, id_) for id_ in ids), added)


def _written(obj: Any, id_: int) -> tuple[bytes, int]:
    """Returns the bytes of a token and their number; nothing and -1 where it has none."""
    try:
        token = obj.convert_ids_to_tokens(id_)
    except (KeyError, IndexError, ValueError):  # a gap in the numbering
        token = ""
    written = from_byte_alphabet(token) if isinstance(token, str) else token if isinstance(token, bytes) else b""
    return (b"", -1) if written is None else (written, len(written))
