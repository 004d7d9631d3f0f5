"""Tokenizer objects of transformers and mindformers, and agreement with transformers on real files."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.self_check import corpus
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer
from ms_prefstream.errors import RowError, TokenizerError
from tests.fixtures_tokenizers import cached_tokenizer as load
from tests.fixtures_tokenizers import fastest

transformers = pytest.importorskip("transformers")
TEXTS = [t for t in corpus() if "▁" not in t]


def assert_plain_text_agrees(tokenizer: Tokenizer, obj: Any, texts: list[str]) -> None:
    for text, ids in zip(texts, tokenizer.encoder.encode(texts, Place.START), strict=True):
        assert ids.tolist() == obj(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


class TestAgreement:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])  # InternLM2's control tokens have other ids there
    def test_with_transformers(self, shared: pathlib.Path, name: str) -> None:
        directory = shared / "tokenizers" / name
        ours, theirs = load(directory), transformers.PreTrainedTokenizerFast.from_pretrained(str(directory))
        assert dict(ours.special_in_template) == theirs.get_added_vocab()
        assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
            theirs.bos_token_id,
            theirs.eos_token_id,
            theirs.pad_token_id,
        )
        assert ours.chat_template == theirs.chat_template
        assert ours.vocab_size == len(theirs)
        assert ours.add_bos == (theirs("a")["input_ids"][0] == theirs.bos_token_id)
        theirs.backend_tokenizer.encode_special_tokens = True
        plain = [t for t in TEXTS if not any(content in t for content in ours.special)]
        assert len(plain) > 130
        for text, ids in zip(plain, ours.encoder.encode(plain, Place.START), strict=True):
            assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]

    def test_rows_of_both_languages(self, shared: pathlib.Path) -> None:
        rows = [
            row
            for name in ("dpo_en_demo", "dpo_zh_demo")
            for row in json.loads((shared / "data" / f"{name}.json").read_text("utf-8"))
        ]
        texts = [lead + row["chosen"]["value"] for row in rows[::4] for lead in ("", "\n", " ")]
        fast = load(shared / "tokenizers" / "qwen2_5").encoder
        reference = load(shared / "tokenizers" / "qwen2_5", "tokenizers").encoder
        for text, one, other in zip(texts, fast.encode(texts), reference.encode(texts), strict=True):
            np.testing.assert_array_equal(one, other)
            assert fast.decode(one.tolist()) == text


class TestFastObjects:
    def test_as_the_directory(self, chatml_dir: pathlib.Path) -> None:
        obj = transformers.PreTrainedTokenizerFast.from_pretrained(str(chatml_dir))
        before = obj.backend_tokenizer.to_str(), obj.backend_tokenizer.encode_special_tokens
        ours = load_tokenizer(obj)
        assert ours.backend == fastest("tiktoken")
        assert (ours.special, ours.eos_id, ours.pad_id) == (
            load(chatml_dir).special,
            load(chatml_dir).eos_id,
            load(chatml_dir).pad_id,
        )
        assert ours.chat_template == load(chatml_dir).chat_template
        assert ours.fingerprint == load(chatml_dir).fingerprint
        assert (obj.backend_tokenizer.to_str(), obj.backend_tokenizer.encode_special_tokens) == before
        assert obj("<|im_end|>")["input_ids"] == [ours.eos_id]  # the object still recognises its own tokens

    def test_it_holds_no_sentencepiece_model(self, chatml_dir: pathlib.Path) -> None:
        obj = transformers.PreTrainedTokenizerFast.from_pretrained(str(chatml_dir))
        with pytest.raises(TokenizerError, match="backend='sentencepiece' needs a SentencePiece model"):
            load_tokenizer(obj, "sentencepiece")

    def test_bos_by_post_processor(self, llama2_dir: pathlib.Path) -> None:
        obj = transformers.PreTrainedTokenizerFast.from_pretrained(str(llama2_dir))
        if not hasattr(obj, "add_bos_token"):
            obj.add_bos_token = False  # as transformers 5 has it for such a file
        assert obj("a").input_ids[0] == 1
        ours = load_tokenizer(obj)
        assert ours.add_bos
        assert ours.bos_id == 1


@pytest.mark.skipif(transformers.__version__.startswith("5."), reason="transformers 5 has fast tokenizers only")
class TestSlowObjects:
    @pytest.fixture
    def gpt2(self, gpt2_dir: pathlib.Path, tmp_path: pathlib.Path) -> Any:
        model = json.loads((gpt2_dir / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        (tmp_path / "vocab.json").write_text(json.dumps({**model["vocab"], "<|endoftext|>": len(model["vocab"])}))
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
        obj = transformers.GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
        obj.add_tokens(["<think>"])
        return obj

    def test_byte_level(self, gpt2: Any, gpt2_dir: pathlib.Path) -> None:
        ours, reference = load_tokenizer(gpt2), load(gpt2_dir)
        assert ours.backend == "object"
        assert ours.eos_id == reference.eos_id
        for text in TEXTS:
            np.testing.assert_array_equal(ours.encoder.encode([text])[0], reference.encoder.encode([text])[0])
            np.testing.assert_array_equal(ours.encoder.starts(text), reference.encoder.starts(text))
        ids = ours.encoder.encode(["a<think>b<|endoftext|>"])[0].tolist()
        assert ours.special_in_template["<think>"] in ids
        assert ours.eos_id not in ids
        assert ours.decode(ids) == "a<think>b<|endoftext|>"

    def test_bos_by_its_own_method(self, gpt2: Any) -> None:
        gpt2.add_bos_token = None  # as where there is no such attribute
        assert not load_tokenizer(gpt2).add_bos
        gpt2.build_inputs_with_special_tokens = lambda ids, _=None: [gpt2.bos_token_id, *ids]
        assert load_tokenizer(gpt2).add_bos

    def test_named_tokens_that_it_does_not_list(self, gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(gpt2), "added_tokens_decoder", {})
        ours = load_tokenizer(gpt2)
        assert ours.special == {"<|endoftext|>": gpt2.eos_token_id}
        assert gpt2.eos_token_id not in ours.encoder.encode(["a<|endoftext|>b"])[0].tolist()

    def test_limits(self, gpt2: Any) -> None:
        encoder = load_tokenizer(gpt2).encoder
        with pytest.raises(RowError, match="at most 131,072"):
            encoder.encode(["a" * 200_000])
        with pytest.raises(RowError, match="lone surrogate"):
            encoder.encode(["\ud800"])

    def test_an_object_that_recognises_control_tokens_all_the_same(self, gpt2: Any) -> None:
        tokenize = gpt2.tokenize
        gpt2.tokenize = lambda text, **kwargs: tokenize(text)
        ours = load_tokenizer(gpt2)
        ids = ours.encoder.encode(["a<|endoftext|>b"])[0].tolist()
        assert ours.eos_id not in ids
        assert ours.decode(ids) == "a<|endoftext|>b"

    def test_an_object_that_changes_text_is_refused(self, gpt2: Any) -> None:
        tokenize = gpt2.tokenize
        gpt2.tokenize = lambda text, **kwargs: tokenize(text.lower(), **kwargs)
        with pytest.raises(TokenizerError, match="changes the text 'Hello World'"):
            load_tokenizer(gpt2)

    @pytest.mark.parametrize("legacy", [True, pytest.param(False, marks=pytest.mark.mindspore)])
    def test_a_sentencepiece_model_inside(self, sentencepiece_model: pathlib.Path, legacy: bool) -> None:
        if not legacy:  # transformers loads protobuf for it, and MindSpore can only be imported before protobuf is
            pytest.importorskip("mindspore")
        obj = transformers.LlamaTokenizer(str(sentencepiece_model), legacy=legacy)
        obj.add_tokens(["<think>"])
        ours = load_tokenizer(obj)
        assert ours.backend == "sentencepiece"
        assert (ours.bos_id, ours.eos_id, ours.add_bos) == (1, 2, True)
        assert_plain_text_agrees(ours, obj, TEXTS)
        for text in ("the bread", " the", "你好"):
            whole = obj(f"<s>{text}", add_special_tokens=False)["input_ids"]
            assert ours.encoder.encode([text], Place.AFTER_SPECIAL)[0].tolist() == whole[1:]
        ids = ours.encoder.encode(["the<think>a</s>"], Place.CONTINUATION)[0].tolist()
        assert ours.special_in_template["<think>"] in ids
        assert ours.eos_id not in ids

    @pytest.mark.mindspore
    def test_of_mindformers(
        self, sentencepiece_model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOG_MF_PATH", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        llama = pytest.importorskip("mindformers.models.llama.llama_tokenizer")
        ours = load_tokenizer(llama.LlamaTokenizer(str(sentencepiece_model)))
        assert ours.backend == "sentencepiece"
        np.testing.assert_array_equal(
            ours.encoder.encode(["the bread"])[0], load(sentencepiece_model).encoder.encode(["the bread"])[0]
        )
