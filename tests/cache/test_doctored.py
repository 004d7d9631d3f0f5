"""Doctored files of a cache, each refused with the sentence for it; `tests/test_files_on_disk.py` has all at random."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import CacheError, OptionError, PrefStreamError
from ms_prefstream.cache.parts import ROW
from ms_prefstream.cache.verify import verify
from ms_prefstream.lengths.index import Measured
from ms_prefstream.lengths.index_file import read_index, write_contents
from ms_prefstream.mindrecord.files import npy_bytes
from ms_prefstream.mindrecord.manifest import checksum_of
from ms_prefstream.sources import files
from tests.cache.places import PART, rows_with_bad, source, stream_of, tree
from tests.cache.test_reference import Counting, logps

pytestmark = pytest.mark.mindspore
TASK = mps.DPO(128)
PART_0 = "part-00000.mindrecord"
CACHE = ["manifest.json", "places.npy", "lengths.mprefidx", "reference", PART_0, PART_0 + ".db"]


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(280)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def write(folder: pathlib.Path, out: pathlib.Path, model: Any = logps) -> Any:
    stream = stream_of(str(folder / "rows.jsonl"), TASK, mps.Pad(4))
    return mps.write_cache(stream, out, rows_per_part=PART, reference=model, reference_id="sft")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the source, a cache `out`, and `staged.writing`, interrupted in its reference pass."""
    folder = tmp_path_factory.mktemp("doctored")
    source(folder, rows_with_bad(40))
    write(folder, folder / "out")
    with pytest.raises(KeyboardInterrupt):
        write(folder, folder / "staged", Counting(stop=6))
    return folder


@pytest.fixture
def out(made: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(made / "out", tmp_path / "out"))


def found(out: pathlib.Path, name: str) -> pathlib.Path:
    if name == "reference":
        name = "reference-*.npy"
    (path,) = out.glob(name)
    return path


def read(out: pathlib.Path) -> list[Any]:
    """All numbers of a cache."""
    stream = stream_of(str(out), TASK, mps.Pad(4), tokenizer=None, drop_remainder=False)
    return [{name: array.tolist() for name, array in batch.items()} for batch in stream.batches()]


def check_sentence(said: str) -> None:
    assert len(said) < 3000
    assert "\x1b" not in said


def store(out: pathlib.Path, values: dict[str, Any]) -> None:
    """Writes a manifest with the checksum that fits."""
    values.pop("checksum", None)
    (out / "manifest.json").write_text(json.dumps({**values, "checksum": checksum_of(values)}), "utf-8")


