"""A tokenizer.json as data: its vocabulary, its added tokens, what its configuration adds, and what identifies it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson
from tokenizers import AddedToken as RustAddedToken
from tokenizers import Tokenizer as RustTokenizer

from ms_prefstream.encode.backends.added import AddedToken
from ms_prefstream.encode.backends.pipeline import Spec

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def vocabulary(spec: Spec) -> dict[str, int]:
    """Pieces to ids, from the dictionary of BPE models or the list of Unigram ones."""
    vocab = spec["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {entry[0]: at for at, entry in enumerate(vocab)}


def added_tokens(spec: Spec) -> list[AddedToken]:
    """The added tokens of a tokenizer.json."""
    return [
        AddedToken(
            content=entry["content"],
            id=entry["id"],
            special=bool(entry.get("special")),
            normalized=bool(entry.get("normalized")),
            stretches=any(entry.get(flag) for flag in ("single_word", "lstrip", "rstrip")),
        )
        for entry in spec.get("added_tokens") or []
    ]


def special_tokens(spec: Spec) -> dict[str, int]:
    """The control tokens: added tokens that are marked special."""
    return {token.content: token.id for token in added_tokens(spec) if token.special}


def merge_added_tokens(
    spec: Spec, decoder: Mapping[int, Mapping[str, Any]], control: list[str], others: list[str]
) -> bool:
    """Put the added tokens of a configuration into a tokenizer.json, in the order in which transformers adds them.

    New tokens come behind those of the file, first those with an id in the configuration, by that id; a token that
    both describe takes the configuration's flags. A control token is special whatever its flags say.

    Args:
        spec: The parsed tokenizer.json, changed in place.
        decoder: ``added_tokens_decoder`` of tokenizer_config.json, by id.
        control: bos, eos, pad and the other named tokens.
        others: Contents of added_tokens.json, in the order of their ids.

    Returns:
        Whether anything changed.
    """
    entries: list[dict[str, Any]] = spec.setdefault("added_tokens", []) or []
    spec["added_tokens"] = entries
    before = [dict(entry) for entry in entries]
    by_content = {entry["content"]: entry for entry in entries}

    def put(content: str, flags: Mapping[str, Any]) -> None:
        entry = by_content.get(content)
        if entry is None:
            entry = {"id": 0, "content": content, **dict.fromkeys(_FLAGS, False)}
            entry["normalized"] = not flags.get("special", False)
            by_content[content] = entry
            entries.append(entry)
        entry.update({flag: bool(flags[flag]) for flag in _FLAGS if flag in flags})

    for _, token in sorted(decoder.items()):
        put(str(token["content"]), token)
    for content in control + others:
        if content not in by_content:
            put(content, {"special": content in control})
    for content in control:
        by_content[content]["special"] = True
    return before != entries


def number_added_tokens(spec: Spec, rust: RustTokenizer) -> None:
    """Replace the added tokens of a tokenizer.json by those that the package made of them, with their real ids."""
    known: dict[int, RustAddedToken] = rust.get_added_tokens_decoder()
    spec["added_tokens"] = [
        {"id": id_, "content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}
        for id_, token in sorted(known.items())
    ]


def fingerprint(spec: Spec, chat_template: str | None) -> str:
    """A hash of all that decides about ids: vocabulary, merges, added tokens, normaliser, pre-tokeniser, template.

    Ways of writing the same (defaults left out, merges as pairs or joined by a space) give the same hash.
    """
    model = dict(spec["model"])
    vocab, merges = model.pop("vocab", None), model.pop("merges", None) or []
    digest = hashlib.blake2b(digest_size=16)
    digest.update(orjson.dumps(vocab, option=orjson.OPT_SORT_KEYS))
    digest.update("\n".join(merges if merges and isinstance(merges[0], str) else map(" ".join, merges)).encode())
    rest = [_essence(part) for part in (model, *_canonical_steps(spec))]
    tokens = [_essence(entry) for entry in spec.get("added_tokens") or []]
    digest.update(orjson.dumps([rest, tokens, chat_template], option=orjson.OPT_SORT_KEYS))
    return digest.hexdigest()


def bare(norm: Any, pre: Any) -> RustTokenizer:
    """A tokenizer with these steps before an empty model."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    parts: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "post_processor": None,
        "decoder": None,
        "model": empty,
    }
    return RustTokenizer.from_str(orjson.dumps({**parts, "normalizer": norm, "pre_tokenizer": pre}).decode())


def _canonical_steps(spec: Spec) -> tuple[Any, Any]:
    """(normalizer, pre_tokenizer) as the package itself writes them, whatever version wrote the file."""
    told = orjson.loads(bare(spec.get("normalizer"), spec.get("pre_tokenizer")).to_str())
    return told["normalizer"], told["pre_tokenizer"]


def _essence(node: Any) -> Any:
    """The node without the members that say nothing (null, false, empty)."""
    if isinstance(node, Mapping):
        told = {key: _essence(value) for key, value in node.items()}
        return {key: value for key, value in told.items() if value is not None and value is not False and value != ""}
    if isinstance(node, list):
        return [_essence(value) for value in node]
    return node
