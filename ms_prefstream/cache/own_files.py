"""The files of caches and of staging folders, known by their names, types and contents; all others are foreign."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import IO, Any, Literal

import msgspec

from ms_prefstream.cache.parts import is_note
from ms_prefstream.cache.ranges import PLAN, is_range_plan
from ms_prefstream.disk import MOST_BYTES, TEMPORARY, is_folder, parse_json, read_file, size_of, status_of, walk
from ms_prefstream.errors import OptionError, PrefStreamError
from ms_prefstream.mindrecord.files import foreign_files, note_of
from ms_prefstream.mindrecord.manifest import CACHE_FILE, MANIFEST, is_cache_file, is_own, read_manifest
from ms_prefstream.mindrecord.megatron import PART_FILE
from ms_prefstream.part_range import NAME

PLAN_FILE, NEW, FORMER = "plan.json", "new", "former"
PLAN_FORMAT = "ms_prefstream plan"
SENT, SENT_FORMAT = "sent.json", "ms_prefstream uploads"
_CACHE_FILE, _REFERENCE_FILE = re.compile(CACHE_FILE), re.compile(r"reference-[0-9a-f]{12}\.npy")
_OURS = re.compile(  # files and folders in a staging folder
    rf"plan\.json|part-\d{{5,}}\.done({TEMPORARY})?"
    rf"|(new|former)(/({CACHE_FILE}|{PART_FILE}|manifest\.json)({TEMPORARY})?)?"
    rf"|reference(/[0-9a-f]{{16}}(/(part-\d{{5,}}\.npy|{CACHE_FILE}|manifest\.json)({TEMPORARY})?)?)?"
    rf"|tmp-\d+-\d+(/[0-9a-f]{{32}})?(/(part-\d{{5,}}\.mindrecord(\.db)?|{PART_FILE}))?"
    rf"|sent\.json({TEMPORARY})?"
    rf"|range-{NAME}\.(lock|json({TEMPORARY})?)"
)


def foreign_in_cache(out: str) -> list[str]:
    """Returns the files in the folder of a cache that are not its own, by their names or by what they hold."""
    try:
        known = list(read_manifest(out).files)
    except PrefStreamError:  # it is of another version, or has wrong values
        known = list(filter(_CACHE_FILE.fullmatch, os.listdir(out)))
    known = [name for name in known if is_own(os.path.join(out, name), is_cache_file)]
    return foreign_files(out, {MANIFEST, *known, *reference_files(out)})


def reference_files(folder: str) -> list[str]:
    """Returns the files of log-probabilities in a cache, current or former ones: their names begin with their SHA-256.

    Raises:
        OSError: One cannot be read.
    """
    names = filter(_REFERENCE_FILE.fullmatch, os.listdir(folder))
    paths = {name: os.path.join(folder, name) for name in names}
    regular = {name: path for name, path in paths.items() if size_of(path) is not None and not os.path.islink(path)}
    return [name for name, path in regular.items() if name == f"reference-{note_of(path, 0).sha256[:12]}.npy"]


class _Plan(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["ms_prefstream plan"]
    about: dict[str, Any] | None = None


def planned_by(text: bytes, path: str) -> Mapping[str, Any] | None:
    """Returns what a plan says of its cache.

    Raises:
        OptionError: It is no plan.
    """
    return parse_json(text, _Plan, path, OptionError, "the plan").about


def strangers(path: str) -> list[str]:
    """Returns what is at the path of a staging folder, or in it, that this library has not put there."""
    found = status_of(path)
    if found is None or not stat.S_ISDIR(found.st_mode):
        return [] if found is None else [path]
    names, plan = sorted(os.listdir(path)), os.path.join(path, PLAN_FILE)
    if PLAN_FILE not in names or os.path.islink(plan):
        return names
    try:
        text = read_file(plan, OptionError, "the plan")
        if text:  # an empty one is of a process that was killed, or found the disk full, before it wrote it
            planned_by(text, plan)
    except FileNotFoundError:  # another process has just deleted it
        return []
    except OptionError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        return names
    return sorted(foreign_below(path, path))


def foreign_below(folder: str, path: str) -> Iterator[str]:
    """Yields what this library has not put into a folder in the staging folder at `path`, relative to the latter."""
    for here, folders, files in walk(folder):
        for entry in (os.path.join(here, name) for name in (*folders, *files)):
            if not _is_ours(entry, name := os.path.relpath(entry, path)):
                yield name


def _is_ours(entry: str, name: str) -> bool:
    """Returns whether an entry of a staging folder has a name, a type and contents that this library gives.

    Files that a killed process left half-written are known without their contents: by the twelve random hex digits of
    a temporary name, or by their folder ``tmp-PID-N/``, which only this library creates.
    """
    try:
        mode = os.lstat(entry).st_mode
    except FileNotFoundError:  # another process has just deleted it
        return True
    if stat.S_ISDIR(mode):
        return name.startswith(FORMER + os.sep) or bool(_OURS.fullmatch(name) and "." not in os.path.basename(name))
    if not (stat.S_ISREG(mode) and _OURS.fullmatch(name) and "." in os.path.basename(name)):
        return False
    if name == PLAN_FILE or name.startswith("tmp-") or re.search(TEMPORARY + "$", name):  # the plan is checked first
        return True
    return is_own(entry, _is_known)


def is_emptied(path: str) -> bool:
    """Returns whether a staging folder holds no part: a process was killed while it deleted the folder.

    Raises:
        OSError: The system cannot say.
    """
    return is_folder(path) and not any(name in (NEW, FORMER) or name.endswith(".done") for name in os.listdir(path))


def is_staged_name(name: str) -> bool:
    """Returns whether a file of a staging folder may have this name, relative to the folder."""
    return _OURS.fullmatch(name) is not None


def is_cache_name(name: str) -> bool:
    """Returns whether a file of this name may belong to a cache."""
    return name == MANIFEST or bool(_CACHE_FILE.fullmatch(name))


def _is_known(file: IO[bytes], name: str) -> bool:
    if name == SENT:
        return SENT_FORMAT.encode() in file.read(MOST_BYTES)
    if name.startswith("range-"):
        return name.endswith(PLAN) and is_range_plan(file)
    return is_note(file) if name.endswith(".done") else is_cache_file(file, name)
