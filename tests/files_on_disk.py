"""All files that this library writes and reads back, one entry each: made, read, and doctored with right checksums.

ARCHITECTURE.md has the same table in short. `tests/test_files_on_disk.py` damages every entry.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import gzip
import hashlib
import io
import json
import pathlib
import random
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pytest
import zstandard

import ms_prefstream as mps
from ms_prefstream.cache.parts import ROW
from ms_prefstream.lengths import build, build_index, open_index
from ms_prefstream.lengths.build import JOURNAL_SUFFIX
from ms_prefstream.lengths.index import first_wrong
from ms_prefstream.mindrecord.files import npy_bytes
from ms_prefstream.mindrecord.manifest import checksum_of
from ms_prefstream.mindrecord.sidecar import read_offsets
from ms_prefstream.sources.open import open_source
from tests.cache.places import PART, rows_with_bad, source, stream_of
from tests.cache.test_interrupted import fail_at
from tests.cache.test_reference import Counting, logps
from tests.helpers import Positioned, pairs
from tests.lengths.test_build_index import Fails, Interrupted
from tests.pools import pairs as odd_pairs
from tests.pools import recipe

COUNT = 40  # rows of an index or a cache
ZSTD = zstandard.ZstdCompressor(write_checksum=True)
FINGERPRINT = {"data": "d1", "task": "DPO(60)"}
TASK = mps.DPO(128)
HOSTILE: list[Any] = [
    None, True, -1, 0, 1.5, 2**31, 2**63, 2**70, 10**400, 1e308, float("nan"), "", "x" * 5000, "../../thesis.txt",
    "\x1b]0;owned\x07", "part-00000.mindrecord", [], {}, [[[[[[]]]]]], {"a": {"b": {}}}, [0] * 100,
]  # fmt: skip
INTEGERS = [-1, 0, 1, 2, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]
DTYPES = ["<f8", ">f4", "<f2", "<i4", "<i8", "|u1", "|b1", "|O", "|S4", "<U1", "<M8[s]", "|V8", "x", "", "<f4,<f4"]
SHAPES = ["()", "(0,)", "(40,)", "(40, 3)", "(2, 40)", "(41, 2)", "(39, 2)", "(-40, -2)", "(99999999999, 2)", "(4e, 2)",
    "(40, 2.0)", "[40, 2]", "(True, 2)", "__import__('os').abort()", "((((((((((("]  # fmt: skip

Read = Callable[[pathlib.Path, pathlib.Path], Any]
Doctored = Iterator[tuple[str, bytes]]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        path: Where it lies in its place, as a glob pattern.
        writer, reader, schema, limits: Where the code is, and what it holds the file against.
        place: The folder that holds it, by its name in `PLACES`.
        read: Folder, and the folder that it is a copy of -> what users get, to be compared.
        doctored: Yields contents that are wrong in one value and right in checksums, once they are `put`.
        put: Writes contents, with the checksums that other files have of them.
        fits: What is got, what is right -> whether the former may be got from a doctored file.
        may_differ: The same for a file that is damaged at random; False without it.
    """

    path: str
    writer: str
    reader: str
    schema: str
    limits: str
    place: str
    read: Read
    doctored: Callable[[pathlib.Path], Doctored]
    put: Callable[[pathlib.Path, bytes], None] = field(default=lambda path, data: void(path.write_bytes(data)))
    fits: Callable[[Any, Any], bool] = lambda got, right: bool(got == right)
    may_differ: Callable[[Any, Any], bool] = lambda got, right: False

    def file(self, folder: pathlib.Path) -> pathlib.Path:
        """The file in a copy of its place."""
        (path,) = folder.glob(self.path)
        return path


def void(_: Any) -> None:
    pass


# Places.


def loader_of(count: int = COUNT) -> Any:
    return recipe(odd_pairs(count)).loader()


def built(path: pathlib.Path, loader: Any) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "CHUNK", 10)
        build_index(COUNT, loader, path, FINGERPRINT, origin=str, raise_malformed=False)


def make_index(folder: pathlib.Path) -> None:
    built(folder / "x", loader_of())


