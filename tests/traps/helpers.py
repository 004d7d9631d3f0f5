"""What the trap tests share: streams of one row a step, read back as sequences with masks."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import Tokenizer
from tests.encode.oracle import Oracle
from tests.fixtures_tokenizers import CHATML, cached_tokenizer

START, END = "<|im_start|>", "<|im_end|>"

LOOKING = (  # ChatML that looks into every content, so that each row is rendered in full
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if 'never there' in m.content %}{{ '?' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Tok(NamedTuple):
    """A tokenizer to give to a stream, and a directory with which transformers loads the same one (None: bytes)."""

    given: pathlib.Path | str
    directory: pathlib.Path | None

    @property
    def loaded(self) -> Tokenizer:
        return cached_tokenizer(self.given)

    def ids(self, text: str) -> list[int]:
        """What the tokenizer itself makes of a text in which control tokens are control tokens."""
        if self.directory is not None:
            return Oracle(self.directory).ids(text)
        special = self.loaded.special
        ids: list[int] = []
        while text:
            name = next((name for name in special if text.startswith(name)), None)
            ids += [special[name]] if name else list(text[0].encode())
            text = text[len(name) if name else 1 :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.loaded.decode(list(ids))


class Side(NamedTuple):
    """One sequence of a batch without its padding."""

    ids: list[int]
    mask: list[int]

    @property
    def prompt(self) -> list[int]:
        """The ids before the first one under the loss."""
        return self.ids[: self.mask.index(1)]

    @property
    def trained(self) -> list[int]:
        return [i for i, bit in zip(self.ids, self.mask, strict=True) if bit]


class Row(NamedTuple):
    """One preference pair as a batch holds it."""

    chosen: Side
    rejected: Side


def stream_of(rows: Any, tok: Tok, task: Any = None, **options: Any) -> mps.Stream:
    """A stream of the rows in their order, one a step, with ChatML unless told otherwise."""
    settings: dict[str, Any] = {
        "task": task or mps.DPO(512),
        "tokenizer": tok.loaded,
        "template": CHATML,
        "batching": mps.Pad(1),
        "shuffle": False,
        "on_bad_row": "drop",
    }
    return mps.stream(rows, **settings | options)


def sides(batch: Mapping[str, Any], row: int = 0) -> Row:
    """A row of a DPO batch in the layout `paired`."""
    found = []
    for name in ("chosen", "rejected"):
        length = int(batch[f"{name}_attention_mask"][row].sum())
        ids = batch[f"{name}_input_ids"][row]
        mask = batch[f"{name}_loss_mask"][row]
        assert not batch[f"{name}_attention_mask"][row, length:].any()
        assert not mask[length:].any()
        found.append(Side(ids[:length].tolist(), mask[:length].tolist()))
    return Row(*found)


def rows_of(rows: Any, tok: Tok, task: Any = None, **options: Any) -> list[Row]:
    """Every row as the stream delivers it."""
    return [sides(batch) for batch in stream_of(rows, tok, task, **options).batches()]


def pair(prompt: Any, chosen: Any, rejected: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def chatml(*turns: tuple[str, str], asking: bool = False) -> str:
    """The text of a conversation in ChatML."""
    text = "".join(f"{START}{role}\n{content}{END}\n" for role, content in turns)
    return text + (f"{START}assistant\n" if asking else "")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def unpadded(row: np.ndarray, mask: np.ndarray) -> list[int]:
    return row[: int(mask.sum())].tolist()
