"""The folder beside a cache in which everything is made: known by its plan, locked, and never anybody else's.

    out.writing/plan.json                 what is being made; locked by the process that works here, and deleted last
    out.writing/new/                      a cache that is being written
    out.writing/reference/                log-probabilities that are being computed, for it or for the one at out
    out.writing/former/                   for a moment, the cache whose place another one takes

Whoever changes what is at `out` holds this folder.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import stat
from collections.abc import Mapping
from typing import Any

from ms_prefstream.cache.files import guarded
from ms_prefstream.errors import OptionError, StateError

NEW = "new"
REFERENCE = "reference"
_PLAN = "plan.json"
_FORMER = "former"
_FORMAT = "ms_prefstream plan"
_LOOKS = 1000
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what some file systems of clusters answer


class WorkFolder:
    """The folder for one cache, held by this process until it is closed or the process ends.

    Whoever changes what is at `out` holds it. What an earlier process had moved aside is put back when it is opened.

    Args:
        out: The cache, as the user named it.

    Attributes:
        out: Where the cache is or will be, links followed.
        path: The folder.

    Raises:
        OptionError: A folder of that name is there, and this library has not made it.
        StateError: Another process holds it.
        CacheError: It cannot be made.
    """

    def __init__(self, out: str) -> None:
        self.out = os.path.realpath(out)
        self.path = self.out + ".writing"
        with guarded(self.path):
            _check_ours(self.path, out)
            self._plan = self._locked(out)
            try:
                self._recover()
            except BaseException:
                self.close()
                raise

    def inside(self, name: str) -> str:
        """The path of something in the folder."""
        return os.path.join(self.path, name)

    def begin(self, plan: Mapping[str, Any], keep: bool) -> None:
        """Keep what is there if it is of this plan, and if it may be kept; delete everything else.

        Args:
            plan: What is being made, as plain values for JSON.
            keep: Whether anything may be kept.
        """
        text = json.dumps({"format": _FORMAT, **plan}, sort_keys=True).encode()
        with guarded(self.path):
            if keep and os.pread(self._plan, os.fstat(self._plan).st_size, 0) == text:
                return
            self._empty()
            self._write(text)

    def put(self, folder: str) -> None:
        """A folder from in here takes the place of what is at `out`.

        Raises:
            OSError: It cannot; what was at `out` is there again.
        """
        former = self.inside(_FORMER)
        try:
            if os.path.lexists(self.out):
                os.rename(self.out, former)
            os.rename(folder, self.out)
        except BaseException:
            if os.path.isdir(former) and not os.path.lexists(self.out):
                os.rename(former, self.out)
            raise

    def remove(self) -> None:
        """Nothing of it is needed any longer; what cannot be deleted stays, with the plan that tells whose it is."""
        with contextlib.suppress(OSError):
            self._empty()
            self._vanish()
        self.close()

    def close(self) -> None:
        """Let other processes work here; what is finished stays, and a folder in which nothing is does not."""
        if self._plan < 0:
            return
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.path)):
                if entry.is_dir(follow_symlinks=False):
                    os.rmdir(entry.path)  # unless something is in it
        with contextlib.suppress(OSError):
            if os.listdir(self.path) == [_PLAN]:
                self._vanish()
        self._release()

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _vanish(self) -> None:
        """Delete plan and folder. Without the plan the lock means nothing: what is there then may be another's."""
        os.unlink(self.inside(_PLAN))
        with contextlib.suppress(OSError):
            os.rmdir(self.path)
        self._release()

    def _release(self) -> None:
        if self._plan >= 0:
            os.close(self._plan)
            self._plan = -1

    def _recover(self) -> None:
        """After a process that was killed while it put a cache in its place, or behind that."""
        if os.path.isdir(former := self.inside(_FORMER)) and not os.path.lexists(self.out):
            os.rename(former, self.out)
        if not os.path.isdir(self.inside(NEW)):
            self._empty(but=REFERENCE)

    def _empty(self, but: str = "") -> None:
        for entry in list(os.scandir(self.path)):
            if entry.name == but:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != _PLAN:
                os.unlink(entry.path)

    def _write(self, text: bytes) -> None:
        os.ftruncate(self._plan, 0)
        os.pwrite(self._plan, text, 0)
        os.fsync(self._plan)

    def _locked(self, out: str) -> int:
        """The plan's descriptor with a lock on it, and surely that of the file that is there now."""
        for look in itertools.count(1):
            try:
                os.makedirs(self.path, exist_ok=True)
                plan = os.open(self.inside(_PLAN), os.O_RDWR | os.O_CREAT, 0o666)
            except (FileExistsError, FileNotFoundError):
                if look == _LOOKS or (os.path.lexists(self.path) and not os.path.isdir(self.path)):
                    raise
                continue  # another process has just removed the folder
            try:
                _lock(plan, out)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(plan), os.stat(self.inside(_PLAN))):
                        if not os.fstat(plan).st_size:
                            self._plan = plan
                            self._write(json.dumps({"format": _FORMAT}).encode())
                        return plan
            except BaseException:
                os.close(plan)
                raise
            os.close(plan)
        raise AssertionError("there is no last look")


def _lock(plan: int, out: str) -> None:
    with contextlib.suppress(ImportError):  # not on Windows
        import fcntl

        try:
            fcntl.flock(plan, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                f"another process is writing the cache {out} at this moment. Wait for it; with several ranks, write "
                "the cache before they start."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise


def _check_ours(path: str, out: str) -> None:
    """Refuse a folder that this library has not made, whatever is in it."""
    for _ in range(_LOOKS):
        with contextlib.suppress(FileNotFoundError):  # who worked there has just deleted it, or a part of it
            if _is_free(path):
                return
            break
    raise OptionError(
        f"{path} is needed to write the cache {out}, and somebody else's files are there. Move them away, or write the "
        "cache under another name; nothing was changed."
    )


def _is_free(path: str) -> bool:
    """Whether nothing is at a path, or an empty folder, or one of this library.

    Raises:
        FileNotFoundError: Something went away between two looks at it.
    """
    if not os.path.lexists(path):
        return True
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        return False
    names = os.listdir(path)
    if _PLAN not in names:
        return not names
    with open(os.path.join(path, _PLAN), "rb") as file:
        text = file.read()
    return f'"{_FORMAT}"'.encode() in text or (not text and names == [_PLAN])  # killed before it was written
