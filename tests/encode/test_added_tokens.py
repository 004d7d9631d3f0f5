"""Control tokens and other added tokens with flags, unknown characters, dropped white space: as `tokenizers` has it."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.encode.backends.added import BLANKS, AddedToken, AddedTokens
from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer
from ms_prefstream.formats.record import Message, Pair
from tests.fixtures_tokenizers import SENTENCES, fastest, write_directory

FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
# Phi-3's way of writing a conversation: white space around every control token.
TURNS = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
PHI3 = TURNS + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
CONTENTS = ["Tea", " Tea ", "\n\n 茶\u3000", "a <x> b", "<x>", "\u00a0x\u2003", "  <x>  y", "q<x>", "\x1cz\x1f", "é x"]
PARTS = [*" \n\t\u3000\u2003\x1caé茶.²_<", "<x>", "<x>", "\u0301"]
texts = st.lists(st.sampled_from(PARTS), min_size=1, max_size=12).map("".join)


def spec_of(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    path = request.getfixturevalue(kind) / "tokenizer.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def with_tokens(spec: dict[str, Any], flags: Sequence[str], special: bool = True) -> dict[str, Any]:
    """The tokenizer with Phi-3's control tokens, and ``<x>``, which is not special, all with these flags."""
    size = 1 + max([*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])])
    names = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<x>"]
    own = dict.fromkeys(FLAGS, False) | dict.fromkeys(flags, True)
    tokens = [
        {"id": size + at, "content": name, "special": special and name != "<x>", **own} for at, name in enumerate(names)
    ]
    return {**spec, "added_tokens": [*spec["added_tokens"], *tokens]}


def loaded(folder: pathlib.Path, spec: dict[str, Any], **config: Any) -> tuple[Tokenizer, Any]:
    from tokenizers import Tokenizer as Package

    directory = write_directory(folder, spec, {"chat_template": PHI3, **config})
    return load_tokenizer(str(directory)), Package.from_file(str(directory / "tokenizer.json"))


def expected(rust: Any, text: str) -> list[int]:
    return list(rust.encode(text, add_special_tokens=False).ids)


