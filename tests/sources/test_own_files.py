"""Files of this library beside the data: known by what they hold, left out of folders and globs, and reported."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import SourceError
from ms_prefstream.sources.open import open_source
from ms_prefstream.sources.own_files import own_kind
from ms_prefstream.sources.paths import own_files_beside
from tests.helpers import json_lines, pairs

BROKEN = {"prompt": 3}


def make(source: object, **options: object) -> mps.Stream:
    options = {"on_bad_row": "drop", **options}
    return mps.stream(source, task=mps.DPO(128), tokenizer="bytes", batching=mps.Pad(1), **options)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Data, with everything that the library writes beside it."""
    data = tmp_path / "data"
    data.mkdir()
    json_lines(data / "rows.jsonl", [*pairs(6), BROKEN])
    stream = make(data / "rows.jsonl", quarantine=data / "bad.jsonl", index=None)
    mps.write_cache(stream, data / "cache", workers=0)
    pathlib.Path(stream.build_index().path).rename(data / "rows.jsonl.mprefidx")
    list(stream.batches())
    (data / "stream_state.json").write_text(json.dumps(stream.state(1), indent=2))
    (data / "x-1_3.stream_state.json").write_text(json.dumps(stream.state(2)))
    (data / "report.json").write_text(json.dumps({"steps": 3, **stream.report.as_dict()}))
    return data


OWN = {
    "bad.jsonl": "a quarantine file",
    "stream_state.json": "a saved state",
    "x-1_3.stream_state.json": "a saved state",
    "report.json": "a report",
    "cache/manifest.json": "a description of a cache",
    "rows.jsonl.mprefidx": "a length index",
}


def test_each_is_known(folder: pathlib.Path) -> None:
    found = {name: own_kind(str(folder / name)) for name in OWN}
    assert found == OWN
    assert own_kind(str(folder / "rows.jsonl")) is None


@pytest.mark.parametrize("pattern", ["", "*.json*", "**/*.json*", "*[xl]"])
def test_they_are_left_out_and_the_report_says_so(pattern: str, folder: pathlib.Path) -> None:
    stream = make(os.path.join(folder, pattern) if pattern else folder)
    assert stream.report.rows == 7
    data_like = {name for name in OWN if not name.endswith(".mprefidx")}
    expected = {
        "": data_like,
        "**/*.json*": set(OWN),
        "*.json*": {name for name in OWN if "/" not in name},
        "*[xl]": {"bad.jsonl", "rows.jsonl.mprefidx"},
    }[pattern]
    assert stream.report.left_out_files == {str(folder / name): OWN[name] for name in expected}
    assert stream.report.as_dict()["left_out_files"] == stream.report.left_out_files
    assert f"files that this library wrote, left out: {len(expected)} (" in str(stream.report)
    assert make(folder / "rows.jsonl").report.left_out_files == {}
    assert "left_out_files" not in make(folder / "rows.jsonl").report.as_dict()


def test_of_a_mix_and_of_a_list_too(folder: pathlib.Path) -> None:
    rows = json_lines(folder.parent / "more.jsonl", pairs(4, 50))
    mixed = make(mps.mix([(str(folder / "*.jsonl"), 1), (str(rows), 1)]))
    assert list(mixed.report.left_out_files) == [str(folder / "bad.jsonl")]
    assert list(make([str(folder / "*.jsonl"), str(rows)]).report.left_out_files) == [str(folder / "bad.jsonl")]


def test_a_name_that_is_given_is_what_the_user_means(folder: pathlib.Path) -> None:
    assert make(folder / "bad.jsonl").report.rows
    assert make(folder / "bad.jsonl").report.left_out_files == {}


def test_a_glob_that_matches_nothing_else(folder: pathlib.Path) -> None:
    with pytest.raises(SourceError, match=r"only folders and files that this library wrote \(.*bad\.jsonl: a quarant"):
        make(str(folder / "b*.jsonl"))
    (folder / "rows.jsonl").unlink()
    with pytest.raises(SourceError, match="found no data files in the folder"):
        make(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"origin":"web","prompt":"a","chosen":"b","rejected":"c"}\n'),
        ("stream_state.json", '{"version": 1, "prompt": "a", "chosen": "b", "rejected": "c"}\n'),
        ("manifest.json", '{"format": "jsonl", "prompt": "a", "chosen": "b", "rejected": "c"}\n'),
        ("a.json", '{"steps": 3, "plan_version": 1, "prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2),
        ("a.json", '[{"prompt": "a", "chosen": "b", "rejected": "\\"ms_prefstream cache\\" \\"steps\\""}]'),
        ("a.json", '{"prompt": "\\"ms_prefstream cache\\" \\"steps\\"", "chosen": "b", "rejected": ' + "[" * 5000),
        ("a.jsonl", '{"origin":' * 5000),
    ],
)
def test_rows_are_not_taken_for_own_files(name: str, text: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).write_text(text)
    assert own_kind(str(tmp_path / name)) is None
    assert own_files_beside(open_source(tmp_path)) == {}


def test_an_array_of_somebody_else_is_no_index(tmp_path: pathlib.Path) -> None:
    import numpy as np

    for number, array in enumerate([np.zeros((5, 2), np.int32), np.zeros(1, np.uint32), np.zeros(0)]):
        np.save(tmp_path / f"{number}.npy", array)
        assert own_kind(str(tmp_path / f"{number}.npy")) is None


def test_what_cannot_be_read_is_left_to_whoever_opens_it(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nothing")
    for name in ("pipe.jsonl", "link.jsonl", "nothing.jsonl"):
        assert own_kind(str(tmp_path / name)) is None
    with pytest.raises(SourceError, match=r"a regular file was expected|no such file"):
        make(tmp_path)
