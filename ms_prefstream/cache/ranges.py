"""Plans of part ranges in a staging folder, `range-3-of-8.json`: what a host writes, and whether all write the same."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from typing import IO, Annotated, Any, Literal

import msgspec

from ms_prefstream.cache.compatibility import changes
from ms_prefstream.disk import below, check_own, parse_json, read_file, shown
from ms_prefstream.errors import CacheError, OptionError, StateError, printable
from ms_prefstream.mindrecord.files import Count, write_small
from ms_prefstream.mindrecord.manifest import check_about, checksum_of, names_format
from ms_prefstream.part_range import NAME, PartRange, check_all
from ms_prefstream.steps.data import StreamData

LOCK, PLAN = ".lock", ".json"
_FILE = re.compile(rf"range-{NAME}\.json")
_FORMAT = "ms_prefstream part range"
_WHAT = "the plan of a part range"


class RangePlan(msgspec.Struct, frozen=True):
    """What a host writes of a cache.

    Attributes:
        about: Everything that decides the bytes of the cache, as in its manifest.
        columns: Its columns, as in its manifest.
        rows: Rows of the source, good or bad.
    """

    about: dict[str, Any]
    columns: dict[str, Any]
    rows: int

    @property
    def parts(self) -> int:
        """The parts of the whole cache."""
        return -(-self.rows // int(self.about["rows_per_part"]))


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["ms_prefstream part range"]
    about: dict[str, Any]
    columns: dict[str, Any]
    rows: Count
    range: tuple[Annotated[int, msgspec.Meta(ge=1)], Annotated[int, msgspec.Meta(ge=1)]]
    checksum: str


def check_range(data: StreamData, reference: object) -> None:
    """Checks that the parts of a source can be written in ranges.

    Raises:
        OptionError: They cannot.
    """
    if data.records is None:
        raise OptionError(
            f"part_range is for sources that can be read from any row, and {data.source.name} can only be read from "
            "the front. Unpack it to plain JSON Lines, or write the whole cache in one process."
        )
    if reference is not None:
        raise OptionError(
            "part_range writes parts, and reference needs the whole cache. Merge the ranges first; then write_cache "
            "with reference= adds the log-probabilities to the cache."
        )


def file_of(part_range: PartRange, suffix: str = PLAN) -> str:
    """Returns the name of the plan of a range, or of the file that its writer locks."""
    return f"range-{part_range.name}{suffix}"


def is_plan_name(name: str) -> bool:
    """Returns whether the plan of a range may have this name."""
    return _FILE.fullmatch(name) is not None


def is_range_plan(file: IO[bytes]) -> bool:
    """Returns whether an open file is the plan of a range, with any values."""
    return names_format(file, _FORMAT)


def write_range_plan(folder: str, part_range: PartRange, plan: RangePlan) -> None:
    """Writes the plan of a range, atomically.

    Raises:
        CacheError: It cannot be written, or something else is there.
    """
    path = os.path.join(folder, file_of(part_range))
    check_own(path, is_range_plan, CacheError, _WHAT)
    values = {"format": _FORMAT, **msgspec.structs.asdict(plan), "range": list(part_range)}
    write_small(path, json.dumps({**values, "checksum": checksum_of(values)}).encode())


def has_range_plans(folder: str) -> bool:
    """Returns whether part ranges have been begun in a staging folder.

    Raises:
        OSError: The system cannot say.
    """
    try:
        return any(map(_FILE.fullmatch, os.listdir(folder)))
    except (FileNotFoundError, NotADirectoryError):
        return False


def range_plans(folder: str) -> dict[PartRange, RangePlan]:
    """Returns the plans of all ranges that have been begun, in order.

    Raises:
        StateError: One is damaged.
    """
    names = [match for name in os.listdir(folder) if (match := _FILE.fullmatch(name))]
    ranges = sorted(PartRange(int(match[1]), int(match[2])) for match in names)
    found = {}
    for one in ranges:
        with contextlib.suppress(FileNotFoundError):
            found[one] = _read(below(folder, file_of(one)), one)
    return found


def _read(path: str, part_range: PartRange) -> RangePlan:
    try:
        text = read_file(path, StateError, _WHAT)
        values = parse_json(text, dict[str, Any], path, StateError, _WHAT)
        if values.pop("checksum", None) != checksum_of(values):
            raise ValueError("its checksum does not fit")
        file = msgspec.json.decode(text, type=_File)
        check_about(file.about, file.columns)
        if file.range != part_range:
            raise ValueError(f"it is of range {file.range[0]}/{file.range[1]}")
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError, StateError) as error:
        raise StateError(
            f"{shown(path)} is damaged ({printable(str(error)).rstrip('.')}). Delete it, and run this range again "
            f"(part_range={tuple(part_range)}): finished parts are kept."
        ) from error
    return RangePlan(file.about, file.columns, file.rows)


def check_same(
    folder: str, plans: Mapping[PartRange, RangePlan], about: Mapping[str, Any], part_range: PartRange | None = None
) -> None:
    """Checks that ranges that have been begun belong to the same cache.

    Args:
        folder: The staging folder, for the error.
        plans: See `range_plans`.
        about: What is to be written now.
        part_range: The range that is to be written; None for all parts.

    Raises:
        StateError: Names the range and what differs.
    """
    remedy = (
        f"Give all ranges the same data, tokenizer and options, or delete {shown(folder)} and begin again; nothing was "
        "changed."
    )
    for other, plan in plans.items():
        if part_range is not None and other.total != part_range.total:
            raise StateError(
                f"part_range is {part_range}, but {shown(folder)} has the range {other}. Give every host one of "
                f"{other.total} ranges, or delete the folder and begin again; nothing was changed."
            )
        if differs := changes(plan.about, about, all_of_them=True):
            raise StateError(
                f"part range {other} in {shown(folder)} is of another cache: {'; '.join(differs)}. {remedy}"
            )


def whole_plan(folder: str, out: str) -> tuple[RangePlan, int]:
    """Returns the plan that all ranges of a cache have in common, and the number of ranges.

    Raises:
        StateError: A range is missing, doubled or foreign; names it, and what to run.
    """
    plans = range_plans(folder)
    first, plan = next(iter(plans.items()))
    for other, found in plans.items():
        if other.total != first.total:
            raise StateError(
                f"{shown(folder)} has the part ranges {first} and {other}: both cover some of the parts. Delete "
                f"{file_of(other)} or {file_of(first)}, and those of the same number of ranges."
            )
        differs = changes(plan.about, found.about, all_of_them=True)
        if found.rows != plan.rows:
            differs.append(f"the source had {plan.rows:,} rows and has {found.rows:,} now")
        if differs or found != plan:
            raise StateError(
                f"part range {other} in {shown(folder)} is of another cache than part range {first}: "
                f"{'; '.join(differs) or 'its columns differ'}. Delete {file_of(other)}, and run that range again with "
                "the data, tokenizer and options of the others."
            )
    check_all(plans, f"the cache {out}")
    return plan, first.total
