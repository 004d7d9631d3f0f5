"""The last few results of a computation that steps share: windows, orders of packs, the packs of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


class Latest(Generic[Key, Found]):
    """Results by key, the newest ones. Safe for threads without a lock, which a fork could leave held for ever.

    Args:
        most: Results that are kept, at least one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[Key, Found] = {}

    def get(self, key: Key, make: Callable[[], Found]) -> Found:
        """Returns the result for a key; makes it if it is not held."""
        found = self._held.get(key)
        if found is None:
            found = make()
            held = [*self._held.items(), (key, found)]
            # Replaced as a whole: a reader in another thread sees the old results or the new ones.
            self._held = dict(held[-self._most :])
        return found
