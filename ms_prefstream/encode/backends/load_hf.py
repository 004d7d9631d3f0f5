"""From a tokenizer.json, or an object built on one, to a `Tokenizer`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import orjson
from tokenizers import Tokenizer as RustTokenizer

from ms_prefstream.encode.backends.base import TextEncoder, Tokenizer
from ms_prefstream.encode.backends.self_check import first_difference
from ms_prefstream.encode.backends.tiktoken_backend import TiktokenEncoder
from ms_prefstream.encode.backends.tiktoken_proof import NotEquivalentError, tiktoken_plan
from ms_prefstream.encode.backends.tokenizer_files import Names, TokenizerFiles, find_reserved, read_json
from ms_prefstream.encode.backends.tokenizer_json import (
    Spec,
    added_tokens,
    drop_leaking_merges,
    fingerprint,
    merge_added_tokens,
    number_added_tokens,
    special_tokens,
    vocabulary,
)
from ms_prefstream.encode.backends.tokenizers_backend import TokenizersEncoder
from ms_prefstream.errors import TokenizerError


def load_hf(path: pathlib.Path, files: TokenizerFiles, backend: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json with the configuration beside it.

    Args:
        path: The tokenizer.json.
        files: What lies beside it.
        backend: ``auto``, ``tiktoken`` or ``tokenizers``.
    """
    spec = read_json(path)
    model = spec.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise TokenizerError(
            f"{path} holds no tokenizer: expected an object with 'model' and its 'vocab', found "
            f"{', '.join(map(repr, list(spec)[:8])) or 'an empty object'}. Pass the tokenizer.json that the "
            "`tokenizers` package wrote."
        )
    declared = files.added_tokens_decoder
    others = [content for content, _ in sorted(files.legacy_added.items(), key=lambda item: item[1])]
    merge_added_tokens(spec, declared, files.names.control, others)
    if files.has_config:
        _prefix_as_configured(spec, files.config)
    tokenizer = build_hf(spec, files.name, files.names, files.chat_template, files.config.get("add_bos_token"), backend)
    note = _moved_ids(declared, tokenizer)
    return tokenizer if note is None else dataclasses.replace(tokenizer, notes=(note,))


def build_hf(spec: Spec, name: str, names: Names, chat_template: str | None, add_bos: Any, backend: str) -> Tokenizer:
    """The tokenizer of a parsed tokenizer.json whose added tokens are complete.

    Args:
        spec: The parsed file, changed in place.
        name: What reports call the tokenizer.
        names: bos, eos and the other named tokens.
        chat_template: The chat template, if there is one.
        add_bos: Whether a configuration says that BOS is set before plain text; None asks the post-processor.
        backend: ``auto``, ``tiktoken`` or ``tokenizers``.
    """
    drop_leaking_merges(spec, [entry["content"] for entry in spec["added_tokens"] if entry.get("special")])
    try:
        rust = RustTokenizer.from_str(orjson.dumps(spec).decode())
    except Exception as error:  # the package raises nothing more precise
        raise TokenizerError(
            f"{name}: the `tokenizers` package cannot read this tokenizer.json ({error}). It was perhaps written by a "
            "newer version: upgrade tokenizers, or save the tokenizer again with the version installed here."
        ) from None
    number_added_tokens(spec, rust)
    added = {token.content: token.id for token in added_tokens(spec)}
    ids = {key: None if value is None else _id(rust, value) for key, value in
           (("bos", names.bos), ("eos", names.eos), ("pad", names.pad))}  # fmt: skip
    sets_bos = (
        add_bos if isinstance(add_bos, bool) else ids["bos"] is not None and rust.encode("a").ids[:1] == [ids["bos"]]
    )
    reference = TokenizersEncoder(spec, rust)
    encoder, reason = choose(spec, rust, reference, backend, name)
    special = special_tokens(spec)
    return Tokenizer(
        name=name,
        encoder=encoder,
        backend=encoder.backend,
        reason=reason,
        special=special,
        special_in_template=added,
        bos_token=names.bos,
        eos_token=names.eos,
        pad_token=names.pad,
        unk_token=names.unk,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=ids["pad"],
        add_bos=bool(sets_bos),
        vocab_size=1 + max([*vocabulary(spec).values(), *added.values()]),
        chat_template=chat_template,
        fingerprint=fingerprint(spec, chat_template),
        reserved=_reserved(spec, added, names, reference),
    )


