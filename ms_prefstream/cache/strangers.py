"""What lies in the folder of a cache and does not belong to it: parts under another name, foreign records, the rest."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator

# Readers of today walk through a folder with all its subfolders and read every file whose name ends like this.
_READ = re.compile(r"(mindrecord\d*|\.tfrecord)(\.db)?$")


def is_read(name: str) -> bool:
    """Whether readers of MindRecord files would take a file for a part of a data set, or for a part's sidecar."""
    return _READ.search(name) is not None


def strangers(folder: str, known: Collection[str]) -> Iterator[str]:
    """Files and subfolders that are not among the known ones, by their paths within the folder.

    Args:
        folder: The cache.
        known: The files that belong there.

    Yields:
        Files in any depth, and subfolders (their paths end in a slash) in which there is no file or which are links.
    """
    for at, folders, files in os.walk(folder):
        folders.sort()
        inner = os.path.relpath(at, folder)
        if inner != os.curdir and not files and not folders:
            yield inner + os.sep
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]  # nobody follows them
        yield from (os.path.normpath(os.path.join(inner, name)) + os.sep for name in links)
        for name in sorted(files):
            path = os.path.normpath(os.path.join(inner, name))
            if path not in known:
                yield path
