"""Real rows, real tokenizers: our ids, masks and texts against what transformers makes of the rendered conversation.

A sample of the rows runs always; all of them (`long`) run with ``make test-long``.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.encode.encodings import Encoded
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import RowError
from ms_prefstream.formats import resolve_format
from ms_prefstream.formats.record import Message, Messages, Pair
from ms_prefstream.sources import open_source
from tests.encode.field import encoder_of, mask_of
from tests.encode.oracle import Oracle

DATA = ("dpo_en_demo.json", "dpo_zh_demo.json", "cvalues_like_2k.jsonl")
ROWS = {"dpo_en_demo.json": 300, "dpo_zh_demo.json": 300, "cvalues_like_2k.jsonl": 2000}
TOKENIZERS = ("qwen2_5", "internlm2")
PREFIXES = ("", "\n", " ")


def pairs(path: pathlib.Path, step: int) -> Iterator[tuple[int, Pair | RowError]]:
    """Every `step`-th row of a file, as a record or as the reason why it is none."""
    source, fmt = open_source(str(path)), resolve_format("auto")
    for row in range(0, len(source), step):
        try:
            record = fmt(source.read([row])[0])
        except RowError as error:
            yield row, error
            continue
        assert isinstance(record, Pair)
        yield row, record


def with_prefix(pair: Pair, prefix: str) -> Pair:
    def lead(messages: Messages) -> Messages:
        return (Message(messages[0].role, prefix + messages[0].content, messages[0].extra), *messages[1:])

    return Pair(pair.prompt, lead(pair.chosen), lead(pair.rejected), origin=pair.origin)


def response_tokens(oracle: Oracle, text: str, asked: str, content: str) -> np.ndarray:
    """(n,) 1 on the tokens that hold a character of the response, and on the end of turn that follows it.

    By transformers' own offsets, which for a split character name the whole of it.
    """
    begin, end = len(asked), len(asked) + len(content)
    assert text[begin:end] == content
    assert text[end:].startswith("<|im_end|>")
    spans = oracle.spans(text)
    mask = np.zeros(len(spans), np.int32)
    for index, (first, last) in enumerate(spans):
        mask[index] = (last > begin and first < end) or (first, last) == (end, end + len("<|im_end|>"))
    return mask


def check(tokenizer: Tokenizer, oracle: Oracle, prompt: Messages, response: Messages, encoded: Encoded) -> None:
    text, asked = oracle.render(prompt + response), oracle.render(prompt, generation=True)
    ids = encoded.ids
    assert ids.dtype == np.int32
    assert ids.tolist() == oracle.ids(text)
    assert tokenizer.decode(ids.tolist()) == text
    expected = response_tokens(oracle, text, asked, response[0].content)
    mask = mask_of(encoded.spans, len(ids))
    np.testing.assert_array_equal(mask, expected)
    begin, end = encoded.spans[0]
    assert len(encoded.spans) == 1
    assert begin == encoded.prompt
    assert encoded.differs == (ids[: len(oracle.ids(asked))].tolist() != oracle.ids(asked))
    under_loss = tokenizer.decode(ids[begin:end].tolist())
    assert under_loss.endswith(response[0].content + "<|im_end|>")
    if not encoded.differs:
        assert under_loss == response[0].content + "<|im_end|>"


def check_rows(shared: pathlib.Path, name: str, tokenizer_name: str, prefix: str, step: int) -> None:
    directory = shared / "tokenizers" / tokenizer_name
    tokenizer, encoder = encoder_of(directory)
    oracle = Oracle(directory)
    rows = list(pairs(shared / "data" / name, step))
    assert len(rows) == -(-ROWS[name] // step)
    good = [(row, with_prefix(pair, prefix)) for row, pair in rows if isinstance(pair, Pair)]
    usable = 0
    for (row, pair), found in zip(good, encoder.encode([pair for _, pair in good]), strict=True):
        if isinstance(found, RowError):
            assert str(found.reason) == "identical", (row, str(found))
            assert pair.chosen == pair.rejected
            continue
        usable += 1
        for response, encoded in zip((pair.chosen, pair.rejected), found, strict=True):
            check(tokenizer, oracle, pair.prompt, response, encoded)
    assert usable > 0.9 * len(rows)


@pytest.mark.parametrize("prefix", PREFIXES, ids=["as it is", "newline", "space"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", DATA)
def test_a_sample_of_the_rows(shared: pathlib.Path, name: str, tokenizer: str, prefix: str) -> None:
    check_rows(shared, name, tokenizer, prefix, step=100 if name.startswith("cvalues") else 30)


@pytest.mark.long
@pytest.mark.parametrize("prefix", PREFIXES, ids=["as it is", "newline", "space"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", DATA)
def test_every_row(shared: pathlib.Path, name: str, tokenizer: str, prefix: str) -> None:
    check_rows(shared, name, tokenizer, prefix, step=1)


@pytest.mark.long
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("max_length", [256, 1024])
def test_no_row_is_lost(shared: pathlib.Path, name: str, tokenizer: str, max_length: int) -> None:
    """Every row of the file ends in a batch or in the report with a reason."""
    stream = mps.stream(
        str(shared / "data" / name),
        task=mps.DPO(max_length),
        tokenizer=str(shared / "tokenizers" / tokenizer),
        batching=mps.Pad(1),
        shuffle=False,
        on_bad_row="drop",
    )
    good = dropped = 0
    for step, batch in enumerate(stream.batches()):
        (planned,), (delivered,) = stream.rows(0, step), stream.rows(0, step, resolved=True)
        dropped += planned != delivered
        good += planned == delivered
        assert batch["chosen_loss_mask"].any()
        assert batch["rejected_loss_mask"].any()
    assert good + dropped == ROWS[name] == stream.report.read
    assert dropped == sum(stream.report.dropped.values())
    assert all(len(origins) >= 1 for origins in stream.report.origins.values())
