"""Encoding a window on several cores gives what one core gives."""

from __future__ import annotations

import pathlib
import threading

import numpy as np
import pytest

from ms_prefstream.encode.backends import tiktoken_backend
from ms_prefstream.encode.backends.tiktoken_backend import LEAST_TEXTS, in_threads
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import RowError
from ms_prefstream.load.workers.process import ENVIRONMENT


def test_results_stay_in_order_and_threads_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken_backend, "allowed_threads", lambda: 3)
    names = set()
    meet = threading.Barrier(3, timeout=10)  # three parts are under way at once

    def work(texts: list[str]) -> list[int]:
        names.add(threading.current_thread().name)
        if int(texts[0]) < 2 * LEAST_TEXTS:
            meet.wait()
        return [int(text) for text in texts]

    numbers = range(4 * LEAST_TEXTS)
    assert in_threads(work, [str(number) for number in numbers]) == list(numbers)
    assert len(names) == 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


def test_few_texts_or_one_core_need_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def work(texts: list[str]) -> list[str]:
        used.append(threading.current_thread())
        return texts

    texts = ["a"] * (2 * LEAST_TEXTS)
    monkeypatch.setattr(tiktoken_backend, "allowed_threads", lambda: 1)
    assert in_threads(work, texts) == texts
    monkeypatch.setattr(tiktoken_backend, "allowed_threads", lambda: 8)
    assert in_threads(work, texts[1:]) == texts[1:]
    assert used == [threading.main_thread()] * 2


@pytest.mark.parametrize(
    ("given", "expected"), [("", 8), ("3", 3), ("9", 8), ("0", 8), ("many", 8), (ENVIRONMENT["RAYON_NUM_THREADS"], 1)]
)
def test_threads_are_limited_as_those_of_other_tokenizers_are(
    given: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker process gets one: workers do not multiply."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setenv("RAYON_NUM_THREADS", given)
    assert tiktoken_backend.allowed_threads() == expected


def test_a_window_has_the_same_ids_and_errors(chatml_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_tokenizer(str(chatml_dir), "tiktoken").encoder
    assert encoder.backend == "tiktoken"
    texts = [f"line {number}: <|im_end|> é 你好 {'x' * (number % 50)}" for number in range(3 * LEAST_TEXTS)]
    texts[::7] = ["plain"] * len(texts[::7])
    monkeypatch.setattr(tiktoken_backend, "allowed_threads", lambda: 1)
    alone = encoder.encode(texts)
    monkeypatch.setattr(tiktoken_backend, "allowed_threads", lambda: 3)
    together = encoder.encode(texts)
    assert len(alone) == len(together)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    texts[1000] = "half \ud800"
    with pytest.raises((RowError, UnicodeEncodeError)) as caught:
        encoder.encode(texts)
    monkeypatch.setattr(tiktoken_backend, "allowed_threads", lambda: 1)
    with pytest.raises(type(caught.value)):
        encoder.encode(texts)
