"""The line of code that would make a row of unknown names readable, guessed from its names: for errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

# Words in names, the most telling first.
_BETTER = (
    *("chosen", "preferred", "better", "best", "good", "accepted", "accept", "positive", "pos"),
    *("winner", "winning", "win", "selected", "desirable"),
)
_WORSE = (
    *("rejected", "reject", "dispreferred", "unpreferred", "worse", "worst", "bad", "refused", "negative", "neg"),
    *("loser", "losing", "lose", "undesirable"),
)
_PROMPT = (
    *("prompt", "question", "query", "instruction", "problem", "request", "context", "conversation", "conversations"),
    *("messages", "input", "user", "human", "post", "ask", "q"),
)
_ANSWER = ("response", "answer", "completion", "output", "reply", "assistant", "solution", "generation", "a")
_VERDICT = ("preferred", "preference", "winner", "better", "best", "choice", "chosen", "label", "verdict", "selected")
_FIRST = ("a", "0", "1")  # of two fields that differ in one word only
_SECOND = ("b", "1", "2")
_INNER = ("text", "content", "value", "full")


def ready_line(row: Mapping[str, Any]) -> str | None:
    """Returns an option that makes a row readable: ``fields={"prompt": "question", …}`` or a function; None if unclear.

    Two answers with a verdict (``response_a``, ``response_b``, ``preferred``) need a function, since the better one is
    another field in every row.
    """
    texts = {name: value for name, value in row.items() if isinstance(name, str) and _is_text(value)}
    two = _two_answers(texts)
    names = [name for name in texts if two is None or name not in two]
    prompt = _find(names, _PROMPT, without=(*_BETTER, *_WORSE, *_ANSWER)) or _find(names, _PROMPT)
    rest = [name for name in names if name != prompt]
    better, worse = _find(rest, _BETTER, without=_WORSE), _find(rest, _WORSE)
    if prompt is not None and better is not None and worse is not None:
        return _fields(texts, {"prompt": prompt, "chosen": better, "rejected": worse})
    if two is not None and (prompt is not None or not isinstance(texts[two.first], str)):
        return _function(row, prompt, two)
    if prompt is not None and not {"responses", "completions", "answers"}.isdisjoint(texts):
        return _fields(texts, {"prompt": prompt})
    answers = [name for name in rest if _find([name], _ANSWER)]
    if prompt is not None and better is None and worse is None and len(answers) == 1:
        return _fields(texts, {"prompt": prompt, "response": answers[0]})
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, list, tuple, Mapping, np.ndarray)) and len(value) > 0


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _find(names: Iterable[str], telling: Iterable[str], without: Iterable[str] = ()) -> str | None:
    """Returns the name with the most telling word; of several, the shortest."""
    named = [(name, _words(name)) for name in names]
    others = frozenset(without)
    for word in telling:
        fitting = [name for name, words in named if word in words and others.isdisjoint(words)]
        if fitting:
            return min(fitting, key=lambda name: (len(name), name))
    return None


def _fields(row: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """Returns the option `fields`; None if the row has the standard names already."""
    wanted = {name: path for name, field in names.items() if (path := _path(field, row[field])) != name}
    shown = ", ".join(f'"{name}": "{path}"' for name, path in wanted.items())
    return f"fields={{{shown}}}" if wanted else None


def _path(field: str, value: Any) -> str:
    """Returns the path of the text in a field: ``answer``, or ``answer.text`` if it is the only text of an object."""
    if isinstance(value, Mapping) and not {"role", "from"} & value.keys():
        for key in value:
            if isinstance(value[key], str) and set(_words(str(key))) & set(_INNER):
                return f"{field}.{key}"
    return field


class _Two(NamedTuple):
    """Two fields whose names differ in one word, and that word: ``response_a`` and ``response_b``, ``a`` and ``b``."""

    first: str
    second: str
    one: str
    other: str


def _two_answers(names: Iterable[str]) -> _Two | None:
    """Returns two fields that differ only in a letter or number that counts them; None if there are none."""
    by_words = {tuple(_words(name)): name for name in names}
    for words, name in by_words.items():
        for place, word in enumerate(words):
            for one, other in zip(_FIRST, _SECOND, strict=True):
                second = by_words.get((*words[:place], other, *words[place + 1 :]))
                if word == one and second is not None:
                    return _Two(name, second, one, other)
    return None


def _function(row: Mapping[str, Any], prompt: str | None, two: _Two) -> str:
    """Returns the function that makes a pair of two answers and a verdict."""
    names = [name for name in row if isinstance(name, str) and name not in (prompt, two.first, two.second)]
    verdict = _find([name for name in names if not _is_text(row[name]) or isinstance(row[name], str)], _VERDICT)
    known = verdict is not None and _words(verdict)[-1] in _VERDICT  # a strength of the preference names no side
    condition = "…" if verdict is None else f'row["{verdict}"] {_for_the_first(row[verdict], two) if known else "…"}'
    asked = "" if prompt is None else f'"prompt": row["{prompt}"], '
    sides = [
        f'{{{asked}"chosen": row["{better}"], "rejected": row["{worse}"]}}' for better, worse in (two[:2], two[1::-1])
    ]
    return f"format=lambda row: {sides[0]} if {condition} else {sides[1]}"


def _for_the_first(verdict: Any, two: _Two) -> str:
    """Returns the verdict for the first answer as code, given that of one row: ``"model_a"``; ``…`` if unclear."""
    if isinstance(verdict, str) and verdict.lower().endswith((two.one, two.other)):
        end = two.one.upper() if verdict[-1:].isupper() else two.one
        return f'== "{verdict[: len(verdict) - len(end)]}{end}"'
    if isinstance(verdict, int) and not isinstance(verdict, bool) and str(verdict) in (two.one, two.other):
        return f"== {two.one}"
    return "== …"
