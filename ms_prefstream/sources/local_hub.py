"""Models and data sets in the local caches of Hugging Face and ModelScope, found by their names; no network.

    Intel/orca_dpo_pairs        the files of its split "train" (or of its only split)
    Intel/orca_dpo_pairs:test   those of another split

Folders are looked for in this order, each below the root that the environment names or the package's own default:

    $HF_HUB_CACHE or $HUGGINGFACE_HUB_CACHE or $HF_HOME/hub    datasets--ORG--NAME/snapshots/COMMIT
    $HF_DATASETS_CACHE or $HF_HOME/datasets                    ORG___NAME/CONFIG/VERSION/HASH/*.arrow
    $MODELSCOPE_CACHE                                          hub/datasets/ORG/NAME, datasets/ORG/NAME
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

from ms_prefstream.disk import walk
from ms_prefstream.errors import SourceError

_NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
_SHARD = re.compile(r"[-_.]\d{5}[-_]of[-_]\d{5}(-[0-9a-f]+)?$")
_STEM = re.compile(r"(?:train|test|validation|valid|val|dev|eval)(?:[_-].*)?")
_IN_PATH = re.compile(r"(?:^|[^a-z])(train|training|test|valid|validation|val|dev|eval)(?=[^a-z]|$)")
_SAME = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation", "eval": "test"}
_LEFT_OUT = re.compile(r"\.|(cache-|tmp).*\.arrow$")
_SHOWN = 8


def model_folders(name: str) -> list[str]:
    """Returns the folders of a model in the local caches, the one to prefer first; none for a name that is no name."""
    if _NAME.fullmatch(name) is None:
        return []
    found = list(_snapshots("models", name))
    for root in _modelscope_roots():
        for folder in ("hub/models", "models", "hub", ""):
            found += _modelscope_folders(os.path.join(root, folder), name)
    return list(dict.fromkeys(found))


def data_files(text: str, is_data: Callable[[str], bool]) -> list[str]:
    """Returns the files of one split of a data set in the local caches, in order; none if it is in no cache.

    Args:
        text: ``ORG/NAME`` or ``ORG/NAME:SPLIT``. Without a split it is the only one, or "train" of several.
        is_data: Whether a file can be read as rows, by its path.

    Raises:
        SourceError: There is no such split, or the files of the split are not certainly one set of rows.
    """
    name, _, split = text.partition(":")
    if _NAME.fullmatch(name) is None:
        return []
    for folder, splits_of in _data_folders(name):
        files = [path for path in _walk(folder) if is_data(path)]
        if files:
            return _of_split(text, folder, {path: splits_of(os.path.relpath(path, folder)) for path in files}, split)
    return []


def cache_roots() -> list[str]:
    """Returns the folders that are searched, for errors."""
    return [_hub_root(), _arrow_root(), *_modelscope_roots()]


def _of_split(text: str, folder: str, splits: dict[str, str], wanted: str) -> list[str]:
    """Returns the files of the wanted split, all of one kind and one folder of the arrow cache."""
    names = sorted(set(splits.values()))
    if not wanted:
        wanted = names[0] if len(names) == 1 else "train"
    if wanted not in names:
        raise SourceError(
            f"{text}: the data set in {folder} has the splits {', '.join(names[:_SHOWN])}; name one of them, as "
            f"{text.partition(':')[0]}:{names[0]}."
        )
    found = [path for path, split in splits.items() if split == wanted]
    kinds = {re.sub(r"^.*?((\.[a-z]+)(\.(gz|zst))?)$", r"\1", os.path.basename(path).lower()) for path in found}
    arrow = {os.path.dirname(path) for path in found if path.endswith(".arrow")}
    if len(kinds) > 1 or len(arrow) > 1:
        shown = ", ".join(os.path.relpath(path, folder) for path in found[:_SHOWN])
        raise SourceError(
            f"{text}: the split {wanted!r} in {folder} exists in several forms ({shown}), which may be the same data "
            "twice. Pass the paths of those that you mean."
        )
    return found


def _data_folders(name: str) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Yields the folders in which a data set may lie, each with the function from a path in it to its split."""
    for folder in _snapshots("datasets", name):
        yield folder, _split_of
    for folder in _arrow_folders(_arrow_root(), name):
        yield folder, _arrow_split_of
    for root in _modelscope_roots():
        for parent in ("hub/datasets", "datasets"):
            for folder in _modelscope_folders(os.path.join(root, parent), name):
                yield folder, _split_of
            for folder in _arrow_folders(os.path.join(root, parent), name):
                yield folder, _arrow_split_of


