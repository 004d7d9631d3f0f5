"""`PlainTemplate`: prompt and response joined as text, where there is no chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ms_prefstream.encode.control_tokens import ControlTokens
from ms_prefstream.encode.layout import Kind, LaidOut, Layout, Piece, build_layout
from ms_prefstream.encode.rendered import begins_rendered, looks_rendered
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Messages
from ms_prefstream.sample import Note

_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "</s>", "<eos>", "<|end|>")


class PlainTemplate:
    """Prompt and response as text: BOS if the tokenizer has one, prompt, response, EOS.

    Args:
        tokenizer: Gives BOS and EOS.
        control: Special tokens that act in contents; None takes every content as ordinary text.
        append_eos: Whether EOS follows the response.
    """

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens | None = None, append_eos: bool = True) -> None:
        self._control = control
        self._bos = (
            [] if tokenizer.bos_id is None else [(Piece(0, Kind.PREAMBLE, tokenizer.bos_token), tokenizer.bos_id)]
        )
        eos = tokenizer.eos_id if append_eos else None
        self._eos = [] if eos is None else [(Piece(1, Kind.TAIL, tokenizer.eos_token), eos)]
        self._ends = {tokenizer.eos_id, *(tokenizer.special[name] for name in _ENDS if name in tokenizer.special)}
        self._encoder = tokenizer.encoder
        slots = [(Piece(0, Kind.BODY, None), -1)], [(Piece(1, Kind.BODY, None, 1), -1)]
        self._full = self._build([*self._bos, *slots[0], *slots[1], *self._eos], 2)
        self._prompt = self._build([*self._bos, *slots[0]], 1)

    def _build(self, pieces: list[tuple[Piece, int]], messages: int) -> Layout:
        roles, strips = ("user", "assistant")[:messages], {} if self._control is None else self._control.strips
        begins = bool(self._bos) and pieces[0] == self._bos[0]
        return build_layout(pieces, 1, roles, self._encoder, bos_begins=begins, strips=strips)

    def lay_out(
        self,
        prompt: Messages,
        responses: Sequence[Messages],
        tools: Any = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Iterator[LaidOut]:
        """See `Template`."""
        return (self._laid_out(prompt, response, tools, variables) for response in responses)

    def _laid_out(
        self, prompt: Messages, response: Messages, tools: Any, variables: Mapping[str, Any] | None
    ) -> LaidOut:
        if len(prompt) != 1 or len(response) > 1 or tools is not None or any(m.extra for m in (*prompt, *response)):
            shape = " + ".join(message.role for message in (*prompt, *response)) + (" with tools" if tools else "")
            raise RowError(
                Reason.TEMPLATE_REFUSED,
                f"the row has the turns {shape}; expected one prompt and one response without tools, all that can be "
                "joined as text without a chat template",
                'Use a tokenizer with a chat template, or pass template="<Jinja text>"',
            )
        contents = [message.content for message in (*prompt, *response)]
        unread = () if not variables else ("chat_template_kwargs",)
        if self._control is not None and any(map(self._control.find, contents)):
            return LaidOut(self._with_control(self._control, contents), contents, False, unread=unread)
        marked = looks_rendered(contents[0]) or any(map(begins_rendered, contents))
        notes = Note.MARKERS if marked else Note.NONE
        return LaidOut(self._full if response else self._prompt, contents, False, notes, unread)

    def _with_control(self, control: ControlTokens, contents: Sequence[str]) -> Layout:
        """Returns the layout of contents with control tokens: a BOS or an end that they state is not added again.

        Blanks around them change nothing: those after a stated end, ChatML's newline for instance, are not trained.
        """
        pieces: list[tuple[Piece, int]] = [
            (Piece(owner, Kind.BODY, text[cut.begin : cut.end]), cut.id)
            for owner, text in enumerate(contents)
            for cut in control.cut(text)
        ]
        filled = [at for at, (piece, id_) in enumerate(pieces) if id_ >= 0 or (piece.text or "").strip()]
        stated = [pieces[at][1] for at in filled if not pieces[at][0].owner][:1] == [id_ for _, id_ in self._bos]
        before = [] if stated else self._bos
        answers = len(contents) > 1
        last = filled[-1] if filled else -1
        ended = answers and last >= 0 and pieces[last][0].owner == 1 and pieces[last][1] in self._ends
        if ended:
            pieces[last + 1 :] = [(piece._replace(kind=Kind.TAIL), id_) for piece, id_ in pieces[last + 1 :]]
        return self._build([*before, *pieces, *(self._eos if answers and not ended else [])], len(contents))
