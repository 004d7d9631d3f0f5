"""Where the response begins: traps 1, 2, 3, 20 and 28."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

import ms_prefstream as mps
from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.sentencepiece_proto import read_offsets
from tests.encode.oracle import Oracle
from tests.fixtures_tokenizers import CHATML
from tests.traps.helpers import END, LOOKING, Tok, chatml, pair, rows_of, sides, stream_of, turn

# Prompt and response whose tokens merge, or may merge, across the border.
MEETING = [
    ("Question: tea?\n\nAnswer: ", "Wrap it", " Tea is good"),
    ("Question: tea?\n\nAnswer:", "\nWrap it", "\n\nTea"),
    ("Question: tea?\n", "\nWrap it in cloth", " \n Tea"),
    ("今天的天气很好，我们", "去公园散步吧。", "\n去"),
    ("I can", "'t do that", "not do that"),
    ("cafe", "\u0301s are open", "s"),
    ("The quick br", "own fox", "ight fox"),
]


def test_trap_01_the_first_word_of_the_response_is_lost(tok: Tok) -> None:
    """Joint encoding, split by character offsets: exact ids, no lost word, the straddling token in the response."""
    rows = [pair(*texts) for texts in MEETING]
    bos = [] if tok.loaded.bos_id is None else [tok.loaded.bos_id]
    eos = [tok.loaded.eos_id]
    for (prompt, *responses), row in zip(MEETING, rows_of(rows, tok, template=None, boundary="joint"), strict=True):
        lengths = []
        for response, side in zip(responses, row, strict=True):
            assert side.ids == bos + tok.ids(prompt + response) + eos
            assert side.mask == [0] * len(side.prompt) + [1] * (len(side.ids) - len(side.prompt))
            before, trained = tok.decode(side.prompt[len(bos) :]), tok.decode(side.trained[:-1])
            assert (prompt + response).startswith(before) or "\u0301" in response
            assert len(before) <= len(prompt)
            assert trained.lstrip().endswith(response.lstrip()) or "\u0301" in response
            # As much of the prompt as ends with a token is outside the loss: one token more would reach into the text.
            one_more = tok.decode(side.ids[len(bos) : len(side.prompt) + 1])
            assert len(one_more) > len(prompt) or one_more.endswith("\ufffd") or "\u0301" in response
            lengths.append(len(side.prompt))
        assert all(length >= len(bos) for length in lengths)


def test_trap_01_generation_boundary_on_request(tok: Tok) -> None:
    """``boundary="inference"`` keeps the prompt's ids and goes on; rows where that differs are counted either way."""
    rows = [pair(*texts) for texts in MEETING]
    bos = [] if tok.loaded.bos_id is None else [tok.loaded.bos_id]
    joint, asked = (stream_of(rows, tok, template=None, boundary=name) for name in ("joint", "inference"))
    differ = 0
    for (prompt, *_), found, kept in zip(MEETING, joint.batches(), asked.batches(), strict=True):
        expected = bos + tok.ids(prompt)
        for side in sides(kept):
            assert side.prompt == expected
        differ += any(side.ids[: len(expected)] != expected for side in sides(found))
    assert joint.report.boundary_differs == asked.report.boundary_differs == differ
    assert differ > 0 or tok.directory is None  # bytes never merge


def test_trap_02_content_that_begins_with_a_newline(tok: Tok) -> None:
    """A response that begins with a newline behind "assistant\\n": nothing is dropped, the ids are exact."""
    contents = ["\nTea", "\n\nTea", "\r\nTea", " \nTea", "\n"]
    rows = [pair("Why?", content, "No") for content in contents]
    stream = stream_of(rows, tok)
    for content, batch in zip(contents, list(stream.batches()), strict=True):
        if not content.strip():
            continue  # a stand-in has its place
        side = sides(batch).chosen
        assert side.ids == tok.ids(chatml(("user", "Why?"), ("assistant", content)))
        behind = tok.decode(side.ids)[len(tok.decode(side.prompt)) :]
        assert behind in (content + END + "\n", "\n" + content + END + "\n")  # the header's newline may straddle
    assert stream.report.dropped == {"empty_response": 1}  # the last row says nothing
    assert stream.report.rewritten == 0


def test_trap_02_a_template_that_trims(field: pathlib.Path) -> None:
    """Llama 3's template trims contents: the ids are those of its text, and the rows are counted."""
    tok = Tok(field / "llama3", field / "llama3")
    contents = ["\nTea ", "Tea", " Tea"]
    stream = stream_of([pair("Why?", content, "No") for content in contents], tok, template="auto")
    text = (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nTea<|eot_id|>"
    )
    for batch in stream.batches():
        side = sides(batch).chosen
        assert side.ids == tok.ids(text)
        assert tok.decode(side.trained) == "Tea<|eot_id|>"
    assert stream.report.rewritten == 2


