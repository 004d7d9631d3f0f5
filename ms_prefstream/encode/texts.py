"""Texts that wait to be encoded in one call, each distinct one once."""

from __future__ import annotations

import numpy as np

from ms_prefstream.encode.text import Place, TextEncoder
from ms_prefstream.tasks.sample import Ids


class Texts:
    """A batch of texts; a ticket is an index into what `encode` returns."""

    def __init__(self) -> None:
        self._size = 0
        self._by_place: dict[Place, dict[str, int]] = {}  # text -> ticket
        self._place: Place | None = None  # the place of the last text, and what waits there
        self._known: dict[str, int] = {}

    def add(self, text: str, place: Place) -> int:
        """The ticket of a text at a place."""
        if place is not self._place:
            self._place = place
            self._known = self._by_place.setdefault(place, {})
        ticket = self._known.setdefault(text, self._size)
        if ticket == self._size:
            self._size += 1
        return ticket

    def encode(self, encoder: TextEncoder) -> list[Ids]:
        """The ids of every ticket."""
        if len(self._by_place) == 1:
            return encoder.encode(list(self._known), self._place or Place.START)
        results: list[Ids] = [np.empty(0, np.int32)] * self._size
        for place, tickets in self._by_place.items():
            for ticket, ids in zip(tickets.values(), encoder.encode(list(tickets), place), strict=True):
                results[ticket] = ids
        return results
