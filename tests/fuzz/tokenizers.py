"""Targets: tokenizer.json, the files beside it, and SentencePiece models."""

from __future__ import annotations

import json
import os
import pathlib
import random
from typing import Any

import pytest
import sentencepiece
import tokenizers

import ms_prefstream as mps
from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.sentencepiece_proto import _varint, fields
from ms_prefstream.encode.tokenizer import load_tokenizer
from tests.fixtures_tokenizers import LLAMA2_CONFIG, llama2_spec, train_byte_fallback
from tests.fuzz.mutations import TEXTS, as_json, json_value, raw, text
from tests.fuzz.small_tokenizers import chatml_spec, config, other_specs
from tests.helpers import pairs

SENTENCES = ["How do I keep my bread fresh?", "今天的天气很好。", " a  b\n\n\tc 123", "é e\u0301 ﬁ"]
LARGE = ("vocab", "merges")


class _Tokenizers:
    """Folders of tokenizers; a value is (name -> contents, with JSON as data) and whether all backends are proven."""

    place = r"/|tokenizer|template|row \d|rows|pad_token_id"
    changed: tuple[str, ...]

    def __init__(self, folder: pathlib.Path) -> None:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        self._folder, self._number = folder / "tokenizer", 0
        self._model = folder / "tokenizer.model"
        self._model.write_bytes(
            train_byte_fallback(control_symbols=["<|im_start|>", "<|im_end|>"], user_defined_symbols=["<tool>"])
        )
        self._starts = self.starts()

    def starts(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def start(self, draw: random.Random) -> Any:
        return draw.choice(self._starts), draw.random() < 0.2

    def mutate(self, value: Any, draw: random.Random) -> Any:
        files, proven = value
        name = draw.choice([name for name in self.changed if name in files])
        content = files[name]
        if isinstance(content, bytes) or draw.random() < 0.08:
            content = raw(content if isinstance(content, bytes) else encoded(content), draw)
        else:
            content = self.mutated(content, draw)
        return {**files, name: content}, proven

    def mutated(self, content: Any, draw: random.Random) -> Any:
        return text(content, draw) if isinstance(content, str) else json_value(content, draw)

    def run(self, value: Any) -> bool:
        files, proven = value
        self._write(files)
        reference = "tokenizers" if "tokenizer.json" in files else "sentencepiece"
        tokenizer = load_tokenizer(self._folder, "auto" if proven else reference)
        self.compare(tokenizer)
        stream = mps.stream(
            pairs(2), task=mps.DPO(256), tokenizer=tokenizer, batching=mps.Pad(1), verbose=False, on_bad_row="drop",
            shuffle=False,
        )  # fmt: skip
        for batch in stream.batches():
            ids = batch["chosen_input_ids"]
            assert ids.min() >= 0
            assert ids.max() < max(tokenizer.ids, stream.state(0)["pad_token_id"] + 1)
        return True

    def compare(self, tokenizer: Any) -> None:
        """Asserts that texts get the ids of the library that wrote the file."""

    def is_parsed(self, value: Any) -> bool:
        return all(not isinstance(content, bytes) or is_json(content) for content in value[0].values())

    def _write(self, files: dict[str, Any]) -> None:
        self._folder.mkdir(exist_ok=True)
        for path in self._folder.iterdir():
            path.unlink()
        for name, content in files.items():
            (self._folder / name).write_bytes(encoded(content))


def encoded(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else as_json(content)


def is_json(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


class TokenizerJson(_Tokenizers):
    """tokenizer.json: the same ids as the `tokenizers` package gives."""

    changed = ("tokenizer.json",)

    def starts(self) -> list[dict[str, Any]]:
        return [
            {"tokenizer.json": chatml_spec(), "tokenizer_config.json": config()},
            {"tokenizer.json": chatml_spec()},
            {"tokenizer.json": llama2_spec(self._model), "tokenizer_config.json": LLAMA2_CONFIG},
            *({"tokenizer.json": spec, "tokenizer_config.json": LLAMA2_CONFIG} for spec in other_specs()),
        ]

    def mutated(self, content: Any, draw: random.Random) -> Any:
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict) or draw.random() < 0.1:
            return json_value(content, draw)
        model = content["model"]
        part = draw.choice(["model", "model", *LARGE, *(name for name in content if name != "model"), "added_tokens"])
        if part in LARGE and part in model:
            return {**content, "model": {**model, part: json_value(model[part], draw)}}
        if part == "model":
            small = {name: value for name, value in model.items() if name not in LARGE}
            large = {name: value for name, value in model.items() if name in LARGE}
            changed = json_value(small, draw)
            return {**content, "model": {**changed, **large} if isinstance(changed, dict) else changed}
        return {**content, part: json_value({part: content.get(part)}, draw).get(part)}

    def compare(self, tokenizer: Any) -> None:
        try:
            spec = json.loads((self._folder / "tokenizer.json").read_bytes())
            spec |= dict.fromkeys(("post_processor", "truncation", "padding"))  # which texts in turns do not get
            reference = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception:  # it raises nothing more precise; where this library fills in what the file leaves out
            return
        plain = [one for one in SENTENCES if not any(token in one for token in tokenizer.special_in_template)]
        try:
            expected = [one.ids for one in reference.encode_batch(plain, add_special_tokens=False)]
        except Exception:  # the vocabulary lacks its unknown token
            with pytest.raises(mps.RowError, match="finds no ids for a text"):
                tokenizer.encoder.encode(plain, Place.START)
            return
        assert [ids.tolist() for ids in tokenizer.encoder.encode(plain, Place.START)] == expected, "other ids"


class TokenizerFolder(_Tokenizers):
    """What lies beside a tokenizer.json or a model."""

    changed = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")

    def starts(self) -> list[dict[str, Any]]:
        spec = chatml_spec()
        listed = {
            str(token["id"]): {name: value for name, value in token.items() if name != "id"}
            for token in spec["added_tokens"]
        }
        named = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "additional_special_tokens": ["<|im_start|>"]}
        whole = {**config(), "added_tokens_decoder": listed, "model_type": "qwen2"}
        beside = {"special_tokens_map.json": named, "added_tokens.json": {"<extra>": len(spec["model"]["vocab"]) + 5}}
        return [
            {"tokenizer.json": spec, "tokenizer_config.json": whole, **beside},
            {"tokenizer.json": spec, "tokenizer_config.json": whole, "chat_template.jinja": config()["chat_template"]},
            {"tokenizer.model": self._model.read_bytes(), "tokenizer_config.json": LLAMA2_CONFIG, **beside},
        ]

    def is_parsed(self, value: Any) -> bool:
        return all(
            not isinstance(content, bytes) or is_json(content) or name == "tokenizer.model"
            for name, content in value[0].items()
        )


class SentencePiece(_Tokenizers):
    """A SentencePiece model, as fields of its protocol buffers."""

    changed = ("tokenizer.model",)

    def starts(self) -> list[dict[str, Any]]:
        parsed = [(number, value) for number, value in fields(self._model.read_bytes())]
        return [{"tokenizer.model": parsed}, {"tokenizer.model": parsed, "tokenizer_config.json": LLAMA2_CONFIG}]

    def mutate(self, value: Any, draw: random.Random) -> Any:
        files, proven = value
        content = files["tokenizer.model"]
        if isinstance(content, bytes) or draw.random() < 0.1:
            return {**files, "tokenizer.model": raw(message(content), draw)}, proven
        return {**files, "tokenizer.model": changed_fields(content, draw)}, proven

    def _write(self, files: dict[str, Any]) -> None:
        super()._write({**files, "tokenizer.model": message(files["tokenizer.model"])})

    def compare(self, tokenizer: Any) -> None:
        reference = sentencepiece.SentencePieceProcessor(model_file=str(self._folder / "tokenizer.model"))
        plain = [one for one in SENTENCES if not any(token in one for token in tokenizer.special_in_template)]
        found = [ids.tolist() for ids in tokenizer.encoder.encode(plain, Place.START)]
        assert found == [reference.encode(one) for one in plain], "other ids"

    def is_parsed(self, value: Any) -> bool:
        try:
            sentencepiece.SentencePieceProcessor(model_proto=message(value[0]["tokenizer.model"]) or b"\0")
        except (RuntimeError, UnicodeDecodeError):  # the library quotes pieces as they are
            return False
        return True


def changed_fields(content: list[tuple[int, Any]], draw: random.Random) -> list[tuple[int, Any]]:
    """Changes one field of a message, or of a message in it."""
    content = list(content)
    last = [at for at, (number, _) in enumerate(content) if number != 1]
    at = draw.choice(last) if last and draw.random() < 0.4 else draw.randrange(len(content) or 1)
    if not content:
        return [(1, b"")]
    number, value = content[at]
    change = draw.randrange(8)
    if change < 4 and isinstance(value, bytes):
        try:
            inner = list(fields(value))
        except (IndexError, KeyError):
            inner = []
        inner = changed_leaf(inner, draw)
        content[at] = number, message(inner)
    elif change == 4:
        del content[at]
    elif change == 5:
        content.insert(draw.randrange(len(content)), content[at])
    elif change == 6:
        other = draw.randrange(len(content))
        content[at], content[other] = content[other], content[at]
    else:
        content[at] = draw.randrange(1, 60), value
    return content


def changed_leaf(inner: list[tuple[int, Any]], draw: random.Random) -> list[tuple[int, Any]]:
    inner = list(inner)
    if not inner or draw.random() < 0.2:
        new = draw.choice([draw.randrange(9), b"\0\0\0\0", draw.choice(TEXTS).encode("utf-8", "surrogatepass")])
        return [*inner, (draw.randrange(1, 50), new)]
    at = draw.randrange(len(inner))
    number, value = inner[at]
    if isinstance(value, int):
        value = draw.choice([0, 1, 2, 3, 4, 5, 6, 7, 255, 2**31, 2**63, value + 1])
    else:
        value = draw.choice([raw(value, draw), b"", draw.choice(TEXTS).encode("utf-8", "surrogatepass"), value * 2])
    inner[at] = number, value
    return inner


def message(content: Any) -> bytes:
    """The bytes of a message; 4 bytes that are no text are a number of fixed size."""
    if isinstance(content, bytes):
        return content
    out = b""
    for number, value in content:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        elif len(value) == 4 and number == 2:  # the score of a piece
            out += _varint(number << 3 | 5) + value
        else:
            out += _varint(number << 3 | 2) + _varint(len(value)) + value
    return out
