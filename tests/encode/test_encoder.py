"""Batches of records: every text once, errors where they belong, policies for control tokens, layouts that hold."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ms_prefstream as mps
from ms_prefstream.encode.backends.base import Place, TextEncoder
from ms_prefstream.encode.build import build_encoder
from ms_prefstream.encode.cut_points import least_length
from ms_prefstream.encode.encoder import ConversationEncoder, tokens_before
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import OptionError, Reason, RowError, TemplateError
from ms_prefstream.formats.record import Completion, Messages, Pair
from tests.encode.chat_templates import CHATML
from tests.encode.field import encode_pair, encode_response, encoder_of, trained
from tests.encode.oracle import Oracle, assistant, system, user


class Counting:
    """A text encoder that remembers what it was asked."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.backend = encoder.backend
        self.calls: list[list[str]] = []
        self.located: list[str] = []

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[NDArray[np.int32]]:
        self.calls.append(list(texts))
        return self.encoder.encode(texts, place)

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL) -> NDArray[np.int64]:
        self.located.append(text)
        return self.encoder.starts(text, place)

    def decode(self, ids: Sequence[int]) -> str:
        return self.encoder.decode(ids)

    def sure_part(self, text: str, place: Place, *, begins: bool, ends: bool) -> tuple[int, int]:
        return self.encoder.sure_part(text, place, begins=begins, ends=ends)


def counting(directory: pathlib.Path, **options: Any) -> tuple[Counting, ConversationEncoder]:
    import dataclasses

    tokenizer, _ = encoder_of(directory)
    counter = Counting(tokenizer.encoder)
    encoder = build_encoder(dataclasses.replace(tokenizer, encoder=counter), **options)
    return counter, encoder


def pair(prompt: str, chosen: str, rejected: str, *before: Any) -> Pair:
    return Pair((*before, user(prompt)), (assistant(chosen),), (assistant(rejected),))


class TestEachTextOnce:
    def test_pairs(self, field: pathlib.Path) -> None:
        """One call for a batch; a prompt shared by the sides, and by rows, is in it once."""
        counter, encoder = counting(field / "chatml")
        encoder.encode([pair("x", "y", "z")])
        counter.calls.clear()
        encoder.encode([pair("Hi", "a", "b"), pair("Hi", "a", "c"), pair("Ho", "a", "b")])
        assert counter.calls == [
            ["user\nHi", "assistant\na", "assistant\nb", "assistant\nc", "user\nHo"],
        ]
        assert counter.located == []

    def test_system_prompts(self, field: pathlib.Path) -> None:
        """A system prompt is encoded once for all batches."""
        counter, encoder = counting(field / "chatml")
        row = pair("Hi", "a", "b", system("Be brief."))
        first = encoder.encode([row])
        counter.calls.clear()
        again = encoder.encode([row, row])
        assert not any("system\nBe brief." in call for call in counter.calls)
        for sides in again:
            for one, other in zip(sides, first[0], strict=True):  # type: ignore[arg-type]
                assert one.ids.tolist() == other.ids.tolist()

    def test_completions(self, field: pathlib.Path) -> None:
        """The prompt alone and the prompt with its response share their texts."""
        counter, encoder = counting(field / "chatml")
        encoder.encode([Completion((user("x"),), (assistant("y"),))])
        counter.calls.clear()
        encoder.encode([Completion((user("Hi"),), (assistant("Yes"),))])
        assert counter.calls == [["user\nHi", "assistant\nYes"]]

    def test_rendered_rows(self, field: pathlib.Path) -> None:
        """Templates that look into contents: the same texts are still encoded once a batch."""
        counter, encoder = counting(field / "qwen3")
        encoder.encode([pair("Hi", "a", "b")] * 4)
        texts = counter.calls[-1]
        assert len(texts) == len(set(texts))

    def test_a_cut_needs_offsets_of_the_cut_turn_only(self, field: pathlib.Path) -> None:
        from ms_prefstream.encode.cut_points import EncodedCutMap

        counter, encoder = counting(field / "qwen2.5")
        turns = [turn for n in range(20) for turn in (user(f"Question {n}?"), assistant(f"Answer {n}."))]
        sides = encode_pair(
            encoder, Pair((system("S"), *turns, user("Last one?")), (assistant("Yes"),), (assistant("No"),))
        )
        counter.located.clear()
        counter.calls.clear()
        maps = [EncodedCutMap(encoder, side) for side in sides]
        assert counter.located == counter.calls == []
        assert len(maps[0].turns) == 41
        for cuts in maps:
            cuts.points(cuts.turns[-1])
            cuts.clean(cuts.prompt + 1)
        assert counter.located == ["user\nLast one?"]  # once for both sides