def make_journal(folder: pathlib.Path) -> None:
    with pytest.raises(Interrupted):
        built(folder / "x", Fails(loader_of(), 30))


def write(rows: pathlib.Path, out: pathlib.Path, model: Any = logps, **options: Any) -> Any:
    stream = stream_of(str(rows), TASK, mps.Pad(4))
    return mps.write_cache(stream, out, rows_per_part=PART, reference=model, reference_id="sft", **options)


def make_cache(folder: pathlib.Path) -> None:
    source(folder, rows_with_bad(COUNT))
    write(folder / "rows.jsonl", folder / "out")


def make_staged(folder: pathlib.Path) -> None:
    """A cache that is interrupted while its log-probabilities are computed."""
    make_cache(folder)
    (folder / "out").rename(folder / "right")
    with pytest.raises(KeyboardInterrupt):
        write(folder / "rows.jsonl", folder / "out", Counting(stop=6))


def make_unsealed(folder: pathlib.Path) -> None:
    """The same without the manifest: its parts are finished and its tables are not."""
    make_staged(folder)
    (folder / "out.writing" / "new" / "manifest.json").unlink()


def make_ranges(folder: pathlib.Path) -> None:
    """A cache and a length index whose part ranges are finished and not merged."""
    path = source(folder, rows_with_bad(COUNT))
    for share in ((1, 2), (2, 2)):
        mps.write_cache(stream_of(path, TASK), folder / "out", rows_per_part=PART, part_range=share)
        options: dict[str, Any] = {"task": TASK, "tokenizer": "bytes", "verbose": False}
        mps.build_index(path, folder / "x", part_range=share, **options)


def write_tokens(rows: pathlib.Path, out: pathlib.Path) -> None:
    mps.write_cache(stream_of(str(rows), TASK), out, rows_per_part=PART, layout="megatron")


def make_tokens(folder: pathlib.Path) -> None:
    """A cache of the layout megatron that is interrupted when its second part begins."""
    path = source(folder, rows_with_bad(COUNT))
    with pytest.MonkeyPatch.context() as patched:
        fail_at(patched, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            write_tokens(pathlib.Path(path), folder / "out")


def make_text(folder: pathlib.Path) -> None:
    text = b"".join(orjson.dumps(row) + b"\n" for row in pairs(6))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(text))
    (folder / "rows.jsonl.zst").write_bytes(ZSTD.compress(text))


def quarantining(folder: pathlib.Path) -> mps.Stream:
    rows: list[Any] = [{**row, "rejected": row["chosen"]} if at % 5 == 1 else row for at, row in enumerate(pairs(12))]
    options: dict[str, Any] = {"on_bad_row": "drop", "quarantine": folder / "bad.jsonl", "window": 2}
    return mps.stream(rows, task=TASK, tokenizer="bytes", batching=mps.Pad(2), **options)


def make_quarantine(folder: pathlib.Path) -> None:
    list(quarantining(folder).batches())


def stateful() -> mps.Stream:
    options: dict[str, Any] = {"batching": mps.Bucket(2, multiple_of=64), "window": 2, "steps_per_epoch": 20}
    return mps.stream(Positioned(COUNT), task=TASK, tokenizer="bytes", **options)


def resumable() -> mps.Stream:
    return mps.stream(pairs(17), task=TASK, tokenizer="bytes", batching=mps.Pad(4), seed=1)


def make_states(folder: pathlib.Path) -> None:
    stream = stateful()
    for _ in zip(range(5), stream.batches(), strict=False):
        pass
    writer = mps.StreamCheckpoint(stream, folder)
    writer.step_end(4)
    (folder / "x-1_1.ckpt").touch()
    saved(folder, 1)


def saved(folder: pathlib.Path, step: int, monitor: Any = None) -> None:
    """Writes the state beside a checkpoint of MindFormers."""
    from ms_prefstream.adapters.run_states import save_state

    monitor = monitor or type("Monitor", (), {"_append_step_num": 0})()
    monitor.latest_ckpt_file_name = str(folder / f"x-1_{step}.ckpt")
    save_state(resumable().dataset(), monitor, step)


