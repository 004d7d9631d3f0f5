"""Every number of `mps.stats` against the same number counted in another way, on real and on bundled rows."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.demo import data_path
from ms_prefstream.stats.parts import LengthGap, Lengths, Sides
from tests.helpers import Row, json_lines, pairs

Texts = tuple[list[str], list[str], list[str]]
"""The contents of the messages of prompt, chosen and rejected."""
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"


def rows_in(path: pathlib.Path) -> list[Row]:
    text = path.read_text("utf-8")
    found: list[Row] = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return found


def texts_of(row: Row) -> Texts:
    """The texts of a CValues row, of a ShareGPT row, or of a row of messages."""
    if "pos_resp" in row:
        return [row["prompt"]], [row["pos_resp"]], [row["neg_resp"]]
    if "conversations" in row:
        system = [row["system"]] if row.get("system") else []
        return (
            system + [turn["value"] for turn in row["conversations"]],
            [row["chosen"]["value"]],
            [row["rejected"]["value"]],
        )
    return tuple([message["content"] for message in row[side]] for side in ("prompt", "chosen", "rejected"))  # type: ignore[return-value]


def assert_lengths(found: Lengths, values: list[int]) -> None:
    assert found.count == len(values)
    assert found.max == max(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert (found.p50, found.p90, found.p99) == tuple(np.quantile(values, (0.5, 0.9, 0.99)))
    assert sum(found.histogram.counts) == len(values)
    assert found.histogram.counts == tuple(np.histogram(values, bins=found.histogram.edges)[0])
    assert found.histogram.edges[0] <= min(values)
    assert found.histogram.edges[-1] >= max(values)


def assert_sides(found: Sides | None, rows: list[list[int]]) -> None:
    assert found is not None
    for lengths, values in zip((found.prompt, found.chosen, found.rejected), zip(*rows, strict=True), strict=True):
        assert_lengths(lengths, list(values))


def assert_gap(found: LengthGap, unit: str, rows: list[list[int]]) -> None:
    gaps = [chosen - rejected for _, chosen, rejected in rows]
    assert (found.unit, found.pairs) == (unit, len(gaps))
    assert found.chosen_longer == sum(gap > 0 for gap in gaps)
    assert found.rejected_longer == sum(gap < 0 for gap in gaps)
    assert found.by == np.median([gap for gap in gaps if gap > 0])
    assert found.rejected_by == np.median([-gap for gap in gaps if gap < 0])
    assert found.mean == pytest.approx(np.mean(gaps))
    assert found.share == found.chosen_longer / len(gaps)
    assert found.histogram.counts == tuple(np.histogram(gaps, bins=found.histogram.edges)[0])


def sizes(rows: list[Texts], measure: Any) -> list[list[int]]:
    return [[sum(map(measure, side)) for side in row] for row in rows]


def assert_repeats(found: mps.Stats, rows: list[Row], prompts: list[Any]) -> None:
    counts = Counter(map(repr, prompts))
    often = {prompt: count for prompt, count in counts.items() if count > 1}
    assert found.prompts.distinct == len(counts)
    assert found.prompts.repeated.rows == sum(often.values())
    assert found.prompts.repeated.groups == len(often)
    for one, other in found.prompts.repeated.first:
        assert one != other
        assert prompts[one] == prompts[other]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cvalues_like_2k.jsonl", "dpo_en_demo.json", "dpo_zh_demo.json"])
def test_characters_and_tokens_of_real_rows(shared: pathlib.Path, name: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path, folder = shared / "data" / name, shared / "tokenizers" / "qwen2_5"
    rows = rows_in(path)
    texts = [texts_of(row) for row in rows]
    found = mps.stats(path, tokenizer=folder)
    assert found.rows == len(rows)
    assert found.kinds == {"pairs": len(rows)}
    assert found.dropped == {}

    assert_sides(found.characters, sizes(texts, len))
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_truncation()
    tokens = sizes(texts, lambda text: len(theirs.encode(text, add_special_tokens=False).ids))
    assert_sides(found.tokens, tokens)
    assert_gap(found.gap, "tokens", tokens)
    assert_gap(mps.stats(path).gap, "characters", sizes(texts, len))
    assert_repeats(found, rows, [row["prompt"] if "prompt" in row else row["conversations"] for row in rows])

    whole = [[len(theirs.encode(text).ids) for text in rendered(row)] for row in rows]
    assert found.sequences is not None
    assert_lengths(found.sequences.chosen, [chosen for chosen, _ in whole])
    assert_lengths(found.sequences.rejected, [rejected for _, rejected in whole])
    assert_lengths(found.sequences.longer, list(map(max, whole)))
    assert [(cut.length, cut.rows) for cut in found.cut] == [
        (limit, sum(max(row) > limit for row in whole)) for limit in (512, 1024, 2048, 4096)
    ]
    assert found.cut[0].share == found.cut[0].rows / len(rows)


def rendered(row: Row) -> tuple[str, str]:
    """Both sides of a row in Qwen2.5's ChatML."""
    turns = [("user", row["prompt"])] if "prompt" in row else []
    for turn in row.get("conversations", []):
        turns.append(({"human": "user", "gpt": "assistant", "system": "system"}[turn["from"]], turn["value"]))
    system = f"<|im_start|>system\n{row['system']}<|im_end|>\n" if row.get("system") else QWEN
    if turns[0][0] == "system":
        system = ""
    head = system + "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    chosen, rejected = texts_of(row)[1:]
    return tuple(f"{head}<|im_start|>assistant\n{text}<|im_end|>\n" for (text,) in (chosen, rejected))  # type: ignore[return-value]


