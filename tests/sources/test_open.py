"""What a user may pass as a source, and the sentences for what cannot be one."""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import random
import stat
import subprocess
import sys
from typing import Any

import pytest

import ms_prefstream
from ms_prefstream.errors import OptionError, Reason, RowError, SourceError
from ms_prefstream.sources.base import OnePass, RandomAccess
from ms_prefstream.sources.concat import JoinedPass, JoinedRows
from ms_prefstream.sources.jsonl import JsonLines
from ms_prefstream.sources.open import open_source


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    for name, numbers in (("b-2", (3,)), ("b-10", (2,)), ("a", (0, 1))):
        lines(tmp_path / f"{name}.jsonl", *numbers)
    return tmp_path


def lines(path: pathlib.Path, *numbers: int) -> None:
    text = b"".join(b'{"n": %d}\n' % n for n in numbers)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def numbers(source: Any, skip: int = 0) -> list[int]:
    if isinstance(source, RandomAccess):
        return [row["n"] for row in source.read(range(skip, len(source)))]
    return [row["n"] for _, row in source.start(skip)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.jsonl", [0, 1]),
        (pathlib.Path("a.jsonl"), [0, 1]),
        ("*.jsonl", [0, 1, 2, 3]),
        (pathlib.Path("b-*.jsonl"), [2, 3]),
        ("b-[0-9].jsonl", [3]),
        (["b-2.jsonl", "a.jsonl"], [3, 0, 1]),
        (("b-*.jsonl", pathlib.Path("a.jsonl")), [2, 3, 0, 1]),
        (".", [0, 1, 2, 3]),
        ("**/*.jsonl", [0, 1, 2, 3]),
    ],
)
def test_paths_globs_and_lists(folder: pathlib.Path, source: Any, expected: list[int]) -> None:
    found = open_source(source)
    assert isinstance(found, JsonLines)
    assert numbers(found) == expected


def test_a_name_that_exists_is_no_glob(folder: pathlib.Path) -> None:
    lines(folder / "x[1]*.jsonl", 7)
    lines(folder / "x1.jsonl", 8)
    assert numbers(open_source("x[1]*.jsonl")) == [7]


