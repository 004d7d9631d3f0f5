"""Tokenizer objects of transformers and mindformers, taken as they are; nothing of either package is imported."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer

from ms_prefstream.encode.backends.added import AddedToken, AddedTokens
from ms_prefstream.encode.backends.base import Place, TextEncoder, Tokenizer
from ms_prefstream.encode.backends.load_hf import build_hf
from ms_prefstream.encode.backends.self_check import corpus
from ms_prefstream.encode.backends.sentencepiece_backend import SentencePieceEncoder
from ms_prefstream.encode.backends.sentencepiece_proto import read_model, with_prefix
from ms_prefstream.encode.backends.spelling import Spelling, from_byte_alphabet, spelled_starts, starts_by_parts
from ms_prefstream.encode.backends.tokenizer_files import Names, chat_template_of, find_reserved, names_of_object
from ms_prefstream.encode.backends.tokenizer_json import merge_added_tokens
from ms_prefstream.encode.backends.unicode import check_size, check_unicode, nfc
from ms_prefstream.errors import TokenizerError

MAX_SLOW_CHARS = 2**17  # merging in Python takes quadratic time on long words

Ids = NDArray[np.int32]


class SlowEncoder:
    """Text to ids by an object's own ``tokenize``, for byte-level tokenizers without a dummy prefix.

    Args:
        obj: The tokenizer object.
        tokens: Its added tokens.
        name: What errors call it.

    Raises:
        TokenizerError: The object does something that cannot be followed (a prefix, a normalisation other than NFC).
    """

    backend = "object"

    def __init__(self, obj: Any, tokens: Sequence[AddedToken], name: str) -> None:
        self._obj = obj
        self._control = {token.content: token.id for token in tokens if token.special}
        self._normalizes = False
        self._added = AddedTokens(tokens)
        self._breaks: re.Pattern[str] | None = None
        self._spelling = _spelling(obj, tokens)
        self._break_leaks()
        self._check(name)

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[Ids]:
        """Ids of each text; see `TextEncoder`. The place of a text makes no difference here."""
        check_size(texts, MAX_SLOW_CHARS)
        check_unicode(texts)
        return [self._one(text) for text in texts]

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL) -> NDArray[np.int64]:
        """Where each token begins; see `TextEncoder`."""
        check_size((text,), MAX_SLOW_CHARS)
        check_unicode((text,))
        return starts_by_parts(text, place, self._added, self._plain_starts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens included."""
        return self._spelling.decode(ids)

    def _one(self, text: str) -> Ids:
        if not self._added.may_occur(text):
            return self._plain(text)
        arrays = [
            self._plain(part.text) if part.id is None else np.array([part.id], dtype=np.int32)
            for part in self._added.split(text)
        ]
        return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)

    def _plain(self, text: str) -> Ids:
        """Ids of a text without added tokens; what the object would take for control is handed over in two parts."""
        cuts = [match.start() + 1 for match in self._breaks.finditer(text)] if self._breaks else []
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        ids = [id_ for piece in pieces if piece for id_ in self._own(piece)]
        return np.array(ids, dtype=np.int32)

    def _own(self, text: str) -> list[int]:
        found: list[int] = self._obj.convert_tokens_to_ids(self._obj.tokenize(text, split_special_tokens=True))
        return found

    def _plain_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        starts = spelled_starts(text, place, self._plain(text), self._spelling, self._normalizes)
        if starts is None:
            raise TokenizerError(
                f"the tokens of {type(self._obj).__name__} do not spell the text {text[:40]!r}. "
                "Pass a directory with tokenizer.json instead of the object."
            )
        return starts

    def _break_leaks(self) -> None:
        """Find the control strings that the object recognises in spite of everything."""
        ids = set(self._control.values())
        leaked = [content for content in self._control if len(content) > 1 and ids & set(self._own(content))]
        if leaked:
            self._breaks = re.compile("|".join(map(re.escape, sorted(leaked, key=len, reverse=True))))

    def _check(self, name: str) -> None:
        accent = "e\u0301"
        self._normalizes = self.decode(self._plain(accent).tolist()) == nfc(accent)
        for text in corpus(self._control):
            ids = self._one(text).tolist()
            wanted = nfc(text) if self._normalizes else text
            if self.decode(ids) != wanted or set(ids) & set(self._control.values()):
                raise TokenizerError(
                    f"the tokenizer object {name} changes the text {text[:24]!r} or turns it into control tokens, so "
                    "the border of a response cannot be found in its ids. Pass a directory with tokenizer.json, a "
                    ".model file or a fast tokenizer."
                )


