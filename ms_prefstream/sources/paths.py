"""What a path, a glob or a folder stands for: a list of data files of known kinds, in a fixed order."""

from __future__ import annotations

import difflib
import enum
import glob
import os
import re
from collections import Counter
from collections.abc import Sequence

from ms_prefstream.errors import SourceError


class Kind(enum.Enum):
    """How a file is read, by its suffix."""

    LINES = "JSON Lines"
    PACKED_LINES = "compressed JSON Lines"
    JSON = "JSON"
    PARQUET = "Parquet"
    ARROW = "Arrow"


SUFFIXES = {
    ".jsonl": Kind.LINES,
    ".ndjson": Kind.LINES,
    ".jsonl.gz": Kind.PACKED_LINES,
    ".jsonl.zst": Kind.PACKED_LINES,
    ".ndjson.gz": Kind.PACKED_LINES,
    ".ndjson.zst": Kind.PACKED_LINES,
    ".json.gz": Kind.PACKED_LINES,
    ".json.zst": Kind.PACKED_LINES,
    ".json": Kind.JSON,
    ".parquet": Kind.PARQUET,
    ".arrow": Kind.ARROW,
}

_GLOB = re.compile(r"[*?\[]")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|training|test|valid|validation|dev|eval)(?=[^a-z]|$)")
_SAME_SPLIT = {"training": "train", "valid": "validation", "dev": "validation", "eval": "test"}
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json")
_SHOWN = 5


def kind_of(path: str) -> Kind:
    """How a file is read.

    Raises:
        SourceError: Its suffix is not one of `SUFFIXES`.
    """
    kind = _known_kind(path)
    if kind is None:
        suffix = os.path.splitext(path)[1]
        found = f"the suffix {suffix!r}" if suffix else "a name without suffix"
        raise SourceError(
            f"{path}: found {found}, expected one of {', '.join(SUFFIXES)}. Rename the file if its contents are of "
            "such a kind, convert it, or read it yourself and pass the rows."
        )
    return kind


def expand(pattern: str) -> list[str]:
    """The files that a path or a glob stands for; a folder is given back as it is, for `folder_files`.

    A name that exists is taken as it is, also with ``*`` or ``[`` in it; what a glob matches is sorted by name.

    Raises:
        SourceError: Nothing is there, or it is an address on a network.
    """
    if _URL.match(pattern):
        raise SourceError(f"{pattern}: found an address, expected a path. Nothing is downloaded: copy the data first.")
    path = os.path.expanduser(pattern)
    if os.path.lexists(path):
        return [path]
    if not _GLOB.search(path):
        raise _missing(path)
    found = sorted(glob.glob(path, recursive=True))
    files = [match for match in found if not os.path.isdir(match)]
    if not files:
        what = f"only folders ({', '.join(found[:_SHOWN])})" if found else f"no file{_neighbours(path)}"
        raise SourceError(f"{pattern}: the pattern matches {what}; expected data files. Correct the pattern.")
    return files


def folder_files(folder: str) -> list[str]:
    """The data files in a folder and below, sorted by path; hidden ones and descriptions of data sets left out.

    Raises:
        SourceError: There are none, or more than one kind, or files of more than one split.
    """
    try:
        os.listdir(folder)  # os.walk says nothing about a folder that may not be read
    except PermissionError as error:
        raise SourceError(f"{folder}: this user may not read the folder. Give it read permission.") from error
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(where, name) for name in names if name not in _NOT_DATA and not name.startswith(".")]
    files = sorted(path for path in found if _known_kind(path))
    if not files:
        present = ", ".join(sorted(os.path.relpath(path, folder) for path in found)[:_SHOWN]) or "nothing"
        raise SourceError(
            f"{folder}: found no data files in the folder ({present}), expected {', '.join(SUFFIXES)}. "
            "Name the files, or another folder."
        )
    kinds = Counter(kind_of(path).value for path in files)
    if len(kinds) > 1:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise SourceError(
            f"{folder}: found files of several kinds in the folder ({counts}), which may be the same "
            f"data twice. Name those that you mean with a glob, e.g. {os.path.join(folder, '*.jsonl')}."
        )
    _check_one_split(folder, files)
    return files


def _check_one_split(folder: str, files: Sequence[str]) -> None:
    """Refuse to train on what its own name calls test data."""
    splits: dict[str, str] = {}
    for path in files:
        for name in _SPLIT.findall(os.path.relpath(path, folder).lower()):
            splits.setdefault(_SAME_SPLIT.get(name, name), path)
    if len(splits) > 1:
        raise SourceError(
            f"{folder}: found files of several splits ({', '.join(sorted(splits))}) in the folder, expected one. "
            f"Name the files of one split with a glob, like that of {splits.get('train', splits[min(splits)])}."
        )


def _known_kind(path: str) -> Kind | None:
    name = os.path.basename(path).lower()
    fitting = [suffix for suffix in SUFFIXES if name.endswith(suffix)]
    return SUFFIXES[max(fitting, key=len)] if fitting else None


def _missing(path: str) -> SourceError:
    hub = ""
    if _HUB_NAME.match(path) and not os.path.splitext(path)[1]:
        hub = (
            " If it is a name on the Hugging Face hub: nothing is downloaded; load it with datasets.load_dataset and "
            "pass the data set."
        )
    if os.path.isdir(f"{path}.writing"):
        hub = " A cache of this name is being written, or its writing was interrupted: run that command again."
    return SourceError(
        f"{path}: no such file or folder{_neighbours(path)}; expected data (relative paths start at {os.getcwd()}). "
        f"Correct the path.{hub}"
    )


def _neighbours(path: str) -> str:
    """What is there instead, as an insertion: the names most like the missing one, or where the path breaks off."""
    folder, name = os.path.split(path)
    while _GLOB.search(folder):
        folder, name = os.path.split(folder)
    if not os.path.isdir(folder or "."):
        above = folder
        while above and not os.path.isdir(above):
            above = os.path.dirname(above)
        return f" (there is no folder {folder!r} in {above or '.'!r})"
    names = sorted(entry for entry in os.listdir(folder or ".") if not entry.startswith("."))
    similar = difflib.get_close_matches(name, names, n=_SHOWN, cutoff=0.5) or [n for n in names if _known_kind(n)]
    return f" (in {folder or '.'!r} there is: {', '.join(similar[:_SHOWN])})" if similar else ""
