"""Untried versions of other packages are named in one warning; the ranges of pyproject.toml end at the tried ones."""

from __future__ import annotations

import logging
import pathlib
import re
import sys
import types

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import PrefStreamError
from ms_prefstream.packages import PACKAGES, needs, warn_if_untried
from tests.compat.versions import SETUPS

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    warn_if_untried.cache_clear()


def installed(monkeypatch: pytest.MonkeyPatch, package: str, version: str) -> None:
    """Puts an empty module of that version in the place of a package."""
    module = types.ModuleType(package)
    module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, package, module)


@pytest.mark.parametrize(
    ("package", "version", "tried"),
    [
        ("mindspore", "2.9.0", True),
        ("mindspore", "2.9.3", True),
        ("mindspore", "2.8.0", False),
        ("mindspore", "2.1.0", False),
        ("mindspore", "3.0.0rc1", False),
        ("mindformers", "2.0.0", False),
        ("tokenizers", "0.24.0", False),
        ("transformers", "4.41.2", True),
        ("transformers", "6.0.0", False),
        ("pyarrow", "99.0", True),  # any version will do
    ],
)
def test_untried_versions_are_named_once(
    package: str, version: str, tried: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed(monkeypatch, package, version)
    with caplog.at_level(logging.WARNING, "ms_prefstream"):
        for _ in range(2):
            with needs(package, "the test"):
                pass
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(" is installed")[0] for text in said] == ([] if tried else [f"{package} {version}"])
    assert all(name in text for text in said for name in PACKAGES[package].tried)


@pytest.mark.parametrize(
    "damage",
    [
        ImportError("libascendcl.so: cannot open shared object file", name="mindspore._c_expression"),
        ModuleNotFoundError("No module named 'asttokens'", name="asttokens"),
    ],
)
def test_a_package_that_cannot_be_imported_is_an_error_that_says_why(damage: ImportError) -> None:
    with (
        pytest.raises(PrefStreamError, match=f"the test needs the package mindspore, which cannot .*{damage}.*Repair"),
        needs("mindspore", "the test"),
    ):
        raise damage
    with pytest.raises(ModuleNotFoundError), needs("mindspore", "the test"):
        raise ModuleNotFoundError("No module named 'ms_prefstream.x'", name="ms_prefstream.x")


def test_nothing_is_said_of_a_package_that_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "mindformers", raising=False)
    warn_if_untried("mindformers")
    warn_if_untried("a_package_of_the_user")
    assert caplog.records == []


def test_each_package_is_checked_where_it_is_first_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr("tokenizers.__version__", "0.99.0")
    monkeypatch.setattr("mindspore.__version__", "2.99.0")
    rust = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    rows = [{"prompt": "a", "chosen": "b", "rejected": "a"}] * 4
    stream = mps.stream(rows, task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(2))
    assert caplog.records == []  # neither is used yet
    stream.dataset()
    stream.dataset()
    rust.save(str(tmp_path / "tokenizer.json"))
    load_tokenizer(tmp_path)
    said = [record.getMessage().split(" is installed")[0] for record in caplog.records]
    assert said == ["mindspore 2.99.0", "tokenizers 0.99.0"]


def test_the_ranges_end_at_what_was_tried() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package in ("mindspore", "mindformers", "tokenizers"):
        ranges = re.findall(rf'"{package}>=([\d.]+),<([\d.]+)"', text)
        tried = [one.split(".")[:2] for one in PACKAGES[package].tried]
        assert ranges, package
        assert all(begin.split(".")[:2] == tried[0] for begin, _ in ranges), package
        assert all(end in [f"{major}.{int(minor) + 1}" for major, minor in tried] for _, end in ranges), package


def test_the_table_of_versions_holds_every_tried_one() -> None:
    for package in ("mindspore", "mindformers"):
        assert set(PACKAGES[package].tried) <= {getattr(setup, package) for setup in SETUPS}
    for package in ("tokenizers", "transformers"):
        tried = [one.split("==")[1] for setup in SETUPS for one in setup.more if one.startswith(f"{package}==")]
        assert set(tried) <= set(PACKAGES[package].tried)


def test_make_installs_a_tried_pair() -> None:
    pair = re.search(r"^PAIR := mindspore==(\S+) mindformers==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert pair is not None
    assert pair[1] in PACKAGES["mindspore"].tried
    assert pair[2] in PACKAGES["mindformers"].tried
