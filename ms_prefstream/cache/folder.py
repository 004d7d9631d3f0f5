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
import glob
import itertools
import json
import os
import pickle
import re
import shutil
import stat
import zlib
from collections.abc import Mapping
from typing import Any

from ms_prefstream.cache.compatibility import differences
from ms_prefstream.cache.parts import PartDone
from ms_prefstream.errors import OptionError, PrefStreamError, StateError
from ms_prefstream.mindrecord.files import guarded, sync_folder, unwritable, write_whole
from ms_prefstream.mindrecord.manifest import MANIFEST, Manifest, has_manifest, read_manifest, write_manifest

BEGINS = "reference-"
# Where the manifest is damaged, names must do; where it is not, of what a killed process may have left.
_NAMES = re.compile(r"part-\d{5,}\.mindrecord(\.db)?|lengths\.mprefidx|places\.npy")
_LEFT = re.compile(rf"({BEGINS}[0-9a-f]{{12}}\.npy|{re.escape(MANIFEST)})(\.tmp)?")


def check_replaceable(out: str, shown: str) -> None:
    """Refuse to replace what is not wholly a cache.

    Args:
        out: A folder or file that exists.
        shown: As the user named it.

    Raises:
        OptionError: It is no cache, or holds files of others.
        OSError: It cannot be read.
    """
    if not has_manifest(out):
        raise OptionError(f"{shown} exists and is no cache. Name a new folder; nothing was changed.")
    try:
        known = set(read_manifest(out).files)
    except PrefStreamError:
        known = {name for name in os.listdir(out) if _NAMES.fullmatch(name)}
    strange = sorted(
        entry.name
        for entry in os.scandir(out)
        if not entry.is_file(follow_symlinks=False) or not (entry.name in known or _LEFT.fullmatch(entry.name))
    )
    if strange:
        raise OptionError(
            f"{shown} is a cache that holds other files as well ({', '.join(strange[:3])}), which would be lost with "
            "it. Move them away, or name another folder; nothing was changed."
        )


def left_behind(folder: str, known: set[str]) -> list[str]:
    """Files with reference log-probabilities that no manifest names any longer."""
    return [
        name for name in os.listdir(folder) if name.startswith(BEGINS) and _LEFT.fullmatch(name) and name not in known
    ]


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


_DONE = ".done"


class Workplace:
    """Where a cache is being written.

    Args:
        work: The folder, held by this process.
        out: Where the cache will be, as the user named it.
        about: What decides about its bytes, as plain values for JSON. What lies there of another plan is deleted.
        overwrite: Whether a cache that is at `out` may be replaced; it stays until the new one is whole.
        keep: Whether finished parts of an interrupted run may be used.

    Attributes:
        folder: Where the cache is until it is published.
        finished: The manifest, once everything is in the folder; an interrupted run may have got as far as that.

    Raises:
        OptionError: `out` exists and may not be replaced.
        CacheError: The folder cannot be written to.
    """

    def __init__(
        self, work: WorkFolder, out: str, about: Mapping[str, Any], overwrite: bool, keep: bool = True
    ) -> None:
        self._work, self._shown, self._about, self._overwrite = work, out, about, overwrite
        self.folder = work.inside(NEW)
        with guarded(self.folder):
            self._check_out()
            work.begin({"about": self._about}, keep)
            for path in glob.glob(glob.escape(work.path) + "/tmp-*"):
                shutil.rmtree(path, ignore_errors=True)
            os.makedirs(self.folder, exist_ok=True)
        self.finished = self._manifest()

    def temporary(self, number: int) -> str:
        """A new folder for one part; nobody else, not even a worker of a killed run, writes there."""
        path = self._work.inside(f"tmp-{os.getpid()}-{number}")
        with guarded(path):
            os.mkdir(path)
        return path

    def add(self, done: PartDone, folder: str) -> None:
        """Put a finished part in its place."""
        data = pickle.dumps(done._replace(errors=[]), protocol=4)
        with guarded(self.folder):
            for name in done.files:
                os.replace(os.path.join(folder, name), os.path.join(self.folder, name))
            sync_folder(self.folder)
            shutil.rmtree(folder, ignore_errors=True)
        write_whole(self._done(done.number), zlib.crc32(data).to_bytes(4, "little") + data)

    def done(self, number: int) -> PartDone | None:
        """A part that is finished; None if it must be written."""
        try:
            with open(self._done(number), "rb") as file:
                data = file.read()
            if zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
                return None
            found: PartDone = pickle.loads(data[4:])
            whole = all(os.path.getsize(self.path(name)) == note.bytes for name, note in found.files.items())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unwritable(self._done(number), error) from error
        return found if whole else None

    def path(self, name: str) -> str:
        """A file of the cache while it is being written."""
        return os.path.join(self.folder, name)

    def seal(self, manifest: Manifest) -> None:
        """Write the manifest: everything is there.

        Raises:
            CacheError: It cannot be written.
        """
        write_manifest(self.folder, manifest)
        sync_folder(self.folder)
        self.finished = manifest

    def publish(self) -> None:
        """Put the cache in its place; then nothing else is left of the work.

        Raises:
            OptionError: Something has come to be at `out` that may not be replaced.
            CacheError: The folder cannot be renamed; what was at `out` is there again.
        """
        with guarded(self._work.out):
            self._check_out()
            self._work.put(self.folder)
            sync_folder(os.path.dirname(self._work.out))
        self._work.remove()

    def discard(self) -> None:
        """Nothing of it will ever be needed."""
        self._work.remove()

    def _manifest(self) -> Manifest | None:
        """The manifest of the same plan, if it is there."""
        try:
            found = read_manifest(self.folder)
        except PrefStreamError:
            return None
        return found if found.about == self._about else None

    def _check_out(self) -> None:
        out = self._work.out
        if not os.path.lexists(out) or (os.path.isdir(out) and not os.listdir(out)):
            return
        if not self._overwrite and has_manifest(out):
            raise OptionError(
                f"{self._shown} exists{differences(out, self._about)}. Pass overwrite=True (--overwrite) to replace "
                "it, or name another folder; nothing was changed."
            )
        check_replaceable(out, self._shown)

    def _done(self, number: int) -> str:
        return self._work.inside(f"part-{number:05d}{_DONE}")