def conversation(prompt: str, response: str) -> str:
    return f"<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>\n"


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["joint", "inference"])
@pytest.mark.parametrize("flags", [(), ("lstrip",), ("rstrip",), ("lstrip", "rstrip"), ("single_word",), FLAGS[:3]])
@pytest.mark.parametrize("kind", ["chatml_dir", "llama2_dir", "metaspace_first_dir"])
def test_control_tokens_take_white_space_as_the_package_does(
    kind: str, flags: tuple[str, ...], boundary: str, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    tokenizer, rust = loaded(tmp_path, with_tokens(spec_of(kind, request), flags))
    kept = 0
    for prompt in CONTENTS:
        for response in CONTENTS:
            row = {"prompt": prompt, "chosen": response, "rejected": "another answer"}
            found = mps.encode(row, task=mps.DPO(200), tokenizer=tokenizer, boundary=boundary, format="strings")
            assert found.sample is not None, found
            side = found.sample.sequences[0]
            whole = expected(rust, conversation(prompt, response))
            header = expected(rust, conversation(prompt, "").removesuffix("<|end|>\n"))
            ids = side.ids.tolist()
            if boundary == "joint":
                assert ids == whole, (prompt, response)
            else:
                assert ids[: len(header)] == header
            kept += ids == whole
            if "rstrip" in flags:  # nothing stands between the generation header and the response
                assert side.spans[0][0] == len(header)
            if "single_word" in flags:
                continue  # at a word, a control token is text
            trained = tokenizer.decode(ids[side.spans[0][0] : side.spans[-1][1]])
            assert trained.endswith("<|end|>")
            assert re.sub(f"[{BLANKS}]", "", trained) == re.sub(f"[{BLANKS}]", "", response + "<|end|>")
    assert kept >= 0.7 * len(CONTENTS) ** 2


@given(prompt=texts, response=texts, data=st.data())
def test_any_text_around_them(
    chatml_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, prompt: str, response: str, data: st.DataObject
) -> None:
    flags = data.draw(st.lists(st.sampled_from(FLAGS[:3]), unique=True))
    spec = json.loads((chatml_dir / "tokenizer.json").read_text("utf-8"))
    folder = tmp_path_factory.getbasetemp() / f"any-{'-'.join(sorted(flags))}"
    tokenizer, rust = loaded(folder, with_tokens(spec, flags))
    row = {"prompt": prompt, "chosen": response, "rejected": "another answer"}
    found = mps.encode(row, task=mps.DPO(200), tokenizer=tokenizer, format="strings")
    if found.sample is not None:
        assert found.sample.sequences[0].ids.tolist() == expected(rust, conversation(prompt, response))


@pytest.mark.parametrize("length", range(31, 80, 7))
def test_rows_that_are_cut_keep_the_template(
    length: int, llama2_dir: pathlib.Path, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    tokenizer, rust = loaded(tmp_path, with_tokens(spec_of("llama2_dir", request), ("rstrip",)))
    row = {"prompt": "  Why is the sky blue? " * 3, "chosen": "\nBecause of it. " * 2, "rejected": "no"}
    found = mps.encode(row, task=mps.DPO(length), tokenizer=tokenizer, format="strings")
    assert found.sample is not None, found
    for side in found.sample.sequences:
        assert len(side.ids) <= length
        begin = side.spans[0][0]
        assert side.ids[begin - 1] == expected(rust, "<|assistant|>")[0]
        text = tokenizer.decode(side.ids.tolist())
        assert "\n<|" not in text
        assert not re.search(r"\|>\s", text)


@pytest.mark.parametrize("flags", [(), ("rstrip",), ("lstrip",), ("lstrip", "rstrip")])
def test_a_sentencepiece_model_with_a_configuration_gives_the_same(
    flags: tuple[str, ...], tmp_path: pathlib.Path, sentencepiece_model: pathlib.Path, llama2_dir: pathlib.Path
) -> None:
    spec = json.loads((llama2_dir / "tokenizer.json").read_text("utf-8"))
    ids = {token["content"]: token["id"] for token in spec["added_tokens"] if token["special"]}
    own = dict.fromkeys(FLAGS, False) | dict.fromkeys(flags, True)
    added = {str(id_): {"content": name, "special": True, **own} for name, id_ in ids.items() if name.startswith("<|")}
    config = {"added_tokens_decoder": added, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    template = PHI3.replace("'<|' + m.role + '|>", "'<|im_start|>' + m.role + '").replace("<|end|>", "<|im_end|>")
    template = template.replace("<|assistant|>", "<|im_start|>assistant")
    folders = [write_directory(tmp_path / name, None, config) for name in ("model", "json")]
    shutil.copy(sentencepiece_model, folders[0] / "tokenizer.model")
    write_directory(folders[1], spec, None)
    tokenizers = [load_tokenizer(str(folder)) for folder in folders]
    assert [tokenizer.backend for tokenizer in tokenizers] == ["sentencepiece", fastest("tokenizers")]
    for prompt in CONTENTS:
        row = {"prompt": prompt, "chosen": " Tea \n", "rejected": "no"}
        one, other = (
            mps.encode(row, task=mps.DPO(200), tokenizer=tokenizer, template=template, format="strings")
            for tokenizer in tokenizers
        )
        assert one.sample is not None
        assert other.sample is not None
        for left, right in zip(one.sample.sequences, other.sample.sequences, strict=True):
            assert left.ids.tolist() == right.ids.tolist()
            assert left.spans == right.spans


FLAG_SETS = [(), ("lstrip",), ("rstrip",), ("single_word",), ("lstrip", "rstrip", "single_word"), ("normalized",)]


@pytest.mark.parametrize("flags", FLAG_SETS)
@pytest.mark.parametrize("kind", ["chatml_dir", "gpt2_dir", "llama2_dir"])
def test_other_added_tokens_in_text(
    kind: str, flags: tuple[str, ...], tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    """Their ids, and offsets that spell the text, at every place."""
    tokenizer, rust = loaded(tmp_path, with_tokens(spec_of(kind, request), flags))
    rust.encode_special_tokens = True
    for text in [*CONTENTS, "a<x>b <x> <x><x>", "x <x>² <x>. _<x>", "<x>\u0301"]:
        ids = tokenizer.encoder.encode([text], Place.START)[0]
        assert ids.tolist() == expected(rust, text)
        for place in Place:
            ids = tokenizer.encoder.encode([text], place)[0]
            starts = tokenizer.encoder.starts(text, place)
            assert len(starts) == len(ids) + 1
            assert starts[-1] == len(text)
            known = starts[starts >= 0]
            assert (np.diff(known) >= 0).all()


@example("a<x>", ["single_word"])
@example("²<x>\u0301", ["single_word", "lstrip"])
@given(
    st.lists(st.sampled_from(PARTS), max_size=12).map("".join),
    st.lists(st.sampled_from(FLAGS[:3]), unique=True),
)
def test_the_search_for_added_tokens_is_that_of_the_package(text: str, flags: list[str]) -> None:
    from tokenizers import AddedToken as PackageToken
    from tokenizers import Tokenizer as Package
    from tokenizers import models, pre_tokenizers

    rust = Package(models.WordLevel({"?": 0}, unk_token="?"))
    rust.pre_tokenizer = pre_tokenizers.Split("never", "isolated")
    rust.add_tokens([PackageToken("<x>", normalized=False, **dict.fromkeys(flags, True))])
    found = rust.encode(text, add_special_tokens=False)
    token = AddedToken(content="<x>", id=1, special=False, **dict.fromkeys(flags, True))
    parts = AddedTokens([token]).split(text)
    assert [max(part.id, 0) for part in parts] == found.ids
    assert [(part.begin, part.begin + len(part.text)) for part in parts] == found.offsets


def unigram(folder: pathlib.Path, *, byte_fallback: bool = False, normalizer: Any = None) -> tuple[Tokenizer, Any]:
    from tokenizers import AddedToken as PackageToken
    from tokenizers import Tokenizer as Package
    from tokenizers import models, pre_tokenizers

    pieces = [("<unk>", 0.0), *((character, -4.0) for character in "▁abcdehiklnostuw?.<|>")]
    pieces += [("▁the", -2.0), ("▁is", -2.0), ("un", -3.0)]
    if byte_fallback:
        pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    rust = Package(models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback))
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    if normalizer is not None:
        rust.normalizer = normalizer
    rust.add_special_tokens(
        [PackageToken(name, normalized=False) for name in ("<unk>", "<|user|>", "<|assistant|>", "<|end|>")]
    )
    directory = write_directory(folder, rust.to_str(), {"unk_token": "<unk>", "chat_template": PHI3})
    return load_tokenizer(str(directory)), rust


UNKNOWN = ["x", "the 茶 is", "茶茶", "the茶", "茶 x 茶", "\nx", "un茶un", "is <|end|> x"]


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_an_unknown_character_is_the_unknown_id(byte_fallback: bool, tmp_path: pathlib.Path) -> None:
    tokenizer, rust = unigram(tmp_path, byte_fallback=byte_fallback)
    rust.encode_special_tokens = True
    for text in UNKNOWN:
        ids = tokenizer.encoder.encode([text], Place.START)[0].tolist()
        assert ids == expected(rust, text), text
        assert (0 in ids) is not byte_fallback
        assert len(tokenizer.encoder.starts(text, Place.START)) == len(ids) + 1
    for response in UNKNOWN:
        row = {"prompt": "the 茶", "chosen": response, "rejected": "un"}
        found = mps.encode(row, task=mps.DPO(99), tokenizer=tokenizer, format="strings")
        assert found.sample is not None, found
        side = found.sample.sequences[0]
        begin, end = side.spans[0]
        assert set(side.ids[begin : end - 1].tolist()).isdisjoint(set(tokenizer.special.values()) - {0})


def test_the_name_of_the_unknown_token_is_text(tmp_path: pathlib.Path) -> None:
    """A vocabulary that can write ``<unk>`` writes it; unknown characters beside it stay unknown."""
    from tokenizers import AddedToken as PackageToken
    from tokenizers import Tokenizer as Package
    from tokenizers import models, normalizers, pre_tokenizers

    rust = Package(models.Unigram([("<unk>", 0.0), *((character, -4.0) for character in "▁<unk>ab")], unk_id=0))
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.normalizer = normalizers.NFKC()
    rust.add_special_tokens([PackageToken("<unk>", normalized=False)])
    tokenizer = load_tokenizer(str(write_directory(tmp_path, rust.to_str(), {"unk_token": "<unk>"})))
    names = {id_: piece for piece, id_ in rust.get_vocab().items()}
    for text, written in (
        ("\uff1cunk\uff1e", "▁ < u n k >"),  # it is written by normalisation
        ("a <unk> b", "▁ a ▁ < u n k > ▁ b"),
        ("茶<unk>茶", "▁ <unk>"),
        ("茶", "▁ <unk>"),
    ):
        ids = tokenizer.encoder.encode([text], Place.START)[0].tolist()
        assert [names[id_] for id_ in ids] == written.split()
        assert len(tokenizer.encoder.starts(text, Place.START)) == len(ids) + 1


@pytest.mark.parametrize("fuse", [False, True])
def test_unknown_characters_of_bpe(fuse: bool, tmp_path: pathlib.Path) -> None:
    from tokenizers import AddedToken as PackageToken
    from tokenizers import Tokenizer as Package
    from tokenizers import models

    vocabulary = {piece: id_ for id_, piece in enumerate(["<unk>", *"abcunk<>", "ab"])}
    rust = Package(models.BPE(vocabulary, [("a", "b")], unk_token="<unk>", fuse_unk=fuse))
    rust.add_special_tokens([PackageToken("<unk>", normalized=False)])
    tokenizer = load_tokenizer(str(write_directory(tmp_path, rust.to_str(), {"unk_token": "<unk>"})))
    rust.encode_special_tokens = True
    for text in ("ab", "a茶b", "茶茶ab茶", "<unk>", "茶<unk>"):
        ids = tokenizer.encoder.encode([text], Place.START)[0].tolist()
        assert ids == expected(rust, text), text
        assert len(tokenizer.encoder.starts(text, Place.START)) == len(ids) + 1


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    from tokenizers import Tokenizer as Package
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    rust = Package(models.WordPiece(unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    rust.train_from_iterator(SENTENCES, trainer)
    config = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return load_tokenizer(str(write_directory(tmp_path_factory.mktemp("wordpiece") / "tiny", rust.to_str(), config)))


WORDS = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"
WORDS += "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
SPACES = st.text(alphabet=" \n\t", max_size=3)
SENTENCE = st.lists(st.sampled_from(["tea", "bread", "fresh", "?", "it", "公园", "-", "ünï"]), min_size=1, max_size=4)


@pytest.mark.parametrize("boundary", ["joint", "inference"])
@given(SPACES, SENTENCE, SPACES, SPACES, SENTENCE, SPACES)
def test_white_space_that_is_dropped_moves_no_border(
    wordpiece: Tokenizer, boundary: str, before: str, prompt: Any, after: str, lead: str, response: Any, trail: str
) -> None:
    asked, answered = before + " ".join(prompt) + after, lead + " ".join(response) + trail
    row = {"prompt": asked, "chosen": answered, "rejected": "no other answer"}
    found = mps.encode(row, task=mps.DPO(200), tokenizer=wordpiece, template=WORDS, boundary=boundary, format="strings")
    if found.sample is None:
        return
    side = found.sample.sequences[0]
    header = wordpiece.encoder.encode([f"user:\n{asked}\nassistant:\n"], Place.START)[0].tolist()
    begin, end = side.spans[0]
    assert side.ids[:begin].tolist() == header
    assert side.ids[begin:end].tolist() == wordpiece.encoder.encode([answered], Place.START)[0].tolist()


def test_a_later_turn_of_a_response_keeps_its_header(wordpiece: Tokenizer) -> None:
    turns = [
        {"role": "assistant", "content": "tea"},
        {"role": "user", "content": " fresh "},
        {"role": "assistant", "content": "  bread it "},
    ]
    other = [*turns[:2], {"role": "assistant", "content": "no"}]
    record = Pair(
        *(tuple(Message(**turn) for turn in side) for side in ([dict(role="user", content="tea ?")], turns, other))
    )
    found = mps.encode({}, task=mps.DPO(200), tokenizer=wordpiece, template=WORDS, format=lambda row: record)
    assert found.sample is not None
    side = found.sample.sequences[0]
    trained = [wordpiece.decode(side.ids[begin:end].tolist()) for begin, end in side.spans]
    assert [re.sub(r"\s+", " ", text).strip() for text in trained] == ["tea", "bread it"]


def test_a_prompt_that_is_cut_at_dropped_white_space(wordpiece: Tokenizer) -> None:
    row = {"prompt": "  tea   bread   fresh   it ", "chosen": "  it", "rejected": "no"}
    lengths = []
    for length in range(6, 14):
        task = mps.DPO(length)
        found = mps.encode(row, task=task, tokenizer=wordpiece, template=WORDS, format="strings")
        if found.sample is not None:
            side = found.sample.sequences[0]
            lengths.append(len(side.ids))
            assert wordpiece.decode(side.ids[: side.spans[0][0]].tolist()).replace(" ", "").endswith("assistant:")
    assert lengths


def test_what_changed_is_another_fingerprint(
    llama2_dir: pathlib.Path, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    """Saved files of a tokenizer whose ids were wrong are refused; those of all others stay valid."""
    from ms_prefstream.encode.backends.tokenizer_json import fingerprint

    spec = with_tokens(spec_of("llama2_dir", request), ("rstrip",))
    tokenizer, _ = loaded(tmp_path / "stripping", spec)
    assert tokenizer.flagged
    assert tokenizer.fingerprint != fingerprint(spec, PHI3)
    spec = with_tokens(spec_of("llama2_dir", request), ())
    tokenizer, _ = loaded(tmp_path / "plain", spec)
    assert not tokenizer.flagged
    assert tokenizer.fingerprint == fingerprint(spec, PHI3)


@pytest.mark.parametrize("names", [["a", "ab"], ["ab", "bab"], ["ba", "ab", "c"], ["cc", "c", "bcc"]])
def test_a_sure_part_is_split_alone_whatever_surrounds_it(names: list[str]) -> None:
    """Tokens that overlap each other, and the borders of the text."""
    tokens = [AddedToken(content=name, id=at, special=name == "ba") for at, name in enumerate(names)]
    added, count = AddedTokens(tokens), 0
    words = ["".join(letters) for size in range(5) for letters in itertools.product("abc", repeat=size)]

    def split(text: str) -> list[tuple[str, int]]:
        return [(part.text, part.id) for part in added.split(text)]

    for text, begins, ends in itertools.product(words, (False, True), (False, True)):
        first, last = added.sure_part(text, begins, ends)
        if first == last:
            continue
        count += 1
        core = split(text[first:last])
        assert (begins and first == 0) or core[0][1] >= 0
        assert (ends and last == len(text)) or core[-1][1] >= 0
        for before, after in itertools.product([""] if begins else words[:13], [""] if ends else words[:13]):
            alone = [*split(before + text[:first]), *core, *split(text[last:] + after)]
            assert split(before + text + after) == alone
    assert count > 20


def test_where_a_part_is_sure() -> None:
    added = AddedTokens([AddedToken(content=name, id=at, special=False) for at, name in enumerate(["<t>", "</t>"])])
    text = '\n</t>\n<t>\n{"a": '
    assert added.sure_part(text, False, False) == (1, 9)
    assert added.sure_part(text, True, False) == (0, 9)
    assert added.sure_part(text, False, True) == (1, len(text))
    assert added.sure_part("t>\n<t>", False, False) == (0, 0)  # a content may end with "<"
    assert added.sure_part("no token", True, True) == (0, 0)
