"""Verdicts on tokenizers: nothing is loaded or proven twice, and no file in the cache folder can do harm."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from ms_prefstream.encode.backends import tiktoken_backend, tokenizers_backend, tokenizers_encoder
from ms_prefstream.encode.backends.verdict import Verdict, verdict_path
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer
from ms_prefstream.errors import TokenizerError
from tests.fixtures_tokenizers import fastest, write_directory

FAST = ["tiktoken", *({fastest("tiktoken")} - {"tiktoken"})]


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """An empty cache folder; verdicts lie in the one that is returned. Nothing is known in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "ms_prefstream" / "tokenizers"
    forget()


def forget() -> None:
    """Forgets what this process knows, as if it were another one."""
    tokenizers_backend._known.clear()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts loads of the reference, self-checks, plans for tiktoken and searches through the vocabulary for them."""
    counts = dict.fromkeys(("loads", "checks", "proofs", "plans"), 0)

    def count(module: Any, name: str, counter: str) -> None:
        function = getattr(module, name)

        def counting(*args: Any, **options: Any) -> Any:
            counts[counter] += 1
            return function(*args, **options)

        monkeypatch.setattr(module, name, counting)

    count(tokenizers_encoder.TokenizersEncoder, "__init__", "loads")
    count(tokenizers_backend, "first_difference", "checks")
    count(tiktoken_backend, "find_unranked", "proofs")
    count(tiktoken_backend, "tiktoken_plan", "plans")
    return counts


def same(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers agree in everything but the encoder object, and give the same ids."""
    texts = ["hello", "<think>你好 <|im_end|>", "e\u0301 1234"]
    ids = [[array.tolist() for array in it.encoder.encode(texts)] for it in (one, other)]
    fields = [{name: value for name, value in vars(it).items() if name != "encoder"} for it in (one, other)]
    return ids[0] == ids[1] and fields[0] == fields[1]


@pytest.mark.parametrize("backend", FAST)
def test_nothing_is_done_twice(
    backend: str, chatml_dir: pathlib.Path, cache: pathlib.Path, counted: dict[str, int]
) -> None:
    first = load_tokenizer(chatml_dir, backend)
    own = int(backend == "tiktoken")
    assert counted == {"loads": 1, "checks": 1, "proofs": own, "plans": own}
    assert same(first, load_tokenizer(str(chatml_dir), backend))
    assert counted["plans"] == own
    forget()
    counted.update(dict.fromkeys(counted, 0))
    again = load_tokenizer(chatml_dir, backend)
    assert counted == {"loads": 0, "checks": 0, "proofs": 0, "plans": own}
    assert same(first, again)


def test_a_refusal_is_not_tried_again(
    llama2_dir: pathlib.Path, cache: pathlib.Path, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastokens", None)
    reasons = []
    for _ in range(2):
        forget()
        reasons.append(load_tokenizer(llama2_dir).reason)
    assert reasons[0] == reasons[1]
    assert "tiktoken does not fit, because its model uses unk_token" in reasons[0]
    assert counted["plans"] == 1


def test_another_file_or_configuration_has_a_verdict_of_its_own(
    chatml_dir: pathlib.Path, tmp_path: pathlib.Path, cache: pathlib.Path
) -> None:
    spec = json.loads((chatml_dir / "tokenizer.json").read_text("utf-8"))
    config = json.loads((chatml_dir / "tokenizer_config.json").read_text("utf-8"))
    first = load_tokenizer(write_directory(tmp_path / "model", spec, config), "tiktoken")
    renamed = {**config, "chat_template": "{{ messages[0].content }}"}
    second = load_tokenizer(write_directory(tmp_path / "model", spec, renamed), "tiktoken")
    spec["added_tokens"][3]["special"] = True
    third = load_tokenizer(write_directory(tmp_path / "model", spec, config), "tiktoken")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[1].content }}")
    fourth = load_tokenizer(tmp_path / "model", "tiktoken")
    assert len({first.fingerprint, second.fingerprint, third.fingerprint, fourth.fingerprint}) == 4
    assert "<think>" in third.special
    assert "<think>" not in first.special
    assert len(list(cache.iterdir())) == 4


