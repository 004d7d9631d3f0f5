"""The fast way for byte-level BPE: `tiktoken`, once `fast_proof` and a self-check agree that the ids are the same."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import cloudpickle
import numpy as np
import tiktoken
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.spelling import Spelling, spelled_starts, starts_by_parts
from ms_prefstream.encode.backends.tiktoken_proof import FastPlan
from ms_prefstream.encode.backends.tokenizers_backend import TokenizersEncoder
from ms_prefstream.encode.backends.unicode import check_size, check_unicode, nfc, nfc_all

Result = TypeVar("Result")

MOST_THREADS = 4  # what is done under Python's lock is the longer part from here on
LEAST_TEXTS = 512  # for each thread; more than a worker process is given at a time


def in_threads(work: Callable[[Sequence[str]], list[Result]], texts: Sequence[str]) -> list[Result]:
    """`work` on parts of the texts, its results in order; the threads end with the call.

    A window is waited for, the first one before training begins, so it is worth more than one core. Few texts, as a
    step with a length index or a worker process has them, are not.

    Args:
        work: Texts to as many results; called from several threads at once.
        texts: What to work on.

    Raises:
        BaseException: What `work` raises, of the first part that fails.
    """
    threads = min(MOST_THREADS, len(texts) // LEAST_TEXTS, cores())
    if threads < 2:
        return work(texts)
    size = -(-len(texts) // (2 * threads))  # two parts a thread: texts differ in length
    parts = [texts[begin : begin + size] for begin in range(0, len(texts), size)]
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        return list(itertools.chain.from_iterable(pool.map(work, parts)))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# tiktoken searches every text for its special tokens, and with none at all it does so character by character. This
# one is never allowed, so it has no effect where it occurs.
_NEVER = "\x00\x01 never a token \x01\x00"
_NO_SPECIAL: frozenset[str] = frozenset()


class TiktokenEncoder:
    """Text to ids by `tiktoken`.

    Args:
        plan: Pattern and ranks, proven equivalent.
        reference: The encoder that it stands in for; it takes over where tiktoken's regular expressions give up
            (some hundred thousand white-space characters in a row).
        spelling: What the ids write.
    """

    backend = "tiktoken"

    def __init__(self, plan: FastPlan, reference: TokenizersEncoder, spelling: Spelling) -> None:
        ranks = dict(plan.ranks)
        self._encoding = tiktoken.Encoding(
            "ms_prefstream",
            pat_str=plan.pattern,
            mergeable_ranks=ranks,
            special_tokens={_NEVER: max(ranks.values()) + 1},
        )
        self._nfc = plan.nfc
        self._kept: TokenizersEncoder | bytes = reference
        self._spelling = spelling
        self._added = reference.added

    def __getstate__(self) -> dict[str, Any]:
        """For a journey to another process: to make the reference takes long there, and it is hardly ever needed."""
        return {**self.__dict__, "_kept": cloudpickle.dumps(self._reference, protocol=5)}

    @property
    def _reference(self) -> TokenizersEncoder:
        kept = self._kept
        if isinstance(kept, bytes):
            self._kept = kept = pickle.loads(kept)
        return kept

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[NDArray[np.int32]]:
        """Ids of each text; see `TextEncoder`. The place of a text makes no difference here."""
        check_size(texts)
        may_occur = self._added.may_occur
        try:
            found = in_threads(self._buffers, texts)
        except BaseException as error:
            if not _gives_up(error):
                raise
            return [self._with_added(text) if may_occur(text) else self._plain(text) for text in texts]
        ids = np.frombuffer(b"".join(found), np.int32)
        ends = list(itertools.accumulate([len(it) >> 2 for it in found], initial=0))
        arrays = [ids[begin:end] for begin, end in itertools.pairwise(ends)]
        for index, it in enumerate(found):
            if not it and texts[index]:
                arrays[index] = self._with_added(texts[index])
        return arrays

    def _buffers(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text as bytes; nothing for a text that may hold an added token."""
        may_occur, ids_of, nothing = self._added.may_occur, self._ids_of, _NO_SPECIAL
        normal = zip(texts, nfc_all(texts) if self._nfc else texts, strict=True)
        # Copies of tiktoken's buffers in one array: an array made from each of them would cost as much as a row's
        # masks and labels.
        return [b"" if may_occur(text) else bytes(ids_of(same, nothing)) for text, same in normal]

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL) -> NDArray[np.int64]:
        """Where each token begins; see `TextEncoder`."""
        check_size((text,))
        return starts_by_parts(text, place, self._added, self._plain_starts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens included."""
        return self._spelling.decode(ids)

    @property
    def _ids_of(self) -> Callable[[str, frozenset[str]], Any]:
        """What `Encoding.encode_to_numpy` calls behind checks that cost more than a short text."""
        ids_of: Callable[[str, frozenset[str]], Any] = self._encoding._core_bpe.encode_to_tiktoken_buffer
        return ids_of

    def _plain(self, text: str) -> NDArray[np.int32]:
        """Ids of a text without added tokens."""
        try:
            normal = nfc(text) if self._nfc else text
            return np.frombuffer(self._ids_of(normal, _NO_SPECIAL), np.int32)
        except UnicodeEncodeError:
            check_unicode((text,))
            raise
        except BaseException as error:
            if not _gives_up(error):
                raise
            return self._reference.encode((text,))[0]

    def _with_added(self, text: str) -> NDArray[np.int32]:
        arrays = [
            self._plain(part.text) if part.id is None else np.array([part.id], dtype=np.int32)
            for part in self._added.split(text)
        ]
        return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)

    def _plain_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        starts = spelled_starts(text, place, self._plain(text), self._spelling, self._nfc)
        return self._reference.starts(text, place) if starts is None else starts


def _gives_up(error: BaseException) -> bool:
    """Whether tiktoken's regular expressions gave up, or a text is not Unicode.

    Newer versions raise ValueError, older ones panic with a class that is no Exception.
    """
    return isinstance(error, ValueError) or type(error).__name__ == "PanicException"
