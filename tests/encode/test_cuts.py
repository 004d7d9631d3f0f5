"""Cut prompts of every family, against what the template itself writes for the shorter conversation."""

from __future__ import annotations

import functools
import pathlib

import pytest

import ms_prefstream as mps
from ms_prefstream.encode.cut_points import EncodedCutMap
from ms_prefstream.encode.encodings import Encoded
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.encode.truncate import Budget, Flat, fit
from ms_prefstream.formats.record import Messages
from tests.encode.chat_templates import FAMILIES
from tests.encode.field import encode_response, encoder_of
from tests.encode.oracle import Oracle, assistant, system, tool, user

SYSTEM = system("Be brief, please.")
TURNS: Messages = (
    user("How do I keep bread?"), assistant("Wrap it."), user("And tea?"), assistant("In a box."),
    user("For a week or so?"),
)  # fmt: skip
ANSWER: Messages = (assistant("Yes."),)


def cut_to(directory: pathlib.Path, prompt: Messages, room: int, template: str | None = "auto") -> str:
    """The text of a prompt that was cut to so many tokens."""
    tokenizer, encoder = encoder_of(directory, template=template)
    encoded = encode_response(encoder, prompt, ANSWER)
    (sequence,) = fit([flat(encoder, encoded)], Budget(max_length=1000, max_prompt_length=room))
    assert sequence.spans[0][0] <= room
    assert sequence.ids[sequence.spans[0][0] :].tolist() == encoded.ids[encoded.prompt :].tolist()
    return tokenizer.decode(sequence.ids[: sequence.spans[0][0]].tolist())


def flat(encoder: object, encoded: Encoded) -> Flat:
    return Flat(encoded.ids, encoded.prompt, encoded.spans, functools.partial(EncodedCutMap, encoder, encoded))  # type: ignore[arg-type]


def size(directory: pathlib.Path, prompt: Messages) -> int:
    return encode_response(encoder_of(directory)[1], prompt, ANSWER).prompt


def asked(directory: pathlib.Path, prompt: Messages) -> str:
    """The prompt as the template writes it before an answer, as far as no token reaches into the answer."""
    tokenizer, encoder = encoder_of(directory)
    encoded = encode_response(encoder, prompt, ANSWER)
    text = tokenizer.decode(encoded.ids[: encoded.prompt].tolist())
    assert Oracle(directory).render((*prompt, *ANSWER)).startswith(text)
    return text


def before(family: str) -> tuple[Messages, ...]:
    """What may stand in front of the turns."""
    return ((),) if family in ("gemma", "mistral") else ((), (SYSTEM,))


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_turns(field: pathlib.Path, family: str) -> None:
    """Without its oldest exchanges a prompt is what the template writes for the rest of the conversation."""
    directory = field / family
    for lead in before(family):
        whole = size(directory, lead + TURNS)
        assert cut_to(directory, lead + TURNS, whole) == asked(directory, lead + TURNS)
        assert cut_to(directory, lead + TURNS, whole - 1) == asked(directory, lead + TURNS[2:])
        second = size(directory, lead + TURNS[2:])
        assert cut_to(directory, lead + TURNS, second) == asked(directory, lead + TURNS[2:])
        assert cut_to(directory, lead + TURNS, second - 1) == asked(directory, lead + TURNS[4:])


@pytest.mark.parametrize("family", FAMILIES)
def test_text_of_the_last_turn(field: pathlib.Path, family: str) -> None:
    """With its text shortened, a prompt is what the template writes for the shorter question."""
    directory = field / family
    for lead in before(family):
        last = size(directory, lead + TURNS[4:])
        found = cut_to(directory, lead + TURNS, last - 2)
        question = TURNS[4].content
        expected = {asked(directory, (*lead, user(question[at:]))) for at in range(1, len(question))}
        # The first token left may begin with a space, which the template would have trimmed.
        assert found.replace(" ", "") in {text.replace(" ", "") for text in expected}
        assert len(found) - 1 <= max(map(len, expected))


def test_a_template_without_control_tokens(gpt2_dir: pathlib.Path) -> None:
    """Turns that stand in one text: those that are dropped go with their words, the one that is cut keeps its own."""
    words = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    words += "{% if add_generation_prompt %}assistant: {% endif %}"
    turns = [user("one"), assistant("two"), user("the the third")]
    row = {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in turns],
        "chosen": "yes",
        "rejected": "no",
    }
    tokenizer, found = load_tokenizer(gpt2_dir), set()  # one of its tokens holds the end of a header and a letter
    for length in (10, 11, 13, 15, 28, 29):
        sample = mps.encode(row, task=mps.DPO(length), tokenizer=tokenizer, template=words).sample
        if sample is not None:
            found.add(tokenizer.decode(sample.sequences[0].ids.tolist()).replace(":  ", ": "))
    rest, last = "\nassistant: yes\n", turns[-1].content
    whole = "user: one\nassistant: two\nuser: the the third"
    known = [whole + rest, *[f"user: {last[at:].strip()}{rest}" for at in range(len(last))], rest[1:]]
    assert found <= {*known}
    assert {known[0], known[1], f"user: third{rest}", rest[1:]} <= found


