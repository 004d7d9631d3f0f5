"""`mps.merge`: one cache or length index of the part ranges that several hosts have written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ms_prefstream.cache.merge import has_ranges, merge_cache
from ms_prefstream.checks import checked_call
from ms_prefstream.disk import check_path
from ms_prefstream.errors import OptionError
from ms_prefstream.lengths import LengthIndex
from ms_prefstream.lengths.ranges import merge_ranges, range_files
from ms_prefstream.mindrecord.files import guarded
from ms_prefstream.mindrecord.manifest import Manifest
from ms_prefstream.sources.copies import Remote


@checked_call
def merge(
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Manifest | LengthIndex:
    """Makes one cache or length index of its part ranges, see `part_range` of `mps.write_cache` and `mps.build_index`.

    It reads neither the source nor a tokenizer. The bytes are those that one process would have written. An interrupted
    merge resumes.

    Args:
        out: The cache or index, as it was named when its ranges were written.
        overwrite: Whether an existing cache may be replaced. An existing index is replaced.
        storage_options: Where `out` is the URL of a cache: credentials and address of its store.
        cache_dir: Likewise: where the parts are copied to, and the cache is completed.

    Returns:
        The manifest of the cache, or the index.

    Raises:
        StateError: A range is missing, doubled, damaged or of other data or settings; names it, and what to run.
        OptionError: There are no ranges, or `out` exists and may not be replaced.
        PrefStreamError: A file cannot be written.
    """
    if not isinstance(out, (str, os.PathLike)) or not os.fspath(out):
        raise OptionError(f"out is {out!r}; expected the path of a cache or of a length index.")
    out = os.fspath(out)
    check_path(out, OptionError, "out")
    remote = Remote(storage_options=storage_options, cache_dir=cache_dir)
    with guarded(out):
        if has_ranges(out, remote):
            return merge_cache(out, overwrite, remote)
        if range_files(out):
            return merge_ranges(out)
    raise OptionError(
        f"there are no part ranges of {out}: neither of a cache, in {out}.writing, nor of a length index, such as "
        f"{out}.1-of-8. Write each with its part_range first, and name the same path here."
    )
