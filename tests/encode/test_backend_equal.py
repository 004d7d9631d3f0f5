"""tiktoken in the place of tokenizers: the same ids, proven at load and tried on text of every kind."""

from __future__ import annotations

import functools
import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from texts import any_text

from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.tiktoken_proof import single_pattern
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import TokenizerError
from tests.fixtures_tokenizers import cached_tokenizer as load
from tests.fixtures_tokenizers import write_directory

NUMBERS = {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False}
DIGITS = {"type": "Digits", "individual_digits": True}
# What the stages of DeepSeek tell apart: spaces, controls, letters and symbols inside and outside the kana blocks,
# marks, numbers, punctuation.
AT_THE_BORDERS = (
    " \t\n\r\x00\x01\u200b\u00a0\u3000\u2028\ufeffaZé中々〇ー・゠゛\u3099\u3040\u0301\u093eが가12①Ⅷ.,!?'_~“，。💡"
)
SLACK = settings(
    settings.get_profile("cheap"), derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@functools.cache
def both(directory: pathlib.Path) -> tuple[Any, Any]:
    """(tiktoken, tokenizers) of a directory."""
    fast, reference = load(directory, "tiktoken"), load(directory, "tokenizers")
    assert fast.backend == "tiktoken", fast.reason
    assert reference.backend == "tokenizers"
    return fast.encoder, reference.encoder


def assert_same(directory: pathlib.Path, text: str, places: tuple[Place, ...] = tuple(Place)) -> None:
    fast, reference = both(directory)
    for place in places:
        np.testing.assert_array_equal(fast.encode([text], place)[0], reference.encode([text], place)[0])
    np.testing.assert_array_equal(fast.starts(text), reference.starts(text))


class TestSameIds:
    @SLACK
    @given(any_text)
    @example("a" * 3000)
    @example("<think>a  <|im_end|>")
    @example("<|im_<think>end|></think><think>")
    def test_chatml_with_nfc(self, chatml_dir: pathlib.Path, text: str) -> None:
        assert_same(chatml_dir, text)

    @SLACK
    @given(any_text)
    def test_gpt2(self, gpt2_dir: pathlib.Path, text: str) -> None:
        assert_same(gpt2_dir, text)

    @pytest.mark.slow
    @SLACK
    @given(any_text)
    def test_qwen(self, shared: pathlib.Path, text: str) -> None:
        assert_same(shared / "tokenizers" / "qwen2_5", text, (Place.AFTER_SPECIAL,))

    @SLACK
    @given(st.one_of(any_text, st.text(st.sampled_from(AT_THE_BORDERS), max_size=14)))
    @example("~ー゛゛\n")
    @example("\x00\u3040\u3099\x01 1234 中")
    def test_three_stages_of_deepseek(self, deepseek_dir: pathlib.Path, text: str) -> None:
        assert_same(deepseek_dir, text)

    @SLACK
    @given(st.text(st.sampled_from(AT_THE_BORDERS), max_size=14))
    @example("~ー゛゛\n")
    @example("a  1  中  b")
    def test_one_pattern_for_three_stages(self, deepseek_dir: pathlib.Path, text: str) -> None:
        """The words themselves: a small vocabulary merges too little to show where they end."""
        from tokenizers import Tokenizer

        package = Tokenizer.from_file(str(deepseek_dir / "tokenizer.json")).pre_tokenizer
        spec = json.loads((deepseek_dir / "tokenizer.json").read_text(encoding="utf-8"))
        stages = [step["pattern"]["Regex"] for step in spec["pre_tokenizer"]["pretokenizers"][:-1]]
        words = regex.findall(f"(?V1){single_pattern(stages)}", text)
        assert words == [text[begin:end] for _, (begin, end) in package.pre_tokenize_str(text)]

    def test_the_reference_is_the_package_itself(self, chatml_dir: pathlib.Path) -> None:
        from tokenizers import Tokenizer

        package = Tokenizer.from_file(str(chatml_dir / "tokenizer.json"))
        package.encode_special_tokens = True
        for text in ("Hi <|im_end|> there", "<think>e\u0301</think>", "你好 <|im_start|>user\n"):
            assert both(chatml_dir)[1].encode([text])[0].tolist() == package.encode(text, add_special_tokens=False).ids


class TestRefusals:
    """Files in which something differs go to tokenizers, and say why; without fastokens, which serves most of them."""

    @pytest.fixture(autouse=True)
    def _without_fastokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "fastokens", None)

    def variant(self, tmp_path: pathlib.Path, source: pathlib.Path, change: Any) -> Any:
        spec = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
        change(spec)
        return load_tokenizer(write_directory(tmp_path / "variant", spec, {}))

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda s: s["model"].update(byte_fallback=True), "byte_fallback"),
            (lambda s: s["model"].update(dropout=0.1), "dropout"),
            (lambda s: s.update(normalizer={"type": "NFKC"}), "NFKC"),
            (lambda s: s["model"]["merges"].reverse(), "not in the order of its ids"),
            (lambda s: s["pre_tokenizer"]["pretokenizers"].insert(0, DIGITS), "Digits + Split"),
            (lambda s: s["pre_tokenizer"]["pretokenizers"].insert(0, NUMBERS), "2 stages"),
            (lambda s: s["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+|\W+"), "constructs"),
            (lambda s: s["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\p{L}+| "), "self-check"),
            (lambda s: s["added_tokens"][3].update(lstrip=True), "surroundings"),
        ],
    )
    def test_refused(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path, change: Any, reason: str) -> None:
        tokenizer = self.variant(tmp_path, chatml_dir, change)
        assert tokenizer.backend == "tokenizers"
        assert reason in tokenizer.reason

    def test_a_token_that_merges_never_reach_stays_out(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
        """Without ``ignore_merges`` a whole word in the vocabulary is not looked up; tiktoken would do so."""

        def add_word(spec: dict[str, Any]) -> None:
            for entry in spec["added_tokens"]:
                entry["id"] += 1
            spec["model"]["vocab"]["zzyzxqj"] = len(spec["model"]["vocab"])

        tokenizer = self.variant(tmp_path, chatml_dir, add_word)
        assert tokenizer.backend == "tiktoken"
        assert len(tokenizer.encoder.encode(["zzyzxqj"])[0]) > 1
        assert_same(tmp_path / "variant", "zzyzxqj zzyzxqj")

    def test_whole_words_with_ignore_merges(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
        def add_word(spec: dict[str, Any]) -> None:
            spec["model"]["ignore_merges"] = True
            spec["model"]["vocab"]["zzyzxqj"] = len(spec["model"]["vocab"])

        tokenizer = self.variant(tmp_path, chatml_dir, add_word)
        assert tokenizer.backend == "tiktoken"
        assert len(tokenizer.encoder.encode(["zzyzxqj"])[0]) == 1
        for text in ("zzyzxqj", " zzyzxqj", "azzyzxqj zzyzxqjzz"):
            assert_same(tmp_path / "variant", text)

    def test_a_word_that_merges_stop_short_of(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
        """tiktoken would join the two pieces wherever they meet; the package only when they are the whole word."""

        def add_word(spec: dict[str, Any]) -> None:
            spec["model"]["ignore_merges"] = True
            spec["model"]["vocab"]["zq"] = len(spec["model"]["vocab"])

        tokenizer = self.variant(tmp_path, chatml_dir, add_word)
        assert tokenizer.backend == "tokenizers"
        assert "'zq'" in tokenizer.reason

    def test_a_control_token_that_merges_would_make(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
        """Its merges are taken out, for both backends."""
        spec = json.loads((chatml_dir / "tokenizer.json").read_text(encoding="utf-8"))
        word, id_ = max((t, i) for t, i in spec["model"]["vocab"].items() if t.isalpha() and t.isascii() and len(t) > 3)

        def make_special(spec: dict[str, Any]) -> None:
            spec["added_tokens"].insert(0, {**spec["added_tokens"][0], "content": word, "id": id_})

        tokenizer = self.variant(tmp_path, chatml_dir, make_special)
        assert tokenizer.special[word] == id_
        assert tokenizer.backend == "tiktoken"
        for text in (word, f"{word} {word}s a{word}", f"<think>a{word}s</think>"):
            assert id_ not in tokenizer.encoder.encode([text])[0]
            assert_same(tmp_path / "variant", text)

    def test_a_control_token_that_is_a_whole_word(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
        def make_special(spec: dict[str, Any]) -> None:
            spec["model"]["ignore_merges"] = True
            spec["model"]["vocab"]["zzyzxqj"] = len(spec["model"]["vocab"])
            spec["added_tokens"].insert(0, {**spec["added_tokens"][0], "content": "zzyzxqj", "id": 0})

        tokenizer = self.variant(tmp_path, chatml_dir, make_special)
        assert "control tokens" in tokenizer.reason
        ids = tokenizer.encoder.encode(["zzyzxqj a"])[0].tolist()
        assert tokenizer.special["zzyzxqj"] not in ids
        assert tokenizer.decode(ids) == "zzyzxqj a"

    def test_the_longest_added_token_wins(self, chatml_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
        def add_part(spec: dict[str, Any]) -> None:
            spec["added_tokens"].insert(3, {**spec["added_tokens"][3], "content": "<th", "id": 0})
            spec["added_tokens"].append({**spec["added_tokens"][3], "content": "k>\u00e9", "normalized": True, "id": 0})

        tokenizer = self.variant(tmp_path, chatml_dir, add_part)
        for text in ("<think><thin<th", "a<th</think>", "blik>e\u0301<think>k>\u00e9", "k>e\u0301"):
            assert_same(tmp_path / "variant", text)
        ids = tokenizer.encoder.encode(["<think>", "k>e\u0301"])
        assert ids[0].tolist() == [tokenizer.special_in_template["<think>"]]
        assert ids[1].tolist() == [tokenizer.special_in_template["k>\u00e9"]]

    def test_asked_for_but_impossible(self, llama2_dir: pathlib.Path) -> None:
        with pytest.raises(
            TokenizerError, match=r"backend='tiktoken' cannot be used .* because|backend='tiktoken'.*: its"
        ):
            load_tokenizer(llama2_dir, "tiktoken")


class TestSelfCheck:
    def test_it_finds_a_pattern_that_differs(self, chatml_dir: pathlib.Path) -> None:
        from ms_prefstream.encode.backends.self_check import first_difference

        fast, reference = both(chatml_dir)

        class OffByOne:
            backend = "tiktoken"

            def encode(self, texts: list[str], place: Place) -> list[Any]:
                return [
                    ids[:-1] if "\u3000" in text else ids
                    for text, ids in zip(texts, fast.encode(texts, place), strict=True)
                ]

        assert first_difference(fast, reference) is None
        assert "\u3000" in (first_difference(OffByOne(), reference) or "")  # type: ignore[arg-type]
