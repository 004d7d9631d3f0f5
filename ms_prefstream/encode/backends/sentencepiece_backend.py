"""SentencePiece models through `sentencepiece`."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from ms_prefstream.encode.backends.added import AddedToken, AddedTokens
from ms_prefstream.encode.backends.base import Place, Tokenizer
from ms_prefstream.encode.backends.sentencepiece_proto import (
    PieceType,
    SentencePieceModel,
    as_control,
    read_model,
    read_offsets,
    without_prefix,
)
from ms_prefstream.encode.backends.spelling import META, Prefix, Spelling, metaspace_spelling, starts_by_parts
from ms_prefstream.encode.backends.tokenizer_files import Names, TokenizerFiles, find_reserved, read_bytes
from ms_prefstream.encode.backends.unicode import check_size, check_unicode
from ms_prefstream.errors import TokenizerError

Ids = NDArray[np.int32]
_NUMPY = hasattr(sentencepiece.SentencePieceProcessor, "EncodeAsNumpy")  # since 0.2.2: arrays without a list between


class SentencePieceEncoder:
    """Text to ids by `sentencepiece`.

    Args:
        data: The model file's content.
        model: The same, read.
        control: Contents that are control tokens.
        prefixed: Where the dummy prefix is set, for models that have one.
        extra: Added tokens beyond the model's own pieces, or at the ids of pieces that they take the place of.
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
        self._added = AddedTokens(extra)
        replaced = {token.id for token in extra}
        defined = [
            piece
            for id_, (piece, kind) in enumerate(model.pieces)
            if id_ in replaced or (kind is PieceType.USER_DEFINED and piece in control)
        ]
        shown = as_control(data, frozenset(defined)) if defined else data
        self._as_is = sentencepiece.SentencePieceProcessor(model_proto=shown)
        self._bare = sentencepiece.SentencePieceProcessor(model_proto=without_prefix(shown))
        prefix = Prefix(mark=META, places=prefixed) if model.dummy_prefix and prefixed else None
        self._places = prefixed if model.dummy_prefix else frozenset(Place)
        beyond = {token.content: token.id for token in extra}
        self._spelling = _spelling(model, {**control, **beyond}, prefix)

    def __reduce__(self) -> tuple[Any, ...]:
        return SentencePieceEncoder, self._made_of

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[Ids]:
        """Ids of each text; see `TextEncoder`."""
        check_size(texts)
        try:
            if self._added.any:
                return [self._with_added(text, place) for text in texts]
            return [self._plain(text, place) for text in texts]
        except (RuntimeError, TypeError, UnicodeEncodeError):  # what lone surrogates give, by version
            check_unicode(texts)
            raise

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL) -> NDArray[np.int64]:
        """Where each token begins; see `TextEncoder`."""
        check_size((text,))
        check_unicode((text,))
        return starts_by_parts(text, place, self._added, self._plain_starts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens included."""
        return self._spelling.decode(ids)

    def _processor(self, text: str, place: Place) -> Any:
        """The processor for a text; a model that trims spaces keeps the one between a text and what it continues."""
        if place in self._places or (self._model.trims and self._model.dummy_prefix and text[:1].isspace()):
            return self._as_is
        return self._bare

    def _plain(self, text: str, place: Place) -> Ids:
        """Ids of a text without extra tokens."""
        processor = self._as_is if place in self._places else self._processor(text, place)
        if _NUMPY:
            found: Ids = processor.encode(text, out_type="numpy")
            return found
        return np.array(processor.encode(text, out_type=int), dtype=np.int32)

    def _with_added(self, text: str, place: Place) -> Ids:
        if not self._added.may_occur(text):
            return self._plain(text, place)
        arrays = [
            self._plain(part.text, Place.AFTER_SPECIAL if at else place)
            if part.id is None
            else np.array([part.id], dtype=np.int32)
            for at, part in enumerate(self._added.split(text))
        ]
        return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)

    def _plain_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        if self._model.plain:
            found = self._spelling.starts(self._plain(text, place), text, place)
            if found is not None:
                return found
        return self._offset_starts(text, place)

    def _offset_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        """Starts from the offsets that the library tracks through its normalisation."""
        ids, begins, ends = read_offsets(self._processor(text, place).encode(text, out_type="serialized_proto"))
        raw = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        number = np.append(np.cumsum((raw & 0xC0) != 0x80) - 1, len(text))  # byte offset -> character
        starts: list[int] = []
        open_at = -1  # where a unit began that the pieces so far have not finished
        for at, (id_, begin, end) in enumerate(zip(ids, begins, ends, strict=True)):
            starts.append(-1 if begin == open_at else int(number[begin]))
            only_prefix = at == 0 and self._model.pieces[id_][0] == META and begin == end
            open_at = begin if begin == end and not only_prefix else -1
        if starts:
            starts[0] = 0  # spaces that were trimmed belong to the first token
        return np.array([*starts, len(text)], dtype=np.int64)


def _spelling(model: SentencePieceModel, control: Mapping[str, int], prefix: Prefix | None) -> Spelling:
    vocab = {piece: id_ for id_, (piece, kind) in enumerate(model.pieces) if kind is not PieceType.UNKNOWN}
    unknown = {piece: id_ for id_, (piece, kind) in enumerate(model.pieces) if kind is PieceType.UNKNOWN}
    unknown_id = next(iter(unknown.values()), None)
    return metaspace_spelling(vocab, {**control, **unknown}, prefix, frozenset(control.values()), unknown_id)


_RENAMED = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)


def load_spm(path: pathlib.Path, files: TokenizerFiles, reason: str) -> Tokenizer:
    """The tokenizer of a SentencePiece model with the configuration beside it."""
    data = read_bytes(path)
    model = _parse(data, path)
    tokens = _added_tokens(model, files)
    known = {piece: id_ for id_, (piece, _) in enumerate(model.pieces)} | {t.content: t.id for t in tokens}
    own = _own_names(data, model)
    told = files.names
    names = Names(
        bos=told.bos if told.bos in known else own["bos"],
        eos=told.eos if told.eos in known else own["eos"],
        pad=told.pad if told.pad in known else own["pad"],
        unk=told.unk if told.unk in known else own["unk"],
    )
    marked = set(names.control) | set(files.names.control)
    tokens += [
        _token(name, known[name], True) for name in marked if name in known and name not in {t.content for t in tokens}
    ]
    tokens = [_token(t.content, t.id, t.special or t.content in marked) for t in tokens]
    special = {t.content: t.id for t in tokens if t.special}
    extra = [t for t in tokens if t.id >= len(model.pieces) or model.pieces[t.id][0] != t.content]
    add_bos = files.config.get("add_bos_token")
    return Tokenizer(
        name=files.name,
        encoder=SentencePieceEncoder(data, model, special, extra=extra),
        backend="sentencepiece",
        reason=reason,
        special=special,
        special_in_template={t.content: t.id for t in tokens},
        bos_token=names.bos,
        eos_token=names.eos,
        pad_token=names.pad,
        unk_token=names.unk,
        bos_id=None if names.bos is None else known[names.bos],
        eos_id=None if names.eos is None else known[names.eos],
        pad_id=None if names.pad is None else known[names.pad],
        add_bos=add_bos if isinstance(add_bos, bool) else names.bos is not None,
        vocab_size=max(len(model.pieces), 1 + max(known.values())),
        chat_template=files.chat_template,
        fingerprint=spm_fingerprint(data, tokens, files.chat_template),
        reserved=find_reserved(((t.content, t.id) for t in tokens), (names.bos, names.eos, names.pad, names.unk)),
    )


def spm_fingerprint(data: bytes, tokens: Iterable[AddedToken], chat_template: str | None) -> str:
    """A hash of the model, its added tokens and the chat template."""
    digest = hashlib.blake2b(data, digest_size=16)
    told = sorted((token.id, token.content, token.special) for token in tokens)
    digest.update(repr((told, chat_template)).encode())
    return digest.hexdigest()


def _added_tokens(model: SentencePieceModel, files: TokenizerFiles) -> list[AddedToken]:
    """Symbols of the model, then what the configuration adds; what the configuration says of a symbol holds."""
    declared = {
        str(token["content"]): (id_, bool(token.get("special"))) for id_, token in files.added_tokens_decoder.items()
    }
    declared = {**{content: (id_, False) for content, id_ in files.legacy_added.items()}, **declared}
    found: list[AddedToken] = []
    inside = {piece: id_ for id_, (piece, _) in enumerate(model.pieces)}
    # A piece kept in reserve goes by the name that the configuration gives to its id, as InternLM2's ChatML tokens do.
    renamed = {
        id_
        for content, (id_, _) in declared.items()
        if content not in inside and id_ < len(model.pieces) and model.pieces[id_][1] in _RENAMED
    }
    for id_, (piece, kind) in enumerate(model.pieces):
        if id_ in renamed:
            continue
        if kind in (PieceType.CONTROL, PieceType.UNKNOWN):
            found.append(_token(piece, id_, True))
        elif kind is PieceType.USER_DEFINED:
            # Without a configuration, what is written like <|name|> is taken for control, to be safe.
            looks = not files.has_config and piece.startswith("<|") and piece.endswith("|>")
            found.append(_token(piece, id_, declared[piece][1] if piece in declared else looks))
    listed = {token.content for token in found}
    for content, (id_, special) in sorted(declared.items(), key=lambda item: item[1]):
        known = inside.get(content) == id_ or (id_ in renamed and content not in inside)
        if content not in listed and (known or id_ >= len(model.pieces)):
            found.append(_token(content, id_, special))
    return found


def _token(content: str, id_: int, special: bool) -> AddedToken:
    return AddedToken(content=content, id=id_, special=special)


def _own_names(data: bytes, model: SentencePieceModel) -> dict[str, str | None]:
    """bos, eos, pad and unk as the model itself numbers them."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    ids = {key: int(getattr(processor, f"{key}_id")()) for key in ("bos", "eos", "pad", "unk")}
    return {key: model.pieces[id_][0] if id_ >= 0 else None for key, id_ in ids.items()}


def _parse(data: bytes, path: pathlib.Path) -> SentencePieceModel:
    try:
        model = read_model(data)
        sentencepiece.SentencePieceProcessor(model_proto=data)
    except (ValueError, RuntimeError, OSError):
        hint = "It looks like a list of tiktoken ranks: pass the directory with tokenizer.json instead" if (
            b"==" in data[:64]
        ) else "Pass a SentencePiece .model, or a directory with tokenizer.json"  # fmt: skip
        raise TokenizerError(f"{path} is not a SentencePiece model. {hint}.") from None
    if model.suffix:
        raise TokenizerError(
            f"{path} sets spaces behind words (treat_whitespace_as_suffix), which is not supported. "
            "Pass a directory with tokenizer.json."
        )
    return model