def test_home(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert numbers(open_source("~/a.jsonl")) == [0, 1]


def test_a_source_is_itself(folder: pathlib.Path) -> None:
    source = open_source("a.jsonl")
    assert open_source(source) is source


def test_kinds_in_one_list_are_numbered_through(folder: pathlib.Path) -> None:
    (folder / "x.json").write_text('[{"n": 10}, {"n": 11}]')
    source = open_source(["b-2.jsonl", "x.json", "a.jsonl", [{"n": 20}], open_source("b-10.jsonl")])
    assert isinstance(source, JoinedRows)
    assert numbers(source) == [3, 10, 11, 0, 1, 20, 2]
    assert source.read([5, 0, 2, 5]) == [{"n": n} for n in (20, 3, 11, 20)]
    origins = [source.origin(row) for row in range(7)]
    assert origins == [
        "b-2.jsonl:1",
        "x.json[0]",
        "x.json[1]",
        "a.jsonl:1",
        "a.jsonl:2",
        "row 0 of list",
        "b-10.jsonl:1",
    ]
    before = source.fingerprint()
    assert open_source(["x.json", "b-2.jsonl"]).fingerprint() != open_source(["b-2.jsonl", "x.json"]).fingerprint()
    assert before == source.fingerprint()
    with pytest.raises(SourceError, match="there are 7 rows"):
        source.read([7])
    with pytest.raises(SourceError, match="there are 7 rows"):
        source.origin(-1)


def test_any_kind_beside_a_compressed_file_is_one_pass(folder: pathlib.Path) -> None:
    (folder / "x.json").write_text('[{"n": 10}, {"n": 11}]')
    lines(folder / "z.jsonl.gz", 5, 6)
    source = open_source(["a.jsonl", "x.json", "z.jsonl.gz", lambda: iter([{"n": 30}]), Foreign(), "b-2.jsonl"])
    assert isinstance(source, JoinedPass)
    assert isinstance(source, OnePass)
    whole = [0, 1, 10, 11, 5, 6, 30, 40, 41, 3]
    origins = [origin for origin, _ in source.start()]
    for skip in range(11):
        assert numbers(source, skip) == whole[skip:]
        assert [origin for origin, _ in source.start(skip)] == origins[skip:]
    with pytest.raises(SourceError, match="11 rows were to be skipped, but there are only 10"):
        source.start(11)


class Foreign:
    """Somebody's own one-pass source, with no more than the protocol asks."""

    name = "foreign"

    def start(self, skip: int = 0) -> Any:
        return iter([("f0", {"n": 40}), ("f1", {"n": 41})][skip:])

    def fingerprint(self) -> str:
        return "f"


def test_the_size_limit_reaches_every_kind_of_text(folder: pathlib.Path) -> None:
    (folder / "x.json").write_text('[{"n": "xxxxxxxxxxxxxxxxxxxx"}]')
    (folder / "y.jsonl").write_text('{"n": "xxxxxxxxxxxxxxxxxxxx"}')
    (folder / "z.jsonl.gz").write_bytes(gzip.compress(b'{"n": "xxxxxxxxxxxxxxxxxxxx"}'))
    for name in ("x.json", "y.jsonl", "z.jsonl.gz"):
        source = open_source(name, max_row_bytes=20)
        (row,) = source.read([0]) if isinstance(source, RandomAccess) else [row for _, row in source.start()]
        assert isinstance(row, RowError)
        assert row.reason is Reason.ROW_TOO_LARGE
    for wrong in (0, -1, True, 2.5, "64MB"):
        with pytest.raises(OptionError, match="max_row_bytes"):
            open_source([{}], max_row_bytes=wrong)  # type: ignore[arg-type]


def test_a_missing_file_names_its_neighbours(folder: pathlib.Path) -> None:
    with pytest.raises(SourceError, match=r"b-3\.jsonl: no such file or folder \(in '\.' there is: b-2\.jsonl"):
        open_source("b-3.jsonl")
    with pytest.raises(SourceError, match=r"there is no folder 'dat'"):
        open_source("dat/a.jsonl")


def test_an_empty_glob_names_the_pattern_and_similar_files(folder: pathlib.Path) -> None:
    with pytest.raises(
        SourceError, match=r"^b-\*\.json: the pattern matches no file \(in '\.' there is: b-2\.jsonl, b-10\.jsonl"
    ):
        open_source("b-*.json")
    with pytest.raises(SourceError, match=r"there is no folder 'dat'"):
        open_source("dat/*.jsonl")
    (folder / "sub").mkdir()
    with pytest.raises(SourceError, match=r"matches only folders \(sub\)"):
        open_source("su*")


def test_folders(folder: pathlib.Path) -> None:
    sub = folder / "sub"
    sub.mkdir()
    with pytest.raises(SourceError, match=r"sub: found no data files in the folder \(nothing\)"):
        open_source("sub")
    (sub / "notes.txt").write_text("")
    (sub / "dataset_info.json").write_text("{}")
    lines(sub / ".hidden.jsonl", 9)
    lines(sub / ".cache" / "x.jsonl", 9)
    with pytest.raises(SourceError, match=r"no data files in the folder \(notes\.txt\)"):
        open_source(sub)
    lines(sub / "data" / "train-00000.jsonl", 1)
    lines(sub / "data" / "train-00001.jsonl", 2)
    assert numbers(open_source(sub)) == [1, 2]
    for name, split in (("test", "test, train"), ("val", "train, validation")):
        lines(sub / "data" / f"{name}-00000.jsonl", 3)
        with pytest.raises(SourceError, match=rf"several splits \({split}\).*like that of .*train-00000\.jsonl"):
            open_source("sub")
        os.remove(sub / "data" / f"{name}-00000.jsonl")
    lines(sub / "data" / "train.jsonl.gz", 3)
    with pytest.raises(SourceError, match=r"several kinds in the folder \(2 JSON Lines, 1 compressed JSON Lines\)"):
        open_source("sub")


def test_a_folder_is_sorted_by_path_whatever_the_disk_says(folder: pathlib.Path) -> None:
    order = random.Random(1).sample(range(40), 40)
    for n in order:
        lines(folder / "many" / f"{n // 8}" / f"{n:02}.jsonl", n)
    assert numbers(open_source("many")) == list(range(40))


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl.bz2", "x"])
def test_unsupported_suffixes(folder: pathlib.Path, name: str) -> None:
    lines(folder / name, 1)
    with pytest.raises(SourceError, match=rf"{name}: found .* expected one of \.jsonl, .*\.parquet"):
        open_source(name)


def test_suffixes_in_capitals(folder: pathlib.Path) -> None:
    lines(folder / "X.JSONL", 1)
    assert numbers(open_source("X.JSONL")) == [1]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz", "x.jsonl.zst"])
def test_an_empty_file(folder: pathlib.Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(SourceError, match=f"{name}: found no rows"):
        open_source(name)


@pytest.mark.parametrize("name", ["a.jsonl", "x.jsonl.gz", "x.json"])
def test_a_file_that_may_not_be_read(folder: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is the operating system's; it is played here, since an administrator is never refused."""
    lines(folder / name, 1)

    def refuse(path: str, *args: Any) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceError, match=f"{name}: this user may not read the file.*chmod"):
        open_source(name)


def refuse_to_list(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the system refuse to list a folder, also to root."""
    real = os.scandir

    def scandir(path: Any = ".") -> Any:
        if path == folder:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", lambda path=".": [entry.name for entry in scandir(path)])


@pytest.mark.parametrize("pattern", ["", "*", "**", "**/*.jsonl", "[e-g]*/*.jsonl"])
def test_a_subfolder_that_may_not_be_read_is_not_skipped(
    pattern: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("even", "odd", "first"):
        (tmp_path / name).mkdir()
        lines(tmp_path / name / "rows.jsonl", 1)
    refuse_to_list(os.path.join(tmp_path, "first"), monkeypatch)
    expected = pytest.raises(SourceError, match="this user may not read")
    with expected if pattern != "*" else pytest.raises(SourceError, match="only folders"):
        open_source(os.path.join(tmp_path, pattern) if pattern else tmp_path)


@pytest.mark.parametrize("pattern", ["*/data/*.jsonl", "*/data/rows.jsonl"])
def test_a_folder_that_is_only_passed_through_need_not_be_listed(
    pattern: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("even", "odd"):
        (tmp_path / name / "data").mkdir(parents=True)
        lines(tmp_path / name / "data" / "rows.jsonl", 1)
    refuse_to_list(os.path.join(tmp_path, "odd"), monkeypatch)
    assert len(open_source(os.path.join(tmp_path, pattern))) == 2


def test_a_glob_passes_over_a_link_that_leads_to_itself(tmp_path: pathlib.Path) -> None:
    (tmp_path / "even").mkdir()
    lines(tmp_path / "even" / "rows.jsonl", 1)
    os.symlink("loop", tmp_path / "loop")
    assert len(open_source(os.path.join(tmp_path, "*", "*.jsonl"))) == 1


def test_a_folder_that_may_not_be_read(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match="this user may not read"):
        open_source(".")


def test_a_pipe_with_a_name(folder: pathlib.Path) -> None:
    os.mkfifo(folder / "x.jsonl")
    assert stat.S_ISFIFO(os.stat("x.jsonl").st_mode)
    with pytest.raises(SourceError, match=r"a pipe or a device.*'-'"):
        open_source("x.jsonl")


def test_a_file_named_twice(folder: pathlib.Path) -> None:
    os.symlink("a.jsonl", "c.jsonl")
    for twice in (["a.jsonl", "*.jsonl"], ["a.jsonl", "./a.jsonl"], ["a.jsonl", "c.jsonl"]):
        with pytest.raises(SourceError, match=r"is named twice.*mps\.mix"):
            open_source(twice)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "type NoneType"),
        (3, "type int"),
        ("", "empty path"),
        ({"prompt": ["x"]}, "Dataset.from_dict"),
        (b"a.jsonl", "Pass a path as str"),
        ({"x"}, "A set has no fixed order"),
        (io.StringIO("{}"), "Pass the path of the file instead"),
        ([{"n": 1}, "a.jsonl"], "rows stand beside paths: item 1 is 'a.jsonl'"),
        (["a.jsonl", 3], "Item 1 of the list: The source is of type int"),
    ],
)
def test_what_is_no_source(folder: pathlib.Path, source: Any, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_source(source)


def test_a_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(SourceError, match="to_dict"):
        open_source(pandas.DataFrame({"n": [1]}))


def test_opening_files_imports_nothing_heavy(folder: pathlib.Path) -> None:
    code = (
        "import sys\n"
        "from ms_prefstream.sources.open import open_source\n"
        "assert len(open_source('*.jsonl')) == 4\n"
        "heavy = {'mindspore', 'mindformers', 'transformers', 'datasets', 'pyarrow', 'fsspec', 'ray'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    root = str(pathlib.Path(ms_prefstream.__path__[0]).parent)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert (done.returncode, done.stderr) == (0, "")
