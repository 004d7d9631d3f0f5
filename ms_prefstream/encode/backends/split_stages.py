r"""Splitting rules in several stages as one pattern, for the families that have them.

A tokenizer.json may split a text with one pattern, every piece of that with the next, and so on; `tiktoken` knows a
single pattern. The two agree when every alternative of the single one matches only inside a piece of the stages before
it, sees no further than the border of that piece, and what no alternative matches is kept as a piece of its own.

DeepSeek (V3, R1 and what is distilled from them) isolates up to three digits, then runs of Chinese and kana, then
words. In one pattern:

* Digits and the characters of the second stage (`_HAN` below) are taken out of every class of the word pattern.
* The third stage looks at the pieces of the second one too: a run of `_HAN` falls into letters and symbols, hence the
  word pattern once more, confined to `_HAN`. Digits match nothing in it and stay as they are.
* ``\s+(?!\S)`` looks ahead: at the end of a piece nothing follows, so a digit or a character of `_HAN` behind the
  spaces counts as nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

_HAN = "一-龥぀-ゟ゠-ヿ"
_DEEPSEEK = (
    r"\p{N}{1,3}",
    f"[{_HAN}]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)


def single_pattern(stages: Sequence[str]) -> str | None:
    """The one pattern that splits as these patterns do one after the other, matches isolated; None if none is known.

    Args:
        stages: The patterns in their order, line breaks written as in the file or as escapes.
    """
    written = tuple(stage.replace("\r", r"\r").replace("\n", r"\n") for stage in stages)
    return _deepseek() if written == _DEEPSEEK else None


def _deepseek() -> str:
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
    """A run of characters at none of which an alternative matches: `tiktoken` would leave it out."""
    return f"(?:(?!{'|'.join(alternatives)}){character})+"
