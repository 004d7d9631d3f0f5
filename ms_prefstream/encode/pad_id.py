"""The id that arrays are filled up with."""

from __future__ import annotations

import numbers

from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import OptionError, TokenizerError


def choose_pad_id(given: int | None, tokenizer: Tokenizer | None) -> int:
    """The id that is given, else the tokenizer's pad token, else a reserved one, else its end token.

    Args:
        given: The option `pad_token_id`.
        tokenizer: None for rows that are already tokenized.

    Raises:
        OptionError: The id is none of the tokenizer's, or is missing for rows that are already tokenized.
        TokenizerError: The tokenizer has none of these tokens.
    """
    if given is not None:
        top = None if tokenizer is None else tokenizer.vocab_size - 1
        number = isinstance(given, numbers.Integral) and not isinstance(given, bool)
        if not number or given < 0 or (top is not None and given > top):
            known = "" if top is None or tokenizer is None else f"; tokenizer {tokenizer.name} has the ids 0 to {top}"
            raise OptionError(f"pad_token_id is {given!r}; expected the id of a token{known}.")
        return int(given)
    if tokenizer is None:
        raise OptionError(
            "tokenizer=None is for rows that are already tokenized, and these need pad_token_id, the id that arrays "
            "are filled up with. Pass pad_token_id=<id>, or tokenizer= for rows with text."
        )
    for candidate in (tokenizer.pad_id, tokenizer.reserved_id(), tokenizer.eos_id):
        if candidate is not None:
            return candidate
    raise TokenizerError(
        f"tokenizer {tokenizer.name} has no pad, reserved or end token to pad with. Pass pad_token_id=<id>."
    )
