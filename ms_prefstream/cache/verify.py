"""`ms-prefstream verify`: compares every byte of a cache with its manifest, and names foreign files in its folder."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ms_prefstream.errors import CacheError
from ms_prefstream.mindrecord.files import FileNote, foreign_files, is_mindrecord, note_of
from ms_prefstream.mindrecord.manifest import MANIFEST, read_manifest
from ms_prefstream.mindrecord.megatron import MEGATRON, is_read
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
        One entry for each file of the manifest, sorted by name, damaged or not; then one for every foreign file.

    Raises:
        CacheError: The manifest is missing or damaged.
        StateError: The cache is of another version.
    """
    manifest, shown = read_manifest(folder), progress or Progress()
    checked = []
    shown.begin(sum(note.bytes for note in manifest.files.values()), 0)
    try:
        for name, note in sorted(manifest.files.items()):
            checked.append(Checked(name, _problem(os.path.join(folder, name), note)))
            shown.advance(note.bytes)
    finally:
        shown.end()
    reads = is_read if manifest.about["layout"] == MEGATRON else is_mindrecord
    said = "it does not belong to the cache, by its manifest, and who reads the folder would train on it: remove it"
    for name in foreign_files(folder, {MANIFEST, *manifest.files}):
        checked.append(Checked(name, said if reads(name) else "", belongs=False))
    return checked


def _problem(path: str, note: FileNote) -> str:
    try:
        found = note_of(path, note.rows)
    except FileNotFoundError:
        return "it is missing"
    except CacheError as error:
        return f"it cannot be read ({str(error).rstrip('.')})"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if found.bytes != note.bytes:
        return f"it has {found.bytes:,} bytes instead of {note.bytes:,}"
    return "" if found == note else "its SHA-256 is not that of the manifest: some of its bytes changed"
