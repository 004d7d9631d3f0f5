"""The fastokens backend: the ids of the reference on text of every kind, and two checks that never sleep."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import random
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from texts import any_text

from ms_prefstream.encode.backends import tokenizers_encoder
from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.standing_check import FIRST, RARELY, StandingCheck
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import RowError, TokenizerError
from tests.fixtures_tokenizers import cached_tokenizer as load
from tests.fixtures_tokenizers import write_directory
from tests.processes import run_python

pytest.importorskip("fastokens")
KINDS = ("chatml_dir", "gpt2_dir", "deepseek_dir", "llama2_dir")
REAL = ("qwen2_5", "qwen3", "internlm2")
CHEAP = settings(settings.get_profile("cheap"), suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_same(directory: pathlib.Path, text: str) -> None:
    fast, reference = load(directory, "fastokens").encoder, load(directory, "tokenizers").encoder
    for place in Place:
        np.testing.assert_array_equal(fast.encode([text], place)[0], reference.encode([text], place)[0])
    np.testing.assert_array_equal(fast.starts(text), reference.starts(text))


@pytest.mark.parametrize("kind", KINDS)
@CHEAP
@given(text=any_text)
@example(text="<think>a  <|im_end|>")
@example(text="a" * 3000)
@example(text="")
def test_same_ids(request: pytest.FixtureRequest, kind: str, text: str) -> None:
    assert_same(request.getfixturevalue(kind), text)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@CHEAP
@given(text=any_text)
@example(text="é́́ " * 40)
def test_same_ids_of_real_tokenizers(shared: pathlib.Path, name: str, text: str) -> None:
    assert_same(shared / "tokenizers" / name, text)


@pytest.mark.long
@pytest.mark.parametrize("name", REAL)
def test_many_hostile_strings(shared: pathlib.Path, name: str) -> None:
    """Characters of every block, in runs and mixtures, short and long: 70,000 for each tokenizer."""
    directory = shared / "tokenizers" / name
    fast, reference = load(directory, "fastokens").encoder, load(directory, "tokenizers").encoder
    draw = random.Random(name)
    for _ in range(140):
        texts = [hostile(draw) for _ in range(500)]
        for text, left, right in zip(texts, fast.encode(texts), reference.encode(texts), strict=True):
            assert left.tolist() == right.tolist(), repr(text)
    fast.finish_check()  # type: ignore[attr-defined]


def hostile(draw: random.Random) -> str:
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x600, 0x700), (0x2000, 0x2070), (0x3000, 0x3100)]
    blocks += [(0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0x1F300, 0x1FA00), (0x0, 0xD800), (0xE000, 0x110000)]
    parts = []
    for _ in range(draw.randint(1, 12)):
        low, high = draw.choice(blocks)
        piece = "".join(chr(draw.randrange(low, high)) for _ in range(draw.randint(1, 6)))
        parts.append(piece * draw.choice((1, 1, 1, 2, 40)) + draw.choice(("", "", " ", "  ", "\n", "'s ", "12345")))
    return "".join(parts)


def test_threads_do_not_change_ids(chatml_dir: pathlib.Path) -> None:
    """One call with many texts runs in several threads; a very long text may be cut up between them."""
    fast, reference = load(chatml_dir, "fastokens").encoder, load(chatml_dir, "tokenizers").encoder
    draw = random.Random(1)
    texts = ["".join(hostile(draw) for _ in range(400)), *(hostile(draw) for _ in range(600))]
    for text, left, right in zip(texts, fast.encode(texts), reference.encode(texts), strict=True):
        assert left.tolist() == right.tolist(), repr(text[:100])


def test_auto_takes_it_and_says_why(chatml_dir: pathlib.Path, llama2_dir: pathlib.Path) -> None:
    for directory in (chatml_dir, llama2_dir):
        tokenizer = load(directory)
        assert tokenizer.backend == tokenizer.encoder.backend == "fastokens"
        assert "agreed on a self-check" in tokenizer.reason


def test_it_is_passed_over_where_it_is_not_installed(chatml_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastokens", None)
    tokenizer = load_tokenizer(chatml_dir)
    assert tokenizer.backend == "tiktoken"
    assert 'pip install "ms-prefstream[fast]"' in tokenizer.reason
    with pytest.raises(TokenizerError, match="not installed"):
        load_tokenizer(chatml_dir, "fastokens")


def test_a_pickled_encoder_gives_the_same_ids(chatml_dir: pathlib.Path) -> None:
    encoder = load(chatml_dir, "fastokens").encoder
    again = pickle.loads(pickle.dumps(encoder, protocol=5))
    texts = ["hello", "", "<think>你好</think>"]
    assert [ids.tolist() for ids in again.encode(texts)] == [ids.tolist() for ids in encoder.encode(texts)]


def test_lone_surrogates_are_refused(chatml_dir: pathlib.Path) -> None:
    with pytest.raises(RowError, match="lone surrogate"):
        load(chatml_dir, "fastokens").encoder.encode(["fine", "a\ud800"])


class Wrong:
    """The package's tokenizer with a fault in one of 300 texts."""

    def __init__(self, right: Any, fault: Any, every: int = 300) -> None:
        self.right, self.fault, self.every, self.count = right, fault, every, 0
        self.faulty: list[str] = []

    def encode_batch_flat(self, texts: list[str]) -> tuple[bytes, bytes]:
        arrays = []
        for text in texts:
            ids = np.frombuffer(self.right.encode_batch_flat([text])[0], np.uint32).tolist()
            self.count += 1
            if is_faulty := self.count % self.every == 299:
                self.faulty.append(text)
            arrays.append(self.fault(ids) if is_faulty else ids)
        ends = np.cumsum([0, *map(len, arrays)], dtype=np.uint64)
        return np.concatenate(arrays).astype(np.uint32).tobytes(), ends.tobytes()


