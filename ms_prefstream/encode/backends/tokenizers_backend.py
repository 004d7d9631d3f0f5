"""The `tokenizers` backend: loads a tokenizer.json as the `tokenizers` package reads it, the reference for the others.

Texts go through the package in batches, and control tokens in them are plain text.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer

from ms_prefstream.encode.backends.added import AddedTokens
from ms_prefstream.encode.backends.base import Form, Place, Tokenizer
from ms_prefstream.encode.backends.spelling import META, Spelling, byte_level_spelling, metaspace_spelling
from ms_prefstream.encode.backends.text_encoder import PlainTextEncoder
from ms_prefstream.encode.backends.tokenizer_json import (
    Leaks,
    Spec,
    added_tokens,
    bare,
    drop_leaking_merges,
    fingerprint,
    merge_added_tokens,
    number_added_tokens,
    pipeline_for_place,
    read_pipeline,
    special_tokens,
    vocabulary,
)
from ms_prefstream.encode.backends.tokenizer_source import Names, TokenizerSource, find_reserved, read_json
from ms_prefstream.encode.backends.unicode import check_size, check_unicode, nfc
from ms_prefstream.errors import TokenizerError
from ms_prefstream.sample import Ids


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A tokenizer.json, loaded, with the parts that another backend for the same file starts from.

    Attributes:
        tokenizer: The tokenizer with `encoder`.
        encoder: Its encoder.
        spec: The parsed file, its added tokens complete and numbered.
        rust: The package's tokenizer made from it.
    """

    tokenizer: Tokenizer
    encoder: TokenizersEncoder
    spec: Spec
    rust: RustTokenizer


def load(source: TokenizerSource) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, or of an object that is built on one."""
    return read_reference(source).tokenizer


def read_reference(source: TokenizerSource) -> Reference:
    """Returns the tokenizer as the `tokenizers` package has it; a source is read once."""
    if "reference" not in source.shared:
        source.shared["reference"] = _read(source)
    reference: Reference = source.shared["reference"]
    return reference


def _read(source: TokenizerSource) -> Reference:
    given: pathlib.Path | Spec = source.forms[Form.JSON]
    spec = given if isinstance(given, dict) else read_json(given)
    model = spec.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise TokenizerError(
            f"{source.name if given is spec else given} holds no tokenizer: expected an object with 'model' and its "
            f"'vocab', found {', '.join(map(repr, list(spec)[:8])) or 'an empty object'}. Pass the tokenizer.json "
            "that the `tokenizers` package wrote."
        )
    names = source.names
    others = [content for content, _ in sorted(source.legacy_added.items(), key=lambda item: item[1])]
    merge_added_tokens(spec, source.added_tokens_decoder, names.control, others)
    pre = spec.get("pre_tokenizer")
    if source.has_config and isinstance(pre, dict) and pre.get("type") == "ByteLevel":
        # Where it stands alone, transformers takes this from the configuration, or False.
        pre["add_prefix_space"] = bool(source.config.get("add_prefix_space", False))
    drop_leaking_merges(spec)
    try:
        rust = RustTokenizer.from_str(orjson.dumps(spec).decode())
    except Exception as error:  # the package raises nothing more precise
        raise TokenizerError(
            f"{source.name}: the `tokenizers` package cannot read this tokenizer.json ({error}). It was perhaps "
            "written by a newer version: upgrade tokenizers, or save the tokenizer again with the version installed "
            "here."
        ) from None
    number_added_tokens(spec, rust)
    added = {token.content: token.id for token in added_tokens(spec)}
    bos, add_bos = names.tokens["bos_token"], source.config.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = bos is not None and rust.encode("a").ids[:1] == [added.get(bos)]
    encoder = TokenizersEncoder(spec, rust)
    tokenizer = Tokenizer(
        name=source.name,
        encoder=encoder,
        backend="tokenizers",
        reason="the tokenizer is a tokenizer.json",
        special=special_tokens(spec),
        special_in_template=added,
        **names.tokens,
        add_bos=add_bos,
        vocab_size=1 + max([*vocabulary(spec).values(), *added.values()]),
        chat_template=source.chat_template,
        fingerprint=fingerprint(spec, source.chat_template),
        reserved_id=_reserved(spec, added, names, encoder),
        notes=_moved_ids(source.added_tokens_decoder, added),
    )
    return Reference(tokenizer=tokenizer, encoder=encoder, spec=spec, rust=rust)


def _reserved(spec: Spec, added: Mapping[str, int], names: Names, encoder: TokenizersEncoder) -> int | None:
    """Returns a reserved token: an added one, or a piece of the vocabulary that its own text does not give."""
    listed = find_reserved(added.items(), names)
    if listed is not None:
        return listed
    pieces = {p: i for p, i in vocabulary(spec).items() if p[:1] in "<[" and p[-1:] in ">]" and len(p) > 6}
    texts = encoder.encode(list(pieces))
    return find_reserved(
        (piece for piece, ids in zip(pieces.items(), texts, strict=True) if piece[1] not in ids), names
    )


def _moved_ids(declared: Mapping[int, Mapping[str, Any]], added: Mapping[str, int]) -> tuple[str, ...]:
    """Returns a note if added tokens have other ids than tokenizer_config.json declares."""
    contents = {id_: str(token["content"]) for id_, token in sorted(declared.items())}
    moved = [(content, id_) for id_, content in contents.items() if added.get(content) != id_]
    if not moved:
        return ()
    content, id_ = moved[-1]
    return (
        f"tokenizer_config.json gives {content!r} the id {id_}, but tokenizer.json has no such token, so it got "
        f"{added.get(content)}, as in transformers ({len(moved)} tokens in all); "
        "check that the model has that many embeddings",
    )


class TokenizersEncoder(PlainTextEncoder):
    """Text to ids by the `tokenizers` package.

    Args:
        spec: The parsed tokenizer.json, its added tokens as the package numbers them.
        rust: The package's tokenizer made from it. The encoder keeps and changes it: pass one without other owners.

    Attributes:
        pipeline: The steps before the model, as far as they are understood.
    """

    backend = "tokenizers"

    def __init__(self, spec: Spec, rust: RustTokenizer) -> None:
        self.pipeline = read_pipeline(spec)
        self.nfc = self.pipeline.nfc
        self.added = AddedTokens(added_tokens(spec), nfc if self.nfc else None)
        self._by_place = _tokenizers_by_place(spec, rust)
        self.spelling = _spelling(spec, self.pipeline.kind)
        self._leaks: Leaks | None = None
        leaks = Leaks(
            special_tokens(spec),
            lambda text: self.plain_ids(text, Place.START),
            lambda text: [token.id for token in rust.model.tokenize(text)],
        )
        if leaks.helpless:
            names = [content for content, id_ in special_tokens(spec).items() if id_ in leaks.helpless]
            raise TokenizerError(
                f"the tokenizer turns the plain text of its control tokens {names} into their ids and has no smaller "
                "pieces to write them with. Use a tokenizer whose vocabulary can spell its control tokens."
            )
        self._leaks = leaks if leaks else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a pickled encoder: the package leaves this switch out of its own pickles."""
        self.__dict__.update(state)
        for rust in self._by_place.values():
            rust.encode_special_tokens = True

    @property
    def leaky(self) -> bool:
        """Whether plain text gives control tokens, which are then spelled out."""
        return self._leaks is not None

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[Ids]:
        """Returns the ids of each text; see `TextEncoder`."""
        check_size(texts)
        if self._splits(place) and self.added.any:
            return [self.ids_by_parts(text, place) for text in texts]
        return self._batch(texts, place)

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL) -> NDArray[np.int64]:
        """Returns where each token begins; see `TextEncoder`."""
        if self.spelling is None and not self._splits(place):
            check_size((text,))
            return self.offset_starts(text, place)
        return super().starts(text, place)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids, control tokens included."""
        if self.spelling is not None:
            return self.spelling.decode(ids)
        text: str = self._by_place[Place.START].decode(list(ids), skip_special_tokens=False)
        return text

    def plain_ids(self, text: str, place: Place) -> Ids:
        return self._batch((text,), place)[0]

    def _splits(self, place: Place) -> bool:
        """Returns whether only the part before the first added token stands at this place for the package."""
        return place is Place.CONTINUATION and self.pipeline.varies

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

    def offset_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        """Returns the package's own offsets; a token that begins before the end of the last one has -1."""
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


