"""The reports of `inspect` and `stats`: reads the rows of a source and writes their page."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ms_prefstream.html import SAMPLES
from ms_prefstream.html.page import Report, check_report, write_report
from ms_prefstream.html.samples import Samples
from ms_prefstream.inspection import FoundRow, rows_of
from ms_prefstream.progress import Progress
from ms_prefstream.sources.base import RandomAccess
from ms_prefstream.sources.open import open_source


def inspect_report(
    path: str | os.PathLike[str],
    source: Any,
    rows: int | Sequence[int],
    options: Mapping[str, Any],
    *,
    with_tokens: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """Writes the report of `inspect`.

    Args:
        path: The file; an older report is replaced, anything else refused.
        source: What `ms_prefstream.read` takes.
        rows: So many first rows, or the numbers of rows, from 0.
        options: Arguments of `mps.encode`.
        with_tokens: Whether each token can be shown with its id.
        progress: Where progress is shown; None for nowhere.

    Returns:
        The rows.
    """
    found = open_source(source)
    check_report(path, found)
    wanted = rows if isinstance(rows, int) else len(rows)
    samples = Samples(with_tokens)
    partial = _fill(samples, found, rows_of(found, rows, options, with_tokens=with_tokens), wanted, progress)
    subtitle = [f"{len(found):,} rows" if isinstance(found, RandomAccess) else "", repr(options["task"])]
    tokenizer = options["tokenizer"]
    subtitle.append("" if tokenizer is None else os.path.basename(str(tokenizer).rstrip("/")))
    title = os.path.basename(str(found.name).rstrip("/")) or str(found.name)
    write_report(
        path, Report(title=title, subtitle=" · ".join(filter(None, subtitle)), samples=samples, partial=partial)
    )
    return samples


def stats_report(
    path: str | os.PathLike[str],
    source: Any,
    stats: Mapping[str, Any],
    options: Mapping[str, Any] | None,
    *,
    rows: int = SAMPLES,
    progress: Progress | None = None,
) -> None:
    """Writes the report of `stats`.

    Args:
        path: The file; an older report is replaced, anything else refused.
        source: The source that was counted.
        stats: `Stats.to_dict()`.
        options: Arguments of `mps.encode` for the samples; None for a source that is consumed.
        rows: So many first rows are samples.
        progress: Where progress is shown; None for nowhere.
    """
    found = open_source(source)
    check_report(path, found)
    samples, partial = None, False
    if options is not None:
        samples = Samples(lengths_in="tokens" if stats["tokenizer"] else "characters")
        partial = _fill(samples, found, rows_of(found, rows, options), rows, progress)
    words = [f"{stats['rows']:,} rows", *stats["formats"], stats["tokenizer"] or ""]
    title = os.path.basename(stats["source"].rstrip("/")) or stats["source"]
    subtitle = " · ".join(filter(None, words))
    write_report(path, Report(title=title, subtitle=subtitle, stats=stats, samples=samples, partial=partial))


def _fill(samples: Samples, source: Any, rows: Iterator[FoundRow], wanted: int, progress: Progress | None) -> bool:
    """Adds the rows; returns whether the source has more."""
    shown = Progress() if progress is None else progress
    total = min(wanted, len(source)) if isinstance(source, RandomAccess) else wanted
    shown.begin(total, 0)
    try:
        read = 0
        for row in itertools.islice(rows, wanted):
            samples.add(row)
            read += 1
            shown.advance(1)
    finally:
        shown.end()
    samples.finish()
    return read < len(source) if isinstance(source, RandomAccess) else read >= wanted
