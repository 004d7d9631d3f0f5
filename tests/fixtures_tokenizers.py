"""Tiny tokenizers of every family, trained once per session on a few sentences."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import pathlib
from typing import Any

import pytest

from ms_prefstream.encode.tokenizer import Tokenizer, load_tokenizer

SENTENCES = [
    "How do I keep my bread fresh for a week? Wrap it in cloth and keep it away from the light.",
    "I'm not sure that's what they'd want; we'll see what you've got, she said. It's 12:30 already!",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n\tprint(add(i, 2 * i))\n",
    "今天的天气很好，我们去公园散步吧。你喜欢喝茶还是咖啡？请给我一些建议。",
    "如何学习编程？首先选择一门语言，然后每天练习，最重要的是坚持。谢谢您的帮助！",
    "The quick brown fox jumps over the lazy dog 1234567890 times, at 3.14 euros each.",
    "Быстрая лиса перепрыгнула через ленивую собаку. Ça va très bien, merci à vous. Ünïcödé naïve café.",
    "user\nassistant\nsystem\nYou are a helpful assistant. <b>bold</b> [x] {y} <|x|> a_b-c/d",
] * 4

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def fastest(otherwise: str) -> str:
    """The backend that ``auto`` takes for BPE; `fastokens` may not be installed."""
    return "fastokens" if importlib.util.find_spec("fastokens") else otherwise


@functools.cache
def cached_tokenizer(source: Any, backend: str = "auto") -> Tokenizer:
    """A tokenizer, loaded once for all tests."""
    return load_tokenizer(source, backend)


def write_directory(
    directory: pathlib.Path, tokenizer: dict[str, Any] | str | None, config: dict[str, Any] | None
) -> pathlib.Path:
    """A tokenizer directory in Hugging Face layout."""
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        text = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer, ensure_ascii=False)
        (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def train_byte_level(pre_tokenizer: Any, normalizer: Any, special: list[str], vocab_size: int = 700) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


def chatml_tokenizer(vocab_size: int = 700) -> Any:
    """Byte-level BPE as in Qwen: NFC, its pattern, ChatML control tokens, two added tokens that are not special."""
    from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = train_byte_level(
        pre_tokenizers.Sequence([split, byte_level]),
        normalizers.NFC(),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        vocab_size,
    )
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in ("<think>", "</think>")])
    return tokenizer


CHATML_CONFIG = {
    "add_bos_token": False,
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "unk_token": None,
    "chat_template": CHATML,
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "tokenizer_class": "Qwen2Tokenizer",
}


@pytest.fixture(scope="session")
def chatml_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """`chatml_tokenizer` with its chat template."""
    folder = tmp_path_factory.mktemp("chatml") / "tiny-chatml"
    return write_directory(folder, chatml_tokenizer().to_str(), CHATML_CONFIG)


@pytest.fixture(scope="session")
def gpt2_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Byte-level BPE as in GPT-2: its own pattern, one control token that serves as bos and eos, no chat template."""
    from tokenizers import pre_tokenizers

    tokenizer = train_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), None, ["<|endoftext|>"], 500)
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    return write_directory(tmp_path_factory.mktemp("gpt2") / "tiny-gpt2", tokenizer.to_str(), config)


@pytest.fixture(scope="session")
def deepseek_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Byte-level BPE as in DeepSeek V3: three stages of splitting, no normaliser, control tokens with wide bars."""
    from tokenizers import Regex, pre_tokenizers

    words = (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
    )
    stages = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", words]
    splits = [pre_tokenizers.Split(Regex(stage), "isolated") for stage in stages]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
    tokenizer = train_byte_level(pre_tokenizers.Sequence([*splits, byte_level]), None, special)
    config = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[1], "unk_token": None}
    return write_directory(tmp_path_factory.mktemp("deepseek") / "tiny-deepseek", tokenizer.to_str(), config)


def train_sentencepiece(**options: Any) -> bytes:
    """The content of a SentencePiece model file."""
    import sentencepiece

    model = io.BytesIO()
    lines = (line for sentence in SENTENCES for line in sentence.splitlines() if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, minloglevel=2, hard_vocab_limit=False, num_threads=1, **options
    )
    return model.getvalue()


def train_byte_fallback(**options: Any) -> bytes:
    """A SentencePiece BPE model as in most families: byte fallback, text left as it is."""
    return train_sentencepiece(
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        **options,
    )


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A SentencePiece BPE model as in Llama 2: dummy prefix, byte fallback, text left as it is, two control symbols."""
    data = train_byte_fallback(control_symbols=["<|im_start|>", "<|im_end|>"], user_defined_symbols=["<tool>"])
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    path.write_bytes(data)
    return path


@pytest.fixture(scope="session")
def unigram_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A SentencePiece unigram model with the defaults: NFKC, spaces trimmed and joined, dummy prefix, no bytes."""
    path = tmp_path_factory.mktemp("unigram") / "unigram.model"
    path.write_bytes(train_sentencepiece(model_type="unigram", vocab_size=300))
    return path


def llama2_spec(sentencepiece_model: pathlib.Path) -> dict[str, Any]:
    """The tokenizer.json that stands for a SentencePiece BPE model: the same pieces, merges in the order of scores."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    plain = {
        p for i, p in enumerate(pieces) if not processor.is_control(i) and not processor.is_byte(i) and p != "<tool>"
    }
    merges = []
    for piece in (p for p in pieces if p in plain and len(p) > 1):
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        merges += sorted((c for c in cuts if plain.issuperset(c)), key=lambda c: (vocab[c[0]], vocab[c[1]]))
    control = [i for i in range(len(pieces)) if processor.is_control(i) or processor.is_unknown(i)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": pieces[i], "special": i in control, "normalized": False,
             "single_word": False, "lstrip": False, "rstrip": False}
            for i in sorted([*control, vocab["<tool>"]])
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocab, "merges": [" ".join(merge) for merge in merges]},
    }  # fmt: skip


LLAMA2_CONFIG = {
    "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False},
    "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False},
    "unk_token": "<unk>",
    "pad_token": None,
    "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": LLAMA2_TEMPLATE}],
}


@pytest.fixture(scope="session")
def llama2_dir(tmp_path_factory: pytest.TempPathFactory, sentencepiece_model: pathlib.Path) -> pathlib.Path:
    """A tokenizer.json as in Llama 2: a normaliser that prepends a space mark to every text."""
    directory = tmp_path_factory.mktemp("llama2") / "tiny-llama2"
    return write_directory(directory, llama2_spec(sentencepiece_model), LLAMA2_CONFIG)


@pytest.fixture(scope="session")
def metaspace_first_dir(tmp_path_factory: pytest.TempPathFactory, sentencepiece_model: pathlib.Path) -> pathlib.Path:
    """A tokenizer.json as in newer Mistral files: a Metaspace that marks the first text of a sequence only."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    spec = {**llama2_spec(sentencepiece_model), "normalizer": None, "pre_tokenizer": metaspace}
    return write_directory(tmp_path_factory.mktemp("metaspace") / "tiny-metaspace", spec, LLAMA2_CONFIG)
