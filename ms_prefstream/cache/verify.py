"""`ms-prefstream verify`: every byte of a cache against its manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ms_prefstream.cache.files import FileNote, note_of
from ms_prefstream.cache.manifest import Manifest, check_files, read_manifest
from ms_prefstream.cache.mindrecord import SIDECAR
from ms_prefstream.cache.pages import places_of
from ms_prefstream.lengths.progress import Progress, Silent


@dataclass(frozen=True)
class Checked:
    """What `verify` found of one file.

    Attributes:
        name: The file.
        problem: Why it is not what was written, as a sentence; empty if it is.
    """

    name: str
    problem: str


def verify(folder: str, progress: Progress | None = None) -> list[Checked]:
    """Read every file of a cache and compare its SHA-256, its size and its number of rows with the manifest.

    Args:
        folder: The cache.
        progress: Is told how many bytes are done.

    Returns:
        One entry a file, in order of their names, damaged or not.

    Raises:
        CacheError: The manifest is missing or damaged, or a file is there that does not belong to the cache.
        StateError: The cache is of another version.
    """
    manifest, shown = read_manifest(folder), progress or Silent()
    shown.begin(sum(note.bytes for note in manifest.files.values()), 0)
    try:
        found = list(_check(folder, manifest, shown))
    finally:
        shown.end()
    if not any(one.problem for one in found):
        check_files(folder, manifest)  # what does not belong here
    return found


def _check(folder: str, manifest: Manifest, shown: Progress) -> Iterator[Checked]:
    for name, note in sorted(manifest.files.items()):
        yield Checked(name, _bytes_of(os.path.join(folder, name), note) or _rows_of(folder, name, manifest))
        shown.advance(note.bytes)


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
