"""Fixtures and settings that all tests share: how many examples are drawn, and where temporary files lie."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

pytest_plugins = ["tests.fixtures_tokenizers", "tests.sources.stores"]

os.environ.setdefault("GLOG_v", "3")  # MindSpore's deprecation notices hide what a failing test says

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell that started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # programs that tests interrupt inherit that

EXAMPLES = {"quick": 30, "thorough": 300}
"""Examples of each law by profile: `make test` draws few, the same everywhere; `make test-long` many new ones."""
MEMORY = pathlib.Path("/dev/shm")
_made: list[pathlib.Path] = []


def _load_profile(name: str) -> None:
    """Loads a profile, and registers ``cheap`` and ``costly`` for laws of which an example costs little or much."""
    hypothesis.settings.register_profile(
        "quick", max_examples=EXAMPLES["quick"], deadline=None, derandomize=True, database=None
    )
    hypothesis.settings.register_profile("thorough", max_examples=EXAMPLES["thorough"], deadline=None)
    hypothesis.settings.load_profile(name)
    chosen = hypothesis.settings.get_profile(name)
    hypothesis.settings.register_profile("cheap", chosen, max_examples=4 * EXAMPLES[name])
    hypothesis.settings.register_profile("costly", chosen, max_examples=EXAMPLES[name] // 2)


_load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Puts temporary files into memory, unless ``--basetemp`` says where; a run has a folder and a cache of its own."""
    if not hasattr(config, "workerinput"):
        _made.append(pathlib.Path(tempfile.mkdtemp(prefix="ms_prefstream-cache-")))
        os.environ["XDG_CACHE_HOME"] = str(_made[0])
    if config.option.basetemp is None and not hasattr(config, "workerinput") and _room_in_memory():
        _made.append(pathlib.Path(tempfile.mkdtemp(prefix=f"ms_prefstream-{os.getpid()}-", dir=MEMORY)))
        config.option.basetemp = str(_made[-1] / "tests")


def pytest_unconfigure() -> None:
    for folder in _made:
        shutil.rmtree(folder, ignore_errors=True)


def _room_in_memory() -> bool:
    """Whether there is room for the files of a run; leftovers of runs that were killed are removed before."""
    if not os.access(MEMORY, os.W_OK):
        return False
    for left in MEMORY.glob("ms_prefstream-*-*"):
        if not pathlib.Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return shutil.disk_usage(MEMORY).free > 4 << 30


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distributes scopes (see `_scope`). xdist's own groups are silently ignored under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return Scheduling(config, log)


def _scope(nodeid: str) -> str:
    """The scope of a test: tests of one scope are run in order by one process, so that their fixtures are made once."""
    path = nodeid.partition("::")[0]
    if path.startswith("tests/examples/"):
        return nodeid  # programs that share nothing
    if path.startswith("tests/msrun/") or path == "tests/trainer/test_ranks.py":
        return "msrun"  # ports, and several processes at a time
    return "trainer" if path.startswith("tests/trainer/") else path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts trainings first, as they take longest."""
    items.sort(key=lambda item: not any(item.iter_markers("training")))


@pytest.fixture
def disk_path() -> Iterator[pathlib.Path]:
    """An empty folder where temporary files lie by default, on a disk as a rule; `tmp_path` may be in memory."""
    with tempfile.TemporaryDirectory(prefix="ms_prefstream-") as folder:
        yield pathlib.Path(folder)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with real rows and tokenizers that stands beside the checkout; tests that need it skip without it."""
    root = pathlib.Path(os.environ.get("MS_PREFSTREAM_SHARED", pathlib.Path(__file__).parents[2] / "shared"))
    if not (root / "tokenizers").is_dir():
        pytest.skip("needs ../shared (real rows and tokenizers)")
    return root
