"""SentencePiece models through `sentencepiece`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from ms_prefstream.encode.backends.added import AddedToken, AddedTokens
from ms_prefstream.encode.backends.limits import check_size, check_unicode
from ms_prefstream.encode.backends.sp_proto import (
    PieceType,
    SentencePieceModel,
    as_control,
    read_offsets,
    without_prefix,
)
from ms_prefstream.encode.backends.spelling import META, Prefix, Spelling, metaspace_spelling
from ms_prefstream.encode.backends.starts import starts_by_parts
from ms_prefstream.encode.text import Place

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
