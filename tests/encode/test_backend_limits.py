"""Texts that break tokenizers: very long words, very long texts, broken Unicode."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import numpy as np
import pytest

from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.unicode import MAX_CHARS
from ms_prefstream.errors import Reason, RowError
from tests.fixtures_tokenizers import cached_tokenizer as load

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


def test_nothing_is_nothing(encoder: Any) -> None:
    for place in Place:
        assert len(encoder.encode([], place)) == 0
        assert encoder.encode(["", "a"], place)[0].tolist() == []
        assert encoder.starts("", place).tolist() == [0]
    assert encoder.decode([]) == ""
