"""The loading of a tokenizer.json: the `tokenizers` backend, and what the other backends for such files start from.

Loading one and proving that another backend gives the same ids takes seconds. So what was found is kept: as a `Verdict`
on disk, and for the last few tokenizers in memory.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson
from tokenizers import Tokenizer as RustTokenizer

from ms_prefstream.encode.backends.added import stretching
from ms_prefstream.encode.backends.base import Form, NotServedError, TextEncoder, Tokenizer, panics_as_errors
from ms_prefstream.encode.backends.self_check import first_difference
from ms_prefstream.encode.backends.tokenizer_json import (
    Schema,
    Spec,
    added_tokens,
    drop_leaking_merges,
    fingerprint,
    merge_added_tokens,
    name_reserved,
    number_added_tokens,
    special_tokens,
    vocabulary,
)
from ms_prefstream.encode.backends.tokenizer_source import (
    Names,
    TokenizerSource,
    check_types,
    find_reserved,
    json_object,
    read_bytes,
)
from ms_prefstream.encode.backends.tokenizers_encoder import LazyReference, TokenizersEncoder
from ms_prefstream.encode.backends.verdict import Added, Verdict, key_of, read_verdict, store_verdict
from ms_prefstream.errors import RowError, TokenizerError

_KEPT = 2  # tokenizers in memory, a hundred MB each


@dataclass(kw_only=True)
class Known:
    """A tokenizer.json and what is known of it.

    Attributes:
        verdict: What loading it has shown, now or earlier.
        reference: Its encoder of the `tokenizers` package.
        tokenizer: The tokenizer, encoded by `reference`.
        served: The tokenizer for each backend that was asked for.
    """

    verdict: Verdict
    reference: LazyReference
    tokenizer: Tokenizer
    served: dict[str, Tokenizer] = field(default_factory=dict)


def load(source: TokenizerSource) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, or of an object that is built on one."""
    with _loading:
        known = _known_of(source)
        tokenizer = known.tokenizer
        if "tokenizers" not in known.served:
            known.served["tokenizers"] = dataclasses.replace(tokenizer, encoder=known.reference.get())
            store_verdict(known.verdict)
        return dataclasses.replace(known.served["tokenizers"], name=source.name)


def load_equal(source: TokenizerSource, backend: str, make: Callable[[Known, Spec], TextEncoder]) -> Tokenizer:
    """Returns the tokenizer with the encoder of another backend, proven to give the ids of the reference.

    Args:
        source: The tokenizer.
        backend: The name of the backend.
        make: Makes the encoder. It raises `NotServedError` where the backend cannot give the ids, and ValueError
            where its package refuses the tokenizer.

    Raises:
        NotServedError: The backend does not serve the tokenizer.
    """
    with _loading:
        known = _known_of(source)
        if backend not in known.served:
            known.served[backend] = _prove(source, known, backend, make)
        return dataclasses.replace(known.served[backend], name=source.name)


def _prove(
    source: TokenizerSource, known: Known, backend: str, make: Callable[[Known, Spec], TextEncoder]
) -> Tokenizer:
    refusals = known.verdict.refusals
    proven = refusals.get(backend) == ""
    if refusals.get(backend):
        raise NotServedError(refusals[backend])
    try:
        if not proven and known.reference.get().leaks:
            raise NotServedError("plain text reaches its control tokens")
        try:
            with panics_as_errors():
                encoder = make(known, source.shared.get("spec") or known.reference.spec())
                if not proven:
                    _check_equal(encoder, known)
        except (ValueError, RowError) as error:
            raise NotServedError(f"it refuses the tokenizer ({error})") from None
    except NotServedError as why:
        refusals[backend] = str(why)
        store_verdict(known.verdict)
        raise
    if not proven:
        refusals[backend] = ""
        store_verdict(known.verdict)
    return dataclasses.replace(known.tokenizer, encoder=encoder, backend=backend)


def _check_equal(encoder: TextEncoder, known: Known) -> None:
    """Raises `NotServedError` unless an encoder gives the ids of the reference on the texts of the self-check."""
    reference = known.reference.get()
    if reference.spelling is None or reference.finds_changed:
        raise NotServedError("its tokens do not spell the text")
    difference = first_difference(encoder, reference, known.tokenizer.special_in_template)
    if difference is not None:
        raise NotServedError(f"the self-check found a difference on {difference!r}")


_known: OrderedDict[str, Known] = OrderedDict()
_loading = threading.RLock()


def _unlock() -> None:
    """Replaces the lock in a forked process, where it stays held if another thread held it."""
    global _loading
    _loading = threading.RLock()


os.register_at_fork(after_in_child=_unlock)


def _known_of(source: TokenizerSource) -> Known:
    """Returns what is known of a tokenizer.json; a source is read once."""
    known: Known | None = source.shared.get("known")
    if known is None:
        given = source.forms[Form.JSON]
        text = orjson.dumps(given) if isinstance(given, dict) else read_bytes(given)
        key = key_of(source, text)
        known = _known.get(key) or _read(source, text, key)
        source.shared["known"] = _known[key] = known
        _known.move_to_end(key)
        if len(_known) > _KEPT:
            _known.popitem(last=False)
    return known


