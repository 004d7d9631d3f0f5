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
from ms_prefstream.load.cached import task_of
from ms_prefstream.progress import Progress
from ms_prefstream.report.findings import NO_TEMPLATE
from ms_prefstream.sources.base import RandomAccess
from ms_prefstream.sources.cached import caches_in
from ms_prefstream.sources.open import open_source
from ms_prefstream.tasks import DPO, RLHF
from ms_prefstream.tasks.base import stated_options


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
    task = options["task"]
    subtitle = [type(task).__name__, *stated_options(task)]
    tokenizer = options["tokenizer"]
    subtitle.append("" if tokenizer is None else os.path.basename(str(tokenizer).rstrip("/")))
    subtitle += [NO_TEMPLATE] if samples.no_template else []
    title = os.path.basename(str(found.name).rstrip("/")) or str(found.name)
    total = len(found) if isinstance(found, RandomAccess) else None
    write_report(path, Report(title=title, subtitle=subtitle, rows=total, samples=samples, partial=partial))
    return samples


def stats_report(
    path: str | os.PathLike[str],
    stats: Mapping[str, Any],
    source: Any,
    options: Mapping[str, Any],
    *,
    rows: int = SAMPLES,
    progress: Progress | None = None,
) -> None:
    """Writes the report of `stats`.

    Args:
        path: The file; an older report is replaced, anything else refused.
        stats: `Stats.to_dict()`.
        source: The source that was counted, for samples; None if it is consumed.
        options: Arguments of `mps.encode`. Without a tokenizer samples are the bare texts.
        rows: So many first rows are samples.
        progress: Where progress is shown; None for nowhere.
    """
    found = None if source is None else open_source(source)
    check_report(path, found)
    samples, partial = None, False
    if found is not None:
        in_tokens = stats["tokenizer"] is not None or not any(kind in _TEXT for kind in stats["kinds"])
        samples = Samples(lengths_in="tokens" if in_tokens else "characters")
        encoded = rows_of(found, rows, _sample_options(found, stats, options, in_tokens), log=False)
        partial = _fill(samples, found, encoded, rows, progress)
    words = [*stats["formats"], stats["tokenizer"] or ""]
    words += [NO_TEMPLATE] if samples is not None and samples.no_template else []
    title = os.path.basename(stats["source"].rstrip("/")) or stats["source"]
    report = Report(title=title, subtitle=words, rows=stats["rows"], stats=stats, samples=samples, partial=partial)
    write_report(path, report)


_TEXT = ("pairs", "responses", "prompts")
_NO_LIMIT = 1 << 24  # tokens


def _sample_options(
    source: Any, stats: Mapping[str, Any], options: Mapping[str, Any], in_tokens: bool
) -> dict[str, Any]:
    """Returns the arguments of `mps.encode` for samples: those of the command or of a cache, or the bare texts."""
    found = dict(options)
    if found.get("task") is None and (caches := caches_in(source)):
        found["task"] = task_of(caches[0])
    elif found.get("task") is None:
        pairs = any("pairs" in kind for kind in stats["kinds"])
        limit = (stats["max_length"] if stats["tokenizer"] else None) or _NO_LIMIT
        found["task"] = DPO(limit) if pairs else RLHF(limit, limit)
    if not in_tokens:
        found |= {"tokenizer": "bytes", "template": "auto", "template_variables": None}
    return found


def _fill(samples: Samples, source: Any, rows: Iterator[FoundRow], wanted: int, progress: Progress | None) -> bool:
    """Adds the rows; returns whether the source has more."""
    shown = Progress() if progress is None else progress
    total = min(wanted, len(source)) if isinstance(source, RandomAccess) else None
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
