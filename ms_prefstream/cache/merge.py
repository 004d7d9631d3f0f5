"""The end of a cache whose parts were written in ranges: checks that all parts exist, and publishes the cache."""

from __future__ import annotations

import os

from ms_prefstream.cache.folder import StagingFolder
from ms_prefstream.cache.own_files import is_emptied
from ms_prefstream.cache.publish import staged_names, staging_folder
from ms_prefstream.cache.ranges import RangePlan, has_range_plans, is_plan_name
from ms_prefstream.cache.write import merge_parts
from ms_prefstream.errors import CacheError, StateError
from ms_prefstream.mindrecord.manifest import Manifest, has_manifest, read_manifest
from ms_prefstream.part_range import PartRange, listed
from ms_prefstream.sources.copies import Remote
from ms_prefstream.sources.store import is_url


def has_ranges(out: str, remote: Remote) -> bool:
    """Returns whether part ranges of a cache at `out` have been begun; at a URL, whether one has been uploaded.

    True as well where a merge was killed at its very end.
    """
    if is_url(out):
        return any(map(is_plan_name, staged_names(remote.store(out, CacheError), out)))
    staged = os.path.realpath(out) + ".writing"
    return has_range_plans(staged) or (is_emptied(staged) and has_manifest(out))


def merge_cache(out: str, overwrite: bool, remote: Remote) -> Manifest:
    """Makes the cache of its part ranges; an interrupted merge resumes.

    Raises:
        StateError: A range or a part is missing, doubled or foreign; names it, and what to run.
        OptionError: `out` exists and may not be replaced.
        CacheError: A file cannot be written.
    """
    with staging_folder(out, remote) as folder:
        folder.fetch_ranges()
        if not has_range_plans(folder.path):  # a killed merge has published the cache, and the rest is deleted now
            return read_manifest(out)
        plan, total = folder.whole_plan()
        manifest = folder.begin(plan.about, overwrite, resume=True)
        if manifest is None:
            _check_parts(folder, plan, total)
            manifest = folder.seal(merge_parts(folder, plan.about, plan.columns))
        folder.publish()
        return manifest


def _check_parts(folder: StagingFolder, plan: RangePlan, total: int) -> None:
    """Raises StateError unless all parts of `total` ranges are finished and have the rows of the plan."""
    missing: dict[PartRange, str] = {}
    size = plan.about["rows_per_part"]
    for share in (PartRange(number, total) for number in range(1, total + 1)):
        for number in share.of(plan.parts):
            done, rows = folder.done(number), min(size, plan.rows - number * size)
            if done is None or len(done.rows) != rows:
                missing.setdefault(share, f"part {number} of range {share}")
    if missing:
        first = next(iter(missing))
        raise StateError(
            f"parts of the cache are missing or damaged: {listed(list(missing.values()))}. Run the command that wrote "
            f"the ranges again with part_range={tuple(first)}{' and so on' * (len(missing) > 1)}: it writes what is "
            "missing. Then merge again."
        )
