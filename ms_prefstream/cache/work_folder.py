"""A folder in which something is made beside a cache: known by its plan, locked, and never anybody else's."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from typing import Any, BinaryIO

from ms_prefstream.cache.files import unwritable
from ms_prefstream.cache.ours import PLAN, not_ours
from ms_prefstream.errors import OptionError, StateError

_FORMAT = "ms_prefstream plan"


class WorkFolder:
    """A folder of this library, held by this process until it is closed or the process ends.

    Args:
        path: The folder; made if it is not there.
        plan: What is being made, as plain values for JSON.
        shown: The cache it is made for, as the user named it.

    Attributes:
        path: The folder.
        goes_on: Whether what lies there is of the same plan.

    Raises:
        OptionError: A folder of that name is there, and this library has not made it.
        StateError: Another process holds it.
        CacheError: It cannot be made.
    """

    def __init__(self, path: str, plan: Mapping[str, Any], shown: str) -> None:
        self.path = path
        self._text = json.dumps({"format": _FORMAT, **plan}, sort_keys=True).encode()
        if os.path.lexists(path) and not _is_work(path):
            raise OptionError(
                f"{path} is needed to write the cache {shown}, and somebody else's files are there. Move them away, or "
                "write the cache under another name; nothing was changed."
            )
        try:
            os.makedirs(path, exist_ok=True)
            self._plan: BinaryIO = os.fdopen(os.open(os.path.join(path, PLAN), os.O_RDWR | os.O_CREAT), "r+b")
            try:
                self._lock(shown)
                self.goes_on = self._plan.read() == self._text
            except BaseException:
                self._plan.close()
                raise
        except OSError as error:
            raise unwritable(path, error) from error

    def clear(self) -> None:
        """Begin anew: everything that lies there goes."""
        try:
            for entry in list(os.scandir(self.path)):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                elif entry.name != PLAN:
                    os.unlink(entry.path)
            self._plan.seek(0)
            self._plan.truncate()
            self._plan.write(self._text)
            self._plan.flush()
            os.fsync(self._plan.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.goes_on = True

    def remove(self) -> None:
        """Nothing of it is needed any longer."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let other processes work here; what is finished stays."""
        self._plan.close()

    def _lock(self, shown: str) -> None:
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(self._plan, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(
                    f"another process is writing the cache {shown} at this moment. Wait for it; with several ranks, "
                    "write the cache before they start."
                ) from None


def _is_work(path: str) -> bool:
    """Whether this library made the folder, or nobody has put anything into it."""
    if not os.path.isdir(path):
        return False
    with contextlib.suppress(OSError), open(os.path.join(path, PLAN), "rb") as file:
        if f'"{_FORMAT}"'.encode() in file.read():
            return True
    return not not_ours(path)  # a cache on its way to its place, or to its end
