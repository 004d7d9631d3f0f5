"""The page of a report: figures, charts, tables and samples, rendered into one file."""

from __future__ import annotations

import dataclasses
import importlib.resources
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import numpy as np
import orjson
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from ms_prefstream.disk import remove_leftovers, written
from ms_prefstream.errors import OptionError
from ms_prefstream.html.samples import CUT_OFF, DROPPED, Samples, safe, script_json
from ms_prefstream.sources.files import check_target
from ms_prefstream.version import VERSION

MARKER = "report of ms-prefstream"
_HEAD = 200
_BINS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a page shows.

    Attributes:
        title: Its heading.
        subtitle: Parts of the line below.
        rows: Rows of the data, which that line begins with; None if unknown.
        stats: `Stats.to_dict()`, or None.
        samples: The rows, finished; None for none.
        partial: Whether the data have more rows than the samples.
    """

    title: str
    subtitle: Sequence[str] = ()
    rows: int | None = None
    stats: Mapping[str, Any] | None = None
    samples: Samples | None = None
    partial: bool = False


def check_report(path: str | os.PathLike[str], source: Any) -> None:
    """Raises unless a report can be written at `path`: its folder exists, and the path holds nothing but a report.

    Args:
        path: The file.
        source: The opened source; None for one that has no files, such as standard input.

    Raises:
        OptionError: It cannot be written, or is a file of the data.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.access(folder, os.W_OK):
        found = "cannot be written to" if os.path.isdir(folder) else "is no folder"
        raise OptionError(f"html is {os.fspath(path)!r}, but {folder} {found}. Name a file in another folder.")
    check_target("html", path, source, lambda file: MARKER.encode() in file.read(_HEAD))


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Writes the page; the file appears when it is complete.

    Raises:
        OptionError: The file cannot be written.
    """
    with written(path, OptionError, "the report") as file:
        render(report, file)
    remove_leftovers(path)


def render(report: Report, file: IO[bytes]) -> None:
    """Writes the page to a file."""
    stats, samples = report.stats, report.samples
    words = _text("words.json")
    context = {
        "title": safe(report.title),
        "subtitle": [safe(part) for part in report.subtitle if part],
        "rows": report.rows,
        "marker": MARKER,
        "nonce": secrets.token_urlsafe(12),
        "version": VERSION,
        "css": Markup(_text("report.css")),
        "js": Markup(_text("report.js")),
        "words": orjson.loads(words),
        "words_json": Markup(script_json(orjson.loads(words))),
        "meta_json": None if samples is None else Markup(script_json(samples.meta())),
        "figures": list(_stats_figures(stats) if stats is not None else _sample_figures(samples)),
        "charts": list(_stats_charts(stats) if stats is not None else _sample_charts(samples)),
        "stats": stats,
        "samples": samples,
        "partial": report.partial,
        "dropped": stats["dropped"] if stats is not None else samples.dropped() if samples is not None else {},
        "origins": stats["origins"] if stats is not None else samples.origins() if samples is not None else {},
        "raw": Markup,
        "safe": safe,
        "percent": percent,
        "chart_of": chart_of,
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    template = environment.from_string(_text("report.html.jinja"))
    for piece in template.generate(**context):
        file.write(piece.encode("utf-8"))


def percent(share: float) -> str:
    """Returns a share as a person reads it."""
    return f"{100 * share:.1f} %" if share else "0 %"


def chart_of(
    histogram: Mapping[str, Any], marks: Sequence[tuple[int, str]] = (), signed: bool = False
) -> dict[str, Any]:
    """Returns the bars of a histogram, one unit of width each.

    Args:
        histogram: ``edges`` and ``counts``, see `ms_prefstream.stats.parts.Histogram`.
        marks: (value, title) of vertical lines.
        signed: Whether values from 0 on have the colour of chosen, others that of rejected.
    """
    edges, counts = histogram["edges"], histogram["counts"]
    most = max(counts, default=0) or 1
    bars = [
        {
            "x": number,
            "y": f"{100 - height:.2f}",
            "width": 0.92,
            "height": f"{height:.2f}",
            "side": ("chosen" if begin >= 0 else "rejected") if signed else "",
            "title": f"{begin:,} … {end:,}: {count:,}",
        }
        for number, (begin, end, count) in enumerate(zip(edges, edges[1:], counts, strict=False))
        for height in [max(100 * count / most, 1.2 if count else 0)]
    ]
    found = [
        {"x": f"{float(np.interp(value, edges, range(len(edges)))):.3f}", "title": title}
        for value, title in marks
        if edges[0] <= value <= edges[-1]
    ]
    ticks = [
        {"x": 0, "anchor": "start", "text": f"{edges[0]:,}"},
        {"x": 100, "anchor": "end", "text": f"{edges[-1]:,}"},
    ]
    middle = 0 if 0 in edges[1:-1] else edges[len(edges) // 2]
    if 0 < (at := 100 * edges.index(middle) / len(counts)) < 100:
        ticks.append({"x": f"{at:.2f}", "anchor": "middle", "text": f"{middle:,}"})
    return {
        "bars": bars,
        "marks": found,
        "ticks": ticks,
        "width": len(counts),
        "label": f"{edges[0]:,} … {edges[-1]:,}",
    }


def _figure(value: Any, label: str, more: str = "", unit: str = "", attention: bool = False) -> dict[str, Any]:
    shown = f"{value:,}" if isinstance(value, int) else value
    return {"value": shown, "label": label, "more": more, "unit": unit, "attention": attention}


def _chart(label: str, histogram: Mapping[str, Any], kind: str, unit: str, marks: Any = ()) -> dict[str, Any]:
    return {"label": label, "histogram": histogram, "kind": kind, "unit": unit, "marks": marks}


def _stats_figures(stats: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    dropped = sum(stats["dropped"].values())
    yield _figure(stats["rows"], "rows_one" if stats["rows"] == 1 else "rows")
    yield _figure(stats["rows"] - dropped, "usable")
    if dropped:
        yield _figure(dropped, "dropped", attention=True)
    gap = stats["gap"]
    if gap["pairs"]:
        yield _figure(
            percent(gap["share"]), "chosen_longer", f"{gap['by']:,.0f}" if gap["chosen_longer"] else "", gap["unit"]
        )


def _stats_charts(stats: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    histograms = stats["histograms"]
    unit = "tokens" if stats["tokens"] else "characters"
    if "sequences.longer" in histograms:
        marks = [(int(limit), f"{limit}") for limit in stats["cut"]]
        yield _chart("longer", histograms["sequences.longer"], "", "sequences", marks)
    for side in ("chosen", "rejected"):
        if (name := f"{unit}.{side}") in histograms:
            yield _chart(side, histograms[name], side, unit)
    if "gap" in histograms:
        yield _chart("gap", histograms["gap"], "", stats["gap"]["unit"])


def _sample_figures(samples: Samples | None) -> Iterable[dict[str, Any]]:
    assert samples is not None  # a page has figures of one or the other
    dropped, cut = samples.count(DROPPED), samples.count(CUT_OFF)
    yield _figure(samples.rows, "rows_one" if samples.rows == 1 else "rows")
    yield _figure(samples.rows - dropped, "kept")
    yield _figure(dropped, "dropped", attention=bool(dropped))
    yield _figure(cut, "cut", attention=bool(cut))
    sides = samples.sides()
    if len(sides):
        gaps = sides[:, 0] - sides[:, 1]
        longer = gaps[gaps > 0]
        by = f"{float(np.median(longer)):,.0f}" if len(longer) else ""
        yield _figure(percent(float(np.mean(gaps > 0))), "chosen_longer", by, "tokens")


def _sample_charts(samples: Samples | None) -> Iterable[dict[str, Any]]:
    assert samples is not None
    sides, longest = samples.sides(), samples.longest()
    if len(longest):
        yield _chart("longer", _histogram(longest), "", "tokens")
    if len(sides):
        yield _chart("chosen", _histogram(sides[:, 0]), "chosen", "tokens")
        yield _chart("rejected", _histogram(sides[:, 1]), "rejected", "tokens")
        yield _chart("gap", _histogram(sides[:, 0] - sides[:, 1]), "", "tokens")


def _histogram(values: NDArray[Any]) -> dict[str, Any]:
    """Returns bins of one width, one of which may begin at 0; the first and the last end where the values do."""
    least, most = int(values.min()), int(values.max())
    width = max(1, -(-(most - least + 1) // _BINS))
    edges = np.arange(least // width * width, most + width + 1, width)
    counts, _ = np.histogram(values, edges)
    edges[0], edges[-1] = least, max(most, edges[-2] + 1)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _text(name: str) -> str:
    return (importlib.resources.files("ms_prefstream.html") / name).read_text("utf-8")