def test_types_of_cvalues(shared: pathlib.Path) -> None:
    path = shared / "data" / "cvalues_like_2k.jsonl"
    rows = rows_in(path)
    found = mps.stats(path)
    types = Counter(f"{row['pos_type']}>{row['neg_type']}" for row in rows)
    assert {name: one.rows for name, one in found.by_type.items()} == types
    assert list(found.by_type) == [name for name, _ in types.most_common()]
    assert {one.name for one in found.by_type.values()} == {"hard", "medium", "easy"}
    assert found.by_type["拒绝&正向建议>拒绝为主"].name == "hard"
    for name, one in found.by_type.items():
        mine = [texts_of(row) for row in rows if f"{row['pos_type']}>{row['neg_type']}" == name]
        assert_sides(one.characters, sizes(mine, len))
    assert found.unread == {}


def test_bundled_rows_in_bytes() -> None:
    rows = rows_in(pathlib.Path(data_path()))
    texts = [texts_of(row) for row in rows]
    found = mps.stats(data_path(), tokenizer="bytes")
    assert found.rows == len(rows)
    assert_sides(found.characters, sizes(texts, len))
    in_bytes = sizes(texts, lambda text: len(text.encode()))
    assert_sides(found.tokens, in_bytes)
    assert_gap(found.gap, "tokens", in_bytes)
    assert_repeats(found, rows, [row["prompt"] for row in rows])


def test_cuts_are_those_of_a_stream(tmp_path: pathlib.Path) -> None:
    rows = pairs(60)
    for number, row in enumerate(rows):
        row["prompt"] *= 1 + number % 9
    path = json_lines(tmp_path / "rows.jsonl", rows)
    found = mps.stats(path, tokenizer="bytes", limits=(48, 80, 100, 4000))
    assert [cut.length for cut in found.cut] == [48, 80, 100, 4000]
    for cut in found.cut:
        stream = mps.stream(
            path, task=mps.DPO(cut.length), tokenizer="bytes", batching=mps.Pad(1), index="build", verbose=False
        )
        list(stream.batches())
        assert (cut.rows - cut.dropped, cut.question_lost) == (stream.report.truncated, stream.report.question_cut)
        assert cut.dropped == stream.report.dropped.total()
    assert found.cut[0].question_lost > 0
    assert 0 < found.cut[2].rows < found.cut[1].rows


@pytest.mark.parametrize("kind", ["pad", "bucket", "bucket_max_shapes", "pack"])
@pytest.mark.parametrize(
    "task", [mps.DPO(128), mps.DPO(64, truncation="drop"), mps.RLHF(60, 128)], ids=["dpo", "dpo drop", "rlhf"]
)
def test_padding_is_that_of_a_stream_with_an_index(tmp_path: pathlib.Path, task: Any, kind: str) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(203))
    found = mps.stats(path, tokenizer="bytes", task=task, batch_size=4)
    one = found.padding[kind]
    assert found.max_length == task.length
    rule = eval(one.rule, vars(mps))  # as a person writes it
    assert type(rule) is {"pad": mps.Pad, "pack": mps.Pack}.get(kind, mps.Bucket)
    stream = mps.stream(path, task=task, tokenizer="bytes", batching=rule, index="build", verbose=False)
    list(stream.batches())
    assert one.steps == stream.steps_per_epoch
    assert (one.tokens, one.cells) == (stream.report.tokens, stream.report.cells)
    assert one.padding == pytest.approx(stream.report.padding)
    assert one.shapes == len(stream.report.widths)


def test_suggestions() -> None:
    rows = [{"prompt": "q", "chosen": "x" * (10 + row), "rejected": "y"} for row in range(400)]
    rows[7]["chosen"] = "z" * 5000
    found = mps.stats(rows, tokenizer="bytes")
    longer = found.sequences.longer  # type: ignore[union-attr]
    best = found.suggested
    assert best is not None
    assert best.max_length % 64 == 0
    assert longer.p99 <= best.max_length < longer.p99 + 64
    assert best.max_length == found.max_length
    assert best.pack % best.max_length == 0
    assert found.padding["pack"].padding < 0.02
    assert mps.stats(rows, tokenizer="bytes", task=mps.DPO(128)).suggested == best  # whatever the task's own limit
    assert found.padding["bucket_max_shapes"].rule == f"Bucket(8, max_shapes={best.max_shapes})"


def test_rules_that_a_task_refuses_are_left_out() -> None:
    for task in (mps.Reward(128), mps.DPO(128, layout="concat")):
        assert list(mps.stats(pairs(30), tokenizer="bytes", task=task).padding) == [
            "pad",
            "bucket",
            "bucket_max_shapes",
        ]
    nothing = mps.stats(pairs(30), tokenizer="bytes", task=mps.DPO(16, truncation="drop"))
    assert (nothing.padding, nothing.max_length, nothing.usable) == ({}, None, 30)
    assert nothing.cut[0].dropped == 30
    assert "dropped at          16 30 rows" in str(nothing)