def _read(source: TokenizerSource, text: bytes, key: str) -> Known:
    given = source.forms[Form.JSON]
    where = source.name if isinstance(given, dict) else given
    spec = json_object(text, where)
    model = spec.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise TokenizerError(
            f"{where} holds no tokenizer: expected an object with 'model' and its "
            f"'vocab', found {', '.join(map(repr, list(spec)[:8])) or 'an empty object'}. Pass the tokenizer.json "
            "that the `tokenizers` package wrote."
        )
    check_types(spec, Schema, where)
    names = source.names
    others = [content for content, _ in sorted(source.legacy_added.items(), key=lambda item: item[1])]
    stated = name_reserved(spec, source.added_tokens_decoder)
    merge_added_tokens(spec, source.added_tokens_decoder, names.control, others)
    pre = spec.get("pre_tokenizer")
    if source.has_config and isinstance(pre, dict) and pre.get("type") == "ByteLevel":
        # Where it stands alone, transformers takes this from the configuration, or False.
        pre["add_prefix_space"] = bool(source.config.get("add_prefix_space", False))
    drop_leaking_merges(spec)
    verdict = read_verdict(key)
    if verdict is not None and verdict.fits(spec):
        spec["added_tokens"] = msgspec.to_builtins(verdict.added_tokens)
        reference = LazyReference(spec)
    else:
        verdict, reference = _load(source, spec, key)
    added = {token.content: token.id for token in added_tokens(spec)}
    _check_stated(source.name, stated, added)
    tokenizer = Tokenizer(
        name=source.name,
        encoder=reference,
        backend="tokenizers",
        reason="the tokenizer is a tokenizer.json",
        special=special_tokens(spec),
        flagged=stretching(token for token in added_tokens(spec) if token.special),
        special_in_template=added,
        **names.tokens,
        add_bos=verdict.add_bos,
        vocab_size=1 + max([*vocabulary(spec).values(), *added.values()]),
        chat_template=source.chat_template,
        fingerprint=verdict.fingerprint,
        reserved=verdict.reserved,
        notes=_moved_ids(source.added_tokens_decoder, added),
    )
    source.shared["spec"] = spec
    return Known(verdict=verdict, reference=reference, tokenizer=tokenizer)


def _load(source: TokenizerSource, spec: Spec, key: str) -> tuple[Verdict, LazyReference]:
    """Returns what the `tokenizers` package makes of a tokenizer.json, and numbers its added tokens in place."""
    bos, add_bos, begin = source.names.tokens["bos_token"], source.config.get("add_bos_token"), list[int]()
    try:
        with panics_as_errors():
            rust = RustTokenizer.from_str(orjson.dumps(spec).decode())
            if bos is not None and not isinstance(add_bos, bool):
                begin = rust.encode("a").ids[:1]  # with what the post-processor adds
    except Exception as error:  # the package raises nothing more precise
        raise TokenizerError(
            f"{source.name}: the `tokenizers` package cannot read this tokenizer.json ({error}). It was perhaps "
            "written by a newer version: upgrade tokenizers, or save the tokenizer again with the version installed "
            "here."
        ) from None
    number_added_tokens(spec, rust)
    added = {token.content: token.id for token in added_tokens(spec)}
    if not isinstance(add_bos, bool):
        add_bos = bos is not None and begin == [added.get(bos)]
    try:
        encoder = TokenizersEncoder(spec, rust)
        reserved = _reserved(spec, added, source.names, encoder)
    except RowError as error:
        raise TokenizerError(f"{source.name}: {error.problem}. Pass a tokenizer that has ids for any text.") from None
    revised = any(token.special and token.stretches for token in added_tokens(spec)) or encoder.knew_no_unknown
    verdict = Verdict(
        key=key,
        added_tokens=msgspec.convert(spec["added_tokens"], list[Added]),
        add_bos=add_bos,
        fingerprint=fingerprint(spec, source.chat_template, revised=revised),
        reserved=reserved,
    )
    return verdict, LazyReference(spec, encoder)


def _reserved(spec: Spec, added: Mapping[str, int], names: Names, encoder: TokenizersEncoder) -> dict[str, int]:
    """Returns the reserved tokens: the added ones, else pieces of the vocabulary that their own text does not give."""
    listed = find_reserved(added.items(), names)
    if listed:
        return listed
    pieces = {p: i for p, i in vocabulary(spec).items() if p[:1] in "<[" and p[-1:] in ">]" and len(p) > 6}
    texts = encoder.encode(list(pieces))
    return find_reserved(
        (piece for piece, ids in zip(pieces.items(), texts, strict=True) if piece[1] not in ids), names
    )


def _check_stated(name: str, stated: Mapping[str, int], added: Mapping[str, int]) -> None:
    """Checks that tokens which only tokenizer_config.json has got the ids that it states.

    Raises:
        TokenizerError: They got others, for which the model has no embeddings or those of other tokens.
    """
    moved = {content: id_ for content, id_ in stated.items() if added.get(content) != id_}
    if moved:
        content, id_ = next(iter(moved.items()))
        raise TokenizerError(
            f"{name}: tokenizer_config.json gives {content!r} the id {id_}, but tokenizer.json has neither that token "
            f"nor a reserved piece at that id, so it would get the id {added.get(content)}, which means something else "
            f"to the model ({len(moved)} tokens in all). Save the tokenizer again with all its tokens "
            "(save_pretrained), or pass the .model file that it was made from."
        )


def _moved_ids(declared: Mapping[int, Mapping[str, Any]], added: Mapping[str, int]) -> tuple[str, ...]:
    """Returns a note if added tokens of tokenizer.json have other ids than tokenizer_config.json declares."""
    contents = {id_: str(token["content"]) for id_, token in sorted(declared.items())}
    moved = [(content, id_) for id_, content in contents.items() if added.get(content) != id_]
    if not moved:
        return ()
    content, id_ = moved[-1]
    return (
        f"tokenizer_config.json gives {content!r} the id {id_}, but tokenizer.json gives it {added.get(content)}, "
        f"which is used, as in transformers ({len(moved)} tokens in all); check which the model was trained with",
    )
