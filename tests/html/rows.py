"""Rows of many kinds for reports, hostile ones among them, and what each filter must find."""

from __future__ import annotations

import json
import pathlib
from typing import Any

HOSTILE = (
    "</script><script>window.owned=1</script>",
    "<img src=x onerror='window.owned=1'>",
    "<!--<script>",
    "]]>&lt;b&gt;&#x3c;script&#x3e;",
    "${window.owned=1}{{ 7 * 7 }}{% raw %}",
    "\u2028\u2029\u202eevil\u2066",
    "\x1b]0;owned\x07\x00",
    "javascript:window.owned=1",
    "\ud83d lone",
    "__proto__",
)
DPO = ["--task", "dpo", "--max-length", "160", "--tokenizer", "bytes"]


def lines(count: int) -> list[Any]:
    """So many rows: every tenth is dropped, every seventh other one is cut, every ninth has an unread field."""
    found: list[Any] = []
    for n in range(count):
        row: dict[str, Any] = {
            "prompt": f"#{n}# Why?",
            "chosen": "yes " * (1 + n % 13),
            "rejected": "no " * (1 + n % 11),
        }
        if n % 10 == 3:
            row = {"prompt": n}
        elif n % 7 == 5:
            row["prompt"] += " long" * 40
        if n % 9 == 4 and n % 10 != 3:
            row["remarks"] = "nobody reads this"
        found.append(row)
    for n, text in enumerate(HOSTILE):
        found.append({"prompt": f"hostile {n} {text}", "chosen": text, "rejected": f"{text} no", f"field{text}": text})
    return found


def write(path: pathlib.Path, count: int) -> pathlib.Path:
    """Writes the rows as JSON Lines, ASCII alone: lone surrogates are escapes."""
    path.write_text("".join(json.dumps(row) + "\n" for row in lines(count)), "ascii")
    return path
