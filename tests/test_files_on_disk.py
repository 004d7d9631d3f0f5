"""Every file that this library reads back, damaged, doctored and somebody else's; see `tests/files_on_disk.py`.

Each damage ends in the right result or in one error of this library, in bounded time and memory. Files of others are
untouched.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import PrefStreamError
from ms_prefstream.cache import write as write_module
from tests.cache.places import stream_of
from tests.cache.test_reference import logps
from tests.files_on_disk import (
    COUNT,
    KINDS,
    PLACES,
    TASK,
    Kind,
    built,
    damaged,
    loader_of,
    quarantining,
    resumable,
    saved,
    write,
)

pytestmark = pytest.mark.mindspore
SECONDS = 20  # for one file on a busy machine; each takes milliseconds
ROOM = 2 << 30  # bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], pathlib.Path]:
    """Makes a place, once."""

    @functools.cache
    def make(place: str) -> pathlib.Path:
        folder = tmp_path_factory.mktemp(place)
        PLACES[place](folder)
        return folder

    return make


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Lets the body fail if it takes long, or allocates much."""

    def late(*_: Any) -> None:
        raise AssertionError("it waits")

    with open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + ROOM
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def got(kind: Kind, folder: pathlib.Path, made: pathlib.Path) -> Any:
    """What is read, in a list; an empty list if it is refused with a sentence."""
    try:
        with bounded():
            return [kind.read(folder, made)]
    except PrefStreamError as error:
        said = str(error)
        assert len(said) < 4000
        assert "\x1b" not in said
        return []


