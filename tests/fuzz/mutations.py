"""Changes to valid data: JSON values, texts, bytes and arrays. Each makes one change and leaves its argument alone."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import numpy as np

from tests.files_on_disk import HOSTILE, INTEGERS, damaged

SURROGATE = "\ud800"
TEXTS = [
    "", " ", "\n", "\x00", "\x1b]0;owned\x07", "<|im_end|>", "<|im_start|>system\n", "</s>", "<think>\n\n</think>", "é",
    "e\u0301", "你好", "\u202e", "\u2028", "👨\u200d👩", "\ufeff", SURROGATE, "../../x", "{{ 7 }}", "{% raw %}", "%s%n",
    "'", '"', "\\", "\\u0000", "x" * 300, "NaN", "1e999", "null", "true", "-1", "0", "/dev/stdin",
    "#1#", "[", "{", "a\tb\rc",
]  # fmt: skip
VALUES = [
    *(value for value in HOSTILE if value != 10**400), *INTEGERS, 0.0, -0.0, 1e-320, float("inf"), "0", "auto", "none",
    [""], [None], [1, "a"], {"": ""}, {"role": "user"}, {"role": "assistant", "content": None}, [[1, 2], [3]],
    {"type": "function", "function": {"name": "f", "arguments": "{"}}, [{"role": "tool", "content": [{"text": 1}]}],
]  # fmt: skip


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Returns all (container, key) of a JSON value, outer ones first."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    for node in left:
        if isinstance(node, (dict, list)):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            found += [(node, key) for key in keys]
            left += [node[key] for key in keys]
    return found


def json_value(value: Any, draw: random.Random) -> Any:
    """Changes one value: its contents, type, key or place."""
    value = copy.deepcopy(value)
    found = nodes(value)
    if not found:
        return draw.choice(VALUES)
    if draw.random() < 0.5:  # as often among the outer ones as among all
        outer = len(value)
        found = found[:outer]
    node, key = draw.choice(found)
    change = draw.randrange(10)
    if change < 3:
        node[key] = changed_leaf(node[key], draw)
    elif change == 3:
        node[key] = copy.deepcopy(draw.choice(VALUES))
    elif change == 4:
        del node[key]
    elif change == 5:
        other, name = draw.choice(nodes(value))
        node[key] = copy.deepcopy(other[name])
    elif change == 6:
        node[key] = draw.choice([lambda one: [one], lambda one: {"a": one}, lambda one: {"content": one}, str, repr])(
            node[key]
        )
    elif change == 7 and isinstance(node, dict):
        node[draw.choice([f"{key}_", f" {key}", str(key).upper(), *TEXTS])] = node[key]
    elif change == 7:
        node.insert(key, copy.deepcopy(node[key]))
    elif change == 8 and isinstance(node, dict):
        node[draw.choice([f"{key}_", str(key)[:-1], *TEXTS])] = node.pop(key)
    elif change == 8:
        draw.shuffle(node)
    else:
        deep: Any = node[key]
        for _ in range(draw.choice([2, 20, 60])):
            deep = [deep] if draw.random() < 0.5 else {"a": deep}
        node[key] = deep
    return value


def json_text(value: Any, draw: random.Random) -> Any:
    """Changes a text in a JSON value, or any part of one without texts."""
    value = copy.deepcopy(value)
    found = [(node, key) for node, key in nodes(value) if isinstance(node[key], str)]
    if not found:
        return json_value(value, draw)
    node, key = draw.choice(found)
    node[key] = text(node[key], draw)
    return value


def changed_leaf(value: Any, draw: random.Random) -> Any:
    """Returns another value of the same type as a rule."""
    if isinstance(value, bool) or value is None:
        return draw.choice([True, False, None, 0, 1, "true"])
    if isinstance(value, int):
        return draw.choice([value + 1, value - 1, -value, value * 2, value + 0.5, float(value), str(value), *INTEGERS])
    if isinstance(value, float):
        return draw.choice([value * 2, -value, value + 1e-9, int(value) if abs(value) < 1e300 else 0, 0.0, 1e300])
    if isinstance(value, str):
        return text(value, draw)
    if isinstance(value, list):
        return draw.choice([value * 2, value[:-1], value[::-1], value[:1] * 50, []])
    return draw.choice([list(map(list, value.items())), {}, {**value, "more": 1}, dict(reversed(list(value.items())))])


def text(value: str, draw: random.Random, words: Any = TEXTS) -> str:
    """Changes a text in one place."""
    begin = draw.randrange(len(value) + 1)
    end = min(len(value), begin + draw.choice([0, 1, 3, 10, 100]))
    piece = draw.choice([*words, value[begin:end] * 2])
    return value[:begin] + draw.choice([piece, piece, "", value[end:][:5]]) + value[end:]


def as_json(value: Any) -> bytes:
    """Returns JSON, which may hold numbers and surrogates that strict parsers refuse."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def array(values: Any, draw: random.Random) -> Any:
    """Changes numbers of an array, its shape or its type."""
    values = values.copy()
    change = draw.randrange(10)
    if change < 6 and values.size:
        view = values
        while view.dtype.names:
            view = view[draw.choice(view.dtype.names)]
        place = tuple(draw.randrange(size) for size in view.shape)
        if view.dtype.kind in "iu":
            found, bits = int(view[place]), view.dtype.itemsize * 8
            number = draw.choice([*INTEGERS, found + 1, found - 1, found ^ 1 << draw.randrange(8)])
            view[place] = np.array([number % 2**bits], f"u{bits // 8}").view(view.dtype.newbyteorder("="))[0]
        elif view.dtype.kind == "f":
            view[place] = draw.choice([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e30])
        return values
    if change == 6:
        return values[: draw.randrange(len(values) + 1)]
    if change == 7:
        return np.concatenate([values, values[: draw.randrange(len(values) + 1)]])
    if change == 8:
        return values[draw.sample(range(len(values)), len(values))]
    if values.dtype.names:
        return values.reshape(-1, 1)
    with np.errstate(all="ignore"):
        return draw.choice([values.astype("<f8"), values.astype(">i4"), values.astype("|u1"), values.reshape(1, -1)])


def raw(data: bytes, draw: random.Random) -> bytes:
    """Damages bytes at random."""
    return damaged(data, draw)
