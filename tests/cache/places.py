"""Sources, tasks and comparisons that the tests of caches share."""

from __future__ import annotations

import pathlib
from typing import Any

import ms_prefstream as mps
from tests.helpers import PAD, Row, json_lines, pairs

TASKS = {
    "dpo": mps.DPO(128, truncation="drop", margin=True),
    "reward": mps.Reward(128),
    "reward_token": mps.Reward(128, layout="reward_token", reward_token=259),
    "rlhf": mps.RLHF(48, 128),
}
LAYOUTS = {
    "mindrlhf dpo": ("mindrlhf", mps.DPO(128)),
    "mindrlhf dpo shifted": ("mindrlhf", mps.DPO(128, labels="shifted")),
    "mindrlhf rlhf": ("mindrlhf", mps.RLHF(48, 128)),
    "mindformers reward": ("mindformers", mps.Reward(128)),
}
PART = 16  # rows of a part


def rows_with_bad(count: int = 50) -> list[Any]:
    """Pairs among which some can never be used (both sides alike, or an empty answer)."""
    rows: list[Row] = pairs(count)
    for row in range(3, count, 7):
        rows[row] |= {"rejected": rows[row]["chosen"]}
    for row in range(5, count, 17):
        rows[row] |= {"chosen": ""}
    return rows


def source(folder: pathlib.Path, rows: list[Any] | None = None) -> str:
    """Such rows as a JSON Lines file."""
    return str(json_lines(folder / "rows.jsonl", rows_with_bad() if rows is None else rows))


def stream_of(source: Any, task: Any, batching: Any = None, **options: Any) -> mps.Stream:
    """A stream with the tokenizer "bytes", unless it reads a cache."""
    options.setdefault("tokenizer", "bytes")
    options.setdefault("seed", 3)
    return mps.stream(source, task=task, batching=batching or mps.Pad(1), **options)


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file in a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip(path: pathlib.Path, at: int) -> None:
    """Change one bit of a file; negative places count from the end."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


__all__ = ["LAYOUTS", "PAD", "PART", "TASKS", "flip", "rows_with_bad", "source", "stream_of", "tree"]
