"""The end of `shim.c` that tests hold: it is compiled, loaded into a program, and told which operation to fail.

The shim stands between a program and the C library, so it sees the file operations of SQLite, Arrow and Rust like those
of Python. A patch of `os` and `open` would miss them.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping

COUNT, FAIL, STAY, SHORT, KILL = 1, 2, 3, 4, 5
"""Modes: count and log; fail once; fail from then on; write half, then fail from then on; end the process."""
SOURCE = pathlib.Path(__file__).with_suffix(".c")
VARIABLE = "FAULTS"
COMPILER = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
_LOG = 1 << 22


class _State(ctypes.Structure):
    """`struct State` of the shim."""

    _fields_ = [
        ("mode", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("at", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("logged", ctypes.c_int64),
        ("kind", ctypes.c_char * 16),
        ("folder", ctypes.c_char * 4096),
        ("log", ctypes.c_char * _LOG),
    ]


def compiled(folder: pathlib.Path) -> dict[str, str]:
    """Compiles the shim, and returns the environment variables of programs that it is loaded into."""
    assert COMPILER is not None
    library, state = folder / "shim.so", folder / "state"
    flags = ["-shared", "-fPIC", "-O1", "-D_FORTIFY_SOURCE=0"]  # else some calls go to functions like __read_chk
    subprocess.run([COMPILER, *flags, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    with open(state, "wb") as file:
        file.truncate(ctypes.sizeof(_State))
    return {"LD_PRELOAD": str(library), VARIABLE: str(state)}


class Shim:
    """The shim of this process and its children.

    Args:
        folder: Operations on paths below it are counted.
        environment: Names the state.
    """

    def __init__(self, folder: pathlib.Path, environment: Mapping[str, str] = os.environ) -> None:
        with open(environment[VARIABLE], "r+b") as file:
            self._state = _State.from_buffer(mmap.mmap(file.fileno(), 0))
        self._state.folder = os.fsencode(folder)

    @contextlib.contextmanager
    def armed(self, mode: int, at: int = -1, error: int = 0) -> Iterator[None]:
        """Applies a mode to the operation of a number, from 0, inside the `with` block."""
        self._state.count = self._state.logged = 0
        self._state.error, self._state.at, self._state.kind = error, at, b""
        self._state.mode = mode
        try:
            yield
        finally:
            self._state.mode = 0

    def reached(self, at: int) -> bool:
        """Returns whether the last block got as far as the operation of a number."""
        return bool(self._state.count > at)

    def operations(self) -> list[tuple[str, str]]:
        """Returns kind and path of each operation of the last block, which was armed with `COUNT`."""
        assert self._state.logged <= _LOG
        begin = ctypes.addressof(self._state) + _State.log.offset
        lines = os.fsdecode(ctypes.string_at(begin, self._state.logged)).splitlines()
        return [(kind, path) for kind, _, path in (line.partition(" ") for line in lines)]
