"""``boundary="auto"``: one prompt for both sides of a pair; saved files go on with the boundary that they name."""

from __future__ import annotations

import inspect
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.encode.build import resolve_boundary
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import OptionError, StateError
from tests.fixtures_tokenizers import CHATML, cached_tokenizer
from tests.helpers import json_lines

# The ends of prompts and the beginnings of responses merge in each of these.
ENDS = ["Answer: ", "Answer:\n", "今天的天气很", "I can", "caf", "The quick br", "x  ", "1"]
BEGINS = [" tea", "\n\ntea", "好，我们", "'t do", "é", "own fox", " y", "234", "tea"]
TURNS = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
WORDS = TURNS + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


def pairs(number: int) -> list[dict[str, str]]:
    sides = itertools.permutations(BEGINS, 2)
    texts = itertools.islice(itertools.cycle(itertools.product(ENDS, sides)), number)
    return [
        {"prompt": f"{row} {end}", "chosen": chosen, "rejected": rejected}
        for row, (end, (chosen, rejected)) in enumerate(texts)
    ]


def make(source: Any, tokenizer: Any, **options: Any) -> mps.Stream:
    settings: dict[str, Any] = {"task": mps.DPO(64), "batching": mps.Pad(10), "shuffle": False, "index": None}
    return mps.stream(source, tokenizer=tokenizer, **settings | options)


def different_prompts(stream: mps.Stream) -> int:
    """How many pairs have other prompt ids on one side than on the other."""
    found = 0
    for batch in stream.batches():
        for row in range(len(batch["chosen_input_ids"])):
            sides = []
            for side in ("chosen", "rejected"):
                mask = batch[f"{side}_loss_mask"][row]
                sides.append(batch[f"{side}_input_ids"][row][: int(np.flatnonzero(mask)[0])].tolist())
            found += sides[0] != sides[1]
    return found


@pytest.fixture(params=["bytes", "sentencepiece", "gpt2", "llama2"])
def plain(request: pytest.FixtureRequest) -> Tokenizer:
    """Tokenizers without a template: Baichuan2's family (SentencePiece) among them."""
    names = {"sentencepiece": "sentencepiece_model", "gpt2": "gpt2_dir", "llama2": "llama2_dir"}
    if request.param == "bytes":
        return cached_tokenizer("bytes")
    return cached_tokenizer(str(request.getfixturevalue(names[request.param])))


def test_both_sides_have_one_prompt_without_a_template(plain: Tokenizer) -> None:
    rows = pairs(2000)
    stream = make(rows, plain, template=None)
    assert different_prompts(stream) == 0
    assert stream.data.recipe.boundary == "inference"
    assert "boundary inference (auto)" in stream.report.tokenizer
    assert "boundary inference" in repr(stream)
    assert different_prompts(make(rows, plain, template=None, boundary="joint")) > 0 or plain.backend == "bytes"


def test_both_sides_have_one_prompt_where_a_template_has_no_control_token(gpt2_dir: pathlib.Path) -> None:
    rows = pairs(300)
    stream = make(rows, str(gpt2_dir), template=WORDS)
    assert stream.data.recipe.boundary == "inference"
    assert different_prompts(stream) == 0


@given(st.text(max_size=12), st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=12))
def test_one_prompt_is_a_law(gpt2_dir: pathlib.Path, prompt: str, chosen: str, rejected: str) -> None:
    tokenizer = cached_tokenizer(str(gpt2_dir))
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    found = mps.encode(row, task=mps.DPO(200), tokenizer=tokenizer, template=None, format="strings")
    if found.sample is not None:
        one, other = (side.ids[: side.spans[0][0]].tolist() for side in found.sample.sequences)
        assert one == other


