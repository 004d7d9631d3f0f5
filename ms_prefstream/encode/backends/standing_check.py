"""The standing check: while a fast backend encodes, the reference encodes a sample of the same texts."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ms_prefstream.encode.backends.base import Place, TextEncoder
from ms_prefstream.errors import PrefStreamError, TokenizerError, printable
from ms_prefstream.sample import Ids

FIRST = 256
"""Texts at the beginning, all of which are compared."""

RARELY = 8000
"""In the long run, one of so many texts is compared."""

_ENOUGH = 64  # so many texts are worth loading the reference
_TOGETHER = 64  # texts of one call of the reference, which takes less time than a call for each
_OFTEN = 33  # after the first texts, one of so many is compared, up to _EARLY
_EARLY = 20_000  # by then about 850 were compared: a wrong text in 300 was among them with a chance of 94 %
_DENSITY = 128  # then one of (texts so far / _DENSITY) is compared, until that is RARELY
_log = logging.getLogger(__name__)


class _Taken(NamedTuple):
    text: str
    ids: Ids
    place: Place


class StandingCheck:
    """Compares ids with those of a reference encoder, for a sample of the texts of one encoder in one process.

    The reference may take a second to load, so the first texts are compared in a thread of their own, which begins
    when a few dozen wait and ends with them; later ones in the calling thread. The interpreter waits for the thread
    when it exits: native code that returns to an interpreter that is gone ends the process with SIGABRT.

    Args:
        reference: The reference encoder, loaded by its first call.
        backend: The name of the backend that is checked.
    """

    def __init__(self, reference: TextEncoder, backend: str) -> None:
        self._reference, self._backend = reference, backend
        self._seen = 0
        self._next = 0  # the next text to compare, by its number
        self._random = random.Random(0)
        self._waiting: deque[_Taken] = deque()
        self._error: PrefStreamError | None = None
        self._thread: threading.Thread | None = None
        self._is_idle = False  # whether the thread compares nothing more
        self._lock = threading.Lock()  # never held by the thread, so that a fork cannot leave it locked

    def see(self, texts: Sequence[str], ids: Sequence[Ids], place: Place) -> None:
        """Takes a sample of texts that were encoded, and compares it as soon as the reference is loaded.

        Raises:
            TokenizerError: The reference gives other ids for a text, or cannot be loaded.
        """
        with self._lock:
            begin, self._seen = self._seen, self._seen + len(texts)
            picked = list(self._picked(self._seen))
            self._waiting.extend(_Taken(texts[at - begin], ids[at - begin].copy(), place) for at in picked)
            is_exiting = not threading.main_thread().is_alive()
            if self._thread is None and len(self._waiting) >= _ENOUGH and not is_exiting:
                # Stated, because MindSpore's threads, which may be the callers, count as daemons.
                self._thread = threading.Thread(target=self._run, name="standing check", daemon=False)
                self._thread.start()
                return
        if self._waiting and (self._is_idle or (self._thread is not None and not self._thread.is_alive())):
            self._compare()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Waits until every text that was taken has been compared; raises as `see` does."""
        if self._thread is not None:
            self._thread.join()
        self._compare()
        if self._error is not None:
            raise self._error

    def compare_all(self, texts: Sequence[str], ids: Sequence[Ids], place: Place) -> None:
        """Compares all of these texts at once; raises as `see` does."""
        error = self._difference(texts, ids, place)
        if error is not None:
            self._error = error
            raise error

    def _picked(self, end: int) -> Iterator[int]:
        """Yields the numbers of the texts to compare, up to `end`."""
        while self._next < end:
            at = self._next
            yield at
            stride = _OFTEN if at < _EARLY else min(RARELY, at // _DENSITY)
            self._next += 1 if at < FIRST - 1 else self._random.randint(1, 2 * stride - 1)

    def _run(self) -> None:
        self._compare()
        self._is_idle = True
        self._compare()  # texts that came before the caller could see that

    def _compare(self) -> None:
        """Compares what waits; keeps an error for the next call, as a thread has no caller to raise it to."""
        try:
            while self._waiting and self._error is None:
                for place, some in itertools.groupby(self._block(), lambda one: one.place):
                    texts, ids, _ = zip(*some, strict=True)
                    self._error = self._error or self._difference(texts, ids, place)
        except Exception as error:
            self._error = TokenizerError(
                f"backend {self._backend!r} cannot be checked, because the reference tokenizer fails: {error} Pass "
                "backend='tokenizers' (--backend tokenizers)."
            )
        if self._error is not None:
            _log.error("%s", self._error)  # the stream may be over

    def _block(self) -> Iterator[_Taken]:
        """Yields the first texts that wait, which are compared together."""
        with contextlib.suppress(IndexError):  # another thread took the last one
            for _ in range(_TOGETHER):
                yield self._waiting.popleft()

    def _difference(self, texts: Sequence[str], ids: Sequence[Ids], place: Place) -> TokenizerError | None:
        """Returns an error for the first of these texts for which the reference gives other ids; None without any."""
        for text, found, right in zip(texts, ids, self._reference.encode(texts, place), strict=True):
            if not np.array_equal(found, right):
                return TokenizerError(
                    f"backend {self._backend!r} gives other ids than the reference for the text "
                    f"{printable(repr(text))}: found {found[:16].tolist()}, expected {right[:16].tolist()}. Pass "
                    "backend='tokenizers' (--backend tokenizers) and report the text to the authors of the backend."
                )
        return None