PLACES: dict[str, Callable[[pathlib.Path], None]] = {
    "index": make_index,
    "journal": make_journal,
    "cache": make_cache,
    "staged": make_staged,
    "unsealed": make_unsealed,
    "ranges": make_ranges,
    "tokens": make_tokens,
    "text": make_text,
    "quarantine": make_quarantine,
    "states": make_states,
}


# Readers.


def read_an_index(folder: pathlib.Path, _: pathlib.Path) -> Any:
    index = open_index(folder / "x", FINGERPRINT, COUNT)
    assert index.fingerprint == FINGERPRINT
    return [array.tolist() for array in (index.lengths, index.keys, index.verdict)]


def resume_an_index(folder: pathlib.Path, _: pathlib.Path) -> Any:
    path = folder / f"x{JOURNAL_SUFFIX}"
    data = path.read_bytes()
    try:
        built(folder / "x", loader_of())
    except mps.PrefStreamError as error:  # it is not known to be ours
        assert "holds something else" in str(error)  # noqa: PT017
        assert path.read_bytes() == data
        raise
    assert not path.exists()
    return read_an_index(folder, folder)


def batches_of(out: pathlib.Path) -> Any:
    stream = stream_of(str(out), TASK, mps.Pad(4), tokenizer=None, drop_remainder=False)
    return [{name: array.tolist() for name, array in batch.items()} for batch in stream.batches()]


def read_a_cache(folder: pathlib.Path, _: pathlib.Path) -> Any:
    from ms_prefstream.cache.verify import verify

    with contextlib.suppress(mps.PrefStreamError):
        verify(str(folder / "out"))
    return batches_of(folder / "out")


def read_a_sidecar(folder: pathlib.Path, _: pathlib.Path) -> Any:
    return read_offsets(str(folder / "out" / "part-00000.mindrecord")).tolist()


def resume_a_cache(folder: pathlib.Path, made: pathlib.Path) -> Any:
    work = folder / "out.writing"
    before = contents(work)
    try:
        write(made / "rows.jsonl", folder / "out")
    except mps.PrefStreamError as error:
        assert "somebody else's files are there" not in str(error) or contents(work) == before  # noqa: PT017
        raise
    assert not work.exists()
    return batches_of(folder / "out")


def merge_a_cache(folder: pathlib.Path, _: pathlib.Path) -> Any:
    mps.merge(folder / "out")
    return batches_of(folder / "out")


def merge_an_index(folder: pathlib.Path, _: pathlib.Path) -> Any:
    index: Any = mps.merge(folder / "x")
    return [array.tolist() for array in (index.lengths, index.keys, index.verdict)]


def resume_tokens(folder: pathlib.Path, made: pathlib.Path) -> Any:
    write_tokens(made / "rows.jsonl", folder / "out")
    return {name: data for name, data in contents(folder / "out").items() if name.endswith((".bin", ".idx"))}


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_a_state(folder: pathlib.Path, _: pathlib.Path) -> Any:
    stream = stateful().resume(mps.load_state(folder))
    return next(stream.batches())["chosen_input_ids"].tolist(), stream.state(stream.start_step)


def read_a_run_state(folder: pathlib.Path, _: pathlib.Path) -> Any:
    from ms_prefstream.adapters.run_states import check_resumed

    dataset = resumable().dataset()
    dataset.set_init_step(1)
    place = {"load_checkpoint": str(folder / "x-1_1.ckpt"), "resume_training": True}
    return check_resumed(dataset, {**place, "runner_config": {"initial_step": 1}})


def resume_a_quarantine(folder: pathlib.Path, _: pathlib.Path) -> Any:
    stream = quarantining(folder)
    list(stream.resume(stream.state(0)).batches())
    return [json.loads(line)["origin"] for line in (folder / "bad.jsonl").read_bytes().splitlines()]


def read_text(name: str) -> Read:
    def read(folder: pathlib.Path, _: pathlib.Path) -> Any:
        options: dict[str, Any] = {"tokenizer": "bytes", "on_bad_row": "drop", "steps_per_epoch": 3, "window": 1}
        list(mps.stream(folder / name, task=TASK, batching=mps.Pad(2), **options).batches())
        return [row for _, row in open_source(folder / name).start()]

    return read


