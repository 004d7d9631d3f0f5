"""Programs that tests start in processes of their own, with the package and the tests of this checkout."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PATH = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
MSRUN = shutil.which("msrun", path=PATH)  # beside this interpreter, or on PATH


def environment(folder: pathlib.Path) -> dict[str, str]:
    """For a program that finds this checkout first and keeps MindFormers' log in this folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "LOG_MF_PATH": str(folder / "log"), "GLOG_v": "3"}


def run_python(*words: str | pathlib.Path, folder: pathlib.Path, timeout: float = 300) -> str:
    """What a program that must succeed prints; it runs in this folder, and MindFormers' log goes there too."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def start_msrun(*words: str | pathlib.Path, folder: pathlib.Path, world: int = 2) -> subprocess.Popen[bytes]:
    """Starts a script on the CPU, in this folder; msrun leads the group of its processes and writes msrun/*.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(MSRUN), f"--worker_num={world}", f"--local_worker_num={world}", "--join=True"]
    command += [f"--master_port={port}", f"--log_dir={folder / 'msrun'}"]
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return subprocess.Popen(
        [*command, *words],
        env={**os.environ, "PYTHONPATH": path, "PATH": PATH, "GLOG_v": "3"},
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
