"""Every form a tokenizer comes in, and what a person reads when it is none."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest

from ms_prefstream.encode import tokenizer as tokenizer_module
from ms_prefstream.encode.backends import BACKENDS, LOADERS, Loader
from ms_prefstream.encode.backends.base import Form, NotServedError, Place
from ms_prefstream.encode.backends.sentencepiece_proto import PieceType, as_control, read_model
from ms_prefstream.encode.backends.tokenizer_source import chat_template_of
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer
from ms_prefstream.errors import OptionError, TokenizerError
from tests.fixtures_tokenizers import CHATML, LLAMA2_TEMPLATE, fastest, train_sentencepiece, write_directory
from tests.fixtures_tokenizers import cached_tokenizer as load

FILES = ("tokenizer.json", "tokenizer_config.json")


def spec_of(directory: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    return found


class TestForms:
    def test_directory(self, chatml_dir: pathlib.Path) -> None:
        tokenizer = load(chatml_dir)
        size = max(tokenizer.special_in_template.values()) + 1
        assert tokenizer.name == str(chatml_dir)
        assert tokenizer.backend == tokenizer.encoder.backend == fastest("tiktoken")
        assert set(tokenizer.special) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
        assert set(tokenizer.special_in_template) - set(tokenizer.special) == {"<think>", "</think>"}
        assert (tokenizer.bos_token, tokenizer.bos_id) == (None, None)
        assert (tokenizer.eos_token, tokenizer.eos_id) == ("<|im_end|>", tokenizer.special["<|im_end|>"])
        assert (tokenizer.pad_token, tokenizer.pad_id) == ("<|endoftext|>", tokenizer.special["<|endoftext|>"])
        assert tokenizer.vocab_size == size
        assert tokenizer.chat_template == CHATML
        assert not tokenizer.add_bos
        assert tokenizer.reserved_id is None

    def test_a_path_as_a_string_or_to_the_file(self, chatml_dir: pathlib.Path) -> None:
        for path in (str(chatml_dir), chatml_dir / "tokenizer.json"):
            tokenizer = load_tokenizer(path)
            assert tokenizer.chat_template == CHATML
            assert tokenizer.fingerprint == load(chatml_dir).fingerprint

    def test_a_tokenizer_is_returned_as_it_is(self, chatml_dir: pathlib.Path) -> None:
        assert load_tokenizer(load(chatml_dir)) is load(chatml_dir)

    def test_code_in_a_folder_is_never_run(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
        folder, trace = tmp_path / "model", tmp_path / "trace"
        shutil.copytree(chatml_dir, folder)
        code = f"open({str(trace)!r}, 'w')\nclass Own:\n    from_pretrained = from_file = __init__ = print\n"
        for name in ("tokenization_own.py", "__init__.py", "conftest.py", "sitecustomize.py", "configuration_own.py"):
            (folder / name).write_text(code, encoding="utf-8")
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        named = {
            "AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"],
            "AutoConfig": "configuration_own.Own",
        }
        config |= {"auto_map": named, "tokenizer_class": "Own", "trust_remote_code": True}
        for name in ("tokenizer_config.json", "config.json"):
            (folder / name).write_text(json.dumps(config), encoding="utf-8")
        assert load_tokenizer(folder).chat_template == CHATML
        assert not trace.exists()

    def test_the_default_of_several_templates_and_bos_by_post_processor(self, llama2_dir: pathlib.Path) -> None:
        tokenizer = load(llama2_dir)
        assert tokenizer.chat_template == LLAMA2_TEMPLATE
        assert tokenizer.add_bos
        assert (tokenizer.bos_token, tokenizer.bos_id, tokenizer.unk_token) == ("<s>", 1, "<unk>")
        assert tokenizer.pad_id is None
        assert tokenizer.backend == fastest("tokenizers")

    def test_a_template_file_goes_before_the_configuration(
        self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        config = json.loads((chatml_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
        directory = write_directory(tmp_path, spec_of(chatml_dir), config)
        (directory / "chat_template.jinja").write_text("from the file", encoding="utf-8")
        tokenizer = load_tokenizer(directory)
        assert tokenizer.chat_template == "from the file"
        assert tokenizer.fingerprint != load(chatml_dir).fingerprint

    def test_names_from_special_tokens_map(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
        directory = write_directory(tmp_path, spec_of(chatml_dir), {"pad_token": None})
        names = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>"}
        (directory / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
        tokenizer = load_tokenizer(directory)
        assert tokenizer.eos_token == "<|im_end|>"
        assert tokenizer.pad_token is None  # the configuration says so

    def test_sentencepiece_model_and_directory(self, sentencepiece_model: pathlib.Path) -> None:
        for path in (sentencepiece_model, sentencepiece_model.parent):
            tokenizer = load_tokenizer(path)
            assert (tokenizer.backend, tokenizer.reason) == ("sentencepiece", "the tokenizer is a SentencePiece model")
            assert tokenizer.special == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_start|>": 3, "<|im_end|>": 4}
            assert set(tokenizer.special_in_template) - set(tokenizer.special) == {"<tool>"}
            assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
            assert tokenizer.add_bos

    def test_sentencepiece_with_tokens_beyond_the_model(
        self, sentencepiece_model: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        size = load(sentencepiece_model).vocab_size
        added = {
            str(size): {"content": "<|end|>", "special": True},
            str(size + 1): {"content": "<t>", "special": False},
            "5": {"content": "<tool>", "special": True},
        }
        directory = write_directory(
            tmp_path, None, {"added_tokens_decoder": added, "eos_token": "<|end|>", "add_bos_token": False}
        )
        (directory / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
        tokenizer = load_tokenizer(directory)
        assert (tokenizer.eos_id, tokenizer.vocab_size, tokenizer.add_bos) == (size, size + 2, False)
        assert tokenizer.special["<tool>"] == 5
        ids = tokenizer.encoder.encode(["the <t>the<|end|><tool>"])[0].tolist()
        assert size + 1 in ids
        assert not {size, 5} & set(ids)
        assert tokenizer.decode(ids) == "the <t>the<|end|><tool>"

    @pytest.mark.parametrize("kind", ["user_defined", "normal"])
    def test_sentencepiece_whose_configuration_names_pieces_kept_in_reserve(
        self, kind: str, tmp_path: pathlib.Path
    ) -> None:
        """InternLM2's files: the vocabulary has [UNUSED_TOKEN_145], the configuration calls its id <|im_end|>."""
        reserve = ["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]"]
        options = {"user_defined_symbols": reserve} if kind == "user_defined" else {}
        data = train_sentencepiece(
            model_type="bpe", vocab_size=500, byte_fallback=True, remove_extra_whitespaces=False, **options
        )
        pieces = [piece for piece, _ in read_model(data).pieces]
        ids = [pieces.index(name) for name in reserve] if options else [len(pieces) - 2, len(pieces) - 1]
        names = ["<|im_start|>", "<tool>"]
        added = {str(id_): {"content": name, "special": name != "<tool>"} for id_, name in zip(ids, names, strict=True)}
        directory = write_directory(tmp_path, None, {"added_tokens_decoder": added, "add_bos_token": False})
        (directory / "tokenizer.model").write_bytes(data)
        tokenizer = load_tokenizer(directory)
        assert tokenizer.vocab_size == len(pieces)
        assert tokenizer.special["<|im_start|>"] == ids[0]
        assert tokenizer.special_in_template["<tool>"] == ids[1]
        assert tokenizer.decode(ids) == "<|im_start|><tool>"
        text = f"the <tool> of <|im_start|> {pieces[ids[0]]} {pieces[ids[1]]}"
        found = tokenizer.encoder.encode([text])[0].tolist()
        assert found.count(ids[1]) == 1, "once by its name, never by the name in the vocabulary"
        assert ids[0] not in found, "neither name of a control token is one in a text"
        assert tokenizer.decode(found) == text
        starts = tokenizer.encoder.starts(text)
        assert (starts[0], starts[-1], len(starts)) == (0, len(text), len(found) + 1)

    def test_both_files_and_a_choice(
        self, llama2_dir: pathlib.Path, sentencepiece_model: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        directory = write_directory(tmp_path, spec_of(llama2_dir), {})
        (directory / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
        assert load_tokenizer(directory).backend == fastest("tokenizers")
        assert load_tokenizer(directory, "sentencepiece").backend == "sentencepiece"

    def test_bytes(self) -> None:
        tokenizer = load_tokenizer("bytes")
        assert tokenizer.encoder.encode(["aé<|im_end|>"])[0].tolist() == [97, 0xC3, 0xA9, *b"<|im_end|>"]
        assert tokenizer.encoder.starts("aé中").tolist() == [0, 1, -1, 2, -1, -1, 3]
        assert tokenizer.decode([257, 97, 258]) == "<|im_start|>a<|im_end|>"
        assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (258, 259, 260)
        assert "<|im_start|>" in (tokenizer.chat_template or "")

    def test_a_mindformers_name_whose_files_are_there(
        self, sentencepiece_model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "checkpoint_download" / "llama2"
        folder.mkdir(parents=True)
        (folder / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
        monkeypatch.chdir(tmp_path)
        assert load_tokenizer("llama2_7b").backend == "sentencepiece"

    def test_a_mindformers_yaml(self, sentencepiece_model: pathlib.Path, tmp_path: pathlib.Path) -> None:
        (tmp_path / "vocab.model").write_bytes(sentencepiece_model.read_bytes())
        (tmp_path / "other.model").write_bytes(b"nothing")
        config = tmp_path / "run.yaml"
        config.write_text("processor:\n  tokenizer:\n    type: LlamaTokenizer\n    vocab_file: vocab.model\n")
        assert load_tokenizer(config).special["<s>"] == 1

    @pytest.mark.parametrize("prefixed", [True, False])
    def test_the_configuration_says_whether_texts_begin_with_a_space(
        self, prefixed: bool, gpt2_dir: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        tokenizer = load_tokenizer(write_directory(tmp_path, spec_of(gpt2_dir), {"add_prefix_space": prefixed}))
        assert tokenizer.backend == fastest("tokenizers" if prefixed else "tiktoken")
        plain = load(gpt2_dir).encoder.encode([" the" if prefixed else "the"], Place.START)[0]
        assert tokenizer.encoder.encode(["the"], Place.START)[0].tolist() == plain.tolist()

    @pytest.mark.parametrize("text", ["seed: 0\n", "processor: 3\n", "processor:\n  tokenizer:\n"])
    def test_a_yaml_that_names_no_tokenizer_stands_for_its_folder(
        self, text: str, sentencepiece_model: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
        (tmp_path / "run.yaml").write_text(text)
        assert load_tokenizer(tmp_path / "run.yaml").special["<s>"] == 1
        (tmp_path / "run.yaml").write_text("a: [")
        with pytest.raises(TokenizerError, match=r"run\.yaml cannot be read as YAML"):
            load_tokenizer(tmp_path / "run.yaml")

    def test_it_can_be_sent_to_a_worker(
        self, chatml_dir: pathlib.Path, llama2_dir: pathlib.Path, sentencepiece_model: pathlib.Path
    ) -> None:
        for source in (chatml_dir, llama2_dir, sentencepiece_model, "bytes"):
            tokenizer = load(source)
            copy = pickle.loads(pickle.dumps(tokenizer))
            assert dataclasses.replace(copy, encoder=tokenizer.encoder) == tokenizer
            for place in Place:
                before, after = (
                    t.encoder.encode(["a <think>é 你好<tool><|im_end|></s>"], place)[0] for t in (tokenizer, copy)
                )
                np.testing.assert_array_equal(before, after)

    def test_what_takes_over_from_tiktoken_is_sent_along(self, chatml_dir: pathlib.Path) -> None:
        tokenizer = load(chatml_dir, "tiktoken")
        text = "a" + " \u3000" * 600_000 + "b"  # tiktoken's regular expressions give up
        expected = tokenizer.encoder.encode([text])[0]
        copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(tokenizer))))
        assert copy.encoder._reference._loaded is None
        np.testing.assert_array_equal(copy.encoder.encode([text])[0], expected)
        assert copy.encoder._reference._loaded is not None


class TestControl:
    def test_named_tokens_are_control_whatever_their_flags(
        self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        spec = spec_of(chatml_dir)
        for entry in spec["added_tokens"]:
            entry["special"] = False
        tokenizer = load_tokenizer(write_directory(tmp_path, spec, {"eos_token": "<|im_end|>"}))
        assert set(tokenizer.special) == {"<|im_end|>"}
        assert tokenizer.special["<|im_end|>"] not in tokenizer.encoder.encode(["a<|im_end|>"])[0]
        assert tokenizer.special_in_template["<|im_start|>"] in tokenizer.encoder.encode(["a<|im_start|>"])[0]

    def test_a_unigram_model_that_would_give_bos(self, tmp_path: pathlib.Path) -> None:
        """The piece ``<s>`` has the best score there is: only spelling it out afterwards keeps it out of text."""
        pieces = [["<unk>", 0.0], ["<s>", 0.0], *[[c, -5.0] for c in "<s>ab▁"]]
        spec = {"version": "1.0", "added_tokens": [{"id": 1, "content": "<s>", "special": True, "normalized": False,
                "single_word": False, "lstrip": False, "rstrip": False}], "normalizer": None,
                "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False},
                "post_processor": None, "decoder": None,
                "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}}  # fmt: skip
        tokenizer = load_tokenizer(write_directory(tmp_path, spec, {"bos_token": "<s>"}))
        ids = tokenizer.encoder.encode(["a<s>b"])[0].tolist()
        assert 1 not in ids
        assert tokenizer.decode(ids) == "a<s>b"
        assert tokenizer.encoder.starts("a<s>b").tolist() == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize("kind", [{"type": "Unigram"}, {}], ids=["stated", "old"])
    def test_a_unigram_model_that_does_not_know_a_character(self, kind: dict[str, str], tmp_path: pathlib.Path) -> None:
        """Old files do not state the kind of model. The id stands for the character, not for the text ``<unk>``."""
        pieces = [["<unk>", 0.0], *[[c, -5.0] for c in "<unk>abx ▁"]]
        spec = {"version": "1.0", "added_tokens": [{"id": 0, "content": "<unk>", "special": True, "normalized": False,
                "single_word": False, "lstrip": False, "rstrip": False}], "normalizer": {"type": "Lowercase"},
                "pre_tokenizer": None, "post_processor": None, "decoder": None,
                "model": {**kind, "unk_id": 0, "vocab": pieces, "byte_fallback": False}}  # fmt: skip
        encoder = load_tokenizer(write_directory(tmp_path, spec, {"unk_token": "<unk>"})).encoder
        assert encoder.encode(["A\u4f60b", "<unk>"])[0].tolist() == [6, 0, 7]
        assert encoder.encode(["<unk>"])[0].tolist() == [1, 2, 3, 4, 5]

    def test_reserved_tokens(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
        size = load(chatml_dir).vocab_size
        added = {str(size + i): {"content": f"<|reserved_special_token_{i}|>", "special": True} for i in range(2)}
        tokenizer = load_tokenizer(write_directory(tmp_path, spec_of(chatml_dir), {"added_tokens_decoder": added}))
        assert tokenizer.reserved_id == size == tokenizer.special["<|reserved_special_token_0|>"]
        assert tokenizer.notes == ()

    def test_an_id_that_the_vocabulary_does_not_have_is_refused(
        self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        size = load(chatml_dir).vocab_size
        for id_ in (9000, 300, size + 1):  # beyond the vocabulary, of another piece, with a gap
            added = {str(id_): {"content": "<|x|>", "special": True}}
            with pytest.raises(TokenizerError, match=rf"gives '<\|x\|>' the id {id_}, but .* would get the id {size}"):
                load_tokenizer(write_directory(tmp_path, spec_of(chatml_dir), {"added_tokens_decoder": added}))
        added = {str(size): {"content": "<|x|>", "special": True}}
        directory = write_directory(tmp_path, spec_of(chatml_dir), {"added_tokens_decoder": added})
        assert load_tokenizer(directory).special["<|x|>"] == size

    def test_a_reserved_piece_takes_the_name_that_the_configuration_states(
        self, llama2_dir: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        spec = spec_of(llama2_dir)
        size = len(spec["model"]["vocab"])
        spec["model"]["vocab"] |= {f"[UNUSED_TOKEN_{number}]": size + number for number in range(4)}
        added = {str(size + 2): {"content": "<|a|>", "special": True, "normalized": False}}
        tokenizer = load_tokenizer(write_directory(tmp_path, spec, {"added_tokens_decoder": added}))
        assert tokenizer.special["<|a|>"] == size + 2
        assert tokenizer.vocab_size == size + 4
        assert not tokenizer.notes
        assert "[UNUSED_TOKEN_2]" not in tokenizer.reserved
        assert tokenizer.token_id("[UNUSED_TOKEN_3]") == size + 3
        assert size + 2 not in tokenizer.encoder.encode(["x <|a|> [UNUSED_TOKEN_2]"])[0]

    def test_the_control_tokens_of_internlm2(self, shared: pathlib.Path) -> None:
        tokenizer = load(shared / "tokenizers/internlm2")
        assert (tokenizer.special["<|im_start|>"], tokenizer.special["<|im_end|>"]) == (92543, 92542)
        assert tokenizer.vocab_size == 92544
        assert not tokenizer.notes


class TestFingerprint:
    def test_the_same_however_it_is_written(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
        from tokenizers import Tokenizer as Package

        spec = spec_of(chatml_dir)
        spec["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
        spec["model"].pop("ignore_merges", None)
        config = json.loads((chatml_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
        written = load_tokenizer(write_directory(tmp_path, spec, config))
        package = load_tokenizer(Package.from_file(str(chatml_dir / "tokenizer.json")))
        assert written.fingerprint == load(chatml_dir).fingerprint
        assert dataclasses.replace(package, chat_template=CHATML).fingerprint != written.fingerprint  # no template

    @pytest.mark.parametrize("change", [
        lambda s: s["model"]["merges"].pop(),
        lambda s: s.update(normalizer=None),
        lambda s: s["added_tokens"][4].update(special=True),
        lambda s: s["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\p{L}+|\P{L}+"),
    ])  # fmt: skip
    def test_another_for_other_ids(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path, change: Any) -> None:
        spec = spec_of(chatml_dir)
        change(spec)
        config = json.loads((chatml_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert load_tokenizer(write_directory(tmp_path, spec, config)).fingerprint != load(chatml_dir).fingerprint


class TestRegistry:
    def test_a_backend_is_one_file_and_one_line(
        self, chatml_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`auto` takes the first line that serves the tokenizer; one that refuses is passed over, with its reason."""
        module: Any = types.ModuleType("ms_prefstream.encode.backends.new_backend")
        module.load = lambda source: dataclasses.replace(load(chatml_dir), backend="new", name=source.name)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(tokenizer_module, "LOADERS", (Loader("new", Form.JSON, "new_backend:load"), *LOADERS))
        monkeypatch.setattr(tokenizer_module, "BACKENDS", (*BACKENDS, "new"))
        assert load_tokenizer(chatml_dir).backend == "new"
        assert load_tokenizer(chatml_dir, "new").reason == "backend='new' was asked for"

        def refuse(source: Any) -> None:
            raise NotServedError("it is Tuesday")

        module.load = refuse
        other = load_tokenizer(chatml_dir)
        assert other.backend == fastest("tiktoken")
        assert other.reason.startswith("new does not fit, because it is Tuesday")
        with pytest.raises(TokenizerError, match=r"backend='new' cannot be used for .*: new does not fit"):
            load_tokenizer(chatml_dir, "new")

    def test_the_lines(self) -> None:
        assert BACKENDS == ("auto", "fastokens", "tiktoken", "tokenizers", "sentencepiece")
        assert {loader.reads for loader in LOADERS} == set(Form)


class TestErrors:
    def expect(self, tokenizer: Any, pattern: str, backend: str = "auto") -> None:
        with pytest.raises(TokenizerError, match=pattern):
            load_tokenizer(tokenizer, backend)

    def test_no_such_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
        self.expect("Qwen/Qwen2.5-7B-Instruct", r"'Qwen/Qwen2.5-7B-Instruct' is on this machine.*Pass a directory")

    def test_a_directory_without_tokenizer(self, tmp_path: pathlib.Path) -> None:
        self.expect(tmp_path, "expected tokenizer.json or tokenizer.model, found nothing")
        (tmp_path / "config.json").write_text("{}")
        self.expect(tmp_path, "found config.json")
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / name).write_text("{}")
        self.expect(tmp_path, "save_pretrained")

    def test_broken_files(self, tmp_path: pathlib.Path, chatml_dir: pathlib.Path) -> None:
        (tmp_path / "tokenizer.json").write_text('{"model": {"vocab"')
        self.expect(tmp_path, r"tokenizer.json is not valid JSON")
        (tmp_path / "tokenizer.json").write_text("[1]")
        self.expect(tmp_path, "holds a JSON list")
        (tmp_path / "tokenizer.json").write_text('{"a": 1}')
        self.expect(tmp_path, "expected an object with 'model'.*found 'a'")
        (tmp_path / "tokenizer.json").write_text('{"model": {"type": "New", "vocab": {}}, "added_tokens": []}')
        self.expect(tmp_path, "cannot read this tokenizer.json")
        write_directory(tmp_path, spec_of(chatml_dir), None)
        (tmp_path / "tokenizer_config.json").write_text("{")
        self.expect(tmp_path, "tokenizer_config.json is not valid JSON")

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("tokenizer_config.json", {"additional_special_tokens": 3}, r"Expected `array \| null`, got `int`"),
            ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "added_tokens_decoder"),
            ("tokenizer_config.json", {"added_tokens_decoder": {"7": 3}}, "Expected `object`, got `int`"),
            ("tokenizer_config.json", {"added_tokens_decoder": {str(2**40): {"content": "a"}}}, "Expected `int` <"),
            ("special_tokens_map.json", {"additional_special_tokens": "ab"}, "got `str`"),
            ("added_tokens.json", {"<a>": "7"}, "Expected `int`, got `str`"),
            ("added_tokens.json", {"<a>": 2**40}, "Expected `int` <"),
            ("tokenizer.json", {"added_tokens": [{"id": 1}]}, "missing required field `content`"),
            ("tokenizer.json", {"added_tokens": 3}, "added_tokens"),
            ("tokenizer.json", {"normalizer": {"type": "Sequence", "normalizers": 3}}, "normalizers"),
            ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "Expected `int` >= 0"),
            ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}}, "Expected `int` <"),
            ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": [3]}}, "merges"),
        ],
    )
    def test_parts_of_another_type(
        self, name: str, change: Any, message: str, tmp_path: pathlib.Path, chatml_dir: pathlib.Path
    ) -> None:
        folder = pathlib.Path(shutil.copytree(chatml_dir, tmp_path / "model"))
        before = json.loads((folder / name).read_text("utf-8")) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(before | change))
        self.expect(folder, rf"{name} cannot belong to a tokenizer: .*{message}")

    @pytest.mark.parametrize("template", [[{"name": [], "template": "x"}], [3, {"template": "x"}], {"default": 3}, 3])
    def test_a_template_of_another_type_is_none(
        self, template: Any, tmp_path: pathlib.Path, chatml_dir: pathlib.Path
    ) -> None:
        config = json.loads((chatml_dir / "tokenizer_config.json").read_text("utf-8"))
        folder = write_directory(tmp_path / "model", spec_of(chatml_dir), config | {"chat_template": template})
        assert load_tokenizer(folder).chat_template is None

    @pytest.mark.parametrize(
        ("templates", "chosen"),
        [
            ([{"name": "rag", "template": "x"}, {"name": "default", "template": "y"}], "y"),
            ([{"name": "rag", "template": "x"}], "x"),
            ([{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}], None),
            ({"default": "y", "rag": "x"}, "y"),
        ],
    )
    def test_which_of_several_templates(self, templates: Any, chosen: str | None) -> None:
        assert chat_template_of({"chat_template": templates}) == chosen

    def test_packages_that_panic(self, tmp_path: pathlib.Path, chatml_dir: pathlib.Path) -> None:
        spec = spec_of(chatml_dir)
        model = spec["model"] | {"continuing_subword_prefix": "#" * 40}
        self.expect(write_directory(tmp_path / "prefix", spec | {"model": model}, None), "it panics: byte index")
        first, second, *_ = spec["model"]["vocab"]
        spec["model"]["vocab"][second] = spec["model"]["vocab"][first]
        assert load_tokenizer(write_directory(tmp_path / "twice", spec, None)).backend != "tiktoken"

    def test_a_post_processor_that_adds_what_it_does_not_hold(
        self, tmp_path: pathlib.Path, llama2_dir: pathlib.Path
    ) -> None:
        spec, config = (json.loads((llama2_dir / name).read_text("utf-8")) for name in FILES)
        spec["post_processor"]["single"][0]["SpecialToken"]["id"] = "<other>"
        without = {name: value for name, value in config.items() if name != "add_bos_token"}
        self.expect(write_directory(tmp_path / "panics", spec, without), "it panics: no entry found")
        assert load_tokenizer(write_directory(tmp_path / "unused", spec, {**config, "add_bos_token": True})).add_bos

    @pytest.mark.parametrize("piece", ["<0x=2>", "<0x 2>", "<0x_2>", "<0xéé>", "<0x2\n>", "<0x１２>"])
    def test_a_piece_that_is_nearly_a_byte(self, piece: str, tmp_path: pathlib.Path, llama2_dir: pathlib.Path) -> None:
        spec = spec_of(llama2_dir)
        id_ = spec["model"]["vocab"].pop("<0x05>")
        spec["model"]["vocab"][piece] = id_
        assert load_tokenizer(write_directory(tmp_path / "model", spec, None), "tokenizers").decode([id_]) == piece

    @pytest.mark.parametrize("end", [b"\n\x04\n\x02\xff\xff", b"\xa3\x06\xa4\x06"])
    def test_models_that_only_their_package_reads(
        self, end: bytes, tmp_path: pathlib.Path, sentencepiece_model: pathlib.Path
    ) -> None:
        """A piece that is no text, and a group."""
        path = tmp_path / "tokenizer.model"
        path.write_bytes(sentencepiece_model.read_bytes() + end)
        self.expect(path, "tokenizer.model is damaged")

    def test_fields_that_the_package_does_not_know(
        self, tmp_path: pathlib.Path, sentencepiece_model: pathlib.Path
    ) -> None:
        """The type of a piece as text, one without a name, and a piece, trainer and normaliser that are numbers."""
        path, data = tmp_path / "tokenizer.model", sentencepiece_model.read_bytes()
        data += b"\n\x07\n\x02xy\x1a\x01a" + b"\n\x06\n\x02xz\x18\x63" + b"\x18\x01" + b"\x08\x01"
        data += b"\x0d\xff\xff\xff\xff" + b"\x11" + 8 * b"\xff" + b"\x1d\xff\xff\xff\xff"
        path.write_bytes(data)
        assert load_tokenizer(path).vocab_size == load_tokenizer(sentencepiece_model).vocab_size + 2
        assert as_control(data, ()) == data
        assert read_model(as_control(data, ("xy",))).pieces[-2] == ("xy", PieceType.CONTROL)

    def test_models_that_are_none(self, tmp_path: pathlib.Path, sentencepiece_model: pathlib.Path) -> None:
        path = tmp_path / "tokenizer.model"
        path.write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
        self.expect(path, "looks like a list of tiktoken ranks")
        path.write_bytes(b"\x00\x01\x02")
        self.expect(path, "is not a SentencePiece model")
        path.write_bytes(sentencepiece_model.read_bytes() + 2 * b"\n\x04\n\x02\xf4(")
        self.expect(path, "is not a SentencePiece model")

    def test_backends_that_do_not_fit(self, chatml_dir: pathlib.Path, sentencepiece_model: pathlib.Path) -> None:
        self.expect(chatml_dir, "needs a SentencePiece model", "sentencepiece")
        self.expect(sentencepiece_model, "needs a tokenizer.json", "tiktoken")
        self.expect("bytes", "needs a tokenizer.json, and tokenizer 'bytes' has none", "tiktoken")
        with pytest.raises(OptionError, match="expected one of auto, fastokens, tiktoken"):
            load_tokenizer(chatml_dir, "rust")

    def test_something_else(self) -> None:
        self.expect(17, "an object of type int is not a tokenizer")


def test_loading_imports_no_large_package(chatml_dir: pathlib.Path) -> None:
    code = (
        "import sys; from ms_prefstream.encode.tokenizer import load_tokenizer; load_tokenizer(sys.argv[1]);"
        "print([m for m in ('mindspore', 'mindformers', 'transformers', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(chatml_dir)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_pipe_is_no_tokenizer(tmp_path: pathlib.Path) -> None:
    for name, what in {"tokenizer.json": "tokenizer file", "tokenizer.model": "", "run.yaml": "configuration"}.items():
        os.mkfifo(tmp_path / name)
        with pytest.raises(TokenizerError, match=rf"{what}.* is a named pipe; expected a regular file"):
            load_tokenizer(tmp_path / name)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that opens and cannot be read")
def test_a_file_that_cannot_be_read_is_named_with_the_cause(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("/proc/self/mem")  # its first bytes are no memory of this process
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read: the disk reports an error"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["closed", "closed/tokenizer.json", "run.yaml"])
def test_a_tokenizer_in_a_folder_that_may_not_be_entered_is_named(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal is the operating system's; it is played here, since an administrator is never refused."""
    closed, real = str(tmp_path / "closed"), os.stat
    (tmp_path / "run.yaml").write_text(f"processor: {{tokenizer: {{vocab_file: {closed}/tokenizer.json}}}}")

    def stat(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(TokenizerError, match=r"closed.* cannot be read: the permissions forbid it\. Give this user"):
        load_tokenizer(tmp_path / name)


def test_the_frozen_tokenizer_is_frozen(chatml_dir: pathlib.Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(chatml_dir).name = "x"  # type: ignore[misc]
    assert isinstance(load(chatml_dir), Tokenizer)
