"""`inspect` on a terminal: colours, at most 98 columns, the same content as plain text when it is piped."""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import pty
import re
import subprocess
import sys
from typing import Any

import orjson
import pytest
from rich.cells import cell_len
from rich.text import Text

from ms_prefstream.cli import main
from ms_prefstream.inspection.terminal import _fold, console

ROWS = [
    {
        "prompt": [{"role": "system", "content": "请简短。"}, {"role": "user", "content": "How? " * 30}],
        "chosen": "好" * 90,
        "rejected": "no\n\tyes",
        "extra_text": "nobody reads me",
    },
    {"prompt": "Why?", "chosen": "x y\n", "rejected": "z" * 500},
    {"prompt": 3},
]
DPO = ["--task", "dpo", "--max-length", "128", "--tokenizer", "bytes"]
BATCH = ["--step", "0", "--batch-size", "1", "--on-bad-row", "drop", "--no-shuffle"]
STYLES = re.compile("\x1b\\[[0-9;]*m")


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in ROWS))
    return path


def shown(path: pathlib.Path, *words: str, terminal: bool, columns: int = 98, **environment: str) -> str:
    """What `inspect` writes to standard output, which is a terminal or a pipe."""
    command = [sys.executable, "-m", "ms_prefstream", "inspect", path.name, *DPO, *words]
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env |= {"PYTHONPATH": str(pathlib.Path(__file__).parents[2]), "TERM": "xterm-256color", "COLUMNS": str(columns)}
    env |= environment
    if not terminal:
        done = subprocess.run(command, cwd=path.parent, env=env, capture_output=True, text=True, check=True)
        return done.stdout
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, cwd=path.parent, env=env):
        os.close(theirs)
        found = b""
        try:
            while part := os.read(ours, 1 << 16):
                found += part
        except OSError:  # the terminal is closed with its last user
            pass
    os.close(ours)
    return found.decode().replace("\r\n", "\n")


