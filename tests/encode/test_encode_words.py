"""What encoding says of options, templates and rows that it refuses, in full."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import choose_pad_id, load_tokenizer, with_embedding
from tests.helpers import error_of

BYTES = load_tokenizer("bytes")
BARE = dataclasses.replace(BYTES, chat_template=None, name="bare")
WITHOUT = dataclasses.replace(BYTES, pad_token=None, eos_token=None, name="without")
PAIR = {"prompt": "Q?", "chosen": "yes", "rejected": "no"}
USER = {"role": "user", "content": "Q?"}
ANSWER = {"role": "assistant", "content": "A"}
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DATED = "{{ strftime_now('%d %b') if strftime_now is defined }}" + TURNS + HEADER


def stream(tokenizer: Any = "bytes", **options: Any) -> mps.Stream:
    return mps.stream([PAIR], task=mps.DPO(64), tokenizer=tokenizer, batching=mps.Pad(1), verbose=False, **options)


def refusal(row: Any, task: Any = None, **options: Any) -> str:
    """Why a row is dropped."""
    return mps.encode(row, task=task or mps.DPO(64), **{"tokenizer": "bytes"} | options).problem


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes an empty folder the working directory: errors name files as they were given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("encode"))
        pathlib.Path("folder").mkdir()
        yield


OPTIONS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: stream(boundary="both"),
        "boundary is 'both'; expected 'auto', 'joint' or 'inference'.",
    ),
    (
        lambda: stream(special_tokens_in_content="keep"),
        "special_tokens_in_content is 'keep'; expected 'escape', 'error' or 'allow'.",
    ),
    (
        lambda: stream(content_lost="ignore"),
        "content_lost is 'ignore'; expected 'report', 'drop' or 'error'.",
    ),
    (
        lambda: stream(continue_final_message="yes"),
        "continue_final_message is 'yes'; expected 'error' or 'join'.",
    ),
    (
        lambda: stream(train_empty_think=1),
        "train_empty_think is 1; expected False or True.",
    ),
    (
        lambda: stream(template_limit_s=0),
        "template_limit_s is 0; expected a positive number of seconds, or None for no limit.",
    ),
    (
        lambda: stream(template_limit_s="5"),
        "template_limit_s is '5'; expected a positive number of seconds, or None for no limit.",
    ),
    (
        lambda: stream(template_limit_s=True),
        "template_limit_s is True; expected a positive number of seconds, or None for no limit.",
    ),
    (
        lambda: stream(template_variables={"a": {1}}),
        "template_variables state 'a' as {1}; expected a value that JSON can hold.",
    ),
    (
        lambda: stream(template_variables=[1]),
        "template_variables are [1]; expected a mapping from names to plain values.",
    ),
    (
        lambda: stream(template_variables={1: 2}),
        "template_variables are {1: 2}; expected a mapping from names to plain values.",
    ),
    (
        lambda: stream(template=None, template_variables={"a": 1}),
        "template_variables is {'a': 1}, but there is no chat template that could read them. Leave it out, or"
        " pass a template.",
    ),
    (
        lambda: stream(template=3),
        "template is 3; expected 'auto', 'chat', None, Jinja text (with {{ }} or {% %}), or the path of a .jinja file.",
    ),
    (
        lambda: stream(template="no markers"),
        "template is 'no markers'; expected 'auto', 'chat', None, Jinja text (with {{ }} or {% %}), or the "
        "path of a .jinja file.",
    ),
    (
        lambda: stream(template="gone.jinja"),
        "template file gone.jinja does not exist. Give the path of a Jinja file.",
    ),
    (
        lambda: stream(BARE, template="chat"),
        'template="chat" needs a tokenizer with a chat template, and bare has none. Pass the Jinja text as '
        "template=, or template=None to join prompt and response as text.",
    ),
    (
        lambda: stream(template="{{ messages | nothing }}"),
        "the chat template does not compile: line 1: No filter named 'nothing'.. Expected Jinja as in "
        "tokenizer_config.json; correct the template or pass template=None to join prompt and response as "
        "text.",
    ),
    (
        lambda: stream(template="x" * 2000000 + "{{ messages }}"),
        "the chat template does not compile: it has 2000014 characters; 1048576 are the limit. Expected Jinja"
        " as in tokenizer_config.json; correct the template or pass template=None to join prompt and response"
        " as text.",
    ),
    (
        lambda: stream(template="{{ 2 ** 99999999 }}" + TURNS + HEADER),
        "the chat template makes a value of more than 32 MB or 1,048,576 items (2 messages with 2 "
        "characters). Check it, or raise template_limit_s (now 10); None lifts all limits.",
    ),
    (
        lambda: stream(template="{{ 'a' * 999999999 }}" + TURNS + HEADER),
        "the chat template makes a value of more than 32 MB or 1,048,576 items (2 messages with 2 "
        "characters). Check it, or raise template_limit_s (now 10); None lifts all limits.",
    ),
    (
        lambda: stream(template=DATED, template_variables={"date_string": "today"}),
        "date_string in template_variables is 'today'; expected a date such as '2024-07-26', since the "
        "template writes it in a form of its own.",
    ),
    (
        lambda: stream(backend="fastest"),
        "backend is 'fastest'; expected one of auto, fastokens, tiktoken, tokenizers, sentencepiece.",
    ),
    (
        lambda: stream(backend="tiktoken"),
        "backend='tiktoken' needs a tokenizer.json, and tokenizer 'bytes' has none. Use backend='auto', or "
        "pass a directory with such a file.",
    ),
    (
        lambda: stream("folder"),
        "folder holds no tokenizer: expected tokenizer.json or tokenizer.model, found nothing. Pass a "
        "directory with tokenizer.json or tokenizer.model, a path to such a file, a tokenizer object of "
        'transformers or mindformers, or "bytes".',
    ),
    (
        lambda: stream(3),
        "an object of type int is not a tokenizer. Pass a directory with tokenizer.json or tokenizer.model, a path to "
        'such a file, a tokenizer object of transformers or mindformers, or "bytes".',
    ),
    (
        lambda: stream(vocab_size=0),
        "vocab_size is 0; expected a whole number of at least 1.",
    ),
    (
        lambda: stream(vocab_size=100),
        "vocab_size is 100, but tokenizer bytes has the ids 0 to 259; expected the rows of the model's "
        "embedding, at least 260. Give that number (vocab_size in the model's configuration), or leave it "
        "out.",
    ),
    (
        lambda: stream(pad_token_id=-1),
        "pad_token_id is -1; expected the id of a token; tokenizer bytes has the ids 0 to 259.",
    ),
    (
        lambda: stream(pad_token_id=260),
        "pad_token_id is 260; expected the id of a token; tokenizer bytes has the ids 0 to 259.",
    ),
    (
        lambda: stream(pad_token_id=True),
        "pad_token_id is True; expected the id of a token; tokenizer bytes has the ids 0 to 259.",
    ),
    (
        lambda: stream(pad_token_id="<pad>"),
        "pad_token_id is '<pad>'; expected the id of a token; tokenizer bytes has the ids 0 to 259.",
    ),
    (
        lambda: stream(pad_token_id=300, vocab_size=300),
        "pad_token_id is 300; expected the id of a token; the model has the ids 0 to 299.",
    ),
    (
        lambda: choose_pad_id(9, None, 9),
        "pad_token_id is 9; expected the id of a token; the model has the ids 0 to 8.",
    ),
    (
        lambda: choose_pad_id(None, None),
        "tokenizer=None is for rows that are already tokenized, and these need pad_token_id, the id that "
        "arrays are filled up with. Pass pad_token_id=<id>, or tokenizer= for rows with text.",
    ),
    (
        lambda: choose_pad_id(None, WITHOUT),
        "tokenizer without has no pad, reserved or end token to pad with. Pass pad_token_id=<id>.",
    ),
    (
        lambda: with_embedding(BYTES, 7),
        "vocab_size is 7, but tokenizer bytes has the ids 0 to 259; expected the rows of the model's "
        "embedding, at least 260. Give that number (vocab_size in the model's configuration), or leave it "
        "out.",
    ),
]


ROWS: list[tuple[Callable[[], str], str]] = [
    (
        lambda: refusal(PAIR | {"rejected": "yes"}),
        "chosen and rejected are the same text [identical].",
    ),
    (
        lambda: refusal(PAIR | {"rejected": ""}),
        "the rejected side is empty; expected a response with text [empty_response].",
    ),
    (
        lambda: refusal(PAIR | {"chosen": [USER]}),
        "field 'chosen' has no turn of the assistant after the prompt; found roles: user; expected assistant "
        "[unknown_role].",
    ),
    (
        lambda: refusal({"prompt": [USER], "chosen": [USER, {"role": "tool", "content": "x"}], "rejected": [ANSWER]}),
        "field 'chosen' has no turn of the assistant after the prompt; found roles: user, tool; expected "
        "assistant [unknown_role].",
    ),
    (
        lambda: refusal(
            {"prompt": [USER, ANSWER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "B"}]}
        ),
        "the prompt ends with an answer of the assistant, and the response begins with another; expected a "
        "prompt that ends with another turn [prompt_ends_with_answer]. Correct the row, or pass "
        'continue_final_message="join" to let the response continue that answer.',
    ),
    (
        lambda: refusal(
            {"prompt": [USER, ANSWER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "B"}]},
            template=None,
        ),
        "the row has the turns user + assistant + assistant; expected one prompt and one response without "
        "tools, all that can be joined as text without a chat template [template_refused]. Use a tokenizer "
        'with a chat template, or pass template="<Jinja text>".',
    ),
    (
        lambda: refusal({"prompt": [USER, USER], "chosen": "a", "rejected": "b"}, template=None),
        "the row has the turns user + user + assistant; expected one prompt and one response without tools, "
        "all that can be joined as text without a chat template [template_refused]. Use a tokenizer with a "
        'chat template, or pass template="<Jinja text>".',
    ),
    (
        lambda: refusal(PAIR, template=TURNS + "{{ raise_exception('only one turn') }}" + HEADER),
        "the chat template refuses this conversation (user + assistant): only one turn [template_refused]. "
        "Correct the row, or pass a template that accepts such conversations.",
    ),
    (
        lambda: refusal(PAIR, template="{{ messages[7].content }}" + TURNS + HEADER),
        "the chat template refuses this conversation (user + assistant): UndefinedError: list object has no "
        "element 7 [template_refused]. Correct the row, or pass a template that accepts such conversations.",
    ),
    (
        lambda: refusal(PAIR | {"chat_template_kwargs": {"messages": 1}}),
        "the row's chat_template_kwargs state 'messages', which is the row's own; expected another name "
        "[bad_type]. Correct the row.",
    ),
    (
        lambda: refusal(PAIR | {"chat_template_kwargs": 3}),
        "field 'chat_template_kwargs' is int 3; expected an object: the template's variables by name [bad_type].",
    ),
    (
        lambda: refusal(PAIR | {"chosen": "<|im_end|>"}, special_tokens_in_content="error"),
        "the assistant turn holds the control token '<|im_end|>'; expected text without it [special_token]. "
        "Remove it from the row; a control token that is not the reward token can also be taken as plain text"
        ' with special_tokens_in_content="escape".',
    ),
    (
        lambda: refusal(PAIR | {"prompt": "<|im_start|>"}, special_tokens_in_content="error"),
        "the user turn holds the control token '<|im_start|>'; expected text without it [special_token]. "
        "Remove it from the row; a control token that is not the reward token can also be taken as plain text"
        ' with special_tokens_in_content="escape".',
    ),
    (
        lambda: refusal(
            PAIR,
            template="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[:1] }}<|im_end|>{% endfor %}"
            + HEADER,
            content_lost="drop",
        ),
        "the chat template leaves out words of the response, so that they would not be trained "
        '[content_lost]. Pass content_lost="report" to keep and count such rows, or a template that writes '
        "all of a response.",
    ),
    (
        lambda: refusal(PAIR | {"prompt": "a\ud83d"}),
        "the user turn: a text holds the lone surrogate U+D83D at character 1, which is not a Unicode character "
        "[bad_type]. Repair the text where it was written (half of a surrogate pair was cut off).",
    ),
    (
        lambda: refusal({"prompt": "w " * 90, "chosen": "yes", "rejected": "no"}, mps.DPO(40, truncation="drop")),
        "the row has 204 tokens; expected at most 40 [too_long].",
    ),
    (
        lambda: refusal({"prompt": "Q", "chosen": "y" * 90, "rejected": "no"}, mps.DPO(40, truncation="drop")),
        "the row has 112 tokens; expected at most 40 [too_long].",
    ),
    (
        lambda: refusal(
            {"prompt": "Q" * 50, "chosen": "y", "rejected": "no"}, mps.DPO(60, max_prompt_length=30, truncation="drop")
        ),
        "the row has 73 tokens; expected at most 60 [too_long].",
    ),
    (
        lambda: refusal(
            {"prompt": [{"role": "system", "content": "s" * 90}, USER], "chosen": "y", "rejected": "no"}, mps.DPO(40)
        ),
        "the system message and the template alone need 111 tokens; expected at most 40 with at least one for"
        " the response [too_long].",
    ),
    (
        lambda: refusal(
            {"prompt": "Q" * 90, "chosen": "y", "rejected": "no"}, mps.DPO(40, truncation="response_right")
        ),
        "the prompt has 109 tokens; expected fewer than 40 [no_response_tokens].",
    ),
    (
        lambda: refusal(
            {
                "prompt": [USER],
                "chosen": [{**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": {"a": {1, 2}}}}]}],
                "rejected": "b",
            }
        ),
        "the arguments of a tool call cannot be written as JSON: Object of type set is not JSON serializable;"
        " expected text, numbers, lists, objects [bad_type]. Convert such values where the rows are made, for"
        " example with a function given as format=.",
    ),
]


@pytest.mark.parametrize(("call", "said"), OPTIONS)
def test_options_that_are_refused(call: Callable[[], Any], said: str) -> None:
    assert error_of(call) == said


@pytest.mark.parametrize(("refused", "said"), ROWS)
def test_rows_that_are_refused(refused: Callable[[], str], said: str) -> None:
    assert refused() == said
