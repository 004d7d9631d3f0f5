"""Proof that `tiktoken` gives the ids of a tokenizer.json, and the pattern and ranks with which it does.

The two differ in how they merge. The `tokenizers` package has a list of merges and applies, among adjacent pairs
that are in it, the one that comes first in the list (the leftmost of equals). `tiktoken` has a set of tokens with
ranks and joins, among adjacent pairs whose concatenation is in the set, the one of lowest rank (the leftmost of
equals); before that it looks the whole word up.

Let run(T) be what the list of merges makes of the characters of a token T alone. In any surroundings, a stretch
that ends up between two borders is merged exactly as run does, because merges across a border that survives never
happen. So when A and B stand side by side and AB = T is a token, run(T) passes through the state (A, B). Hence both
procedures make the same choices at every step, given three facts, which are checked here for every token:

1. run(T) = (T) for every T in the set: a pair that tiktoken would join is then a merge of the list. (A token whose run
   stops at two pieces must stay out of the set; one whose run stops at three or more never stands between such a pair.)
2. Sorted by the list, the merged tokens have rising ids, so that ids can serve as ranks.
3. The whole word: with ``ignore_merges`` the package looks it up as well, in the full vocabulary; without, by 1, the
   look-up finds what merging would have given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from ms_prefstream.encode.backends.base import NotServedError
from ms_prefstream.encode.backends.spelling import from_byte_alphabet
from ms_prefstream.encode.backends.tokenizer_json import (
    Spec,
    merged_tokens,
    refuse_stretched,
    steps,
)


@dataclass(frozen=True, kw_only=True)
class TiktokenPlan:
    """The arguments for a `tiktoken.Encoding`.

    Attributes:
        pattern: The regular expression that splits a text into words.
        ranks: Token bytes to id, which is also their rank.
        nfc: Whether texts are normalised to NFC first.
    """

    pattern: str
    ranks: Mapping[bytes, int]
    nfc: bool


def tiktoken_plan(spec: Spec, unranked: Callable[[], Iterable[str]]) -> TiktokenPlan:
    """Returns the plan for a tokenizer.json that `tiktoken` reproduces exactly.

    `unranked` returns what `find_unranked` returns for it, now or earlier; it is called if nothing else forbids a plan.

    Raises:
        NotServedError: Something in the file cannot be reproduced, or no proof covers it.
    """
    model = spec["model"]
    if model.get("type") != "BPE":
        raise NotServedError(f"its model is {model.get('type')}, not BPE")
    for option in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise NotServedError(f"its model uses {option}")
    kinds = [step.get("type") for step in steps(spec.get("normalizer"))]
    if kinds not in ([], ["NFC"]):
        raise NotServedError(f"it normalises with {' + '.join(map(str, kinds))}")
    refuse_stretched(spec)
    pattern = _pattern(steps(spec.get("pre_tokenizer")))
    return TiktokenPlan(pattern=pattern, ranks=_ranks(spec, unranked), nfc=bool(kinds))


def _ranks(spec: Spec, unranked: Callable[[], Iterable[str]]) -> dict[bytes, int]:
    """Returns the ranks by the three facts above."""
    vocab: dict[str, int] = spec["model"]["vocab"]
    order = [vocab[token] for token in merged_tokens(spec["model"].get("merges") or [])]
    if order != sorted(order):
        raise NotServedError("its merges are not in the order of its ids")
    left_out = set(unranked())
    words = {from_byte_alphabet(token): id_ for token, id_ in vocab.items() if token not in left_out}
    ranks = {word: id_ for word, id_ in words.items() if word is not None}
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise NotServedError("its vocabulary lacks some of the 256 bytes")
    return ranks


def find_unranked(spec: Spec, rust: RustTokenizer) -> list[str]:
    """Returns the tokens that must not have a rank; every token is run through the merges to find them.

    Args:
        spec: The parsed tokenizer.json.
        rust: The package's tokenizer made from it.

    Raises:
        NotServedError: A whole word of two pieces contradicts the first fact.
    """
    whole_words = bool(spec["model"].get("ignore_merges"))
    found: list[str] = []
    for token, pieces in _runs(spec["model"]["vocab"], rust, whole_words):
        if pieces == 1 or from_byte_alphabet(token) is None:
            continue
        if not whole_words:
            found.append(token)
        elif pieces == 2:
            raise NotServedError(f"its token {token!r} is whole as a word but not made by its merges")
    return found


def _runs(vocab: Iterable[str], rust: RustTokenizer, whole_words: bool) -> list[tuple[str, int]]:
    """Returns every token with the number of pieces into which the merges alone split it."""
    model = rust.model
    if whole_words:  # the look-up of whole words is off while the merges are tried
        model.ignore_merges = False
    try:
        tokenize = model.tokenize
        return [(token, len(tokenize(token))) for token in vocab]
    finally:
        if whole_words:
            model.ignore_merges = True


_WORDS = {("Isolated", False), ("Removed", True)}  # what a pattern that matches words is used with
# How the ByteLevel pre-tokeniser splits alone (documented with it; the pattern of the GPT-2 release).
BYTE_LEVEL_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _pattern(splits: list[dict[str, Any]]) -> str:
    """Returns the one regular expression that splits a text as these pre-tokenisers do."""
    kinds = [str(step.get("type")) for step in splits]
    if not splits or kinds[-1] != "ByteLevel":
        raise NotServedError(f"it splits text with {' + '.join(kinds) or 'nothing'}, not at the byte level")
    if splits[-1].get("add_prefix_space", True):
        raise NotServedError("it sets a space before every text")
    own = splits[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and own:
        return BYTE_LEVEL_PATTERN
    if own or len(splits) < 2 or set(kinds[:-1]) != {"Split"}:
        raise NotServedError(f"it splits text with {' + '.join(kinds)}")
    patterns = [split["pattern"].get("Regex") for split in splits[:-1]]
    ways = {(split.get("behavior"), bool(split.get("invert"))) for split in splits[:-1]}
    if None in patterns or not ways <= ({("Isolated", False)} if len(patterns) > 1 else _WORDS):
        raise NotServedError("its splitting rule is not a pattern of words")
    if len(patterns) > 1:
        single = single_pattern(patterns)
        if single is None:
            raise NotServedError(f"it splits text in {len(patterns)} stages, and no single pattern for them is known")
        return single
    if not means_the_same(patterns[0]):
        raise NotServedError("its pattern uses constructs that the two regular expression engines read differently")
    return str(patterns[0])


_HAN = "一-龥぀-ゟ゠-ヿ"
_DEEPSEEK = (
    r"\p{N}{1,3}",
    f"[{_HAN}]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)


def single_pattern(stages: Sequence[str]) -> str | None:
    """Returns the one pattern that splits as these consecutive patterns do, matches isolated; None if none is known."""
    if tuple(stage.replace("\r", r"\r").replace("\n", r"\n") for stage in stages) != _DEEPSEEK:
        return None
    within = (
        rf"[[{_HAN}]--[\p{{L}}\p{{P}}\p{{S}}]]?[[\p{{L}}\p{{M}}]&&[{_HAN}]]+",
        rf"[[\p{{P}}\p{{S}}]&&[{_HAN}]]+",
    )
    known = (
        r"\p{N}{1,3}",
        *within,
        _unmatched(within, f"[{_HAN}]"),
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
        rf"[^\r\n\p{{L}}\p{{P}}\p{{S}}\p{{N}}{_HAN}]?[[\p{{L}}\p{{M}}]--[{_HAN}]]+",
        rf" ?[[\p{{P}}\p{{S}}]--[{_HAN}]]+[\r\n]*",
        r"\s*[\r\n]+",
        rf"\s+(?![^\s\p{{N}}{_HAN}])",
        r"\s+",
    )
    return "|".join((*known, _unmatched(known, r"[\s\S]")))


def _unmatched(alternatives: Sequence[str], character: str) -> str:
    """Returns the pattern of a run in which no alternative matches anywhere: `tiktoken` would leave such a run out."""
    return f"(?:(?!{'|'.join(alternatives)}){character})+"


# \w, \b, anchors, back references, lookbehind, nested classes and class arithmetic differ or are too rare to trust;
# a quantifier after a counted one ({1,3}+) is possessive to one engine and a repetition to the other.
_ATOM = r"\\[rntsSdD]|\\[pP]\{[A-Za-z_]+\}|\\[^\w\s]"
_IN_CLASS = rf"(?:{_ATOM}|(?!&&|--|~~)[^\[\]\\])"
_COMMON = re.compile(
    rf"(?:{_ATOM}|\[\^?{_IN_CLASS}+\]|\(\?i:|\(\?[:=!]|\((?!\?)|\)|\|"
    r"|[?*+][?+]?(?![?*+])|\{\d+(?:,\d*)?\}(?![?*+])|[^\\\[\](){}?*+|.^$])+"
)


def means_the_same(pattern: str) -> bool:
    """Returns whether both regular expression engines read every construct of the pattern alike."""
    return _COMMON.fullmatch(pattern) is not None
