"""A disk that fails: each file operation of everything that is written or read, by a shim in front of the C library.

The call succeeds with the right bytes, or raises one PrefStreamError that names the path and a remedy. Nothing half has
a final name, what was there before is as it was, nothing stays open, and the same call without a fault then gives the
same bytes. See `disturbed.py`; the targets are in `targets.py`.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from tests.faults.shim import COMPILER, compiled
from tests.faults.targets import TARGETS
from tests.processes import ROOT

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="the shim is compiled, and there is no C compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="the shim is for Linux"),
]
QUICK = ("ragged", "index", "states", "kept quarantine", "copy", "publish")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return compiled(tmp_path_factory.mktemp("shim"))


def disturbed(
    shim: Mapping[str, str], folder: pathlib.Path, *names: str, tries: int = 0, moments: int = 0
) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.faults.disturbed", str(folder), str(tries), str(moments), *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **shim}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_some_operations_fail(shim: Mapping[str, str], tmp_path: pathlib.Path) -> None:
    for found in disturbed(shim, tmp_path, *QUICK, tries=12, moments=1):
        assert found["problems"] == [], found["target"]
        assert found["tries"] >= 13


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_every_operation_fails(name: str, shim: Mapping[str, str], tmp_path: pathlib.Path) -> None:
    (found,) = disturbed(shim, tmp_path, name, tries=-1)
    print(f"\n{name}: {found['tries']} tries, {found['operations']}")
    assert found["problems"] == []


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.writes])
def test_the_process_is_killed_at_random_moments(name: str, shim: Mapping[str, str], tmp_path: pathlib.Path) -> None:
    (found,) = disturbed(shim, tmp_path, name, moments=200)
    print(f"\n{name}: killed 200 times")
    assert found["problems"] == []


CALLS = {
    "open": "open",
    "openat": "open",
    "read": "read",
    "pread64": "read",
    "preadv": "read",
    "write": "write",
    "pwrite64": "write",
    "fsync": "fsync",
    "fdatasync": "fsync",
    "rename": "rename",
    "renameat": "rename",
    "mkdir": "mkdir",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "rmdir": "unlink",
    "ftruncate": "truncate",
    "flock": "lock",
    "stat": "stat",
    "lstat": "stat",
    "fstat": "stat",
    "newfstatat": "stat",
    "statx": "stat",
    "access": "stat",
    "statfs": "stat",
}
"""System calls, and the operations of the shim that they are."""
ONE_RUN = """
import os, pathlib, sys, tempfile
from tests.faults.shim import COUNT, Shim
from tests.faults.targets import TARGETS
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
target = TARGETS[name]
target.make(folder)
shim = Shim(folder)
os.path.exists("/the run begins")
with shim.armed(COUNT):
    target.work(folder)
os.path.exists("/the run ends")
print(*(kind for kind, _ in shim.operations()))
"""


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="compares the shim with strace")
@pytest.mark.parametrize("name", ["ragged", "megatron", "index", "copy", "publish", "states", "parquet", "zst"])
def test_the_shim_sees_what_the_system_sees(name: str, shim: Mapping[str, str], tmp_path: pathlib.Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "folder"
    preload = [f"--env={variable}={value}" for variable, value in shim.items()]
    tracer = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace=?{',?'.join(CALLS)}", *preload]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "home")}
    command = [*tracer, sys.executable, "-c", ONE_RUN, str(folder), name]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = log.read_text().partition("/the run begins")[2].partition("/the run ends")[0]
    calls = re.findall(rf"^\d+ +(\w+)\(.*{re.escape(str(folder))}", run, re.MULTILINE)
    seen = Counter(done.stdout.split())
    expected = Counter(CALLS[call] for call in calls)
    folders = run.count("O_DIRECTORY") + seen["opendir"]  # of each the C library itself asks for the status
    assert 0 <= expected.pop("stat") - seen.pop("stat") <= folders
    assert {kind: seen[kind] for kind in expected} == expected
