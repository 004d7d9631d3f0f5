"""Manifest of a cache, `manifest.json`: its contents, what they were made from, and a checksum of every file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Annotated, Any, Literal

import msgspec
import numpy as np

from ms_prefstream.disk import MOST_BYTES, below, check_own, open_regular, parse_json, read_file, shown
from ms_prefstream.errors import CacheError, PrefStreamError, StateError, printable
from ms_prefstream.lengths.index_file import is_index
from ms_prefstream.mindrecord.files import Count, FileNote, Sha256, is_mindrecord, is_table, part_name, write_small
from ms_prefstream.mindrecord.megatron import (
    JOINED_FILE,
    JOINED_FILES,
    MEGATRON,
    TOKEN,
    index_bytes,
    is_index_of_tokens,
    is_tokens,
)
from ms_prefstream.mindrecord.ragged import check_ragged
from ms_prefstream.mindrecord.schema import BYTES
from ms_prefstream.mindrecord.sidecar import PLACE, SIDECAR, is_record_file, is_sidecar
from ms_prefstream.sample import TEXT

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LENGTHS = "lengths.mprefidx"
PLACES = "places.npy"
LOGPS = np.dtype("<f4")
"""Reference log-probabilities, two a row."""
CACHE_FILE = (
    rf"part-\d{{5,}}\.mindrecord(\.db)?|{JOINED_FILE}|lengths\.mprefidx|places\.npy|reference-[0-9a-f]{{12}}\.npy"
)
"""Names of the files of a cache beside its manifest, as a regular expression."""

_FORMAT = "ms_prefstream cache"
_WHAT = "the manifest"
_REMEDY = "Copy it again, or write the cache again."


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
        notes: How many samples have each note of `ms_prefstream.sample.Note`, by its name.
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
        values["files"] = {name: msgspec.structs.asdict(note) for name, note in sorted(self.files.items())}
        return json.dumps({**values, "checksum": checksum_of(values)}, indent=1, ensure_ascii=False) + "\n"

    def bytes(self) -> bytes:
        """Returns the bytes of the file."""
        return self.text().encode("utf-8", "surrogatepass")

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
    except OSError:
        return False
    return any(name.startswith("part-") and name.endswith(".mindrecord") for name in names) or has_manifest(folder)


def has_manifest(folder: str) -> bool:
    """Returns whether a folder has a manifest of this library, of any version and with any values."""
    return is_own(os.path.join(folder, MANIFEST), is_cache_file)


def is_own(path: str, is_known: Callable[[IO[bytes], str], bool]) -> bool:
    """Returns whether a regular file is empty, or known by its content and its name; False if it is another user's.

    Raises:
        OSError: It cannot be read.
    """
    try:
        with open_regular(path, CacheError, "the file") as file:
            return not os.fstat(file.fileno()).st_size or is_known(file, os.path.basename(path))
    except (FileNotFoundError, PermissionError):
        return False
    except PrefStreamError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, (NotADirectoryError, PermissionError)):
            raise cause from None
        return False


def is_cache_file(file: IO[bytes], name: str) -> bool:
    """Returns whether an open file is the one of this name in a cache, by what it holds.

    Headers and descriptions must be whole; the rows may be damaged.
    """
    if name == MANIFEST:
        return names_format(file, _FORMAT)
    if name == LENGTHS:
        return is_index(file)
    if name.endswith(SIDECAR):
        return is_sidecar(file)
    if name == PLACES:
        return is_table(file, PLACE, ())
    if name.endswith(".bin"):
        return is_tokens(file)
    if name.endswith(".idx"):
        return is_index_of_tokens(file)
    return is_table(file, LOGPS, (1,), (2,)) if name.endswith(".npy") else is_record_file(file)


def check_cache_file(path: str) -> None:
    """Raises CacheError if something is at the path of a file of a cache that this library has not written."""
    check_own(path, lambda file: is_cache_file(file, os.path.basename(path)), CacheError, "the file")


def names_format(file: IO[bytes], format: str) -> bool:
    """Returns whether an open file holds a JSON object of this format, with any values."""
    try:
        values = json.loads(file.read(MOST_BYTES))
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("format") == format


_Carried = Literal["int64", "float32", "text"]


class _Fingerprint(msgspec.Struct):
    tokenizer: str | None
    template: str | None
    boundary: str
    special_tokens_in_content: str
    carry: str | None = None


class _Task(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(pattern="^[a-z][a-z-]{0,31}$")]
    margin: bool = False
    max_length: Count | None = None
    seq_length: Count | None = None  # of RLHF


class _About(msgspec.Struct):
    version: Literal[1]
    layout: Literal["ragged", "mindrlhf", "mindrlhf-grpo", "mindformers", "megatron"]
    task: _Task
    width: Count | None
    pad_token_id: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    rows_per_part: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    source: str
    tokenizer: str | None
    fingerprint: _Fingerprint
    contents: str | None
    on_bad_row: str
    library: str
    reference_id: str | None


class _Column(msgspec.Struct, forbid_unknown_fields=True):
    dtype: Literal["int32", "int64", "float32", "bytes"]
    shape: list[Annotated[int, msgspec.Meta(ge=-1, le=2**53)]]


class _Dropped(msgspec.Struct, forbid_unknown_fields=True):
    rows: Count
    first: list[str]


class _Reference(msgspec.Struct, forbid_unknown_fields=True):
    reference_id: Annotated[str, msgspec.Meta(min_length=1)]
    tokens: Sha256
    file: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """Fields of the file; `about`, `task` and `fingerprint` may have more."""

    format: Literal["ms_prefstream cache"]
    about: _About
    columns: dict[str, _Column]
    rows: Count
    source_rows: Count
    dropped: dict[str, _Dropped]
    notes: dict[str, Count]
    files: dict[Annotated[str, msgspec.Meta(pattern=f"^({CACHE_FILE})$")], FileNote]
    library: str
    reference: _Reference | None
    checksum: str

    def check(self) -> None:
        """Raises ValueError if fields contradict each other."""
        if self.rows > self.source_rows:
            raise ValueError(f"field rows is {self.rows}, and source_rows is {self.source_rows}")
        if self.about.layout == MEGATRON:
            self._check_joined()
            return
        parts = {name: note for name, note in self.files.items() if name.endswith(".mindrecord")}
        last = part_name((self.source_rows - 1) // self.about.rows_per_part)
        for name in (LENGTHS, PLACES, *(part + SIDECAR for part in parts)):
            if name not in self.files:
                raise ValueError(f"field files lacks {name}")
        if beyond := [name for name in parts if (len(name), name) > (len(last), last)]:
            raise ValueError(f"field files has {beyond[0]}, and the last part is {last}")
        if self.rows != sum(note.rows for note in parts.values()):
            raise ValueError(f"field rows is {self.rows}, and the files have other numbers of rows")
        names = [] if self.reference is None else [self.reference.file]
        if names != [name for name in self.files if name.startswith("reference-")]:
            raise ValueError("fields reference and files differ in the file of log-probabilities")
        if self.about.layout == "ragged":
            margin = {"margin": "float32"} if self.about.task.margin else {}
            check_ragged({name: one.dtype for name, one in self.columns.items()}, margin)
        carried = msgspec.json.decode(
            self.about.fingerprint.carry or "{}", type=dict[str, _Carried | tuple[_Carried, Any]]
        )
        for path, spec in carried.items():
            dtype = spec if isinstance(spec, str) else spec[0]
            column = self.columns.get(path.rpartition(".")[2])
            if column is None or column.dtype != (BYTES if dtype == TEXT else dtype):
                raise ValueError(f"field columns lacks {path}, which is carried as {dtype}")

    def _check_joined(self) -> None:
        """Raises ValueError unless the files are those of the layout `megatron`, with sizes that fit together."""
        expected = sorted([LENGTHS, *JOINED_FILES])
        if sorted(self.files) != expected:
            raise ValueError(f"field files has {', '.join(sorted(self.files))}; expected {', '.join(expected)}")
        if wrong := [name for name in JOINED_FILES if self.files[name].rows != self.rows]:
            raise ValueError(f"field rows is {self.rows}, and {wrong[0]} has {self.files[wrong[0]].rows}")
        tokens, indexes = [self.files[name].bytes for name in JOINED_FILES[::2]], JOINED_FILES[1::2]
        if tokens[::2] != tokens[1::2] or any(size % TOKEN.itemsize for size in tokens):
            raise ValueError("field files gives tokens and labels other sizes")
        if any(self.files[name].bytes != index_bytes(self.rows) for name in indexes):
            raise ValueError(f"field files gives an .idx another size than that of {self.rows} rows")


def check_about(about: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
    """Raises ValueError unless these are values of the fields `about` and `columns` of a manifest."""
    msgspec.convert(about, _About)
    msgspec.convert(columns, dict[str, _Column])


def read_manifest(folder: str) -> Manifest:
    """Reads the manifest of a cache.

    Raises:
        CacheError: It is missing or damaged.
        StateError: It is of another version.
    """
    path = below(folder, MANIFEST)
    try:
        if not os.path.isdir(folder):
            raise FileNotFoundError
        text = read_file(path, CacheError, _WHAT)
    except FileNotFoundError:
        raise CacheError(
            f"{shown(path)} is missing: the folder is no cache, was not copied whole, or its writing was interrupted. "
            f"{_REMEDY}"
        ) from None
    values = parse_json(text, dict[str, Any], path, CacheError, _WHAT)
    try:
        if values.get("format") != _FORMAT:
            raise ValueError("it is of another kind")
        about = values.get("about")
        version = about.get("version") if isinstance(about, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise StateError(
                f"{shown(path)} is of version {printable(str(version), 30)}, and this library reads version "
                f"{FORMAT_VERSION}. Write the cache again."
            )
        if values.pop("checksum", None) != checksum_of(values):
            raise ValueError("its checksum does not fit")
        file = msgspec.json.decode(text, type=_File)
        file.check()
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise CacheError(f"{shown(path)} is damaged ({printable(str(error))}). {_REMEDY}") from error
    return Manifest(**{name: values[name] for name in Manifest.__dataclass_fields__} | {"files": file.files})


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Writes the manifest into its folder atomically.

    Raises:
        CacheError: It cannot be written, or another file is at its place.
    """
    check_cache_file(os.path.join(folder, MANIFEST))
    write_small(os.path.join(folder, MANIFEST), manifest.bytes())


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
        path = below(folder, name)
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
            f"{below(folder, foreign[0])} does not belong to the cache, by its manifest. Remove it, or write "
            "the cache again."
        )
