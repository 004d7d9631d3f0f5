"""A cache in a remote store: written to a local staging folder, uploaded file by file, the manifest last.

A cache without a manifest is none, so that no reader sees half of one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping

import msgspec

from ms_prefstream.cache.compatibility import differences
from ms_prefstream.cache.folder import StagingFolder
from ms_prefstream.cache.own_files import SENT, SENT_FORMAT, is_cache_name, is_staged_name
from ms_prefstream.cache.parts import most_note, note_name, read_note
from ms_prefstream.cache.ranges import RangePlan, check_same, file_of, is_plan_name, range_plans, whole_plan
from ms_prefstream.disk import MOST_BYTES, LocalCopy, parse_json, read_file, shown, size_of
from ms_prefstream.errors import CacheError, OptionError
from ms_prefstream.mindrecord.files import FileNote, guarded, note_of, write_small
from ms_prefstream.mindrecord.manifest import MANIFEST, Manifest, has_manifest, read_manifest
from ms_prefstream.part_range import PartRange
from ms_prefstream.sources.copies import Remote, fetch
from ms_prefstream.sources.store import ChangedError, Store, is_url, without_secrets

_LINE_SECONDS = 10.0
_STAGED = ".writing/"  # after the URL of the cache: where hosts upload their ranges
_log = logging.getLogger("ms_prefstream")


class Uploads:
    """Files that are uploaded to a remote folder; what an interrupted run has uploaded is not sent again.

    A file with notes is known: by the SHA-256 of what was sent, and the version that the store had of it then.

    Args:
        store: The store.
        url: The cache.
        notes: The local file with the notes.
    """

    def __init__(self, store: Store, url: str, notes: str) -> None:
        self._store, self._url, self._notes = store, url, notes

    def known(self) -> Mapping[str, tuple[str, str | None]]:
        """Returns end of the URL -> (SHA-256, version) of files whose upload was begun; no version if not finished."""
        what = "the notes on uploads"
        try:
            return parse_json(read_file(self._notes, CacheError, what), _Sent, self._notes, CacheError, what).files
        except (FileNotFoundError, CacheError):
            return {}  # everything is sent again

    def send(self, path: str, name: str, note: FileNote) -> None:
        """Uploads a local file, unless the store has it from an earlier run.

        Args:
            path: The file.
            name: What its URL has after that of the cache, such as ``/part-00000.mindrecord``.
            note: Its size and SHA-256.

        Raises:
            CacheError: It cannot be written.
        """
        known, url = dict(self.known()), self._url + name
        digest, version = known.get(name, ("", None))
        if digest == note.sha256 and version is not None:
            found = self._store.entry(url)
            if found is not None and (found.size, found.version) == (note.bytes, version):
                return
        self._write({**known, name: (note.sha256, None)})
        sent = self._store.put(path, url)
        self._write({**known, name: (note.sha256, sent.version)})

    def _write(self, files: Mapping[str, tuple[str, str | None]]) -> None:
        write_small(self._notes, json.dumps({"format": SENT_FORMAT, "files": files}, sort_keys=True).encode())


class _Sent(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    files: dict[str, tuple[str, str | None]]


class RemoteStagingFolder(StagingFolder):
    """Staging folder of a cache at a URL. It lies in the folder of local copies, and is published by upload.

    Hosts upload the parts of their ranges, with notes and plans, to ``OUT.writing/``. The host that merges copies them
    to its staging folder.

    Args:
        url: The cache.
        remote: How its store is opened.
        part_range: As for `StagingFolder`.

    Raises:
        OptionError: The store takes no files.
        StateError: Another process of this machine writes the cache.
        CacheError: It cannot be made.
    """

    def __init__(self, url: str, remote: Remote, part_range: PartRange | None = None) -> None:
        self._url, name = url.rstrip("/"), without_secrets(url.rstrip("/"))
        self._store = remote.store(url, CacheError)
        if not self._store.lists:
            raise OptionError(f"{name}: a web server takes no files. Name a folder, or another store such as s3://.")
        if self._store.is_bucket(self._url):
            raise OptionError(f"{name} is a whole bucket. Name a folder in it, such as {name}/cache.")
        place = os.path.join(remote.place_of(self._url), "out")
        super().__init__(LocalCopy(place, name), part_range)
        self._staged = name + _STAGED.rstrip("/")  # how messages name where hosts upload
        self._uploads = Uploads(self._store, self._url, os.path.join(self.path, SENT))

    def _check_out(self) -> None:
        """Raises if something is at the URL that may not be replaced, or ranges of another cache were uploaded."""
        found, name = self._names(), without_secrets(self._url)
        if foreign := sorted(one for one in found if not is_cache_name(one)):
            raise OptionError(
                f"{name} holds other files as well ({', '.join(map(shown, foreign[:3]))}); expected an empty folder or "
                "a cache. Move them away, or name another folder; nothing was changed."
            )
        self._check_uploaded()
        if MANIFEST in found:
            if self._is_published():  # by a run that was interrupted then
                return
            with _manifest_copied(self._store, self._url) as folder:
                if not has_manifest(folder):
                    raise OptionError(
                        f"{name} exists and is no cache: its manifest.json is damaged or of another kind. Name another "
                        "folder; nothing was changed."
                    )
                how = "" if self._overwrite else differences(folder, self._about)
            if not self._overwrite:
                raise OptionError(
                    f"{name} exists{how}. Pass overwrite=True to replace it, or name another folder; "
                    "nothing was changed."
                )
        elif not self._overwrite and (strange := sorted(found - {one[1:] for one in self._uploads.known()})):
            raise OptionError(
                f"{name} holds files of a cache without a manifest ({', '.join(map(shown, strange[:3]))}), which this "
                "machine has not uploaded. Pass overwrite=True if no other machine is writing them, or "
                "name another folder; nothing was changed."
            )

    def _swap(self) -> None:
        """Uploads the new cache. What was at the URL is no cache from the first changed file on."""
        manifest, found = read_manifest(self.new), self._names()
        if MANIFEST in found:
            if self._is_published():
                self._remove_ranges()
                return
            self._store.remove(f"{self._url}/{MANIFEST}")
        for name in sorted(found - {MANIFEST, *manifest.files}):
            self._store.remove(f"{self._url}/{name}")
        line = time.monotonic() + _LINE_SECONDS
        for number, (name, note) in enumerate(sorted(manifest.files.items())):
            if time.monotonic() >= line:
                line += _LINE_SECONDS
                _log.info("uploading %s: %d of %d files", without_secrets(self._url), number, len(manifest.files))
            self._uploads.send(self.file(name), f"/{name}", note)
        self._store.put(self.file(MANIFEST), f"{self._url}/{MANIFEST}")
        self._remove_ranges()

    def publish_range(self, plan: RangePlan) -> None:
        """Uploads the finished parts of the range, then its plan."""
        assert self._range is not None
        self._check_uploaded()  # before parts of others are replaced
        for number in self._range.of(plan.parts):
            if (done := self.done(number)) is not None:
                for name, note in done.files.items():
                    self._uploads.send(self.file(name), f"{_STAGED}new/{name}", note)
                self._send(note_name(number))
        self._send(file_of(self._range))

    def fetch_ranges(self) -> None:
        """Copies what hosts have uploaded: the plans, and the notes and files of their parts.

        Raises:
            StateError: A range or a part is missing; names it, and what to run.
            OptionError: Other files are there.
        """
        names = staged_names(self._store, self._url)
        if foreign := [name for name in names if not is_staged_name(name)]:
            raise OptionError(
                f"{without_secrets(self._url)}{_STAGED} holds other files as well "
                f"({', '.join(map(shown, foreign[:3]))}). Move them away; nothing was changed."
            )
        plans = list(filter(is_plan_name, names))
        for name in plans:
            self._fetch_small(name, MOST_BYTES, self.path)
        if not self._is_published():  # else a merge that was interrupted has deleted some
            for name in filter(is_plan_name, os.listdir(self.path)):
                if name not in plans:
                    os.unlink(os.path.join(self.path, name))
        plan, _ = self.whole_plan()
        size = plan.about["rows_per_part"]
        with guarded(self.new):
            os.makedirs(self.new, exist_ok=True)
        for number in range(plan.parts):
            name = note_name(number)
            if name in names:
                self._fetch_small(name, most_note(size), self.path)
                if (done := read_note(os.path.join(self.path, name), number, size, plan.about["layout"])) is not None:
                    for part, note in done.files.items():
                        self._fetch(part, note)

    def _fetch(self, name: str, note: FileNote) -> None:
        """Copies a file of a part, unless it is here. A missing or damaged one is left to the check of all parts."""
        path, url = self.place(name), f"{self._url}{_STAGED}new/{name}"
        with guarded(path):
            if size_of(path) is not None and note_of(path, note.rows) == note:
                return
        if (entry := self._store.entry(url)) is None or entry.size not in (None, note.bytes):
            return
        temporary = f"{path}.{secrets.token_hex(6)}.new"  # as `disk.written` names it
        with contextlib.suppress(ChangedError):
            fetch(self._store, entry, temporary)
        with guarded(path):
            if note_of(temporary, note.rows) == note:
                os.replace(temporary, path)
            else:
                os.unlink(temporary)

    def _fetch_small(self, name: str, most: int, folder: str) -> None:
        if (text := self._store.read(f"{self._url}{_STAGED}{name}", most)) is not None:
            write_small(os.path.join(folder, name), text)

    def whole_plan(self) -> tuple[RangePlan, int]:
        """Returns the plan of the cache whose part ranges have been uploaded, and their number."""
        return whole_plan(LocalCopy(self.path, self._staged), self._name)

    def _check_uploaded(self) -> None:
        """Raises StateError if ranges that hosts have uploaded belong to another cache."""
        with tempfile.TemporaryDirectory() as folder:
            for name in filter(is_plan_name, staged_names(self._store, self._url)):
                self._fetch_small(name, MOST_BYTES, folder)
            uploaded = LocalCopy(folder, self._staged)
            check_same(uploaded, range_plans(uploaded), self._about, self._range)

    def _send(self, name: str) -> None:
        path = os.path.join(self.path, name)
        with guarded(path):
            note = note_of(path, 0)
        self._uploads.send(path, _STAGED + name, note)

    def _remove_ranges(self) -> None:
        """Deletes what hosts have uploaded of their ranges, the plans last."""
        for name in sorted(filter(is_staged_name, staged_names(self._store, self._url)), key=is_plan_name):
            self._store.remove(f"{self._url}{_STAGED}{name}")

    def _is_published(self) -> bool:
        """Returns whether the new cache is complete, and its manifest is at the URL."""
        try:
            sealed = read_file(self.file(MANIFEST), CacheError, "the manifest")
        except FileNotFoundError:
            return False
        return self._store.read(f"{self._url}/{MANIFEST}", MOST_BYTES) == sealed

    def _names(self) -> set[str]:
        """Returns the names of the files at the URL."""
        return {url.removeprefix(f"{self._url}/") for url in self._store.below(self._url)}


def staging_folder(out: str, remote: Remote, part_range: PartRange | None = None) -> StagingFolder:
    """Returns the staging folder of a cache at a path or a URL."""
    return RemoteStagingFolder(out, remote, part_range) if is_url(out) else StagingFolder(out, part_range)


def staged_names(store: Store, url: str) -> list[str]:
    """Returns the names of the files that hosts have uploaded of part ranges of a cache."""
    begin = url.rstrip("/") + _STAGED
    return [one.removeprefix(begin) for one in store.below(begin)]


def read_remote_manifest(store: Store, url: str) -> Manifest:
    """Returns the manifest of a cache at a URL.

    Raises:
        CacheError: It is missing or damaged.
        StateError: It is of another version.
    """
    with _manifest_copied(store, url) as folder:
        return read_manifest(LocalCopy(folder, without_secrets(url)))


@contextlib.contextmanager
def _manifest_copied(store: Store, url: str) -> Iterator[str]:
    """Gives a temporary folder with the manifest of the cache at a URL, if there is one."""
    text = store.read(f"{url}/{MANIFEST}", MOST_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        if text is not None:
            with open(os.path.join(folder, MANIFEST), "wb") as file:
                file.write(text)
        yield folder
