"""The standing check: while a fast backend encodes, the reference encodes a sample of the same texts."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ms_prefstream.encode.backends.base import Place, TextEncoder
from ms_prefstream.errors import TokenizerError, printable
from ms_prefstream.sample import Ids

FIRST = 256
"""Texts at the beginning, all of which are compared."""

RARELY = 8000
"""In the long run, one of so many texts is compared."""

_DENSITY = 128  # after the first texts, one of (texts so far / _DENSITY) is compared, until that is RARELY
_log = logging.getLogger(__name__)


class _Taken(NamedTuple):
    text: str
    ids: Ids
    place: Place


class StandingCheck:
    """Compares ids with those of a reference encoder, for a sample of the texts of one process.

    The reference may take a second to load, so it is loaded in a thread of its own, and the first texts wait in a list
    until then. The thread ends when it has compared them.

    Args:
        reference: Returns the reference encoder.
        backend: The name of the backend that is checked.
    """

    def __init__(self, reference: Callable[[], TextEncoder], backend: str) -> None:
        self._reference, self._backend = reference, backend
        self._seen = 0
        self._next = 0  # the next text to compare, by its number
        self._random = random.Random(0)
        self._waiting: list[_Taken] = []
        self._wrong: _Taken | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def see(self, texts: Sequence[str], ids: Sequence[Ids], place: Place) -> None:
        """Takes a sample of texts that were encoded, and compares it as soon as the reference is loaded.

        Raises:
            TokenizerError: The reference gives other ids for a text.
        """
        with self._lock:
            begin, self._seen = self._seen, self._seen + len(texts)
            taken = [_Taken(texts[at - begin], ids[at - begin].copy(), place) for at in self._picked(self._seen)]
            self._waiting += taken
        if self._thread is None and taken:
            self._thread = threading.Thread(target=self._load_and_compare, name="standing check", daemon=True)
            self._thread.start()
        elif taken and self._thread is not None and not self._thread.is_alive():
            self._compare()
        if self._wrong is not None:
            raise self._error(self._wrong)

    def finish(self) -> None:
        """Waits until every text that was taken has been compared; raises as `see` does."""
        if self._thread is not None:
            self._thread.join()
        self._compare()
        if self._wrong is not None:
            raise self._error(self._wrong)

    def compare_all(self, texts: Sequence[str], ids: Sequence[Ids], place: Place) -> None:
        """Compares all of these texts at once; raises as `see` does."""
        for text, found, right in zip(texts, ids, self._reference().encode(texts, place), strict=True):
            if not np.array_equal(found, right):
                self._wrong = _Taken(text, found, place)
                raise self._error(self._wrong)

    def _picked(self, end: int) -> Iterator[int]:
        """Yields the numbers of the texts to compare, up to `end`."""
        while self._next < end:
            at = self._next
            yield at
            stride = min(RARELY, max(1, at // _DENSITY)) if at >= FIRST - 1 else 1
            self._next += 1 if stride == 1 else self._random.randint(1, 2 * stride - 1)

    def _load_and_compare(self) -> None:
        try:
            self._compare()
        except Exception as error:  # the thread has nobody to raise to; the next text compared raises it
            _log.warning("the reference tokenizer cannot check %s: %s", self._backend, error)

    def _compare(self) -> None:
        reference = self._reference()
        while self._waiting and self._wrong is None:
            with self._lock:
                taken, self._waiting = self._waiting, []
            for one in taken:
                if not np.array_equal(one.ids, reference.encode((one.text,), one.place)[0]):
                    self._wrong = one
                    return

    def _error(self, wrong: _Taken) -> TokenizerError:
        right = self._reference().encode((wrong.text,), wrong.place)[0]
        return TokenizerError(
            f"backend {self._backend!r} gives other ids than the reference for the text {printable(repr(wrong.text))}: "
            f"found {wrong.ids[:16].tolist()}, expected {right[:16].tolist()}. Pass backend='tokenizers' (--backend "
            "tokenizers) and report the text to the authors of the backend."
        )
