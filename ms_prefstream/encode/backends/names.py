"""The names a tokenizer gives to its tokens: bos, eos, pad, unk, what else is a control token, and reserved ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_OTHERS = ("sep_token", "cls_token", "mask_token")
_RESERVED = re.compile(r"[<\[]\|?(reserved|extra|unused|placeholder|control|dummy)\w*\|?[>\]]", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Names:
    """Named tokens, as written in a configuration.

    Attributes:
        bos: The token at the beginning of a sequence, or None.
        eos: The token at the end.
        pad: The token that fills rows.
        unk: The token for what the vocabulary lacks.
        others: Further control tokens.
    """

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    others: tuple[str, ...] = field(default=())

    @property
    def control(self) -> list[str]:
        """All of them once, in the order in which transformers adds them."""
        return list(dict.fromkeys(name for name in (self.bos, self.eos, self.unk, self.pad, *self.others) if name))


def text_of(token: Any) -> str | None:
    """The content of a token written as a string, as a dictionary or as an AddedToken object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    content = token if isinstance(token, str) else getattr(token, "content", None)
    return content if isinstance(content, str) and content else None


def read_names(config: Mapping[str, Any], fallback: Mapping[str, Any] | None = None) -> Names:
    """The names in a tokenizer_config.json; what it does not mention at all is taken from special_tokens_map.json."""
    merged = {**(fallback or {}), **config}
    extra = merged.get("additional_special_tokens") or []
    found = [text_of(merged.get(key)) for key in _OTHERS] + [text_of(token) for token in extra]
    return Names(
        bos=text_of(merged.get("bos_token")),
        eos=text_of(merged.get("eos_token")),
        pad=text_of(merged.get("pad_token")),
        unk=text_of(merged.get("unk_token")),
        others=tuple(name for name in found if name),
    )


def names_of_object(obj: Any) -> Names:
    """The names that a tokenizer object of transformers or mindformers carries."""
    keys = ("bos_token", "eos_token", "pad_token", "unk_token", *_OTHERS)
    # The attribute without underscore logs an error where the token is not set.
    values: dict[str, Any] = dict(getattr(obj, "special_tokens_map", None) or {})
    return read_names({**{key: None for key in keys}, **values})


def find_reserved(candidates: Iterable[tuple[str, int]], taken: Iterable[str | None]) -> int | None:
    """The lowest id among tokens that are named as reserved or unused, e.g. ``<|reserved_special_token_0|>``."""
    used = set(taken)
    found = [id_ for name, id_ in candidates if name not in used and _RESERVED.fullmatch(name)]
    return min(found, default=None)


def chat_template_of(config: Mapping[str, Any]) -> str | None:
    """The chat template of a configuration: a string, or the one called ``default`` (or the only one) of several."""
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, Mapping)}
    if isinstance(template, Mapping):
        template = template.get("default", next(iter(template.values())) if len(template) == 1 else None)
    return template if isinstance(template, str) and template else None