def _split_of(path: str) -> str:
    """Returns the split of a file: a name such as ``train_prefs``, or a word in its path, else ``train``."""
    stem = _SHARD.sub("", os.path.basename(path).partition(".")[0].lower())
    if _STEM.fullmatch(stem):
        return _SAME.get(stem, stem)
    return next(reversed(splits_in(path)), "train")


def splits_in(path: str) -> list[str]:
    """Returns the splits that a path names, in its order: ``"data/dev/test.jsonl"`` -> validation, test."""
    return [_SAME.get(word, word) for word in _IN_PATH.findall(path.lower())]


def _arrow_split_of(path: str) -> str:
    """Returns the split of a file that `datasets` wrote: ``NAME-SPLIT.arrow``, ``NAME-SPLIT-00000-of-00002.arrow``."""
    return _SHARD.sub("", os.path.basename(path).removesuffix(".arrow")).rpartition("-")[2]


def _walk(folder: str) -> list[str]:
    """Returns the files in a folder and below, sorted by path, without hidden ones and what `map` of datasets wrote."""
    found: list[str] = []
    for where, folders, names in walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(where, name) for name in names if not _LEFT_OUT.match(name)]
    return sorted(found)


def _snapshots(kind: str, name: str) -> Iterator[str]:
    """Yields the snapshot of ``refs/main`` in the hub cache, else the only one."""
    folder = os.path.join(_hub_root(), f"{kind}--{name.replace('/', '--')}")
    snapshots = os.path.join(folder, "snapshots")
    if not os.path.isdir(snapshots):
        return
    try:
        with open(os.path.join(folder, "refs", "main"), encoding="utf-8") as file:
            main = os.path.join(snapshots, file.read(100).strip())
    except (OSError, UnicodeDecodeError):
        main = snapshots
    present = sorted(entry.path for entry in os.scandir(snapshots) if entry.is_dir())
    if main in present:
        yield main
    elif len(present) == 1:
        yield present[0]
    elif present:
        raise SourceError(
            f"{name}: {snapshots} holds several snapshots ({', '.join(map(os.path.basename, present[:_SHOWN]))}), and "
            "refs/main names none of them. Pass the path of one."
        )


def _arrow_folders(root: str, name: str) -> list[str]:
    """Returns the folder of a data set in a cache of the package `datasets`, which writes names its own way."""
    organisation, slash, own = name.rpartition("/")
    snake = re.sub(r"([a-z\d])([A-Z])", r"\1_\2", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", own)).lower()
    prefix = f"{organisation}___" if slash else ""
    found = (os.path.join(root, prefix + form) for form in dict.fromkeys((own, snake)))
    return [folder for folder in found if os.path.isdir(folder)]


def _modelscope_folders(parent: str, name: str) -> list[str]:
    """Returns the folders of a name, which ModelScope also writes with ``___`` for a dot."""
    forms = (name, name.replace(".", "___")) if "/" in name else ()
    return [path for form in forms if os.path.isdir(path := os.path.join(parent, *form.split("/")))]


def _hub_root() -> str:
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return os.path.expanduser(named or os.path.join(_home(), "hub"))


def _arrow_root() -> str:
    return os.path.expanduser(os.environ.get("HF_DATASETS_CACHE") or os.path.join(_home(), "datasets"))


def _home() -> str:
    """Returns the root of Hugging Face's caches."""
    home = os.environ.get("HF_HOME")
    return os.path.expanduser(home or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))


def _modelscope_roots() -> list[str]:
    return [os.path.expanduser(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope")]
