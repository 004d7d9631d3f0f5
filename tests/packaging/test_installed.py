"""A wheel and an sdist are built, and each is installed without extras into an empty environment, and used there."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "ms_prefstream"
OPTIONS = ("--task", "dpo", "--max-length", "256", "--tokenizer", "bytes")
COMMANDS = (
    ("index", "rows.jsonl", *OPTIONS),
    ("cache", "rows.jsonl", "cache", *OPTIONS),
    ("verify", "cache"),
    ("inspect", "rows.jsonl", *OPTIONS),
    ("inspect", "rows.jsonl", *OPTIONS, "--html", "report.html"),
    ("init", "rows.jsonl", "--task", "dpo", "--tokenizer", "bytes"),
)
STREAM = """
import importlib.util, pathlib, shutil, sys
import ms_prefstream as mps
from ms_prefstream.demo import data_path

absent = [name for name in ("mindspore", "mindformers", "transformers") if importlib.util.find_spec(name) is None]
options = dict(task=mps.DPO(256), batching=mps.Bucket(4, multiple_of=64))
text = list(mps.stream(data_path(), tokenizer="bytes", **options).batches())
shutil.copy(data_path(), "rows.jsonl")
print(pathlib.Path(mps.__file__).is_relative_to(sys.prefix), absent, len(text))
"""

pytestmark = pytest.mark.training


def ran(*words: str | os.PathLike[str], folder: pathlib.Path) -> str:
    """What a program prints; it must end with exit code 0."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MS_PREFSTREAM"))}
    done = subprocess.run(words, cwd=folder, env=outside, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """The two files by their suffix, built from a copy without leftovers of former builds."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(PACKAGE, folder / "ms_prefstream", ignore=shutil.ignore_patterns("__pycache__"))
    ran(sys.executable, "-m", "venv", "tools", folder=folder)
    python = folder / "tools" / "bin" / "python"
    ran(python, "-m", "pip", "install", "-q", "build", folder=folder)
    ran(python, "-m", "build", "-q", folder=folder)  # the sdist, and from it the wheel
    return {path.suffix: path for path in (folder / "dist").iterdir()}


def test_the_wheel_has_every_file_of_the_package(built: dict[str, pathlib.Path]) -> None:
    packed = {name for name in zipfile.ZipFile(built[".whl"]).namelist() if ".dist-info/" not in name}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}


@pytest.mark.parametrize("suffix", [".whl", ".gz"])
def test_the_core_works_where_nothing_else_is_installed(
    suffix: str, built: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    ran(sys.executable, "-m", "venv", "--without-pip", "env", folder=tmp_path)
    programs, tools = tmp_path / "env" / "bin", built[suffix].parents[1] / "tools" / "bin" / "python"
    ran(tools, "-m", "pip", "--python", programs / "python", "install", "-q", built[suffix], folder=tmp_path)
    said = ran(programs / "python", "-c", STREAM, folder=tmp_path)
    assert said == "True ['mindspore', 'mindformers', 'transformers'] 21\n"
    for words in COMMANDS:
        ran(programs / "ms-prefstream", *words, folder=tmp_path)
    cached = "len(list(mps.stream('cache', task=mps.DPO(256), tokenizer=None, batching=mps.Bucket(4)).batches()))"
    assert ran(programs / "python", "-c", f"import ms_prefstream as mps; print({cached})", folder=tmp_path) == "21\n"
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
