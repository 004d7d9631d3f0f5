"""The parts of a side: its tokens by what they are, those that were cut off among them, with their texts."""

from __future__ import annotations

import difflib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.truncate import CutMap, Flat
from ms_prefstream.inspection.encoded import EncodedSide, Kind, Part
from ms_prefstream.sample import Ids, Span
from ms_prefstream.sample import Sequence as TokenSequence

Decode: TypeAlias = Callable[[Sequence[int]], str]

_CONTEXT = 4  # tokens before a piece that decide about a space at its beginning
_MOST_DIVIDED = 8  # tokens of a divided character
_KINDS = list(Kind)
_CACHED = 4096  # texts: headers and system messages come with every row


class Texts:
    """Texts of pieces of sequences, with the spaces that they have in the whole text.

    Args:
        decode: Ids to text.
        each: Whether each token gets a text of its own.
    """

    def __init__(self, decode: Decode, each: bool = False) -> None:
        self._decode, self._each = decode, each
        self._cached = functools.lru_cache(maxsize=_CACHED)(self._text)
        self._alone = functools.lru_cache(maxsize=None)(lambda one: decode([one]))

    def of(self, ids: Sequence[int], begin: int, end: int) -> tuple[str, tuple[str, ...]]:
        """Returns the text of some tokens, and that of each token if asked for."""
        if self._each:
            texts = tuple(self.of_tokens(ids, begin, end))
            return "".join(texts), texts
        return self._cached(tuple(ids[max(0, begin - _CONTEXT) : begin]), tuple(ids[begin:end])), ()

    def of_tokens(self, ids: Sequence[int], begin: int, end: int) -> Iterator[str]:
        """Yields the text of each token; of a divided character the first token has the text."""
        alone = [self._alone(one) for one in ids[begin:end]]
        whole = self._cached(tuple(ids[max(0, begin - _CONTEXT) : begin]), tuple(ids[begin:end]))
        if "".join(alone) == whole and "\ufffd" not in whole:
            yield from alone
            return
        first = begin
        for at in range(begin + 1, end + 1):
            text = self._text(tuple(ids[max(0, first - _CONTEXT) : first]), tuple(ids[first:at]))
            if text.endswith("\ufffd") and at < end and at - first < _MOST_DIVIDED:
                continue
            yield from [text, *[""] * (at - first - 1)]
            first = at

    def _text(self, before: tuple[int, ...], ids: tuple[int, ...]) -> str:
        left, both = self._decode(before), self._decode([*before, *ids])
        return both[len(left) :] if both.startswith(left) else self._decode(ids)


