"""The `tiktoken` backend for byte-level BPE, for tokenizers that `tiktoken_proof` and a self-check show to be equal."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray

from ms_prefstream.checks import cores
from ms_prefstream.encode.backends.base import FlatIds, Place, Tokenizer, is_panic
from ms_prefstream.encode.backends.text_encoder import PlainTextEncoder
from ms_prefstream.encode.backends.tiktoken_proof import TiktokenPlan, find_unranked, tiktoken_plan
from ms_prefstream.encode.backends.tokenizer_json import Spec, read_pipeline
from ms_prefstream.encode.backends.tokenizer_source import TokenizerSource
from ms_prefstream.encode.backends.tokenizers_backend import Known, load_equal
from ms_prefstream.encode.backends.tokenizers_encoder import LazyReference, added_in_text, spelling_of
from ms_prefstream.encode.backends.unicode import check_size, check_unicode, nfc, nfc_all
from ms_prefstream.sample import Ids

MOST_THREADS = 4  # with more, the work under Python's lock takes longer than the rest
LEAST_TEXTS = 512  # for each thread

# tiktoken searches every text for its special tokens, and with none at all it does so character by character. This
# one is never allowed, so it has no effect where it occurs.
_NEVER = "\x00\x01 never a token \x01\x00"
_NO_SPECIAL: frozenset[str] = frozenset()


def load(source: TokenizerSource) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, encoded by `tiktoken`.

    Raises:
        NotServedError: If `tiktoken` would give other ids, or that it gives the same cannot be shown.
    """
    found = load_equal(source, "tiktoken", _encoder)
    reason = "the tokenizer file was shown to be equivalent, and a self-check agreed"
    return dataclasses.replace(found, reason=reason)


def _encoder(known: Known, spec: Spec) -> TiktokenEncoder:
    verdict = known.verdict

    def unranked() -> list[str]:
        if "tiktoken" not in verdict.refusals:
            verdict.unranked = find_unranked(spec, known.reference.get().rust)
        return verdict.unranked

    return TiktokenEncoder(tiktoken_plan(spec, unranked), spec, known.reference)


class TiktokenEncoder(PlainTextEncoder):
    """Text to ids by `tiktoken`.

    Args:
        plan: Pattern and ranks, proven equivalent.
        spec: The parsed tokenizer.json, its added tokens as the `tokenizers` package numbers them.
        reference: The encoder that it replaces. It takes over where tiktoken's regular expressions give up
            (some hundred thousand white-space characters in a row).
    """

    backend = "tiktoken"

    def __init__(self, plan: TiktokenPlan, spec: Spec, reference: LazyReference) -> None:
        ranks = dict(plan.ranks)
        self._encoding = tiktoken.Encoding(
            "ms_prefstream",
            pat_str=plan.pattern,
            mergeable_ranks=ranks,
            special_tokens={_NEVER: max(ranks.values()) + 1},
        )
        pipeline = read_pipeline(spec)
        self.nfc = plan.nfc
        self.spelling = spelling_of(spec, pipeline)
        self.added = added_in_text(spec, pipeline)
        self._reference = reference

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> Sequence[Ids]:
        """Returns the ids of each text; see `TextEncoder`. The place makes no difference here."""
        check_size(texts)
        try:
            found = in_threads(self._buffers, texts)
        except BaseException as error:
            if not _gives_up(error):
                raise
            return [self.ids_by_parts(text, place) for text in texts]
        lengths = np.array([len(it) >> 2 for it in found], np.int64)
        flat = FlatIds(np.frombuffer(b"".join(found), np.int32), np.cumsum(lengths) - lengths, lengths)
        left = [at for at, it in enumerate(found) if not it and texts[at]]
        return flat if not left else flat.replaced(left, [self.ids_by_parts(texts[at], place) for at in left])

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
    return isinstance(error, ValueError) or is_panic(error)


def in_threads(work: Callable[[Sequence[str]], list[bytes]], texts: Sequence[str]) -> list[bytes]:
    """Run `work` on parts of the texts in threads that end with the call; returns its results in order.

    Training waits for a window of texts, so a window is worth more than one core. Few texts, as in a step with a
    length index, run in the calling thread, and so do those of a worker process, which sets ``RAYON_NUM_THREADS`` for
    all tokenizers. `work` must be thread-safe; its errors are raised.
    """
    threads = min(MOST_THREADS, len(texts) // LEAST_TEXTS, allowed_threads())
    if threads < 2:
        return work(texts)
    size = -(-len(texts) // (2 * threads))  # two parts a thread: texts differ in length
    parts = [texts[begin : begin + size] for begin in range(0, len(texts), size)]
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        return list(itertools.chain.from_iterable(pool.map(work, parts)))


def allowed_threads() -> int:
    """Returns the number of cores that tokenizers of this process may use."""
    given = os.environ.get("RAYON_NUM_THREADS", "")
    return min(cores(), int(given)) if given.isdecimal() and int(given) else cores()  # 0 is the default there, too