def replaced(out: pathlib.Path, name: str, data: bytes) -> None:
    """Replaces a file, and its size and checksum in the manifest."""
    path = found(out, name)
    path.write_bytes(data)
    values = json.loads((out / "manifest.json").read_text("utf-8"))
    values["files"][path.name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    store(out, values)


def change(*path: Any, to: Any) -> Callable[[Any], None]:
    def changing(values: Any) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = to

    return changing


@pytest.mark.parametrize(
    ("changing", "said"),
    [
        (change("rows", to=10**15), "rows is 1000000000000000"),
        (change("source_rows", to=10**15), "no table of 1,000,000,000,000,000 rows"),
        (change("source_rows", to=-1), "source_rows"),
        (change("rows", to="40"), r"Expected `int`, got `str` - at `\$.rows`"),
        (change("files", to=[]), "files"),
        (change("files", "../thesis.txt", to={"bytes": 1, "sha256": "0" * 64, "rows": 0}), "files"),
        (change("files", PART_0, "rows", to=5), "other numbers of rows"),
        (change("files", PART_0, "sha256", to="x" * 9999), "sha256"),
        (change("files", PART_0, "more", to=1), "unknown field"),
        (change("about", "rows_per_part", to=0), "rows_per_part"),
        (change("about", "rows_per_part", to=10**6), "the last part is part-00000"),
        (change("about", "rows_per_part", to=1), "names bytes that"),
        (change("about", "fingerprint", to={}), "fingerprint"),
        (change("about", "task", "name", to="../x"), "task.name"),
        (change("about", "layout", to="other"), "layout"),
        (change("columns", "marks", "dtype", to="float32"), "columns"),
        (change("columns", to={}), "columns"),
        (change("about", "fingerprint", "carry", to='{"a.id": "int64"}'), "lacks a.id, which is carried as int64"),
        (change("about", "fingerprint", "carry", to='{"margin": ["text", ""]}'), "lacks margin, which is carried"),
        (change("about", "fingerprint", "carry", to='{"margin": "int32"}'), "damaged"),
        (change("about", "fingerprint", "carry", to="[7"), "damaged"),
        (change("reference", to=None), "reference"),
        (change("reference", "file", to="places.npy"), "reference"),
        (change("dropped", "tie", to=7), "dropped"),
        (change("extra", to=[[[]]]), "unknown field `extra`"),
        (change("notes", "truncated", to=float("nan")), "damaged"),
    ],
)
def test_a_field_that_is_wrong_is_named(changing: Callable[[Any], None], said: str, out: pathlib.Path) -> None:
    values = json.loads((out / "manifest.json").read_text("utf-8"))
    changing(values)
    store(out, values)
    with pytest.raises(CacheError, match=said):
        read(out)


def places_with(**changes: Any) -> Callable[[pathlib.Path], bytes]:
    def changed(path: pathlib.Path) -> bytes:
        places = np.load(path)
        for name, value in changes.items():
            places[name][0] = value
        return npy_bytes(places)

    return changed


def lengths_with(**changes: Any) -> Callable[[pathlib.Path], bytes]:
    def changed(path: pathlib.Path) -> bytes:
        index = read_index(str(path), len(np.load(path)))
        arrays = {name: np.array(getattr(index, name)) for name in ("lengths", "keys", "verdict")}
        for name, value in changes.items():
            arrays[name][0] = value
        write_contents(str(path), [Measured(**arrays, errors=[])], index.fingerprint)
        return path.read_bytes()

    return changed


TABLES: list[tuple[str, Callable[[pathlib.Path], bytes], str]] = [
    ("places.npy", places_with(size=2**32 - 1), "names bytes that"),
    ("places.npy", places_with(begin=2**64 - 1), "names bytes that"),
    ("places.npy", places_with(size=0), "other rows"),
    ("lengths.mprefidx", lengths_with(keys=10**9), "which do not belong together"),
    ("lengths.mprefidx", lengths_with(keys=-1), "which do not belong together"),
    ("lengths.mprefidx", lengths_with(keys=128, lengths=(128, 1)), "tokens, and not"),
    ("lengths.mprefidx", lengths_with(verdict=69), "which do not belong together"),
    ("places.npy", lambda path: npy_bytes(np.load(path)[:-1]), "no table of|of shape"),
    ("places.npy", lambda path: npy_bytes(np.zeros(40, "<f8")) + bytes(320), "does not fit"),
    ("places.npy", lambda path: path.read_bytes().replace(b"(40,)", b"(4e,)"), "does not fit"),
    ("places.npy", lambda path: path.read_bytes().replace(b"'<u8'", b"'|O '"), "does not fit"),
    ("places.npy", lambda path: b"\x93NUMPY\1\0\xff\xff" + b"(" * 65535, "no table of|does not fit"),
    ("places.npy", lambda path: b"\x93NUMPY\1\0\x76\0" + b"(" * 118 + bytes(640), "does not fit"),
    ("reference", lambda path: npy_bytes(np.full((40, 2), np.nan, np.float32)), "lacks finite"),
    ("reference", lambda path: npy_bytes(np.full((40, 2), np.inf, np.float32)), "lacks finite"),
    ("reference", lambda path: npy_bytes(np.zeros((40, 2), np.float32)), "dropped ones"),
    ("reference", lambda path: npy_bytes(np.zeros((40, 2), np.float64)), "does not fit"),
    ("reference", lambda path: npy_bytes(np.zeros((2, 40), np.float32)), "does not fit"),
    ("reference", lambda path: npy_bytes(np.array([[{}] * 2] * 40, object)), "does not fit"),
    ("reference", lambda path: b"", "does not fit"),
]


@pytest.mark.parametrize(("name", "doctoring", "said"), TABLES)
def test_tables_with_the_right_checksum(
    name: str, doctoring: Callable[[pathlib.Path], bytes], said: str, out: pathlib.Path
) -> None:
    replaced(out, name, doctoring(found(out, name)))
    with pytest.raises(CacheError, match=said):
        read(out)


@pytest.mark.parametrize("name", ["places.npy", "reference", PART_0])
@pytest.mark.parametrize("how", ["cut", "replaced", "removed and cut", "pipe"])
def test_a_file_that_shrinks_while_it_is_in_use(name: str, how: str, out: pathlib.Path) -> None:
    stream = stream_of(str(out), TASK, mps.Pad(4), tokenizer=None)
    batches = stream.batches()
    next(batches)
    if how == "replaced":
        shutil.copy(found(out, name), out / "copy")
        os.replace(out / "copy", found(out, name))
        assert len(list(batches)) > 1  # what is open stays
        return
    if how != "cut":
        files._open.clear()
    path = found(out, name)
    if how == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        os.truncate(path, 150)
    with pytest.raises(PrefStreamError, match="is a named pipe" if how == "pipe" else "changed under us"):
        list(batches)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
@pytest.mark.parametrize("name", CACHE)
def test_what_is_no_regular_file(name: str, kind: str, out: pathlib.Path) -> None:
    path = found(out, name)
    path.unlink()
    stand_in(path, kind, out)
    with pytest.raises(PrefStreamError):
        read(out)
    with contextlib.suppress(PrefStreamError):
        assert any(one.problem for one in verify(str(out)))
    assert os.path.lexists(path)


def stand_in(path: pathlib.Path, kind: str, thesis: pathlib.Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(thesis)
    else:
        path.write_text("years of work")


# An interrupted run.


@pytest.fixture
def staged(made: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(made / "staged.writing", tmp_path / "staged.writing")
    return tmp_path / "staged.writing"


def go_on(made: pathlib.Path, staged: pathlib.Path) -> bool:
    """Resumes; whether it ended in the right cache. Otherwise in one error of this library."""
    out = staged.with_name("staged")
    try:
        write(made, out)
    except PrefStreamError as error:
        check_sentence(str(error))
        return False
    assert tree(out) == tree(made / "out")
    shutil.rmtree(out)
    assert not staged.exists()
    return True


def rows_with(**changes: Any) -> Callable[[Any], None]:
    def changing(values: Any) -> None:
        rows = np.frombuffer(base64.b64decode(values["rows"]), ROW).copy()
        for name, value in changes.items():
            rows[name][0] = value
        values["rows"] = base64.b64encode(rows.tobytes()).decode()

    return changing


@pytest.mark.parametrize(
    "changing",
    [
        change("rows", to=""),
        change("rows", to="AAAA" * 29 * 1000),
        change("rows", to="!"),
        change("rows", to=[1]),
        change("number", to=0),
        change("number", to=-1),
        change("version", to=1),
        change("version", to=2**70),
        change("files", to={}),
        change("files", to={"../../thesis.txt": {"bytes": 13, "sha256": "0" * 64, "rows": 1}}),
        change("files", to={PART_0: [1, 2, 3]}),
        change("notes", to=[0]),
        change("notes", to=[10**9] * 4),
        change("origins", to={"x": ["y"]}),
        change("origins", to=[]),
        change("more", to=1),
        rows_with(verdict=200),
        rows_with(key=-5),
        rows_with(lengths=(-1, 5)),
        rows_with(place=(2**63, 5, 5)),
        rows_with(place=(0, 0, 0)),
    ],
)
def test_a_doctored_note_is_not_believed(
    changing: Callable[[Any], None], made: pathlib.Path, staged: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (staged / "new" / "manifest.json").unlink(missing_ok=True)
    note = staged / "part-00001.done"
    values = json.loads(note.read_bytes())
    changing(values)
    values.pop("checksum")
    note.write_text(json.dumps({**values, "checksum": checksum_of(values)}))
    assert go_on(made, staged)
    assert "part-00001.done: the note on a finished part is damaged or of another version" in caplog.text


PLANS = ["[]", "{}", '{"format": 1}', '{"format": "ms_prefstream plan", "x": 1}', "[" * 10**5, '"ms_prefstream plan"']


@pytest.mark.parametrize("text", PLANS)
def test_a_plan_that_is_none_makes_the_folder_somebody_elses(
    text: str, made: pathlib.Path, staged: pathlib.Path
) -> None:
    (staged / "plan.json").write_text(text)
    before = tree(staged)
    with pytest.raises(OptionError, match="somebody else's files are there"):
        write(made, staged.with_name("staged"))
    assert tree(staged) == before


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "file"])
@pytest.mark.parametrize(
    "name",
    [
        "plan.json", "plan.json.tmp", "part-00001.done", "part-00001.done.tmp", "part-00007.done", "new/x", "new/sub",
        "new/part-00001.mindrecord", "new/manifest.json.tmp", "reference/thesis", "tmp-1-0", "former", "notes.txt",
    ],
)  # fmt: skip
def test_strangers_files_in_the_staging_folder(
    name: str, kind: str, made: pathlib.Path, staged: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    thesis, path = tmp_path / "thesis.txt", staged / name
    thesis.write_text("years of work")
    if path.exists():
        path.unlink()
    stand_in(path, kind, thesis)
    if kind == "folder":
        (path / "chapter").write_text("years of work")
    before = sorted((str(one), os.lstat(one).st_ino) for one in staged.rglob("*"))
    with pytest.raises(OptionError, match="somebody else's files are there"):
        write(made, tmp_path / "staged")
    assert sorted((str(one), os.lstat(one).st_ino) for one in staged.rglob("*")) == before
    assert thesis.read_text() == "years of work"


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "file"])
def test_strangers_files_beside_and_in_the_cache(kind: str, made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    thesis, out = tmp_path / "thesis.txt", tmp_path / "out"
    thesis.write_text("years of work")
    shutil.copytree(made / "out", out)
    strangers = [tmp_path / name for name in ("out.tmp", "out.new", "out.old", "out.part", "out.reference")]
    strangers += [out / f"{name}.tmp" for name in ("manifest.json", found(out, "reference").name, "places.npy")]
    strangers += [out / "reference-0123456789ab.npy", out / "manifest.json.0123456789ab.new"]
    for path in strangers:
        stand_in(path, kind, thesis)
    inodes = [os.lstat(path).st_ino for path in strangers]
    stream = stream_of(str(out), TASK, mps.Pad(4), tokenizer=None)
    mps.write_cache(stream, out, reference=lambda batch: (logps(batch)[1],) * 2, reference_id="b", overwrite=True)
    if kind != "folder":
        with pytest.raises(OptionError, match="holds other files as well"):
            mps.write_cache(stream_of(str(made / "rows.jsonl"), TASK), out, rows_per_part=PART + 1, overwrite=True)
    assert [os.lstat(path).st_ino for path in strangers] == inodes
    assert thesis.read_text() == "years of work"


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "file"])
def test_a_sidecar_is_never_written_over(kind: str, made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from ms_prefstream.mindrecord.sidecar import write_sidecar

    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    stand_in(tmp_path / "x.db", kind, thesis)
    with pytest.raises(CacheError, match="cannot be written: File exists"):
        write_sidecar(str(tmp_path / "x"), [], [])
    assert thesis.read_text() == "years of work"
    assert kind != "file" or (tmp_path / "x.db").read_text() == "years of work"