def _spelling(obj: Any, tokens: Sequence[AddedToken]) -> Spelling:
    """What the ids write: tokens are bytes, or strings in the byte-level alphabet."""
    known = {token.id: token.content.encode("utf-8") for token in tokens}
    size = 1 + max([*map(int, obj.get_vocab().values()), *known])
    shown: list[bytes] = []
    lengths = np.full(size, -1, dtype=np.int64)
    for id_ in range(size):
        if id_ in known:
            shown.append(known[id_])
            continue
        token = _token(obj, id_)
        written = token if isinstance(token, bytes) else from_byte_alphabet(token)
        shown.append(written or b"")
        lengths[id_] = -1 if written is None else len(written)
    return Spelling(shown=shown, lengths=lengths)


def _token(obj: Any, id_: int) -> str | bytes:
    try:
        token = obj.convert_ids_to_tokens(id_)
    except (KeyError, IndexError, ValueError):  # a gap in the numbering
        return ""
    return token if isinstance(token, (str, bytes)) else ""


def rust_of(obj: Any) -> RustTokenizer | None:
    """The `tokenizers` object inside a fast tokenizer (or the object itself)."""
    for candidate in (obj, getattr(obj, "backend_tokenizer", None), getattr(obj, "_tokenizer", None)):
        if isinstance(candidate, RustTokenizer):
            return candidate
    return None


def looks_like_tokenizer(obj: Any) -> bool:
    """Whether an object can be used: a fast tokenizer, or one with a slow tokenizer's methods."""
    needed = ("tokenize", "convert_tokens_to_ids", "convert_ids_to_tokens", "get_vocab")
    return rust_of(obj) is not None or all(callable(getattr(obj, name, None)) for name in needed)


def load_object(obj: Any, backend: str) -> Tokenizer:
    """The tokenizer that an object stands for; the object itself is not changed."""
    name = str(getattr(obj, "name_or_path", "") or "") or type(obj).__name__
    template = chat_template_of({"chat_template": getattr(obj, "chat_template", None)})
    rust = rust_of(obj)
    if rust is not None:
        spec = orjson.loads(rust.to_str())  # a copy: the object stays as it is
        names = Names() if rust is obj else names_of_object(obj)
        merge_added_tokens(spec, {}, names.control, [])
        return build_hf(spec, name, names, template, getattr(obj, "add_bos_token", None), backend)
    if backend not in ("auto", "sentencepiece"):
        raise TokenizerError(
            f"backend={backend!r} cannot be used for the tokenizer object {name}, which is not built on the "
            "`tokenizers` package. Use backend='auto', or pass a directory with tokenizer.json."
        )
    return _load_slow(obj, name, template, backend)


