"""Manifest of a cache, `manifest.json`: its contents, what they were made from, and a checksum of every file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ms_prefstream.errors import CacheError, StateError
from ms_prefstream.mindrecord.files import FileNote, is_mindrecord, write_atomically

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LENGTHS = "lengths.mprefidx"
PLACES = "places.npy"
_FORMAT = "ms_prefstream cache"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The values in `manifest.json`.

    Attributes:
        about: Everything that decides the bytes: version, layout, task and options, tokenizer and template
            fingerprints, source fingerprint, rows of a part.
        columns: Name -> dtype and shape, in order.
        rows: Samples in the files.
        source_rows: Rows of the source, good or bad.
        dropped: Reason -> number of rows, and the origins of the first few.
        notes: How many samples were cut, rewritten by the template, differ at the boundary, lost their question.
        files: Name -> size, SHA-256, rows.
        library: Version of this library.
        reference: Of reference log-probabilities: their `reference_id`, the hash of their `tokens`, and their `file`;
            or None.
    """

    about: Mapping[str, Any]
    columns: Mapping[str, Any]
    rows: int
    source_rows: int
    dropped: Mapping[str, Any]
    notes: Mapping[str, int]
    files: Mapping[str, FileNote]
    library: str
    reference: Mapping[str, Any] | None = None

    def text(self) -> str:
        """Returns the text of the file; it ends in a checksum of itself."""
        values = {"format": _FORMAT, **vars(self)}
        values["files"] = {name: note._asdict() for name, note in sorted(self.files.items())}
        return json.dumps({**values, "checksum": checksum_of(values)}, indent=1, ensure_ascii=False) + "\n"

    @property
    def checksum(self) -> str:
        """Checksum of the whole cache, as the manifest holds that of every file."""
        found: str = json.loads(self.text())["checksum"]
        return found


def checksum_of(values: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of plain values, whatever the order of their keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def without_reference(manifest: Manifest) -> Manifest:
    """Returns the manifest of the same cache without its reference log-probabilities."""
    file = None if manifest.reference is None else manifest.reference["file"]
    files = {name: note for name, note in manifest.files.items() if name != file}
    return dataclasses.replace(manifest, files=files, reference=None)


def is_cache(folder: str) -> bool:
    """Returns whether a folder is a cache, complete or not."""
    try:
        names = os.listdir(folder)
        return any(name.startswith("part-") and name.endswith(".mindrecord") for name in names) or has_manifest(folder)
    except OSError:
        return False


def has_manifest(folder: str) -> bool:
    """Returns whether a folder has a manifest of this library, damaged or not.

    Raises:
        OSError: It cannot be read.
    """
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            return f'"{_FORMAT}"'.encode() in file.read(200)
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_manifest(folder: str) -> Manifest:
    """Reads the manifest of a cache.

    Raises:
        CacheError: It is missing or damaged.
        StateError: It is of another version.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
        checksum = values.pop("checksum")
        if values["format"] != _FORMAT:
            raise ValueError("it is of another kind")
        version = values["about"]["version"]
        if version == FORMAT_VERSION and checksum != checksum_of(values):
            raise ValueError("its checksum does not fit")
    except (FileNotFoundError, NotADirectoryError):
        raise CacheError(
            f"{path} is missing: the folder is no cache, was not copied whole, or its writing was interrupted. Copy it "
            "again, or write the cache again."
        ) from None
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror}. Check the disk and the permissions.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{path} is damaged ({error}). Copy it again, or write the cache again.") from error
    if version != FORMAT_VERSION:
        raise StateError(
            f"{path} is of version {version}, and this library reads version {FORMAT_VERSION}. Write the cache again."
        )
    files = {name: FileNote(**note) for name, note in values["files"].items()}
    return Manifest(**{name: values[name] for name in Manifest.__dataclass_fields__} | {"files": files})


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Writes the manifest into its folder atomically.

    Raises:
        CacheError: It cannot be written.
    """
    write_atomically(os.path.join(folder, MANIFEST), manifest.text().encode("utf-8", "surrogatepass"))


def check_files(folder: str, manifest: Manifest) -> None:
    """Checks that every file exists with its size, and that there is no further part; reads no file.

    Raises:
        CacheError: Names the first file that is missing, has another size, or does not belong there.
    """
    try:
        found = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    except OSError as error:
        raise CacheError(f"{folder} cannot be read: {error.strerror}. Check the permissions.") from error
    for name, note in manifest.files.items():
        path = os.path.join(folder, name)
        if name not in found:
            raise CacheError(f"{path} is missing. Copy the file again, or write the cache again.")
        if found[name] != note.bytes:
            how = "truncated" if found[name] < note.bytes else "too long"
            raise CacheError(
                f"{path} is {how}: it has {found[name]:,} bytes instead of {note.bytes:,}. Copy the file again, or "
                "write the cache again."
            )
    if foreign := sorted(name for name in found if is_mindrecord(name) and name not in manifest.files):
        raise CacheError(
            f"{os.path.join(folder, foreign[0])} does not belong to the cache, by its manifest. Remove it, or write "
            "the cache again."
        )
