"""The folder in which a cache is made, beside its place: what is finished there survives an interruption.

    out.writing/plan.json                 what is being written; locked by the process that writes
    out.writing/part-00000.mindrecord     a finished part, with its sidecar
    out.writing/part-00000.done           what is known of it; a part without it is written again
    out.writing/tmp-…/                    parts that are being written
    out.writing/replaced/                 for a moment, the cache whose place it takes

When all parts are there, the tables and last the manifest follow, everything else goes, and the folder is renamed.
"""

from __future__ import annotations

import glob
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Mapping
from typing import Any

from ms_prefstream.cache.files import sync_folder, unwritable, write_whole
from ms_prefstream.cache.manifest import MANIFEST, Manifest, is_cache, read_manifest
from ms_prefstream.cache.ours import PLAN, REPLACED, not_ours
from ms_prefstream.cache.part import PartDone
from ms_prefstream.cache.same import differences
from ms_prefstream.cache.work_folder import WorkFolder
from ms_prefstream.errors import OptionError, PrefStreamError

_DONE = ".done"


class Workplace:
    """Where a cache is being written.

    Args:
        out: Where it will be; a link stays one.
        about: What decides about its bytes, as plain values for JSON. What lies there of another plan is deleted.
        overwrite: Whether a cache that is at `out` may be replaced; it stays until the new one is whole.
        keep: Whether finished parts of an interrupted run may be used.

    Attributes:
        out: Where it will be.
        folder: The folder.
        finished: The manifest, once everything is in the folder; an interrupted run may have got as far as that.

    Raises:
        OptionError: `out` exists and may not be replaced, or the folder is somebody else's.
        StateError: Another process writes this cache.
        CacheError: The folder cannot be made.
    """

    def __init__(self, out: str, about: Mapping[str, Any], overwrite: bool, keep: bool = True) -> None:
        self.out = os.path.realpath(out)
        self.folder = self.out + ".writing"
        self._replaced = os.path.join(self.folder, REPLACED)
        self._about: dict[str, Any] = json.loads(json.dumps(about))
        self._shown, self._overwrite = out, overwrite
        if not os.path.isdir(self.folder):
            self._check_out()
        self._work = WorkFolder(self.folder, self._about, out)
        try:
            self._put_back()
            self._check_out()
            self._begin(keep)
        except OSError as error:
            self.close()
            raise unwritable(self.folder, error) from error
        except BaseException:
            self.close()
            raise
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

    def seal(self, manifest: Manifest) -> None:
        """Write the manifest: everything is there.

        Raises:
            CacheError: It cannot be written.
        """
        write_whole(self.path(MANIFEST), manifest.text().encode("utf-8", "surrogatepass"))
        sync_folder(self.folder)
        self.finished = manifest

    def publish(self) -> None:
        """Remove what the cache does not need, and put it in its place.

        Raises:
            CacheError: The folder cannot be renamed; what was at `out` is there again.
        """
        try:
            for path in glob.glob(glob.escape(self.folder) + "/tmp-*"):
                shutil.rmtree(path)
            for path in glob.glob(glob.escape(self.folder) + "/*" + _DONE):
                os.unlink(path)
            os.unlink(self.path(PLAN))
            self._check_out()
            self._rename()
        except OSError as error:
            raise unwritable(self.out, error) from error

    def discard(self) -> None:
        """Nothing of it will ever be needed."""
        self._work.remove()

    def close(self) -> None:
        """Let other processes write here; what is finished stays for the next run."""
        self._work.close()

    def __enter__(self) -> Workplace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rename(self) -> None:
        """What was at `out` moves into the folder, the folder to `out`, and what was there to where the folder was."""
        try:
            if os.path.isdir(self.out):
                os.rename(self.out, self._replaced)
            os.rename(self.folder, self.out)
        except BaseException:
            self._put_back()
            raise
        if os.path.isdir(former := os.path.join(self.out, REPLACED)):
            if os.path.exists(manifest := os.path.join(former, MANIFEST)):
                os.unlink(manifest)  # so that nobody takes what is left of it for a cache
            os.rename(former, self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
        sync_folder(os.path.dirname(self.out))

    def _put_back(self) -> None:
        """What a run had moved aside that ended between two renames."""
        if os.path.isdir(self._replaced) and not os.path.lexists(self.out):
            os.rename(self._replaced, self.out)
        former = os.path.join(self.out, REPLACED)
        if os.path.isdir(former):
            shutil.rmtree(former, ignore_errors=True)

    def _begin(self, keep: bool) -> None:
        """Keep what was finished of the same plan, delete everything else."""
        if not keep or not (self._work.goes_on or self._manifest() is not None):
            self._work.clear()
            return
        for path in glob.glob(glob.escape(self.folder) + "/tmp-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _manifest(self) -> Manifest | None:
        """The manifest of the same plan, if it is there."""
        try:
            found = read_manifest(self.folder)
        except PrefStreamError:
            return None
        return found if found.about == self._about else None

    def _check_out(self) -> None:
        if not os.path.lexists(self.out) or (os.path.isdir(self.out) and not os.listdir(self.out)):
            return
        if not os.path.isdir(self.out) or not is_cache(self.out):
            raise OptionError(f"{self._shown} exists and is no cache. Name a new folder; nothing was changed.")
        if not self._overwrite:
            raise OptionError(
                f"{self._shown} exists{differences(self.out, self._about)}. Pass overwrite=True (--overwrite) to "
                "replace it, or name another folder; nothing was changed."
            )
        if strange := not_ours(self.out):
            raise OptionError(
                f"{self._shown} is a cache that holds other files as well ({', '.join(strange[:3])}), which would be "
                "lost with it. Move them away, or name another folder; nothing was changed."
            )

    def _done(self, number: int) -> str:
        return os.path.join(self.folder, f"part-{number:05d}{_DONE}")
