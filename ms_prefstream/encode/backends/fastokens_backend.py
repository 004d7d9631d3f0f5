"""The `fastokens` backend for BPE, byte-level or with byte fallback: many texts in one call, several times as fast.

The package is young, so nothing is believed: a self-check compares it with the reference at load, and a standing check
(`standing_check`) goes on comparing while texts are encoded.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import FlatIds, NotServedError, Place, Tokenizer
from ms_prefstream.encode.backends.standing_check import StandingCheck
from ms_prefstream.encode.backends.text_encoder import PlainTextEncoder
from ms_prefstream.encode.backends.tokenizer_json import (
    Spec,
    pipeline_for_place,
    read_pipeline,
    refuse_stretched,
)
from ms_prefstream.encode.backends.tokenizer_source import TokenizerSource
from ms_prefstream.encode.backends.tokenizers_backend import Known, load_equal
from ms_prefstream.encode.backends.tokenizers_encoder import LazyReference, added_in_text, spelling_of
from ms_prefstream.encode.backends.unicode import check_size, check_unicode, nfc_all
from ms_prefstream.sample import Ids


def load(source: TokenizerSource) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, encoded by `fastokens`.

    Raises:
        NotServedError: The package is not installed, cannot read the tokenizer, or gives other ids.
    """
    try:
        import fastokens  # noqa: F401
    except ImportError:
        raise NotServedError('it is not installed (pip install "ms-prefstream[fast]")') from None
    found = load_equal(source, "fastokens", _encoder)
    assert isinstance(found.encoder, FastokensEncoder)
    version = importlib.metadata.version("fastokens")
    reason = f"version {version} agreed on a self-check, and is compared with the reference while it runs"
    return dataclasses.replace(found, encoder=found.encoder.checked(), reason=reason)


def _encoder(known: Known, spec: Spec) -> FastokensEncoder:
    refuse_stretched(spec)
    return FastokensEncoder(spec, known.reference)


