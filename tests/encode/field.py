"""A small byte-level BPE tokenizer with the control tokens of every family in `chat_templates`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ms_prefstream.encode.build import build_encoder
from ms_prefstream.encode.encoder import ConversationEncoder, Encoded
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import RowError
from ms_prefstream.formats.record import Completion, Messages, Pair
from tests.encode.chat_templates import CONTROL, FAMILIES, ORDINARY
from tests.fixtures_tokenizers import WORDS, cached_tokenizer, train_byte_level, write_directory


@pytest.fixture(scope="session")
def field(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with one tokenizer directory for each family; all have the same vocabulary, with NFC as in Qwen."""
    from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer = train_byte_level(pre_tokenizers.Sequence(steps), normalizers.NFC(), CONTROL)
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in ORDINARY])
    root = tmp_path_factory.mktemp("field")
    for name, family in FAMILIES.items():
        config = {
            "add_bos_token": False,
            "bos_token": family.bos,
            "eos_token": family.eos,
            "pad_token": "<|reserved_0|>",
            "chat_template": family.template,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        write_directory(root / name, tokenizer.to_str(), config)
    return root


def encoder_of(directory: pathlib.Path | str, **options: Any) -> tuple[Tokenizer, ConversationEncoder]:
    """A tokenizer and the conversation encoder for it."""
    tokenizer = cached_tokenizer(directory)
    return tokenizer, build_encoder(tokenizer, **options)


def encode_response(
    encoder: ConversationEncoder, prompt: Messages, response: Messages = (), tools: Any = None
) -> Encoded:
    """One conversation, encoded; a row that is refused raises its error."""
    (found,) = encoder.encode([Completion(prompt, response, tools)])
    if isinstance(found, RowError):
        raise found
    return found[-1]


def encode_pair(encoder: ConversationEncoder, pair: Pair) -> tuple[Encoded, ...]:
    """Both sides of a pair, encoded."""
    (found,) = encoder.encode([pair])
    if isinstance(found, RowError):
        raise found
    return found


def trained(tokenizer: Tokenizer, encoded: Encoded) -> list[str]:
    """The texts under the loss."""
    ids = encoded.ids
    return [tokenizer.decode(ids[begin:end].tolist()) for begin, end in encoded.spans]


def mask_of(spans: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """(length,) 1 on the spans."""
    mask = np.zeros(length, np.int32)
    for begin, end in spans:
        mask[begin:end] = 1
    return mask
