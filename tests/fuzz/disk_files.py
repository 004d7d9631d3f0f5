"""Targets: the files that this library writes and reads back, mutated as data and sealed with fitting checksums."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import random
import sqlite3
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ms_prefstream.cache.parts import ROW
from ms_prefstream.cache.reference import _digest
from ms_prefstream.cache.verify import verify
from ms_prefstream.encode.backends import tokenizers_backend
from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.mindrecord.files import npy_bytes
from ms_prefstream.mindrecord.megatron import joined_name
from ms_prefstream.sources.own_files import own_kind
from tests.cache.places import rows_with_bad, source
from tests.files_on_disk import (
    COUNT,
    KINDS,
    PLACES,
    SQL,
    Kind,
    index_of,
    index_parts,
    resealed,
    same_shapes,
    void,
    write_tokens,
)
from tests.fuzz.mutations import array, as_json, json_value, raw, text
from tests.fuzz.small_tokenizers import write_chatml
from tests.test_files_on_disk import fresh


@dataclass(frozen=True)
class Codec:
    """How a kind of file is mutated.

    Attributes:
        read: The file -> its contents as data.
        mutate: Changes the data.
        write: Writes data in the place of the file, with all checksums.
    """

    read: Callable[[pathlib.Path], Any]
    mutate: Callable[[Any, random.Random], Any]
    write: Callable[[Kind, pathlib.Path, Any], None]


class DiskFiles:
    """Files of some kinds; one of them is wrong in each case."""

    place = r"/|the state|reference returned"

    def __init__(self, folder: pathlib.Path, kinds: Mapping[str, tuple[Kind, Codec]]) -> None:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        self._folder, self._kinds = folder, kinds
        for place in {kind.place for kind, _ in kinds.values()}:
            (folder / place).mkdir()
            (PLACES | MORE_PLACES)[place](folder / place)
        self._data, self._right = {}, {}
        for name, (kind, codec) in kinds.items():
            made = folder / kind.place
            path = kind.file(made)
            self._data[name] = codec.read(path), path.read_bytes()
            self._right[name] = kind.read(fresh(made, folder / "copy"), made)

    def start(self, draw: random.Random) -> Any:
        name = draw.choice(sorted(self._kinds))
        return name, self._data[name][0], None

    def mutate(self, value: Any, draw: random.Random) -> Any:
        name, data, damaged = value
        if damaged is not None or draw.random() < 0.15:
            return name, data, raw(damaged or self._data[name][1], draw)
        return name, self._kinds[name][1].mutate(data, draw), None

    def run(self, value: Any) -> bool:
        name, data, damaged = value
        kind, codec = self._kinds[name]
        made = self._folder / kind.place
        folder = fresh(made, self._folder / "copy")
        path = kind.file(folder)
        if damaged is None:
            codec.write(kind, path, data)
        else:
            kind.put(path, damaged)
        found, right = kind.read(folder, made), self._right[name]
        fits = same_shapes if name.startswith("log-probabilities") else kind.fits  # any numbers may be right
        assert found == right or fits(found, right) or kind.may_differ(found, right), "a wrong result"
        return True

    def is_parsed(self, value: Any) -> bool:
        return value[2] is None


# Codecs.


def put_bytes(kind: Kind, path: pathlib.Path, data: bytes) -> None:
    kind.put(path, data)


def put_array(kind: Kind, path: pathlib.Path, values: Any) -> None:
    kind.put(path, npy_bytes(values))


def put_part_of_reference(_: Kind, path: pathlib.Path, values: Any) -> None:
    data = npy_bytes(values)
    path.write_bytes(data + _digest(str(path), data))


def read_index(path: pathlib.Path) -> Any:
    *arrays, about = index_parts(path.read_bytes())
    return arrays, json.loads(about.tobytes())


def mutate_index(value: Any, draw: random.Random) -> Any:
    arrays, about = value
    at = draw.randrange(len(arrays) + 1)
    if at == len(arrays):
        return arrays, json_value(about, draw)
    return [array(one, draw) if number == at else one for number, one in enumerate(arrays)], about


def put_index(kind: Kind, path: pathlib.Path, value: Any) -> None:
    arrays, about = value
    kind.put(path, index_of([*arrays, np.frombuffer(as_json(about), np.uint8)]))


def read_journal(path: pathlib.Path) -> Any:
    """The first line, and (rows, body) of each block."""
    data = path.read_bytes()
    begin = data.index(b"\n") + 1
    line, blocks = data[:begin], []
    while begin < len(data):
        rows = int.from_bytes(data[begin + 4 : begin + 8], "little")
        blocks.append((rows, data[begin + 8 : begin + 8 + 13 * rows]))
        begin += 8 + 13 * rows
    return line, blocks


def mutate_journal(value: Any, draw: random.Random) -> Any:
    line, blocks = value
    at = draw.randrange(len(blocks) or 1)
    changed = list(blocks)
    change = draw.randrange(7)
    if change == 0:
        return text(line.decode("latin-1"), draw).encode("latin-1", "replace"), blocks
    if change == 1 or not blocks:
        return line, [*blocks, *blocks[-1:]] if draw.random() < 0.5 else blocks[:at]
    rows, body = blocks[at]
    if change == 2:
        changed[at] = draw.choice([0, 1, rows - 1, rows + 1, 2**31, -1]) % 2**32, body
    elif change == 3:
        changed[at] = rows, raw(body, draw)
    else:
        numbers = np.frombuffer(body[: len(body) // 4 * 4], draw.choice(["<i4", "|u1"]))
        changed[at] = rows, array(numbers, draw).tobytes() if numbers.size else b""
    return line, changed


def put_journal(_: Kind, path: pathlib.Path, value: Any) -> None:
    line, blocks = value
    heads = [zlib.crc32(body).to_bytes(4, "little") + rows.to_bytes(4, "little") + body for rows, body in blocks]
    path.write_bytes(line + b"".join(heads))


def read_note(path: pathlib.Path) -> Any:
    values = json.loads(path.read_bytes())
    return values, np.frombuffer(base64.b64decode(values["rows"]), ROW)


def mutate_note(value: Any, draw: random.Random) -> Any:
    values, rows = value
    if draw.random() < 0.5:
        return json_value(values, draw), rows
    names = rows.dtype.names if draw.random() < 0.1 else None
    return values, array(rows[draw.choice(names)] if names else rows, draw)


def put_note(_: Kind, path: pathlib.Path, value: Any) -> None:
    values, rows = value
    if isinstance(values, dict) and isinstance(values.get("rows"), str):
        values = {**values, "rows": base64.b64encode(rows.tobytes()).decode()}
    path.write_bytes(sealed(values))


def sealed(values: Any) -> bytes:
    try:
        return resealed(values)
    except UnicodeError:  # surrogates have no checksum
        return as_json(values)


def read_lines(path: pathlib.Path) -> Any:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def put_lines(_: Kind, path: pathlib.Path, value: Any) -> None:
    path.write_bytes(b"".join(as_json(line) + b"\n" for line in value) if isinstance(value, list) else as_json(value))


def mutate_script(value: Any, draw: random.Random) -> Any:
    column = draw.choice(["ROW_ID", "ROW_GROUP_ID", "PAGE_ID_BLOB", "PAGE_OFFSET_BLOB", "PAGE_OFFSET_BLOB_END", "X"])
    number = draw.choice([*SQL, str(draw.randrange(10**6)), f"{column} + {draw.randrange(-9, 9)}"])
    row = draw.randrange(-1, 20)
    return value + draw.choice([
        f"UPDATE OR REPLACE INDEXES SET {column} = {number} WHERE ROW_ID = {row};",
        f"UPDATE OR REPLACE INDEXES SET {column} = {number} WHERE ROW_ID = {row};",
        f"UPDATE OR REPLACE INDEXES SET {column} = {number};",
        f"DELETE FROM INDEXES WHERE ROW_ID > {row};",
        f"INSERT OR REPLACE INTO INDEXES SELECT * FROM INDEXES WHERE ROW_ID = {row};",
        f"INSERT OR REPLACE INTO INDEXES(ROW_ID, PAGE_ID_BLOB, {column}) VALUES ({number}, {row}, {number});",
        f"ALTER TABLE INDEXES RENAME COLUMN {column} TO Y;",
        "CREATE TABLE IF NOT EXISTS SHARD_NAME(NAME);",
    ])  # fmt: skip


def put_script(_: Kind, path: pathlib.Path, script: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in script.split(";"):
            try:
                connection.execute(statement)
            except sqlite3.Error:
                continue
    connection.close()


JSON = Codec(
    lambda path: json.loads(path.read_bytes()), json_value, lambda _, path, v: void(path.write_bytes(as_json(v)))
)
SEALED = Codec(
    lambda path: json.loads(path.read_bytes()), json_value, lambda _, path, v: void(path.write_bytes(sealed(v)))
)
INDEX = Codec(read_index, mutate_index, put_index)
ARRAY = Codec(np.load, array, put_array)
BYTES = Codec(pathlib.Path.read_bytes, raw, put_bytes)
CODECS = {
    "length index": INDEX,
    "part range of a length index": INDEX,
    "lengths of a cache": INDEX,
    "index journal": Codec(read_journal, mutate_journal, put_journal),
    "manifest": SEALED,
    "plan of a part range": SEALED,
    "finished manifest": SEALED,
    "plan": JSON,
    "state": JSON,
    "state of a run": JSON,
    "note on a part": Codec(read_note, mutate_note, put_note),
    "places": ARRAY,
    "log-probabilities": ARRAY,
    "log-probabilities of a part": Codec(np.load, array, put_part_of_reference),
    "part": BYTES,  # their rows have checksums, which `Kind.put` computes
    "finished part": BYTES,
    "finished part of tokens": BYTES,
    "sidecar": Codec(lambda _: "", mutate_script, put_script),
    "quarantine": Codec(read_lines, json_value, put_lines),
}


# Files that have no entry in `KINDS`.


def make_joined(folder: pathlib.Path) -> None:
    """A finished cache of the layout megatron."""
    write_tokens(pathlib.Path(source(folder, rows_with_bad(COUNT))), folder / "out")


def read_joined(folder: pathlib.Path, _: pathlib.Path) -> Any:
    path = folder / "out" / joined_name("chosen_labels", ".idx")
    kind = own_kind(str(path))
    problems = [one.problem for one in verify(str(folder / "out")) if one.name != path.name]
    return kind is None or str(kind), problems


def mutate_numbers(value: bytes, draw: random.Random) -> bytes:
    """Changes a number of an .idx, in its header or behind it."""
    begin = draw.choice([0, 9, 17, 18, 26, 34]) if draw.random() < 0.5 else 34
    dtype = draw.choice(["|u1", "<i4", "<u8"])
    end = begin + (len(value) - begin) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize
    numbers = np.frombuffer(value[begin:end], dtype)
    return value[:begin] + array(numbers, draw).tobytes() + value[end:]


def make_verdict(folder: pathlib.Path) -> None:
    write_chatml(folder / "tokenizer")
    read_with_verdict(folder, folder)


def read_with_verdict(folder: pathlib.Path, made: pathlib.Path) -> Any:
    """The ids that a tokenizer gives; its path does not count for its verdict."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    tokenizers_backend._known.clear()
    tokenizer = load_tokenizer(made / "tokenizer")
    return [ids.tolist() for ids in tokenizer.encoder.encode(["How do you do?\n", "你好 42"], Place.START)]


MORE_PLACES = {"joined": make_joined, "verdict": make_verdict}
MORE_KINDS = {
    "tokens": (
        Kind(
            f"out/{joined_name('chosen_labels', '.idx')}", "mindrecord/megatron.py: join",
            "mindrecord/megatron.py: is_index_of_tokens", "header, size", "size of its rows", "joined", read_joined,
            lambda _: iter(()), fits=lambda got, right: got[1] == right[1],
        ),
        Codec(pathlib.Path.read_bytes, mutate_numbers, put_bytes),
    ),
    "verdict": (
        Kind(
            "cache/ms_prefstream/tokenizers/*.json", "encode/backends/verdict.py: store_verdict",
            "encode/backends/verdict.py: read_verdict", "Verdict", "8 MiB", "verdict", read_with_verdict,
            lambda _: iter(()),
        ),
        JSON,
    ),
}  # fmt: skip


def of(*names: str) -> Callable[[pathlib.Path], DiskFiles]:
    """Returns what makes the target of some kinds of files."""
    kinds = {name: MORE_KINDS[name] if name in MORE_KINDS else (KINDS[name], CODECS[name]) for name in names}
    return lambda folder: DiskFiles(folder, kinds)