class FastokensEncoder(PlainTextEncoder):
    """Text to ids by `fastokens`.

    Args:
        spec: The parsed tokenizer.json, its added tokens as the `tokenizers` package numbers them.
        reference: The encoder that it replaces; it checks a sample of the ids.
    """

    backend = "fastokens"

    def __init__(self, spec: Spec, reference: LazyReference) -> None:
        pipeline = read_pipeline(spec)
        self.spelling = spelling_of(spec, pipeline)
        self.nfc = pipeline.nfc
        self.added = added_in_text(spec, pipeline)
        self._specs = _bare_specs(spec)
        self._reference = reference
        self._loaded: dict[int, Any] = {}  # by the identity of a bare spec
        self._check: StandingCheck | None = None

    def checked(self) -> FastokensEncoder:
        """Returns an encoder that shares all but the standing check, which begins with its first text."""
        twin = copy.copy(self)
        twin._loaded = self._loaded
        twin._check = StandingCheck(self._reference, self.backend)
        return twin

    def finish_check(self) -> None:
        """Waits until the sample of the texts so far has been compared.

        Raises:
            TokenizerError: The reference gives other ids for one of them.
        """
        if self._check is not None:
            self._check.finish()

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the texts of the specs, which travel as shared memory."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_loaded", "_check")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores an encoder in another process, which checks its own share of the texts."""
        self.__dict__.update(state)
        self._loaded = {}
        self._check = StandingCheck(self._reference, self.backend)

    def _at(self, place: Place) -> Any:
        """Returns the package's tokenizer for a place."""
        import fastokens

        spec = self._specs[place]
        found = self._loaded.get(id(spec))
        if found is None:
            found = self._loaded[id(spec)] = fastokens.Tokenizer.from_json_str(bytes(spec).decode())
        return found

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> FlatIds:
        """Returns the ids of each text; see `TextEncoder`."""
        check_size(texts)
        may_occur = self.added.may_occur
        with_added = [at for at, text in enumerate(texts) if may_occur(text)] if self.added.any else []
        if not with_added:
            return self._encode_plain(texts, place)
        return self._encode_parts(texts, with_added, place)

    def _encode_parts(self, texts: Sequence[str], with_added: Sequence[int], place: Place) -> FlatIds:
        """Returns the ids of texts of which some may hold added tokens: what stands between these is encoded together.

        The same as `ids_by_parts` of each text, which would take a call of the package for every part.
        """
        split = [self.added.split(texts[at]) for at in with_added]
        rest = np.delete(np.arange(len(texts)), with_added)
        first = [texts[at] for at in rest.tolist()] + [parts[0].text for parts in split if parts and parts[0].id < 0]
        plain = self._encode_plain(first, place)
        later = [part.text for parts in split for part in parts[1:] if part.id < 0]
        begun, others = iter(range(len(rest), len(first))), iter(self._encode_plain(later, Place.AFTER_SPECIAL))
        arrays = []
        for parts in split:
            found = [np.array([part.id], np.int32) if part.id >= 0 else next(others) for part in parts[1:]]
            if parts:
                found.insert(0, np.array([parts[0].id], np.int32) if parts[0].id >= 0 else plain[next(begun)])
            arrays.append(np.concatenate(found) if found else np.empty(0, np.int32))
        begins, lengths = np.zeros((2, len(texts)), np.int64)
        begins[rest], lengths[rest] = plain.begins[: len(rest)], plain.lengths[: len(rest)]
        return FlatIds(plain.ids, begins, lengths).replaced(with_added, arrays)

    def plain_ids(self, text: str, place: Place) -> Ids:
        return self._encode_plain((text,), place).ids

    def _encode_plain(self, texts: Sequence[str], place: Place) -> FlatIds:
        """Returns the ids of texts without added tokens."""
        if not texts:
            return FlatIds.of(())
        try:
            flat, borders = self._at(place).encode_batch_flat(list(texts))
        except UnicodeEncodeError:
            check_unicode(texts)
            raise
        ends = np.frombuffer(borders, np.int64)
        found = FlatIds(np.frombuffer(flat, np.int32), ends[:-1], np.diff(ends))
        if self._check is not None:
            self._check.see(texts, found, place)
            if not self._spells(texts, found.ids, place):
                odd = [at for at, text in enumerate(texts) if not self._spells((text,), found[at], place)]
                self._check.compare_all([texts[at] for at in odd], [found[at] for at in odd], place)
        return found

    def _spells(self, texts: Sequence[str], ids: Ids, place: Place) -> bool:
        """Returns whether the ids of all texts together stand for as many bytes as the texts have.

        It costs nothing beside the encoding and sees nearly every wrong id. False may also mean that a text holds
        unknown characters; the reference decides then.
        """
        assert self.spelling is not None
        size = int(self.spelling.lengths.take(ids).sum())
        return size == self.spelling.size(texts, place) or (
            self.nfc and size == self.spelling.size(nfc_all(texts), place)
        )

    def piece_id(self, piece: str) -> int | None:
        return self._reference.piece_id(piece)

    def offset_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        return self._reference.starts(text, place)


def _bare_specs(spec: Spec) -> dict[Place, NDArray[np.uint8]]:
    """Returns for each place the tokenizer.json that encodes plain text there."""
    found: dict[Place, NDArray[np.uint8]] = {}
    steps = {place: pipeline_for_place(spec, place) for place in Place}
    for place in Place:
        same = next((other for other in found if steps[other] == steps[place]), None)
        if same is not None:
            found[place] = found[same]
            continue
        norm, pre = steps[place]
        plain = dict.fromkeys(("added_tokens", "post_processor", "padding", "truncation"))
        bare = {**spec, **plain, "added_tokens": [], "normalizer": norm, "pre_tokenizer": pre}
        found[place] = np.frombuffer(orjson.dumps(bare), np.uint8)
    return found
