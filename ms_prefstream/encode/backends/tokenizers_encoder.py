"""The encoder of the `tokenizers` package, the reference for the others, and a reference that is loaded when needed.

Texts go through the package in batches, and control tokens in them are plain text.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer

from ms_prefstream.encode.backends.added import AddedTokens
from ms_prefstream.encode.backends.base import Place, is_panic
from ms_prefstream.encode.backends.spelling import (
    META,
    Spelling,
    build_spelling,
    from_byte_alphabet,
    metaspace_spelling,
)
from ms_prefstream.encode.backends.text_encoder import PlainTextEncoder
from ms_prefstream.encode.backends.tokenizer_json import (
    Pipeline,
    Spec,
    added_tokens,
    bare,
    is_unigram,
    number_added_tokens,
    pipeline_for_place,
    read_pipeline,
    special_tokens,
    unknown_id,
    vocabulary,
)
from ms_prefstream.encode.backends.unicode import check_size, check_unicode, nfc
from ms_prefstream.errors import Reason, RowError, TokenizerError
from ms_prefstream.sample import Ids


@contextlib.contextmanager
def _package_errors() -> Iterator[None]:
    """Raises what the package raises about a text, a panic or an `Exception` that is nothing more precise.

    Raises:
        RowError: bad_type: the vocabulary has neither the text nor an unknown token.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and not is_panic(error):
            raise
        raise RowError(
            Reason.BAD_TYPE,
            f"the `tokenizers` package finds no ids for a text with this tokenizer ({error})",
            "Correct the row, or pass a tokenizer whose vocabulary has its unknown token",
        ) from None