@pytest.mark.parametrize("fault", [lambda ids: ids[:-1], lambda ids: [*ids[:-1], ids[0]], lambda ids: ids[::-1]])
def test_one_wrong_text_in_300_is_caught(chatml_dir: pathlib.Path, fault: Any) -> None:
    """Ids of another length are seen at once; those with the right bytes in a wrong order, by comparison."""
    encoder: Any = load_tokenizer(chatml_dir, "fastokens").encoder
    wrong = Wrong(encoder._at(Place.AFTER_SPECIAL), fault)
    encoder._at = lambda place: wrong
    with pytest.raises(TokenizerError, match="backend='tokenizers'") as caught:
        encode_many(encoder)
    assert any(repr(text) in str(caught.value) for text in wrong.faulty)


def encode_many(encoder: Any) -> None:
    for begin in range(0, 20_000, 100):
        encoder.encode([f"text number {number} of them" for number in range(begin, begin + 100)])
    encoder.finish_check()


def test_what_it_cannot_read_goes_to_the_next_backend(metaspace_first_dir: pathlib.Path) -> None:
    tokenizer = load(metaspace_first_dir)
    assert tokenizer.backend == "tokenizers"
    assert "fastokens does not fit, because it refuses the tokenizer" in tokenizer.reason


def test_how_many_texts_are_compared(chatml_dir: pathlib.Path) -> None:
    reference = load(chatml_dir, "tokenizers").encoder
    compared: list[str] = []

    class Counting:
        def encode(self, texts: Any, place: Place) -> Any:
            compared.extend(texts)
            return reference.encode(texts, place)

    check = StandingCheck(Counting(), "new")  # type: ignore[arg-type]
    texts = [str(number) for number in range(1000)]
    ids = reference.encode(texts)
    for _ in range(200):
        check.see(texts, ids, Place.AFTER_SPECIAL)
    check.finish()
    assert compared[:FIRST] == texts[:FIRST]
    assert 800 < len(compared) < 1600
    assert RARELY == 8000