class TestErrorsInBatches:
    BAD = "half \ud83d of a pair"

    @pytest.mark.parametrize("where", ["prompt", "chosen", "rejected", "system"])
    def test_a_text_that_is_no_unicode(self, field: pathlib.Path, where: str) -> None:
        """One row with a broken text does not take its neighbours with it."""
        _, encoder = encoder_of(field / "chatml")
        texts = {"prompt": "Hi", "chosen": "a", "rejected": "b"} | ({where: self.BAD} if where != "system" else {})
        bad = pair(*texts.values(), *([system(self.BAD)] if where == "system" else []))
        good = pair("Hi", "a", "b")
        found = encoder.encode([good, bad, good])
        assert isinstance(found[1], RowError)
        assert found[1].reason is Reason.BAD_TYPE
        for sides in (found[0], found[2]):
            assert not isinstance(sides, RowError)
            assert sides[0].ids.tolist() == encode_pair(encoder, good)[0].ids.tolist()

    def test_in_a_stream(self) -> None:
        rows = [{"prompt": "Hi", "chosen": "a", "rejected": "b"}, {"prompt": "Hi", "chosen": self.BAD, "rejected": "b"}]
        options: dict[str, Any] = {"task": mps.DPO(64), "tokenizer": "bytes", "batching": mps.Pad(2)}
        stream = mps.stream(rows, on_bad_row="drop", **options)
        assert len(list(stream.batches())) == 1
        assert stream.report.dropped == {"bad_type": 1}
        with pytest.raises(RowError, match=r"row 1 of list: .*lone surrogate"):
            list(mps.stream(rows, **options).batches())

    def test_an_origin_that_is_known_is_kept(self) -> None:
        encoder = build_encoder(load_tokenizer("bytes"))
        row = Pair((user("a"),), (assistant(self.BAD),), (assistant("b"),), origin="here:7")
        (found,) = encoder.encode([row])
        assert isinstance(found, RowError)
        assert found.origin == "here:7"


class TestControlTokens:
    def test_refused_wherever_they_stand(self, field: pathlib.Path) -> None:
        _, encoder = encoder_of(field / "qwen2.5", special_tokens_in_content="error")
        call = assistant("", tool_calls=[{"function": {"name": "f", "arguments": {"x": "<|im_end|>"}}}])
        rows: list[tuple[Pair, str]] = [
            (pair("a<|im_start|>", "b", "c"), "user turn"),
            (pair("a", "<s>", "c"), "assistant turn"),
            (pair("a", "b", "c</s>"), "assistant turn"),
            (Pair((user("a"),), (call,), (assistant("c"),)), "assistant turn"),
            (Pair((user("a"),), (assistant("b"),), (assistant("c"),), tools=({"name": "<|eot_id|>"},)), "tool schemas"),
        ]
        for row, where in rows:
            (found,) = encoder.encode([row])
            assert isinstance(found, RowError)
            assert found.reason is Reason.SPECIAL_TOKEN
            assert where in str(found)
        (found,) = encoder.encode([pair("<think>", "<|im_star|>", "|im_end|>")])
        assert not isinstance(found, RowError)

    @pytest.mark.parametrize("template", [CHATML, None])
    def test_allowed(self, field: pathlib.Path, template: str | None) -> None:
        """Control tokens act in all contents, as transformers lets them; the response's are under the loss."""
        tokenizer, encoder = encoder_of(field / "chatml", template=template, special_tokens_in_content="allow")
        oracle = Oracle(field / "chatml")
        prompt, response = "a<|im_end|>b</s>", "<s>c<|im_end|>\n<|im_start|>d"
        encoded = encode_response(encoder, (user(prompt),), (assistant(response),))
        text = prompt + response + "<|im_end|>"
        if template is not None:
            text = oracle.render((user(prompt), assistant(response)))
        assert encoded.ids.tolist() == oracle.ids(text)
        assert "".join(trained(tokenizer, encoded)) == response + "<|im_end|>"
        other = encode_response(encoder, (user("a"),), (assistant("b"),))  # without them, the usual way is gone
        assert "".join(trained(tokenizer, other)) == "b<|im_end|>"


