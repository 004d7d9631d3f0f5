"""The files of MindSpeed's trainers, read by the definition of their format, are the stream's own samples."""

from __future__ import annotations

import json
import os
import pathlib
import random
import struct
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import CacheError, OptionError, SourceError
from ms_prefstream.cache.verify import verify
from ms_prefstream.mindrecord import megatron
from ms_prefstream.mindrecord.manifest import checksum_of, read_manifest
from tests.cache.places import PART, flip, rows_with_bad, source, stream_of, tree
from tests.cache.test_interrupted import Interrupted, interrupted, write
from tests.files_on_disk import put_staged_tokens
from tests.helpers import json_lines

COLUMNS = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")
FILES = {f"pairs_packed_{column}_document.{suffix}" for column in COLUMNS for suffix in ("bin", "idx")}
FORMAT: Any = "megatron"


def documents(prefix: str) -> list[list[int]]:
    """The documents of an indexed dataset, read as Megatron-LM defines its files."""
    index, tokens = pathlib.Path(prefix + ".idx").read_bytes(), np.fromfile(prefix + ".bin", "<i4")
    magic, version, dtype, rows, bounds = struct.unpack("<9sQBQQ", index[:34])
    assert (magic, version, dtype) == (b"MMIDIDX\0\0", 1, 4)
    lengths = np.frombuffer(index, "<i4", rows, 34)
    offsets = np.frombuffer(index, "<i8", rows, 34 + 4 * rows)
    assert np.frombuffer(index, "<i8", bounds, 34 + 12 * rows).tolist() == list(range(rows + 1))
    assert len(index) == 34 + 12 * rows + 8 * bounds
    assert lengths.sum() == len(tokens)
    return [tokens[at // 4 :][:length].tolist() for at, length in zip(offsets, lengths, strict=True)]


def rows_in(out: pathlib.Path) -> list[dict[str, list[int]]]:
    found = {column: documents(f"{out}/pairs_packed_{column}_document") for column in COLUMNS}
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def rows_of(path: str, max_length: int, **options: Any) -> list[dict[str, list[int]]]:
    """The samples of a stream in the order of the source, from its batches without their padding."""
    stream_of(path, mps.DPO(max_length, layout="concat"), index=None, **options).build_index()
    stream = stream_of(path, mps.DPO(max_length, layout="concat"), shuffle=False, **options)
    rows = []
    for batch in stream.batches():
        row = {}
        for at, side in enumerate(("chosen", "rejected")):
            length = int(batch["attention_mask"][at].sum())
            row |= {f"{side}_{name}": batch[name][at, :length].tolist() for name in ("input_ids", "labels")}
        rows.append(row)
    return rows


def turns(*contents: str) -> list[dict[str, str]]:
    """Messages of the assistant and of a tool by turns."""
    return [{"role": "tool" if at % 2 else "assistant", "content": content} for at, content in enumerate(contents)]


def rows_of_turns() -> list[Any]:
    """Responses of several turns among rows that are too long, unusable, or repeated."""
    rows = rows_with_bad(40)
    for at in range(0, 40, 6):
        rows[at] = {
            "prompt": f"#{at}#",
            "chosen": turns("one", "and then", "two", "and", "three" * (at % 4)),
            "rejected": turns("no", "why", "so"),
        }
    return [*rows, *rows[:5]]


@pytest.mark.parametrize("workers", [0, 3])
def test_documents_are_the_samples_of_the_stream(workers: int, tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path, rows_of_turns()), tmp_path / "out"
    stream = stream_of(path, mps.DPO(90))
    manifest = mps.write_cache(stream, out, layout=FORMAT, rows_per_part=PART, workers=workers)
    expected = rows_of(path, 90)
    assert rows_in(out) == expected
    assert len(expected) == manifest.rows < manifest.source_rows == 45
    assert manifest.notes["truncated"] > 0
    assert expected[0] == expected[-4]  # repeated rows stay
    assert any(len(set(np.flatnonzero(np.diff(np.array(row["chosen_labels"]) < 0)))) > 3 for row in expected)
    assert {entry.name for entry in out.iterdir()} == {*FILES, "lengths.mprefidx", "manifest.json"}
    assert list(manifest.columns) == list(COLUMNS)


@pytest.mark.slow
def test_tools_and_empty_thinking(shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    chosen = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    rows: list[Any] = [
        {"prompt": [{"role": "user", "content": "?"}], "chosen": chosen, "rejected": turns("No."),
         "tools": [tool]},
        {"prompt": "1 + 1", "chosen": "2", "rejected": "3"},
        {"prompt": "2 + 2", "chosen": "<think>\nhm\n</think>\n\n4", "rejected": "5"},
    ]  # fmt: skip
    path = str(json_lines(tmp_path / "rows.jsonl", rows))
    tokenizer = str(shared / "tokenizers" / "qwen3")
    mps.write_cache(stream_of(path, mps.DPO(400), tokenizer=tokenizer), tmp_path / "out", layout=FORMAT)
    expected = rows_of(path, 400, tokenizer=tokenizer)
    assert rows_in(tmp_path / "out") == expected
    assert len(expected) == 3


def test_reward_models_get_the_same_files(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path, rows_of_turns())
    for name, task in {"dpo": mps.DPO(128), "reward": mps.Reward(128)}.items():
        mps.write_cache(stream_of(path, task), tmp_path / name, layout=FORMAT)
    found = tree(tmp_path / "reward")
    assert {name: data for name, data in tree(tmp_path / "dpo").items() if name in FILES} == {
        name: found[name] for name in FILES
    }


def test_the_same_bytes_for_any_number_of_workers_and_parts(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path)
    for name, options in {"one": {}, "two": {"workers": 2}, "parts": {"rows_per_part": 7}}.items():
        write(path, tmp_path / name, layout=FORMAT, **options)
    one, two, parts = (tree(tmp_path / name) for name in ("one", "two", "parts"))
    assert one == two
    assert {name for name in one if one[name] != parts[name]} == {"manifest.json"}  # which names the rows of a part


def test_a_ragged_cache_and_a_one_pass_source_give_the_same_files(tmp_path: pathlib.Path) -> None:
    rows, task = rows_of_turns(), mps.DPO(128)
    path = source(tmp_path, rows)
    mps.write_cache(stream_of(path, task), tmp_path / "ragged")
    given = {"text": path, "cache": str(tmp_path / "ragged"), "rows": lambda: iter(rows)}
    for name, one in given.items():
        options: dict[str, Any] = {"tokenizer": None} if name == "cache" else {}
        mps.write_cache(stream_of(one, task, **options), tmp_path / name, layout=FORMAT, rows_per_part=PART)
    text, *others = ({name: tree(tmp_path / one)[name] for name in FILES} for one in given)
    assert others == [text, text]


def test_an_interrupted_run_goes_on_with_the_finished_parts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, tmp_path / "whole", layout=FORMAT)
    interrupted(monkeypatch, 2, path, out, layout=FORMAT)
    kept = sorted(entry.name for entry in (tmp_path / "out.writing" / "new").iterdir())
    assert kept == [f"part-0000{part}.{column}.bin" for part in range(2) for column in COLUMNS]
    flip(tmp_path / "out.writing" / "new" / kept[0], 3)  # no id is as large; the part is written again
    os.truncate(tmp_path / "out.writing" / "new" / kept[6], 101)
    write(path, out, layout=FORMAT)
    assert tree(out) == tree(tmp_path / "whole")
    assert [entry.name for entry in tmp_path.iterdir() if "writing" in entry.name] == []


def test_a_part_of_other_sizes_is_written_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksums of the note fit, but not the lengths that the index is made of."""
    path, out = source(tmp_path), tmp_path / "out"
    write(path, tmp_path / "whole", layout=FORMAT)
    interrupted(monkeypatch, 2, path, out, layout=FORMAT)
    part = tmp_path / "out.writing" / "new" / "part-00001.rejected_labels.bin"
    put_staged_tokens(part, part.read_bytes()[:-4])
    write(path, out, layout=FORMAT)
    assert tree(out) == tree(tmp_path / "whole")


def test_a_part_that_vanishes_is_an_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out, real = source(tmp_path), tmp_path / "out", megatron.join
    write(path, tmp_path / "whole", layout=FORMAT)

    def join(folder: str, *arguments: Any) -> Any:
        os.unlink(os.path.join(folder, "part-00001.chosen_labels.bin"))
        pathlib.Path(folder, "pairs_packed_chosen_labels_document.bin").write_bytes(bytes(20_000))
        return real(folder, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("ms_prefstream.cache.write.join", join)
        with pytest.raises(CacheError, match=r"part-00001\.chosen_labels\.bin is missing"):
            write(path, out, layout=FORMAT)
    write(path, out, layout=FORMAT)
    assert tree(out) == tree(tmp_path / "whole")


class Joining:
    """A write that ends abruptly while parts are joined, at the n-th call of `os.unlink` on a part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: str, out: pathlib.Path, at: int) -> None:
        real, self.calls = os.unlink, 0

        def unlink(name: str) -> None:
            self.calls += name.endswith(".bin")
            if self.calls == at and name.endswith(".bin"):
                raise Interrupted
            real(name)

        with monkeypatch.context() as patch:
            patch.setattr(megatron.os, "unlink", unlink)
            with pytest.raises(Interrupted):
                write(path, out, layout=FORMAT)


@pytest.mark.parametrize("at", [1, 2, 4, 9, 16])
def test_joining_goes_on_where_it_was(at: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, tmp_path / "whole", layout=FORMAT)
    Joining(monkeypatch, path, out, at)
    assert not out.exists()
    left = [entry.name for entry in (tmp_path / "out.writing" / "new").iterdir() if entry.name.startswith("part-")]
    assert len(left) == 16 - at + 1  # a part is deleted as soon as it is joined
    with monkeypatch.context() as patch:  # nothing is made again
        patch.setattr("ms_prefstream.cache.write.write_part", None)
        write(path, out, layout=FORMAT)
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("at", [6, 12])
def test_damage_to_what_is_joined_is_found(at: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, tmp_path / "whole", layout=FORMAT)
    Joining(monkeypatch, path, out, at)
    flip(tmp_path / "out.writing" / "new" / "pairs_packed_chosen_input_ids_document.bin", 2)
    write(path, out, layout=FORMAT)
    assert tree(out) == tree(tmp_path / "whole")


def test_verify_finds_every_changed_file(tmp_path: pathlib.Path) -> None:
    path, out, draw = source(tmp_path), tmp_path / "out", random.Random(3)
    write(path, out, layout=FORMAT)
    assert not any(one.problem for one in verify(str(out)))
    for name in sorted(FILES):
        at = draw.randrange((out / name).stat().st_size)
        flip(out / name, at)
        assert [one.name for one in verify(str(out)) if one.problem] == [name]
        flip(out / name, at)
    (out / "pairs_packed_input_ids_document.bin").write_bytes(b"")  # the trainers would take it for a column
    (out / "pairs_train_indexmap_8ns_1s_decoder_packed_idx.npy").write_bytes(b"")  # they write it there
    assert [(one.name, bool(one.problem)) for one in verify(str(out)) if not one.belongs] == [
        ("pairs_packed_input_ids_document.bin", True),
        ("pairs_train_indexmap_8ns_1s_decoder_packed_idx.npy", False),
    ]


def test_only_our_own_files_are_replaced(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out, layout=FORMAT)
    before = tree(out)
    write(path, out, layout=FORMAT, task=mps.DPO(64), overwrite=True)
    assert tree(out) != before
    for name, data in {
        "pairs_packed_chosen_labels_document.bin": b"text of somebody's thesis...",
        "pairs_packed_chosen_labels_document.idx": b"x" * 34,
    }.items():
        held = (out / name).read_bytes()
        (out / name).write_bytes(data)
        with pytest.raises(OptionError, match=rf"other files as well \({name}\)"):
            write(path, out, layout=FORMAT, overwrite=True)
        assert (out / name).read_bytes() == data
        (out / name).write_bytes(held)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (mps.KTO(64), "takes no kto samples; expected 'ragged'"),
        (mps.RLHF(32, 64), "takes no rlhf samples; expected 'mindrlhf', 'mindrlhf-grpo', 'ragged'"),
        (mps.Prompts(64), "takes no prompts samples; expected 'ragged'"),
        (mps.Reward(64, layout="reward_token", reward_token=259), "with a reward_token; expected 'ragged'"),
        (mps.DPO(64, labels="shifted"), "labels that are not shifted"),
        (mps.DPO(64, margin=True), "no place for a margin"),
    ],
)
def test_what_the_files_have_no_place_for_is_refused(task: Any, words: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="'megatron'.*" + words):
        mps.write_cache(stream_of(source(tmp_path), task, mps.Pad(2)), tmp_path / "out", layout=FORMAT)
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_carried_fields_are_refused(tmp_path: pathlib.Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "id": 7}]
    stream = stream_of(source(tmp_path, rows), mps.DPO(64), carry=["id"])
    with pytest.raises(OptionError, match="no place for fields that are carried: id"):
        mps.write_cache(stream, tmp_path / "out", layout=FORMAT)


def test_the_cache_is_no_source(tmp_path: pathlib.Path) -> None:
    write(source(tmp_path), tmp_path / "out", layout=FORMAT)
    with pytest.raises(SourceError, match=r"--data-path .*out/pairs"):
        stream_of(str(tmp_path / "out"), mps.DPO(128), tokenizer=None)


def test_a_manifest_with_other_sizes_is_refused(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    write(source(tmp_path), out, layout=FORMAT)
    text = (out / "manifest.json").read_text("utf-8")
    for name, change in {"bin": {"bytes": 4}, "idx": {"bytes": 4}, "rows": {"rows": 1}}.items():
        values = json.loads(text)
        suffix = "idx" if name == "idx" else "bin"
        values["files"][f"pairs_packed_rejected_labels_document.{suffix}"] |= change
        del values["checksum"]
        (out / "manifest.json").write_text(json.dumps({**values, "checksum": checksum_of(values)}), "utf-8")
        with pytest.raises(CacheError, match="is damaged"):
            read_manifest(str(out))
