"""`ms-prefstream verify`: every byte of a cache against its manifest, and what else lies in its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ms_prefstream.mindrecord.files import FileNote, is_read, note_of, strangers
from ms_prefstream.mindrecord.manifest import MANIFEST, Manifest, read_manifest
from ms_prefstream.mindrecord.reader import SIDECAR, places_of
from ms_prefstream.progress import Progress, Silent


@dataclass(frozen=True)
class Checked:
    """What `verify` found of one file.

    Attributes:
        name: The file.
        problem: Why the cache is not as it was written, as a sentence; empty if this file is no reason.
        belongs: Whether the manifest names it. What does not belong is a problem only where readers of MindRecord
            files would read it.
    """

    name: str
    problem: str
    belongs: bool = True


def verify(folder: str, progress: Progress | None = None) -> list[Checked]:
    """Read every file of a cache and compare its SHA-256, its size and its number of rows with the manifest.

    Args:
        folder: The cache.
        progress: Is told how many bytes are done.

    Returns:
        One entry a file of the manifest, in order of their names, damaged or not; then one for everything else that
        lies in the folder.

    Raises:
        CacheError: The manifest is missing or damaged.
        StateError: The cache is of another version.
    """
    manifest, shown = read_manifest(folder), progress or Silent()
    shown.begin(sum(note.bytes for note in manifest.files.values()), 0)
    try:
        foreign = list(strangers(folder, {MANIFEST, *manifest.files}))
        renamed = _renamed(folder, manifest, foreign)
        found = list(_check(folder, manifest, renamed, shown))
    finally:
        shown.end()
    return found + [Checked(name, _strange(name, renamed), belongs=False) for name in foreign]


def _check(folder: str, manifest: Manifest, renamed: dict[str, str], shown: Progress) -> Iterator[Checked]:
    for name, note in sorted(manifest.files.items()):
        problem = _bytes_of(os.path.join(folder, name), note) or _rows_of(folder, name, manifest)
        yield Checked(name, problem + (f", and {renamed[name]} has its bytes" if name in renamed else ""))
        shown.advance(note.bytes)


def _renamed(folder: str, manifest: Manifest, foreign: list[str]) -> dict[str, str]:
    """Files of the manifest that are missing -> files that have their bytes."""
    missing = {
        (note.bytes, note.sha256): name
        for name, note in manifest.files.items()
        if not os.path.lexists(os.path.join(folder, name))
    }
    sizes = {size for size, _ in missing}
    found: dict[str, str] = {}
    for name in foreign:
        path = os.path.join(folder, name)
        try:
            if os.path.isfile(path) and os.path.getsize(path) in sizes:
                size, digest, _ = note_of(path, 0)
                if (size, digest) in missing:
                    found.setdefault(missing[size, digest], name)
        except OSError:
            continue
    return found


def _strange(name: str, renamed: dict[str, str]) -> str:
    for missing, other in renamed.items():
        if other == name:
            return f"it does not belong to the cache, by its manifest, but has the bytes of {missing}: rename it"
    if is_read(name):
        return "it does not belong to the cache, by its manifest, and who reads the folder would train on it: remove it"
    return ""


def _bytes_of(path: str, note: FileNote) -> str:
    try:
        size = os.path.getsize(path)
        if size != note.bytes:
            return f"it has {size:,} bytes instead of {note.bytes:,}"
        if note_of(path, 0).sha256 != note.sha256:
            return "its SHA-256 is not that of the manifest: some of its bytes changed"
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return ""


def _rows_of(folder: str, name: str, manifest: Manifest) -> str:
    """Whether a whole part has its rows; not asked where its sidecar is damaged, which has a line of its own."""
    path, sidecar, rows = os.path.join(folder, name), manifest.files.get(name + SIDECAR), manifest.files[name].rows
    if sidecar is None or _bytes_of(path + SIDECAR, sidecar):
        return ""
    found = len(places_of(path))
    return "" if found == rows else f"it has {found:,} rows instead of {rows:,}"
