"""Verdicts on tokenizer.json files: what loading one has shown, stored in the user's cache folder.

A verdict holds for one content of the files and one version of each library that has a part in it. It is data only. A
file that cannot be read, is damaged or belongs to somebody else counts as none, and so does a folder without access.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from ms_prefstream.disk import open_regular, parse_json, write_file
from ms_prefstream.encode.backends.tokenizer_json import Spec, vocabulary
from ms_prefstream.encode.backends.tokenizer_source import TokenizerSource
from ms_prefstream.errors import TokenizerError
from ms_prefstream.version import VERSION

_REVISION = 1  # goes up when a verdict is found in another way or holds other things
_LIBRARIES = ("tokenizers", "tiktoken", "fastokens")
_MOST_BYTES = 8 * 2**20
_WHAT = "the verdict on a tokenizer"

_Id = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Added(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An added token as tokenizer.json describes it."""

    id: _Id
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class Verdict(msgspec.Struct, forbid_unknown_fields=True):
    """What loading a tokenizer.json has shown.

    Attributes:
        key: The files and libraries that it holds for, see `key_of`.
        added_tokens: All added tokens with the ids that the `tokenizers` package gives them.
        add_bos: Whether the tokenizer sets BOS before plain text.
        fingerprint: That of the tokenizer.
        reserved: Its reserved tokens.
        refusals: For each backend that was tried why it does not fit; an empty string where it was proven equal.
        unranked: Tokens of the vocabulary that tiktoken must not have, if it was proven.
    """

    key: str
    added_tokens: list[Added]
    add_bos: bool
    fingerprint: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    reserved: dict[str, _Id]
    refusals: dict[str, str] = {}
    unranked: list[str] = []

    def fits(self, spec: Spec) -> bool:
        """Returns whether it can be a verdict on this file, whose added tokens are not numbered yet."""
        vocab = vocabulary(spec)
        added = {token.content: token.id for token in self.added_tokens}
        highest = max(len(vocab), *vocab.values()) + len(added)
        return (
            len(added) == len(self.added_tokens) == len(set(added.values()))
            and added.keys() == {entry["content"] for entry in spec["added_tokens"] if entry["content"]}
            and max(added.values(), default=0) <= highest
            and all(added.get(name, vocab.get(name)) == id_ for name, id_ in self.reserved.items())
        )


def key_of(source: TokenizerSource, text: bytes) -> str:
    """Returns the SHA-256 of a tokenizer's files and of the versions of all that has a part in a verdict.

    Args:
        source: The tokenizer.
        text: Its tokenizer.json.
    """
    names = source.names
    rest = [source.config, source.has_config, source.legacy_added, source.chat_template, names.tokens, names.others]
    digest = hashlib.sha256(text)
    digest.update(repr([rest, _versions()]).encode())
    return digest.hexdigest()


@functools.cache
def _versions() -> list[Any]:
    found: list[Any] = [_REVISION, VERSION, platform.machine()]
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append((name, importlib.metadata.version(name)))
    return found


def verdict_path(key: str, environment: Mapping[str, str] = os.environ) -> pathlib.Path | None:
    """Returns where the verdict of a key is stored; None if the environment names no folder for caches."""
    home = environment.get("HOME") or ""
    folders = [environment.get("XDG_CACHE_HOME") or "", os.path.join(home, ".cache") if home else ""]
    # The XDG specification has relative paths ignored.
    folder = next(filter(os.path.isabs, folders), None)
    return None if folder is None else pathlib.Path(folder, "ms_prefstream", "tokenizers", f"{key}.json")


def read_verdict(key: str) -> Verdict | None:
    """Returns the stored verdict of a key, or None."""
    path = verdict_path(key)
    if path is None:
        return None
    with contextlib.suppress(OSError, TokenizerError), open_regular(path, TokenizerError, _WHAT) as file:
        found = os.fstat(file.fileno())
        if found.st_uid == os.geteuid() and found.st_size <= _MOST_BYTES:
            verdict = parse_json(file.read(_MOST_BYTES), Verdict, path, TokenizerError, _WHAT)
            return verdict if verdict.key == key else None
    return None


def store_verdict(verdict: Verdict) -> None:
    """Stores a verdict, if the user's cache folder can be written."""
    path, data = verdict_path(verdict.key), msgspec.json.encode(verdict)
    if path is None or len(data) > _MOST_BYTES:
        return
    with contextlib.suppress(OSError, ValueError, TokenizerError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(path, data, TokenizerError, _WHAT)
