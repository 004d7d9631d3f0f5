"""What a stream found: a summary of at most eight lines, and each warning once, through the logger alone."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.report.findings import NO_TEMPLATE
from tests.helpers import Row, json_lines, pairs

BARE = dataclasses.replace(load_tokenizer("bytes"), chat_template=None, name="bare")


def stream(source: Any, **options: Any) -> mps.Stream:
    usual: dict[str, Any] = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": mps.Bucket(4)}
    return mps.stream(source, **usual | options)


def said(caplog: pytest.LogCaptureFixture, level: str) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelname == level and one.name == "ms_prefstream"]


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ms_prefstream")


def test_the_summary(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(120))
    made = stream(path, seed=7, num_shards=2, shard_id=0)
    (summary,) = said(caplog, "INFO")
    for part in (
        "DPO  rows.jsonl · 120 rows · strings",
        "bytes · bytes · boundary joint · chat template",
        "max_length 128",
        "4 rows a step · 15 steps an epoch · widths 64 128",
        "rank 0 of 2 · seed 7 · no length index",
    ):
        assert part in summary, summary
    assert summary in repr(made)
    assert str(made) == repr(made)
    caplog.clear()
    stream(path, num_shards=2, shard_id=1)
    assert not said(caplog, "INFO"), "rank 0 alone"
    stream(path, verbose=False)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_at_most_eight_lines_of_a_hundred_columns(tmp_path: pathlib.Path) -> None:
    rows = [{"prompt": '[{"role": "user"}]', "chosen": "long text", "rejected": "x"}] * 80
    made = stream(json_lines(tmp_path / ("x" * 120 + ".jsonl"), rows), tokenizer=BARE, task=mps.DPO(20, margin=False))
    next(made.batches())
    assert len(made.report.warnings) > 3
    assert len(repr(made).splitlines()) <= 8
    assert max(map(len, repr(made).splitlines())) < 100
    assert "more, see stream.report" in repr(made)


def test_no_chat_template_is_said_and_stays(caplog: pytest.LogCaptureFixture) -> None:
    made = stream(pairs(40), tokenizer=BARE)
    (warning,) = said(caplog, "WARNING")
    assert warning.startswith(NO_TEMPLATE)
    assert "template=" in warning
    assert NO_TEMPLATE in str(made.report).splitlines()
    assert NO_TEMPLATE in repr(made)
    row = mps.encode(pairs(1)[0], task=mps.DPO(128), tokenizer=BARE)
    assert NO_TEMPLATE in row.notes
    caplog.clear()
    meant = stream(pairs(40), template=None)
    assert not said(caplog, "WARNING"), "it was asked for"
    assert NO_TEMPLATE in str(meant.report)
    assert NO_TEMPLATE not in str(stream(pairs(40)).report)
    ids = [{"prompt_ids": [1], "chosen_ids": [2, row], "rejected_ids": [3]} for row in range(30)]
    assert not stream(ids, tokenizer=BARE, task=mps.DPO(8)).report.warnings[1:], "nothing is joined"


@pytest.mark.parametrize("batching", [mps.Pad(4), mps.Bucket(4), mps.Bucket(4, max_shapes=2)], ids=repr)
@pytest.mark.parametrize("kind", ["list", "file", "gzip", "generator", "index"])
def test_lost_questions_are_said_at_the_first_window(
    kind: str, batching: Any, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{**row, "prompt": "word " * (20 + at % 5)} for at, row in enumerate(pairs(200))]
    source: Any = {"list": rows, "generator": lambda: iter(rows)}.get(kind)
    if kind == "gzip":
        with gzip.open(source := tmp_path / "rows.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    source = json_lines(tmp_path / "rows.jsonl", rows) if source is None else source
    made = stream(source, task=mps.DPO(40), batching=batching, index="build" if kind == "index" else "auto")
    assert not [one for one in made.report.warnings if "question" in one], "nothing is tokenised beforehand"
    list(made.batches())
    list(made.batches(1))
    (warning,) = [one for one in said(caplog, "WARNING") if "lose their whole question" in one]
    first, second = (int(part.split()[0]) for part in warning.split("max_length=")[1:])
    assert 100 < first <= second <= 240
    whole = stream(source, task=mps.DPO(second), batching=mps.Bucket(4), index=None)
    list(whole.batches())
    assert whole.report.truncated <= 0.02 * whole.report.read
    assert not [one for one in whole.report.warnings if "lose" in one or "are cut" in one]


def test_cut_rows_are_said_without_a_lost_question(caplog: pytest.LogCaptureFixture) -> None:
    old = [{"role": "user", "content": "hello " * 9}, {"role": "assistant", "content": "hi " * 9}]
    last = [{"role": "user", "content": "why?"}]
    rows = [
        {"prompt": [*old, *last] if row % 2 else last, "chosen": f"a{row}", "rejected": f"b{row}"} for row in range(100)
    ]
    list(stream(rows, task=mps.DPO(60)).batches())
    (warning,) = said(caplog, "WARNING")
    assert re.match(r"max_length 60: \d+ of \d+ rows are cut\. max_length=\d+ keeps 90 % .* 99 %\.$", warning)


def test_prompts_alone_and_one_side_that_is_always_longer(caplog: pytest.LogCaptureFixture) -> None:
    stream([{"prompt": f"q {row}"} for row in range(30)], task=mps.RLHF(60, 80))
    assert "30 of 30 rows have no response" in said(caplog, "WARNING")[0]
    caplog.clear()
    stream([{"prompt": f"q{row}", "chosen": "long answer", "rejected": "x"} for row in range(30)])
    assert "chosen is longer in 30 of 30 pairs" in said(caplog, "WARNING")[0]
    caplog.clear()
    stream([{"prompt": "q", "chosen": "a", "rejected": "b"}] * 30)
    assert "29 of the first 30 rows repeat another row" in said(caplog, "WARNING")[0]


def test_a_source_that_is_read_once_is_judged_at_its_first_window(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"q{row}"} for row in range(100)]
    made = stream(iter(rows), task=mps.RLHF(60, 80), steps_per_epoch=20)
    assert not said(caplog, "WARNING")
    list(made.batches())
    assert "have no response" in said(caplog, "WARNING")[0]


class Counted:
    """Rows of a class of the user, which counts what is read."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows, self.read = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Row:
        self.read += 1
        return self.rows[row]


def test_a_source_that_is_read_once_is_not_touched() -> None:
    taken: list[int] = []

    def rows() -> Iterator[Row]:
        for at, row in enumerate(pairs(40)):
            taken.append(at)
            yield row

    made = stream(rows(), steps_per_epoch=10)
    assert taken == []
    assert len(list(made.batches())) == 10
    calls: list[Any] = []
    stream(pairs(40), format=lambda row: calls.append(row) or row)
    assert calls == [], "no function of the user is called for a look"
    counted = Counted(pairs(20_000))
    before = counted.read
    stream(counted)
    assert counted.read - before <= 64, "the fingerprint's sample at most"


def test_a_bad_first_row_is_left_to_whoever_reads_it(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", ["{bad", *pairs(30)])
    assert stream(path, on_bad_row="drop").steps_per_epoch == 7
    with pytest.raises(mps.RowError):
        list(stream(path).batches())
