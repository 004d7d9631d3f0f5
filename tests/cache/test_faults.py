"""Damage is found and named: by `verify` always, by a stream when it opens the cache or reads the row."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import CacheError
from ms_prefstream.cache.verify import verify
from tests.cache.places import PART, flip, source, stream_of

pytestmark = pytest.mark.mindspore
TASK = mps.DPO(128)
PART_1 = "part-00001.mindrecord"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("faults")
    mps.write_cache(stream_of(source(folder), TASK), folder / "out", rows_per_part=PART)
    return folder / "out"


@pytest.fixture
def out(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole, tmp_path / "copy"))


def read(out: pathlib.Path) -> None:
    for _ in stream_of(str(out), TASK, mps.Pad(2), tokenizer=None, drop_remainder=False).batches():
        pass


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def exchanged(path: pathlib.Path) -> None:
    other = path.with_name("part-00000.mindrecord")
    path.rename(path.with_name("x"))
    other.rename(path)
    path.with_name("x").rename(other)


def test_a_whole_cache_is_whole(out: pathlib.Path) -> None:
    found = verify(str(out))
    assert [one.name for one in found] == sorted(path.name for path in out.iterdir() if path.name != "manifest.json")
    assert not any(one.problem for one in found)
    read(out)


def test_every_file_is_checked_byte_for_byte(out: pathlib.Path) -> None:
    for path in sorted(out.iterdir()):
        if path.name == "manifest.json":
            continue
        for place in (0, path.stat().st_size // 2, -1):
            flip(path, place)
            assert [one.name for one in verify(str(out)) if one.problem] == [path.name]
            flip(path, place)
    assert not any(one.problem for one in verify(str(out)))


def test_every_byte_of_the_manifest_counts(out: pathlib.Path) -> None:
    manifest = out / "manifest.json"
    text = manifest.read_text("utf-8")
    for place in [at for at, found in enumerate(text) if found.isalnum()][::25]:
        changed = "7" if text[place] != "7" else "8"
        manifest.write_text(text[:place] + changed + text[place + 1 :], "utf-8")
        with pytest.raises(mps.PrefStreamError, match=r"manifest\.json is (damaged|of version)"):
            verify(str(out))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (PART_1, pathlib.Path.unlink, "{} is missing"),
        (PART_1, cut, "{} is truncated"),
        (PART_1 + ".db", pathlib.Path.unlink, "{} is missing"),
        (PART_1 + ".db", cut, "{} is truncated"),
        ("manifest.json", pathlib.Path.unlink, "{} is missing"),
        ("manifest.json", lambda path: flip(path, 200), "{} is damaged"),
        ("places.npy", pathlib.Path.unlink, "{} is missing"),
        ("places.npy", lambda path: flip(path, -9), "{} is damaged"),
        ("lengths.mprefidx", lambda path: flip(path, -99), "{} is damaged"),
        (PART_1, lambda path: shutil.copy(path, path.with_name("part-00009.mindrecord")), "part-00009.mindrecord does"),
    ],
)
def test_what_sizes_tell_is_found_at_once(
    out: pathlib.Path, name: str, damage: Callable[[pathlib.Path], None], said: str
) -> None:
    damage(out / name)
    with pytest.raises(CacheError) as caught:
        stream_of(str(out), TASK, tokenizer=None)
    assert said.format(out / name) in str(caught.value)


def test_a_flipped_byte_is_found_by_whoever_reads_the_row(out: pathlib.Path) -> None:
    stream = stream_of(str(out), TASK, tokenizer=None)
    begin, size, _ = stream.data.source._tables.places[np.array([PART + 2])].tolist()[0]
    for place in (begin, begin + size // 2, begin + size - 1):
        flip(out / PART_1, place)
        with pytest.raises(CacheError, match=PART_1 + " is damaged between bytes"):
            read(out)
        flip(out / PART_1, place)
    read(out)


def test_exchanged_parts_are_found(out: pathlib.Path) -> None:
    exchanged(out / PART_1)
    assert {one.name for one in verify(str(out)) if one.problem} >= {PART_1, "part-00000.mindrecord"}
    with pytest.raises(CacheError, match="part-0000"):
        read(out)


READ = ["part-00009.mindrecord", "other.mindrecord0", "x.mindrecord.db", "old/deep/part-00000.mindrecord", "a.tfrecord"]


@pytest.mark.parametrize("name", READ)
def test_what_readers_would_train_on_is_a_problem(out: pathlib.Path, name: str) -> None:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / PART_1, out / name)
    found = [one for one in verify(str(out)) if one.problem]
    assert [(one.name, one.belongs) for one in found] == [(name, False)]
    assert found[0].problem.endswith("who reads the folder would train on it: remove it")
    if "/" not in name:
        with pytest.raises(CacheError, match=f"{name} does not belong"):
            stream_of(str(out), TASK, tokenizer=None)


def test_what_no_reader_heeds_is_only_named(out: pathlib.Path) -> None:
    (out / "junk.txt").write_text("x")
    (out / "empty" / "inner").mkdir(parents=True)
    (out / "link").symlink_to(out / "empty")
    (out / "notes").mkdir()
    (out / "notes" / "mindrecord.txt").touch()
    found = verify(str(out))
    assert not any(one.problem for one in found)
    assert [one.name for one in found if not one.belongs] == ["junk.txt", "link", "notes/mindrecord.txt"]
    read(out)


def test_a_folder_may_move(out: pathlib.Path) -> None:
    moved = out.rename(out.with_name("elsewhere"))
    read(moved)
    assert not any(one.problem for one in verify(str(moved)))
