"""The options of the command line: they offer what the library takes, in groups, and shells complete them."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import ms_prefstream as mps
from ms_prefstream.batch.layouts.registry import make_layout
from ms_prefstream.cache.layouts import LAYOUTS, ROWS_PER_PART
from ms_prefstream.cli import main, options
from ms_prefstream.encode.backends import BACKENDS
from ms_prefstream.load.workers.engines import ENGINES
from ms_prefstream.tasks import TASKS

CONTEXT = click.Context(main.commands)
NAMES = [name for names in main.COMMANDS.values() for name in names]


def command(name: str) -> click.Command:
    found = main.commands.get_command(CONTEXT, name)
    assert found is not None
    return found


def option(name: str, flag: str) -> click.Option:
    return next(one for one in command(name).params if isinstance(one, click.Option) and flag in one.opts)


def test_choices_are_those_of_the_library() -> None:
    assert tuple(TASKS) == options.TASKS
    assert options.BACKENDS == BACKENDS
    assert options.FILE_LAYOUTS == LAYOUTS
    assert options.ENGINES == ENGINES
    assert f"[default: {ROWS_PER_PART}]" in str(option("cache", "--rows-per-part").help)
    for layout in options.TASK_LAYOUTS:
        make_layout(layout)


@pytest.mark.parametrize(
    ("flag", "make"),
    [
        ("--truncation", lambda value: mps.RLHF(8, 16, truncation=value)),
        ("--labels", lambda value: mps.DPO(8, labels=value)),
        ("--content-lost", lambda value: stream(content_lost=value)),
        ("--continue-final-message", lambda value: stream(continue_final_message=value)),
        ("--boundary", lambda value: stream(boundary=value)),
        ("--special-tokens-in-content", lambda value: stream(special_tokens_in_content=value)),
        ("--on-bad-row", lambda value: stream(on_bad_row=value)),
    ],
)
def test_the_library_takes_every_choice_and_names_each(flag: str, make: object) -> None:
    offered = option("bench", flag).type.choices  # type: ignore[attr-defined]
    for value in offered:
        make(value)  # type: ignore[operator]
    with pytest.raises(mps.OptionError) as error:
        make("nothing")  # type: ignore[operator]
    assert set(re.findall(r"'(\w+)'", str(error.value))) == {*offered, "nothing"}


def stream(**given: str) -> mps.Stream:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    return mps.stream(rows, task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(1), verbose=False, **given)


@pytest.mark.parametrize("name", NAMES)
def test_help_has_groups_and_an_example(name: str) -> None:
    shown = CliRunner().invoke(main.commands, [name, "--help"], prog_name="ms-prefstream").output
    assert f"Example:\n  ms-prefstream {name}" in shown
    if "--config" in shown.partition("Example:")[0]:
        groups = [line[:-1] for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert groups[:3] == ["Task", "Rows", "Tokens"]
        assert "--layout" not in shown.replace("--task-layout", "") or name == "cache"
    assert max(map(len, shown.splitlines())) <= 110


def test_every_command_that_reads_rows_takes_a_configuration() -> None:
    reading = {name for name in NAMES if "source" in {one.name for one in command(name).params}}
    assert reading - {name for name in NAMES if any("--config" in one.opts for one in command(name).params)} == {"init"}


def test_each_command_has_the_options_that_it_needs() -> None:
    def names(of: str) -> set[str]:
        return {one.opts[0] for one in command(of).params if isinstance(one, click.Option) and not one.hidden}

    engine = {"--engine", "--ray-address"}
    assert names("bench") - names("index") >= {"--batch-size", "--shuffle", "--pad-token-id", "--quarantine"}
    assert names("index") - names("bench") == {"--out", "--dedup", "--exclude", "--part-range", *engine}
    assert names("doctor") - names("index") == {"--pad-token-id", "--rows"}
    assert names("inspect") - names("bench") >= {"--row", "--rows", "--step", "--tokens", "--html"}
    assert names("stats") - names("bench") == {"--against", "--limit", "--json", "--html", "--samples", *engine}


def completed(tmp_path: pathlib.Path, *words: str) -> list[str]:
    """What a shell offers for the last word."""
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(main.__file__).parents[2])}
    env |= {"_MS_PREFSTREAM_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(("ms-prefstream", *words))}
    env |= {"COMP_CWORD": str(len(words))}
    done = subprocess.run(
        [sys.executable, "-m", "ms_prefstream"], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("do",), {"plain,doctor"}),
        (("bench", "x", "--task", ""), {f"plain,{name}" for name in TASKS}),
        (("bench", "x", "--on-bad-row", "d"), {"plain,drop"}),
        (("cache", "x", "y", "--layout", "mind"), {"plain,mindrlhf", "plain,mindrlhf-grpo", "plain,mindformers"}),
        (("inspect", "x", "--format", "orp"), {"plain,orpo_mix"}),
        (("inspect", "x", "--template", "c"), {"plain,chat", "file,c"}),
        (("inspect", "train"), {"file,train"}),
        (("bench", "x", "--special"), {"plain,--special-tokens-in-content"}),
    ],
)
def test_a_shell_completes_commands_options_and_values(
    words: tuple[str, ...], offered: set[str], tmp_path: pathlib.Path
) -> None:
    assert set(completed(tmp_path, *words)) == offered


def test_the_line_in_the_help_installs_completion(tmp_path: pathlib.Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    script = tmp_path / "ms-prefstream"
    root = pathlib.Path(main.__file__).parents[2]
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m ms_prefstream "$@"\n')
    script.chmod(0o755)
    line = next(line for line in main._EPILOG.splitlines() if "bashrc" in line).partition(":  ")[2]
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [bash, "-c", f"{line}\ncomplete -p ms-prefstream"], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert "_ms_prefstream_completion ms-prefstream" in done.stdout, done.stderr