def _tokenizers_by_place(spec: Spec, rust: RustTokenizer) -> dict[Place, RustTokenizer]:
    """Returns the tokenizer for each place: the given one, made plain, and variants where the place matters.

    Args:
        spec: The parsed tokenizer.json.
        rust: The tokenizer made from it; its post-processor, padding and truncation are taken off.
    """
    _make_plain(rust)
    found = {Place.START: rust}
    steps = {Place.START: pipeline_for_place(spec, Place.START)}
    for place in (Place.AFTER_SPECIAL, Place.CONTINUATION):
        steps[place] = pipeline_for_place(spec, place)
        same = next((other for other in found if steps[other] == steps[place]), None)
        found[place] = found[same] if same is not None else _variant(rust, *steps[place])
    return found


def _make_plain(rust: RustTokenizer) -> None:
    """Make special tokens in text plain text, and switch off post-processing, padding and truncation."""
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
        whole = json.loads(rust.to_str())
        variant = RustTokenizer.from_str(json.dumps({**whole, "normalizer": norm, "pre_tokenizer": pre}))
    variant.decoder = rust.decoder
    _make_plain(variant)
    return variant


def _spelling(spec: Spec, kind: str | None) -> Spelling | None:
    """Returns what the ids write, where that is known."""
    if kind is None:
        return None
    vocab = vocabulary(spec)
    added = {token.content: token.id for token in added_tokens(spec)}
    borders, prefix = frozenset(added.values()), read_pipeline(spec).prefix
    if kind == "bytes":
        return byte_level_spelling(vocab, added, prefix, borders)
    model = spec["model"]
    unk = model.get("unk_id") if model.get("type") == "Unigram" else vocab.get(model.get("unk_token"))
    unknown = {piece: id_ for piece, id_ in vocab.items() if id_ == unk}
    known = {piece: id_ for piece, id_ in vocab.items() if id_ != unk}
    return metaspace_spelling(known, {**unknown, **added}, prefix, borders)
