"""Programs that tests start in processes of their own, with the package and the tests of this checkout."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run_python(*words: str | pathlib.Path, folder: pathlib.Path, timeout: float = 300) -> str:
    """What a program that must succeed prints; it runs in this folder, and MindFormers' log goes there too."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LOG_MF_PATH": str(folder / "log"), "GLOG_v": "3"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout
