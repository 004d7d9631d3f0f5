"""Pages that explain everything of a kind: compared with the code, so that nothing is missing."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import pathlib
import re
import textwrap

import pytest

import ms_prefstream as mps
from ms_prefstream.report.findings import CHECKS
from ms_prefstream.report.report import NOTE_LABELS

DOCS = pathlib.Path(__file__).parents[1] / "docs"
OPTIONS = {
    "special_token": {"special_tokens_in_content": "error"},
    "content_lost": {"content_lost": "error"},
    "no_response_tokens": {"task": mps.DPO(64, truncation="response_right")},
    "too_long": {"task": mps.DPO(64, truncation="drop")},
}
"""Reason -> the options with which its example has it, as its section says."""


def section(page: str, title: str) -> str:
    """Returns the text under a heading, without the sections of the same level that follow it."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.search(rf"^(#+) {re.escape(title)}\n((?s:.*?))(?=^\1 |\Z)", text, flags=re.MULTILINE)
    assert found is not None, title
    return found[2]


def first_cells(table: str) -> list[str]:
    return [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("| ")][1:]


def test_every_reason_has_its_section() -> None:
    text = section("errors.md", "Reasons")
    groups = re.split(r"^### .*$", text, flags=re.MULTILINE)[1:]
    malformed, unusable, of_index = (re.findall(r"^#### `(\w+)`$", group, flags=re.MULTILINE) for group in groups)
    assert malformed == [reason.value for reason in mps.Reason if reason.malformed]
    assert {*unusable, *of_index} == {reason.value for reason in mps.Reason if not reason.malformed}
    assert of_index == ["duplicate", "contaminated"]


@pytest.mark.parametrize("reason", [one.value for one in mps.Reason])
def test_the_example_of_a_reason_has_it(reason: str) -> None:
    text = section("errors.md", f"`{reason}`")
    examples = re.findall(r"^```json\n(.*)\n```$", text, flags=re.MULTILINE)
    assert len(examples) == (reason not in ("bad_json", "row_too_large", "duplicate", "contaminated"))
    for example in examples:
        options = {"task": mps.DPO(64), "tokenizer": "bytes", **OPTIONS.get(reason, {})}
        assert mps.encode(json.loads(example), **options).reason == reason


def test_the_line_that_is_no_json_is_bad_json(tmp_path: pathlib.Path) -> None:
    (tmp_path / "rows.jsonl").write_text(re.findall(r"```text\n(.*\n)```", section("errors.md", "`bad_json`"))[0])
    with pytest.raises(mps.RowError, match="bad_json"):
        mps.read(tmp_path / "rows.jsonl")[0]


def test_every_kind_of_error_is_explained() -> None:
    kinds = {name for name in mps.__all__ if name.endswith("Error")} - {"PrefStreamError"}
    assert set(first_cells(section("errors.md", "Kinds of errors"))) == {f"`{name}`" for name in kinds}


def test_every_line_and_field_of_the_report_is_explained() -> None:
    text = section("report.md", "Every line")
    fields = {one.name for one in dataclasses.fields(mps.Report) if not one.name.startswith("_")}
    assert {name for name in fields if f"`{name}`" not in text} == set()
    phrases = [label.split(" (")[0] for label in NOTE_LABELS.values() if "response is a" not in label]
    for method in ("_sections", "_desirable", "_batches", "_files"):
        tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(mps.Report, method))))
        docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                      if isinstance(node.body[0], ast.Expr)}  # fmt: skip
        phrases += [
            found
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
            for found in re.findall(r"[a-z_]+(?: [a-z_]+){2,}", node.value)
        ]
    assert len(phrases) > 15
    assert [one for one in phrases if one not in text] == []


def test_every_warning_is_explained() -> None:
    assert len(first_cells(section("report.md", "Every warning"))) == len(CHECKS)
