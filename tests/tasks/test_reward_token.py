"""The reward token by name: any entry of the vocabulary, or a free id inside the model's embedding."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import Tokenizer, choose_pad_id, load_tokenizer, with_embedding
from ms_prefstream.errors import OptionError, TokenizerError
from tests.fixtures_tokenizers import cached_tokenizer

ROWS = [{"prompt": f"Why {number}?", "chosen": "Tea", "rejected": "No"} for number in range(8)]


def reward(token: Any) -> mps.Reward:
    return mps.Reward(64, layout="reward_token", reward_token=token)


def make(tokenizer: Any, token: Any, **options: Any) -> mps.Stream:
    return mps.stream(ROWS, task=reward(token), tokenizer=tokenizer, batching=mps.Pad(2), **options)


@pytest.mark.parametrize("kind", ["chatml_dir", "llama2_dir", "sentencepiece_model", "bytes"])
def test_every_entry_of_a_vocabulary_has_its_id_by_name(kind: str, request: pytest.FixtureRequest) -> None:
    path = kind if kind == "bytes" else str(request.getfixturevalue(kind))
    tokenizer = cached_tokenizer(path)
    if kind == "sentencepiece_model":
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=path)
        vocabulary = {processor.id_to_piece(id_): id_ for id_ in range(processor.get_piece_size())}
    elif kind == "bytes":
        vocabulary = dict(tokenizer.special)
    else:
        from tokenizers import Tokenizer as Rust

        vocabulary = Rust.from_file(f"{path}/tokenizer.json").get_vocab()
    for name, id_ in vocabulary.items():
        assert tokenizer.token_id(name) == id_
        assert reward(name).token_id(tokenizer) == id_
    assert tokenizer.token_id("no such entry") is None


def test_objects_know_their_vocabulary(llama2_dir: pathlib.Path) -> None:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(llama2_dir)
    assert reward("<tool>").token_id(load_tokenizer(found)) == found.get_vocab()["<tool>"]


def test_a_name_that_is_in_no_vocabulary_gets_the_first_free_id(chatml_dir: pathlib.Path) -> None:
    size = cached_tokenizer(str(chatml_dir)).vocab_size
    for rows in (size + 1, size + 100):
        stream = make(str(chatml_dir), "<|reward|>", vocab_size=rows)
        for batch in stream.batches():
            lengths = batch["attention_mask"].sum(1)
            for row, length in enumerate(lengths.tolist()):
                assert batch["input_ids"][row, length - 1] == size
                assert (batch["input_ids"][row] == size).sum() == 1
    with pytest.raises(TokenizerError, match=f"no free id is known.*larger than {size}: .* the id {size}"):
        make(str(chatml_dir), "<|reward|>", vocab_size=size)


def test_the_size_itself_decides_nothing_that_saved_files_name(chatml_dir: pathlib.Path) -> None:
    size = cached_tokenizer(str(chatml_dir)).vocab_size
    state = json.loads(json.dumps(make(str(chatml_dir), "<|reward|>", vocab_size=size + 1).state(2)))
    assert make(str(chatml_dir), "<|reward|>", vocab_size=size + 64).resume(state).start_step == 2
    plain = make(str(chatml_dir), "<think>").state(2)
    assert plain == make(str(chatml_dir), "<think>", vocab_size=size + 1).state(2)


@pytest.mark.parametrize("size", [0, -1, True, 2.5, "9", 259])
def test_a_size_that_cannot_be(size: Any) -> None:
    with pytest.raises(OptionError, match=r"vocab_size is .*; expected"):
        make("bytes", 256, vocab_size=size)


def test_ids_may_lie_inside_the_embedding() -> None:
    stream = make("bytes", 270, vocab_size=320, pad_token_id=319)
    batch = next(stream.batches())
    assert {270, 319} <= set(np.unique(batch["input_ids"]).tolist())
    with pytest.raises(TokenizerError, match="reward_token is 320, but tokenizer bytes has the ids 0 to 319"):
        make("bytes", 320, vocab_size=320)
    with pytest.raises(OptionError, match=r"pad_token_id is 320; .* the model has the ids 0 to 319"):
        make("bytes", 270, vocab_size=320, pad_token_id=320)
    with pytest.raises(OptionError, match=r"pad_token_id is 9; .* the ids 0 to 7"):
        choose_pad_id(9, None, 8)
    assert choose_pad_id(7, None, 8) == 7


def test_the_error_lists_reserved_tokens_only() -> None:
    tokenizer = Tokenizer(
        name="small",
        encoder=load_tokenizer("bytes").encoder,
        backend="bytes",
        reason="",
        special={"<|im_end|>": 258},
        special_in_template={"<|im_end|>": 258, "<|reserved_0|>": 259},
        vocab_size=260,
        fingerprint="",
        reserved={"<|reserved_0|>": 259},
    )
    with pytest.raises(
        TokenizerError, match=r"Choose a reserved token of it: <\|reserved_0\|> \(id 259\); or"
    ) as caught:
        reward("<|reward|>").token_id(tokenizer)
    assert "im_end" not in str(caught.value)
    assert with_embedding(tokenizer, None) is tokenizer


def test_entries_of_internlm2_and_qwen(shared: pathlib.Path) -> None:
    internlm2 = cached_tokenizer(str(shared / "tokenizers/internlm2"))
    vocabulary = json.loads((shared / "tokenizers/internlm2/tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    assert reward("[UNUSED_TOKEN_130]").token_id(internlm2) == vocabulary["[UNUSED_TOKEN_130]"]
    with pytest.raises(TokenizerError, match=r"reserved token of it: \[UNUSED_TOKEN_\d+\] \(id \d+\), "):
        reward("<|reward|>").token_id(internlm2)
    qwen = cached_tokenizer(str(shared / "tokenizers/qwen2_5"))
    assert reward("<|reward|>").token_id(with_embedding(qwen, 152064)) == qwen.vocab_size == 151665
