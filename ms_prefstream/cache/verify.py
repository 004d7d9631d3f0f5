"""`ms-prefstream verify`: every byte of a cache against its manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ms_prefstream.cache.files import note_of
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
        path = os.path.join(folder, name)
        problem = ""
        try:
            size = os.path.getsize(path)
            if size != note.bytes:
                problem = f"it has {size:,} bytes instead of {note.bytes:,}"
            elif note_of(path, 0).sha256 != note.sha256:
                problem = "its SHA-256 is not that of the manifest: some of its bytes changed"
            elif name.endswith(".mindrecord") and os.path.exists(path + SIDECAR):
                rows = len(places_of(path))
                problem = "" if rows == note.rows else f"it has {rows:,} rows instead of {note.rows:,}"
        except FileNotFoundError:
            problem = "it is missing"
        except OSError as error:
            problem = f"it cannot be read ({error.strerror})"
        except Exception as error:  # of a damaged sidecar, which is a line of its own as well
            problem = f"its sidecar does not describe it ({error})"
        shown.advance(note.bytes)
        yield Checked(name, problem)