def test_a_few_are_kept_in_memory(chatml_dir: pathlib.Path, tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    spec = json.loads((chatml_dir / "tokenizer.json").read_text("utf-8"))
    for number in range(5):
        load_tokenizer(write_directory(tmp_path / str(number), spec, {"chat_template": str(number)}), "tokenizers")
    assert len(tokenizers_backend._known) == tokenizers_backend._KEPT


def test_threads_load_one_tokenizer(
    chatml_dir: pathlib.Path, cache: pathlib.Path, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers_backend, "read_verdict", lambda key: time.sleep(0.1))
    threads = [threading.Thread(target=load_tokenizer, args=(chatml_dir, "tiktoken")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted["loads"] == 1


def stored(cache: pathlib.Path) -> pathlib.Path:
    (path,) = cache.iterdir()
    return path


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def write(data: bytes) -> bytes:
        values = json.loads(data)
        change(values)
        return json.dumps(values).encode()

    return write


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "torn": lambda data: data[: len(data) // 2],
    "no JSON": lambda data: b"\x00\xff" * 100,
    "deep": lambda data: b"[" * 100_000,
    "a pickle": lambda data: b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.",
    "other JSON": lambda data: b'{"key": 1}',
    "of another key": changed(lambda it: it.update(key="0" * 64)),
    "a field more": changed(lambda it: it.update(code="import os")),
    "a field of another type": changed(lambda it: it.update(add_bos="yes")),
    "no fingerprint": changed(lambda it: it.update(fingerprint="../../x")),
    "a huge id": changed(lambda it: it["added_tokens"][0].update(id=2**31 - 1)),
    "a negative id": changed(lambda it: it["added_tokens"][0].update(id=-1)),
    "an id twice": changed(lambda it: it["added_tokens"][0].update(id=it["added_tokens"][1]["id"])),
    "a token less": changed(lambda it: it["added_tokens"].pop()),
    "a token more": changed(lambda it: it["added_tokens"].append({**it["added_tokens"][0], "content": "x", "id": 9})),
    "reserved ids of others": changed(lambda it: it.update(reserved={"<|reserved_1|>": 2**30})),
    "too large": lambda data: b" " * (9 * 2**20) + data,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_found_out_and_replaced(
    damage: str, chatml_dir: pathlib.Path, cache: pathlib.Path, counted: dict[str, int]
) -> None:
    first = load_tokenizer(chatml_dir, "tiktoken")
    path = stored(cache)
    before = path.read_bytes()
    path.write_bytes(DAMAGES[damage](before))
    forget()
    assert same(first, load_tokenizer(chatml_dir, "tiktoken"))
    assert counted["loads"] == 2
    assert path.read_bytes() == before
    assert list(cache.iterdir()) == [path]


def test_what_is_no_file_of_the_user(
    chatml_dir: pathlib.Path,
    tmp_path: pathlib.Path,
    cache: pathlib.Path,
    counted: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = load_tokenizer(chatml_dir, "tiktoken")
    path = stored(cache)
    whole = path.read_bytes()
    for put in (os.mkfifo, os.mkdir, lambda path: os.symlink(tmp_path / "elsewhere", path)):
        path.unlink() if not path.is_dir() else path.rmdir()
        put(path)
        forget()
        assert same(first, load_tokenizer(chatml_dir, "tiktoken"))
        assert not (tmp_path / "elsewhere").exists()  # a link is replaced, not followed
    assert path.read_bytes() == whole
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    forget()
    assert same(first, load_tokenizer(chatml_dir, "tiktoken"))
    assert counted["loads"] == 5


def test_wrong_numbers_are_noticed_when_the_reference_loads(chatml_dir: pathlib.Path, cache: pathlib.Path) -> None:
    load_tokenizer(chatml_dir, "tiktoken")
    path = stored(cache)
    values = json.loads(path.read_bytes())
    one, other = values["added_tokens"][:2]
    one["id"], other["id"] = other["id"], one["id"]
    path.write_bytes(json.dumps(values).encode())
    forget()
    wrong = load_tokenizer(chatml_dir, "tiktoken")
    with pytest.raises(TokenizerError, match="Delete the folder ms_prefstream"):
        wrong.token_id("hello")


@pytest.mark.parametrize("environment", [{}, {"XDG_CACHE_HOME": "relative"}, {"HOME": ""}, {"HOME": "also/relative"}])
def test_without_a_folder_nothing_is_written(
    environment: dict[str, str], chatml_dir: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    empty = cache.parents[1] / "empty"
    empty.mkdir(parents=True)
    monkeypatch.chdir(empty)
    assert verdict_path("0" * 64) is None
    load_tokenizer(chatml_dir, "tiktoken")
    assert list(empty.iterdir()) == []


def test_the_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/folder/of/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert verdict_path("abc") == pathlib.Path("/folder/of/someone/.cache/ms_prefstream/tokenizers/abc.json")


def test_a_folder_that_cannot_be_written(chatml_dir: pathlib.Path, cache: pathlib.Path) -> None:
    """A file stands where a folder should be, which holds for every user."""
    cache.parents[1].mkdir()
    cache.parent.write_text("a file of somebody")
    first = load_tokenizer(chatml_dir, "tiktoken")
    forget()
    assert same(first, load_tokenizer(chatml_dir, "tiktoken"))
    assert cache.parent.read_text() == "a file of somebody"


def test_a_verdict_that_cannot_be_written(chatml_dir: pathlib.Path, cache: pathlib.Path) -> None:
    """A folder stands where the file should be."""
    first = load_tokenizer(chatml_dir, "tiktoken")
    path = stored(cache)
    path.unlink()
    path.mkdir()
    forget()
    assert same(first, load_tokenizer(chatml_dir, "tiktoken"))
    assert path.is_dir()


PROGRAM = """
import sys
from ms_prefstream.encode.tokenizer import load_tokenizer
print(load_tokenizer(sys.argv[1], sys.argv[2]).encoder.encode(["hello 你好"] * 100)[0].tolist())
"""


@pytest.mark.parametrize("backend", FAST)
def test_processes_at_once(backend: str, chatml_dir: pathlib.Path, cache: pathlib.Path) -> None:
    """Each ends well, right after its first texts, and one whole file is left."""
    command = [sys.executable, "-c", PROGRAM, str(chatml_dir), backend]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert said == {f"{load_tokenizer(chatml_dir).encoder.encode(['hello 你好'])[0].tolist()}\n"}
    assert msgspec.json.decode(stored(cache).read_bytes(), type=Verdict).refusals[backend] == ""
