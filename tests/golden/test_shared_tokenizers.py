"""Ids and masks of 200 real rows with each of the shared tokenizers, as one digest a tokenizer and task.

Recorded like the other digests (`tests/golden/digests.py`), by hand:

    python -m tests.golden.test_shared_tokenizers --write <folder with data/ and tokenizers/>
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

import ms_prefstream as mps
from tests.golden.digests import digest

STORED = pathlib.Path(__file__).with_name("shared_tokenizers.json")
DIGESTS: dict[str, str] = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {}
TOKENIZERS = ("internlm2", "qwen2_5", "qwen3")
TASKS: dict[str, Any] = {
    "dpo": mps.DPO(512),
    "reward": mps.Reward(512),
    "rlhf": mps.RLHF(256, 512),
}
CHAT: dict[str, Any] = {"template": "chat"}
TEXT: dict[str, Any] = {"template": None, "boundary": "inference"}


def real_rows(shared: pathlib.Path) -> list[dict[str, Any]]:
    """100 rows of the CValues kind, 50 English and 50 Chinese ones of the ShareGPT kind, in turns."""
    with open(shared / "data/cvalues_like_2k.jsonl", encoding="utf-8") as file:
        cvalues = [json.loads(line) for line in islice(file, 100)]
    demos = [
        json.loads((shared / f"data/dpo_{language}_demo.json").read_text("utf-8"))[:50] for language in ("en", "zh")
    ]
    return [row for rows in zip(cvalues[::2], cvalues[1::2], *demos, strict=True) for row in rows]


def encoded(rows: list[dict[str, Any]], tokenizer: Any, task: Any, **options: Any) -> Iterator[Any]:
    """Ids and spans of both sides, or the reason why a row is dropped."""
    for row in rows:
        result = mps.encode(row, task=task, tokenizer=tokenizer, **options)
        if result.sample is None:
            yield str(result.reason)
            continue
        for sequence in result.sample.sequences:
            yield sequence.ids
            yield [list(map(int, span)) for span in sequence.spans]
        if result.sample.prompt is not None:
            yield result.sample.prompt


def batches(rows: list[dict[str, Any]], tokenizer: Any, task: Any) -> Iterator[Any]:
    """The same rows in the batches of a stream."""
    parts = mps.mix([rows[0::4] + rows[1::4], rows[2::4] + rows[3::4]], stop="all")
    yield from mps.stream(
        parts,
        task=task,
        tokenizer=tokenizer,
        batching=mps.Bucket(8, multiple_of=64),
        template="chat",
        on_bad_row="drop",
    ).batches()


def found(shared: pathlib.Path, tokenizer: str) -> dict[str, str]:
    """The digests of one tokenizer, by case."""
    rows, folder = real_rows(shared), shared / "tokenizers" / tokenizer
    digests = {f"{tokenizer}, {name}, chat": digest(encoded(rows, folder, TASKS[name], **CHAT)) for name in TASKS}
    digests[f"{tokenizer}, dpo, text"] = digest(encoded(rows, folder, TASKS["dpo"], **TEXT))
    return {**digests, f"{tokenizer}, batches": digest(batches(rows, folder, TASKS["dpo"]))}


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_digests(tokenizer: str, shared: pathlib.Path) -> None:
    stored = {name: value for name, value in DIGESTS.items() if name.startswith(f"{tokenizer}, ")}
    assert stored
    assert found(shared, tokenizer) == stored


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"] or len(sys.argv) != 3:
        sys.exit(__doc__)
    recorded: dict[str, str] = {}
    for one in TOKENIZERS:
        recorded |= found(pathlib.Path(sys.argv[2]), one)
    STORED.write_text(json.dumps(recorded, indent=1) + "\n", "utf-8")
