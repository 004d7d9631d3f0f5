"""The parts of a side: its tokens by what they are, those that were cut off among them, with their texts."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from ms_prefstream.encode.truncate import Flat, Turn
from ms_prefstream.inspection.encoded import EncodedSide, Kind, Part
from ms_prefstream.sample import Sequence as TokenSequence
from ms_prefstream.sample import Span

Decode: TypeAlias = Callable[[Sequence[int]], str]

_CONTEXT = 4  # tokens before a piece that decide about a space at its beginning
_MOST_DIVIDED = 8  # tokens of a divided character


class _Token(NamedTuple):
    """One token; the fields are those of `Part`."""

    id: int
    kind: Kind
    role: str
    trained: bool
    cut: bool
    control: bool


def encoded_side(
    name: str,
    sequence: TokenSequence,
    whole: Flat | None,
    *,
    roles: Sequence[str],
    controls: Collection[int],
    decode: Decode,
    scored: bool,
    with_tokens: bool,
) -> EncodedSide:
    """Returns a side as text.

    Args:
        name: Its name.
        sequence: The side as the sample has it.
        whole: The same before it was cut; None if that is unknown, as for samples of a cache.
        roles: The role of each turn of the prompt, without system messages at its beginning.
        controls: Ids of control tokens.
        decode: Ids to text.
        scored: Whether its last token is a reward token, appended after it was cut.
        with_tokens: Whether each token gets a text of its own.
    """
    ids, spans = sequence.ids.tolist(), sequence.spans
    reward = ids[-1:] if scored else []
    own = ids[: len(ids) - len(reward)]
    if whole is None:
        responses = spans if not scored else ()
        kinds = _kinds(len(own), responses[0][0] if responses else len(own), responses, 0, (), roles)
        places: Sequence[int] = range(len(own))
        every = own
    else:
        every = whole.ids.tolist()
        cuts = whole.cuts()
        kinds = _kinds(len(every), whole.prompt, whole.spans, cuts.keep, cuts.turns, roles)
        places = _places(every, own, whole.prompt, cuts.keep)
    tokens = list(_tokens(every, own, places, kinds, spans, controls))
    tokens += [_Token(one, Kind.REWARD, "", True, False, True) for one in reward]
    borders = [border for span in spans for border in span] or [len(ids)]
    prompt, *between, rest = texts_between(ids, [0, *borders, len(ids)], decode)
    return EncodedSide(
        name=name,
        ids=tuple(ids),
        prompt=prompt,
        trained=tuple(between[::2]),
        rest=rest,
        tokens=(borders[0], sum(end - begin for begin, end in spans), len(ids)),
        truncated=sequence.truncated,
        parts=tuple(_parts(tokens, decode, with_tokens)),
    )


def texts_between(ids: Sequence[int], borders: Sequence[int], decode: Decode) -> list[str]:
    """Returns the texts between token positions, with the spaces that they have in the whole text."""
    return [_text(ids, begin, end, decode) for begin, end in itertools.pairwise(borders)]


def token_texts(ids: Sequence[int], begin: int, end: int, decode: Decode) -> list[str]:
    """Returns the text of each token from `begin` to `end`; of a divided character the first token has the text."""
    texts: list[str] = []
    first = begin
    for at in range(begin + 1, end + 1):
        text = _text(ids, first, at, decode)
        if text.endswith("\ufffd") and at < end and at - first < _MOST_DIVIDED:
            continue
        texts += [text, *[""] * (at - first - 1)]
        first = at
    return texts


def _text(ids: Sequence[int], begin: int, end: int, decode: Decode) -> str:
    before = list(ids[max(0, begin - _CONTEXT) : begin])
    left, both = decode(before), decode([*before, *ids[begin:end]])
    return both[len(left) :] if both.startswith(left) else decode(ids[begin:end])


def _kinds(
    size: int, prompt: int, spans: Sequence[Span], keep: int, turns: Sequence[Turn], roles: Sequence[str]
) -> list[tuple[Kind, str]]:
    """Returns what each token of a whole side is, and the role of its turn."""
    found = [(Kind.PROMPT, "system" if at < keep else "") for at in range(size)]
    if turns:
        found[keep:prompt] = [(Kind.FRAME, "")] * (prompt - keep)
    named = roles if len(roles) == len(turns) else [""] * len(turns)
    for turn, role in zip(turns, named, strict=True):
        found[turn.begin : turn.end] = [(Kind.FRAME, role)] * (turn.end - turn.begin)
        found[turn.content : turn.tail] = [(Kind.PROMPT, role)] * (turn.tail - turn.content)
    for begin, end in spans:
        found[begin:end] = [(Kind.RESPONSE, "")] * (end - begin)
    return found


def _tokens(
    every: Sequence[int],
    own: Sequence[int],
    places: Sequence[int],
    kinds: Sequence[tuple[Kind, str]],
    spans: Sequence[Span],
    controls: Collection[int],
) -> Iterator[_Token]:
    """Yields the tokens of the sample and those that were cut off, in their order.

    Args:
        every: The whole side.
        own: The tokens of the sample.
        places: For each token of the sample its position in the whole side, ascending; -1 for tokens that it lacks.
        kinds: What each token of the whole side is.
        spans: Ranges of `own` under the loss.
        controls: Ids of control tokens.
    """
    trained = {at for begin, end in spans for at in range(begin, end)}

    def token(one: int, place: int, at: int | None) -> _Token:
        kind, role = kinds[place] if place >= 0 else (Kind.FRAME, "")
        if one in controls:
            kind = Kind.END if kind is Kind.RESPONSE else Kind.FRAME
        return _Token(one, kind, role, at in trained, at is None, one in controls)

    reached = 0
    for at, place in enumerate(places):
        if place >= 0:
            yield from (token(every[cut], cut, None) for cut in range(reached, place))
            reached = place + 1
        yield token(own[at], place, at)
    yield from (token(every[cut], cut, None) for cut in range(reached, len(every)))


def _parts(tokens: Sequence[_Token], decode: Decode, with_tokens: bool) -> Iterator[Part]:
    ids = [token.id for token in tokens]
    begin = 0
    for (kind, role, trained, cut, control), group in itertools.groupby(tokens, lambda token: token[1:]):
        end = begin + len(list(group))
        texts = token_texts(ids, begin, end, decode) if with_tokens else []
        text = "".join(texts) if with_tokens else _text(ids, begin, end, decode)
        if control and not text:  # an id that no vocabulary has
            text = "".join(f"<{one}>" for one in ids[begin:end])
            texts = [f"<{one}>" for one in ids[begin:end]] if with_tokens else []
        yield Part(kind, text, tuple(ids[begin:end]), role, trained, cut, tuple(texts), control)
        begin = end


def _places(every: Sequence[int], own: Sequence[int], prompt: int, keep: int) -> list[int]:
    """Returns for each token of a sample its position in the whole side, -1 for a header that was encoded again.

    A response is cut on its right only. Of a prompt the end stays, and what every cut keeps of its beginning.
    """
    if every == own:
        return list(range(len(own)))
    response = every[prompt:]
    kept = next(n for n in range(min(len(response), len(own)), -1, -1) if own[len(own) - n :] == response[:n])
    before = own[: len(own) - kept]
    return [*_prompt_places(every[:prompt], before, keep), *range(prompt, prompt + kept)]


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
