"""README and documents: every Python block runs, and every command that needs neither a network nor a device.

They name files, a tokenizer and a model of the reader's. Here the bundled pairs stand for the files, the built-in
tokenizer for the directory, and a model that only counts its steps for the model.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import ms_prefstream as mps
from ms_prefstream.formats.registry import PRESETS, standard_names
from tests.cli.running import run as run_here

ROOT = pathlib.Path(__file__).parents[1]
READMES = ("README.md", "README_CN.md")
DOCS = sorted(
    f"{page.relative_to(ROOT)}" for folder in ("", "api", "zh") for page in (ROOT / "docs" / folder).glob("*.md")
)
PAGES = (*READMES, *DOCS)
RUN = [name for name in PAGES if "/zh/" not in name]  # these have the code of the English pages
TOKENIZER = "path/to/Qwen2.5-7B-Instruct"
BUNDLED = ROOT / "ms_prefstream" / "demo" / "pairs.jsonl"
PAIRS = len(BUNDLED.read_text(encoding="utf-8").splitlines())
CVALUES = {"prompt": "q", "pos_resp": "good", "neg_resp": "bad", "pos_type": "p", "neg_type": "n"}
FIGURE = re.compile(r"<!-- figure: ([\w-]+) -->([\d.,]+)")


class CountingModel:
    """Takes `train(epochs, dataset)` as `mindspore.Model` does and only reads the dataset."""

    def __init__(self) -> None:
        self.steps: list[int] = []  # of each call

    def train(self, epochs: int, dataset: Any) -> None:
        batches = dataset.create_tuple_iterator(num_epochs=epochs, output_numpy=True)
        self.steps.append(sum(1 for _ in range(epochs) for _ in batches))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


class Block(NamedTuple):
    """A code block of a page."""

    language: str
    line: int  # of its code
    code: str
    shown: str | None  # the text block after it, which is what it prints


def blocks(name: str, *languages: str) -> list[Block]:
    """The code blocks of a page in these languages, in order."""
    text, chosen = read(name), "|".join(languages)
    found = re.finditer(
        rf"^```({chosen})\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", text, flags=re.DOTALL | re.MULTILINE
    )
    return [Block(block[1], text.count("\n", 0, block.start()) + 2, block[2], block[3]) for block in found]


def assert_shows(shown: str | None, printed: str, where: str) -> None:
    """Asserts that a page shows what its code prints; `…` stands for any text, and a line of it for any lines."""
    if shown is None:
        return
    expected, found = ("\n".join(line.rstrip() for line in text.strip("\n").splitlines()) for text in (shown, printed))
    pattern = re.escape(expected).replace("…\\\n", "(?:.*\n)*").replace("\\\n…", "(?:\n.*)*").replace("…", ".*")
    assert re.fullmatch(pattern, found), f"{where} prints\n\n{found}\n\nand the page shows\n\n{expected}"


def lines_of(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def in_tables(name: str) -> list[str]:
    """The commands in the last cells of tables."""
    return re.findall(r"\| `((?:python|ms-prefstream) [^`]+)` \|$", read(name), flags=re.MULTILINE)


def commands(name: str) -> list[str]:
    """The command lines of a page: those of its bash blocks and of its tables."""
    return [line for block in blocks(name, "bash") for line in lines_of(block.code)] + in_tables(name)


def needs_more(command: str) -> bool:
    """Returns whether a command needs a network, a model or long; its names and options are checked instead."""
    return (
        command.startswith(
            ("pip ", "export ", "make ", "python benchmarks/", "python examples/", "python train", "python3 -m ")
        )
        or "s3://" in command
    )


@pytest.fixture
def reader(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder of a reader, in which the test runs."""
    (tmp_path / "data").mkdir()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("data/train-0.jsonl", "train.jsonl", "eval.jsonl"):
        shutil.copy(BUNDLED, tmp_path / name)
    (tmp_path / "cvalues.jsonl").write_text(f"{json.dumps(CVALUES)}\n" * 8, encoding="utf-8")
    programs = tmp_path / "bin"
    programs.mkdir()
    for program, module in (("python", ""), ("ms-prefstream", "-m ms_prefstream")):
        (programs / program).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n', encoding="utf-8")
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """Returns what a command prints; it must end with exit code 0. Simple ones of ours run in this process."""
    command = command.replace(TOKENIZER, "bytes")
    program, *words = shlex.split(command, comments=True) or [""]
    if program == "ms-prefstream" and not re.search("[|$<>]", command):
        code, printed = run_here(monkeypatch, *words), capfd.readouterr()
        assert code == 0, f"{command}\n{printed.out}{printed.err}"
        return printed.out
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def bucket() -> Iterator[None]:
    """fsspec's store in memory, which stands for the reader's bucket."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.put_file(str(BUNDLED), "/my-bucket/pairs/train-0.jsonl")
    yield
    memory.store.clear()


@pytest.fixture
def presets() -> Iterator[None]:
    """Removes presets that a block registers."""
    before = dict(PRESETS)
    yield
    PRESETS.clear()
    PRESETS.update(before)
    standard_names.cache_clear()


@pytest.mark.mindspore
@pytest.mark.usefixtures("presets", "bucket", "reader")
@pytest.mark.parametrize("name", [name for name in RUN if blocks(name, "python", "bash") or in_tables(name)])
def test_a_page_does_what_it_says(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = CountingModel()
    names: dict[str, Any] = {"model": model, "__name__": "readme"}
    printed: list[str] = []
    for language, line, code, shown in blocks(name, "python", "bash"):
        if language == "bash":
            runs = [command for command in lines_of(code) if not needs_more(command)]
            printed.append("".join(run(command, monkeypatch, capfd) for command in runs))
        else:
            code = re.sub(r'"path/to/[\w.-]+"', '"bytes"', code).replace("s3://", "memory://")
            exec(compile("\n" * (line - 1) + code, str(ROOT / name), "exec"), names)
            printed.append(capfd.readouterr().out)
        assert_shows(shown, printed[-1], f"{name}:{line}")
        if "stream = " in code:
            stream = names["stream"]
            assert sum(1 for _ in stream.batches(epoch=0, start_step=0)) == stream.steps_per_epoch, f"{name}:{line}"
    for command in in_tables(name):
        if not needs_more(command):
            run(command, monkeypatch, capfd)
    assert all(model.steps)
    if name in READMES:
        assert model.steps == [2 * (PAIRS // 8)], "the example trains two epochs in batches of 8"
        assert any("chosen_input_ids" in text for text in printed)


@pytest.mark.parametrize("name", [name for name in PAGES if any(map(needs_more, commands(name)))])
def test_commands_that_need_more_exist(name: str) -> None:
    makefile, common = read("Makefile"), read("benchmarks/common.py") + read("examples/common.py")
    for command in filter(needs_more, commands(name)):
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, command
        if words[0] == "pip":
            extras = re.search(r"\[([\w,]+)\]", command)
            given = [] if extras is None else extras.group(1).split(",")
            assert [one for one in given if f"\n{one} = [" not in read("pyproject.toml")] == [], command
        if words[0] == "python":
            script = words[1] if "/" in words[1] else f"ms_prefstream/cli/templates/{words[1]}.jinja"
            options = [word for word in words if word.startswith("--")]
            assert [one for one in options if f'"{one}"' not in read(script) + common] == [], command


@pytest.mark.parametrize("page", ["command-line", "mindformers"])
def test_the_file_of_config_is_one(
    page: str, reader: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (block,) = blocks(f"docs/{page}.md", "yaml")
    (reader / "run.yaml").write_text(block.code.replace(TOKENIZER, "bytes"), encoding="utf-8")
    assert f"{PAIRS} rows read" in run("ms-prefstream doctor --config run.yaml", monkeypatch, capfd)


@pytest.mark.parametrize("name", READMES)
def test_a_readme_is_short(name: str) -> None:
    assert len(read(name).splitlines()) <= 170


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"(?:\]\(|src(?:set)?=\")([^)#\s\"]+)[)\"]", read(name))
    assert [one for one in links if not one.startswith("http") and not ((ROOT / name).parent / one).exists()] == []


def test_the_description_on_a_package_index_has_no_link_that_leads_nowhere() -> None:
    text = read("README.md")
    described = runpy.run_path(str(ROOT / "setup.py"))["described"](text)
    assert re.findall(r"\]\((?!https?://)", text)
    assert re.findall(r"\]\((?!https?://)|<", described.replace("<!-- figure: ", "")) == []
    assert "docs/installation.md has the other extras" in described
    assert re.findall("^(#+ .+|```.*)$", described, re.MULTILINE) == re.findall("^(#+ .+|```.*)$", text, re.MULTILINE)


def test_the_index_has_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w/-]+\.md)[)#]", read("docs/README.md")))
    assert linked >= {name.removeprefix("docs/") for name in DOCS if name.count("/") == 1} - {"README.md", "index.md"}


@pytest.mark.parametrize("name", READMES)
def test_features_and_figures_have_commands(name: str) -> None:
    tables = re.findall(r"^\|[^\n]*\n\|---\|---\|---\|\n((?:\|.*\n)+)", read(name), flags=re.MULTILINE)
    features, speed = (table.splitlines() for table in tables)
    assert (len(features), len(speed)) == (8, 3)
    for row in [*features, *speed]:
        assert re.search(r"\d.*\| `(python|ms-prefstream) [^`]+` \|$", row), row
    presets, reasons = (int(re.search(r"\| (\d+) ", features[at]).group(1)) for at in (0, 4))  # type: ignore[union-attr]
    assert (presets, reasons) == (len(PRESETS), len(mps.Reason))


def test_a_figure_is_the_same_on_every_page_and_has_a_command() -> None:
    found: dict[str, set[str]] = {}
    for name in PAGES:
        for figure, value in FIGURE.findall(read(name)):
            found.setdefault(figure, set()).add(value)
        assert read(name).count("<!-- figure:") == len(FIGURE.findall(read(name))), f"{name}: a figure has no value"
    assert len(found) > 20
    assert {figure: values for figure, values in found.items() if len(values) > 1} == {}
    sections = re.split(r"^## ", read("docs/performance.md"), flags=re.MULTILINE)[1:]
    assert [one.splitlines()[0] for one in sections if "python benchmarks/" not in one] == []
