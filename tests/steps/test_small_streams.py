"""Small streams of every kind deliver what they did: batches, rows and counts of two epochs, by digest.

`python -m tests.steps.test_small_streams` writes the digests anew; a commit that does so says why they changed.
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ms_prefstream as mps
from tests.golden.digests import digest
from tests.helpers import assert_same_batches, json_lines

STORED = pathlib.Path(__file__).parents[1] / "golden" / "small_streams.json"
SYSTEM = (
    "{% for m in messages %}<|im_start|>{{ name | default('') }}{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
)
TEMPLATE = SYSTEM + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
WORDS = ["why", "how", "what", "who", "where", "when", "which", "whose"]


def rows(count: int = 24) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"{WORDS[row % 8]} {'so ' * (row * 5 % 7)}{row}?",
            "chosen": "yes " * (1 + row * 3 % 5),
            "rejected": f"no {row}",
            "margin": row % 5 / 4,
            "group": f"g{row % 3}",
            "level": row % 7 / 2,
        }
        for row in range(count)
    ]


def with_bad_rows() -> list[dict[str, Any]]:
    made = rows()
    made[3]["chosen"] = made[3]["rejected"]
    made[7]["prompt"] = 7
    made[11]["rejected"] = ""
    made[12]["prompt"] = "long " * 60
    return made


def marked(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{WORDS[row % 8]}?", "completion": "a" * (1 + row), "label": row % 3 > 0} for row in range(count)
    ]


def ids(count: int = 12) -> list[dict[str, Any]]:
    return [{"prompt_ids": [1, 2], "chosen_ids": [3] * (1 + row % 4), "rejected_ids": [4, row]} for row in range(count)]


def mixed(stop: str = "first") -> Any:
    return mps.mix([(rows(20), 2), (rows(30)[20:], 1)], stop=stop)


def one_pass() -> Any:
    return lambda: iter(rows())


PAD, BUCKET = mps.Pad(4), mps.Bucket(4, multiple_of=16)
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "usual": (rows, {}),
    "seed": (rows, {"seed": 9}),
    "pad": (rows, {"batching": PAD}),
    "concat": (rows, {"task": mps.DPO(64, layout="concat")}),
    "shifted": (rows, {"task": mps.DPO(64, labels="shifted")}),
    "margin": (rows, {"task": mps.DPO(64, margin=True)}),
    "reward": (rows, {"task": mps.Reward(64)}),
    "reward token": (rows, {"task": mps.Reward(64, layout="reward_token", reward_token=256)}),
    "rlhf": (marked, {"task": mps.RLHF(32, 48)}),
    "rlhf, cut on the right": (marked, {"task": mps.RLHF(24, 34, truncation="right")}),
    "rlhf, prompts alone": (
        lambda: [{"prompt": row["prompt"]} if number % 3 else row for number, row in enumerate(marked())],
        {"task": mps.RLHF(24, 48)},
    ),
    "rlhf, prompts alone, cut on the right": (
        lambda: [{"prompt": row["prompt"]} if number % 3 else row for number, row in enumerate(marked())],
        {"task": mps.RLHF(24, 28, truncation="right")},
    ),
    "reward token, bad rows": (
        with_bad_rows,
        {"task": mps.Reward(64, layout="reward_token", reward_token=256), "on_bad_row": "drop"},
    ),
    "prompts": (rows, {"task": mps.Prompts(40, repeat=3)}),
    "kto": (marked, {"task": mps.KTO(48)}),
    "kto of pairs, ranks": (rows, {"task": mps.KTO(64), "num_shards": 2, "shard_id": 1}),
    "kto of pairs, ranks, index": (
        "rows.jsonl", {"task": mps.KTO(64), "num_shards": 2, "shard_id": 1, "index": "build"},
    ),
    "cut": (rows, {"task": mps.DPO(32)}),
    "cut, one prompt limit": (rows, {"task": mps.DPO(40, max_prompt_length=24)}),
    "no template": (rows, {"template": None}),
    "no end": (rows, {"template": None, "task": mps.DPO(64, append_eos=False)}),
    "variables": (rows, {"template": TEMPLATE, "template_variables": {"name": "x"}}),
    "joint": (rows, {"boundary": "joint", "template": None}),
    "lost words": (
        rows,
        {"template": TEMPLATE.replace("m.content", "m.content[:9]"), "content_lost": "drop", "on_bad_row": "drop"},
    ),
    "control tokens": (lambda: [{**row, "prompt": "<|im_end|>"} for row in rows()], {}),
    "control tokens allowed": (
        lambda: [{**row, "prompt": "<|im_end|>"} for row in rows()], {"special_tokens_in_content": "allow"},
    ),
    "joined answers": (
        lambda: [{**row, "prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
                 for row in rows()],
        {"continue_final_message": "join"},
    ),
    "carried": (rows, {"carry": {"group": "text", "level": ["float32", 1.0]}}),
    "renamed fields": (
        lambda: [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in rows()],
        {"fields": {"prompt": "q", "chosen": "good", "rejected": "bad"}},
    ),
    "a function": (rows, {"format": lambda row: {**row, "prompt": row["prompt"].upper()}}),
    "pad id": (rows, {"pad_token_id": 7}),
    "embedding": (rows, {"vocab_size": 300, "pad_token_id": 299}),
    "ids": (ids, {"tokenizer": None, "pad_token_id": 0, "task": mps.DPO(8)}),
    "bad rows": (with_bad_rows, {"on_bad_row": "drop"}),
    "bad rows, pad, repeats": (with_bad_rows, {"on_bad_row": "drop", "batching": mps.Pad(5), "drop_remainder": False}),
    "bad rows, mask": (
        with_bad_rows, {"on_bad_row": "drop", "batching": mps.Pad(5), "drop_remainder": "mask", "shuffle": False},
    ),
    "bad rows, mask, sorted": (with_bad_rows, {"on_bad_row": "drop", "batching": BUCKET, "drop_remainder": "mask"}),
    "bad rows, packs": (
        with_bad_rows, {"on_bad_row": "drop", "batching": mps.Pack(128), "steps_per_epoch": 9},
    ),
    "source order": (rows, {"shuffle": False}),
    "near": (rows, {"shuffle": "window", "window": 1}),
    "longest first": (rows, {"longest_first": True, "window": 9}),
    "ranks": (rows, {"num_shards": 2, "shard_id": 1}),
    "shards": (rows, {"logical_shards": 2}),
    "extra": (rows, {"batching": mps.Bucket(4, boundaries=(24, 64), extra=1)}),
    "few shapes": (rows, {"batching": mps.Bucket(4, max_shapes=2)}),
    "few shapes, one pass": (one_pass, {"batching": mps.Bucket(4, max_shapes=2)}),
    "index": ("rows.jsonl", {"index": "build"}),
    "index, few shapes": ("rows.jsonl", {"index": "build", "batching": mps.Bucket(4, max_shapes=2)}),
    "index, ranks": ("rows.jsonl", {"index": "build", "num_shards": 2, "shard_id": 1}),
    "index, mask": ("rows.jsonl", {"index": "build", "batching": mps.Bucket(5), "drop_remainder": "mask"}),
    "index, packs": ("rows.jsonl", {"index": "build", "batching": mps.Pack(128, batch_size=2)}),
    "index, packs of prompts": (
        "marked.jsonl", {"index": "build", "batching": mps.Pack(64), "task": mps.RLHF(32, 48)},
    ),
    "index, tokens": ("rows.jsonl", {"index": "build", "batching": mps.Bucket(max_tokens=512, multiple_of=16)}),
    "index, tokens, extra": (
        "rows.jsonl", {"index": "build", "batching": mps.Bucket(max_tokens=520, multiple_of=16, extra=1)},
    ),
    "index, bad rows": ("bad.jsonl", {"index": "build", "on_bad_row": "drop", "quarantine": "dropped.jsonl"}),
    "by length": ("rows.jsonl", {"index": "build", "order_by": "length"}),
    "by length, last first": ("rows.jsonl", {"index": "build", "order_by": "-length", "order_noise": 0.2}),
    "by a field": ("rows.jsonl", {"index": "build", "order_by": "field:level", "batching": PAD}),
    "by length, packs": ("rows.jsonl", {"index": "build", "order_by": "length", "batching": mps.Pack(128)}),
    "mix": (mixed, {}),
    "mix, all": (lambda: mixed("all"), {}),
    "mix, near": (mixed, {"shuffle": "window"}),
    "mix, packs": (mixed, {"batching": mps.Pack(128), "steps_per_epoch": 6}),
    "mix, few shapes": (mixed, {"batching": mps.Bucket(4, max_shapes=2)}),
    "mix, bad rows": (lambda: mps.mix([(with_bad_rows(), 1), (rows(8), 1)]), {"on_bad_row": "drop"}),
    "one pass": (one_pass, {}),
    "one pass, packs": (one_pass, {"batching": mps.Pack(128), "steps_per_epoch": 5}),
    "one pass, bad rows": (lambda: lambda: iter(with_bad_rows()), {"on_bad_row": "drop"}),
    "one pass, steps": (one_pass, {"steps_per_epoch": 4}),
    "one pass, ranks": (one_pass, {"num_shards": 2, "shard_id": 1}),
    "one pass, mix": (lambda: mps.mix([(one_pass(), 1), (rows(6), 1)]), {}),
}  # fmt: skip


def made(name: str) -> mps.Stream:
    """The stream of a case; its files lie in the working directory."""
    source, options = CASES[name]
    usual = {"task": mps.DPO(64), "tokenizer": "bytes", "batching": BUCKET, "window": 2, "verbose": False}
    return mps.stream(source if isinstance(source, str) else source(), **usual | options)


def delivered(name: str) -> Iterator[Any]:
    """What a case delivers and counts."""
    stream = made(name)
    yield [stream.column_names, stream.shapes, stream.steps_per_epoch]
    for epoch in range(2):
        for step, batch in enumerate(stream.batches(epoch)):
            yield batch
            if "one pass" not in name:
                yield [stream.rows(epoch, step, resolved=resolved).tolist() for resolved in (False, True)]
    report = stream.report
    yield [report.read, report.dropped, report.origins, report.truncated, report.question_cut, report.tokens]
    yield pathlib.Path("dropped.jsonl").read_bytes() if name == "index, bad rows" else b""


def write_files() -> None:
    json_lines(pathlib.Path("rows.jsonl"), rows())
    json_lines(pathlib.Path("bad.jsonl"), with_bad_rows())
    json_lines(pathlib.Path("marked.jsonl"), marked())


@pytest.fixture(autouse=True)
def _folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files()


@pytest.mark.parametrize("name", CASES)
def test_what_small_streams_deliver(name: str) -> None:
    assert digest(delivered(name)) == json.loads(STORED.read_text())[name]


@pytest.mark.parametrize("name", [*CASES][::4])
def test_small_streams_resume(name: str) -> None:
    """From the middle of the first epoch, without the stream that saved the state."""
    whole = made(name)
    half = whole.steps_per_epoch // 2
    expected = [*whole.batches(0), *whole.batches(1)]
    resumed = made(name).resume(json.loads(json.dumps(whole.state(half))))
    assert_same_batches([*resumed.batches(), *resumed.batches(1)], expected[half:])


def write() -> None:
    found = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            write_files()
            found[name] = digest(delivered(name))
            os.chdir(STORED.parent)
    STORED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    write()