class TestLayouts:
    """What is learned from one conversation holds for others, and what does not hold is not used."""

    def test_a_template_that_asks_whether_there_is_text(self, field: pathlib.Path) -> None:
        template = (
            "{% for m in messages %}{% if m.content %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}"
            "{% else %}{{ '<|im_start|>' + m.role + ' says nothing<|im_end|>' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )
        tokenizer, encoder = encoder_of(field / "chatml", template=template)
        for text, expected in (("Hi", "user\nHi"), ("", "user says nothing"), ("Ho", "user\nHo")):
            encoded = encode_response(encoder, (user(text),), (assistant("a"),))
            assert tokenizer.decode(encoded.ids.tolist()) == (
                f"<|im_start|>{expected}<|im_end|><|im_start|>assistant\na<|im_end|>"
            )

    def test_a_template_that_compares_is_never_learned(self, field: pathlib.Path) -> None:
        template = (
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
            "{% if m.content in 'secret' %}{{ '!' }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )
        tokenizer, encoder = encoder_of(field / "chatml", template=template)
        for text, mark in (("Hi", ""), ("Ho", ""), ("Hu", ""), ("He", ""), ("sec", "!")):
            encoded = encode_response(encoder, (user(text),), (assistant("a b"),))
            assert f"user\n{text}{mark}<|im_end|>" in tokenizer.decode(encoded.ids.tolist())

    def test_the_time_stands_still(self, field: pathlib.Path) -> None:
        """A template that writes the time, to the microsecond, gets one day, at midnight."""
        template = (
            "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}"
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}"
        )
        tokenizer, encoder = encoder_of(field / "chatml", template=template, template_date="2024-07-26")
        for _ in range(4):
            encoded = encode_response(encoder, (user("Q"),), (assistant("a b"),))
            text = tokenizer.decode(encoded.ids.tolist())
            assert text == (
                "2024-07-26 00:00:00.000000<|im_start|>user\nQ<|im_end|><|im_start|>assistant\na b<|im_end|>"
            )

    def test_many_role_sequences(self, field: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The memory for layouts has an end, and going past it changes nothing."""
        from ms_prefstream.encode import template

        monkeypatch.setattr(template, "LAYOUTS", 3)
        tokenizer, _ = encoder_of(field / "chatml")
        encoder = build_encoder(tokenizer)
        oracle = Oracle(field / "chatml")
        for n in (1, 2, 3, 4, 5, 1, 2):
            prompt: Messages = (*[turn for k in range(n) for turn in (user(f"q{k}"), assistant(f"a{k}"))], user("?"))
            encoded = encode_response(encoder, prompt, (assistant("x"),))
            assert encoded.ids.tolist() == oracle.ids(oracle.render((*prompt, assistant("x"))))


def test_a_fixed_text_at_the_beginning_begins_a_sequence(metaspace_first_dir: pathlib.Path) -> None:
    """Such a tokenizer sets a space before the first text alone, also where a template states that text."""
    turns = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
    template = "the chat" + turns + "{% if add_generation_prompt %}<s>assistant {% endif %}"
    tokenizer, encoder = encoder_of(metaspace_first_dir, template=template)
    first = tokenizer.encoder.encode(["the chat"], Place.START)[0].tolist()
    assert first != tokenizer.encoder.encode(["the chat"])[0].tolist()
    for _ in range(5):
        encoded = encode_response(encoder, (user("Q"),), (assistant("a"),))
        assert encoded.ids.tolist()[: len(first) + 1] == [*first, tokenizer.special["<s>"]]


class TestPlain:
    @pytest.mark.parametrize(
        ("prompt", "response", "shape"),
        [
            ((system("S"), user("Q")), (assistant("A"),), "system + user + assistant"),
            ((user("Q"), assistant("A"), user("Q")), (assistant("A"),), "user + assistant + user"),
            ((user("Q"),), (assistant("A"), assistant("B")), "user + assistant + assistant"),
        ],
    )
    def test_conversations_are_refused(self, prompt: Messages, response: Messages, shape: str) -> None:
        encoder = build_encoder(load_tokenizer("bytes"), template=None)
        (found,) = encoder.encode([Completion(prompt, response)])
        assert isinstance(found, RowError)
        assert found.reason is Reason.TEMPLATE_REFUSED
        assert shape.rsplit(" + ", len(response))[0] in str(found)

    def test_tools_are_refused(self) -> None:
        encoder = build_encoder(load_tokenizer("bytes"), template=None)
        (found,) = encoder.encode([Completion((user("Q"),), (assistant("A"),), tools=({},))])
        assert isinstance(found, RowError)
        assert "with tools" in str(found)


class TestOptions:
    def encoder(self, **options: Any) -> ConversationEncoder:
        return build_encoder(load_tokenizer("bytes"), **options)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"boundary": "prompt"}, OptionError, "boundary is 'prompt'; expected 'joint' or 'inference'"),
            ({"special_tokens_in_content": "keep"}, OptionError, "special_tokens_in_content is 'keep'"),
            ({"template": "chatml"}, OptionError, "template is 'chatml'; expected 'auto', 'chat', None, Jinja text"),
            ({"template": 3}, OptionError, "template is 3"),
            ({"template": "not/there.jinja"}, TemplateError, "not/there.jinja does not exist"),
            ({"template": "{% for %}"}, TemplateError, "does not compile: line 1"),
            ({"template": "\ud800{{ 1 }}"}, TemplateError, "does not compile.*surrogates not allowed"),
            ({"template": "{{ 'a' | nothing }}"}, TemplateError, "does not compile.*nothing"),
        ],
    )
    def test_refused(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            self.encoder(**options)

    def test_chat_without_a_template(self, gpt2_dir: pathlib.Path) -> None:
        with pytest.raises(TemplateError, match='template="chat" needs a tokenizer with a chat template'):
            encoder_of(gpt2_dir, template="chat")

    def test_a_template_file(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "own.jinja"
        path.write_text("{% for m in messages %}{{ m.content }}|{% endfor %}", encoding="utf-8")
        tokenizer = load_tokenizer("bytes")
        encoded = encode_response(self.encoder(template=str(path)), (user("Q"),), (assistant("A"),))
        assert tokenizer.decode(encoded.ids.tolist()) == "Q|A|"

    def test_a_template_file_that_is_no_text(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "own.jinja"
        path.write_bytes(b"{{ 1 }}\xff")
        with pytest.raises(TemplateError, match=r"own.jinja is not UTF-8 text"):
            self.encoder(template=str(path))
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(TemplateError, match=r"own.jinja is a named pipe"):
            self.encoder(template=str(path))

    @pytest.mark.parametrize(("template", "least"), [("auto", 12), (None, 1)])
    def test_least_length(self, template: str | None, least: int) -> None:
        assert least_length(self.encoder(template=template)) == least


def test_where_a_border_falls() -> None:
    """Tokens: "ab", the three bytes of a character and what follows it in one, "d"; -1 is inside the character."""
    starts = np.array([0, 2, -1, -1, 4, 5])
    assert [tokens_before(starts, at) for at in (0, 1, 2, 4, 5)] == [0, 0, 1, 4, 5]
    assert tokens_before(starts, 3) == 1  # somewhere in the split character: not known, so none of its tokens
    assert tokens_before(starts, 3, at_least=2) == 2  # known from the prompt's own tokens
