"""What holds for the repository as a whole: light imports, one version, no traces of a machine, two equal READMEs."""

from __future__ import annotations

import ast
import inspect
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "ms_prefstream"
READMES = ("README.md", "README_CN.md")
HEAVY = ("mindspore", "mindformers", "transformers", "datasets", "pyarrow", "fsspec", "ray")
# A home or a work folder at the very beginning of a path: `a/work/b` and `framework/b` are none.
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:work|root|home|Users)/")


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads(_read("pyproject.toml"))


def test_importing_the_package_loads_nothing_heavy_and_writes_nothing(tmp_path: pathlib.Path) -> None:
    code = f"import sys, ms_prefstream as mps; mps.stream; print([name for name in {HEAVY} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
    assert list(tmp_path.iterdir()) == []


def test_public_names_are_loaded_on_first_use() -> None:
    code = """import sys
import ms_prefstream as mps
loaded = "numpy" in sys.modules
import ms_prefstream.doctor, ms_prefstream.encode.tokenizer, ms_prefstream.stream
print(loaded, callable(mps.doctor), callable(mps.encode), callable(mps.stream), set(mps.__all__) <= set(dir(mps)))
from ms_prefstream import *
print(stream is mps.stream, formats.cvalues() is not None, hasattr(mps, "no_such_name"))"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("False True True True True\nTrue True False\n", "")


def test_no_submodule_hides_a_public_function() -> None:
    """A public name that is also a file or folder must be listed, or the import of that module replaces it."""
    import ms_prefstream as mps

    functions = {name for name in mps.__all__ if not inspect.ismodule(getattr(mps, name))}
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert functions & modules == set(vars(mps)["_FUNCTIONS"])


def test_the_version_is_stated_once(pyproject: dict[str, Any]) -> None:
    from ms_prefstream.version import VERSION

    assert "version" in pyproject["project"]["dynamic"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ms_prefstream.version.VERSION"}
    literal = re.compile(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])")
    stating = [path for path in PACKAGE.rglob("*.py") if literal.search(path.read_text(encoding="utf-8"))]
    assert stating == [PACKAGE / "version.py"]


def test_no_tracked_file_names_a_path_of_a_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    if not tracked:
        pytest.skip("nothing is tracked yet")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()[:100]}"
        for path in tracked
        if path != pathlib.Path(__file__)
        for line in path.read_text(encoding="utf-8", errors="ignore").splitlines()
        if MACHINE_PATH.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_one"),
    [('open("/work/data")', True), ("see /root/x", True), ("a/work/b", False), ("https://x.org/home/y", False)],
)
def test_what_counts_as_a_path_of_a_machine(text: str, is_one: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is is_one


def test_package_data_is_packed_and_nothing_is_forgotten(pyproject: dict[str, Any]) -> None:
    globs = pyproject["tool"]["setuptools"]["package-data"]["ms_prefstream"]
    packed = {glob: set(PACKAGE.glob(glob)) for glob in globs}
    assert [glob for glob, files in packed.items() if not files] == []
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data == set().union(*packed.values())


def test_the_package_is_typed_and_every_folder_is_a_package() -> None:
    assert (PACKAGE / "py.typed").is_file()
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_licence_is_the_whole_apache_licence(pyproject: dict[str, Any]) -> None:
    text = _read("LICENSE")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert [f"   {number}. " in text for number in range(1, 10)] == [True] * 9
    assert "END OF TERMS AND CONDITIONS" in text
    assert "APPENDIX: How to apply the Apache License to your work." in text
    assert pyproject["project"]["license"] == "Apache-2.0"
    assert pyproject["project"]["license-files"] == ["LICENSE"]


def test_every_make_target_is_explained_and_ci_runs_the_tests() -> None:
    makefile = _read("Makefile")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert targets is not None
    assert set(targets.group(1).split()) == {
        "help",
        "demo",
        "test",
        "test-all",
        "test-long",
        "mutation",
        "lint",
        "docs",
        "bench",
        "figures",
        "dist",
        "clean",
    }
    for target in targets.group(1).split():
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
        assert target == "help" or f"make {target} " in makefile, target
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert re.findall(r"^(?:exec )?make (\S+)", _read(".ci/run"), flags=re.MULTILINE) == ["test", "test-all", "docs"]


def test_every_test_that_is_not_long_is_run_by_one_of_the_two_targets() -> None:
    recipes = re.findall(r"^(test|test-all):.*\n\t.*? -m \"(.*?)\"", _read("Makefile"), flags=re.MULTILINE)
    for marks in ([], ["training"], ["slow"], ["training", "smoke"], ["long"], ["training", "long"]):
        names = {name: name in marks for name in ("training", "smoke", "slow", "long")}
        runs = [target for target, chosen in recipes if eval(chosen, names)]  # what -m takes is Python as well
        expected = ["test-all"] if marks in (["training"], ["slow"]) else ["test"]
        assert runs == ([] if "long" in marks else expected), marks


def test_changelog_and_citation_state_the_version() -> None:
    from ms_prefstream.version import VERSION

    sections = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", _read("CHANGELOG.md"), flags=re.MULTILINE)
    assert [name for name, _ in sections[:2]] == ["Unreleased", VERSION]
    citation = yaml.safe_load(_read("CITATION.cff"))
    assert (citation["version"], f"{citation['date-released']}") == sections[1]


def _prose(name: str) -> str:
    return re.sub(r"^```.*?^```$", "", _read(name), flags=re.DOTALL | re.MULTILINE)


def _outline(name: str) -> dict[str, list[Any]]:
    """What both languages must share: levels of the headings, tables row by row, list items, names in backticks."""
    prose = _prose(name)
    lines = prose.splitlines()
    return {
        "headings": [len(line) - len(line.lstrip("#")) for line in lines if line.startswith("#")],
        "columns": [line.count("|") for line in lines if line.startswith("|")],
        "items": [line[0] for line in lines if line.startswith("* ")],
        "first cells": [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in lines if line.startswith("|")],
        "names": sorted(set(re.findall(r"`([^`]+)`", prose))),
    }


def _code(name: str) -> list[tuple[str, str]]:
    """The code blocks with their language, without comments, which are translated."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", _read(name), flags=re.DOTALL | re.MULTILINE)
    return [(language, _without_comments(language, body)) for language, body in blocks]


