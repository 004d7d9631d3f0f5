"""From a SentencePiece model file to a `Tokenizer`."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterable

import sentencepiece

from ms_prefstream.encode.backends.added import AddedToken
from ms_prefstream.encode.backends.base import Tokenizer
from ms_prefstream.encode.backends.files import TokenizerFiles, read_bytes
from ms_prefstream.encode.backends.names import Names, find_reserved
from ms_prefstream.encode.backends.sp_proto import PieceType, SentencePieceModel, read_model
from ms_prefstream.encode.backends.spm import SentencePieceEncoder
from ms_prefstream.errors import TokenizerError

_RENAMED = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)


def load_spm(path: pathlib.Path, files: TokenizerFiles, reason: str) -> Tokenizer:
    """The tokenizer of a SentencePiece model with the configuration beside it."""
    data = read_bytes(path)
    model = _parse(data, path)
    tokens = _added_tokens(model, files)
    known = {piece: id_ for id_, (piece, _) in enumerate(model.pieces)} | {t.content: t.id for t in tokens}
    own = _own_names(data, model)
    told = files.names
    names = Names(
        bos=told.bos if told.bos in known else own["bos"],
        eos=told.eos if told.eos in known else own["eos"],
        pad=told.pad if told.pad in known else own["pad"],
        unk=told.unk if told.unk in known else own["unk"],
    )
    marked = set(names.control) | set(files.names.control)
    tokens += [
        _token(name, known[name], True) for name in marked if name in known and name not in {t.content for t in tokens}
    ]
    tokens = [_token(t.content, t.id, t.special or t.content in marked) for t in tokens]
    special = {t.content: t.id for t in tokens if t.special}
    extra = [t for t in tokens if t.id >= len(model.pieces) or model.pieces[t.id][0] != t.content]
    add_bos = files.config.get("add_bos_token")
    return Tokenizer(
        name=files.name,
        encoder=SentencePieceEncoder(data, model, special, extra=extra),
        backend="sentencepiece",
        reason=reason,
        special=special,
        special_in_template={t.content: t.id for t in tokens},
        bos_token=names.bos,
        eos_token=names.eos,
        pad_token=names.pad,
        unk_token=names.unk,
        bos_id=None if names.bos is None else known[names.bos],
        eos_id=None if names.eos is None else known[names.eos],
        pad_id=None if names.pad is None else known[names.pad],
        add_bos=add_bos if isinstance(add_bos, bool) else names.bos is not None,
        vocab_size=max(len(model.pieces), 1 + max(known.values())),
        chat_template=files.chat_template,
        fingerprint=spm_fingerprint(data, tokens, files.chat_template),
        reserved=find_reserved(((t.content, t.id) for t in tokens), (names.bos, names.eos, names.pad, names.unk)),
    )


def spm_fingerprint(data: bytes, tokens: Iterable[AddedToken], chat_template: str | None) -> str:
    """A hash of the model, its added tokens and the chat template."""
    digest = hashlib.blake2b(data, digest_size=16)
    told = sorted((token.id, token.content, token.special) for token in tokens)
    digest.update(repr((told, chat_template)).encode())
    return digest.hexdigest()


def _added_tokens(model: SentencePieceModel, files: TokenizerFiles) -> list[AddedToken]:
    """Symbols of the model, then what the configuration adds; what the configuration says of a symbol holds."""
    declared = {
        str(token["content"]): (id_, bool(token.get("special"))) for id_, token in files.added_tokens_decoder.items()
    }
    declared = {**{content: (id_, False) for content, id_ in files.legacy_added.items()}, **declared}
    found: list[AddedToken] = []
    inside = {piece: id_ for id_, (piece, _) in enumerate(model.pieces)}
    # A piece kept in reserve goes by the name that the configuration gives to its id, as InternLM2's ChatML tokens do.
    renamed = {
        id_
        for content, (id_, _) in declared.items()
        if content not in inside and id_ < len(model.pieces) and model.pieces[id_][1] in _RENAMED
    }
    for id_, (piece, kind) in enumerate(model.pieces):
        if id_ in renamed:
            continue
        if kind in (PieceType.CONTROL, PieceType.UNKNOWN):
            found.append(_token(piece, id_, True))
        elif kind is PieceType.USER_DEFINED:
            # Without a configuration, what is written like <|name|> is taken for control, to be safe.
            looks = not files.has_config and piece.startswith("<|") and piece.endswith("|>")
            found.append(_token(piece, id_, declared[piece][1] if piece in declared else looks))
    listed = {token.content for token in found}
    for content, (id_, special) in sorted(declared.items(), key=lambda item: item[1]):
        known = inside.get(content) == id_ or (id_ in renamed and content not in inside)
        if content not in listed and (known or id_ >= len(model.pieces)):
            found.append(_token(content, id_, special))
    return found


def _token(content: str, id_: int, special: bool) -> AddedToken:
    return AddedToken(content=content, id=id_, special=special)


def _own_names(data: bytes, model: SentencePieceModel) -> dict[str, str | None]:
    """bos, eos, pad and unk as the model itself numbers them."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    ids = {key: int(getattr(processor, f"{key}_id")()) for key in ("bos", "eos", "pad", "unk")}
    return {key: model.pieces[id_][0] if id_ >= 0 else None for key, id_ in ids.items()}


def _parse(data: bytes, path: pathlib.Path) -> SentencePieceModel:
    try:
        model = read_model(data)
        sentencepiece.SentencePieceProcessor(model_proto=data)
    except (ValueError, RuntimeError, OSError):
        hint = "It looks like a list of tiktoken ranks: pass the directory with tokenizer.json instead" if (
            b"==" in data[:64]
        ) else "Pass a SentencePiece .model, or a directory with tokenizer.json"  # fmt: skip
        raise TokenizerError(f"{path} is not a SentencePiece model. {hint}.") from None
    if model.suffix:
        raise TokenizerError(
            f"{path} sets spaces behind words (treat_whitespace_as_suffix), which is not supported. "
            "Pass a directory with tokenizer.json."
        )
    return model
