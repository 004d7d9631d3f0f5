"""What Ray raises, and when it loses workers; a module that calls tasks at once stands in for it."""

from __future__ import annotations

import pathlib
import sys
import types
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream import OptionError, PrefStreamError, RowError
from ms_prefstream.load.workers import ray as ray_module
from tests.cache.places import PART, rows_with_bad, source, stream_of, tree

TASK = mps.DPO(128)


class LostError(Exception):
    pass


class FakeRay(types.ModuleType):
    """Runs a task when its result is asked for.

    Attributes:
        made: How many objects `put` has stored.
        losses: How many tasks lose their worker; one that is run again is another task.
        lost: Those that have lost it.
        problem: What `put` raises, or None.
        ended: How often `shutdown` was called.
    """

    def __init__(self) -> None:
        super().__init__("ray")
        self.losses, self.ended, self.made = 0, 0, 0
        self.problem: Exception | None = None
        self.lost: list[Any] = []
        self.exceptions = types.SimpleNamespace(WorkerCrashedError=LostError)
        self.options: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: Any) -> None:
        pass

    def shutdown(self) -> None:
        self.ended += 1

    def put(self, value: Any) -> Any:
        if self.problem is not None:
            raise self.problem
        self.made += 1
        key = b"%d" % self.made
        return types.SimpleNamespace(value=value, binary=lambda: key)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def nodes(self) -> list[Any]:
        return [{"Alive": True}, {"Alive": False}]

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda function: types.SimpleNamespace(remote=lambda *given: (function, given))

    def cancel(self, task: Any, force: bool) -> None:
        pass

    def get(self, asked: Any) -> Any:
        if not isinstance(asked, tuple):
            return asked.value
        if self.losses and all(asked is not one for one in self.lost):
            self.losses -= 1
            self.lost.append(asked)
        if any(asked is one for one in self.lost):
            raise LostError("The worker died unexpectedly\nwhile executing this task.")
        function, given = asked
        return function(*given)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    found = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", found)
    monkeypatch.setattr(ray_module, "_loaders", {})
    return found


def write(path: str, out: pathlib.Path, **options: Any) -> Any:
    return mps.write_cache(stream_of(path, TASK), out, rows_per_part=PART, **options)


def test_the_bytes_of_the_local_engine(tmp_path: pathlib.Path, ray: FakeRay) -> None:
    path = source(tmp_path)
    write(path, tmp_path / "local")
    write(path, tmp_path / "out", engine="ray")
    assert tree(tmp_path / "out") == tree(tmp_path / "local")
    assert ray.ended == 1
    assert ray.options["runtime_env"]["env_vars"]["RAYON_NUM_THREADS"] == "1"


def test_a_number_of_threads_that_the_user_gives_reaches_the_workers(
    tmp_path: pathlib.Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    write(source(tmp_path), tmp_path / "out", engine="ray")
    assert ray.options["runtime_env"]["env_vars"]["RAYON_NUM_THREADS"] == "3"


def test_an_index_and_statistics(tmp_path: pathlib.Path, ray: FakeRay) -> None:
    path = source(tmp_path)
    for engine in ("local", "ray"):
        mps.build_index(path, tmp_path / engine, task=TASK, tokenizer="bytes", engine=engine, verbose=False)
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "local").read_bytes()
    assert mps.stats(path, engine="ray").to_dict() == mps.stats(path).to_dict()
    assert ray.ended == 2


def test_lost_workers_are_named_and_their_tasks_run_again(
    tmp_path: pathlib.Path, ray: FakeRay, caplog: pytest.LogCaptureFixture
) -> None:
    path, ray.losses = source(tmp_path), 2
    write(path, tmp_path / "out", engine="ray")
    assert caplog.messages[-2:] == [
        "part 0 (rows 0 to 15): its Ray worker was lost (LostError: The worker died unexpectedly while executing this "
        f"task). It runs again ({attempt} of 5)."
        for attempt in (1, 2)
    ]
    write(path, tmp_path / "local")
    assert tree(tmp_path / "out") == tree(tmp_path / "local")


def test_workers_that_are_lost_again_and_again(tmp_path: pathlib.Path, ray: FakeRay) -> None:
    path, ray.losses = source(tmp_path), 100
    with pytest.raises(PrefStreamError, match=r"part 0 \(rows 0 to 15\): its Ray worker was lost 6 times \(LostError"):
        write(path, tmp_path / "out", engine="ray")
    with pytest.raises(PrefStreamError, match=r"rows 0 to 49: its Ray worker was lost 6 .* a machine\.$"):
        mps.build_index(path, tmp_path / "x", task=TASK, tokenizer="bytes", engine="ray", verbose=False)
    assert ray.ended == 2


def test_errors_of_rows_are_those_of_the_local_engine(tmp_path: pathlib.Path, ray: FakeRay) -> None:
    rows = rows_with_bad()
    del rows[40]["chosen"]
    path = source(tmp_path, rows)
    with pytest.raises(RowError) as local:
        write(path, tmp_path / "out")
    with pytest.raises(RowError) as caught:
        write(path, tmp_path / "other", engine="ray")
    assert str(caught.value) == str(local.value)


def test_what_cannot_be_sent(tmp_path: pathlib.Path, ray: FakeRay) -> None:
    ray.problem = TypeError("cannot pickle '_thread.lock' object")
    with pytest.raises(OptionError, match=r"sends the source, .*cannot pickle '_thread\.lock' object\. Leave out"):
        write(source(tmp_path), tmp_path / "out", engine="ray")
    assert ray.ended == 1


def test_a_plain_exception_of_ray_is_a_sentence(
    tmp_path: pathlib.Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise Exception("The current node timed out during startup.\n" + "page " * 500)

    path = source(tmp_path)
    monkeypatch.setattr(ray, "get", fails)
    with pytest.raises(PrefStreamError, match=r"part 0 \(rows 0 to 15\) failed \(Exception: The current node"):
        write(path, tmp_path / "out", engine="ray")
    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(OptionError, match=r"cannot be started on this machine: The current node timed out") as caught:
        write(path, tmp_path / "out", engine="ray")
    assert len(str(caught.value)) < 800
