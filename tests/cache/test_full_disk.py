"""What happens, and what is said, when the disk is full while a MindRecord file is written."""

from __future__ import annotations

import pathlib
import resource
import shutil
import sqlite3
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ms_prefstream import CacheError
from ms_prefstream.mindrecord import sidecar
from ms_prefstream.mindrecord.schema import Column
from ms_prefstream.mindrecord.writer import RecordFile

COLUMNS = {"ids": Column(dtype="int32", most=400), "more": Column(dtype="int32", most=400)}


def values(rows: int) -> dict[str, Any]:
    return {name: [np.arange(1000, 1400, dtype=np.int32)] * rows for name in COLUMNS}


@pytest.mark.parametrize("room", [0, 10_000, 40_000, 1_200_000])
def test_the_system_refuses_in_the_middle_of_a_file(tmp_path: pathlib.Path, room: int) -> None:
    path, before = str(tmp_path / "x.mindrecord"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(CacheError) as caught, RecordFile(path, COLUMNS, 2000) as file:
            file.write(values(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value).startswith(f"{path} cannot be written: File too large; ")
    assert "MB are free there. Choose a folder" in str(caught.value)


def test_sqlite_refuses(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(path: str, **options: Any) -> sqlite3.Connection:
        connection = real(path, **options)
        connection.execute("PRAGMA max_page_count = 4")
        return connection

    real = sqlite3.connect
    path = str(tmp_path / "x.mindrecord")
    file = RecordFile(path, COLUMNS, 2000)
    file.write(values(2000))
    monkeypatch.setattr(sidecar.sqlite3, "connect", connect)
    with pytest.raises(CacheError) as caught:
        file.close()
    assert str(caught.value).startswith(f"{path}.db cannot be written: database or disk is full; ")


PROGRAM = """
import os, sys
import numpy as np
from ms_prefstream import CacheError
from ms_prefstream.mindrecord.schema import Column
from ms_prefstream.mindrecord.writer import RecordFile
folder = sys.argv[1]
columns = {name: Column(dtype="int32", most=400) for name in ("ids", "more")}
for free, whole in ((1 << 20, True), (200 << 10, False), (40 << 10, False), (0, False)):
    with open(folder + "/rest", "wb") as rest:
        rest.write(bytes((8 << 20) - free))
    try:
        with RecordFile(f"{folder}/{free}.mindrecord", columns, 300) as file:
            for _ in range(3):
                file.write({name: [np.arange(1000, 1400, dtype=np.int32)] * 100 for name in columns})
        assert whole, free
        os.unlink(f"{folder}/{free}.mindrecord.db")
    except CacheError as error:
        assert not whole, free
        assert "No space left on device; 0 MB are free there" in str(error), error
    os.unlink(f"{folder}/{free}.mindrecord")
"""


@pytest.mark.long
def test_a_full_disk(tmp_path: pathlib.Path) -> None:
    """On a disk of its own, which not every user may mount."""
    mount = f"mount -t tmpfs -o size=8m none {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False).returncode:
        pytest.skip("needs to mount a file system")
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" -c "$1" {tmp_path}', sys.executable, PROGRAM]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2])
    assert ran.returncode == 0, ran.stderr[-2000:]
