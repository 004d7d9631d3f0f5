"""The index files of a source: one file, or one for each part of a mix, joined to one length index.

Beside its data an index is called ``FILE.<8 hex digits>.mprefidx``. The digits stand for the settings, so that indexes
for several settings lie side by side. ``FILE.mprefidx``, as earlier versions called it, is used where it fits.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.disk import shown
from ms_prefstream.errors import OptionError, StateError, printable
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.formats.base import Format
from ms_prefstream.lengths import LengthIndex, beside, build_index, index_path, joined, open_index
from ms_prefstream.lengths.index import Loader, Measure, Measured, measure_rows, measuring
from ms_prefstream.lengths.index_file import SUFFIX, changes_of, is_index, listed, unwritable
from ms_prefstream.lengths.ranges import of_range, range_path, settings_begun
from ms_prefstream.load.marks import NOTHING, Noted, RowMarks, excluded_text
from ms_prefstream.load.records import MixedRecords, Records, fingerprint_of
from ms_prefstream.part_range import PartRange
from ms_prefstream.progress import Progress
from ms_prefstream.sources.files import check_target

_BUILT_WITH = frozenset({"dedup", "exclude"})  # what only who builds an index says
_OF_OTHERS = frozenset({"selection", "order_by"})  # an index that differs in these is none of this stream's


def built_with_of(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the fingerprint of an index says of good rows that it leaves out, by name."""
    return {name: fingerprint[name] for name in sorted(_BUILT_WITH) if name in fingerprint}


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows that one index file covers.

    Attributes:
        source: Where its rows are read.
        first: The row id of the first of them.
        rows: The number of rows.
        settings: What decides about tokens, by name.
        fingerprint: Returns what decides about their lengths and verdicts, by name; reads some of the rows.
        open: Names in `settings` that an index may decide.
        row_of_each: Returns the row of the source that each record comes from; None where every row has one.
    """

    source: Any
    first: int
    rows: int
    settings: Mapping[str, Any]
    fingerprint: Callable[[], Mapping[str, Any]]
    open: Collection[str] = ()
    row_of_each: Callable[[], NDArray[np.int64] | None] = lambda: None

    @property
    def ignored(self) -> frozenset[str]:
        """Names that an index of other values is used with, too: it decides them."""
        return _BUILT_WITH.union(self.open)


@dataclass(frozen=True)
class FoundIndex:
    """What was found of the index of all parts.

    Attributes:
        index: The index; None unless every part has one that fits.
        settings: The open settings with which the indexes that there are were built, by name, as far as they agree.
        problem: Why an index that is there does not fit, or "".
    """

    index: LengthIndex | None
    settings: Mapping[str, Any]
    problem: str = ""


def index_parts(
    source: Any,
    records: Records,
    formats: Sequence[Format],
    encoding: Mapping[str, Any],
    open_settings: Collection[str] = (),
) -> list[Part]:
    """Returns what each index file covers: all rows, or a part of the mix.

    Args:
        source: A source, or a mix.
        records: Its records.
        formats: The format of each part.
        encoding: What decides about tokens, by name.
        open_settings: Names in `encoding` that an index may decide.
    """
    found: list[Any] = [(source, records, 0)]
    if isinstance(records, MixedRecords):
        found = [(part.source, *rest) for part, rest in zip(source.parts, records.parts(), strict=True)]

    def part(source: Any, records: Any, first: int, fmt: Format) -> Part:
        settings = {**encoding, "format": repr(fmt)}
        if selection := getattr(source, "selection", ""):
            settings["selection"] = selection

        def fingerprint() -> dict[str, Any]:
            return {"data": fingerprint_of(records), **settings}

        return Part(
            source=source,
            first=first,
            rows=len(records),
            settings=settings,
            fingerprint=fingerprint,
            open=open_settings,
            row_of_each=lambda: getattr(records, "row_of_each", None),
        )

    return [part(source, records, first, fmt) for (source, records, first), fmt in zip(found, formats, strict=True)]


def find_index(parts: Sequence[Part], given: str | os.PathLike[str]) -> FoundIndex:
    """Opens the index of all parts.

    Args:
        parts: One, or those of a mix.
        given: A path, for a mix a folder.

    Raises:
        StateError: An index is missing, damaged or stale.
    """
    paths = [*_in_folder(parts, given)] if len(parts) > 1 else [os.fspath(given)]
    indexes = [
        part.source.index if _is_cache(part) else open_index(path, part.fingerprint(), part.rows, part.ignored)
        for path, part in zip(paths, parts, strict=True)
    ]
    settings, problem = _open_settings(parts, indexes)
    if problem:
        raise StateError(f"{problem} Build the indexes again (stream.build_index() or `ms-prefstream index`).")
    return FoundIndex(joined(indexes), settings)


def find_beside(parts: Sequence[Part]) -> FoundIndex:
    """Looks for the index of all parts beside their files."""
    looked = [(part.source.index, "") if _is_cache(part) else _beside(part) for part in parts]
    indexes = [index for index, _ in looked]
    settings, problem = _open_settings(parts, indexes)
    found = [index for index in indexes if index is not None]
    if problem or len(found) < len(parts):
        problem = problem or next((problem for _, problem in looked if problem), "")
        return FoundIndex(None, settings, problem)
    return FoundIndex(joined(found), settings)


def _open_settings(parts: Sequence[Part], indexes: Sequence[LengthIndex | None]) -> tuple[dict[str, Any], str]:
    """Returns the open settings with which indexes were built, and the problem if they differ in one, or ""."""
    settings: dict[str, Any] = {}
    for part, index in zip(parts, indexes, strict=True):
        if index is None or _is_cache(part):
            continue
        for name in part.open:
            if (
                name in index.fingerprint
                and settings.setdefault(name, index.fingerprint[name]) != index.fingerprint[name]
            ):
                return {}, (
                    f"the length indexes of the mix differ in {name}: {printable(repr(settings[name]))} and, in "
                    f"{shown(index.path)}, {printable(repr(index.fingerprint[name]))}."
                )
    return settings, ""


def _beside(part: Part) -> tuple[LengthIndex | None, str]:
    """See `find_beside`, for one part."""
    plain, problem = beside(part.source), ""
    if plain is None:
        return None, ""
    first = [path for path in (_name_for(part, plain), plain) if os.path.lexists(path)]
    others = glob.glob(f"{glob.escape(plain.removesuffix(SUFFIX))}.{'[0-9a-f]' * 8}{SUFFIX}")
    paths = list(dict.fromkeys([*first, *sorted(others)]))
    fingerprint = part.fingerprint() if paths else {}
    for path in paths:
        try:
            if not (changes := changes_of(path, fingerprint, part.rows, part.ignored)):
                return open_index(path, fingerprint, part.rows, part.ignored), ""
            if _OF_OTHERS.isdisjoint(changes):
                problem = problem or f"the length index {shown(path)} is for other data or settings: {listed(changes)}."
        except StateError as error:
            problem = problem or str(error)
    return None, problem


def _name_for(part: Part, plain: str) -> str:
    """Returns the path of the index for the settings of a part, given the path without their digits."""
    settings = {name: value for name, value in part.settings.items() if name != "template_date"}  # any day fits
    digits = hash_of([json.dumps(settings, sort_keys=True, default=repr).encode()])[:8]
    return f"{plain.removesuffix(SUFFIX)}.{digits}{SUFFIX}"


def build_indexes(
    parts: Sequence[Part],
    loader: Loader,
    given: str | os.PathLike[str] | None,
    *,
    origin: Callable[[int], str],
    raise_malformed: bool,
    progress: Progress | None,
    noted: Noted = NOTHING,
    excluded: frozenset[bytes] = frozenset(),
    part_range: PartRange | None = None,
) -> LengthIndex:
    """Measure every row of all parts and write their indexes.

    A part of a mix gets the same file as it would alone. So a mix of files that are indexed already, with the same task
    and tokenizer, needs no pass.

    Args:
        parts: One, or those of a mix.
        loader: Rows to samples, by the row ids of all parts together.
        given: A path, for a mix a folder; None puts each index beside its file.
        origin: Row id to origin.
        raise_malformed: See `ms_prefstream.lengths.build_index`.
        progress: A progress bar, shown for each part in turn; or None.
        noted: What else is noted of rows.
        excluded: The questions that no row may have.
        part_range: Measures only the rows of a range, and writes a file of its own; see `lengths.ranges`.

    Raises:
        OptionError: There is no place for an index, or something else is there; or duplicates of a mix, which are
            looked for in all its parts, would depend on parts that an index beside a file does not name.
        RowError: The first malformed row, if such rows are errors.
    """
    if len(parts) > 1 and given is None and noted.dedup is not None:
        raise OptionError(
            f"dedup is {noted.dedup!r}, and duplicates are looked for in all parts of a mix together. So the indexes "
            "of its parts cannot lie beside their files. Give a folder for them: path, --out on the command line."
        )
    if noted != NOTHING and any(map(_is_cache, parts)):
        raise OptionError(
            "a part of the mix is a cache, which holds samples: dedup, exclude and order_by need its rows. Use the "
            "source that it was written from."
        )
    if part_range is not None:
        check_range(parts, noted)
    if given is not None and len(parts) > 1:
        paths = _in_folder(parts, given)
        try:
            os.makedirs(given, exist_ok=True)
        except (OSError, ValueError) as error:
            raise unwritable(os.fspath(given), error) from error
    else:
        paths = ["" if _is_cache(part) else _path(part, given) for part in parts]
        if part_range is not None:
            paths = [range_path(paths[0], part_range)]
    for path, part in zip(paths, parts, strict=True):
        if not _is_cache(part):
            check_target("index", path, part.source, is_index)
    built_with = {"dedup": noted.dedup, "exclude": excluded_text(excluded) if noted.excludes else None}
    built_with = {name: value for name, value in built_with.items() if value is not None}
    earlier: list[Any] = []

    def built(path: str, part: Part) -> LengthIndex:
        first, rows, fingerprint = part.first, part.rows, {**part.fingerprint(), **built_with}
        if part_range is not None:
            share = part_range.of(rows)
            first, rows, fingerprint = share.start, len(share), of_range(fingerprint, part_range, rows)
        return build_index(
            rows,
            _PartLoader(loader, first) if first else loader,
            path,
            fingerprint,
            origin=lambda row: origin(first + row),
            raise_malformed=raise_malformed,
            progress=progress,
            marks=None if noted == NOTHING else RowMarks(noted, excluded, part.row_of_each(), earlier),
        )

    return joined(
        [part.source.index if _is_cache(part) else built(path, part) for path, part in zip(paths, parts, strict=True)]
    )


def check_range(parts: Sequence[Part], noted: Noted) -> None:
    """Checks that the index of a source can be built in ranges.

    Raises:
        OptionError: It cannot.
    """
    if len(parts) > 1:
        raise OptionError(
            f"part_range divides the rows of one source, and this is a mix of {len(parts)} parts, which have an index "
            "each. Build those of the parts."
        )
    if noted.dedup is not None:
        raise OptionError(
            f"dedup is {noted.dedup!r}, and duplicates are looked for among all rows, not in a part range. Build the "
            'index in one pass, with workers or engine="ray", or leave one of the two out.'
        )


def begun_with(parts: Sequence[Part], given: str | os.PathLike[str] | None) -> Mapping[str, Any]:
    """Returns the settings of the part ranges that other processes have finished, by name; nothing if there are none.

    Arguments as for `build_indexes`.
    """
    return settings_begun(_path(parts[0], given)) if len(parts) == 1 and not _is_cache(parts[0]) else {}


def _path(part: Part, given: str | os.PathLike[str] | None) -> str:
    """Returns the path of the index of a part: as given, else beside its file."""
    path = index_path(part.source, given)
    return _name_for(part, path) if given is None else path


def _is_cache(part: Part) -> bool:
    """Returns whether the part is a cache, which has an index of its own."""
    return bool(getattr(part.source, "ready", False))


def _in_folder(parts: Sequence[Part], folder: str | os.PathLike[str]) -> list[str]:
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise OptionError(
            f"index is {os.fspath(folder)!r}, a file, but the source is a mix of {len(parts)} parts, which have an "
            "index each. Give a folder for them, or leave it out where all parts are files."
        )
    return [os.path.join(folder, f"part-{number}{SUFFIX}") for number in range(len(parts))]


class _PartLoader:
    """A loader that numbers the rows of one part from 0."""

    def __init__(self, loader: Loader, first: int) -> None:
        self._loader, self._first = loader, first

    def load(self, rows: Sequence[int]) -> Any:
        return self._loader.load([self._first + row for row in rows])

    def measured(self, chunks: Iterable[range], how: Measure = measure_rows) -> Iterator[Measured]:
        first = self._first
        return measuring(self._loader, how)(range(first + chunk.start, first + chunk.stop) for chunk in chunks)
