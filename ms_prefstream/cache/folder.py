"""Staging folder of a cache, `OUT.writing/`, and the checks that nothing but a cache is ever replaced."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from ms_prefstream.cache.compatibility import changes, differences
from ms_prefstream.cache.own_files import (
    FORMER,
    NEW,
    PLAN_FILE,
    PLAN_FORMAT,
    foreign_below,
    foreign_in_cache,
    planned_by,
    strangers,
)
from ms_prefstream.cache.parts import PartDone, drop_note, note_name, read_note, write_note
from ms_prefstream.cache.ranges import (
    LOCK,
    PLAN,
    RangePlan,
    check_same,
    file_of,
    has_range_plans,
    range_plans,
    whole_plan,
    write_range_plan,
)
from ms_prefstream.disk import (
    TEMPORARY,
    close_quietly,
    exists,
    is_at,
    is_folder,
    shown,
    size_of,
    sync_folder,
    walk,
)
from ms_prefstream.errors import CacheError, OptionError, PrefStreamError, StateError
from ms_prefstream.mindrecord.files import FileNote, guarded, note_of
from ms_prefstream.mindrecord.manifest import (
    MANIFEST,
    Manifest,
    check_cache_file,
    has_manifest,
    read_manifest,
    write_manifest,
)
from ms_prefstream.mindrecord.megatron import MEGATRON, joined_to
from ms_prefstream.part_range import PartRange

_log = logging.getLogger(__name__)
_REFERENCE = "reference"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some cluster file systems


class StagingFolder(contextlib.AbstractContextManager["StagingFolder"]):
    """Staging folder `OUT.writing/`, locked by the writing process and identified by its `plan.json`.

        plan.json           what is being written; holds the lock; deleted last
        new/                the cache that is being written
        part-NNNNN.done     the note on a finished part
        range-3-of-8.json   the plan of a part range; range-3-of-8.lock is locked by its writer
        tmp-PID-N/          a part that is being written
        reference/          log-probabilities that are being computed, for the new cache or for the one at OUT
        former/             for a moment, the cache that is being replaced
        sent.json           notes on uploaded files, where OUT is a URL

    Whoever changes what is at OUT holds the lock. Opening the folder repairs what a killed process left. Closing it
    keeps finished parts for the next run.

    A finished part is its files in `new/` and its note. The cache is complete with all parts, the tables and the
    manifest. Writers of part ranges share the lock of the folder, and each has a lock of its own. They change the parts
    of their range alone.

    Args:
        out: The cache, as the user named it.
        part_range: The parts that are to be written; None for all of them, and for what is done with the whole.

    Attributes:
        path: The folder.
        new: Its subfolder for the new cache.
        reference: Its subfolder for log-probabilities.

    Raises:
        OptionError: A folder of that name exists that this library has not made.
        StateError: Another process holds it, or the range.
        CacheError: It cannot be made.
    """

    def __init__(self, out: str, part_range: PartRange | None = None) -> None:
        self._name, self._out = out, os.path.realpath(out)
        self._range, self._range_lock = part_range, -1
        self._checked: set[int] = set()  # parts whose files this process has written or read
        self._ends: dict[int, dict[str, int]] = {}  # part -> joined file -> where the part ends in it
        self.path = self._out + ".writing"
        self.new, self.reference = os.path.join(self.path, NEW), os.path.join(self.path, _REFERENCE)
        with guarded(self.path):
            self._lock = self._acquire()
            try:
                if part_range is None:
                    self._repair()
                else:
                    self._range_lock = self._acquire_range(part_range)
            except BaseException:
                self.close()
                raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, about: Mapping[str, Any], overwrite: bool, resume: bool) -> Manifest | None:
        """Begins or resumes a cache. Deletes what an earlier run of another plan has left.

        Args:
            about: Everything that decides the cache's bytes, as plain values for JSON.
            overwrite: Whether a cache at `out` may be replaced. It stays until the new one is complete.
            resume: Whether finished parts of an interrupted run may be used.

        Returns:
            The manifest if an interrupted run has completed the cache and not published it.

        Raises:
            OptionError: `out` exists and may not be replaced.
            StateError: The folder has part ranges of another cache.
            CacheError: The folder cannot be written to.
        """
        self._about, self._overwrite = about, overwrite
        with guarded(self.new):
            self._check_out()
            ranges = range_plans(self.path)
            check_same(self.path, ranges, about)
            self._checked.clear()
            self._ends.clear()
            plan = {"about": about}
            if not resume or os.pread(self._lock, os.fstat(self._lock).st_size, 0) != _plan_text(plan):
                if not ranges:
                    self._empty()
                _write_plan(self._lock, plan)
            for path in glob.glob(glob.escape(self.path) + "/tmp-*"):
                self._delete(path)
            for folder, _, names in walk(self.path):
                for name in names:
                    if re.search(TEMPORARY + "$", name):
                        os.unlink(os.path.join(folder, name))
            os.makedirs(self.new, exist_ok=True)
        with contextlib.suppress(PrefStreamError), guarded(self.new):
            found = read_manifest(self.new)
            if found.about != about:
                return None
            if all(self._is_whole(name, note, False) for name, note in found.files.items()):
                return found
            _log.warning("%s: some files differ from the manifest, so parts are checked one by one.", self.new)
        return None

    def fetch_ranges(self) -> None:
        """Makes the part ranges that other hosts have written available here: they are, where the folder is shared."""

    def publish_range(self, plan: RangePlan) -> None:
        """Makes the finished parts of the range available to the host that merges: they are, in a shared folder."""

    def begin_range(self, plan: RangePlan, overwrite: bool) -> None:
        """Begins or resumes the range of parts of a cache; the arguments are those of `begin`.

        Raises:
            OptionError: `out` exists and may not be replaced.
            StateError: What is in the folder belongs to another cache, or is divided into other ranges.
            CacheError: The folder cannot be written to.
        """
        assert self._range is not None
        self._about, self._overwrite = plan.about, overwrite
        with guarded(self.new):
            self._check_out()
            plans = range_plans(self.path)
            check_same(self.path, plans, plan.about, self._range)
            if (begun := self._begun()) is not None and (differs := changes(begun, plan.about, all_of_them=True)):
                raise StateError(
                    f"{self.path} holds parts of another cache: {'; '.join(differs)}. Delete it if nobody resumes that "
                    "one, or name another folder; nothing was changed."
                )
            if plans.get(self._range) != plan:
                write_range_plan(self.path, self._range, plan)
            for number in self._range.of(plan.parts):
                for path in glob.glob(glob.escape(self.path) + f"/tmp-*-{number}"):
                    self._delete(path)
                for path in glob.glob(glob.escape(self._note(number)) + ".*"):
                    os.unlink(path)
            os.makedirs(self.new, exist_ok=True)

    def whole_plan(self) -> tuple[RangePlan, int]:
        """Returns the plan of the cache whose part ranges are in the folder, and their number; see `ranges`."""
        return whole_plan(self.path, self._name)

    def planned(self) -> Mapping[str, Any]:
        """Returns what an interrupted run was writing, as `begin` got it; else what the cache at `out` holds."""
        with contextlib.suppress(PrefStreamError, OSError):
            if (begun := self.begun()) is not None:
                return begun
        with contextlib.suppress(PrefStreamError):
            return read_manifest(self._out).about
        return {}

    def begun(self) -> Mapping[str, Any] | None:
        """Returns the `about` of the cache of which there may be parts in the folder; None if there is none."""
        if (found := self._begun()) is None and (plans := range_plans(self.path)):
            return next(iter(plans.values())).about
        return found

    def _begun(self) -> Mapping[str, Any] | None:
        """Returns the same, if it was begun without part ranges."""
        text = os.pread(self._lock, os.fstat(self._lock).st_size, 0)
        return planned_by(text, PLAN_FILE) if text else None

    def temporary(self, number: int) -> str:
        """Creates a folder for one part, in which no other process writes, not even a worker of a killed run."""
        path = os.path.join(self.path, f"tmp-{os.getpid()}-{number}")
        with guarded(path):
            os.mkdir(path)
        return path

    def add(self, done: PartDone, folder: str) -> None:
        """Moves the files of a finished part from its temporary folder to the new cache, then writes its note."""
        with guarded(self.new):
            for name in done.files:
                os.replace(os.path.join(folder, name), self.place(name))
            sync_folder(self.new)
            self._delete(folder)
        write_note(self._note(done.number), done)
        self._checked.add(done.number)

    def done(self, number: int) -> PartDone | None:
        """Returns a part if it is finished. Its files are read once; if they differ from the note, it is deleted.

        Raises:
            CacheError: It cannot be read, or this process has found it finished before.
        """
        path, checked = self._note(number), number in self._checked
        found = read_note(path, number, self._about["rows_per_part"], self._about["layout"])
        with guarded(self.new):
            for name, note in ({} if found is None else found.files).items():
                if not self._is_whole(name, note, checked) and not self._is_joined(number, name, note, checked):
                    drop_note(path, f"{name} is missing or has not the size and SHA-256 of the note")
                    found = None
                    break
        if found is None:
            if checked:  # the cache would lack its rows
                raise CacheError(
                    f"{shown(path)}: the part was finished, and another program has changed or deleted it since. Run "
                    "again: the other finished parts are kept."
                )
            return None
        self._checked.add(number)
        before = self._ends.get(number - 1, None if number else {})
        if before is not None and self._about["layout"] == MEGATRON:
            sizes = {joined_to(name): note.bytes for name, note in found.files.items()}
            self._ends[number] = before | {name: before.get(name, 0) + size for name, size in sizes.items()}
        return found

    def _is_whole(self, name: str, note: FileNote, checked: bool) -> bool:
        path = self.file(name)
        if size_of(path) != note.bytes:
            return False
        return checked or note_of(path, note.rows) == note

    def _is_joined(self, number: int, name: str, note: FileNote, checked: bool) -> bool:
        """Returns whether an interrupted run has joined the file of a part to those before it, and deleted it.

        False where a part before it is not finished: it is then written again.
        """
        before = self._ends.get(number - 1, None if number else {})
        if before is None or self._about["layout"] != MEGATRON:
            return False
        path, begin = self.file(joined_to(name)), before.get(joined_to(name), 0)
        if (size_of(path) or 0) < begin + note.bytes:
            return False
        return checked or note_of(path, note.rows, begin, note.bytes) == note

    def parts(self) -> Iterator[PartDone]:
        """Yields the finished parts in order, up to the first that is not."""
        for number in itertools.count():
            if (found := self.done(number)) is None:
                return
            yield found

    def file(self, name: str) -> str:
        """Returns the path of a file of the new cache."""
        return os.path.join(self.new, name)

    def place(self, name: str) -> str:
        """Returns the path of a file of the new cache that is about to be written.

        Raises:
            CacheError: Something else is there.
        """
        check_cache_file(self.file(name))
        return self.file(name)

    def seal(self, manifest: Manifest) -> Manifest:
        """Writes the manifest, which makes the new cache complete, and returns it.

        Raises:
            CacheError: It cannot be written.
        """
        write_manifest(self.new, manifest)
        with guarded(self.new):
            sync_folder(self.new)
        return manifest

    def publish(self) -> None:
        """Moves the new cache to `out` and deletes the staging folder.

        Raises:
            OptionError: Something exists at `out` by now that may not be replaced.
            CacheError: The folder cannot be renamed; what was at `out` is back there.
        """
        with guarded(self._out):
            self._check_out()
            self._check_strangers()
            self._swap()
            sync_folder(os.path.dirname(self._out))
        self.remove()

    def remove_reference(self) -> None:
        """Deletes the log-probabilities that were computed, once they are in a cache."""
        with contextlib.suppress(OSError):
            self._delete(self.reference)

    def remove(self) -> None:
        """Deletes the folder. What cannot be deleted stays, with the plan that identifies it."""
        with contextlib.suppress(OSError, OptionError):
            self._empty()
        self.close()

    def close(self) -> None:
        """Releases the lock. Finished parts stay; a folder without any is deleted."""
        if self._lock < 0:
            return
        if (self._range is None or self._left_range()) and not self._has_ranges():
            with contextlib.suppress(OSError):
                for entry in list(os.scandir(self.path)):
                    if entry.is_dir(follow_symlinks=False):
                        os.rmdir(entry.path)  # fails if it is not empty
            with contextlib.suppress(OSError):
                plan = os.path.join(self.path, PLAN_FILE)
                if os.listdir(self.path) == [PLAN_FILE] and is_at(plan, self._lock):
                    # Without the plan the lock is void: whatever is in the folder from here on is another process's.
                    os.unlink(plan)
                    os.rmdir(self.path)
        close_quietly(self._lock)
        self._lock = -1

    def _acquire(self) -> int:
        """Returns a descriptor of the plan that holds its lock."""
        self._check_strangers()
        os.makedirs(self.path, exist_ok=True)
        path = os.path.join(self.path, PLAN_FILE)
        plan = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            # A plan that another process has deleted meanwhile gives no lock on the folder.
            if not _lock(plan, shared=self._range is not None) or not is_at(path, plan):
                raise StateError(
                    f"another process is writing the cache {self._name} at this moment, or part of it. Wait for it; "
                    "with several ranks, write the cache before they start."
                )
            self._check_strangers()  # what was there before it was locked
            if not os.fstat(plan).st_size:
                _write_plan(plan, {})
        except BaseException:
            close_quietly(plan)
            raise
        return plan

    def _acquire_range(self, part_range: PartRange) -> int:
        """Returns a descriptor of the file that the writer of a range locks."""
        path = os.path.join(self.path, file_of(part_range, LOCK))
        found = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            if not _lock(found) or not is_at(path, found):
                raise StateError(
                    f"another process is writing part range {part_range} of the cache {self._name} at this moment. "
                    "Wait for it, or give each process a range of its own."
                )
        except BaseException:
            close_quietly(found)
            raise
        return found

    def _has_ranges(self) -> bool:
        """Returns whether there are plans of part ranges in the folder, or the system cannot say."""
        try:
            return has_range_plans(self.path)
        except OSError:
            return True

    def _left_range(self) -> bool:
        """Releases the lock of the range. Returns whether this process now holds the lock of the whole folder."""
        assert self._range is not None
        lock, plan = (os.path.join(self.path, file_of(self._range, suffix)) for suffix in (LOCK, PLAN))
        with contextlib.suppress(OSError):
            if not exists(plan):  # it was not begun
                os.unlink(lock)
        if self._range_lock >= 0:
            close_quietly(self._range_lock)
            self._range_lock = -1
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # others write, or the file system has no locks
            return False
        return True

    def _check_strangers(self) -> None:
        """Raises if the folder is not one of this library, or holds anything that this library does not put there."""
        found = strangers(self.path)
        if found:
            raise OptionError(
                f"{self.path} is needed to write the cache {self._name}, and somebody else's files are there "
                f"({', '.join(map(shown, found[:3]))}). Move them away, or write the cache under another name; nothing "
                "was changed."
            )

    def _repair(self) -> None:
        """Undoes or completes the swap of a process that was killed during it."""
        if is_folder(former := os.path.join(self.path, FORMER)) and not exists(self._out):
            os.rename(former, self._out)
        if not is_folder(self.new):
            self._empty(keep=_REFERENCE)

    def _swap(self) -> None:
        """Renames the new cache to `out`. If that fails, what was at `out` is put back."""
        former = os.path.join(self.path, FORMER)
        try:
            if exists(self._out):
                os.rename(self._out, former)
            os.rename(self.new, self._out)
        except BaseException:
            if is_folder(former) and not exists(self._out):
                os.rename(former, self._out)
            raise

    def _check_out(self) -> None:
        """Raises if something is at `out` that may not be replaced."""
        out, name = self._out, self._name
        if not exists(out) or (is_folder(out) and not os.listdir(out)):
            return
        if not has_manifest(out):
            manifest = exists(os.path.join(out, MANIFEST))
            raise OptionError(
                f"{name} exists and is no cache{': its manifest.json is damaged or of another kind' * manifest}. "
                f"{'Delete the folder if you know that it is one, or name' if manifest else 'Name'} a new folder; "
                "nothing was changed."
            )
        if not self._overwrite:
            raise OptionError(
                f"{name} exists{differences(out, self._about)}. Pass overwrite=True to replace it, or "
                "name another folder; nothing was changed."
            )
        if foreign := foreign_in_cache(out):
            raise OptionError(
                f"{name} is a cache that holds other files as well ({', '.join(map(shown, foreign[:3]))}), or some too "
                "damaged to be known, which would be lost with it. Move them away, or name another folder; nothing was "
                "changed."
            )

    def _note(self, number: int) -> str:
        return os.path.join(self.path, note_name(number))

    def _delete(self, folder: str) -> None:
        """Deletes a subfolder, unless somebody else's files are in it."""
        if not any(foreign_below(folder, self.path)):
            shutil.rmtree(folder, ignore_errors=True)

    def _empty(self, keep: str = "") -> None:
        self._check_strangers()
        for entry in list(os.scandir(self.path)):
            if entry.is_dir(follow_symlinks=False) and entry.name != keep:
                shutil.rmtree(entry.path)
            elif entry.name not in (PLAN_FILE, keep):
                os.unlink(entry.path)


def _lock(file: int, shared: bool = False) -> bool:
    """Locks a file and returns True, also on file systems without locks; False if another process holds the lock."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _plan_text(plan: Mapping[str, Any]) -> bytes:
    return json.dumps({"format": PLAN_FORMAT, **plan}, sort_keys=True).encode()


def _write_plan(file: int, plan: Mapping[str, Any]) -> None:
    """Writes the plan over another one in a single call, so that what is there is one of them or nothing."""
    text = _plan_text(plan)
    if os.pwrite(file, text.ljust(os.fstat(file).st_size), 0) < len(text):
        os.ftruncate(file, 0)  # half a plan identifies nothing
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(file, len(text))
    os.fsync(file)
