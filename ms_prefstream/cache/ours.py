"""Which files are a cache's: nothing else is ever replaced or deleted."""

from __future__ import annotations

import os
import re

from ms_prefstream.cache.manifest import LENGTHS, MANIFEST, PLACES

PLAN = "plan.json"  # of a folder where a cache is made; see `WorkFolder`
REPLACED = "replaced"  # a folder that is there for a moment; see `Workplace`
_OURS = re.compile(
    r"(part-\d{5,}\.mindrecord(\.db)?|part-\d{5,}\.done|reference(-[0-9a-f]+)?\.npy|"
    + "|".join(map(re.escape, (MANIFEST, LENGTHS, PLACES, PLAN)))
    + r")(\.tmp)?"
)


def not_ours(folder: str) -> list[str]:
    """The names in a cache's folder that this library has not given, in order."""
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if not ((entry.is_file() and _OURS.fullmatch(entry.name)) or (entry.is_dir() and entry.name == REPLACED))
    )
