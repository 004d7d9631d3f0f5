"""What `print` shows: the stream in at most eight lines, everything else in at most twelve, and the same as `repr`."""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import Reason
from ms_prefstream.lines import at_most, columns_of, cut, joined, share
from tests.helpers import json_lines, pairs


def test_the_longest_section_gives_way() -> None:
    assert at_most([["a"], ["b", "c", "d"]], 4) == ["a", "b", "c", "d"]
    assert at_most([["a"], ["b", "c", "d"]], 3) == ["a", "b", "c · and 1 more"]
    assert at_most([["a", "b", "c"], [], ["d", "e", "f", "g"]], 5) == ["a", "b", "c", "d", "e · and 2 more"]
    assert at_most([[*"abcdef"], [*"ghijk"]], 9) == [*"abcdef", "g", "h", "i · and 2 more"]
    assert at_most([["a"], ["b"], ["c"]], 2) == ["a", "b", "c"]  # one line each is the least


def test_lines_fit_a_terminal() -> None:
    lines = joined([f"part {number} 数据" for number in range(40)], indent="  ")
    assert max(map(columns_of, lines)) <= 98
    assert " · ".join(line.strip() for line in lines).count("part") == 40
    assert all(line.startswith("  ") for line in lines[1:])
    assert cut("数据数据", 5) == "数据…"
    assert [share(4, 2000), share(1836, 2000), share(0, 0)] == ["4 (0.20 %)", "1,836 (91.8 %)", "0 (0.00 %)"]


def full_report() -> mps.Report:
    """A report in which every field says something."""
    report = mps.Report(
        rows=9000, read=8000, filtered=3, chosen_widths=(64, 128), tokenizer="x\n  y", template="joined"
    )
    for number, reason in enumerate(Reason, start=1):
        report.dropped[str(reason)] = number
        report.origins[str(reason)] = [f"file:{number}"]
    for name in ("content_lost", "empty_think", "markers"):
        setattr(report, name, 7)
        report.origins[name] = ["file:1"]
    for name in ("repeats", "repeats_per_epoch", "remainder_per_epoch", "truncated", "question_cut", "rewritten"):
        setattr(report, name, 8)
    report.desirable, report.undesirable, report.separator_trimmed = 1, 2, 3
    report.boundary_differs, report.left_out, report.packs, report.packs_closed = 1, 2, 9, 3
    report.packs_made, report.packs_wanted, report.tokens, report.cells = 5, 6, 70, 100
    report.unread = Counter({f"field {number}": 1 for number in range(9)})
    report.origins |= {f"unread field {number}": ["file:1"] for number in range(9)}
    report.parts = {f"part {number}": mps.PartReport(share=0.1) for number in range(9)}
    report.left_out_files = {"a": "a cache"}
    report.warnings = [f"warning {number}" for number in range(9)]
    report.widths = Counter({64: 3})
    return report


def test_a_report_has_twelve_lines_at_most() -> None:
    report = full_report()
    lines = str(report).splitlines()
    assert len(lines) == 12
    assert repr(report) == str(report)
    assert lines[0] == f"rows read 8,000 of 9,000, dropped {share(sum(range(1, len(Reason) + 1)), 8000)}"
    for label in (
        "too_long",
        "rows cut to fit: 8 (0.10 %)",
        "lost words",
        "part 0",
        "padding 30.0 %",
        "tokenizer: x · y",
    ):
        assert any(label in line for line in lines), label
    assert {"files that this library wrote", "warning: warning 0 · and 8 more"} <= {
        line.partition(", left")[0] for line in lines
    }


def test_the_fields_of_a_report_are_documented_and_in_as_dict() -> None:
    for kind in (mps.Report, mps.PartReport):
        documented = set(re.findall(r"^        (\w+): ", str(kind.__doc__), re.MULTILINE))
        fields = {name for name in vars(kind(**({"share": 1.0} if kind is mps.PartReport else {}))) if name[0] != "_"}
        assert documented == fields
    report = full_report()
    found = report.as_dict()
    assert set(found) == {name for name in vars(report) if name[0] != "_"} - {"warnings", "template", "delivered"}
    assert not re.search("Counter|Report", repr(found))


def test_a_stream_has_eight_lines_at_most(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / f"{'数据' * 30}.jsonl", pairs(40))
    stream = mps.stream(str(path), task=mps.DPO(48), tokenizer="bytes", batching=mps.Bucket(4, multiple_of=4))
    stream.report.warnings += [f"warning {number} {'x' * 200}" for number in range(9)]
    list(stream.batches())
    lines = str(stream).splitlines()
    assert repr(stream) == str(stream)
    assert len(lines) == 8
    assert max(map(columns_of, lines)) <= 98
    assert re.search(r"max_length 48 · [0-9.]+ % of rows cut · (no question lost|[0-9.]+ % of rows without)", lines[2])
    assert "padding" in lines[3]


@pytest.mark.mindspore
def test_a_dataset_shows_steps_columns_shapes_and_its_stream() -> None:
    stream = mps.stream(
        pairs(40), task=mps.DPO(64), tokenizer="bytes", batching=mps.Bucket(4, multiple_of=32), verbose=False
    )
    dataset = stream.dataset()
    lines = repr(dataset).splitlines()
    assert str(dataset) == repr(dataset)
    assert len(lines) <= 12
    assert lines[0] == "MindSpore dataset · 10 steps an epoch, begins with step 0 of epoch 0"
    assert [name for name in stream.column_names if name not in " ".join(lines)] == []
    assert "     (4, 32) · (4, 64)" in lines
    assert lines[-3].startswith("DPO  list · 40 rows")
    dataset.set_init_step(3)
    assert "begins with step 3 of epoch 0" in repr(dataset)
    assert "begins with step 2 of epoch 1" in repr(stream.resume(stream.state(12)).dataset())


def test_an_index_shows_reasons_lengths_and_its_file(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", [*pairs(30), {"prompt": "p", "chosen": "a", "rejected": "a"}])
    index = mps.build_index(str(path), task=mps.DPO(512), tokenizer="bytes", verbose=False)
    lines = repr(index).splitlines()
    assert str(index) == repr(index)
    assert lines[0] == "rows in the length index 31, dropped 1 (3.2 %)"
    assert lines[1] == "  identical: 1 (3.2 %), first at row 30"
    assert lines[2].endswith(f"all {index.longest:,}")
    assert lines[3] == index.path


def test_an_encoded_row_is_printed_the_same_way_by_repr() -> None:
    row: dict[str, Any] = {"prompt": "Q?", "responses": [f"a{n}" for n in range(9)], "scores": list(range(9))}
    found = mps.encode(row, task=mps.DPO(64), tokenizer="bytes", format=mps.formats.ranked(policy="adjacent"))
    assert repr(found) == str(found)
    assert len(str(found).splitlines()) == 12
    assert str(found).endswith(" more")
    single = mps.encode(pairs(1)[0], task=mps.DPO(64), tokenizer="bytes")
    assert repr(single.sides[0]) == str(single.sides[0])
    assert len(str(single).splitlines()) <= 12
    assert "array(" not in repr(single)
