"""One `tokenizers` object for each place of a text, the vocabulary shared between them."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from ms_prefstream.encode.backends.pipeline import Spec, at_place
from ms_prefstream.encode.backends.spec import bare
from ms_prefstream.encode.text import Place


def tokenizers_by_place(spec: Spec, rust: RustTokenizer) -> dict[Place, RustTokenizer]:
    """The tokenizer for each place: the given one, made plain, and variants where the place matters.

    Args:
        spec: The parsed tokenizer.json.
        rust: The tokenizer made from it; its post-processor, padding and truncation are taken off.
    """
    _make_plain(rust)
    found = {Place.START: rust}
    told = {Place.START: at_place(spec, Place.START)}
    for place in (Place.AFTER_SPECIAL, Place.CONTINUATION):
        told[place] = at_place(spec, place)
        same = next((other for other in found if told[other] == told[place]), None)
        found[place] = found[same] if same is not None else _variant(rust, *told[place])
    return found


def _make_plain(rust: RustTokenizer) -> None:
    """Special tokens in text are text, nothing is added, cut or padded, and offsets are not trimmed."""
    rust.post_processor = None
    rust.no_padding()
    rust.no_truncation()
    rust.encode_special_tokens = True


def _variant(rust: RustTokenizer, norm: Any, pre: Any) -> RustTokenizer:
    steps = bare(norm, pre)
    variant = RustTokenizer(rust.model)  # shares the model: the vocabulary is in memory once
    if norm is not None:
        variant.normalizer = steps.normalizer
    if pre is not None:
        variant.pre_tokenizer = steps.pre_tokenizer
    variant.add_tokens([token for _, token in sorted(rust.get_added_tokens_decoder().items())])
    if variant.get_added_tokens_decoder().keys() != rust.get_added_tokens_decoder().keys():
        whole = json.loads(rust.to_str())
        variant = RustTokenizer.from_str(json.dumps({**whole, "normalizer": norm, "pre_tokenizer": pre}))
    variant.decoder = rust.decoder
    _make_plain(variant)
    return variant
