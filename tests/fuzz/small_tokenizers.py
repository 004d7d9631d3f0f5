"""Tokenizers that are small enough to be loaded thousands of times."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from tests.fixtures_tokenizers import CHATML, WORDS, train_byte_level


def chatml_spec() -> dict[str, Any]:
    """A tokenizer.json of byte-level BPE as in Qwen, with a few merges."""
    from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    steps = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = train_byte_level(steps, normalizers.NFC(), names, vocab_size=280)
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in ("<think>", "</think>")])
    return dict(json.loads(tokenizer.to_str()))


def config() -> dict[str, Any]:
    """Its tokenizer_config.json."""
    return {
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "chat_template": CHATML,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 1024,
    }


def write_chatml(folder: pathlib.Path) -> None:
    """Writes both as a tokenizer folder."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(chatml_spec()))
    (folder / "tokenizer_config.json").write_text(json.dumps(config()))