class TokenizersEncoder(PlainTextEncoder):
    """Text to ids by the `tokenizers` package.

    Args:
        spec: The parsed tokenizer.json, its added tokens as the package numbers them.
        rust: The package's tokenizer made from it. The encoder keeps and changes it: pass one without other owners.

    Attributes:
        pipeline: The steps before the model, as far as they are understood.
        leaks: Control ids that plain text gives, and the ids that replace each of them.
        unknown: The unknown token's id and content, if that is a control token. Its id stands for what the vocabulary
            lacks; only where a text holds its content it is a leak.
        finds_changed: Whether added tokens are searched in a text that was normalised otherwise than by NFC.
    """

    backend = "tokenizers"

    def __init__(self, spec: Spec, rust: RustTokenizer) -> None:
        self.pipeline = read_pipeline(spec)
        self.nfc = self.pipeline.nfc
        self.added = added_in_text(spec, self.pipeline)
        # The package searches a normalised text for what a normaliser other than NFC makes of such a token.
        own = [token for token in added_tokens(spec) if token.normalized and not token.special]
        self.finds_changed = bool(own) and not self.nfc and spec.get("normalizer") is not None
        self._by_place = _tokenizers_by_place(spec, rust)
        self.spelling = spelling_of(spec, self.pipeline)
        control = special_tokens(spec)
        unknown, names = unknown_id(spec), {id_: content for content, id_ in control.items()}
        self.unknown = (-1, "") if unknown is None or unknown not in names else (unknown, names[unknown])
        self._unigram = is_unigram(spec)
        self._normalizes = spec.get("normalizer") is not None
        self.leaks: dict[int, list[int]] = {}
        self.leaks = self._find_leaks(control, rust)
        # The first version wrote the unknown token's content for every unknown character of such a tokenizer.
        self.knew_no_unknown = self.unknown[0] in self.leaks

    @property
    def rust(self) -> RustTokenizer:
        """The package's tokenizer for the start of a sequence."""
        return self._by_place[Place.START]

    def _find_leaks(self, control: Mapping[str, int], rust: RustTokenizer) -> dict[int, list[int]]:
        """Returns the control ids that plain text gives, each with the shortest pieces that write the same text."""
        names = {id_: content for content, id_ in control.items()}
        leaks: dict[int, list[int]] = {}
        for leaked in {i for content in control for i in self.plain_ids(content, Place.START).tolist() if i in names}:
            content = names[leaked]
            halves = ((content[:at], content[at:]) for at in range(1, len(content)))
            cuts = ([token.id for half in two for token in rust.model.tokenize(half)] for two in halves)
            with _package_errors():
                leaks[leaked] = min((cut for cut in cuts if names.keys().isdisjoint(cut)), key=len, default=[])
        if leaks.get(self.unknown[0]) == []:
            del leaks[self.unknown[0]]  # its content has characters that the vocabulary lacks
        helpless = [content for content, id_ in control.items() if leaks.get(id_) == []]
        if helpless:
            raise TokenizerError(
                f"the tokenizer turns the plain text of its control tokens {helpless} into their ids and has no "
                "smaller pieces to write them with. Use a tokenizer whose vocabulary can spell its control tokens."
            )
        return leaks

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[Ids]:
        """Returns the ids of each text; see `TextEncoder`."""
        check_size(texts)
        if self._splits(place) and self.added.any:
            return [self.ids_by_parts(text, place) for text in texts]
        return self._batch(texts, place)

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL, dropped_after: bool = False) -> NDArray[np.int64]:
        """Returns where each token begins; see `TextEncoder`."""
        if (self.spelling is None or self.finds_changed) and not self._splits(place):
            check_size((text,))
            return self.offset_starts(text, place, dropped_after)
        return super().starts(text, place, dropped_after)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids, control tokens included."""
        if self.spelling is not None:
            return self.spelling.decode(ids)
        text: str = self._by_place[Place.START].decode(list(ids), skip_special_tokens=False)
        return text

    def piece_id(self, piece: str) -> int | None:
        found: int | None = self._by_place[Place.START].token_to_id(piece)
        return found

    def plain_ids(self, text: str, place: Place) -> Ids:
        return self._batch((text,), place)[0]

    def _splits(self, place: Place) -> bool:
        """Returns whether only the part before the first added token stands at this place for the package."""
        return place is Place.CONTINUATION and self.pipeline.varies

    def _batch(self, texts: Sequence[str], place: Place) -> list[Ids]:
        encodings = self._encodings(texts, place, offsets=False)
        if not self.leaks:
            return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        ids = [
            [id_ for ids in self._plain(encoding, text, place) for id_ in ids]
            for encoding, text in zip(encodings, texts, strict=True)
        ]
        return [np.array(row, dtype=np.int32) for row in ids]

    def _plain(self, encoding: Any, text: str, place: Place) -> list[Sequence[int]]:
        """Returns the ids that stand for each token: itself, or what replaces a control token that leaked."""
        found: list[Sequence[int]] = [self.leaks.get(id_, (id_,)) for id_ in encoding.ids]
        unknown, content = self.unknown
        if unknown not in self.leaks or unknown not in encoding.ids:
            return found
        written = [""] * len(found)
        if content in text or self._normalizes:
            whole = self._encodings((text,), place, offsets=True)[0]
            # A Unigram model says what it did not know, also of a text that was normalised.
            written = whole.tokens if self._unigram else [text[begin:end] for begin, end in whole.offsets]
        for at, id_ in enumerate(encoding.ids):
            if id_ == unknown and written[at] != content:
                found[at] = (unknown,)
        return found

    def _encodings(self, texts: Sequence[str], place: Place, offsets: bool) -> list[Any]:
        rust = self._by_place[place]
        call = rust.encode_batch if offsets else rust.encode_batch_fast
        try:
            with _package_errors():
                found: list[Any] = call(list(texts), add_special_tokens=False)
        except TypeError:  # what the package raises for lone surrogates
            check_unicode(texts)
            raise
        return found

    def offset_starts(self, text: str, place: Place, dropped_after: bool = False) -> NDArray[np.int64]:
        """Returns the package's own offsets; a token that begins before the end of the last one has -1."""
        encoding = self._encodings((text,), place, offsets=True)[0]
        begins: list[int] = []
        reached = 0
        for ids, (begin, end) in zip(self._plain(encoding, text, place), encoding.offsets, strict=True):
            only_prefix = not begins and encoding.tokens[0] == META and text[0] not in (" ", META)
            own = reached if dropped_after and begin > reached else begin
            begins.append(0 if not begins else own if begin >= reached else -1)
            begins += [-1] * (len(ids) - 1)
            reached = 0 if only_prefix else max(reached, end)
        return np.array([*begins, reached if dropped_after else len(text)], dtype=np.int64)


