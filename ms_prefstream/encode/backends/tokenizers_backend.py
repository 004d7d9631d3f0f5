"""The reference: text through the `tokenizers` package, in batches, control tokens taken as plain text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer

from ms_prefstream.encode.backends.added import AddedTokens
from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.spelling import (
    META,
    Spelling,
    byte_level_spelling,
    metaspace_spelling,
    spelled_starts,
    starts_by_parts,
)
from ms_prefstream.encode.backends.tokenizer_json import (
    Leaks,
    Spec,
    added_tokens,
    bare,
    pipeline_for_place,
    read_pipeline,
    special_tokens,
    vocabulary,
)
from ms_prefstream.encode.backends.unicode import check_size, check_unicode, nfc
from ms_prefstream.errors import TokenizerError


def tokenizers_by_place(spec: Spec, rust: RustTokenizer) -> dict[Place, RustTokenizer]:
    """The tokenizer for each place: the given one, made plain, and variants where the place matters.

    Args:
        spec: The parsed tokenizer.json.
        rust: The tokenizer made from it; its post-processor, padding and truncation are taken off.
    """
    _make_plain(rust)
    found = {Place.START: rust}
    told = {Place.START: pipeline_for_place(spec, Place.START)}
    for place in (Place.AFTER_SPECIAL, Place.CONTINUATION):
        told[place] = pipeline_for_place(spec, place)
        same = next((other for other in found if told[other] == told[place]), None)
        found[place] = found[same] if same is not None else _variant(rust, *told[place])
    return found


def _make_plain(rust: RustTokenizer) -> None:
    """Special tokens in text are text, nothing is added, cut or padded, and offsets are not trimmed."""
    rust.post_processor = None
    rust.no_padding()
    rust.no_truncation()
    rust.encode_special_tokens = True


def _variant(rust: RustTokenizer, norm: Any, pre: Any) -> RustTokenizer:
    steps = bare(norm, pre)
    variant = RustTokenizer(rust.model)  # shares the model: the vocabulary is in memory once
    if norm is not None:
        variant.normalizer = steps.normalizer
    if pre is not None:
        variant.pre_tokenizer = steps.pre_tokenizer
    variant.add_tokens([token for _, token in sorted(rust.get_added_tokens_decoder().items())])
    if variant.get_added_tokens_decoder().keys() != rust.get_added_tokens_decoder().keys():
        whole = json.loads(rust.to_str())
        variant = RustTokenizer.from_str(json.dumps({**whole, "normalizer": norm, "pre_tokenizer": pre}))
    variant.decoder = rust.decoder
    _make_plain(variant)
    return variant


Ids = NDArray[np.int32]


class TokenizersEncoder:
    """Text to ids by the `tokenizers` package.

    Args:
        spec: The parsed tokenizer.json, its added tokens as the package numbers them.
        rust: The package's tokenizer made from it. It is kept and changed: pass one that nobody else holds.

    Attributes:
        pipeline: What is known about the steps before the model.
        added: Finds the added tokens that are recognised in text.
        spelling: What the ids write, where that is known.
    """

    backend = "tokenizers"

    def __init__(self, spec: Spec, rust: RustTokenizer) -> None:
        self.pipeline = read_pipeline(spec)
        self.added = AddedTokens(added_tokens(spec), nfc if self.pipeline.nfc else None)
        self._by_place = tokenizers_by_place(spec, rust)
        self.spelling = _spelling(spec, self.pipeline.kind)
        self._leaks: Leaks | None = None
        leaks = Leaks(special_tokens(spec), self._first, lambda text: [token.id for token in rust.model.tokenize(text)])
        if leaks.helpless:
            names = [content for content, id_ in special_tokens(spec).items() if id_ in leaks.helpless]
            raise TokenizerError(
                f"the tokenizer turns the plain text of its control tokens {names} into their ids and has no smaller "
                "pieces to write them with. Use a tokenizer whose vocabulary can spell its control tokens."
            )
        self._leaks = leaks if leaks else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After a journey to another process: the package does not send this switch along."""
        self.__dict__.update(state)
        for rust in self._by_place.values():
            rust.encode_special_tokens = True

    @property
    def leaky(self) -> bool:
        """Whether plain text reaches control tokens, which are then spelled out."""
        return self._leaks is not None

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[Ids]:
        """Ids of each text; see `TextEncoder`."""
        check_size(texts)
        if place is Place.CONTINUATION and self.pipeline.varies and self.added.any:
            return [self._continued(text) for text in texts]
        return self._batch(texts, place)

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL) -> NDArray[np.int64]:
        """Where each token begins; see `TextEncoder`."""
        check_size((text,))
        if self.spelling is None and not (place is Place.CONTINUATION and self.pipeline.varies):
            return self._offset_starts(text, place)
        return starts_by_parts(text, place, self.added, self._plain_starts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens included."""
        if self.spelling is not None:
            return self.spelling.decode(ids)
        text: str = self._by_place[Place.START].decode(list(ids), skip_special_tokens=False)
        return text

    def _first(self, text: str) -> Ids:
        return self._batch((text,), Place.START)[0]

    def _batch(self, texts: Sequence[str], place: Place) -> list[Ids]:
        encodings = self._encodings(texts, place, offsets=False)
        arrays = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        return arrays if self._leaks is None else list(map(self._leaks.mend, arrays))

    def _encodings(self, texts: Sequence[str], place: Place, offsets: bool) -> list[Any]:
        rust = self._by_place[place]
        call = rust.encode_batch if offsets else rust.encode_batch_fast
        try:
            found: list[Any] = call(list(texts), add_special_tokens=False)
        except TypeError:  # what the package raises for lone surrogates
            check_unicode(texts)
            raise
        return found

    def _continued(self, text: str) -> Ids:
        """A text in which only the part before the first added token continues what stood before."""
        if not self.added.may_occur(text):
            return self._batch((text,), Place.CONTINUATION)[0]
        arrays = [
            self._batch((part.text,), Place.AFTER_SPECIAL if at else Place.CONTINUATION)[0]
            if part.id is None
            else np.array([part.id], dtype=np.int32)
            for at, part in enumerate(self.added.split(text))
        ]
        return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)

    def _plain_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        """Starts in a text without added tokens."""
        if self.spelling is not None:
            ids = self._batch((text,), place)[0]
            starts = spelled_starts(text, place, ids, self.spelling, self.pipeline.nfc)
            if starts is not None:
                return starts
        return self._offset_starts(text, place)

    def _offset_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        """Starts from the package's own offsets: a token that begins before the end of the last one has none."""
        encoding = self._encodings((text,), place, offsets=True)[0]
        begins: list[int] = []
        reached = 0
        for at, (begin, end) in enumerate(encoding.offsets):
            begins.append(0 if at == 0 else begin if begin >= reached else -1)
            only_prefix = at == 0 and encoding.tokens[0] == META and text[0] not in (" ", META)
            reached = 0 if only_prefix else max(reached, end)
        if self._leaks is not None:
            begins = self._leaks.mend_starts(np.array(encoding.ids, dtype=np.int32), begins)
        return np.array([*begins, len(text)], dtype=np.int64)


def _spelling(spec: Spec, kind: str | None) -> Spelling | None:
    if kind is None:
        return None
    vocab = vocabulary(spec)
    added = {token.content: token.id for token in added_tokens(spec)}
    borders, prefix = frozenset(added.values()), read_pipeline(spec).prefix
    if kind == "bytes":
        return byte_level_spelling(vocab, added, prefix, borders)
    unknown = spec["model"].get("unk_token")
    if spec["model"].get("type") == "Unigram":
        index = spec["model"].get("unk_id")
    else:
        index = vocab.get(unknown) if unknown is not None else None
    return metaspace_spelling(vocab, added, prefix, borders, index)