VIEWS = {"rows": ["--rows", "3"], "tokens": ["--tokens"], "full": ["--full"], "step": BATCH}
VIEWS["step tokens"] = [*BATCH, "--tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_a_pipe_gets_the_same_as_plain_text(view: str, path: pathlib.Path) -> None:
    coloured = shown(path, *VIEWS[view], terminal=True)
    piped = shown(path, *VIEWS[view], terminal=False)
    assert STYLES.search(coloured)
    assert "\x1b" not in piped
    assert shown(path, *VIEWS[view], terminal=True, NO_COLOR="1") == piped

    def words(text: str) -> str:  # a mark of what was cut moves the breaks
        return "".join(STYLES.sub("", text).replace("~~", "").split())

    assert words(coloured) == words(piped)
    assert max(map(cell_len, piped.splitlines())) <= 98
    assert max(map(cell_len, STYLES.sub("", coloured).splitlines())) <= 98


def test_colours_say_what_a_text_is(path: pathlib.Path) -> None:
    text = shown(path, "--rows", "2", terminal=True)

    def styles(words: str) -> set[str]:
        found = re.search(f"\x1b\\[([0-9;]*)m[^\x1b]*{re.escape(words)}", text)
        assert found, words
        return set(found[1].split(";"))

    green, red, strike, yellow = "32", "31", "9", "33"
    assert green in styles("x y")
    assert red in styles("zzzzz")
    assert {strike} <= styles("How? How?")
    assert re.search("\x1b\\[[0-9;]*7;32m<\\|im_end\\|>", text)  # reverse and green
    assert yellow in styles("unread")
    assert not {green, red, yellow, strike} & styles("请简短。")


def test_what_was_cut_is_marked_in_plain_text(path: pathlib.Path) -> None:
    text = shown(path, terminal=False)
    assert re.search(r"~~[^~]*How\? [^~]*~~", text)
    assert re.search(r"  cut +[\d,]+ tokens of the prompt, [\d,]+ tokens of chosen\n", text)
    assert re.search(r"  cut +[\d,]+ tokens of the prompt, 3\d\d tokens of rejected\n", text)
    assert "  unread      fields that nothing read: extra_text\n" in text
    assert "rows.jsonl:3 · dropped · bad_type\n" in text
    assert '  row         {"prompt":3}\n' in text
    assert text.count("请简短。") == 1  # the shared prompt, once


def test_cells_have_ids_and_bars(path: pathlib.Path) -> None:
    lines = shown(path, "--tokens", "--row", "1", terminal=False).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  chosen"))
    assert lines[at].split() == ["chosen", "5", "under", "the", "loss"]
    texts, ids, bars = (line.split() for line in lines[at + 1 : at + 4])
    assert texts == ["x", "␣", "y", "⏎", "<|im_end|>", "⏎"]
    assert ids == ["120", "32", "121", "10", "258", "10"]
    assert bars == ["▔▔▔", "▔▔", "▔▔▔", "▔▔", "▔" * 10]
    assert "╌╌╌" in "".join(lines)


def test_the_middle_of_a_long_cut_part_is_left_out_unless_everything_is_wanted(path: pathlib.Path) -> None:
    words = ("--tokens", "--row", "1")
    some, whole = (shown(path, *words, *more, terminal=False) for more in ((), ("--full",)))
    left_out = [int(count) for count in re.findall(r"…(\d+)…", some.replace("…9…", ""))]
    cells = [len(re.findall(r"(?<= )\d+(?= )", text)) for text in (some, whole)]
    assert sum(left_out) > 100
    assert not re.search(r"…\d+…", whole.replace("…9…", ""))
    assert abs(cells[1] - cells[0] - sum(left_out)) <= len(left_out) + 40  # ids at the ends of lines apart


def test_a_strip_is_to_scale(path: pathlib.Path) -> None:
    lines = shown(path, *BATCH, terminal=False).splitlines()
    strip = next(line for line in lines if "chosen  " in line)
    context, trained, padding = map(int, strip.split()[-3:])
    width, room = context + trained + padding, sum(strip.count(sign) for sign in "▒█·")
    assert width == 128
    for count, sign in ((context, "▒"), (trained, "█"), (padding, "·")):
        assert abs(strip.count(sign) - count * room / width) <= 1.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rank", "1"], "--rank is the rank whose batch is shown. Give --step as well"),
        ([*BATCH, "--row", "1"], "--step shows the rows of a batch. Leave --row and --rows out"),
        ([*BATCH, "--rank", "1", "--num-shards", "2", "--shard-id", "1"], "--rank and --shard-id are the same"),
    ],
)
def test_options_that_contradict_each_other(
    words: list[str], said: str, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ms-prefstream", "inspect", str(path), *DPO, *words])
    with pytest.raises(SystemExit) as leave:
        main.main()
    assert leave.value.code == 2
    assert said in capsys.readouterr().err


def test_a_rank_has_its_own_rows(path: pathlib.Path) -> None:
    ranks = [shown(path, *BATCH, "--num-shards", "2", "--rank", str(rank), terminal=False) for rank in (0, 1)]
    assert ["rank 0 of 2" in ranks[0], "rank 1 of 2" in ranks[1]] == [True, True]
    assert [re.findall(r"rows.jsonl:\d", text) for text in ranks] == [["rows.jsonl:1"], ["rows.jsonl:2"]]


def test_tokens_fit_into_a_narrow_terminal(path: pathlib.Path) -> None:
    lines = STYLES.sub("", shown(path, "--tokens", terminal=True, columns=60)).splitlines()
    assert max(map(cell_len, lines)) <= 60


@pytest.mark.parametrize("columns", [60, 80])
def test_strips_fit_into_narrow_terminals(columns: int, path: pathlib.Path) -> None:
    lines = STYLES.sub("", shown(path, *BATCH, terminal=True, columns=columns)).splitlines()
    assert max(map(cell_len, lines)) <= columns
    strips = [line for line in lines if "chosen  " in line or "rejected  " in line]
    assert len(strips) == 2
    assert all(sum(strip.count(sign) for sign in "▒█·") > 8 for strip in strips)


def test_a_step_of_a_source_in_one_pass(path: pathlib.Path) -> None:
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(b"".join(path.read_bytes().splitlines(keepends=True)[:2])))
    text = shown(packed, "--step", "0", "--batch-size", "2", terminal=False)
    assert "· 2 rows ·" in text
    assert text.count(" chosen  ") == text.count(" rejected  ") == 2


@pytest.mark.parametrize("columns", [10, 17, 40])
def test_lines_are_broken_at_words_and_within_chinese(columns: int) -> None:
    text = Text("short words and 一段没有空格的中文文本，需要在任意位置换行 the end\nnext 🙂 line" * 3)
    lines = list(_fold(text.copy(), columns))
    assert max(cell_len(line.plain) for line in lines) <= columns
    assert "".join(line.plain for line in lines) == text.plain.replace("\n", "")


def test_rich_is_imported_by_the_command_only() -> None:
    code = "import sys, ms_prefstream.cli.main; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_ROOT)
    assert done.stdout == "False\n"


def test_a_narrow_terminal_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "60")
    assert console(Terminal()).width == 60
    assert console(io.StringIO()).width == 98


_ROOT: Any = pathlib.Path(__file__).parents[2]