# Contents that are wrong in one value.


def doctored_json(text: bytes) -> Iterator[tuple[str, Any]]:
    """Yields JSON with one value replaced, removed or added; each value by each of `HOSTILE`."""
    values = json.loads(text)

    def nodes(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        for key in list(node) if isinstance(node, dict) else range(min(len(node), 3)):
            yield (*path, key)
            if isinstance(node[key], (dict, list)):
                yield from nodes(node[key], (*path, key))

    for path in nodes(values, ()):
        for hostile in [*HOSTILE, "removed", "added"]:
            changed = copy.deepcopy(values)
            node = changed
            for key in path[:-1]:
                node = node[key]
            if hostile == "removed":
                del node[path[-1]]
            elif hostile == "added" and isinstance(node, dict):
                node["../more"] = node[path[-1]]
            else:
                node[path[-1]] = hostile
            yield f"{path}: {str(hostile)[:30]!r}", changed


def doctored_text(path: pathlib.Path) -> Doctored:
    for label, values in doctored_json(path.read_bytes()):
        yield label, json.dumps(values).encode()


def resealed(values: Any) -> bytes:
    """JSON with its own checksum, if it still is an object."""
    if isinstance(values, dict) and "checksum" in values:
        del values["checksum"]
        values = {**values, "checksum": checksum_of(values)}
    return json.dumps(values).encode()


def doctored_sealed(path: pathlib.Path) -> Doctored:
    for label, values in doctored_json(path.read_bytes()):
        yield label, resealed(values)


def doctored_rows(array: Any, fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields an array with one number replaced. `fields` are views of an array, by name."""
    for name, view in fields.items():
        values = INTEGERS if array.dtype.kind != "f" else [np.nan, np.inf, -np.inf]
        for row in (0, 1, 2, len(array) // 2, len(array) - 2, len(array) - 1):
            for value in values:
                changed = array.copy()
                number = np.array([value % 2**64 if array.dtype.kind != "f" else value])
                view(changed)[row] = number.astype(view(changed).dtype)[0]
                if changed.tobytes() != array.tobytes():
                    yield f"{name}[{row}] = {value}", changed


def doctored_headers(data: bytes, rest: bytes = b"") -> Doctored:
    """Yields .npy files whose header says another dtype or shape in the same number of bytes."""
    begin = data.index(b"\n") + 1
    for dtype in DTYPES:
        for shape in SHAPES:
            text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
            yield f"{dtype} {shape}", data[:10] + text.ljust(begin - 11)[: begin - 11] + b"\n" + data[begin:]
    for size in (0, 9, 10, 70, begin, begin + 3):
        yield f"{size} bytes", data[:size]


def index_parts(data: bytes) -> list[Any]:
    file = io.BytesIO(data)
    return [np.load(file) for _ in range(4)]


def index_of(arrays: list[Any]) -> bytes:
    body = b"".join(map(npy_bytes, arrays))
    return body + npy_bytes(np.array([zlib.crc32(body)], "<u4"))


def doctored_index(path: pathlib.Path) -> Doctored:
    arrays = index_parts(path.read_bytes())
    fields: list[tuple[int, str, Any]] = [
        (0, "first length", lambda array: array[:, 0]),
        (0, "second length", lambda array: array[:, 1]),
        (1, "key", lambda array: array),
        (2, "verdict", lambda array: array),
    ]
    for at, name, view in fields:
        for label, changed in doctored_rows(arrays[at], {name: view}):
            yield label, index_of([*arrays[:at], changed, *arrays[at + 1 :]])
    for label, values in doctored_json(arrays[3].tobytes()):
        yield label, index_of([*arrays[:3], np.frombuffer(json.dumps(values).encode(), np.uint8)])


def doctored_journal(path: pathlib.Path) -> Doctored:
    data = path.read_bytes()
    begin = data.index(b"\n") + 1
    body = data[begin + 8 : begin + 8 + 130]  # the first block, of ten rows
    for row in range(10):
        for at, size in ((8 * row, 4), (8 * row + 4, 4), (80 + 4 * row, 4), (120 + row, 1)):
            for value in INTEGERS[:9]:
                number = (value % 2 ** (8 * size)).to_bytes(size, "little")
                changed = body[:at] + number + body[at + size :]
                yield f"byte {at}: {value}", with_block(data, begin, changed, 10)
    for rows in INTEGERS:
        yield f"{rows} rows", with_block(data, begin, body, rows % 2**32)


def with_block(data: bytes, begin: int, body: bytes, rows: int) -> bytes:
    return data[:begin] + zlib.crc32(body).to_bytes(4, "little") + rows.to_bytes(4, "little") + body


PLACE_FIELDS: dict[str, Any] = {name: lambda array, name=name: array[name] for name in ("begin", "size", "crc")}


def doctored_places(path: pathlib.Path) -> Doctored:
    for label, changed in doctored_rows(np.load(path), PLACE_FIELDS):
        yield label, npy_bytes(changed)
    yield from doctored_headers(path.read_bytes())


def doctored_reference(path: pathlib.Path) -> Doctored:
    sides: dict[str, Any] = {name: lambda array, at=at: array[:, at] for at, name in enumerate(("chosen", "rejected"))}
    for label, changed in doctored_rows(np.load(path), sides):
        yield label, npy_bytes(changed)
    yield from doctored_headers(path.read_bytes())


def doctored_reference_part(path: pathlib.Path) -> Doctored:
    from ms_prefstream.cache.reference import _digest

    data = path.read_bytes()[:-32]
    for label, changed in doctored_rows(np.load(io.BytesIO(data)), {"chosen": lambda array: array[:, 0]}):
        yield label, (text := npy_bytes(changed)) + _digest(str(path), text)
    for label, text in doctored_headers(data):
        yield label, text + _digest(str(path), text)


def doctored_part(path: pathlib.Path) -> Doctored:
    """Rows that say other sizes than they have, in their first 8 bytes and in those of each array."""
    data = path.read_bytes()
    for begin, end in read_offsets(str(path)).tolist():
        for at in [*range(begin, begin + 24, 4), (begin + end) // 2]:
            for value in INTEGERS:
                for order in ("little", "big"):
                    number = (value % 2**64).to_bytes(8, order)  # type: ignore[arg-type]
                    if data[at : at + 8] != number:
                        yield f"byte {at}: {value}", data[:at] + number + data[at + 8 :]


SQL = [
    "NULL",
    "'x'",
    "zeroblob(100)",
    "1e300",
    "-1",
    "9223372036854775807",
    "ROW_ID + 100",
    "1099511627776",
    "'0'",
    "7",
]
SCRIPTS = [
    "DELETE FROM INDEXES WHERE ROW_ID = 1",
    "DROP TABLE INDEXES",
    "ALTER TABLE INDEXES RENAME COLUMN PAGE_ID_BLOB TO X",
    "DROP TABLE INDEXES; CREATE TABLE INDEXES(ROW_ID, PAGE_ID_BLOB)",
    "DROP TABLE INDEXES; CREATE VIEW INDEXES AS WITH RECURSIVE r(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM r) "
    "SELECT x AS ROW_ID, 0 AS PAGE_ID_BLOB, 0 AS PAGE_OFFSET_BLOB, 0 AS PAGE_OFFSET_BLOB_END FROM r",
]


def doctored_sidecar(path: pathlib.Path) -> Doctored:
    columns = ["ROW_ID", "PAGE_ID_BLOB", "PAGE_OFFSET_BLOB", "PAGE_OFFSET_BLOB_END"]
    updates = [
        f"UPDATE OR REPLACE INDEXES SET {column} = {value} WHERE ROW_ID = {row}"
        for column in columns
        for value in SQL
        for row in (0, 1, 2, 5, 7, 9)
    ]
    data = path.read_bytes()
    for script in [*updates, *SCRIPTS]:
        connection = sqlite3.connect(":memory:")
        connection.deserialize(data) if hasattr(connection, "deserialize") else None
        if not hasattr(connection, "deserialize"):  # Python 3.10
            connection = sqlite3.connect(path)
        with contextlib.closing(connection), contextlib.suppress(sqlite3.IntegrityError):
            connection.executescript(script)
            connection.commit()
            changed = connection.serialize() if hasattr(connection, "serialize") else path.read_bytes()
            yield script, changed
        path.write_bytes(data)


def doctored_note(path: pathlib.Path) -> Doctored:
    yield from doctored_sealed(path)
    values = json.loads(path.read_bytes())
    rows = np.frombuffer(base64.b64decode(values["rows"]), ROW)
    fields: dict[str, Any] = {
        "first length": lambda array: array["lengths"][:, 0],
        "key": lambda array: array["key"],
        "verdict": lambda array: array["verdict"],
        "begin": lambda array: array["place"]["begin"],
        "size": lambda array: array["place"]["size"],
        "crc": lambda array: array["place"]["crc"],
    }
    for label, changed in doctored_rows(rows, fields):
        yield label, resealed({**values, "rows": base64.b64encode(changed.tobytes()).decode()})


def doctored_lines(path: pathlib.Path) -> Doctored:
    lines = path.read_bytes().splitlines(keepends=True)
    for at, line in enumerate(lines):
        for label, values in doctored_json(line):
            text = json.dumps(values, separators=(",", ":")).encode() + b"\n"
            yield f"line {at}, {label}", b"".join([*lines[:at], text, *lines[at + 1 :]])


def doctored_packed(pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]) -> Callable[[Any], Doctored]:
    def doctored(path: pathlib.Path) -> Doctored:
        lines = unpack(path.read_bytes()).splitlines(keepends=True)
        for at, line in enumerate(lines):
            for label, values in doctored_json(line):
                text = b"".join([*lines[:at], json.dumps(values).encode() + b"\n", *lines[at + 1 :]])
                yield f"line {at}, {label}", pack(text)

    return doctored


# Checksums that other files have.


def put_in_cache(path: pathlib.Path, data: bytes) -> None:
    path.write_bytes(data)
    note_in_manifest(path.parent, path.name, data)


def note_in_manifest(out: pathlib.Path, name: str, data: bytes, **reference: Any) -> None:
    manifest = out / "manifest.json"
    values = json.loads(manifest.read_text("utf-8"))
    values["files"][name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    values["reference"] |= reference
    manifest.write_bytes(resealed(values))


def put_part(path: pathlib.Path, data: bytes) -> None:
    """A part with the CRC-32 of its rows, and the hash of the tokens that the log-probabilities belong to."""
    put_in_cache(path, data)
    places = np.load(path.parent / "places.npy")
    for row in range(PART):
        begin, size, _ = places[row].tolist()
        places["crc"][row] = zlib.crc32(data[begin : begin + size])
    (path.parent / "places.npy").write_bytes(npy_bytes(places))
    tokens = hashlib.sha256(places["crc"].tobytes()).hexdigest()
    note_in_manifest(path.parent, "places.npy", npy_bytes(places), tokens=tokens)


def doctored_tokens(path: pathlib.Path) -> Doctored:
    tokens = np.fromfile(path, "<i4")
    for begin in range(0, 300, 100):
        for label, changed in doctored_rows(tokens[begin:][:100], {"token": lambda array: array}):
            yield f"{begin}, {label}", b"".join([tokens[:begin], changed, tokens[begin + 100 :]])


def put_staged_tokens(path: pathlib.Path, data: bytes) -> None:
    path.write_bytes(data)
    note = path.parents[1] / f"{path.name.partition('.')[0]}.done"
    values = json.loads(note.read_bytes())
    values["files"][path.name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    note.write_bytes(resealed(values))


def put_staged_part(path: pathlib.Path, data: bytes) -> None:
    """A finished part whose note has its SHA-256 and the CRC-32 of its rows."""
    path.write_bytes(data)
    note = path.parents[1] / f"{path.stem}.done"
    values = json.loads(note.read_bytes())
    values["files"][path.name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rows = np.frombuffer(base64.b64decode(values["rows"]), ROW).copy()
    for row, (begin, size, _) in enumerate(rows["place"].tolist()):
        rows["place"]["crc"][row] = zlib.crc32(data[begin : begin + size]) if size else 0
    values["rows"] = base64.b64encode(rows.tobytes()).decode()
    note.write_bytes(resealed(values))


# What a doctored file may read as, where its checksum cannot show that it was changed.


def whole_rows(got: Any, right: Any) -> bool:
    lengths, keys, verdict = (np.array(one) for one in got)
    return bool(first_wrong(lengths.astype(np.int32), keys, verdict.astype(np.uint8)) is None and len(keys) == COUNT)


def same_shapes(got: Any, right: Any) -> bool:
    """Other tokens than were written, but no other rows."""
    return len(got) == len(right) and [batch.keys() for batch in got] == [batch.keys() for batch in right]


def same_sizes(got: Any, right: Any) -> bool:
    """Other tokens than were written, but as many in each row."""
    return all(len(got[name]) == len(data) for name, data in right.items()) and all(
        got[name] == data for name, data in right.items() if name.endswith(".idx")
    )


def within_file(got: Any, right: Any) -> bool:
    return all(0 <= begin <= end < 10**6 for begin, end in got)


def same_run(got: Any, right: Any) -> bool:
    """A state has no checksum: it may be of another step of the same data, in any number of logical shards."""
    names = set(right[1]) - {"epoch", "step", "source", "logical_shards"}
    return all(got[1][name] == right[1][name] for name in names)


def whole_members(got: Any, right: Any) -> bool:
    """The same rows more than once: compressed files may follow each other."""
    return len(got) > len(right) and all(row in right for row in got)


def anything(got: Any, right: Any) -> bool:
    return True


KINDS = {
    "length index": Kind(
        "x", "lengths/index_file.py: write_contents", "lengths/index_file.py: read_index", "headers, _About",
        "size follows from the rows; 64 MiB of description", "index", read_an_index, doctored_index, fits=whole_rows,
    ),
    "index journal": Kind(
        "x.journal", "lengths/build.py: Journal.append", "lengths/build.py: Journal.parts", "_OWN, blocks",
        "no more rows than the source and the file have", "journal", resume_an_index, doctored_journal,
        fits=whole_rows,
    ),
    "manifest": Kind(
        "out/manifest.json", "mindrecord/manifest.py: write_manifest", "mindrecord/manifest.py: read_manifest",
        "_File", "64 MiB", "cache", read_a_cache, doctored_sealed, fits=same_shapes,
    ),
    "places": Kind(
        "out/places.npy", "cache/write.py: merge_parts", "sources/cached.py: _Table", "PLACE", "size of its rows",
        "cache", read_a_cache, doctored_places, put_in_cache,
    ),
    "lengths of a cache": Kind(
        "out/lengths.mprefidx", "cache/write.py: merge_parts", "sources/cached.py: _check_tables", "headers, _About",
        "size of its rows", "cache", read_a_cache, doctored_index, put_in_cache,
    ),
    "log-probabilities": Kind(
        "out/reference-*.npy", "cache/reference.py: _add", "sources/cached.py: _Table", "LOGPS, two a row",
        "size of its rows", "cache", read_a_cache, doctored_reference, put_in_cache,
    ),
    "part": Kind(
        "out/part-00000.mindrecord", "mindrecord/writer.py: RecordFile", "sources/cached.py: _bytes",
        "columns of the manifest", "sizes in places.npy", "cache", read_a_cache, doctored_part, put_part,
        fits=same_shapes,
    ),
    "sidecar": Kind(
        "out/part-00000.mindrecord.db", "mindrecord/sidecar.py: write_sidecar", "mindrecord/sidecar.py: read_offsets",
        "table INDEXES, integers", "no place outside of the part", "cache", read_a_sidecar, doctored_sidecar,
        fits=within_file,
    ),
    "plan": Kind(
        "out.writing/plan.json", "cache/folder.py: _write_plan", "cache/own_files.py: strangers", "_Plan", "64 MiB",
        "staged", resume_a_cache, doctored_text,
    ),
    "plan of a part range": Kind(
        "out.writing/range-1-of-2.json", "cache/ranges.py: write_range_plan", "cache/ranges.py: range_plans",
        "_File, check_about; the same in all ranges", "64 MiB", "ranges", merge_a_cache, doctored_sealed,
    ),
    "part range of a length index": Kind(
        "x.2-of-2", "lengths/index_file.py: write_contents", "lengths/ranges.py: merge_ranges",
        "headers, _About; the same in all ranges", "size follows from the rows; 64 MiB of description", "ranges",
        merge_an_index, doctored_index, fits=whole_rows,
    ),
    "note on a part": Kind(
        "out.writing/part-00001.done", "cache/parts.py: write_note", "cache/parts.py: read_note", "_Note, ROW",
        "64 MiB and the rows of a part", "unsealed", resume_a_cache, doctored_note, fits=same_shapes,
    ),
    "log-probabilities of a part": Kind(
        "out.writing/reference/*/part-00000.npy", "cache/reference.py: _part", "cache/reference.py: _read_part",
        "LOGPS, two a row; SHA-256", "size of its rows", "staged", resume_a_cache, doctored_reference_part,
    ),
    "finished part": Kind(
        "out.writing/new/part-00000.mindrecord", "cache/folder.py: add", "cache/folder.py: done",
        "the note's SHA-256", "the note's size", "unsealed", resume_a_cache, doctored_part, put_staged_part,
        fits=same_shapes,
    ),
    "finished part of tokens": Kind(
        "out.writing/new/part-00000.chosen_labels.bin", "mindrecord/megatron.py: TokenFiles", "cache/folder.py: done",
        "the note's SHA-256", "the note's size", "tokens", resume_tokens, doctored_tokens, put_staged_tokens,
        fits=same_sizes,
    ),
    "finished manifest": Kind(
        "out.writing/new/manifest.json", "cache/folder.py: seal", "cache/folder.py: begin", "_File", "64 MiB",
        "staged", resume_a_cache, doctored_sealed, fits=same_shapes,
    ),
    "state": Kind(
        "stream_state.json", "mindspore/checkpoint.py: StateWriter", "mindspore/checkpoint.py: read_state",
        "plan/state.py: check_state", "64 MiB", "states", read_a_state, doctored_text, fits=same_run,
    ),
    "state of a run": Kind(
        "x-1_1.stream_state.json", "adapters/run_states.py: save_state", "adapters/run_states.py: check_resumed",
        "plan/state.py: check_state", "64 MiB", "states", read_a_run_state, doctored_text,
    ),
    "quarantine": Kind(
        "bad.jsonl", "report/bad_rows.py: Quarantine.add", "report/bad_rows.py: Quarantine.keep", "is_quarantine",
        "256 MiB a line", "quarantine", resume_a_quarantine, doctored_lines, fits=anything, may_differ=anything,
    ),
    "gzip": Kind(
        "rows.jsonl.gz", "users", "sources/compressed.py: read_blocks", "JSON a line", "1 MiB a block", "text",
        read_text("rows.jsonl.gz"), doctored_packed(gzip.compress, gzip.decompress), fits=anything,
        may_differ=whole_members,
    ),
    "zstd": Kind(
        "rows.jsonl.zst", "users", "sources/compressed.py: read_blocks", "JSON a line", "1 MiB a block", "text",
        read_text("rows.jsonl.zst"),
        doctored_packed(ZSTD.compress, zstandard.ZstdDecompressor().decompress), fits=anything,
        may_differ=whole_members,
    ),
}  # fmt: skip


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Returns bytes with one to three places flipped, cut off, left out, repeated, zeroed or replaced."""
    for _ in range(draw.randint(1, 3)):
        begin = draw.randrange(len(data) or 1)
        end = min(len(data), begin + draw.choice([1, 2, 8, 100, len(data)]))
        flipped = bytes([data[begin] ^ 1 << draw.randrange(8)]) if data else b""
        data = draw.choice([
            data[:begin] + flipped + data[begin + 1 :],
            data[:begin],
            data[:begin] + data[end:],
            data[:begin] + bytes(end - begin) + data[end:],
            data[:begin] + draw.randbytes(end - begin) + data[end:],
            data[:end] + data[begin:],
        ])  # fmt: skip
    return data