def fresh(made: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(folder, ignore_errors=True)
    return pathlib.Path(shutil.copytree(made, folder))


@pytest.mark.parametrize("name", KINDS)
def test_the_table_names_code_that_exists(name: str) -> None:
    for place in (KINDS[name].writer, KINDS[name].reader):
        file, _, names = place.partition(": ")
        text = (pathlib.Path(mps.__file__).parent / file).read_text() if names else place
        for word in names.split("."):
            assert place == "users" or re.search(rf"^ *(def|class) {word}\b", text, re.MULTILINE), place


@pytest.mark.parametrize("name", KINDS)
def test_what_is_whole_is_read(name: str, made: Any, tmp_path: pathlib.Path) -> None:
    kind = KINDS[name]
    place = made(kind.place)
    assert got(kind, fresh(place, tmp_path / "a"), place) == got(kind, fresh(place, tmp_path / "b"), place) != []


@pytest.mark.slow
@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", KINDS)
def test_random_damages(name: str, count: int, made: Any, tmp_path: pathlib.Path) -> None:
    kind, draw = KINDS[name], random.Random(f"{name} {count}")
    place = made(kind.place)
    (right,) = got(kind, fresh(place, tmp_path / "right"), place)
    refused = 0
    for _ in range(count):
        folder = fresh(place, tmp_path / "damaged")
        path = kind.file(folder)
        data = damaged(path.read_bytes(), draw)
        path.write_bytes(data)
        found = got(kind, folder, place)
        assert found in ([], [right]) or kind.may_differ(found[0], right), data
        refused += not found
    assert refused


@pytest.mark.slow
@pytest.mark.parametrize("count", [50, pytest.param(0, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", KINDS)
def test_wrong_contents_with_the_right_checksum(name: str, count: int, made: Any, tmp_path: pathlib.Path) -> None:
    kind, place = KINDS[name], made(KINDS[name].place)
    (right,) = got(kind, fresh(place, tmp_path / "right"), place)
    doctored = list(kind.doctored(kind.file(fresh(place, tmp_path / "doctored"))))
    assert len(doctored) >= 200
    for label, data in random.Random(name).sample(doctored, count) if count else doctored:
        folder = fresh(place, tmp_path / "doctored")
        kind.put(kind.file(folder), data)
        found = got(kind, folder, place)
        assert not found or found == [right] or kind.fits(found[0], right), label


# Files of others.


def build_it(folder: pathlib.Path, meanwhile: Callable[[], None]) -> None:
    loader = loader_of()

    class Meanwhile:
        def load(self, rows: Any) -> Any:
            if max(rows) == COUNT - 1:
                meanwhile()
            return loader.load(rows)

    built(folder / "x", Meanwhile())


def write_it(folder: pathlib.Path, meanwhile: Callable[[], None]) -> None:
    real, numbers = write_module.write_part, []

    def write_part(loader: Any, task: Any) -> Any:
        numbers.append(task.number)
        if len(numbers) == 2:
            meanwhile()
        return real(loader, task)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(write_module, "write_part", write_part)
        stream = stream_of(str(folder / "rows.jsonl"), TASK, mps.Pad(2 + len(list(folder.glob("out/part-00005*")))))
        mps.write_cache(stream, folder / "out", rows_per_part=7, overwrite=True)


def range_it(folder: pathlib.Path, meanwhile: Callable[[], None]) -> None:
    path, options = str(folder / "rows.jsonl"), {"rows_per_part": 7, "overwrite": True}
    mps.write_cache(stream_of(path, TASK), folder / "out", part_range=(1, 2), **options)
    meanwhile()
    mps.write_cache(stream_of(path, TASK), folder / "out", part_range=(2, 2), **options)
    mps.merge(folder / "out", overwrite=True)


def index_it(folder: pathlib.Path, meanwhile: Callable[[], None]) -> None:
    options: dict[str, Any] = {"task": TASK, "tokenizer": "bytes", "verbose": False}
    mps.build_index(folder / "rows.jsonl", folder / "x", part_range=(1, 2), **options)
    meanwhile()
    mps.build_index(folder / "rows.jsonl", folder / "x", part_range=(2, 2), **options)
    mps.merge(folder / "x")


def refer_it(folder: pathlib.Path, meanwhile: Callable[[], None]) -> None:
    calls = []

    def model(batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 6:  # in the second part
            meanwhile()
        return tuple(value + len(str(folder)) for value in logps(batch))

    write(folder / "rows.jsonl", folder / "out", model, overwrite=True)


def save_it(folder: pathlib.Path, meanwhile: Callable[[], None]) -> None:
    writer = mps.StreamCheckpoint(resumable(), folder, keep=1)
    writer.step_end(1)
    meanwhile()
    writer.step_end(2)
    writer.step_end(3)


def save_beside(folder: pathlib.Path, meanwhile: Callable[[], None]) -> None:
    monitor = type("Monitor", (), {"_append_step_num": 0})()
    for step in (1, 2, 3):
        checkpoint = folder / f"x-1_{step}.ckpt"
        checkpoint.touch()
        saved(folder, step, monitor)
        if step == 1:
            meanwhile()
        checkpoint.unlink()  # as MindFormers does, so that the next state deletes this one


def drop_it(folder: pathlib.Path, meanwhile: Callable[[], None]) -> None:
    batches = quarantining(folder).batches()
    next(batches)
    meanwhile()
    list(batches)
    stream = quarantining(folder)
    list(stream.resume(stream.state(2)).batches())


RANDOM = ".0123456789ab.new"
STAGED = [
    "plan.json", "part-00000.done", "part-00001.done", "part-00001.done.tmp", "part-00009.done", "new", "new/x",
    "new/part-00001.mindrecord", "new/part-00001.mindrecord.db", "new/places.npy", "new/lengths.mprefidx",
    "new/manifest.json", "new/reference-0123456789ab.npy", "reference", "reference/x", "former", "former/x", "tmp-1-0",
    "tmp-1-0/x", "notes.txt",
]  # fmt: skip
OUT = [
    "manifest.json", "manifest.json" + RANDOM, "part-00001.mindrecord", "part-00001.mindrecord.db", "places.npy",
    "lengths.mprefidx", "reference-0123456789ab.npy", "notes.txt",
]  # fmt: skip
BESIDE = ["out", "out.writing", "out.tmp", "out.new", "out.old", "out.part", "out.reference"]
IN_REFERENCE = ["part-00000.npy", "part-00001.npy", "part-00002.npy", "manifest.json", "x"]
CACHE = [*(f"out.writing/{name}" for name in STAGED), *(f"out/{name}" for name in OUT), *BESIDE]
WRITERS: dict[str, tuple[str, Callable[[pathlib.Path, Callable[[], None]], None], list[str]]] = {
    "index": ("index", build_it, ["x", "x.journal", "x.part", "x.tmp", "x.new", "x.writing", "x" + RANDOM]),
    "cache": ("cache", write_it, CACHE),
    "interrupted cache": ("staged", refer_it, [*CACHE, *(f"out.writing/reference/*/{name}" for name in IN_REFERENCE)]),
    "part ranges": (
        "cache", range_it,
        [*CACHE, *(f"out.writing/range-{part}-of-2.{end}" for part in (1, 2) for end in ("json", "lock"))],
    ),
    "ranges of an index": (
        "cache", index_it, ["x", *(f"x.{part}-of-2{end}" for part in (1, 2) for end in ("", ".journal", RANDOM))]
    ),
    "log-probabilities": ("cache", refer_it, CACHE),
    "states": (
        "states", save_it,
        [*(f"stream_state{step}.json" for step in ("", "-1", "-2", "-3")), "stream_state.json" + RANDOM],
    ),
    "states of a run": (
        "states", save_beside, [*(f"x-1_{step}.stream_state.json" for step in (1, 2, 3)), "x-1_2.stream_state" + RANDOM]
    ),
    "quarantine": ("quarantine", drop_it, ["bad.jsonl", "bad.rank1.jsonl", "bad.jsonl.tmp", "bad.jsonl" + RANDOM]),
}  # fmt: skip
WHEN = ["before", "during", "after"]


def put(kind: str, path: pathlib.Path, thesis: pathlib.Path) -> None:
    """Puts a stranger's file at a path, in the place of ours."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        path.write_text("years of work")
    elif kind == "JSON":
        path.write_text('{"version": 1, "years": "of work"}')
    elif kind == "array":
        np.save(path.open("wb"), np.arange(20))
    elif kind == "link":
        path.symlink_to(thesis)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
        (path / "thesis.txt").write_text("years of work")


def seen(path: pathlib.Path) -> Any:
    """What a stranger has of a file or folder: kind, inode, time of change, contents."""
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):  # in which a writer may put files of its own
        return status.st_mode, status.st_ino, seen(path / "thesis.txt")
    inside = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
    return status.st_mode, status.st_ino, status.st_mtime_ns, inside


@pytest.mark.slow
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("kind", ["file", "JSON", "array", "link", "pipe", "folder"])
@pytest.mark.parametrize("most", [8, pytest.param(99, marks=pytest.mark.long)])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.filterwarnings("ignore:the state")
def test_strangers_are_untouched(
    writer: str, most: int, kind: str, when: str, made: Any, tmp_path: pathlib.Path
) -> None:
    place, run, names = WRITERS[writer]
    names = random.Random(f"{writer} {kind} {when}").sample(names, min(most, len(names)))
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    untouched = met = 0
    for name in names:
        folder = fresh(made(place), tmp_path / "copy")
        strangers: list[tuple[pathlib.Path, Any]] = []

        def meanwhile(name: str = name, folder: pathlib.Path = folder, strangers: list[Any] = strangers) -> None:
            above, _, last = name.rpartition("/")
            for parent in folder.glob(above) if above else [folder]:
                put(kind, parent / last if last else parent, thesis)
                strangers.append((parent / last, seen(parent / last)))

        if when == "before":
            meanwhile()
        try:
            with bounded():
                run(folder, meanwhile if when == "during" else lambda: None)
                if when == "after":
                    meanwhile()
                    run(folder, lambda: None)
        except PrefStreamError as error:
            met += 1
            assert len(str(error)) < 4000  # noqa: PT017
        for path, before in strangers:
            assert seen(path) == before, name
            untouched += 1
        assert thesis.read_text() == "years of work"
    assert untouched
    assert met or most < 99 or writer.startswith("states")  # training goes on, with a warning
