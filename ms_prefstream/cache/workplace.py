"""The folder in which a cache is made, beside its place: what is finished there survives an interruption.

    out.writing/plan.json                 what is being written; locked by the process that writes
    out.writing/new/part-00000.mindrecord a finished part, with its sidecar
    out.writing/part-00000.done           what is known of it; a part without it is written again
    out.writing/tmp-…/                    parts that are being written
    out.writing/reference/                reference log-probabilities that are being computed

When all parts are there, the tables and last the manifest follow, and ``new`` is renamed.
"""

from __future__ import annotations

import glob
import os
import pickle
import shutil
import zlib
from collections.abc import Mapping
from typing import Any

from ms_prefstream.cache.files import guarded, sync_folder, unwritable, write_whole
from ms_prefstream.cache.manifest import Manifest, has_manifest, read_manifest, write_manifest
from ms_prefstream.cache.ours import check_replaceable
from ms_prefstream.cache.part import PartDone
from ms_prefstream.cache.same import differences
from ms_prefstream.cache.work_folder import NEW, WorkFolder
from ms_prefstream.errors import OptionError, PrefStreamError

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