@dataclass(frozen=True, kw_only=True)
class Describer:
    """Describes the sides of samples.

    Attributes:
        texts: Ids to texts.
        controls: (n,) ids of control tokens.
        scored: Whether the last token of a side is a reward token, appended after the side was cut.
    """

    texts: Texts
    controls: NDArray[np.int64]
    scored: bool

    def side(
        self, name: str, sequence: TokenSequence, whole: Flat | None, cuts: CutMap | None, roles: Sequence[str]
    ) -> EncodedSide:
        """Returns a side as text.

        Args:
            name: Its name.
            sequence: The side as the sample has it.
            whole: The same before it was cut; None if that is unknown, as for samples of a cache.
            cuts: Its cut map, or that of the other side if both have the same prompt.
            roles: The role of each turn of the prompt, without system messages at its beginning.
        """
        parts = tuple(self._parts(sequence, whole, cuts, roles))
        under = sum(end - begin for begin, end in sequence.spans)
        groups = [
            (trained, "".join(part.text for part in group))
            for trained, group in itertools.groupby((one for one in parts if not one.cut), lambda part: part.trained)
        ]
        first, last = groups[0], groups[-1]
        return EncodedSide(
            name=name,
            ids=tuple(sequence.ids.tolist()),
            prompt="" if first[0] else first[1],
            trained=tuple(text for trained, text in groups if trained),
            rest="" if last[0] or len(groups) < 2 else last[1],
            tokens=(sequence.spans[0][0] if sequence.spans else len(sequence.ids), under, len(sequence.ids)),
            truncated=sequence.truncated,
            parts=parts,
        )

    def _parts(
        self, sequence: TokenSequence, whole: Flat | None, cuts: CutMap | None, roles: Sequence[str]
    ) -> Iterator[Part]:
        own = sequence.ids[:-1] if self.scored else sequence.ids
        spans = () if self.scored else sequence.spans
        if whole is None or cuts is None:
            every, places = own, np.arange(len(own))
            kinds, turns = _kinds(len(own), spans[0][0] if spans else len(own), spans, None)
        else:
            every, places = whole.ids, _places(whole.ids, own, whole.prompt, cuts.keep)
            kinds, turns = _kinds(len(every), whole.prompt, whole.spans, cuts)
        names = ["", "system", *(roles if cuts is not None and len(roles) == len(cuts.turns) else [""] * 1000)]
        kept = np.zeros(len(every), bool)
        kept[places[places >= 0]] = True
        ids, kind, turn = every, kinds, turns
        if len(extra := np.flatnonzero(places < 0)):  # a header that was encoded again
            at = np.array([int(places[:one].max(initial=-1)) + 1 for one in extra], np.int64)
            ids = np.insert(every, at, own[extra])
            kind, turn = np.insert(kinds, at, _KINDS.index(Kind.FRAME)), np.insert(turns, at, 0)
            kept = np.insert(kept, at, True)
        trained = np.zeros(len(ids), bool)
        for begin, end in spans:
            trained[np.flatnonzero(kept)[begin:end]] = True
        control = np.isin(ids, self.controls)
        responses = kind == _KINDS.index(Kind.RESPONSE)
        kind[control] = _KINDS.index(Kind.FRAME)
        kind[control & responses] = _KINDS.index(Kind.END)
        key = ((kind.astype(np.int64) * 1024 + turn) * 2 + trained) * 4 + kept * 2 + control
        borders = [0, *(np.flatnonzero(np.diff(key)) + 1).tolist(), len(ids)] if len(ids) else [0]
        listed = ids.tolist()
        for begin, end in itertools.pairwise(borders):
            text, texts = self.texts.of(listed, begin, end)
            yield Part(
                _KINDS[int(kind[begin])],
                text,
                tuple(listed[begin:end]),
                names[int(turn[begin])],
                bool(trained[begin]),
                not kept[begin],
                texts,
                bool(control[begin]),
            )
        if self.scored:
            yield self._reward(sequence.ids.tolist())

    def _reward(self, ids: Sequence[int]) -> Part:
        text, _ = self.texts.of(ids, len(ids) - 1, len(ids))
        text = text or f"<{ids[-1]}>"  # an id that no vocabulary has
        return Part(Kind.REWARD, text, tuple(ids[-1:]), trained=True, texts=(text,), control=True)


def _kinds(
    size: int, prompt: int, spans: Sequence[Span], cuts: CutMap | None
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Returns what each token of a whole side is, and its turn: 0 for none, 1 for the system message, from 2 on."""
    context, frame, response = map(_KINDS.index, (Kind.PROMPT, Kind.FRAME, Kind.RESPONSE))
    kinds, turns = np.full(size, context, np.int8), np.zeros(size, np.int64)
    if cuts is not None:
        turns[: cuts.keep] = 1
        if cuts.turns:
            kinds[cuts.keep : prompt] = frame
        for number, turn in enumerate(cuts.turns, 2):
            turns[turn.begin : turn.end] = number
            kinds[turn.content : turn.tail] = context
    for begin, end in spans:
        kinds[begin:end] = response
    return kinds, turns


def _places(every: Ids, own: Ids, prompt: int, keep: int) -> NDArray[np.int64]:
    """Returns for each token of a sample its position in the whole side, -1 for a header that was encoded again.

    A response is cut on its right only. Of a prompt the end stays, and what every cut keeps of its beginning.
    """
    if len(every) == len(own):
        return np.arange(len(own))
    response = every[prompt:]
    ends = np.flatnonzero(response[: len(own)] == own[-1]) + 1 if len(own) else np.empty(0, np.int64)
    kept = next((n for n in ends[::-1].tolist() if np.array_equal(own[-n:], response[:n])), 0)
    before = _prompt_places(every[:prompt].tolist(), own[: len(own) - kept].tolist(), keep)
    return np.array([*before, *range(prompt, prompt + kept)], np.int64)


def _prompt_places(every: Sequence[int], own: Sequence[int], keep: int) -> list[int]:
    """Returns the places of a prompt's tokens: of its first `keep`, of its end, and of the header between them."""
    if every[: len(own)] == own:
        return list(range(len(own)))  # cut on the right
    first = _common(every[:keep], own)
    last = _common(every[first:][::-1], own[first:][::-1])
    header, begin = own[first : len(own) - last], len(every) - last
    places = [-1] * len(header)
    if header:  # the last one before the text that stays
        matcher = difflib.SequenceMatcher(None, every[first:begin][::-1], header[::-1], autojunk=False)
        for a, b, size in matcher.get_matching_blocks():
            for n in range(size):
                places[len(header) - 1 - b - n] = begin - 1 - a - n
    return [*range(first), *places, *range(begin, len(every))]


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """Returns how many items are the same at the beginning of two sequences."""
    return sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(some, others, strict=False)))