@pytest.mark.parametrize("kind", ["dummy prefix", "SentencePiece", "internlm2"])
def test_trap_03_sentencepiece_dummy_prefix(tok_named: object, kind: str) -> None:
    """Texts are never put together from parts that were encoded apart, each with a prefix of its own."""
    tok = tok_named(kind)  # type: ignore[operator]
    prompt, response = "今天 How do I", "keep bread fresh?"
    (row,) = rows_of([pair(prompt, response, "x")], tok, template=None)
    assert row.chosen.ids[1:-1] == tok.ids(prompt + response)
    if kind != "internlm2":  # its tokenizer.json has no prefix, which is what transformers goes by
        assert row.chosen.ids[1:-1] != tok.ids(prompt) + tok.ids(response)
    (row,) = rows_of([pair(prompt, response, "x")], tok)
    assert row.chosen.ids == tok.ids(chatml(("user", prompt), ("assistant", response)))
    assert tok.decode(row.chosen.trained) == response + END


@pytest.mark.parametrize("template", [CHATML, LOOKING], ids=["learned", "rendered"])
@pytest.mark.parametrize("said", ["a", "user", "assistant", "system", "<", "im_end", "\n.", "n"])
def test_trap_20_the_response_is_found_in_the_template(tok: Tok, said: str, template: str) -> None:
    """Responses that also occur in the template's own text: their place is tracked, never searched for."""
    for row in rows_of([pair(said, said, "No"), pair([turn("user", said)], said, "No")], tok, template=template):
        text = chatml(("user", said), ("assistant", said))
        assert row.chosen.ids == tok.ids(text)
        behind = tok.decode(row.chosen.ids[row.chosen.mask.index(1) :])
        assert behind == said.lstrip() + END + "\n" or behind == said + END + "\n" or behind == "\n" + said + END + "\n"
        assert tok.decode(row.chosen.prompt) + behind == text


def test_trap_28_mask_is_exactly_the_response_and_its_end(tok: Tok) -> None:
    """1 on the response's tokens and the end of turn, 0 on the header and on the newline behind the end."""
    rows = rows_of([pair("Why is that so?", "Tea is good for you.", "No")], tok)
    for response, side in zip(("Tea is good for you.", "No"), rows[0], strict=True):
        header = tok.ids(chatml(("user", "Why is that so?"), asking=True))
        behind = tok.ids(f"{END}\n")[1:]
        size = len(side.ids) - len(header) - len(behind)
        assert side.ids[: len(header)] == header
        assert side.ids[-len(behind) :] == behind
        assert side.mask == [0] * len(header) + [1] * size + [0] * len(behind)
        assert tok.decode(side.trained) == response + END
        assert side.trained[-1] == tok.loaded.special[END]


def test_trap_28_against_transformers(shared: pathlib.Path) -> None:
    """The same by transformers' own offsets, with Qwen2.5's own template."""
    tok = Tok(shared / "tokenizers" / "qwen2_5", shared / "tokenizers" / "qwen2_5")
    oracle = Oracle(shared / "tokenizers" / "qwen2_5")
    (row,) = rows_of([pair("如何学习编程？", "首先选择一门语言。", "No")], tok, template="auto")
    text = tok.decode(row.chosen.ids)
    begin = text.index("首先")
    end = text.index(END, begin) + len(END)
    assert row.chosen.mask == [int(begin <= first and last <= end) for first, last in oracle.spans(text)]


@pytest.mark.parametrize("prompt", ["hello ", "hello\n", "What is it? ", "你好 ", "hello"])
@pytest.mark.parametrize("response", ["你好", "yes", "ok. ", " no"])
def test_trap_01_a_tokenizer_that_trims(unigram_model: pathlib.Path, prompt: str, response: str) -> None:
    """White space at the end of a prompt has no token when the prompt is encoded alone, and one in front of text."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(unigram_model))
    pieces, begins, ends = read_offsets(processor.encode(prompt + response, out_type="serialized_proto"))  # in bytes
    border = len(prompt.encode())
    before = [at for at, (begin, end) in enumerate(zip(begins, ends, strict=True), 1) if begin < end <= border]
    row = {"prompt": prompt, "chosen": response, "rejected": "bad"}
    found = mps.encode(row, task=mps.DPO(99), tokenizer=str(unigram_model), template=None, boundary="joint")
    assert found.sample is not None
    (ids, spans, *_), _ = found.sample.sequences
    assert ids.tolist() == [processor.bos_id(), *pieces, processor.eos_id()]
    assert spans == ((1 + max(before), len(ids)),)


def test_trap_03_inference_never_sets_a_prefix_in_front_of_the_response(tok_named: Callable[[str], Tok]) -> None:
    """The response goes on from the prompt: behind no space there is none."""
    tok = tok_named("SentencePiece")
    row = {"prompt": "the value", "chosen": "the rest", "rejected": "no"}
    found = mps.encode(row, task=mps.DPO(99), tokenizer=tok.loaded, template=None, boundary="inference")
    assert found.sample is not None
    (ids, spans, *_), _ = found.sample.sequences
    assert tok.decode(ids[spans[0][0] : spans[0][1] - 1].tolist()) == "the rest"
    behind = tok.loaded.encoder.encode(["the rest"], Place.CONTINUATION)[0].tolist()
    prefixed = tok.loaded.encoder.encode(["the rest"], Place.AFTER_SPECIAL)[0].tolist()
    assert behind != prefixed  # or this test could not fail
    assert ids[spans[0][0] : spans[0][1] - 1].tolist() == behind
