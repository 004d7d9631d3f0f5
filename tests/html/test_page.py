"""The file of a report without a browser: complete, self-contained, and no text of a row is markup in it."""

from __future__ import annotations

import gzip
import html.parser
import io
import json
import pathlib
import re
import sys
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.cli import main
from ms_prefstream.errors import printable
from ms_prefstream.html.page import chart_of
from ms_prefstream.html.samples import CUT_OFF, DROPPED, NOTED, script_json

from .rows import DPO, HOSTILE, lines, write

COUNT = 120


class Page(html.parser.HTMLParser):
    """The elements of a page, the texts of its scripts, and every address that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self.addresses: list[str] = []
        self.text = ""
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        assert not any(name.startswith("on") or name == "style" for name in given), given
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag == "script":
            self._script = given.get("id") or "code"
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] += data
        else:
            self.text += data

    @property
    def meta(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts["meta"])
        return found

    @property
    def rows(self) -> list[Any]:
        blocks = [name for name in self.scripts if name.startswith("block-")]
        return [row for name in blocks for row in json.loads(self.scripts[name])]


def run(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["ms-prefstream", *map(str, words)])
    try:
        main.main()
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0


@pytest.fixture
def page(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    path = write(tmp_path / "rows.jsonl", COUNT)
    assert run(monkeypatch, "inspect", path, *DPO, "--html", tmp_path / "r.html") == 0
    return Page((tmp_path / "r.html").read_text("utf-8"))


def test_every_row_is_in_the_page_with_its_facts(page: Page) -> None:
    rows, meta = lines(COUNT), page.meta
    assert meta["rows"] == len(page.rows) == len(meta["flags"]) == len(meta["length"]) == len(rows)
    for row, flags, length, gap, shown in zip(rows, meta["flags"], meta["length"], meta["gap"], page.rows, strict=True):
        found = mps.encode(row, task=mps.DPO(160), tokenizer="bytes")
        assert bool(flags & DROPPED) is not found.kept
        if not found.kept:
            unread = "\\ud83d" in repr(row)  # in a file it is no JSON
            assert shown[1:3] == [0, "bad_json" if unread else str(found.reason)]
            continue
        assert bool(flags & CUT_OFF) is found.truncated
        assert bool(flags & NOTED) is bool(found.unread)
        sizes = [side.tokens[2] for side in found.sides]
        assert (length, gap) == (max(sizes), sizes[0] - sizes[1])
        assert shown[2] == [["chosen", sizes[0]], ["rejected", sizes[1]]]
        texts = [
            meta["strings"][text] if isinstance(text, int) else text for *_, parts in shown[5] for _, text in parts
        ]
        parts = [printable(part.text, most=None) for section in found.sections() for part in section.parts]
        assert texts == parts
        cuts = {name: tokens for tokens, name in shown[6].get("cut", [])}
        assert cuts.get("prompt", 0) == found.sides[0].cut_tokens()[0]
        assert shown[6].get("unread", []) == [printable(name, most=None) for name in found.unread]


def test_carried_values_are_in_the_page(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", 0)
    carry = ["--carry", "rejected:text", "--carry", "id:int64=7"]
    assert run(monkeypatch, "inspect", path, *DPO, *carry, "--html", tmp_path / "r.html") == 0
    page = Page((tmp_path / "r.html").read_text("utf-8"))
    found = [row[6]["carried"] for row in page.rows if row[1]]
    assert f"rejected {HOSTILE[0]} no · id 7" in found


def test_no_text_of_a_row_is_markup(page: Page) -> None:
    assert page.tags.count("script") == 3 + len([name for name in page.scripts if name.startswith("block-")])
    assert "img" not in page.tags
    assert page.addresses == ["data:,"]
    for name, text in page.scripts.items():
        if name != "code":
            assert not set("<>&") & set(text)
    texts = {text for row in page.rows if row[1] for *_, parts in row[5] for _, text in parts}
    for text in HOSTILE:
        assert printable(text, most=None) in texts or "\ud83d" in text  # it is there, as text


def test_hostile_names_of_files_and_fields_are_text(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "<img src=x onerror=alert(1)>.jsonl"
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "<b>field</b>": "text text", "pos_type": "<i>"}, {"<u>": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command, options in (("inspect", DPO), ("stats", ["--tokenizer", "bytes"])):
        assert run(monkeypatch, command, path, *options, "--html", tmp_path / "r.html") == 0
        found = Page((tmp_path / "r.html").read_text("utf-8"))
        assert not {"img", "b>", "u", "i"} & set(found.tags)
        assert "<img src=x onerror=alert(1)>.jsonl" in found.text


@pytest.mark.parametrize("words", [["--tokenizer", "bytes"], []])
def test_the_page_of_stats(words: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", COUNT)
    assert run(monkeypatch, "stats", path, *words, "--html", tmp_path / "s.html", "--samples", 50) == 0
    found = Page((tmp_path / "s.html").read_text("utf-8"))
    stats = mps.stats(str(path), tokenizer="bytes" if words else None)
    assert found.meta["rows"] == len(found.rows) == 50
    assert found.meta["unit"] == ("tokens" if words else "characters")
    for count in (stats.rows, stats.usable, *stats.dropped.values()):
        assert f"{count:,}" in found.text
    assert ("Padding" in found.text) is bool(words)
    for one in stats.padding.values():
        assert one.rule in found.text
        assert f"{100 * one.padding:.1f} %" in found.text
    bars = len([tag for tag in found.tags if tag == "rect"])
    drawn = ["sequences.longer", "tokens.chosen", "tokens.rejected", "gap"] if words else []
    drawn = drawn or ["characters.chosen", "characters.rejected", "gap"]
    assert bars == sum(len(stats.histograms[name].counts) for name in drawn) + 2 * len(stats.padding)
    if not words:  # bare texts
        for shown, row in zip(found.rows, lines(COUNT), strict=False):
            if shown[1]:
                texts = ["".join(text for _, text in parts) for *_, parts in shown[5]]
                assert texts == [row["prompt"], row["chosen"], row["rejected"]]
                assert shown[2] == [["chosen", len(row["chosen"])], ["rejected", len(row["rejected"])]]


def test_the_page_of_stats_of_a_task_without_packs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, words = write(tmp_path / "rows.jsonl", 9), ["--task", "reward", "--max-length", "90", "--tokenizer", "bytes"]
    assert run(monkeypatch, "stats", path, *words, "--html", tmp_path / "s.html") == 0
    assert "Pack(" not in Page((tmp_path / "s.html").read_text("utf-8")).text


def test_samples_without_a_tokenizer_agree_with_stats(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [{"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", "Q?"))]
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}
    rows = [
        {"prompt": turns, "chosen": "a", "rejected": "bb"},
        {"prompt": turns, "chosen": [call], "rejected": "b", "tools": [{"name": "f"}]},
        {"prompt": "same", "chosen": "a", "rejected": "a"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(monkeypatch, "stats", tmp_path / "rows.jsonl", "--html", tmp_path / "s.html") == 0
    found = Page((tmp_path / "s.html").read_text("utf-8"))
    assert mps.stats(rows).usable == 2
    assert [row[1] for row in found.rows] == [1, 1, 0]
    texts = [[(label, parts[0][1]) for label, _, _, parts in row[5]] for row in found.rows[:2]]
    assert texts[0] == [("system", "Be brief."), ("user", "Q?"), ("chosen", "a"), ("rejected", "bb")]
    assert "'f'" in texts[1][2][1]
    assert found.rows[2][2] == "identical"


def test_tokens_are_there_if_asked_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", 5)
    assert run(monkeypatch, "inspect", path, *DPO, "--html", tmp_path / "r.html", "--tokens", "--row", 2) == 0
    found = Page((tmp_path / "r.html").read_text("utf-8"))
    (row,) = found.rows
    side = mps.encode(lines(5)[2], task=mps.DPO(160), tokenizer="bytes").sides[0]
    chosen = next(parts for label, _, _, parts in row[5] if label == "chosen")
    assert [one for _, _, ids in chosen for one in ids] == list(side.ids[side.tokens[0] :])
    assert "".join(text for _, texts, _ in chosen for text in texts) == side.trained[0] + side.rest


def test_both_languages_have_every_word() -> None:
    folder = pathlib.Path(mps.__file__).parent / "html"
    words = json.loads((folder / "words.json").read_text("utf-8"))
    assert words["en"].keys() == words["zh"].keys() - {"notes", "reasons"}
    for key, text in words["en"].items():
        assert set(_named(text)) == set(_named(words["zh"][key])), key
    from ms_prefstream.inspection.encoded import CUT
    from ms_prefstream.inspection.rows import _NOTES
    from ms_prefstream.report.findings import NO_TEMPLATE

    assert words["zh"]["notes"].keys() == {*_NOTES.values(), NO_TEMPLATE} - {CUT}
    assert words["zh"]["reasons"].keys() == {*map(str, mps.Reason), "left out by the format"}


def _named(text: str) -> list[str]:
    return [part.partition("}")[0] for part in text.split("{")[1:]]


def test_a_report_replaces_only_a_report(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "rows.jsonl", 3), tmp_path / "r.html"
    for command, options in (("inspect", DPO), ("stats", [])):
        assert run(monkeypatch, command, path, *options, "--html", out) == 0
        assert run(monkeypatch, command, path, *options, "--html", out) == 0
        before = path.read_bytes()
        assert run(monkeypatch, command, path, *options, "--html", path) != 0
        assert path.read_bytes() == before
        assert "which is a file of the data itself" in capsys.readouterr().err
        thesis = tmp_path / "thesis.html"
        thesis.write_text("<html>mine</html>")
        assert run(monkeypatch, command, path, *options, "--html", thesis) != 0
        assert thesis.read_text() == "<html>mine</html>"
        assert "exists and holds something else" in capsys.readouterr().err
    assert run(monkeypatch, "inspect", path, *DPO, "--html", out, "--step", 0) == 2
    assert "Leave --step out, or --html" in capsys.readouterr().err


def test_sources_in_one_pass(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(write(tmp_path / "rows.jsonl", 30).read_bytes()))
    for command, options in (("inspect", [*DPO, "--rows", 25]), ("stats", ["--samples", 25])):
        assert run(monkeypatch, command, path, *options, "--html", tmp_path / "r.html") == 0
        found = Page((tmp_path / "r.html").read_text("utf-8"))
        assert found.meta["rows"] == 25
        assert "The samples are the first 25 rows." in found.text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.decompress(path.read_bytes()))))
    assert run(monkeypatch, "stats", "-", "--html", tmp_path / "r.html") == 0
    found = Page((tmp_path / "r.html").read_text("utf-8"))
    assert "meta" not in found.scripts
    assert "so the report has no samples" in found.text


def test_every_file_of_the_page_is_in_the_package() -> None:
    root = pathlib.Path(mps.__file__).parent
    project = (root.parent / "pyproject.toml").read_text()
    listed = re.search(r"^ms_prefstream = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL)
    assert listed is not None
    packed = {path for pattern in re.findall('"([^"]*)"', listed[1]) for path in root.glob(pattern)}
    assert {path for path in (root / "html").iterdir() if path.suffix not in (".py", "")} <= packed


def test_json_in_a_script_is_the_same_value() -> None:
    value = {"</script>": ["<!--", "&amp;", "]]>", "\\u003c", 1.5, None]}
    assert json.loads(script_json(value)) == value
    assert not set("<>&") & set(script_json(value))


def test_bars_are_to_scale() -> None:
    chart = chart_of({"edges": [-20, 0, 20, 35], "counts": [5, 10, 0]}, [(20, "20"), (99, "99")], signed=True)
    assert [bar["height"] for bar in chart["bars"]] == ["50.00", "100.00", "0.00"]
    assert [bar["side"] for bar in chart["bars"]] == ["rejected", "chosen", "chosen"]
    assert [(tick["text"], tick["x"]) for tick in chart["ticks"]] == [("-20", 0), ("35", 100), ("0", "33.33")]
    assert [mark["title"] for mark in chart["marks"]] == ["20"]