def test_a_reference_that_cannot_be_loaded_stops_the_run(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def encode(self, texts: Any, place: Place) -> Any:
            raise OSError("no room")

    ids = [np.zeros(1, np.int32)] * 100
    check = StandingCheck(Broken(), "new")  # type: ignore[arg-type]
    check.see(["a"] * 100, ids, Place.START)
    assert check._thread is not None
    check._thread.join()
    assert "cannot be checked" in caplog.text  # even if no other text follows
    with pytest.raises(TokenizerError, match=r"cannot be checked, because the reference tokenizer fails: no room"):
        check.see(["b"], ids[:1], Place.START)


def test_each_tokenizer_that_is_loaded_checks_its_own_texts(chatml_dir: pathlib.Path) -> None:
    one, other = (load_tokenizer(chatml_dir, "fastokens").encoder for _ in range(2))
    one.encode(["hello"] * 10)
    checks: list[Any] = [it._check for it in (one, other)]  # type: ignore[attr-defined]
    assert [check._seen for check in checks] == [10, 0]
    assert one._loaded is other._loaded  # type: ignore[attr-defined]
    one.finish_check()  # type: ignore[attr-defined]


def test_a_few_texts_do_not_load_the_reference(chatml_dir: pathlib.Path) -> None:
    encoder: Any = load_tokenizer(chatml_dir, "fastokens").encoder
    encoder.encode(["hello"] * 20)
    assert encoder._check._thread is None
    encoder.encode(["hello"] * 100)
    assert encoder._check._thread is not None
    encoder.finish_check()
    assert not encoder._check._waiting


def test_no_thread_is_left(chatml_dir: pathlib.Path) -> None:
    encoder: Any = load_tokenizer(chatml_dir, "fastokens").encoder
    encoder.encode([f"text {number}" for number in range(500)])
    encoder.finish_check()
    assert all(thread.name != "standing check" for thread in threading.enumerate())


def test_a_process_waits_for_its_check_when_it_exits(tmp_path: pathlib.Path) -> None:
    """Also where a daemon thread began it, as MindSpore's pipeline does; otherwise native code ends in SIGABRT."""
    program = """
import threading, time
import numpy as np
from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.standing_check import StandingCheck

class Slow:
    def encode(self, texts, place):
        time.sleep(0.5 if "a" in texts else 0)
        print(*texts, flush=True)
        return [np.zeros(1, np.int32) for _ in texts]

def work():
    StandingCheck(Slow(), "new").see(["a"] + ["b"] * 98 + ["c"], [np.zeros(1, np.int32)] * 100, Place.START)

thread = threading.Thread(target=work, daemon=True)
thread.start()
thread.join()
"""
    assert run_python("-c", program, folder=tmp_path).split() == ["a", *"b" * 98, "c"]


def test_a_fork_after_use(chatml_dir: pathlib.Path) -> None:
    """Also while the reference is being loaded: the child does not wait for a thread that it does not have."""
    encoder: Any = load_tokenizer(chatml_dir, "fastokens").encoder
    texts = [f"text {number}" for number in range(1000)]
    expected = [ids.tolist() for ids in encoder.encode(texts)]
    child = os.fork()
    if child == 0:
        try:
            found = [ids.tolist() for ids in encoder.encode(texts)]
            encoder.finish_check()
            load_tokenizer(chatml_dir, "fastokens")
            os._exit(0 if found == expected else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)
    encoder.finish_check()


def test_a_fork_while_the_reference_is_loaded(chatml_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that loads it, which the child does not have, holds a lock."""
    encoder: Any = pickle.loads(pickle.dumps(load_tokenizer(chatml_dir, "fastokens").encoder))
    number, begun, go_on = tokenizers_encoder.number_added_tokens, threading.Event(), threading.Event()

    def wait(*args: Any) -> None:
        if not begun.is_set():
            begun.set()
            go_on.wait(60)
        number(*args)

    monkeypatch.setattr(tokenizers_encoder, "number_added_tokens", wait)
    thread = threading.Thread(target=encoder.piece_id, args=("a",))
    thread.start()
    assert begun.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits forever
        encoder.piece_id("a")
        os._exit(0)
    ended = os.waitpid(child, 0)
    go_on.set()
    thread.join()
    assert ended == (child, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.update(normalizer={"type": "NFKC"}), "do not spell the text"),
        (lambda s: s["added_tokens"][3].update(lstrip=True), "takes its surroundings"),
    ],
)
def test_what_it_refuses(chatml_dir: pathlib.Path, tmp_path: pathlib.Path, change: Any, reason: str) -> None:
    spec = json.loads((chatml_dir / "tokenizer.json").read_text(encoding="utf-8"))
    change(spec)
    with pytest.raises(TokenizerError, match=reason):
        load_tokenizer(write_directory(tmp_path, spec, {}), "fastokens")


DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["model"].update(ignore_merges=True),
        lambda s: s["model"]["merges"].reverse(),
        lambda s: s["pre_tokenizer"]["pretokenizers"].insert(0, DIGITS),
        lambda s: s["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+|\W+"),
        lambda s: s["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\p{L}+| "),
        lambda s: s.update(normalizer={"type": "NFKC"}),
        lambda s: s["added_tokens"][3].update(lstrip=True),
        lambda s: s["added_tokens"][3].update(single_word=True),
        lambda s: s["added_tokens"][3].update(normalized=True),
    ],
)
def test_variants_of_a_file(chatml_dir: pathlib.Path, tmp_path: pathlib.Path, change: Any) -> None:
    """Whatever backend is chosen for them gives the ids of the reference."""
    spec = json.loads((chatml_dir / "tokenizer.json").read_text(encoding="utf-8"))
    change(spec)
    directory = write_directory(tmp_path, spec, {})
    chosen, reference = load_tokenizer(directory).encoder, load_tokenizer(directory, "tokenizers").encoder
    draw = random.Random(3)
    texts = [hostile(draw) + draw.choice(("", "<think>", " <think> ", "a<think>", "_<|im_end|>")) for _ in range(300)]
    for text, left, right in zip(texts, chosen.encode(texts), reference.encode(texts), strict=True):
        assert left.tolist() == right.tolist(), repr(text)
    for text in texts[:50]:
        np.testing.assert_array_equal(chosen.starts(text), reference.starts(text))
        np.testing.assert_array_equal(
            chosen.starts(text, dropped_after=True), reference.starts(text, dropped_after=True)
        )
    assert chosen.piece_id("a") == reference.piece_id("a") is not None
    assert chosen.piece_id("no piece") is None


def test_only_odd_texts_are_compared_at_once(chatml_dir: pathlib.Path) -> None:
    """A text that is no NFC is no reason to encode its whole batch by the reference."""
    encoder: Any = load_tokenizer(chatml_dir, "fastokens").encoder
    encoder._check.compare_all = lambda texts, ids, place: pytest.fail(f"compared {texts}") if texts else None
    encoder.encode([*map(str, range(500)), "e\u0301 \u212b", "\u0958"])


@given(text=st.text())
def test_sizes_of_texts(chatml_dir: pathlib.Path, llama2_dir: pathlib.Path, text: str) -> None:
    """The bytes that ids stand for are those of the text, unless it is normalised or holds unknown characters."""
    for directory in (chatml_dir, llama2_dir):
        tokenizer = load(directory, "tokenizers")
        spelling: Any = tokenizer.encoder.spelling  # type: ignore[attr-defined]
        for place in Place:
            ids = tokenizer.encoder.encode([text], place)[0]
            if not (spelling.lengths[ids] < 0).any() and not fastokens_changes(tokenizer.encoder, text):
                assert int(spelling.lengths[ids].sum()) == spelling.size([text], place)


def fastokens_changes(encoder: Any, text: str) -> bool:
    from ms_prefstream.encode.backends.unicode import nfc

    return (encoder.nfc and nfc(text) != text) or encoder.added.may_occur(text)
