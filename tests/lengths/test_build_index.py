"""The pass that writes a length index: parallel, interrupted and continued, always the same bytes."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ms_prefstream import DPO, RLHF
from ms_prefstream.errors import RowError, StateError
from ms_prefstream.lengths import build, build_index, open_index, raise_malformed_of
from ms_prefstream.lengths.build import Journal
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.progress import Bar, Lines, progress_on
from ms_prefstream.sample import Block
from tests.pools import kill, pairs, recipe, until, wait_ready, write

ROOT = pathlib.Path(__file__).parents[2]
FINGERPRINT = {"data": "d1", "task": "DPO"}
COUNT = 300


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CHUNK", 32)


@pytest.fixture
def loader() -> SampleLoader:
    return recipe(pairs(COUNT)).loader()


@pytest.fixture
def expected(tmp_path: pathlib.Path, loader: SampleLoader) -> bytes:
    return built(loader, tmp_path / "expected")


def built(loader: Any, path: pathlib.Path, raise_malformed: bool = False, **options: Any) -> bytes:
    build_index(COUNT, loader, path, FINGERPRINT, origin="row {}".format, raise_malformed=raise_malformed, **options)
    assert sorted(path.parent.glob(path.name + "*")) == [path]  # no journal, nothing aside
    return path.read_bytes()


class Interrupted(Exception):
    pass


class Fails:
    """A loader that is interrupted before a row, and remembers what it loaded."""

    def __init__(self, loader: SampleLoader, before: int) -> None:
        self.loader, self.before, self.rows = loader, before, list[int]()

    def load(self, rows: Sequence[int]) -> Block:
        if max(rows) >= self.before:
            raise Interrupted
        self.rows += rows
        return self.loader.load(rows)


def test_the_pool_writes_the_same_bytes(expected: bytes, tmp_path: pathlib.Path) -> None:
    with LoaderPool(recipe(pairs(COUNT)), 2) as pool:
        wait_ready(pool)
        assert built(pool, tmp_path / "pool") == expected


def test_a_pass_goes_on_where_it_was_interrupted(expected: bytes, tmp_path: pathlib.Path, loader: SampleLoader) -> None:
    path = tmp_path / "x"
    for before, begin, end in ((100, 0, 96), (200, 96, 192), (201, 192, 192), (COUNT, 192, COUNT)):
        fails = Fails(loader, before)
        if before == COUNT:
            assert built(fails, path) == expected
        else:
            with pytest.raises(Interrupted):
                built(fails, path)
            assert not path.exists()
        assert fails.rows == list(range(begin, end))


@pytest.mark.parametrize("cut", [1, 100, 13 * 32, 1000])
def test_what_a_killed_process_did_not_finish_is_measured_again(
    cut: int, expected: bytes, tmp_path: pathlib.Path, loader: SampleLoader
) -> None:
    path = tmp_path / "x"
    with pytest.raises(Interrupted):
        built(Fails(loader, 200), path)
    part = tmp_path / "x.journal"
    whole = part.read_bytes()
    part.write_bytes(whole[:-cut])
    assert built(loader, path) == expected
    part.write_bytes(whole[:-cut] + b"\0" * cut)
    assert built(loader, path) == expected
    part.write_bytes(whole[: -13 * 40] + b"\xff" + whole[-13 * 40 + 1 :])  # a byte in the last but one block
    fails = Fails(loader, COUNT)
    assert built(fails, path) == expected
    assert fails.rows[0] == 128


def test_a_partial_pass_over_other_data_is_begun_anew(tmp_path: pathlib.Path, loader: SampleLoader) -> None:
    path = tmp_path / "x"
    with pytest.raises(Interrupted):
        built(Fails(loader, 200), path)
    fails = Fails(loader, COUNT)
    index = build_index(COUNT, fails, path, {**FINGERPRINT, "data": "d2"}, origin=str, raise_malformed=False)
    assert fails.rows == list(range(COUNT))
    assert index.fingerprint == {**FINGERPRINT, "data": "d2"}


PROGRAM = """
import sys, time
from ms_prefstream.lengths import build, build_index
from tests.pools import pairs, recipe, wait_ready
build.CHUNK = 32
class Slow:
    def __init__(self, loader): self.loader = loader
    def load(self, rows):
        time.sleep(0.05)
        return self.loader.load(rows)
build_index(300, Slow(recipe(pairs(300)).loader()), sys.argv[1], {"data": "d1", "task": "DPO"}, origin=str,
            raise_malformed=False)
