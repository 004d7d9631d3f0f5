"""The index files of a source: one file, or one for each part of a mix, joined to one length index."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ms_prefstream.encode.template import is_day
from ms_prefstream.errors import OptionError, StateError
from ms_prefstream.formats.base import Format
from ms_prefstream.lengths import LengthIndex, beside, build_index, index_path, joined, open_index
from ms_prefstream.lengths.index import Loader, Measured, measuring
from ms_prefstream.lengths.index_file import SUFFIX, check_replaceable, is_index, read_index, unwritable
from ms_prefstream.load.records import MixedRecords, Records, fingerprint_of
from ms_prefstream.progress import Progress
from ms_prefstream.sources.files import check_target


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows that one index file covers.

    Attributes:
        source: Where its rows are read.
        first: The row id of the first of them.
        rows: The number of rows.
        fingerprint: Returns what decides about their lengths and verdicts, by name; reads some of the rows.
    """

    source: Any
    first: int
    rows: int
    fingerprint: Callable[[], Mapping[str, Any]]


def index_parts(source: Any, records: Records, formats: Sequence[Format], encoding: Mapping[str, Any]) -> list[Part]:
    """Returns what each index file covers: all rows, or a part of the mix.

    Args:
        source: A source, or a mix.
        records: Its records.
        formats: The format of each part.
        encoding: What decides about tokens, by name.
    """
    found: list[Any] = [(source, records, 0)]
    if isinstance(records, MixedRecords):
        found = [(part.source, *rest) for part, rest in zip(source.parts, records.parts(), strict=True)]

    def fingerprint(records: Any, fmt: Format) -> dict[str, Any]:
        return {"data": fingerprint_of(records), **encoding, "format": repr(fmt)}

    return [
        Part(source=source, first=first, rows=len(records), fingerprint=functools.partial(fingerprint, records, fmt))
        for (source, records, first), fmt in zip(found, formats, strict=True)
    ]


def find_index(parts: Sequence[Part], given: str | os.PathLike[str]) -> LengthIndex | None:
    """Opens the index of all parts.

    Args:
        parts: One, or those of a mix.
        given: A path, for a mix a folder; or ``auto``: None unless every part has an index beside its file.

    Raises:
        StateError: An index is missing, damaged or stale.
    """
    if given == "auto":
        paths = [beside(part.source) for part in parts]
        for path, part in zip(paths, parts, strict=True):
            if not _is_cache(part) and (path is None or not os.path.exists(path)):
                return None
    else:
        paths = [*_in_folder(parts, given)] if len(parts) > 1 else [os.fspath(given)]
    return joined([
        part.source.index if _is_cache(part) else open_index(path or "", part.fingerprint(), part.rows)
        for path, part in zip(paths, parts, strict=True)
    ])  # fmt: skip


def indexed_date(parts: Sequence[Part], given: str | os.PathLike[str]) -> str | None:
    """Returns the day with which the template rendered the rows of an index that fits but for that day.

    Args:
        parts: One, or those of a mix.
        given: See `find_index`.
    """
    for number, part in enumerate(parts):
        paths: list[str] = []
        if given not in ("auto", "build"):
            paths = [(_in_folder(parts, given) if len(parts) > 1 else [os.fspath(given)])[number]]
        elif (plain := beside(part.source)) is not None:
            paths = [plain, *sorted(glob.glob(glob.escape(plain.removesuffix(SUFFIX)) + ".*" + SUFFIX))]
        for path in filter(os.path.exists, paths):
            with contextlib.suppress(StateError):
                found = dict(read_index(path, part.rows).fingerprint)
                day = found.pop("template_date", None)
                now = {name: value for name, value in part.fingerprint().items() if name != "template_date"}
                if is_day(day) and found == now:
                    return str(day)
    return None


def build_indexes(
    parts: Sequence[Part],
    loader: Loader,
    given: str | os.PathLike[str] | None,
    *,
    origin: Callable[[int], str],
    raise_malformed: bool,
    progress: Progress | None,
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

    Raises:
        OptionError: There is no place for an index, or something else is there.
        RowError: The first malformed row, if such rows are errors.
    """
    if given is not None and len(parts) > 1:
        paths = _in_folder(parts, given)
        try:
            os.makedirs(given, exist_ok=True)
        except (OSError, ValueError) as error:
            raise unwritable(os.fspath(given), error) from error
    else:
        paths = ["" if _is_cache(part) else index_path(part.source, given) for part in parts]
    for path, part in zip(paths, parts, strict=True):
        if not _is_cache(part):
            check_target("index", path, part.source, is_index)
            check_replaceable(path)
    return joined([
        part.source.index
        if _is_cache(part)
        else build_index(
            part.rows,
            _PartLoader(loader, part.first) if part.first else loader,
            path,
            part.fingerprint(),
            origin=lambda row, first=part.first: origin(first + row),  # type: ignore[misc]  # a default is a constant
            raise_malformed=raise_malformed,
            progress=progress,
        )
        for path, part in zip(paths, parts, strict=True)
    ])  # fmt: skip


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

    def measured(self, chunks: Iterable[range]) -> Iterator[Measured]:
        first = self._first
        return measuring(self._loader)(range(first + chunk.start, first + chunk.stop) for chunk in chunks)
