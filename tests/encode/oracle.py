"""What transformers itself makes of a conversation: the measure for our encoding."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from ms_prefstream.formats.record import Message, Messages


class Oracle:
    """A tokenizer directory as transformers reads it.

    Args:
        directory: In Hugging Face layout.
        template: Takes the place of the directory's own chat template.
    """

    def __init__(self, directory: pathlib.Path, template: str | None = None) -> None:
        self._hf = _hugging_face(directory)
        self._template = template
        # transformers numbers tokens that tokenizer.json lacks on; the model has the ids that the configuration states.
        config = directory / "tokenizer_config.json"
        listed = json.loads(config.read_text("utf-8")).get("added_tokens_decoder", {}) if config.exists() else {}
        self._stated = {self._hf.convert_tokens_to_ids(token["content"]): int(id_) for id_, token in listed.items()}

    def render(self, messages: Messages, tools: Any = None, generation: bool = False) -> str:
        """The text of a conversation."""
        return str(
            self._hf.apply_chat_template(
                as_dicts(messages),
                tools=tools,
                tokenize=False,
                add_generation_prompt=generation,
                chat_template=self._template,
            )
        )

    def ids(self, text: str) -> list[int]:
        """Ids of a text in which control tokens are control tokens; nothing is added."""
        return [self._stated.get(id_, id_) for id_ in self._hf(text, add_special_tokens=False)["input_ids"]]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(begin, end) characters of each token of a text."""
        found = self._hf(text, add_special_tokens=False, return_offsets_mapping=True)
        return [tuple(pair) for pair in found["offset_mapping"]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens included."""
        own = {stated: id_ for id_, stated in self._stated.items()}
        ids = [own.get(id_, id_) for id_ in ids]
        return str(self._hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def as_dicts(messages: Messages) -> list[dict[str, Any]]:
    """Messages as templates read them."""
    return [{"role": m.role, "content": m.content, **(m.extra or {})} for m in messages]


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str, **extra: Any) -> Message:
    return Message("assistant", text, extra or None)


def system(text: str) -> Message:
    return Message("system", text)


def tool(text: str) -> Message:
    return Message("tool", text)


@functools.cache
def _hugging_face(directory: pathlib.Path) -> Any:
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    return PreTrainedTokenizerFast.from_pretrained(directory)
