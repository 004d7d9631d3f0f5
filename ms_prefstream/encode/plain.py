"""Conversations to layouts without a chat template: prompt and response joined as text."""

from __future__ import annotations

from typing import Any

from ms_prefstream.encode.layout import Kind, Layout, Piece, build_layout
from ms_prefstream.encode.pieces import ControlTokens
from ms_prefstream.encode.template import LaidOut
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Messages


class PlainTemplate:
    """Prompt and response as text: BOS if the tokenizer has one, prompt, response, EOS.

    Args:
        tokenizer: Gives BOS and EOS.
        control: Special tokens that are honoured in contents; None takes every content as ordinary text.
    """

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens | None = None) -> None:
        self._control = control
        self._bos = (
            [] if tokenizer.bos_id is None else [(Piece(0, Kind.PREAMBLE, tokenizer.bos_token), tokenizer.bos_id)]
        )
        self._eos = [] if tokenizer.eos_id is None else [(Piece(1, Kind.TAIL, tokenizer.eos_token), tokenizer.eos_id)]
        self._encoder = tokenizer.encoder
        slots = [(Piece(0, Kind.BODY, None), -1)], [(Piece(1, Kind.BODY, None), -1)]
        self._full = self._build(slots[0] + slots[1] + self._eos, 2)
        self._prompt = self._build(slots[0], 1)

    def _build(self, pieces: list[tuple[Piece, int]], messages: int) -> Layout:
        roles = ("user", "assistant")[:messages]
        return build_layout([*self._bos, *pieces], 1, roles, self._encoder, bos_begins=bool(self._bos))

    def lay_out(self, prompt: Messages, response: Messages, tools: Any = None) -> LaidOut:
        if len(prompt) != 1 or len(response) > 1 or tools is not None or any(m.extra for m in (*prompt, *response)):
            shape = " + ".join(message.role for message in (*prompt, *response)) + (" with tools" if tools else "")
            raise RowError(
                Reason.TEMPLATE_REFUSED,
                f"the row has the turns {shape}; expected one prompt and one response without tools, all that can be "
                "joined as text without a chat template",
                'Use a tokenizer with a chat template, or pass template="<Jinja text>"',
            )
        contents = [message.content for message in (*prompt, *response)]
        if self._control is not None and any(map(self._control.find, contents)):
            pieces = [
                (Piece(owner, Kind.BODY, text[cut.begin : cut.end]), cut.id)
                for owner, text in enumerate(contents)
                for cut in self._control.cut(text)
            ]
            return LaidOut(self._build(pieces + (self._eos if response else []), len(contents)), contents, False)
        return LaidOut(self._full if response else self._prompt, contents, False)
