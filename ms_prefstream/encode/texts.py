"""Texts that wait to be encoded in one call, each distinct one once."""

from __future__ import annotations

import numpy as np

from ms_prefstream.encode.text import Place, TextEncoder
from ms_prefstream.tasks.sample import Ids


class Texts:
    """A batch of texts; a ticket is an index into what `encode` returns."""

    def __init__(self) -> None:
        self._tickets: dict[tuple[str, Place], int] = {}

    def add(self, text: str, place: Place) -> int:
        """The ticket of a text at a place."""
        return self._tickets.setdefault((text, place), len(self._tickets))

    def encode(self, encoder: TextEncoder) -> list[Ids]:
        """The ids of every ticket."""
        by_place: dict[Place, list[str]] = {}
        for text, place in self._tickets:
            by_place.setdefault(place, []).append(text)
        if len(by_place) == 1:
            ((place, texts),) = by_place.items()
            return encoder.encode(texts, place)
        results: list[Ids] = [np.empty(0, np.int32)] * len(self._tickets)
        for place, texts in by_place.items():
            for text, ids in zip(texts, encoder.encode(texts, place), strict=True):
                results[self._tickets[text, place]] = ids
        return results
