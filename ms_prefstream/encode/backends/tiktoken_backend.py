"""The `tiktoken` backend for byte-level BPE, for tokenizers that `tiktoken_proof` and a self-check show to be equal."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import numpy as np
import tiktoken
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import NotServedError, Place, Tokenizer
from ms_prefstream.encode.backends.self_check import first_difference
from ms_prefstream.encode.backends.spelling import Spelling
from ms_prefstream.encode.backends.text_encoder import PlainTextEncoder
from ms_prefstream.encode.backends.tiktoken_proof import TiktokenPlan, tiktoken_plan
from ms_prefstream.encode.backends.tokenizer_source import TokenizerSource
from ms_prefstream.encode.backends.tokenizers_backend import TokenizersEncoder, read_reference
from ms_prefstream.encode.backends.unicode import check_size, check_unicode, nfc, nfc_all
from ms_prefstream.sample import Ids

MOST_THREADS = 4  # with more, the work under Python's lock takes longer than the rest
LEAST_TEXTS = 512  # for each thread; more than a worker process gets at a time

# tiktoken searches every text for its special tokens, and with none at all it does so character by character. This
# one is never allowed, so it has no effect where it occurs.
_NEVER = "\x00\x01 never a token \x01\x00"
_NO_SPECIAL: frozenset[str] = frozenset()


def load(source: TokenizerSource) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, encoded by `tiktoken`.

    Raises:
        NotServedError: If `tiktoken` would give other ids, or that it gives the same cannot be shown.
    """
    found = read_reference(source)
    if found.encoder.leaks:
        raise NotServedError("plain text reaches its control tokens")
    plan = tiktoken_plan(found.spec, found.rust)
    if found.encoder.spelling is None:
        raise NotServedError("its tokens do not spell the text")
    try:
        fast = TiktokenEncoder(plan, found.encoder, found.encoder.spelling)
        difference = first_difference(fast, found.encoder, found.tokenizer.special_in_template)
    except ValueError as error:
        raise NotServedError(f"it refuses the tokenizer's pattern or vocabulary ({error})") from None
    if difference is not None:
        raise NotServedError(f"the self-check found a difference on {difference!r}")
    reason = "the tokenizer file was shown to be equivalent, and a self-check on load agreed"
    return dataclasses.replace(found.tokenizer, encoder=fast, backend="tiktoken", reason=reason)


class TiktokenEncoder(PlainTextEncoder):
    """Text to ids by `tiktoken`.

    Args:
        plan: Pattern and ranks, proven equivalent.
        reference: The encoder that it replaces. It takes over where tiktoken's regular expressions give up
            (some hundred thousand white-space characters in a row).
        spelling: The bytes that the ids stand for.
    """

    backend = "tiktoken"

    def __init__(self, plan: TiktokenPlan, reference: TokenizersEncoder, spelling: Spelling) -> None:
        ranks = dict(plan.ranks)
        self._encoding = tiktoken.Encoding(
            "ms_prefstream",
            pat_str=plan.pattern,
            mergeable_ranks=ranks,
            special_tokens={_NEVER: max(ranks.values()) + 1},
        )
        self.nfc = plan.nfc
        self._kept: TokenizersEncoder | bytes = reference
        self.spelling = spelling
        self.added = reference.added

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the reference as bytes: unpickling it takes long in a worker, and it is hardly ever needed."""
        return {**self.__dict__, "_kept": cloudpickle.dumps(self._reference, protocol=5)}

    @property
    def _reference(self) -> TokenizersEncoder:
        kept = self._kept
        if isinstance(kept, bytes):
            self._kept = kept = pickle.loads(kept)
        return kept

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[Ids]:
        """Returns the ids of each text; see `TextEncoder`. The place makes no difference here."""
        check_size(texts)
        try:
            found = in_threads(self._buffers, texts)
        except BaseException as error:
            if not _gives_up(error):
                raise
            return [self.ids_by_parts(text, place) for text in texts]
        ids = np.frombuffer(b"".join(found), np.int32)
        ends = list(itertools.accumulate([len(it) >> 2 for it in found], initial=0))
        arrays = [ids[begin:end] for begin, end in itertools.pairwise(ends)]
        for index, it in enumerate(found):
            if not it and texts[index]:
                arrays[index] = self.ids_by_parts(texts[index], place)
        return arrays

    def _buffers(self, texts: Sequence[str]) -> list[bytes]:
        """Returns the ids of each text as bytes; none for a text that may hold an added token."""
        may_occur, ids_of, nothing = self.added.may_occur, self._ids_of, _NO_SPECIAL
        normal = zip(texts, nfc_all(texts) if self.nfc else texts, strict=True)
        # Copies of tiktoken's buffers in one array: an array made from each of them would cost as much as a row's
        # masks and labels.
        return [b"" if may_occur(text) else bytes(ids_of(same, nothing)) for text, same in normal]

    @property
    def _ids_of(self) -> Callable[[str, frozenset[str]], Any]:
        """The function that `Encoding.encode_to_numpy` calls, without its checks: they cost more than a short text."""
        ids_of: Callable[[str, frozenset[str]], Any] = self._encoding._core_bpe.encode_to_tiktoken_buffer
        return ids_of

    def plain_ids(self, text: str, place: Place) -> Ids:
        try:
            normal = nfc(text) if self.nfc else text
            return np.frombuffer(self._ids_of(normal, _NO_SPECIAL), np.int32)
        except UnicodeEncodeError:
            check_unicode((text,))
            raise
        except BaseException as error:
            if not _gives_up(error):
                raise
            return self._reference.encode((text,))[0]

    def piece_id(self, piece: str) -> int | None:
        return self._reference.piece_id(piece)

    def offset_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        return self._reference.starts(text, place)


def _gives_up(error: BaseException) -> bool:
    """Returns whether tiktoken's regular expressions gave up, or a text is not Unicode.

    Newer versions raise ValueError, older ones panic with a class that is no Exception.
    """
    return isinstance(error, ValueError) or type(error).__name__ == "PanicException"


def in_threads(work: Callable[[Sequence[str]], list[bytes]], texts: Sequence[str]) -> list[bytes]:
    """Run `work` on parts of the texts in threads that end with the call; returns its results in order.

    Training waits for a window of texts, so a window is worth more than one core. Few texts, as in a step with a
    length index or in a worker process, run in the calling thread. `work` must be thread-safe; its errors are raised.
    """
    threads = min(MOST_THREADS, len(texts) // LEAST_TEXTS, cores())
    if threads < 2:
        return work(texts)
    size = -(-len(texts) // (2 * threads))  # two parts a thread: texts differ in length
    parts = [texts[begin : begin + size] for begin in range(0, len(texts), size)]
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        return list(itertools.chain.from_iterable(pool.map(work, parts)))


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
