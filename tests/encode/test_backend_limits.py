"""Texts that break tokenizers: very long words, very long texts, broken Unicode."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.unicode import MAX_CHARS
from ms_prefstream.errors import Reason, RowError
from tests.fixtures_tokenizers import cached_tokenizer as load
from tests.fixtures_tokenizers import write_directory

KNOWN = [*map(chr, range(32, 127)), "\n", "\t", "\u3000"]  # what the library asks every tokenizer about, and more
ALL = ("chatml_dir", "gpt2_dir", "sentencepiece_model", "unigram_model", "llama2_dir", "bytes")


@pytest.fixture(params=ALL)
def encoder(request: pytest.FixtureRequest) -> Any:
    return load(request.param if request.param == "bytes" else request.getfixturevalue(request.param)).encoder


@pytest.mark.parametrize("unit", ["a", " ", "\n", "中", " \t", "zq"])
def test_time_grows_like_the_length(encoder: Any, unit: str) -> None:
    def seconds(length: int) -> float:
        begin = time.process_time()
        encoder.encode([unit * (length // len(unit))])
        return time.process_time() - begin

    seconds(1000)
    short, long = min(seconds(10_000) for _ in range(2)), seconds(80_000)
    assert long < 30 * max(short, 0.004)  # 8 times the length; quadratic time would be 64 times


def test_a_megabyte_of_spaces_is_what_the_package_makes_of_it(chatml_dir: pathlib.Path) -> None:
    """tiktoken's regular expressions give up here; the reference takes over."""
    text = " " * 1_100_000 + "x"
    fast, reference = load(chatml_dir, "tiktoken").encoder, load(chatml_dir, "tokenizers").encoder
    with pytest.raises(BaseException, match=r"[Rr]egex|panic"):
        fast._encoding.encode_to_numpy(text, disallowed_special=())
    np.testing.assert_array_equal(fast.encode([text])[0], reference.encode([text])[0])


def test_a_text_without_end_is_refused(encoder: Any) -> None:
    for call in (lambda text: encoder.encode(["fine", text]), encoder.starts):
        with pytest.raises(RowError, match="2,097,153 characters") as caught:
            call("a" * (MAX_CHARS + 1))
        assert caught.value.reason is Reason.ROW_TOO_LARGE


def test_a_lone_surrogate_is_a_sentence(encoder: Any) -> None:
    for place in Place:
        for call in (lambda text, place=place: encoder.encode(["fine", text], place), encoder.starts):
            with pytest.raises(RowError, match=r"lone surrogate U\+D83D at character 3") as caught:
                call("abc\ud83d def")
            assert caught.value.reason is Reason.BAD_TYPE


MODELS: dict[str, dict[str, Any]] = {
    "Unigram": {"unk_id": None, "vocab": [[one, -1.0] for one in KNOWN]},
    "WordLevel": {"unk_token": "<unk>", "vocab": {one: at for at, one in enumerate(KNOWN)}},
    "WordPiece": {
        "unk_token": "<unk>", "continuing_subword_prefix": "", "max_input_chars_per_word": 99,
        "vocab": {one: at for at, one in enumerate(KNOWN)},
    },
    "BPE": {"unk_token": "<unk>", "vocab": {one: at for at, one in enumerate(KNOWN)}, "merges": []},
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_a_text_that_the_vocabulary_lacks_is_a_bad_row(kind: str, tmp_path: pathlib.Path) -> None:
    """Where the vocabulary has no unknown token, the package raises an `Exception` for each such text."""
    split = {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False}
    spec = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": split, "post_processor": None,
            "decoder": None, "model": {"type": kind, **MODELS[kind]}}  # fmt: skip
    folder = write_directory(tmp_path / "model", spec, None)
    rows = [{"prompt": f"q{n}", "chosen": "yes" if n - 2 else "好", "rejected": "no"} for n in range(5)]
    options: dict[str, Any] = {"task": mps.DPO(64), "batching": mps.Pad(1), "template": None, "pad_token_id": 0}
    stream = mps.stream(rows, tokenizer=folder, on_bad_row="drop", **options)
    assert len(list(stream.batches())) == 5
    assert stream.report.dropped == {"bad_type": 1}
    with pytest.raises(mps.RowError, match=r"^row 2 of list: .*finds no ids for a text with this tokenizer"):
        list(mps.stream(rows, tokenizer=folder, **options).batches())
    spec["model"]["vocab"] = spec["model"]["vocab"][:-1] if kind == "Unigram" else {"x": 0}  # type: ignore[index]
    with pytest.raises(mps.TokenizerError, match=r"other: .*Pass a tokenizer that has ids for any text\.$"):
        mps.stream(rows, tokenizer=write_directory(tmp_path / "other", spec, None), **options)


def test_nothing_is_nothing(encoder: Any) -> None:
    for place in Place:
        assert len(encoder.encode([], place)) == 0
        assert encoder.encode(["", "a"], place)[0].tolist() == []
        assert encoder.starts("", place).tolist() == [0]
    assert encoder.decode([]) == ""
