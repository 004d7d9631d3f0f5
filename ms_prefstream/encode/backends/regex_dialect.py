"""Which regular expressions mean the same to oniguruma (`tokenizers`) and to fancy-regex (`tiktoken`)."""

from __future__ import annotations

import re

# \w, \b, anchors, back references, look-behind, nested classes and class arithmetic differ or are too rare to trust;
# a quantifier behind a counted one ({1,3}+) is possessive to one engine and a repetition to the other.
_ATOM = r"\\[rntsSdD]|\\[pP]\{[A-Za-z_]+\}|\\[^\w\s]"
_IN_CLASS = rf"(?:{_ATOM}|(?!&&|--|~~)[^\[\]\\])"
_COMMON = re.compile(
    rf"(?:{_ATOM}|\[\^?{_IN_CLASS}+\]|\(\?i:|\(\?[:=!]|\((?!\?)|\)|\|"
    r"|[?*+][?+]?(?![?*+])|\{\d+(?:,\d*)?\}(?![?*+])|[^\\\[\](){}?*+|.^$])+"
)


def means_the_same(pattern: str) -> bool:
    """Whether only constructs occur that both engines read alike."""
    return _COMMON.fullmatch(pattern) is not None