def test_the_floor(field: pathlib.Path) -> None:
    """What is left when nothing of the turns fits: BOS, system message, generation header."""
    expected = {
        "chatml": "<|im_start|>system\nBe brief, please.<|im_end|>\n<|im_start|>assistant\n",
        "qwen2.5": "<|im_start|>system\nBe brief, please.<|im_end|>\n<|im_start|>assistant\n",
        "llama2": "<s>[INST] <<SYS>>\nBe brief, please.\n<</SYS>>\n\n [/INST]",
        "mistral": "<s>[INST]Be brief, please.\n\n[/INST]",
        "deepseek": "<｜begin▁of▁sentence｜>Be brief, please.<｜Assistant｜><think>\n",
        "llama3": (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief, please.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
    }
    for family, text in expected.items():
        tokenizer, encoder = encoder_of(field / family)
        asked_only = encode_response(encoder, (SYSTEM, *TURNS))  # Mistral shows the system message only when asking
        floor = EncodedCutMap(encoder, asked_only).floor()
        found = tokenizer.decode([i for part in floor for i in part.tolist()])
        assert found.replace("[INST] ", "[INST]") == text.replace("[INST] ", "[INST]")


def test_the_floor_without_a_system_message(field: pathlib.Path) -> None:
    expected = {
        "chatml": "<|im_start|>assistant\n",
        "vicuna": "A chat. ASSISTANT:",
        "alpaca": "### Response:\n",
        "qwen2.5": "<|im_start|>system\nYou are a helper.<|im_end|>\n<|im_start|>assistant\n",
        "gemma": "<bos><start_of_turn>model\n",
        "llama2": "<s>[INST]  [/INST]", "mistral": "<s>[INST] [/INST]", "glm": "[gMASK]<|assistant|>",
        "no prompt": "<|im_start|>assistant\n",
    }  # fmt: skip
    for family, text in expected.items():
        tokenizer, encoder = encoder_of(field / family)
        encoded = encode_response(encoder, TURNS, ANSWER)
        floor = EncodedCutMap(encoder, encoded).floor()
        assert tokenizer.decode([i for part in floor for i in part.tolist()]) == text, family


def test_a_header_that_a_token_straddles_stays_whole(field: pathlib.Path) -> None:
    """A question that begins with a newline shares a token with "user\\n": the header keeps its own newline."""
    prompt = (user("\nHow do I keep my bread fresh for a week?"),)
    whole = size(field / "chatml", prompt)
    for room in range(whole - 8, whole):
        text = cut_to(field / "chatml", prompt, room)
        assert text.startswith("<|im_start|>user\n")
        kept = text[len("<|im_start|>user\n") : -len("<|im_end|>\n<|im_start|>assistant\n")]
        assert prompt[0].content.endswith(kept)


def test_tool_turns_go_with_their_exchange(field: pathlib.Path) -> None:
    call = assistant("", tool_calls=[{"function": {"name": "f", "arguments": {}}}])
    prompt = (user("Add 1 and 2"), call, tool("3"), assistant("It is 3."), user("Thanks. And 4?"))
    whole = size(field / "qwen2.5", prompt)
    assert cut_to(field / "qwen2.5", prompt, whole - 1) == asked(field / "qwen2.5", prompt[4:])


def test_a_last_exchange_with_tools_loses_its_oldest_turns(field: pathlib.Path) -> None:
    """Nothing but one exchange is left: its text goes from the left, turn by turn."""
    call = assistant("", tool_calls=[{"function": {"name": "f", "arguments": {}}}])
    prompt = (user("Add 1 and 2"), call, tool("3 it is"))
    tokenizer, encoder = encoder_of(field / "qwen2.5")
    whole = size(field / "qwen2.5", prompt)
    seen = {cut_to(field / "qwen2.5", prompt, room) for room in range(whole - 30, whole)}
    lead, header = "<|im_start|>system\nYou are a helper.<|im_end|>\n", "<|im_start|>assistant\n"
    for text in seen:
        assert text.startswith(lead)
        assert text.endswith(header)
    assert any("<tool_response>" in text and "Add" not in text for text in seen)
    assert tokenizer.decode(encode_response(encoder, prompt).ids.tolist()).startswith(lead)


@pytest.mark.parametrize("boundary", ["joint", "inference"])
@pytest.mark.parametrize("template", ["auto", None])
def test_no_character_is_divided(template: str | None, boundary: str) -> None:
    """With a token for every byte, every cut of prompt and response falls between characters."""
    tokenizer, encoder = encoder_of("bytes", template=template, boundary=boundary)
    question, answer = "aé你👩c好 ", "好👩é"
    encoded = encode_response(encoder, (user(question),), (assistant(answer),))
    side = flat(encoder, encoded)
    floor = EncodedCutMap(encoder, encoded).least
    kept = set()
    for length in range(floor + 4, len(side.ids) + 1):
        (sequence,) = fit([side], Budget(max_length=length))
        begin, end = sequence.spans[0]
        prompt = tokenizer.decode(sequence.ids[:begin].tolist())
        response = tokenizer.decode(sequence.ids[begin:end].tolist()).removesuffix("<|im_end|>")
        assert "\ufffd" not in prompt + response
        assert answer.startswith(response)
        text = prompt if template is None else prompt.partition("user\n")[2].partition("<|im_end|>")[0]
        assert question.endswith(text)
        kept.add(text)
    assert kept >= {question[at:] for at in range(2, len(question))}


def test_an_empty_shell_of_a_turn_is_never_left() -> None:
    """With room for one of the four bytes of the last character, the whole turn goes."""
    prompt = (user("Hi 👩"),)
    least = len("<|im_start|>assistant\n") - len("<|im_start|>") + 1
    frame = len("user\n") + 3  # <|im_start|>user\n<|im_end|>\n
    tails = {room: cut_to("bytes", prompt, room) for room in range(least, least + frame + 6)}  # type: ignore[arg-type]
    header = "<|im_start|>assistant\n"
    assert {tails[room] for room in range(least, least + frame + 4)} == {header}
    assert tails[least + frame + 4] == f"<|im_start|>user\n👩<|im_end|>\n{header}"