"""


def test_a_pass_that_was_killed_goes_on(expected: bytes, tmp_path: pathlib.Path, loader: SampleLoader) -> None:
    path, part = tmp_path / "x", tmp_path / "x.journal"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], env=environment)
    assert until(lambda: part.exists() and part.stat().st_size > 13 * 32 * 3)
    with pytest.raises(StateError, match="another process is building"):
        built(loader, path)
    kill(program.pid)
    program.wait()
    assert not path.exists()
    fails = Fails(loader, COUNT)
    assert built(fails, path) == expected
    assert 96 <= fails.rows[0] < COUNT


def test_malformed_rows_raise_with_their_origin_or_get_a_verdict(tmp_path: pathlib.Path, loader: SampleLoader) -> None:
    path = tmp_path / "x"
    with pytest.raises(RowError, match=r"^row 7: .*chosen.*missing_field"):
        built(loader, path, raise_malformed=True)
    assert not path.exists()
    built(loader, path)
    index = open_index(path, FINGERPRINT, COUNT)
    bad = [row for row, one in enumerate(loader.load(range(COUNT))) if one.error is not None]
    assert bad == np.flatnonzero(index.verdict).tolist()
    with pytest.raises(RowError, match=r"^row 7: .*missing_field"):
        raise_malformed_of(index.verdict, loader, "row {}".format)
    good = build_index(7, loader, tmp_path / "y", FINGERPRINT, origin=str)  # unusable rows never raise
    assert good.verdict.tolist() == [0, 0, 0, 0, 0, 64, 0]
    raise_malformed_of(good.verdict, loader, str)


def test_a_pass_that_dropped_does_not_hide_its_rows_from_one_that_raises(
    tmp_path: pathlib.Path, loader: SampleLoader
) -> None:
    with pytest.raises(Interrupted):
        built(Fails(loader, 200), tmp_path / "x")
    with pytest.raises(RowError, match=r"^row 7: "):
        built(loader, tmp_path / "x", raise_malformed=True)


def test_prompt_and_sequence_are_measured_for_rlhf(tmp_path: pathlib.Path) -> None:
    made = recipe(pairs(50), RLHF(30, 90))
    index = build_index(50, made.loader(), tmp_path / "x", FINGERPRINT, origin=str, raise_malformed=False)
    for (prompt, whole), key, one in zip(
        index.lengths.tolist(), index.keys.tolist(), made.loader().load(range(50)), strict=True
    ):
        if one.sample is None:
            assert (prompt, whole, key) == (0, 0, -1)
        else:
            assert one.sample.prompt is not None
            assert (prompt, whole, key) == (len(one.sample.prompt), one.sample.length, one.sample.length)


def test_one_process_builds_at_a_time(tmp_path: pathlib.Path) -> None:
    about = {"a": 1}
    with contextlib.closing(Journal(str(tmp_path / "x"), about, 9)) as journal:
        assert journal.rows == 0
        with pytest.raises(StateError, match=r"another process is building.*x"):
            Journal(str(tmp_path / "x"), about, 9)
    Journal(str(tmp_path / "x"), about, 9).close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_in_a_terminal_and_lines_elsewhere(
    tmp_path: pathlib.Path, loader: SampleLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, terminal = io.StringIO(), Terminal()
    assert isinstance(progress_on(lines), Lines)
    assert isinstance(progress_on(terminal), Bar)
    with pytest.raises(Interrupted):
        built(Fails(loader, 200), tmp_path / "x", progress=progress_on(lines))
    monkeypatch.setattr("ms_prefstream.progress._LINE_SECONDS", 0.0)
    built(loader, tmp_path / "x", progress=progress_on(lines))
    built(loader, tmp_path / "x", progress=progress_on(terminal))
    written = lines.getvalue().splitlines()
    assert written[0].startswith("length index: 192 of 300 rows (64 %), ")
    assert written[1] == "length index: 192 of 300 rows are done already"
    assert written[2].startswith("length index: 224 of 300 rows (75 %), ")
    assert " s left" in written[2]
    assert written[-1].startswith("length index: 300 of 300 rows (100 %), ")
    assert "300/300" in terminal.getvalue()
    assert "rows/s" in terminal.getvalue()


def test_files_are_indexed_through_workers_of_a_real_source(tmp_path: pathlib.Path) -> None:
    made = recipe(write(tmp_path / "a.jsonl", pairs(COUNT)), DPO(80))
    alone = built(made.loader(), tmp_path / "alone")
    with LoaderPool(made, 1) as pool:
        assert built(pool, tmp_path / "pool") == alone  # begun here, before the worker is ready
