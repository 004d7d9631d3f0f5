"""Whether what is at a place may be replaced: a cache of this library and nothing else."""

from __future__ import annotations

import os
import re

from ms_prefstream.cache.manifest import MANIFEST, has_manifest, read_manifest
from ms_prefstream.errors import OptionError, PrefStreamError

BEGINS = "reference-"
# Where the manifest is damaged, names must do; where it is not, of what a killed process may have left.
_NAMES = re.compile(r"part-\d{5,}\.mindrecord(\.db)?|lengths\.mprefidx|places\.npy")
_LEFT = re.compile(rf"({BEGINS}[0-9a-f]{{12}}\.npy|{re.escape(MANIFEST)})(\.tmp)?")


def check_replaceable(out: str, shown: str) -> None:
    """Refuse to replace what is not wholly a cache.

    Args:
        out: A folder or file that exists.
        shown: As the user named it.

    Raises:
        OptionError: It is no cache, or holds files of others.
        OSError: It cannot be read.
    """
    if not has_manifest(out):
        raise OptionError(f"{shown} exists and is no cache. Name a new folder; nothing was changed.")
    try:
        known = set(read_manifest(out).files)
    except PrefStreamError:
        known = {name for name in os.listdir(out) if _NAMES.fullmatch(name)}
    strange = sorted(
        entry.name
        for entry in os.scandir(out)
        if not entry.is_file(follow_symlinks=False) or not (entry.name in known or _LEFT.fullmatch(entry.name))
    )
    if strange:
        raise OptionError(
            f"{shown} is a cache that holds other files as well ({', '.join(strange[:3])}), which would be lost with "
            "it. Move them away, or name another folder; nothing was changed."
        )


def left_behind(folder: str, known: set[str]) -> list[str]:
    """Files with reference log-probabilities that no manifest names any longer."""
    return [
        name for name in os.listdir(folder) if name.startswith(BEGINS) and _LEFT.fullmatch(name) and name not in known
    ]
