"""`ms-prefstream verify`: compares every byte of a cache with its manifest, and names foreign files in its folder."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

from ms_prefstream.cache.publish import read_remote_manifest
from ms_prefstream.errors import CacheError
from ms_prefstream.mindrecord.files import FileNote, foreign_files, is_mindrecord, note_of
from ms_prefstream.mindrecord.manifest import MANIFEST, read_manifest
from ms_prefstream.mindrecord.megatron import MEGATRON, is_read
from ms_prefstream.progress import Progress
from ms_prefstream.sources.copies import LOCAL, Remote
from ms_prefstream.sources.store import ChangedError, Store, is_url


@dataclass(frozen=True)
class Checked:
    """Result of `verify` for one file.

    Attributes:
        name: The file.
        problem: What is wrong with it, as a sentence; empty if nothing is.
        belongs: Whether the manifest names it. A foreign file is a problem only where MindRecord readers would read
            it.
    """

    name: str
    problem: str
    belongs: bool = True


def verify(folder: str | os.PathLike[str], progress: Progress | None = None, remote: Remote = LOCAL) -> list[Checked]:
    """Compares the size and the SHA-256 of every file of a cache with the manifest.

    Args:
        folder: The cache, or its URL.
        progress: Counts bytes.
        remote: How the store of a URL is opened. Its files are read, and not kept.

    Returns:
        One entry for each file of the manifest, sorted by name, damaged or not; then one for every foreign file.

    Raises:
        CacheError: The manifest is missing or damaged.
        StateError: The cache is of another version.
    """
    shown, checked, folder = progress or Progress(), [], os.fspath(folder)
    if is_url(folder):
        folder = folder.rstrip("/")
        store = remote.store(folder, CacheError)
        manifest = read_remote_manifest(store, folder)
        names = {url.removeprefix(f"{folder}/") for url in store.below(folder)} if store.lists else set()
        foreign = sorted(names - {MANIFEST, *manifest.files})
    else:
        store, manifest = None, read_manifest(folder)
        foreign = foreign_files(folder, {MANIFEST, *manifest.files})
    shown.begin(sum(note.bytes for note in manifest.files.values()), 0)
    try:
        for name, note in sorted(manifest.files.items()):
            problem = _problem(os.path.join(folder, name), note, store)
            checked.append(Checked(name, problem))
            shown.advance(note.bytes)
    finally:
        shown.end()
    reads = is_read if manifest.about["layout"] == MEGATRON else is_mindrecord
    said = "it does not belong to the cache, by its manifest, and who reads the folder would train on it: remove it"
    for name in foreign:
        checked.append(Checked(name, said if reads(name) else "", belongs=False))
    return checked


def _problem(path: str, note: FileNote, store: Store | None) -> str:
    try:
        found = note_of(path, note.rows) if store is None else _note_at(store, path, note.rows)
    except FileNotFoundError:
        return "it is missing"
    except CacheError as error:
        return f"it cannot be read ({str(error).rstrip('.')})"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if found.bytes != note.bytes:
        return f"it has {found.bytes:,} bytes instead of {note.bytes:,}"
    return "" if found == note else "its SHA-256 is not that of the manifest: some of its bytes changed"


def _note_at(store: Store, url: str, rows: int) -> FileNote:
    """Returns the note of a file with `rows` samples in a store.

    Raises:
        FileNotFoundError: There is no such file.
        CacheError: It cannot be read.
    """
    found = store.entry(url)
    if found is None:
        raise FileNotFoundError(url)
    read = _Read()
    try:
        for begin, data in store.blocks(found, lambda: read.size):
            if begin != read.size:  # a server without ranges began again
                read.digest, read.size = hashlib.sha256(), 0
            read.digest.update(data)
            read.size += len(data)
    except ChangedError:
        raise CacheError("it changed in the store while it was read") from None
    return FileNote(read.size, read.digest.hexdigest(), rows)


@dataclass
class _Read:
    """The bytes of a file that were read."""

    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0
