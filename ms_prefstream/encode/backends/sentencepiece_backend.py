"""The `sentencepiece` backend: SentencePiece models, with the added tokens of the configuration beside them."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from ms_prefstream.encode.backends.added import FLAGS, AddedToken, AddedTokens, stretching
from ms_prefstream.encode.backends.base import Form, Place, Tokenizer
from ms_prefstream.encode.backends.sentencepiece_proto import (
    PieceType,
    SentencePieceModel,
    as_control,
    read_model,
    read_offsets,
    with_dummy_prefix,
)
from ms_prefstream.encode.backends.spelling import META, Prefix, metaspace_spelling
from ms_prefstream.encode.backends.text_encoder import PlainTextEncoder
from ms_prefstream.encode.backends.tokenizer_source import Names, TokenizerSource, find_reserved, read_bytes
from ms_prefstream.encode.backends.unicode import check_unicode
from ms_prefstream.errors import TokenizerError, printable
from ms_prefstream.sample import Ids

_NUMPY = hasattr(sentencepiece.SentencePieceProcessor, "EncodeAsNumpy")  # since 0.2.2: arrays without a list between
_RENAMED = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)


def load(source: TokenizerSource) -> Tokenizer:
    """Returns the tokenizer of a SentencePiece model with the configuration beside it."""
    path = source.forms[Form.MODEL]
    data = read_bytes(path)
    model = _parse(data, path)
    tokens = _added_tokens(model, source)
    known = {piece: id_ for id_, (piece, _) in enumerate(model.pieces)} | {t.content: t.id for t in tokens.values()}
    names = _names(sentencepiece.SentencePieceProcessor(model_proto=data), model, source.names, known)
    for content in (*names.control, *source.names.control):
        if content in known:
            token = tokens.get(content) or AddedToken(content=content, id=known[content], special=True)
            tokens[content] = dataclasses.replace(token, id=known[content], special=True)
    special = {t.content: t.id for t in tokens.values() if t.special}
    extra = [t for t in tokens.values() if t.id >= len(model.pieces) or model.pieces[t.id][0] != t.content]
    ids = {t.content: t.id for t in tokens.values()}
    add_bos = source.config.get("add_bos_token")
    digest = hashlib.blake2b(data, digest_size=16)
    digest.update(repr((sorted((t.id, t.content, t.special) for t in tokens.values()), source.chat_template)).encode())
    flagged = stretching(token for token in tokens.values() if token.special)
    if flagged:
        digest.update(b"2")  # the first version gave other ids, see `tokenizer_json.fingerprint`
    return Tokenizer(
        name=source.name,
        encoder=SentencePieceEncoder(data, model, special, extra=extra),
        backend="sentencepiece",
        reason="the tokenizer is a SentencePiece model",
        special=special,
        flagged=flagged,
        special_in_template=ids,
        **names.tokens,
        add_bos=add_bos if isinstance(add_bos, bool) else names.tokens["bos_token"] is not None,
        vocab_size=max(len(model.pieces), 1 + max(known.values())),
        chat_template=source.chat_template,
        fingerprint=digest.hexdigest(),
        reserved=find_reserved(ids.items(), names),
    )


class SentencePieceEncoder(PlainTextEncoder):
    """Text to ids by `sentencepiece`.

    Args:
        data: The model file's content.
        model: The same, parsed.
        control: Control tokens, content to id.
        prefixed: Places with a dummy prefix, for models that have one.
        extra: Added tokens beyond the model's own pieces, or at the ids of pieces that they replace.
    """

    backend = "sentencepiece"

    def __init__(
        self,
        data: bytes,
        model: SentencePieceModel,
        control: Mapping[str, int],
        prefixed: frozenset[Place] = frozenset({Place.START, Place.AFTER_SPECIAL}),
        extra: Sequence[AddedToken] = (),
    ) -> None:
        self._model = model
        self._made_of = (data, model, control, prefixed, extra)
        self.added = AddedTokens(extra)
        replaced = {token.id for token in extra}
        defined = [
            piece
            for id_, (piece, kind) in enumerate(model.pieces)
            if id_ in replaced or (kind is PieceType.USER_DEFINED and piece in control)
        ]
        shown = as_control(data, frozenset(defined)) if defined else data
        self._as_is = sentencepiece.SentencePieceProcessor(model_proto=shown)
        self._bare = sentencepiece.SentencePieceProcessor(model_proto=with_dummy_prefix(shown, False))
        prefix = Prefix(mark=META, places=prefixed) if model.dummy_prefix and prefixed else None
        self._places = prefixed if model.dummy_prefix else frozenset(Place)
        vocab = {piece: id_ for id_, (piece, kind) in enumerate(model.pieces) if kind is not PieceType.UNKNOWN}
        unknown = {piece: id_ for id_, (piece, kind) in enumerate(model.pieces) if kind is PieceType.UNKNOWN}
        added = {**control, **{token.content: token.id for token in extra}}
        self.spelling = metaspace_spelling(vocab, {**added, **unknown}, prefix, frozenset(added.values()))

    def __reduce__(self) -> tuple[Any, ...]:
        return SentencePieceEncoder, self._made_of

    def _processor(self, text: str, place: Place) -> Any:
        """Returns the processor for a text; a model that trims spaces keeps the one between consecutive texts."""
        if place in self._places or (self._model.trims and self._model.dummy_prefix and text[:1].isspace()):
            return self._as_is
        return self._bare

    def plain_ids(self, text: str, place: Place) -> Ids:
        processor = self._processor(text, place)
        try:
            if _NUMPY:
                found: Ids = processor.encode(text, out_type="numpy")
                return found
            return np.array(processor.encode(text, out_type=int), dtype=np.int32)
        except (RuntimeError, TypeError, UnicodeEncodeError):  # the error for lone surrogates depends on the version
            check_unicode((text,))
            raise

    def piece_id(self, piece: str) -> int | None:
        return next((id_ for id_, (name, _) in enumerate(self._model.pieces) if name == piece), None)

    def plain_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        check_unicode((text,))
        return super().plain_starts(text, place) if self._model.plain else self.offset_starts(text, place)

    def offset_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        """Returns the starts that the library tracks through its normalisation."""
        ids, begins, ends = read_offsets(self._processor(text, place).encode(text, out_type="serialized_proto"))
        raw = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        number = np.append(np.cumsum((raw & 0xC0) != 0x80) - 1, len(text))  # byte offset -> character
        starts: list[int] = []
        open_at = -1  # the beginning of a unit that the pieces so far have not finished
        for at, (id_, begin, end) in enumerate(zip(ids, begins, ends, strict=True)):
            starts.append(-1 if begin == open_at else int(number[begin]))
            only_prefix = at == 0 and self._model.pieces[id_][0] == META and begin == end
            open_at = begin if begin == end and not only_prefix else -1
        if starts:
            starts[0] = 0  # spaces that were trimmed belong to the first token
        return np.array([*starts, len(text)], dtype=np.int64)


def _parse(data: bytes, path: pathlib.Path) -> SentencePieceModel:
    """Returns the parsed model file; `sentencepiece` checks that it is one."""
    try:
        sentencepiece.SentencePieceProcessor(model_proto=data or b"\0")  # it takes b"" for no model
    except (RuntimeError, UnicodeDecodeError):  # the library quotes pieces as they are
        hint = "It looks like a list of tiktoken ranks: pass the directory with tokenizer.json instead" if (
            b"==" in data[:64]
        ) else "Pass a SentencePiece .model, or a directory with tokenizer.json"  # fmt: skip
        raise TokenizerError(f"{path} is not a SentencePiece model. {hint}.") from None
    try:
        model = read_model(data)
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged: {printable(str(error))}. Copy or download it again.") from None
    if model.suffix:
        raise TokenizerError(
            f"{path} sets spaces after words (treat_whitespace_as_suffix), which is not supported. "
            "Pass a directory with tokenizer.json."
        )
    return model


def _names(processor: Any, model: SentencePieceModel, given: Names, known: Mapping[str, int]) -> Names:
    """Returns bos, eos, pad and unk as the configuration names them, else as the model itself numbers them."""
    ids = {key: int(getattr(processor, key.replace("token", "id"))()) for key in given.tokens}
    own = {key: model.pieces[id_][0] if id_ >= 0 else None for key, id_ in ids.items()}
    return Names(tokens={key: given.tokens[key] if given.tokens[key] in known else own[key] for key in own})


def _added_tokens(model: SentencePieceModel, source: TokenizerSource) -> dict[str, AddedToken]:
    """Returns the symbols of the model, with the flags of the configuration, then the tokens that it adds."""
    declared = {content: (id_, False) for content, id_ in source.legacy_added.items()}
    flags: dict[str, dict[str, bool]] = {}
    for id_, token in source.added_tokens_decoder.items():
        declared[str(token["content"])] = id_, bool(token.get("special"))
        flags[str(token["content"])] = {flag: bool(token.get(flag)) for flag in FLAGS}
    found: dict[str, AddedToken] = {}
    inside = {piece: id_ for id_, (piece, _) in enumerate(model.pieces)}
    # The configuration renames reserved pieces by their ids, as for InternLM2's ChatML tokens.
    renamed = {
        id_
        for content, (id_, _) in declared.items()
        if content not in inside and id_ < len(model.pieces) and model.pieces[id_][1] in _RENAMED
    }
    for id_, (piece, kind) in enumerate(model.pieces):
        symbol = kind in (PieceType.CONTROL, PieceType.UNKNOWN)
        if id_ in renamed or not (symbol or kind is PieceType.USER_DEFINED):
            continue
        # Without a configuration, a symbol written like <|name|> counts as control, to be safe.
        looks = not source.has_config and piece.startswith("<|") and piece.endswith("|>")
        special = symbol or (declared[piece][1] if piece in declared else looks)
        found[piece] = AddedToken(content=piece, id=id_, special=special, **flags.get(piece, {}))
    for content, (id_, special) in sorted(declared.items(), key=lambda item: item[1]):
        known = inside.get(content) == id_ or (id_ in renamed and content not in inside)
        if content not in found and (known or id_ >= len(model.pieces)):
            found[content] = AddedToken(content=content, id=id_, special=special, **flags.get(content, {}))
    return found