def _without_comments(language: str, body: str) -> str:
    if language == "python":
        return ast.dump(ast.parse(body))
    if language == "bash":
        return "\n".join(line.split("#")[0].rstrip() for line in body.splitlines())
    return body


def test_both_readmes_have_the_same_outline() -> None:
    english, chinese = (_outline(name) for name in READMES)
    assert english == chinese
    assert len(english["headings"]) > 10
    assert "(README_CN.md)" in _read("README.md")
    assert "(README.md)" in _read("README_CN.md")


def test_both_readmes_have_the_same_code() -> None:
    english, chinese = (_code(name) for name in READMES)
    assert english == chinese
    assert {language for language, _ in english} == {"bash", "python"}


@pytest.mark.parametrize("page", sorted(page.name for page in (ROOT / "docs/zh").glob("*.md")))
def test_a_chinese_page_goes_with_the_english_one(page: str) -> None:
    chinese, english = f"docs/zh/{page}", "docs/README.md" if page == "index.md" else f"docs/{page}"
    assert f"](zh/{page})" in _read(english).split("\n\n")[1]
    assert f"](../{page})" in _read(chinese).split("\n\n")[1]
    assert _outline(chinese) == _outline(english)
    assert _code(chinese) == _code(english)
    pictures, translated = r"figures/[\w-]+\.svg", {name.name for name in (ROOT / "docs/zh").glob("*.md")}
    assert re.findall(pictures, _read(chinese)) == re.findall(pictures, _read(english))
    assert translated & set(re.findall(r"\]\(\.\./([\w-]+\.md)", _read(chinese).split("\n\n", 2)[2])) == set()


def test_the_files_that_readme_and_documents_name_exist() -> None:
    prose = "".join(
        _prose(f"{name.relative_to(ROOT)}")
        for name in [*(ROOT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING")), *ROOT.glob("docs/*.md")]
    )
    named = {
        name
        for name in re.findall(r"`([^`\s]+)`", prose)
        if re.fullmatch(r"[\w./]*/[\w.]*", name) and "NAME" not in name
    }
    assert len(named) > 10
    missing = [name for name in sorted(named) if not (ROOT / name).exists() and not (PACKAGE / name).exists()]
    assert [name for name in missing if not name.startswith("../")] == []