def _load_slow(obj: Any, name: str, template: str | None, backend: str) -> Tokenizer:
    names = names_of_object(obj)
    tokens = _added_tokens(obj, names)
    special = {token.content: token.id for token in tokens if token.special}
    found = _by_sentencepiece(obj, tokens, special)
    if found is None and backend == "sentencepiece":
        raise TokenizerError(
            f"backend='sentencepiece' cannot be used for the tokenizer object {name}: it holds no SentencePiece model, "
            "or gives other ids than its model. Use backend='auto'."
        )
    encoder, reason = found or (SlowEncoder(obj, tokens, name), "the object brings no faster machinery with it")
    ids = {key: special.get(str(getattr(names, key))) for key in ("bos", "eos", "pad")}
    add_bos = getattr(obj, "add_bos_token", None)
    vocab = obj.get_vocab()
    digest = hashlib.blake2b(repr(sorted((i, str(t)) for t, i in vocab.items())).encode(), digest_size=16)
    digest.update(repr((type(obj).__name__, sorted((t.id, t.content, t.special) for t in tokens), template)).encode())
    return Tokenizer(
        name=name,
        encoder=encoder,
        backend=encoder.backend,
        reason=reason,
        special=special,
        special_in_template={token.content: token.id for token in tokens},
        bos_token=names.bos,
        eos_token=names.eos,
        pad_token=names.pad,
        unk_token=names.unk,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=ids["pad"],
        add_bos=add_bos if isinstance(add_bos, bool) else _sets_bos(obj, ids["bos"]),
        vocab_size=1 + max([*map(int, vocab.values()), *(token.id for token in tokens)]),
        chat_template=template,
        fingerprint=digest.hexdigest(),
        reserved=find_reserved(((t.content, t.id) for t in tokens), (names.bos, names.eos, names.pad, names.unk)),
    )


def _added_tokens(obj: Any, names: Names) -> list[AddedToken]:
    """The object's added tokens, and its named ones even where it does not count them among these."""
    listed: Mapping[int, Any] = getattr(obj, "added_tokens_decoder", None) or {}
    tokens = {
        str(getattr(token, "content", token)): (int(id_), bool(getattr(token, "special", True)), _stretches(token))
        for id_, token in listed.items()
    }
    for content in names.control:
        id_ = tokens[content][0] if content in tokens else obj.convert_tokens_to_ids(content)
        if isinstance(id_, int):
            tokens[content] = (id_, True, False)
    strict = [content for content, (_, special, stretches) in tokens.items() if stretches and not special]
    if strict:
        raise TokenizerError(
            f"the added token {strict[0]!r} of {type(obj).__name__} takes its surroundings with it, which is only "
            "supported for tokenizers with a tokenizer.json. Pass its directory."
        )
    return [AddedToken(content=c, id=i, special=special) for c, (i, special, _) in tokens.items()]


def _stretches(token: Any) -> bool:
    return any(getattr(token, flag, False) for flag in ("lstrip", "rstrip", "single_word"))


def _by_sentencepiece(
    obj: Any, tokens: Sequence[AddedToken], special: Mapping[str, int]
) -> tuple[TextEncoder, str] | None:
    """The SentencePiece model inside the object, if it gives the object's ids."""
    processor: Any = getattr(obj, "sp_model", None)
    if not callable(getattr(processor, "serialized_model_proto", None)):
        return None
    data = processor.serialized_model_proto()
    after_special = frozenset({Place.START, Place.AFTER_SPECIAL})
    legacy = read_model(data).dummy_prefix
    if not legacy:  # the object itself sets the prefix, before a whole text only
        data = with_prefix(data)
    model = read_model(data)
    if model.suffix:
        return None
    extra = [token for token in tokens if token.id >= len(model.pieces)]
    encoder = SentencePieceEncoder(data, model, special, after_special if legacy else frozenset({Place.START}), extra)
    for text in corpus():
        for place, tokenize in ((Place.START, _whole(obj)), (Place.AFTER_SPECIAL, obj._tokenize)):
            own = obj.convert_tokens_to_ids(tokenize(text)) if text else []
            if not np.array_equal(np.array(own, dtype=np.int64), encoder.encode((text,), place)[0]):
                return None
    return encoder, "the object holds a SentencePiece model, and a self-check agreed with its ids"


def _whole(obj: Any) -> Callable[[str], list[str]]:
    return lambda text: list(obj.tokenize(text, split_special_tokens=True))


def _sets_bos(obj: Any, bos: int | None) -> bool:
    build = getattr(obj, "build_inputs_with_special_tokens", None)
    return bos is not None and callable(build) and list(build([0]))[:1] == [bos]
