"""Tokenizers that are small enough to be loaded thousands of times."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from tests.fixtures_tokenizers import CHATML_CONFIG, chatml_tokenizer, write_directory


def chatml_spec() -> dict[str, Any]:
    """A tokenizer.json of byte-level BPE as in Qwen, with a few merges."""
    return dict(json.loads(chatml_tokenizer(vocab_size=280).to_str()))


def other_specs() -> list[dict[str, Any]]:
    """A tokenizer.json for each other kind of model, with pieces for most of the characters that targets use."""
    known = [*map(chr, range(33, 127)), "▁", "\n", "\t", "今", "天", "é", "question", "yes", "no"]
    vocab = {piece: at for at, piece in enumerate(["<unk>", "<s>", "</s>", "<|im_end|>", *known])}
    inner = {f"##{piece}": len(vocab) + at for at, piece in enumerate(known)}
    unknown = {"unk_token": "<unk>"}
    word_piece = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab | inner}
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    characters = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    models: list[tuple[dict[str, Any], Any, Any]] = [
        (
            {"type": "Unigram", "unk_id": 0, "vocab": [[one, -at / 9] for one, at in vocab.items()]},
            metaspace,
            metaspace,
        ),
        ({"type": "WordPiece", **unknown, **word_piece}, {"type": "BertPreTokenizer"}, decoder),
        ({"type": "WordLevel", **unknown, "vocab": vocab}, characters, None),
    ]
    control = list(vocab.items())[:4]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": at, "content": one, "special": True, **flags} for one, at in control],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
            "pre_tokenizer": before,
            "post_processor": None,
            "decoder": after,
            "model": model,
        }
        for model, before, after in models
    ]


def config() -> dict[str, Any]:
    """Its tokenizer_config.json."""
    return {**CHATML_CONFIG, "model_max_length": 1024}


def write_chatml(folder: pathlib.Path) -> None:
    """Writes both as a tokenizer folder."""
    write_directory(folder, chatml_spec(), config())
