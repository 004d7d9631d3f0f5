"""A tokenizer.json as data: vocabulary, merges, added tokens, the steps before the model, and its fingerprint."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
from tokenizers import AddedToken as RustAddedToken
from tokenizers import Tokenizer as RustTokenizer

from ms_prefstream.encode.backends.added import FLAGS, AddedToken
from ms_prefstream.encode.backends.base import NotServedError, Place
from ms_prefstream.encode.backends.spelling import META, Prefix
from ms_prefstream.encode.backends.tokenizer_source import RESERVED, Id

Spec = dict[str, Any]  # a tokenizer.json, parsed
_EVERYWHERE = frozenset({Place.START, Place.AFTER_SPECIAL})


class _Added(msgspec.Struct):
    id: Id
    content: str


class _Step(msgspec.Struct):
    """A step before the model, or a sequence of them."""

    normalizers: list[_Step] | None = None
    pretokenizers: list[_Step] | None = None


class _Model(msgspec.Struct):
    vocab: dict[str, Id] | list[tuple[str, float]]
    merges: list[str | tuple[str, str]] | None = None
    unk_token: str | None = None
    unk_id: Id | None = None


class Schema(msgspec.Struct):
    """Parts of a tokenizer.json whose types matter; the `tokenizers` package checks the others."""

    model: _Model
    added_tokens: list[_Added] | None = None
    normalizer: _Step | None = None
    pre_tokenizer: _Step | None = None


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The steps before the model, as far as they are understood.

    Attributes:
        kind: ``bytes`` or ``metaspace`` when the tokens spell the normalised text in that alphabet, else None.
        nfc: Whether the text is normalised to NFC first (and nothing else happens to it).
        prefix: The space set before texts, if any.
        varies: Whether the place of a text matters.
    """

    kind: str | None = None
    nfc: bool = False
    prefix: Prefix | None = None
    varies: bool


def steps(node: Any) -> list[dict[str, Any]]:
    """Returns the steps of a normaliser or pre-tokeniser, sequences unrolled."""
    if not isinstance(node, dict):
        return []
    if node.get("type") == "Sequence":
        members = node.get("normalizers") or node.get("pretokenizers") or []
        return [step for member in members for step in steps(member)]
    return [node]


def read_pipeline(spec: Spec) -> Pipeline:
    """Returns the pipeline of a tokenizer.json; `kind` is None unless its tokens certainly spell the text."""
    norms, pres = steps(spec.get("normalizer")), steps(spec.get("pre_tokenizer"))
    varies = pipeline_for_place(spec, Place.CONTINUATION) != (spec.get("normalizer"), spec.get("pre_tokenizer"))
    kinds = [step.get("type") for step in norms]
    if pres and pres[-1].get("type") == "ByteLevel" and kinds in ([], ["NFC"]):
        prefixed = pres[-1].get("add_prefix_space")
        prefix = Prefix(mark=" ", places=_EVERYWHERE, unless_present=True) if prefixed else None
        if not prefixed or len(pres) == 1:
            return Pipeline(kind="bytes", nfc=bool(kinds), prefix=prefix, varies=varies)
    if all(map(_spaces_only, norms)) and len(pres) <= 1 and all(step.get("type") == "Metaspace" for step in pres):
        replaced = any(step.get("type") == "Replace" for step in norms) or bool(pres)
        prepends = [step for step in norms if step.get("type") == "Prepend"]
        places = _metaspace_places(pres[0]) if pres else frozenset()
        if replaced and not (prepends and places) and len(prepends) <= 1:
            chosen = _EVERYWHERE if prepends else places
            prefix = Prefix(mark=META, places=chosen, unless_present=not prepends) if chosen else None
            return Pipeline(kind="metaspace", prefix=prefix, varies=varies)
    return Pipeline(varies=varies)


