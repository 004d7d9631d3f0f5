"""The console command: what it prints, how it ends, and that its options are those of `mps.stream`."""

from __future__ import annotations

import gzip
import inspect
import logging
import pathlib
import re
import shutil
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import ms_prefstream as mps
from ms_prefstream.cli import main
from ms_prefstream.cli.terminal import with_flags
from ms_prefstream.demo import data_path
from ms_prefstream.steps.data import StreamData
from tests.cli.running import run
from tests.helpers import json_lines

NAMES = [name for names in main.COMMANDS.values() for name in names]
DPO = ["--task", "dpo", "--max-length", "320", "--tokenizer", "bytes"]


CONTEXT = click.Context(main.commands)
BENCH, INDEX = (main.commands.get_command(CONTEXT, name) for name in ("bench", "index"))


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(main.commands, ["--help"])
    assert shown.exit_code == 0
    assert {"demo", "bench", "index"} <= set(NAMES)
    assert all(f"  {name} " in shown.output for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_does_not_load_the_library(name: str) -> None:
    code = f"""import sys
from ms_prefstream.cli.main import commands
commands(["{name}", "--help"], standalone_mode=False)
print(sorted({{"numpy", "orjson", "jinja2", "ms_prefstream.public", "ms_prefstream.stream"}} & set(sys.modules)))"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f" {name} [OPTIONS]" in shown
    assert shown.endswith("\n[]\n"), "import the library inside the function that runs"


def test_help_takes_a_quarter_of_a_second_of_cpu() -> None:
    code = """import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "ms_prefstream", "bench", "--help"], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)"""
    seconds = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
    assert min(seconds) < 0.25


def test_the_module_is_the_command() -> None:
    words = [sys.executable, "-m", "ms_prefstream", "--version"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.startswith("ms-prefstream")


def test_bench_prints_rates_and_the_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "bench", str(data_path()), *DPO, "--repeats", "1") == 0
    printed = capsys.readouterr().out
    assert "rows/s:" in printed
    assert "padding" in printed
    assert "backend bytes" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench", "x"], "Missing option '--task'"),
        (["bench", *DPO], "Missing argument 'SOURCE...'"),
        (["bench", "x", "--task", "sft"], "'sft' is not one of 'dpo', 'reward', 'rlhf'"),
        (["init", "x", "--task", "kto"], "'kto' is not one of 'dpo', 'reward', 'rlhf'."),
        (["bench", "x", *DPO, "--fields", "[1]"], "expected a JSON object"),
        (["nothing"], "No such command 'nothing'"),
        (["formats"], "Give --list or --detect FILE"),
        (["bench", "x", "--task", "rlhf", "--tokenizer", "bytes", "--seq-length", "9"], "--max-prompt-length"),
        (["bench", "x", *DPO, "--seq-length", "9"], "--seq-length does not go with --task dpo"),
        (
            ["bench", "x", *DPO, "--no-kl"],
            "does not go with --task dpo; it takes --max-length, --max-prompt-length, --truncation, --task-layout, ",
        ),
        (["bench", "x", *DPO, "--boundaries", "1,b"], "--boundaries"),
        (["bench", str(data_path()), *DPO, "--batch-size", "0"], "--batch-size is 0; expected a whole number"),
        (["bench", "x", *DPO, "--pack", "640", "--pad"], "--pack does not go with --pad"),
        (["bench", "x", *DPO, "--pack", "640", "--length", "9"], "--pack does not go with --length"),
        (["bench", "x", *DPO, "--pack", "640", "--boundaries", "9,10"], "--pack does not go with --boundaries"),
        (["bench", "x", *DPO, "--pack", "640", "--max-tokens", "9"], "--pack does not go with --max-tokens"),
        (["bench", "x", *DPO, "--pad", "--max-tokens", "9"], "--max-tokens goes with buckets"),
        (["bench", "x", *DPO, "--pad", "--extra", "1"], "--extra goes with buckets"),
        (["bench", "x", *DPO, "--length", "300", "--boundaries", "64,256"], "--boundaries goes with buckets"),
        (["bench", "x", *DPO, "--length", "300", "--max-shapes", "3"], "--max-shapes goes with buckets"),
        (
            ["index", "x", *DPO, "--batch-size", "8"],
            "index has no option --batch-size; it belongs to inspect, stats, init, bench.",
        ),
        (["inspect", "x", *DPO, "--layout", "concat"], "The layout of the task is --task-layout concat."),
        (["cache", "x", "out", *DPO, "--layout", "concat"], "give --task-layout concat"),
        (["bench", "x", *DPO, "--task-layout", "concat", "--pack", "640"], "Leave --task-layout out."),
        (
            ["inspect", str(data_path()), *DPO, "--row", "500"],
            "--row is 500; expected a whole number in 0.",
        ),
        (["inspect", str(data_path()), *DPO, "--row", "-1"], "--row is -1"),
        (
            ["bench", "x", *DPO, "--batch-size", "8", "--max-tokens", "9"],
            "--batch-size is 8 and --max-tokens is 9; expected one of the two. Say how many samples a step has, such "
            "as --batch-size 8, or",
        ),
        (["bench", str(data_path()), *DPO, "--max-tokens", "9999"], "ms-prefstream index"),
        (["bench", "x", *DPO, "--boundaries", "64,0"], "Bucket: --boundaries is 0; expected"),
        (["inspect", str(data_path()), *DPO, "--fields", '{"prompt": 3}'], "--fields has 'prompt': 3"),
        (["index", str(data_path()), *DPO, "--cvalues-types", "strange"], "--cvalues-types has 'strange'"),
        (["inspect", str(data_path()), *DPO, "--step", str(2**40)], "--step is 1099511627776; expected"),
        (["stats", str(data_path()), "--limit", "3"], "--limit is 3; expected a whole number in 16"),
        (["stats", str(data_path()), "--workers", "-1"], "--workers is -1; expected"),
        (["bench", "x", *DPO, "--workers", str(10**21)], "expected a whole number in 0..1024"),
        (["bench", "x", *DPO, "--max-length", str(10**11)], "expected a whole number in 2..16777216"),
        (["stats", str(data_path()), "--task", "rlhf", "--max-length", "1"], "--max-length is 1; expected"),
        (["stats", str(data_path()), "--html", "nowhere/stats.html"], "nowhere is no folder. Name a file in another"),
        (["bench", "x", *DPO, "--max-segments", "9"], "give --pack TOKENS"),
        (["bench", str(data_path()), *DPO, "--pack", "639"], "--pack 640 or more"),
        (["bench", str(data_path()), *DPO, "--pack", "640"], "Pass --steps-per-epoch"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_exit_code_2(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 2
    shown = capsys.readouterr().err
    assert said in " ".join(shown.split())
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("command", "said"), [("index", "interrupted; give the same command again"), ("bench", "interrupted.")]
)
def test_an_interrupt_is_one_sentence_and_exit_code_130(
    command: str, said: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StreamData, "build_index", interrupt)
    monkeypatch.setattr(mps.Stream, "batches", interrupt)
    path = tmp_path / "pairs.jsonl"
    shutil.copy(data_path(), path)
    assert run(monkeypatch, command, str(path), *DPO) == 130
    shown = capsys.readouterr().err
    assert f"ms-prefstream: {said}" in shown
    assert "Traceback" not in shown


def test_index_is_written_beside_the_file_and_used(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.jsonl"
    shutil.copy(data_path(), path)
    words = ["--task", "dpo", "--max-length", "140", "--truncation", "drop", "--tokenizer", "bytes"]
    assert run(monkeypatch, "index", str(path), *words) == 0
    said = capsys.readouterr().out
    assert re.search(rf"written to {path}\.[0-9a-f]{{8}}\.mprefidx", said)
    assert "too_long" in said
    task = mps.DPO(140, truncation="drop")
    stream = mps.stream(str(path), task=task, tokenizer="bytes", batching=mps.Bucket(2))
    assert stream.report.dropped["too_long"] == 84 - stream.state(0)["rows"] > 0


def test_a_file_shorter_than_a_batch_is_measured_too(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join(pathlib.Path(data_path()).read_bytes().splitlines(keepends=True)[:3]))
    assert run(monkeypatch, "index", str(few), *DPO) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 rows can be used; written to" in printed
    assert "rows in the length index 3, dropped 0" in printed
    assert mps.stream(str(few), task=mps.DPO(320), tokenizer="bytes", batching=mps.Pad(3), index="auto").data.index


def test_packs_take_their_steps_from_the_option_or_the_index(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.jsonl"
    shutil.copy(data_path(), path)
    words = [str(path), *DPO, "--pack", "640", "--max-segments", "5", "--batch-size", "2"]
    assert "max_segments" not in {option.name for option in INDEX.params}
    assert run(monkeypatch, "bench", *words, "--repeats", "1", "--steps-per-epoch", "3") == 0
    said = capsys.readouterr().out
    assert "(2, 640)" in said
    assert "the steps did not hold them" in said
    assert run(monkeypatch, "index", str(path), *DPO) == 0
    assert run(monkeypatch, "bench", *words, "--repeats", "1") == 0
    assert "the steps did not hold them" not in capsys.readouterr().out


def test_a_cache_has_no_format(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "cache", str(data_path()), str(tmp_path / "cache"), *DPO, "--workers", "0") == 0
    capsys.readouterr()
    assert run(monkeypatch, "formats", "--detect", str(tmp_path / "cache")) == 0
    assert "a cache, whose rows are tokenized" in capsys.readouterr().out


def test_cvalues_types_filter_rows(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            f'{{"prompt": "p{i}", "pos_resp": "good", "neg_resp": "bad", "pos_type": "a", "neg_type": "{kind}"}}\n'
            for i, kind in enumerate("bbcbc")
        )
    )
    words = ["bench", str(path), *DPO, "--batch-size", "1", "--repeats", "1", "--cvalues-types", "a>b"]
    assert run(monkeypatch, *words) == 0
    assert "filtered out by the format: 2" in capsys.readouterr().out


def test_options_are_the_python_names_with_dashes() -> None:
    offered = {option.name for option in BENCH.params} | {"format"}  # --format is format_
    python = set(inspect.signature(mps.stream).parameters)
    of_objects = {"batching"}  # mps.Pad and the like: options of their own
    assert python - of_objects <= offered
    for task in (mps.DPO, mps.Reward, mps.RLHF):
        assert set(inspect.signature(task).parameters) <= offered
    for batching in (mps.Pad, mps.Bucket):
        assert set(inspect.signature(batching).parameters) <= offered


@pytest.mark.parametrize(("words", "first"), [([], False), (["--no-shuffle"], True), (["--shuffle", "window"], False)])
def test_shuffle_has_three_values(words: list[str], first: bool) -> None:
    from ms_prefstream.cli.building import make_stream

    context = BENCH.make_context("bench", [str(data_path()), *DPO, "--pad", *words])
    options = {name: value for name, value in context.params.items() if name not in ("source", "repeats")}
    rows = make_stream(context.params["source"], options).rows(0, 0).tolist()
    assert (rows == list(range(8))) is first
    if words == ["--shuffle", "window"]:
        assert rows != sorted(rows)


def test_inspect_shows_rows_and_why_they_are_dropped(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = pathlib.Path("rows.jsonl")
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": 3}\n{bad\n')
    assert run(monkeypatch, "inspect", str(path), *DPO) == 0
    said = capsys.readouterr().out
    assert f"{path}:1 · kept · DPO" in said
    assert "  chosen      a<|im_end|>" in said
    assert f"{path}:2 · dropped · bad_type" in said
    assert f"{path}:3 · dropped · bad_json" in said
    assert run(monkeypatch, "inspect", str(path), *DPO, "--row", "1") == 0
    assert "kept" not in capsys.readouterr().out
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write(path.read_bytes())
    assert run(monkeypatch, "inspect", str(tmp_path / "rows.jsonl.gz"), *DPO, "--row", "2", "--row", "0") == 0
    said = capsys.readouterr().out
    assert "kept" in said
    assert "bad_json" in said
    assert "rows.jsonl.gz:2 ·" not in said


def test_a_token_budget_takes_an_index_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "rows.jsonl"
    shutil.copy(data_path(), path)
    assert run(monkeypatch, "index", str(path), *DPO, "--task-layout", "concat") == 0
    budget = [*DPO, "--task-layout", "concat", "--max-tokens", "4096"]
    assert run(monkeypatch, "bench", str(path), *budget, "--repeats", "1") == 0
    assert "shapes:      (64, 64), (32, 128)" in capsys.readouterr().out


def test_fields_are_carried_into_caches_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    row = {"prompt": "P", "chosen": "A", "rejected": "B", "answer": "7", "id": 5}
    path = json_lines(tmp_path / "rows.jsonl", [row, {**row, "weight": 0.5}])
    carry = ["--carry", "answer", "--carry", "id:int64", "--carry", "weight:float32=1.0", "--carry", "note:text=-"]
    assert run(monkeypatch, "inspect", str(path), *DPO, *carry) == 0
    said = capsys.readouterr().out
    assert "carried     answer 7 · id 5 · weight 1.0 · note -" in said
    assert "weight 0.5" in said
    assert run(monkeypatch, "cache", str(path), str(tmp_path / "cache"), *DPO, *carry, "--workers", "0") == 0
    cached = mps.stream(tmp_path / "cache", task=mps.DPO(320), tokenizer=None, batching=mps.Pad(2), shuffle=False)
    (batch,) = cached.batches()
    assert {name: batch[name].tolist() for name in ("answer", "id", "weight", "note")} == {
        "answer": ["7", "7"],
        "id": [5, 5],
        "weight": [1.0, 0.5],
        "note": ["-", "-"],
    }
    capsys.readouterr()
    no_tokenizer = [*DPO[:-1], "none"]
    assert run(monkeypatch, "inspect", str(tmp_path / "cache"), *no_tokenizer, "--carry", "id", "--row", "1") == 0
    assert "carried     answer 7 · id 5 · weight 0.5 · note -" in capsys.readouterr().out
    assert run(monkeypatch, "inspect", str(tmp_path / "cache"), *no_tokenizer, "--carry", "ids", "--row", "1") == 2
    assert "carry names 'ids', but the cache" in capsys.readouterr().err
    assert run(monkeypatch, "index", str(path), *DPO, "--carry", "weight") == 1
    assert """Give rows without it a default, as --carry '{"weight": ["float32", 1.0]}'""" in capsys.readouterr().err
    assert run(monkeypatch, "inspect", str(path), *DPO, "--carry", "weight", "--row", "0") == 0
    assert "as --carry" in " ".join(capsys.readouterr().out.split())  # lines are folded
    wrongs = {
        "id:int": "NAME:DTYPE=DEFAULT with int64, float32, text",
        "id:float32:1.0": "NAME:DTYPE=DEFAULT with int64, float32, text",
        "id:int64=x": "a number after '='",
        '["answer", "id"]': "expected a JSON object",
    }
    for wrong, why in wrongs.items():
        assert run(monkeypatch, "inspect", str(path), *DPO, "--carry", wrong) == 2
        assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "meant"), [(r"\n\n", "\n\n"), ("\n", "\n"), (r"\t|", "\t|"), (r"\\n", r"\n"), ("<sep>", "<sep>")]
)
def test_a_step_separator_is_typed_with_escapes(
    typed: str, meant: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = json_lines(
        tmp_path / "rows.jsonl", [{"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}] * 8
    )
    words = ["--task", "process-reward", "--max-length", "64", "--tokenizer", "bytes"]
    assert run(monkeypatch, "bench", str(path), *words, "--step-separator", typed, "--repeats", "1") == 0
    shown = meant if meant == "<sep>" else repr(meant)
    assert (f"step_separator {shown}" in capsys.readouterr().err) == (meant != "\n"), "the default is not shown"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('or pass on_bad_row="drop" to leave such rows out', "or pass --on-bad-row drop to leave such rows out"),
        ("max_length=3. Raise it", "--max-length 3. Raise it"),
        ("mps.Bucket(batch_size=1) and index=None", "--batch-size 1 and --index none"),
        ("task=mps.DPO(max_length=9, margin=True)", "--task dpo --max-length 9 --margin"),
        ("batching=mps.Pack(tokens=640)", "--pack 640"),
        ("or drop_remainder=False, which", "or --drop-remainder false, which"),
        ("shuffle=False, which", "--shuffle false, which"),
        ('Pass carry={"answer": "text"}, or', """Pass --carry '{"answer": "text"}', or"""),
        ("or append_eos=False; seed is -1", "or --no-eos; --seed is -1"),
        ("data/max_length.jsonl: field 'max_length' is empty", "data/max_length.jsonl: field 'max_length' is empty"),
        ("layout='paired'", "--task-layout paired"),
        ("carry makes a column; boundaries[2] is 0", "--carry makes a column; --boundaries is 0"),
        ("KTO(max_length=9, kl=True) joins", "--task kto --max-length 9 --kl joins"),
        ("mps.ProcessReward(max_length=9)", "--task process-reward --max-length 9"),
        ('Pass fields={"prompt": "question"}.', """Pass --fields '{"prompt": "question"}'."""),
    ],
)
def test_errors_name_flags_instead_of_python_arguments(text: str, shown: str) -> None:
    assert with_flags(text, BENCH) == shown


def test_a_layout_in_an_error_is_that_of_the_files_or_of_the_task() -> None:
    cache = main.commands.get_command(CONTEXT, "cache")
    assert (
        with_flags("Use layout='ragged', or layout='concat'.", cache) == "Use --layout ragged, or --task-layout concat."
    )
    assert with_flags("layout is 'megatron', whose", cache) == "--layout is 'megatron', whose"
    assert with_flags("DPO: layout is 'concat', which", cache) == "DPO: --task-layout is 'concat', which"


def test_a_bad_row_names_the_flag_that_drops_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "chosen": 1, "rejected": "b"}\n')
    assert run(monkeypatch, "index", str(path), *DPO) == 1
    said = capsys.readouterr().err
    assert "--on-bad-row drop" in said
    assert "on_bad_row" not in said


@pytest.mark.parametrize("command", ["bench", "index", "cache"])
def test_what_was_found_is_shown_on_standard_error(
    command: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    shutil.copy(data_path(), path)
    path.write_text('{"prompt": "q", "chosen": "a longer answer", "rejected": "b"}\n' * 30)
    words = {"bench": ["--repeats", "1", "--batch-size", "2"], "index": [], "cache": ["--workers", "0"]}[command]
    places = {"cache": [str(tmp_path / "out")]}.get(command, [])
    assert run(monkeypatch, command, str(path), *places, *DPO, *words) == 0
    shown = capsys.readouterr()
    assert f"DPO  {path.name} · 30 rows · strings" in shown.err
    assert "  !  chosen is longer in 30 of 30 pairs" in shown.err
    assert "chosen is longer" not in shown.out.partition("warning:")[0]
    assert "\x1b" not in shown.err
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert run(monkeypatch, command, str(path), *places, *DPO, *words, "--quiet") == 0
    assert "!" not in capsys.readouterr().err
    assert not logging.getLogger("ms_prefstream").handlers


def test_inspect_names_a_missing_chat_template(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "inspect", str(data_path()), *DPO, "--template", "none", "--rows", "1") == 0
    shown = capsys.readouterr()
    assert "no chat template: prompt and response joined as text" in shown.out
    assert "DPO  pairs.jsonl · 84 rows · messages" in shown.err


def test_the_report_of_bench_names_flags(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "dpo", "--max-length", "40", "--tokenizer", "bytes", "--repeats", "1", "--quiet"]
    assert run(monkeypatch, "bench", str(data_path()), *words) == 0
    printed = capsys.readouterr().out
    assert "warning: max_length" not in printed
    assert re.search(r"--max-length \d+ keeps", printed)
