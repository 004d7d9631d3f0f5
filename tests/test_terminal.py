"""What reaches a real terminal: rows, field names, file names and templates may hold sequences that command it."""

from __future__ import annotations

import os
import pathlib
import pty
import re
import subprocess
import sys

import orjson
import pytest

from ms_prefstream.errors import OptionError

ESCAPE, BIDI = "\x1b]0;owned\x07\x1b[2J\x9b31m", "\u202egnp\u2066\u200f"
EVIL = f"{ESCAPE}{BIDI}\u2028"
DPO = ["--task", "dpo", "--max-length", "320", "--tokenizer", "bytes"]
ROWS = [
    {"prompt": f"a{EVIL}", "chosen": EVIL, "rejected": f"b{EVIL}"},
    {f"prompt{EVIL}": "x", f"field{EVIL}": EVIL},
    {"prompt": "x", "chosen": [{"role": f"boss{EVIL}", "content": EVIL}], "rejected": "b"},
    {"prompt": EVIL * 3, "chosen": {EVIL: EVIL}, "rejected": "b"},
]


def in_terminal(*words: str, cwd: pathlib.Path) -> str:
    """What a command writes to a terminal, output and errors."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ms_prefstream", *words]
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=env) as process:
        os.close(theirs)
        found = b""
        try:
            while part := os.read(ours, 1 << 16):
                found += part
        except OSError:  # the terminal is closed with its last user
            pass
        os.close(ours)
    assert process.returncode is not None
    return found.decode("utf-8", "surrogateescape")


# What a progress bar and a spinner need: colours, moves of the cursor, erased lines. No titles, no cleared screen.
_BAR = re.compile("\x1b\\[[0-9;]*[mAK]|\x1b\\[\\?25[lh]|\r")


def assert_harmless(shown: str) -> None:
    rest = _BAR.sub("", shown)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", rest), rest
    assert "\x1b[2J" not in shown
    assert "Traceback" not in shown


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / f"rows{ESCAPE}{BIDI}.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in ROWS) + f"{{bad {EVIL}\n".encode())
    return path


COMMANDS = [
    "inspect",
    "doctor",
    "formats",
    "init",
    "index",
    "index drop",
    "cache",
    "cache drop",
    "bench drop",
    "verify",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_rows_and_names_reach_a_terminal_as_escapes(command: str, data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    words = {
        "inspect": ["inspect", str(data), *DPO, "--rows", "5"],
        "doctor": ["doctor", str(data), *DPO],
        "formats": ["formats", "--detect", str(data)],
        "init": ["init", str(data), *DPO, "--out", f"out{EVIL}"],
        "index": ["index", str(data), *DPO],
        "index drop": ["index", str(data), *DPO, "--on-bad-row", "drop"],
        "cache": ["cache", str(data), f"out{EVIL}", *DPO, "--workers", "0"],
        "cache drop": ["cache", str(data), f"out{EVIL}", *DPO, "--on-bad-row", "drop", "--workers", "0"],
        "bench drop": ["bench", str(data), *DPO, "--on-bad-row", "drop", "--batch-size", "1", "--repeats", "1"],
        "verify": ["verify", f"out{EVIL}"],
    }[command]
    if command == "verify":
        said = in_terminal(
            "cache", str(data), f"out{EVIL}", *DPO, "--on-bad-row", "drop", "--workers", "0", cwd=tmp_path
        )
        out = tmp_path / f"out{EVIL}"
        assert out.is_dir(), said
        (out / f"more{EVIL}.mindrecord").write_text("x")
        (out / f"note{EVIL}").write_text("x")
    shown = in_terminal(*words, cwd=tmp_path)
    assert_harmless(shown)
    assert "\\x1b" in shown  # it is shown, as escapes


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", f"none{EVIL}", *DPO],
        ["inspect", *DPO],
        ["inspect", "x", "--task", EVIL],
        ["inspect", "x", *DPO, "--rows", f"1{EVIL}"],
        [f"in{EVIL}"],
        ["inspect", "x", *DPO, f"--more{EVIL}"],
        ["inspect", "x", *DPO[:-1], f"none{EVIL}"],
    ],
)
def test_what_is_wrong_with_the_words_is_said_in_escapes(words: list[str], tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_text("x")
    assert_harmless(in_terminal(*words, cwd=tmp_path))


def test_the_text_of_raise_exception(tmp_path: pathlib.Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(orjson.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + b"\n")
    (tmp_path / "evil.jinja").write_text("{{ raise_exception('no" + EVIL + "') }}")
    for command in ("inspect", "doctor", "index"):
        shown = in_terminal(command, "rows.jsonl", *DPO, "--template", "evil.jinja", cwd=tmp_path)
        assert_harmless(shown)
        assert "\\x1b" in shown


def test_an_error_keeps_its_ends_however_long_a_value_is() -> None:
    said = str(OptionError(f"window is {'9' * 10**6}; expected a whole number."))
    assert len(said) < 5100
    assert said.startswith("window is 999")
    assert said.endswith("999; expected a whole number.")