def pipeline_for_place(spec: Spec, place: Place) -> tuple[Any, Any]:
    """Returns (normalizer, pre_tokenizer) of a tokenizer.json for a text at `place`.

    The file describes the start of a sequence. After a special token, a Metaspace of scheme ``first`` sets no prefix.
    A text that continues another gets no prefix of any kind.
    """
    norm, pre = copy.deepcopy(spec.get("normalizer")), copy.deepcopy(spec.get("pre_tokenizer"))
    if place is Place.START:
        return norm, pre
    for step in steps(pre):
        if step.get("type") == "Metaspace":
            if place is Place.CONTINUATION or _scheme(step) == "first":
                step["prepend_scheme"] = "never"
                step.pop("add_prefix_space", None)
        elif step.get("type") == "ByteLevel" and place is Place.CONTINUATION and step.get("add_prefix_space"):
            step["add_prefix_space"] = False
    norms = [step for step in steps(norm) if step.get("type") != "Prepend"]
    if place is Place.CONTINUATION and norms != steps(norm):
        norm = {"type": "Sequence", "normalizers": norms}
    return norm, pre


def _spaces_only(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Prepend":
        return bool(step.get("prepend") == META)
    return step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == META


def _scheme(step: Mapping[str, Any]) -> str:
    scheme = step.get("prepend_scheme")
    return str(scheme) if scheme else ("always" if step.get("add_prefix_space", True) else "never")


def _metaspace_places(step: Mapping[str, Any]) -> frozenset[Place]:
    if step.get("replacement", META) != META:
        return frozenset()
    return {"always": _EVERYWHERE, "first": frozenset({Place.START})}.get(_scheme(step), frozenset())


def drop_leaking_merges(spec: Spec) -> None:
    """Drops the merges that make a control token from a BPE model."""
    names = {entry["content"] for entry in spec["added_tokens"] if entry.get("special")}
    merges = spec["model"].get("merges")
    if merges:
        made = zip(merges, merged_tokens(merges), strict=True)
        spec["model"]["merges"] = [merge for merge, token in made if token not in names]


def merged_tokens(merges: Sequence[str] | Sequence[Sequence[str]]) -> list[str]:
    """Returns the tokens that merges make, written either way (``"a b"`` or ``["a", "b"]``)."""
    return [merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge) for merge in merges]


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def vocabulary(spec: Spec) -> dict[str, int]:
    """Returns pieces to ids, from the dictionary of a BPE model or the list of a Unigram one."""
    vocab = spec["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {entry[0]: at for at, entry in enumerate(vocab)}


def is_unigram(spec: Spec) -> bool:
    """Returns whether the model is a Unigram one; old files do not state its type."""
    return isinstance(spec["model"]["vocab"], list)


def unknown_id(spec: Spec) -> int | None:
    """Returns the id that the model gives for what its vocabulary lacks."""
    model = spec["model"]
    if is_unigram(spec):
        found: int | None = model.get("unk_id")
        return found
    return vocabulary(spec).get(model.get("unk_token") or "")


def added_tokens(spec: Spec) -> list[AddedToken]:
    """Returns the added tokens of a tokenizer.json."""
    return [
        AddedToken(
            content=entry["content"],
            id=entry["id"],
            special=bool(entry.get("special")),
            normalized=bool(entry.get("normalized")),
            **{flag: bool(entry.get(flag)) for flag in FLAGS},
        )
        for entry in spec.get("added_tokens") or []
    ]


def refuse_stretched(spec: Spec) -> None:
    """Raises `NotServedError` if an added token that is recognised in text takes its surroundings with it."""
    stretched = [token.content for token in added_tokens(spec) if token.stretches and not token.special]
    if stretched:
        raise NotServedError(f"the added token {stretched[0]!r} takes its surroundings with it")


def special_tokens(spec: Spec) -> dict[str, int]:
    """Returns the control tokens: added tokens that are marked special."""
    return {token.content: token.id for token in added_tokens(spec) if token.special}


def merge_added_tokens(
    spec: Spec, decoder: Mapping[int, Mapping[str, Any]], control: list[str], others: list[str]
) -> None:
    """Puts the added tokens of a configuration into a tokenizer.json, in the order in which transformers adds them.

    New tokens come after those of the file: those of `decoder` by their id, then the named tokens in `control`, then
    `others` from added_tokens.json. A token that both describe takes the configuration's flags, but a control token is
    always special. `spec` is changed in place.
    """
    entries: list[dict[str, Any]] = spec.setdefault("added_tokens", []) or []
    spec["added_tokens"] = entries
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


def name_reserved(spec: Spec, decoder: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    """Gives tokens that only a configuration has the ids that it states, where the vocabulary has reserved pieces.

    The pieces take the names of the tokens, as for InternLM2's ChatML tokens. `spec` is changed in place.

    Returns:
        The tokens that only the configuration has, with the ids that it states.
    """
    model, pieces = spec["model"], vocabulary(spec)
    known = {entry["content"] for entry in spec.get("added_tokens") or []} | pieces.keys()
    only = {str(token["content"]): id_ for id_, token in sorted(decoder.items()) if str(token["content"]) not in known}
    if not only:
        return only
    by_id = {id_: piece for piece, id_ in pieces.items()}
    merges = model.get("merges") or []
    merged = {part for merge in merges for part in (merge.split(" ") if isinstance(merge, str) else merge)}
    merged.update(merged_tokens(merges))
    for content, id_ in only.items():
        piece = by_id.get(id_)
        if piece is None or piece in merged or piece in {entry["content"] for entry in spec.get("added_tokens") or []}:
            continue
        if RESERVED.fullmatch(piece) is None:
            continue
        if isinstance(model["vocab"], dict):
            del model["vocab"][piece]
            model["vocab"][content] = id_
        else:
            model["vocab"][id_][0] = content
    return only


def number_added_tokens(spec: Spec, rust: RustTokenizer) -> None:
    """Replaces the added tokens of a tokenizer.json by those of the package's tokenizer, with their real ids."""
    known: dict[int, RustAddedToken] = rust.get_added_tokens_decoder()
    spec["added_tokens"] = [
        {"id": id_, "content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}
        for id_, token in sorted(known.items())
    ]


def fingerprint(spec: Spec, chat_template: str | None, revised: bool = False) -> str:
    """Returns a hash of all parts that determine ids, and of the chat template.

    The hash does not depend on how a file is written (defaults left out, merges as pairs or joined by a space).

    Args:
        spec: A parsed tokenizer.json.
        chat_template: The template.
        revised: Whether the ids are not those of the first version, so that its states and indexes are refused.
    """
    model = dict(spec["model"])
    vocab, merges = model.pop("vocab", None), model.pop("merges", None) or []
    digest = hashlib.blake2b(digest_size=16)
    digest.update(orjson.dumps(vocab, option=orjson.OPT_SORT_KEYS))
    digest.update("\n".join(merges if merges and isinstance(merges[0], str) else map(" ".join, merges)).encode())
    # The steps as the installed package writes them, for files of any version.
    written = orjson.loads(bare(spec.get("normalizer"), spec.get("pre_tokenizer")).to_str())
    rest = [_essence(part) for part in (model, written["normalizer"], written["pre_tokenizer"])]
    tokens = [_essence(entry) for entry in spec.get("added_tokens") or []]
    digest.update(orjson.dumps([rest, tokens, chat_template], option=orjson.OPT_SORT_KEYS))
    if revised:
        digest.update(b"2")
    return digest.hexdigest()


def bare(norm: Any, pre: Any) -> RustTokenizer:
    """Returns a tokenizer with these steps before an empty model."""
    spec = {"version": "1.0", "added_tokens": [], "normalizer": norm, "pre_tokenizer": pre, "post_processor": None}
    model = {"decoder": None, "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return RustTokenizer.from_str(orjson.dumps(spec | model).decode())


def _essence(node: Any) -> Any:
    """Returns the node without members that are null, false or empty."""
    if isinstance(node, Mapping):
        kept = {key: _essence(value) for key, value in node.items()}
        return {key: value for key, value in kept.items() if value is not None and value is not False and value != ""}
    if isinstance(node, list):
        return [_essence(value) for value in node]
    return node
