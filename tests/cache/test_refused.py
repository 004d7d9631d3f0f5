"""A cache is read with the settings it was written with, or not at all; both values are named."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream import CacheError, OptionError, SourceError, StateError
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.mindrecord.manifest import MANIFEST, read_manifest
from tests.cache.places import PART, source, stream_of

pytestmark = pytest.mark.mindspore
TASK = mps.DPO(128)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("refused")
    mps.write_cache(stream_of(source(folder), TASK), folder / "out", rows_per_part=PART)
    return str(folder / "out")


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        (mps.DPO(64), {}, "max_length of the task dpo was 128 and is 64 now"),
        (mps.DPO(128, labels="shifted"), {}, "labels of the task dpo was 'unshifted' and is 'shifted' now"),
        (mps.DPO(128, margin=True), {}, "margin of the task dpo was False and is True now"),
        (mps.Reward(128), {}, "task was 'dpo' and is 'reward' now"),
        (TASK, {"template": None}, "template was '"),
        (TASK, {"template": None, "tokenizer": None}, "and is None now"),
        (TASK, {"template": "{{ messages }}", "tokenizer": None}, "template was '"),
        (TASK, {"boundary": "inference"}, "boundary was 'joint' and is 'inference' now"),
        (TASK, {"boundary": "inference", "tokenizer": None}, "boundary was 'joint' and is 'inference' now"),
        (TASK, {"special_tokens_in_content": "error"}, "special_tokens_in_content was 'escape' and is 'error' now"),
    ],
)
def test_other_settings(out: str, task: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(StateError) as caught:
        stream_of(out, task, **options)
    assert said in str(caught.value)
    assert out in str(caught.value)


@pytest.mark.parametrize("tokenizer", ["bytes", None])
def test_the_same_template_however_it_is_given(out: str, tokenizer: Any, tmp_path: pathlib.Path) -> None:
    text = load_tokenizer("bytes").chat_template
    assert text is not None
    (tmp_path / "same.jinja").write_text(text, "utf-8")
    for template in ("auto", "chat", text, str(tmp_path / "same.jinja")):
        assert stream_of(out, TASK, tokenizer=tokenizer, template=template).steps_per_epoch
    (tmp_path / "same.jinja").write_text(text + " ", "utf-8")
    with pytest.raises(StateError, match=r"template was '.*' and is '.*' now"):
        stream_of(out, TASK, tokenizer=tokenizer, template=str(tmp_path / "same.jinja"))
    with pytest.raises(OptionError, match="template is 'chatml'; expected"):
        stream_of(out, TASK, tokenizer=tokenizer, template="chatml")


def test_a_cache_without_a_chat_template(tmp_path: pathlib.Path) -> None:
    mps.write_cache(stream_of(source(tmp_path), TASK, template=None), tmp_path / "out")
    for template in ("auto", None):
        assert stream_of(str(tmp_path / "out"), TASK, tokenizer=None, template=template).steps_per_epoch
    for template in ("chat", "{{ messages }}"):
        with pytest.raises(StateError, match="template was None and is '"):
            stream_of(str(tmp_path / "out"), TASK, tokenizer=None, template=template)


def test_another_tokenizer_is_named(out: str, chatml_dir: pathlib.Path) -> None:
    with pytest.raises(StateError) as caught:
        stream_of(out, TASK, tokenizer=str(chatml_dir))
    assert "tokenizer was bytes (" in str(caught.value)
    assert f"and is {chatml_dir} (" in str(caught.value)


def test_a_mix_checks_every_part(out: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(StateError, match="max_length"):
        stream_of(mps.mix([(source(tmp_path), 1), (out, 1)]), mps.DPO(64))


def test_the_layout_of_batches_is_free(out: str) -> None:
    assert stream_of(out, mps.DPO(128, layout="concat"), mps.Bucket(2)).column_names[0] == "input_ids"


@pytest.mark.parametrize(
    ("options", "said"),
    [({"format": "cvalues"}, "format"), ({"index": "other.mprefidx"}, "an index of its own")],
)
def test_options_that_mean_nothing(out: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        stream_of(out, TASK, **options)


def test_no_index_is_built_for_it(out: str) -> None:
    with pytest.raises(OptionError, match="index of its own"):
        stream_of(out, TASK).build_index()


def test_another_version(out: str, tmp_path: pathlib.Path) -> None:
    values = json.loads(pathlib.Path(out, MANIFEST).read_text("utf-8"))
    values["about"]["version"] = 2
    (tmp_path / MANIFEST).write_text(json.dumps(values), "utf-8")
    with pytest.raises(StateError, match="version 2, and this library reads version 1"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "ms_prefstream cache"}', '{"checksum": "x", "format": "y"}']
)
def test_a_manifest_that_is_none(text: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CacheError, match=r"manifest\.json is damaged"):
        read_manifest(str(tmp_path))


def test_sources_without_fixed_rows(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path)
    with pytest.raises(SourceError, match="Write each part to a cache"):
        mps.write_cache(stream_of(mps.mix([(path, 1), (path, 1)]), TASK), tmp_path / "out")
    follow = mps.follow(path, until=str(tmp_path / "end"))
    with pytest.raises(SourceError, match="still being written"):
        mps.write_cache(stream_of(follow, TASK, steps_per_epoch=1), tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["rows.jsonl"]


@pytest.mark.parametrize("number", [0, -1, True, 1.5])
def test_rows_per_part_is_a_number(number: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="rows_per_part"):
        mps.write_cache(stream_of(source(tmp_path), TASK), tmp_path / "out", rows_per_part=number)
