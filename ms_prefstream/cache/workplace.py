"""The folder in which a cache is made, beside its place: what is finished there survives an interruption.

    out.writing/plan.json                 what is being written; locked by the process that writes
    out.writing/part-00000.mindrecord     a finished part, with its sidecar
    out.writing/part-00000.done           what is known of it; a part without it is written again
    out.writing/tmp-…/                    parts that are being written

When all parts are there, the tables and last the manifest follow, everything else goes, and the folder is renamed.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

from ms_prefstream.cache.files import sync_folder, unwritable, write_whole
from ms_prefstream.cache.manifest import MANIFEST, Manifest, is_cache, read_manifest
from ms_prefstream.cache.part import PartDone
from ms_prefstream.errors import OptionError, PrefStreamError, StateError

_PLAN = "plan.json"
_DONE = ".done"


class Workplace:
    """Where a cache is being written.

    Args:
        out: Where it will be.
        about: What decides about its bytes, as plain values for JSON. What lies there of another plan is deleted.
        overwrite: Whether a cache that is at `out` may be replaced; it stays until the new one is whole.
        keep: Whether finished parts of an interrupted run may be used.

    Attributes:
        folder: The folder.
        finished: The manifest, if an interrupted run got as far as that.

    Raises:
        OptionError: `out` exists and may not be replaced.
        StateError: Another process writes this cache.
        CacheError: The folder cannot be made.
    """

    def __init__(self, out: str, about: Mapping[str, Any], overwrite: bool, keep: bool = True) -> None:
        self.out = os.path.abspath(out)
        self.folder = self.out + ".writing"
        self._former = self.out + ".old"
        self._about: dict[str, Any] = json.loads(json.dumps(about))
        self._shown, self._overwrite = out, overwrite
        self._check_out()
        try:
            os.makedirs(self.folder, exist_ok=True)
            self._plan: BinaryIO = os.fdopen(os.open(os.path.join(self.folder, _PLAN), os.O_RDWR | os.O_CREAT), "r+b")
            try:
                self._lock()
                self._begin(keep)
            except BaseException:
                self._plan.close()
                raise
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self.finished = self._manifest()

    def temporary(self, number: int) -> str:
        """A new folder for one part; nobody else, not even a worker of a killed run, writes there."""
        path = os.path.join(self.folder, f"tmp-{os.getpid()}-{number}")
        try:
            os.mkdir(path)
        except OSError as error:
            raise unwritable(path, error) from error
        return path

    def add(self, done: PartDone, folder: str) -> None:
        """Put a finished part in its place."""
        data = pickle.dumps(done._replace(errors=[]), protocol=4)
        try:
            for name in done.files:
                os.replace(os.path.join(folder, name), os.path.join(self.folder, name))
            sync_folder(self.folder)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
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
        except OSError:
            return None
        return found if whole else None

    def path(self, name: str) -> str:
        """A file of the cache while it is being written."""
        return os.path.join(self.folder, name)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, remove what the cache does not need, and rename the folder.

        Raises:
            CacheError: The folder cannot be renamed; what was at `out` is there again.
        """
        write_whole(self.path(MANIFEST), manifest.text().encode("utf-8", "surrogatepass"))
        sync_folder(self.folder)
        self.finished = manifest
        try:
            for path in glob.glob(glob.escape(self.folder) + "/tmp-*"):
                shutil.rmtree(path)
            for path in glob.glob(glob.escape(self.folder) + "/*" + _DONE):
                os.unlink(path)
            os.unlink(self.path(_PLAN))
            self._check_out()
            self._rename()
        except OSError as error:
            raise unwritable(self.out, error) from error

    def close(self) -> None:
        """Let other processes write here; what is finished stays for the next run."""
        self._plan.close()

    def __enter__(self) -> Workplace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rename(self) -> None:
        if os.path.isdir(self.out):
            shutil.rmtree(self._former, ignore_errors=True)
            os.rename(self.out, self._former)
        try:
            os.rename(self.folder, self.out)
        except OSError:
            if os.path.isdir(self._former):
                os.rename(self._former, self.out)
            raise
        sync_folder(os.path.dirname(self.out))
        shutil.rmtree(self._former, ignore_errors=True)

    def _begin(self, keep: bool) -> None:
        """Keep what was finished of the same plan, delete everything else."""
        text = json.dumps(self._about, sort_keys=True).encode()
        if self._plan.read() == text and keep:
            for path in glob.glob(glob.escape(self.folder) + "/tmp-*"):
                shutil.rmtree(path, ignore_errors=True)
            return
        if keep and self._manifest() is not None:
            return
        for entry in list(os.scandir(self.folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != _PLAN:
                os.unlink(entry.path)
        self._plan.seek(0)
        self._plan.truncate()
        self._plan.write(text)
        self._plan.flush()
        os.fsync(self._plan.fileno())

    def _manifest(self) -> Manifest | None:
        """The manifest of the same plan, if it is there."""
        try:
            found = read_manifest(self.folder)
        except PrefStreamError:
            return None
        return found if found.about == self._about else None

    def _check_out(self) -> None:
        if not os.path.lexists(self.out):
            if os.path.isdir(self._former) and is_cache(self._former):  # a run was killed between two renames
                os.rename(self._former, self.out)
            else:
                return
        if os.path.isdir(self.out) and not os.listdir(self.out):
            return
        if not os.path.isdir(self.out) or not is_cache(self.out):
            raise OptionError(f"{self._shown} exists and is no cache. Name a new folder; nothing was changed.")
        if not self._overwrite:
            raise OptionError(
                f"{self._shown} exists. Pass overwrite=True (--overwrite) to replace it, or name another folder; "
                "nothing was changed."
            )

    def _done(self, number: int) -> str:
        return os.path.join(self.folder, f"part-{number:05d}{_DONE}")

    def _lock(self) -> None:
        """Held until the file is closed or the process ends."""
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(self._plan, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(
                    f"another process is writing the cache {self._shown} at this moment. Wait for it; with several "
                    "ranks, write the cache before they start."
                ) from None
