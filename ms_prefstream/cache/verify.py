"""`ms-prefstream verify`: compares every byte of a cache with its manifest, and names foreign files in its folder."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from ms_prefstream.mindrecord.files import FileNote, foreign_files, is_mindrecord, note_of
from ms_prefstream.mindrecord.manifest import MANIFEST, Manifest, read_manifest
from ms_prefstream.progress import Progress


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


def verify(folder: str, progress: Progress | None = None) -> list[Checked]:
    """Compares the size and the SHA-256 of every file of a cache with the manifest.

    Args:
        folder: The cache.
        progress: Counts bytes.

    Returns:
        One entry for each file of the manifest, sorted by name, damaged or not; then one for everything else in the
        folder.

    Raises:
        CacheError: The manifest is missing or damaged.
        StateError: The cache is of another version.
    """
    manifest, shown = read_manifest(folder), progress or Progress()
    shown.begin(sum(note.bytes for note in manifest.files.values()), 0)
    try:
        foreign = list(foreign_files(folder, {MANIFEST, *manifest.files}))
        renamed = _renamed(folder, manifest, foreign)
        found = []
        for name, note in sorted(manifest.files.items()):
            problem = _bytes_problem(os.path.join(folder, name), note)
            found.append(Checked(name, problem + (f", and {renamed[name]} has its bytes" if name in renamed else "")))
            shown.advance(note.bytes)
    finally:
        shown.end()
    return found + [Checked(name, _foreign_problem(name, renamed), belongs=False) for name in foreign]


def _renamed(folder: str, manifest: Manifest, foreign: list[str]) -> dict[str, str]:
    """Returns missing files of the manifest -> foreign files that have their bytes."""
    files = manifest.files.items()
    missing = {note.sha256: name for name, note in files if not os.path.lexists(os.path.join(folder, name))}
    found: dict[str, str] = {}
    for path in (os.path.join(folder, name) for name in foreign if missing):
        with contextlib.suppress(OSError):
            if os.path.isfile(path) and (digest := note_of(path, 0).sha256) in missing:
                found.setdefault(missing[digest], os.path.relpath(path, folder))
    return found


def _foreign_problem(name: str, renamed: dict[str, str]) -> str:
    for missing, other in renamed.items():
        if other == name:
            return f"it does not belong to the cache, by its manifest, but has the bytes of {missing}: rename it"
    if is_mindrecord(name):
        return "it does not belong to the cache, by its manifest, and who reads the folder would train on it: remove it"
    return ""


def _bytes_problem(path: str, note: FileNote) -> str:
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