def choose(
    spec: Spec, rust: RustTokenizer, reference: TokenizersEncoder, backend: str, name: str
) -> tuple[TextEncoder, str]:
    """The encoder for a backend that was asked for, and why it is the one."""
    if backend == "tokenizers":
        return reference, "backend='tokenizers' was asked for"
    try:
        fast = _fast(spec, rust, reference)
    except NotEquivalentError as why:
        if backend == "tiktoken":
            raise TokenizerError(
                f"backend='tiktoken' cannot be used for {name}: {why}. Use backend='auto' or backend='tokenizers'."
            ) from None
        return reference, f"tiktoken does not fit, because {why}"
    return fast, "the tokenizer file was shown to be equivalent, and a self-check on load agreed"


def _fast(spec: Spec, rust: RustTokenizer, reference: TokenizersEncoder) -> TiktokenEncoder:
    if reference.leaky:
        raise NotEquivalentError("plain text reaches its control tokens")
    plan = tiktoken_plan(spec, rust)
    if reference.spelling is None:
        raise NotEquivalentError("its tokens do not spell the text")
    try:
        fast = TiktokenEncoder(plan, reference, reference.spelling)
        difference = first_difference(fast, reference, [token.content for token in added_tokens(spec)])
    except ValueError as error:
        raise NotEquivalentError(f"it refuses the tokenizer's pattern or vocabulary ({error})") from None
    if difference is not None:
        raise NotEquivalentError(f"the self-check found a difference on {difference!r}")
    return fast


def _id(rust: RustTokenizer, content: str) -> int | None:
    found: int | None = rust.token_to_id(content)
    return found


def _reserved(spec: Spec, added: Mapping[str, int], names: Names, encoder: TextEncoder) -> int | None:
    """A reserved token: an added one, or a piece of the vocabulary that its own text does not give."""
    taken = (names.bos, names.eos, names.pad, names.unk)
    listed = find_reserved(((c, i) for c, i in added.items()), taken)
    if listed is not None:
        return listed
    pieces = [piece for piece in vocabulary(spec) if piece[:1] in "<[" and piece[-1:] in ">]" and len(piece) > 6]
    texts = encoder.encode(pieces)
    unreachable = [
        (p, vocabulary(spec)[p]) for p, ids in zip(pieces, texts, strict=True) if vocabulary(spec)[p] not in ids
    ]
    return find_reserved(unreachable, taken)


def _prefix_as_configured(spec: Spec, config: Mapping[str, Any]) -> None:
    """A byte-level pre-tokeniser that stands alone takes ``add_prefix_space`` from the configuration, or False."""
    pre = spec.get("pre_tokenizer")
    if isinstance(pre, dict) and pre.get("type") == "ByteLevel":
        pre["add_prefix_space"] = bool(config.get("add_prefix_space", False))


def _moved_ids(declared: Mapping[int, Mapping[str, Any]], tokenizer: Tokenizer) -> str | None:
    moved = [(str(token["content"]), id_) for id_, token in sorted(declared.items())
             if tokenizer.special_in_template.get(str(token["content"])) != id_]  # fmt: skip
    if not moved:
        return None
    content, id_ = moved[-1]
    return (
        f"tokenizer_config.json gives {content!r} the id {id_}, but tokenizer.json has no such token, so it got "
        f"{tokenizer.special_in_template.get(content)}, as in transformers ({len(moved)} tokens in all); "
        "check that the model has that many embeddings"
    )
