"""Laws of every backend: where tokens begin, decoding, control strings in text, places."""

from __future__ import annotations

import itertools
import pathlib
import sys
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from texts import any_text

from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.tokenizer_json import read_pipeline
from ms_prefstream.encode.backends.unicode import nfc, nfc_all, origins
from ms_prefstream.encode.tokenizer import Tokenizer
from tests.fixtures_tokenizers import cached_tokenizer as load

TINY = ("chatml_dir", "gpt2_dir", "sentencepiece_model", "llama2_dir", "metaspace_first_dir")
SLACK = settings(derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=[*TINY, "bytes", "chatml_dir:tokenizers", "chatml_dir:tiktoken"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    name, _, backend = request.param.partition(":")
    return load(name if name == "bytes" else request.getfixturevalue(name), backend or "auto")


def shown(tokenizer: Tokenizer, text: str) -> str:
    """The text as its tokens can show it: normalised where the tokenizer does that, the space mark as a space."""
    if "chatml" in tokenizer.name:
        return nfc(text)
    return text if tokenizer.backend == "bytes" or "gpt2" in tokenizer.name else text.replace("▁", " ")


def check_starts(tokenizer: Tokenizer, text: str, place: Place) -> None:
    ids = tokenizer.encoder.encode([text], place)[0]
    starts = tokenizer.encoder.starts(text, place)
    assert ids.dtype == np.int32
    assert starts.dtype == np.int64
    assert starts.shape == (len(ids) + 1,)
    assert starts[-1] == len(text)
    assert len(ids) == 0 or starts[0] == 0
    known = starts[starts >= 0]
    assert (np.diff(known) >= 0).all()
    for at in range(len(ids) + 1):
        written = tokenizer.decode(ids[:at].tolist())
        if starts[at] >= 0:
            assert written == shown(tokenizer, text[: starts[at]])
        elif shown(tokenizer, text) == text and "\ufffd" not in written:
            assert not text.startswith(written), f"token {at} begins at a character, but has no start"


@SLACK
@given(text=any_text)
def test_starts_are_where_the_text_so_far_ends(tokenizer: Tokenizer, text: str) -> None:
    if text[:1] in (" ", "▁"):  # a Metaspace takes this space for its own
        text = "x" + text
    check_starts(tokenizer, text[:400], Place.START)


@SLACK
@given(text=any_text)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    if text[:1] in (" ", "▁"):
        text = "x" + text
    assert tokenizer.decode(tokenizer.encoder.encode([text], Place.START)[0].tolist()) == shown(tokenizer, text)


@SLACK
@given(text=any_text)
def test_text_never_gives_a_control_id(tokenizer: Tokenizer, text: str) -> None:
    for content in tokenizer.special:
        text += content + text[:3]
    control = set(tokenizer.special.values())
    for place in Place:
        ids = tokenizer.encoder.encode([text], place)[0]
        assert not control & set(ids.tolist())


def test_every_control_string_alone_and_in_text_is_plain(tokenizer: Tokenizer) -> None:
    control = set(tokenizer.special.values())
    for content in tokenizer.special:
        for text in (content, f"a{content}b", content * 2, f" {content} "):
            ids = tokenizer.encoder.encode([text])[0].tolist()
            assert not control & set(ids)
            if tokenizer.backend != "tokenizers" or not text.startswith(" "):
                assert tokenizer.decode(ids).strip() == text.strip()


def test_internlm_spells_bos_although_its_merges_would_make_it(shared: pathlib.Path) -> None:
    tokenizer = load(shared / "tokenizers" / "internlm2")
    ids = tokenizer.encoder.encode(["<s>", "a<s>b</s><unk><|im_end|>"])
    control = set(tokenizer.special.values())
    assert not control & set(np.concatenate(ids).tolist())
    assert [tokenizer.decode(x.tolist()) for x in ids] == ["<s>", "a<s>b</s><unk><|im_end|>"]


@SLACK
@given(text=any_text)
def test_internlm_starts(shared: pathlib.Path, text: str) -> None:
    check_starts(load(shared / "tokenizers" / "internlm2"), text[:300], Place.START)


def test_added_tokens_that_are_not_special_are_recognised(chatml_dir: pathlib.Path) -> None:
    tokenizer = load(chatml_dir)
    think = tokenizer.special_in_template["<think>"]
    ids = tokenizer.encoder.encode(["a<think>e\u0301"])[0].tolist()
    assert ids.count(think) == 1
    assert tokenizer.encoder.starts("a<think>e\u0301")[ids.index(think) : ids.index(think) + 2].tolist() == [1, 8]


class TestNormalised:
    """Offsets into the text as it was given, whatever NFC makes of it."""

    def test_a_composed_character_is_one_unit(self, chatml_dir: pathlib.Path) -> None:
        tokenizer = load(chatml_dir)
        text = "xe\u0301 the bread"
        starts = tokenizer.encoder.starts(text)
        ids = tokenizer.encoder.encode([text])[0]
        assert unicodedata.normalize("NFC", text) == tokenizer.decode(ids.tolist())
        assert 2 not in starts
        words = [text[b:e] for b, e in itertools.pairwise(starts) if b >= 0 and e >= 0]
        assert " the" in words

    def test_what_is_inert_is_inert(self) -> None:
        """Every character that is passed over unseen: never changed, never reordered, never joined to one before."""
        from ms_prefstream.encode.backends import unicode as module

        seconds = set()
        for code in range(sys.maxunicode + 1):
            parts = unicodedata.decomposition(chr(code)).split()
            if len(parts) == 2 and not parts[0].startswith("<"):
                seconds.add(chr(int(parts[1], 16)))
        inert = [
            c
            for c in map(chr, range(sys.maxunicode + 1))
            if not 0xD800 <= ord(c) <= 0xDFFF and not module._TOUCHY.match(c)
        ]
        assert len(inert) > 40_000
        for character in inert:
            assert unicodedata.combining(character) == 0
            assert character not in seconds
        whole = "".join(inert)
        assert module._normalizer.normalize_str(whole) == whole
        joining = {c for c in seconds if unicodedata.combining(c) == 0 and unicodedata.is_normalized("NFC", c)}
        hangul = set(map(chr, [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]))
        assert joining - module._JOINING <= {c for c in joining if not _composes(c)}
        assert hangul <= module._JOINING

    @SLACK
    @given(text=any_text)
    def test_the_shortcut_changes_nothing(self, text: str) -> None:
        from tokenizers import normalizers

        assert nfc(text) == normalizers.NFC().normalize_str(text)

    @SLACK
    @given(texts=st.lists(any_text, max_size=6), copies=st.sampled_from([1, 90]))
    def test_many_at_once_are_each_normalised(self, texts: list[str], copies: int) -> None:
        many = [*texts, "plain ascii", "e\u0301"] * copies  # more than are looked at together
        assert nfc_all(many) == [nfc(text) for text in many]

    def test_texts_too_long_to_be_joined(self) -> None:
        many = ["e\u0301" * 400_000, "\u3042\u3099", "你好" * 400_000, ""]
        assert nfc_all(many) == [nfc(text) for text in many]


def _composes(second: str) -> bool:
    """Whether NFC joins this character to any other before it."""
    for code in range(sys.maxunicode + 1):
        parts = unicodedata.decomposition(chr(code)).split()
        if (
            len(parts) == 2
            and parts[1] == f"{ord(second):04X}"
            and unicodedata.normalize("NFC", chr(code)) == chr(code)
        ):
            return True
    return False


class TestPlaces:
    """What stands before a text decides about the dummy prefix."""

    def pieces(self, tokenizer: Any, text: str, place: Place) -> str:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=str(self.model))
        return "|".join(processor.id_to_piece(int(i)) for i in tokenizer.encoder.encode([text], place)[0])

    @pytest.fixture(autouse=True)
    def _model(self, sentencepiece_model: pathlib.Path) -> None:
        self.model = sentencepiece_model

    def test_sentencepiece(self, sentencepiece_model: pathlib.Path) -> None:
        tokenizer = load(sentencepiece_model)
        for place in (Place.START, Place.AFTER_SPECIAL):
            assert self.pieces(tokenizer, "the", place).startswith("▁")
            assert self.pieces(tokenizer, " the", place).startswith("▁|▁")
        assert not self.pieces(tokenizer, "the", Place.CONTINUATION).startswith("▁")
        assert self.pieces(tokenizer, " the", Place.CONTINUATION) == self.pieces(tokenizer, "the", Place.START)

    def test_a_prepended_mark(self, llama2_dir: pathlib.Path, sentencepiece_model: pathlib.Path) -> None:
        tokenizer, model = load(llama2_dir), load(sentencepiece_model)
        for text in ("the bread", " the  bread ", "你好 the\n", "a", "🧿", "It's 12:30!"):
            for place in Place:
                assert self.pieces(tokenizer, text, place) == self.pieces(model, text, place)

    def test_a_mark_before_the_first_text_only(self, metaspace_first_dir: pathlib.Path) -> None:
        tokenizer = load(metaspace_first_dir)
        assert self.pieces(tokenizer, "the", Place.START).startswith("▁")
        assert not self.pieces(tokenizer, "the", Place.AFTER_SPECIAL).startswith("▁")
        assert not self.pieces(tokenizer, "the", Place.CONTINUATION).startswith("▁")

    @pytest.mark.parametrize("name", ["llama2_dir", "metaspace_first_dir"])
    def test_as_the_package_itself_behind_a_special_token(self, name: str, request: pytest.FixtureRequest) -> None:
        from tokenizers import Tokenizer as Package

        directory = request.getfixturevalue(name)
        package = Package.from_file(str(directory / "tokenizer.json"))
        for text in ("the bread", " the", "你好", "a<tool>b <tool> c"):
            whole = package.encode(f"<s>{text}", add_special_tokens=False).ids
            assert load(directory).encoder.encode([text], Place.AFTER_SPECIAL)[0].tolist() == whole[1:]
            alone = package.encode(text, add_special_tokens=False).ids
            assert load(directory).encoder.encode([text], Place.START)[0].tolist() == alone

    def test_behind_an_added_token_a_continuation_is_at_its_end(self, llama2_dir: pathlib.Path) -> None:
        tokenizer = load(llama2_dir)
        assert self.pieces(tokenizer, "a<tool>a", Place.CONTINUATION) == "a|<tool>|▁a"
        assert tokenizer.encoder.starts("a<tool>a", Place.CONTINUATION).tolist() == [0, 1, 7, 8]

    def test_a_joint_text_is_its_start_and_its_continuation(self, sentencepiece_model: pathlib.Path) -> None:
        """Where no token straddles the border, both ways give the same ids: here behind a byte token."""
        tokenizer = load(sentencepiece_model)
        head, tail = "the bread\x07", "it is fresh"
        joint = tokenizer.encoder.encode([head + tail], Place.START)[0]
        parts = [
            tokenizer.encoder.encode([head], Place.START)[0],
            tokenizer.encoder.encode([tail], Place.CONTINUATION)[0],
        ]
        np.testing.assert_array_equal(joint, np.concatenate(parts))

    def test_a_model_that_trims_keeps_the_space_of_a_continuation(self, unigram_model: pathlib.Path) -> None:
        encoder = load(unigram_model).encoder
        np.testing.assert_array_equal(
            encoder.encode(["  the"], Place.CONTINUATION)[0], encoder.encode(["the"], Place.START)[0]
        )
        assert len(encoder.encode(["the"], Place.CONTINUATION)[0]) > 0

    def test_offsets_through_sentencepiece_normalisation(self, unigram_model: pathlib.Path) -> None:
        encoder = load(unigram_model).encoder
        text = "the ﬁ  bread"
        starts = encoder.starts(text, Place.START)
        assert len(starts) == len(encoder.encode([text], Place.START)[0]) + 1
        assert 4 in starts  # the ligature is one unit ...
        assert (np.diff(starts[starts >= 0]) >= 0).all()
        assert (starts == -1).sum() == 1  # ... and its second letter begins inside it


def test_where_normalised_characters_come_from() -> None:
    assert origins("ae\u0301b", "a\u00e9b").tolist() == [0, 1, 3, 4]
    assert origins("\u0958c", nfc("\u0958c")).tolist() == [0, -1, 1, 2]  # NFC divides this character
    assert origins("ab", "x").tolist() == [0, 2]  # another table of characters made it: its ends alone are known


SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
METASPACE = {"type": "Metaspace", "replacement": "\u2581"}


@pytest.mark.parametrize(
    ("norms", "pres", "kind", "places"),
    [
        ([], [], None, ()),
        ([PREPEND], [], None, ()),
        ([SPACES], [], "metaspace", ()),
        ([PREPEND, SPACES], [], "metaspace", (Place.START, Place.AFTER_SPECIAL)),
        ([PREPEND, PREPEND, SPACES], [], None, ()),
        ([PREPEND], [METASPACE], None, ()),
        ([], [METASPACE], "metaspace", (Place.START, Place.AFTER_SPECIAL)),
        ([], [METASPACE | {"add_prefix_space": False}], "metaspace", ()),
        ([], [METASPACE | {"prepend_scheme": "first"}], "metaspace", (Place.START,)),
        ([], [METASPACE | {"prepend_scheme": "never"}], "metaspace", ()),
        ([{"type": "NFKC"}], [METASPACE], None, ()),
    ],
)
def test_which_pipelines_spell_their_text(norms: Any, pres: Any, kind: str | None, places: tuple[Place, ...]) -> None:
    found = read_pipeline(
        {
            "normalizer": {"type": "Sequence", "normalizers": norms},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": pres},
        }
    )
    assert found.kind == kind
    assert (frozenset() if found.prefix is None else found.prefix.places) == {*places}