@pytest.mark.parametrize(
    ("template", "pairs", "expected"),
    [
        (None, True, "inference"),
        (None, False, "joint"),
        (CHATML, True, "joint"),
        (WORDS, True, "inference"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", True, "inference"),
        ("{% for m in messages %}{{ '<|im_start|>' + m.content }}{% endfor %}", True, "joint"),
        ("<|im_start|>{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>", True, "inference"),
        ("{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML, True, "joint"),
        ("{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + WORDS, True, "inference"),
        ("{{ raise_exception('no') }}", True, "joint"),
    ],
)  # fmt: skip
def test_what_auto_is(template: str | None, pairs: bool, expected: str) -> None:
    assert resolve_boundary("auto", cached_tokenizer("bytes"), template, pairs) == expected


def test_explicit_and_unknown_values() -> None:
    assert resolve_boundary("joint", None, None) == "joint"
    assert resolve_boundary("auto", None, None) == "joint"
    with pytest.raises(OptionError, match="boundary is 'x'; expected 'auto', 'joint' or 'inference'"):
        resolve_boundary("x", None, None)


def test_prompts_and_responses_of_rlhf_stay_joint() -> None:
    stream = make(pairs(20), "bytes", template=None, task=mps.RLHF(32, 64))
    assert stream.data.recipe.boundary == "joint"


Saved = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize("former", ["joint", "inference"])
@pytest.mark.parametrize("batching", [mps.Pad(10), mps.Bucket(10, max_shapes=2)])
@pytest.mark.parametrize("template", [None, CHATML])
def test_a_state_goes_on_with_its_boundary(
    gpt2_dir: pathlib.Path, former: str, batching: Any, template: str | None
) -> None:
    rows, options = pairs(100), {"template": template, "batching": batching}
    tokenizer = str(gpt2_dir)
    whole = make(rows, tokenizer, boundary=former, **options)
    state = json.loads(json.dumps(whole.state(4)))
    resumed = make(rows, tokenizer, **options).resume(state)
    for one, other in zip(whole.batches(0, 4), resumed.batches(), strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    assert resumed.data.recipe.boundary == former
    assert f"boundary {former} (auto)" in resumed.report.tokenizer
    assert resumed.state(7)["boundary"] == former
    other = {"joint": "inference", "inference": "joint"}[former]
    with pytest.raises(StateError, match=f"boundary was '{former}' and is '{other}' now"):
        make(rows, tokenizer, boundary=other, **options).resume(state)


@pytest.mark.parametrize("found", ["x", None, 3, ["joint"], np.zeros(2)])
def test_a_state_with_another_boundary_is_refused_and_leaves_no_trace(found: Any) -> None:
    stream = make(pairs(50), "bytes", template=None)
    state = {**stream.state(2), "boundary": found}
    with pytest.raises(StateError, match="boundary was"):
        stream.resume(state)
    state = {**stream.state(2), "boundary": "joint", "seed": 9}
    with pytest.raises(StateError, match="seed was 9"):
        stream.resume(state)
    assert stream.data.recipe.boundary == "inference"
    assert "boundary inference" in stream.report.tokenizer


@pytest.mark.parametrize("former", ["joint", "inference"])
def test_an_index_goes_on_with_its_boundary(tmp_path: pathlib.Path, gpt2_dir: pathlib.Path, former: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs(60)), "utf-8")
    options: dict[str, Any] = {"template": None, "index": "auto"}
    make(str(path), str(gpt2_dir), boundary=former, **options).build_index()
    stream = make(str(path), str(gpt2_dir), **options)
    assert stream.data.index is not None
    assert stream.data.recipe.boundary == former
    expected = make(str(path), str(gpt2_dir), boundary=former, **options)
    for one, other in zip(expected.batches(), stream.batches(), strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    assert make(str(path), str(gpt2_dir), **options).resume(json.loads(json.dumps(stream.state(2)))).start_step == 2


def test_an_index_for_other_settings_keeps_its_error(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs(60)), "utf-8")
    index = str(make(str(path), "bytes", template=None).build_index().path)
    shutil.move(index, tmp_path / "other.mprefidx")
    with pytest.raises(StateError, match=r"task was .* now\. Build") as caught:
        make(str(path), "bytes", template=None, task=mps.DPO(40), index=tmp_path / "other.mprefidx")
    assert "boundary was" not in str(caught.value)


@pytest.mark.mindspore
@pytest.mark.parametrize("former", ["joint", "inference"])
def test_a_cache_goes_on_with_its_boundary(tmp_path: pathlib.Path, gpt2_dir: pathlib.Path, former: str) -> None:
    rows, options = pairs(40), {"template": None}
    text = make(rows, str(gpt2_dir), boundary=former, **options)
    mps.write_cache(text, tmp_path / "cache")
    for tokenizer in (str(gpt2_dir), None):
        cached = make(str(tmp_path / "cache"), tokenizer, **options)
        assert cached.data.encoding["boundary"] == former
        for one, other in zip(text.batches(), cached.batches(), strict=True):
            assert all((one[name] == other[name]).all() for name in one)
        wrong = {"joint": "inference", "inference": "joint"}[former]
        with pytest.raises(StateError, match=f"boundary was '{former}' and is '{wrong}' now"):
            make(str(tmp_path / "cache"), tokenizer, boundary=wrong, **options)
    mixed = make(mps.mix([str(tmp_path / "cache"), rows]), str(gpt2_dir), **options)
    assert mixed.data.recipe.boundary == former


@pytest.mark.mindspore
def test_log_probabilities_are_added_to_a_cache_of_the_other_boundary(
    tmp_path: pathlib.Path, gpt2_dir: pathlib.Path
) -> None:
    """Nothing is written again: the cache's own boundary goes on."""

    def reference(batch: Any) -> Any:
        return tuple(-batch[f"{side}_loss_mask"].sum(axis=1) for side in ("chosen", "rejected"))

    rows, out = pairs(40), tmp_path / "cache"
    mps.write_cache(make(rows, str(gpt2_dir), template=None, boundary="joint"), out)
    part = next(out.glob("*.mindrecord"))
    before = part.read_bytes(), part.stat().st_mtime_ns
    mps.write_cache(make(rows, str(gpt2_dir), template=None), out, reference=reference, reference_id="sft")
    assert (part.read_bytes(), part.stat().st_mtime_ns) == before
    stream = make(str(out), None)
    assert "chosen_ref_logps" in stream.column_names
    assert stream.data.encoding["boundary"] == "joint"


def test_auto_is_the_default_of_every_door(tmp_path: pathlib.Path, gpt2_dir: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(40))
    options: dict[str, Any] = {"task": mps.DPO(64), "tokenizer": gpt2_dir, "template": None}
    mps.build_index(path, verbose=False, **options)
    stream = make(str(path), gpt2_dir, template=None, index="auto")
    assert stream.data.encoding["boundary"] == "inference"
    assert different_prompts(stream) == 0
    assert "boundary inference" in str(mps.doctor(path, **options))


def test_auto_where_a_response_may_continue_an_answer() -> None:
    tokenizer = cached_tokenizer("bytes")
    assert resolve_boundary("auto", tokenizer, CHATML, join=True) == "inference"
    assert resolve_boundary("joint", tokenizer, CHATML, join=True) == "joint"
    assert resolve_boundary("auto", tokenizer, CHATML, pairs=False, join=True) == "joint"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_state_goes_on_with_its_index_where_others_lie_beside_it(
    workers: int, tmp_path: pathlib.Path, gpt2_dir: pathlib.Path
) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(60))
    settings: dict[str, Any] = {"index": "build", "template": None, "verbose": False}
    joint, inference = (make(path, gpt2_dir, boundary=name, **settings) for name in ("joint", "inference"))
    assert len(list(tmp_path.glob("*.mprefidx"))) == 2
    for first in (joint, inference):
        second = make(path, gpt2_dir, **settings | {"index": "auto", "workers": workers}).resume(first.state(2))
        assert second.state(2) == first.state(2)
        rest = first.batches(0, 2)
        assert all(np.array_equal(a[name], b[name]) for a, b in zip(second.batches(), rest, strict=True) for name in a)
    fresh = make(path, gpt2_dir, **settings | {"index": "auto"})
    with pytest.raises(StateError, match="index was '0' and is"):
        fresh.resume({**joint.state(2), "index": "0"})
    assert fresh.state(0) == inference.state(0)
    named = make(path, gpt2_dir, **settings | {"index": inference.data.index.path})
    with pytest.raises(StateError, match=r"index was .* and is .*boundary was 'joint' and is 'inference'"):
        named.resume(joint.state(2))


def test_an_index_is_built_with_the_boundary_of_streams(tmp_path: pathlib.Path, gpt2_dir: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(60))
    index = mps.build_index(path, task=mps.DPO(64), tokenizer=gpt2_dir, template=None, verbose=False)
    stream = make(path, gpt2_dir, template=None, index="auto")
    assert stream.state(0)["index"] == index.checksum
    assert not different_prompts(stream)


def test_options_have_the_same_defaults_everywhere() -> None:
    def defaults(function: Callable[..., Any]) -> dict[str, Any]:
        found = inspect.signature(function).parameters.items()
        return {name: one.default for name, one in found if one.default is not one.empty and name != "tokenizer"}

    usual = defaults(mps.stream)
    for function in (mps.build_index, mps.doctor, mps.encode):
        shared = {name: value for name, value in defaults(function).items() if name in usual}
        assert shared == {name: usual[name] for name in shared}
