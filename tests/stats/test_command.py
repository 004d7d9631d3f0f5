"""``ms-prefstream stats``: its JSON, its text in a terminal and in a pipe, its exit codes."""

from __future__ import annotations

import gzip
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.cells import cell_len

import ms_prefstream as mps
from ms_prefstream.demo import data_path
from tests.cli.running import run
from tests.helpers import json_lines, pairs
from tests.test_terminal import assert_harmless, in_terminal

NUMBERS = ["count", "max", "mean", "p50", "p90", "p99"]
SIDES = ["prompt", "chosen", "rejected"]
CVALUES = [
    {
        "prompt": f"问题{n}？",
        "pos_resp": "好" * (n + 1),
        "neg_resp": "坏",
        "pos_type": "拒绝为主",
        "neg_type": "风险回复",
    }
    for n in range(30)
]


@pytest.fixture
def rows(tmp_path: pathlib.Path) -> pathlib.Path:
    return json_lines(tmp_path / "rows.jsonl", CVALUES)


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(monkeypatch, "stats", *words) == 0
    return capsys.readouterr().out


def test_the_form_of_the_json(
    rows: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(monkeypatch, capsys, str(rows), "--tokenizer", "bytes", "--json", "--against", data_path())
    found: dict[str, Any] = json.loads(out)
    assert list(found)[:8] == ["rows", "characters", "tokens", "by_type", "dropped", "cut", "padding", "suggested"]
    assert found["rows"] == 30
    for unit in ("characters", "tokens"):
        assert list(found[unit]) == SIDES
        assert all(list(found[unit][side]) == NUMBERS for side in SIDES)
    assert found["characters"]["chosen"] == {
        "count": 30, "max": 30, "mean": 15.5, "p50": 15.5, "p90": 27.1, "p99": pytest.approx(29.71)
    }  # fmt: skip
    assert found["tokens"]["chosen"]["max"] == 90
    assert list(found["by_type"]) == ["拒绝为主>风险回复"]
    assert list(found["by_type"]["拒绝为主>风险回复"]) == ["rows", "characters", "tokens"]
    assert list(found["by_type"]["拒绝为主>风险回复"]["tokens"]["prompt"]) == NUMBERS
    assert found["dropped"] == {}
    assert list(found["cut"]) == ["512", "1024", "2048", "4096"]
    assert found["cut"]["512"] == {"rows": 0, "share": 0.0, "question_lost": 0, "dropped": 0}
    assert list(found["padding"]) == ["pad", "bucket", "bucket_max_shapes", "pack"]
    assert list(found["padding"]["pad"]) == ["rule", "padding", "tokens", "cells", "steps", "shapes"]
    assert list(found["suggested"]) == ["max_length", "max_shapes", "pack"]
    assert list(found["sequences"]) == ["prompt+chosen", "prompt+rejected", "longer"]
    assert found["against"]["shared"] == 0
    assert set(found["histograms"]["gap"]) == {"edges", "counts"}
    assert "拒绝为主" in out  # readable
    assert found == json.loads(json.dumps(mps.stats(rows, tokenizer="bytes", against=data_path()).to_dict()))


def test_without_a_tokenizer_the_same_keys(rows: pathlib.Path) -> None:
    found = mps.stats(rows).to_dict()
    with_tokens = mps.stats(rows, tokenizer="bytes").to_dict()
    assert list(found) == list(with_tokens)
    assert (found["tokens"], found["cut"], found["padding"], found["suggested"]) == ({}, {}, {}, {})
    assert found["characters"] == with_tokens["characters"]


def test_only_the_result_is_on_standard_output(rows: pathlib.Path) -> None:
    command = [sys.executable, "-m", "ms_prefstream", "stats", "-", "--tokenizer", "bytes"]
    done = [
        subprocess.run([*command, *more], input=rows.read_bytes(), capture_output=True, check=True)
        for more in ([], ["--json"])
    ]
    text, found = done[0].stdout.decode(), json.loads(done[1].stdout)
    assert text.startswith("stdin · 30 rows · cvalues · bytes")
    assert "\x1b" not in text
    assert found == mps.stats(rows, tokenizer="bytes").to_dict() | {"source": "stdin"}
    assert "30 rows" in done[0].stderr.decode()


def test_a_terminal_gets_colours_and_a_bar(rows: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shown = in_terminal("stats", str(rows), "--tokenizer", "bytes", cwd=tmp_path)
    assert_harmless(shown)
    assert "30/30" in shown
    assert "rows/s" in shown
    assert "\x1b[32mchosen" in shown
    assert "\x1b[31mrejected" in shown
    assert "\x1b[90mprompt" in shown


def test_a_bar_without_a_known_end(rows: pathlib.Path, tmp_path: pathlib.Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(rows.read_bytes()))
    shown = in_terminal("stats", str(packed), cwd=tmp_path)
    assert "30/?" in shown
    assert "30 rows · cvalues" in shown


def test_no_colour_where_none_is_wanted(rows: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in in_terminal("stats", str(rows), cwd=tmp_path)


EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2066\u2028"


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_names_in_the_data_reach_a_terminal_as_escapes(tmp_path: pathlib.Path, json_too: list[str]) -> None:
    rows = [{**CVALUES[0], "pos_type": f"a{EVIL}", f"field{EVIL}": "x"}, {f"prompt{EVIL}": "x"}, *CVALUES]
    path = json_lines(tmp_path / f"rows{EVIL}.jsonl", rows)
    shown = in_terminal("stats", str(path), *json_too, "--against", str(path), cwd=tmp_path)
    assert_harmless(shown)
    assert "field\\" in shown
    if json_too:
        found = json.loads(shown[shown.index("{\r\n") :].partition("\n}")[0] + "\n}")
        assert f"field{EVIL}" in found["unread"]


@pytest.mark.parametrize("tokenizer", [[], ["--tokenizer", "bytes"]])
def test_no_line_is_wider_than_the_page(
    tmp_path: pathlib.Path, tokenizer: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chinese counts as two columns; long names, many types, reasons and fields."""
    rows = [{**row, "pos_type": f"很长的类型名称{n}" * 4, f"字段{n}" * 5: "x"} for n, row in enumerate(CVALUES)]
    path = json_lines(tmp_path / ("很长的文件名" * 9 + ".jsonl"), [*rows, *[{"prompt": 1}] * 9, *[{"x": 1}] * 9])
    text = printed(monkeypatch, capsys, str(path), *tokenizer, "--against", str(path))
    lines = text.splitlines()
    assert [line for line in lines if cell_len(line) > 98] == []
    table = [line for line in lines if re.match(r" *(prompt|chosen|rejected)\S*( +[\d,.]+){6}", line)]
    assert len(table) > 18
    assert len({cell_len(re.split("   [a-z ]+$", line)[0]) for line in table}) == 1
    assert "and 24 more types" in text


def test_options_as_they_are_typed(
    rows: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(rows), "--tokenizer", "bytes", "--task", "dpo", "--max-length", "128", "--limit", "64"]
    text = printed(monkeypatch, capsys, *words)
    assert "an epoch, --max-length 128" in text
    assert re.search(r"cut at +64 \d+\.\d %   128 ", text)
    assert re.search(r"try +--max-length \d+   --max-shapes \d+   or --pack \d+", text)
    assert "--max-length" not in str(mps.stats(rows, tokenizer="bytes"))
    assert "pass --tokenizer DIRECTORY" in printed(monkeypatch, capsys, str(rows))
    assert re.search(r"dropped +missing_field", printed(monkeypatch, capsys, str(rows), "--carry", "weight:float32"))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "SOURCE"),
        (["x", "--task", "dpo"], 2, "--task dpo needs --max-length"),
        (["x", "--fields", "{"], 2, "'{'; expected a JSON object"),
        (["x", "--task", "kto"], 2, "kto"),
        (["missing.jsonl"], 1, "missing.jsonl"),
    ],
)
def test_wrong_words(
    words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "stats", *words) == code
    assert said in capsys.readouterr().err


def test_rows_of_which_none_can_be_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": 1, "chosen": 2}\n' * 8)
    lines = str(mps.stats(str(tmp_path / "bad.jsonl"))).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["bad.jsonl · 8 rows", "", "dropped", "tokens and padding"]


def test_no_median_where_nothing_is_longer() -> None:
    found = str(mps.stats([{"prompt": "p", "chosen": "a", "rejected": "long"}]))
    assert re.search("^chosen is longer +0 % of pairs$", found, re.MULTILINE)


def test_in_processes(rows: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    json_lines(rows, pairs(600))
    words = [str(rows), "--tokenizer", "bytes", "--json"]
    found = [printed(monkeypatch, capsys, *words, *more) for more in ([], ["--processes", "2"], ["--workers", "1"])]
    assert found[0] == found[1] == found[2]