class LazyReference:
    """The reference encoder of a tokenizer.json, loaded when it is first needed; it is pickled as the file's text.

    Args:
        spec: The parsed tokenizer.json, its added tokens as the package numbers them.
        loaded: The encoder, where it is loaded already.
    """

    backend = "tokenizers"

    def __init__(self, spec: Spec, loaded: TokenizersEncoder | None = None) -> None:
        unused = dict.fromkeys(("post_processor", "padding", "truncation"))
        self._text = np.frombuffer(orjson.dumps({**spec, **unused}), np.uint8)  # an array: workers share its memory
        self._loaded = loaded
        self._locks: dict[int, threading.Lock] = {}  # by process: a lock that is held during a fork stays held

    def __getstate__(self) -> dict[str, Any]:
        return {"_text": self._text, "_loaded": None, "_locks": {}}

    def spec(self) -> Spec:
        """Returns the parsed tokenizer.json without post-processor, padding and truncation."""
        spec: Spec = orjson.loads(self._text.data)
        return spec

    def get(self) -> TokenizersEncoder:
        """Returns the encoder; the first call loads it.

        Raises:
            TokenizerError: The package numbers the added tokens otherwise than the text does.
        """
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            if self._loaded is None:
                spec = self.spec()
                stated = spec["added_tokens"]
                rust = RustTokenizer.from_buffer(bytes(self._text))
                number_added_tokens(spec, rust)
                if spec["added_tokens"] != stated:
                    raise TokenizerError(
                        "the `tokenizers` package numbers the added tokens of this tokenizer otherwise than it did "
                        "when its verdict was stored. Delete the folder ms_prefstream in ~/.cache (XDG_CACHE_HOME)."
                    )
                self._loaded = TokenizersEncoder(spec, rust)
            return self._loaded

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[Ids]:
        return self.get().encode(texts, place)

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL, dropped_after: bool = False) -> NDArray[np.int64]:
        return self.get().starts(text, place, dropped_after)

    def decode(self, ids: Sequence[int]) -> str:
        return self.get().decode(ids)

    def piece_id(self, piece: str) -> int | None:
        return self.get().piece_id(piece)

    def sure_part(self, text: str, place: Place, *, begins: bool, ends: bool) -> tuple[int, int]:
        return self.get().sure_part(text, place, begins=begins, ends=ends)


def _tokenizers_by_place(spec: Spec, rust: RustTokenizer) -> dict[Place, RustTokenizer]:
    """Returns the tokenizer for each place: the given one, made plain, and variants where the place matters."""
    _make_plain(rust)
    found = {Place.START: rust}
    steps = {Place.START: pipeline_for_place(spec, Place.START)}
    for place in (Place.AFTER_SPECIAL, Place.CONTINUATION):
        steps[place] = pipeline_for_place(spec, place)
        same = next((other for other in found if steps[other] == steps[place]), None)
        found[place] = found[same] if same is not None else _variant(rust, *steps[place])
    return found


def _make_plain(rust: RustTokenizer) -> None:
    """Makes special tokens in text plain text, and switches off post-processing, padding and truncation."""
    rust.post_processor = None
    rust.no_padding()
    rust.no_truncation()
    rust.encode_special_tokens = True


def _variant(rust: RustTokenizer, norm: Any, pre: Any) -> RustTokenizer:
    """Returns the tokenizer with another normaliser and pre-tokeniser."""
    steps = bare(norm, pre)
    variant = RustTokenizer(rust.model)  # shares the model: the vocabulary is in memory once
    if norm is not None:
        variant.normalizer = steps.normalizer
    if pre is not None:
        variant.pre_tokenizer = steps.pre_tokenizer
    variant.add_tokens([token for _, token in sorted(rust.get_added_tokens_decoder().items())])
    if variant.get_added_tokens_decoder().keys() != rust.get_added_tokens_decoder().keys():
        whole = orjson.loads(rust.to_str())
        variant = RustTokenizer.from_str(orjson.dumps({**whole, "normalizer": norm, "pre_tokenizer": pre}).decode())
    variant.decoder = rust.decoder
    _make_plain(variant)
    return variant


def added_in_text(spec: Spec, pipeline: Pipeline) -> AddedTokens:
    """Returns the search for the added tokens that are recognised in plain text."""
    return AddedTokens(added_tokens(spec), nfc if pipeline.nfc else None)


def spelling_of(spec: Spec, pipeline: Pipeline) -> Spelling | None:
    """Returns what the ids write, where that is known."""
    if pipeline.kind is None:
        return None
    vocab = vocabulary(spec)
    added = {token.content: token.id for token in added_tokens(spec)}
    borders, prefix = frozenset(added.values()), pipeline.prefix
    if pipeline.kind == "bytes":
        written = ((b"", -1) if token is None else (token, len(token)) for token in map(from_byte_alphabet, vocab))
        return build_spelling(vocab.values(), written, added, prefix, borders)
    unk = unknown_id(spec)
    unknown = {piece: id_ for piece, id_ in vocab.items() if id_ == unk}
    known = {piece: id_ for piece, id_ in vocab.items() if id_ != unk}
    return metaspace_spelling(known, {**unknown, **added}, prefix, borders)
