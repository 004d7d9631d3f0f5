"""The quarantine file itself: its name, its lines, what it continues, and what it refuses to write over."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import OptionError, PrefStreamError, Reason, RowError, SourceError
from ms_prefstream.part_range import PartRange
from ms_prefstream.plan.bin_packing import Fitted
from ms_prefstream.report.bad_rows import BadRows, Quarantine
from ms_prefstream.report.report import PartReport, Report
from ms_prefstream.sample import Block, Loaded, Note, Sample, Sequence

GOOD = Loaded(Sample((Sequence(np.array([1, 2], np.int32), ((1, 2),)),)), None)
RENAME = " Name a file in a folder that exists and can be written to."


def error(number: int, reason: Reason = Reason.TIE) -> RowError:
    return RowError(reason, f"problem {number}", "Mend it", f"rows.jsonl:{number}")


def line(number: int, row: str = '{"n":1}') -> str:
    return f'{{"origin":"rows.jsonl:{number}","reason":"tie","problem":"problem {number}","row":{row}}}\n'


@pytest.fixture
def path(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    return pathlib.Path("bad+.jsonl")


def test_a_line_for_each_row_from_the_first_on(path: pathlib.Path) -> None:
    quarantine = Quarantine(path)
    assert not path.exists()
    quarantine.add(error(1), {"n": 1})
    assert path.read_text() == line(1)
    quarantine.add(error(2), {("a", 1): {"\ud800"}})  # nothing that JSON has
    quarantine.add(error(1), {"n": 1})
    written = path.read_text("utf-8", "surrogatepass").splitlines()
    assert len(written) == 3
    assert written[0] == written[2] == line(1).strip()
    assert written[1].startswith('{"origin":"rows.jsonl:2","reason":"tie","problem":"problem 2","row":"')
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_new_run_writes_over_an_old_quarantine_and_a_resumed_one_appends(path: pathlib.Path) -> None:
    Quarantine(path).add(error(1), {"n": 1})
    Quarantine(path).add(error(2), {"n": 1})
    assert path.read_text() == line(2)
    with path.open("a") as file:
        file.write('{"origin":"rows.jsonl:3","rea')
    for other, number in (("bad+.rank3.jsonl", 4), ("badd.jsonl", 5), ("bad+.rankx.jsonl", 6), ("bad+.jsonl.rank1", 7)):
        pathlib.Path(other).write_text(line(number))
    pathlib.Path("bad+.rank5.jsonl").write_text('{"origin":"rows.jsonl:8"}\n')  # no quarantine
    resumed = Quarantine(path)
    resumed.keep()
    assert path.read_text() == line(2), "the incomplete line is gone"
    for number in range(1, 9):
        resumed.add(error(number), {"n": 1})
    assert path.read_text() == "".join(line(number) for number in (2, 1, 3, 5, 6, 7, 8))
    resumed.keep()
    resumed.add(error(9), {"n": 1})
    assert path.read_text().endswith(line(8) + line(9))


def test_lines_that_name_no_origin_are_passed_over(path: pathlib.Path) -> None:
    deep = '{"origin":"rows.jsonl:4","reason":"tie","problem":"","row":' + "[" * 99_999 + "]" * 99_999 + "}\n"
    head = line(1) + " " * 2**20 + "\n"  # what is checked of it
    path.write_text(head + '{"a":1}\n[1]\nno JSON\n3\n' + deep + line(2))
    quarantine = Quarantine(path)
    quarantine.keep()
    before = path.read_text()
    for number in (1, 2, 3):
        quarantine.add(error(number), {"n": 1})
    assert path.read_text() == before + line(3)


def test_a_run_without_a_file_begins_one_when_it_resumes(path: pathlib.Path) -> None:
    quarantine = Quarantine(path)
    quarantine.keep()
    assert not path.exists()
    quarantine.add(error(1), {"n": 1})
    assert path.read_text() == line(1)


def test_names_of_ranks_and_ranges(path: pathlib.Path) -> None:
    assert str(Quarantine(path, 0, 1).path) == "bad+.jsonl"
    assert [str(Quarantine(path, rank, 2).path) for rank in (0, 1)] == ["bad+.rank0.jsonl", "bad+.rank1.jsonl"]
    assert str(Quarantine("bad+.jsonl").of_range(PartRange(2, 8)).path) == "bad+.2-of-8.jsonl"
    second = Quarantine(path, 1, 3)
    assert (second.rank, second.world) == (1, 3)
    Quarantine(path, 0, 3).add(error(1), {"n": 1})
    second.keep()
    second.add(error(1), {"n": 1})
    second.add(error(2), {"n": 1})
    assert second.path.read_text() == line(2), "another rank has written the first"


def test_what_it_refuses(path: pathlib.Path) -> None:
    def said(given: Any, kind: type[PrefStreamError] = SourceError) -> str:
        with pytest.raises(kind) as raised:
            Quarantine(given).add(error(1), {})
        return str(raised.value)

    assert said(3, OptionError) == "quarantine is 3; expected the path of a file to write."
    assert said("a\0b", OptionError).startswith("quarantine a")
    text = "quarantine file {} cannot be written: {}." + RENAME
    assert said("gone/bad.jsonl") == text.format("gone/bad.jsonl", "there is no folder gone")
    pathlib.Path("folder").mkdir()
    assert said("folder") == text.format("folder", "it is a folder")
    pathlib.Path("link").symlink_to("bad")
    assert said("link") == text.format("link", "it is a link, and only the file itself is written")
    path.write_text("rows of somebody\n")
    assert said(path) == text.format(path, "it exists and holds something else")
    with pytest.raises(SourceError, match="it exists and holds something else"):
        Quarantine(path).keep()
    assert path.read_text() == "rows of somebody\n"
    os.mkfifo("pipe")
    assert said("pipe") == text.format("pipe", "it is no regular file")
    made = Quarantine("late.jsonl")
    pathlib.Path("late.jsonl").symlink_to(path)
    for call in (made.keep, lambda: made.add(error(1), {})):
        with pytest.raises(SourceError) as raised:
            call()
        assert str(raised.value) == text.format("late.jsonl", "it is a link")
    path.unlink()
    path.touch()  # an empty file is nobody's
    Quarantine(path).add(error(1), {"n": 1})
    assert path.read_text() == line(1)


def test_settled_rows_are_written_and_counted_in_their_part(path: pathlib.Path) -> None:
    report, parts = Report(), [PartReport(0.5), PartReport(0.5)]
    asked: list[int] = []

    def part(number: int) -> PartReport:
        asked.append(number)
        return parts[number % 2]

    bad_rows = BadRows(
        report,
        False,
        origin="rows.jsonl:{}".format,
        raw=lambda row: {"n": row},
        quarantine=Quarantine(path),
        part=part,
        first=100,
    )
    dropped = Loaded(None, RowError(Reason.TIE, "problem"))
    rows = [5, 6, 7, 8]
    noted = GOOD._replace(notes=Note.MARKERS, unread=("score",))
    assert len(bad_rows.settle(rows, Block.of([dropped, GOOD, noted, dropped]))) == 4
    bad_rows.settle(rows, Block.of([dropped] * 4))
    assert asked == [105, 106, 107, 108]
    assert [(one.read, dict(one.dropped)) for one in parts] == [(2, {"tie": 1}), (2, {"tie": 1})]
    names = [f'{{"origin":"rows.jsonl:{n}","reason":"tie","problem":"problem","row":{{"n":{n}}}}}\n' for n in (5, 8)]
    assert path.read_text() == "".join(names)
    assert (report.read, report.dropped, report.unread, report.markers) == (4, {"tie": 2}, {"score": 1}, 1)
    origins = {"tie": ["rows.jsonl:5", "rows.jsonl:8"], "unread score": ["rows.jsonl:7"], "markers": ["rows.jsonl:7"]}
    assert report.origins == origins


def test_packed_windows_add_up() -> None:
    report = Report()
    for _ in range(2):
        report.packed_window(Fitted((), made=3, left_out=7, repeats=11), 5, [error(1)])  # type: ignore[arg-type]
    assert (report.packs_made, report.packs_wanted, report.left_out, report.repeats) == (6, 10, 14, 22)
    ledger = report.ledger()
    assert (ledger["reasons"], ledger["remainder"], ledger["repeats"]) == ({"tie": 2}, 14, 22)
