"""A tokenizer before it is loaded: its files and configuration, and the named tokens in them."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import orjson

from ms_prefstream.disk import cause_and_remedy, open_regular
from ms_prefstream.encode.backends.base import Form
from ms_prefstream.errors import TokenizerError, printable

ACCEPTED = (
    "Pass a directory with tokenizer.json or tokenizer.model, a path to such a file, a tokenizer object of "
    'transformers or mindformers, or "bytes"'
)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_OTHERS = ("sep_token", "cls_token", "mask_token")
RESERVED = re.compile(r"[<\[]\|?(reserved|extra|unused|placeholder|control|dummy)\w*\|?[>\]]", re.IGNORECASE)


MOST_IDS = 1 << 22
"""Ids of a tokenizer, at most: ten times the largest vocabularies, and few enough for tables of all ids."""

Id = Annotated[int, msgspec.Meta(ge=0, lt=MOST_IDS)]


class _Token(msgspec.Struct):
    content: str


class _Config(msgspec.Struct):
    """Parts of tokenizer_config.json and special_tokens_map.json whose types matter."""

    additional_special_tokens: list[Any] | None = None
    added_tokens_decoder: dict[Id, _Token] | None = None


@dataclass(frozen=True, kw_only=True)
class Names:
    """Named tokens, as written in a configuration.

    Attributes:
        tokens: ``bos_token``, ``eos_token``, ``unk_token`` and ``pad_token``; a content or None each.
        others: Further control tokens.
    """

    tokens: Mapping[str, Any] = field(default_factory=lambda: dict.fromkeys(_NAMED))
    others: tuple[str, ...] = ()

    @property
    def control(self) -> list[str]:
        """All of them once, in the order in which transformers adds them."""
        return list(dict.fromkeys(name for name in (*self.tokens.values(), *self.others) if name))


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """A tokenizer before it is loaded.

    Attributes:
        name: Its name in reports: a path as the user gave it, or what an object calls itself.
        forms: The forms in which it exists, and where each is: the path of a tokenizer.json or its parsed content,
            the path of a SentencePiece model, an object.
        config: tokenizer_config.json, parsed; empty without one.
        names: bos, eos and the other named tokens.
        chat_template: The chat template, if there is one.
        legacy_added: added_tokens.json, parsed.
        has_config: Whether there is a tokenizer_config.json.
        shared: Parsed parts that loaders of the same form share, so that a file is read once.
    """

    name: str
    forms: Mapping[Form, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    names: Names = field(default_factory=Names)
    chat_template: str | None = None
    legacy_added: Mapping[str, int] = field(default_factory=dict)
    has_config: bool = False
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def added_tokens_decoder(self) -> dict[int, Mapping[str, Any]]:
        """Added tokens by id, as tokenizer_config.json lists them."""
        listed = self.config.get("added_tokens_decoder") or {}
        return {int(id_): token for id_, token in listed.items()}


def find_files(path: pathlib.Path) -> TokenizerSource:
    """Finds the tokenizer in a directory, or that of a tokenizer.json or ``.model`` file, and its configuration.

    Raises:
        TokenizerError: Nothing there is a tokenizer, or a file cannot be parsed.
    """
    directory = path if path.is_dir() else path.parent
    forms = {Form.JSON if path.suffix == ".json" else Form.MODEL: path}
    if path.is_dir():
        models = sorted(directory.glob("*.model"))
        named = directory / "tokenizer.model"
        model = named if named.is_file() else models[0] if len(models) == 1 else None
        found = {Form.JSON: directory / "tokenizer.json", Form.MODEL: model}
        forms = {form: file for form, file in found.items() if file is not None and file.is_file()}
        if not forms:
            raise _nothing_found(directory, models)
    config = read_json(directory / "tokenizer_config.json", _Config)
    jinja = directory / "chat_template.jinja"
    return TokenizerSource(
        name=str(path),
        forms=forms,
        config=config,
        names=read_names(config, read_json(directory / "special_tokens_map.json", _Config)),
        chat_template=_read_text(jinja) if jinja.is_file() else chat_template_of(config),
        legacy_added=read_json(directory / "added_tokens.json", dict[str, Id]),
        has_config=(directory / "tokenizer_config.json").is_file(),
    )


def read_json(path: pathlib.Path, schema: Any) -> dict[str, Any]:
    """Returns the JSON object in a file; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    found = json_object(read_bytes(path), path)
    check_types(found, schema, path)
    return found


def json_object(text: bytes, where: pathlib.Path | str) -> dict[str, Any]:
    """Returns the JSON object that a text holds, which was read at `where`."""
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise TokenizerError(
            f"{where} is not valid JSON ({error}). Copy or download it again; it was perhaps cut off."
        ) from None
    if not isinstance(parsed, dict):
        raise TokenizerError(f"{where} holds a JSON {type(parsed).__name__}, expected an object. {ACCEPTED}.")
    return parsed


def check_types(found: Mapping[str, Any], schema: Any, where: pathlib.Path | str) -> None:
    """Checks the parts of a tokenizer's file whose types matter.

    Args:
        found: The file, parsed.
        schema: A type of msgspec.
        where: Where it was read.

    Raises:
        TokenizerError: A part has another type, or an id is too large.
    """
    try:
        msgspec.convert(found, schema, str_keys=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise TokenizerError(
            f"{where} cannot belong to a tokenizer: {printable(str(error))}. Copy or download it again."
        ) from None


def read_bytes(path: pathlib.Path) -> bytes:
    """Returns a file's content, or raises a `TokenizerError` that says why it cannot be read."""
    try:
        with open_regular(path, TokenizerError, "the tokenizer file") as file:
            return file.read()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {cause_and_remedy(error)}.") from None


def _read_text(path: pathlib.Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from None


def _nothing_found(directory: pathlib.Path, models: list[pathlib.Path]) -> TokenizerError:
    if models:
        listed = ", ".join(model.name for model in models)
        return TokenizerError(
            f"{directory} holds several SentencePiece models ({listed}) and none is called tokenizer.model. "
            "Pass the path of the one to use."
        )
    present = sorted(entry.name for entry in directory.iterdir())
    shown = ", ".join(present[:8]) + (", ..." if len(present) > 8 else "") if present else "nothing"
    remedy = f"{ACCEPTED}."
    if "vocab.json" in present and "merges.txt" in present:
        remedy = (
            "vocab.json and merges.txt do not say how text is split: load the tokenizer with transformers, call "
            "save_pretrained(directory), and pass that directory, or pass the loaded object."
        )
    return TokenizerError(
        f"{directory} holds no tokenizer: expected tokenizer.json or tokenizer.model, found {shown}. {remedy}"
    )


def _text_of(token: Any) -> str | None:
    """Returns the content of a token written as a string, as a dictionary or as an AddedToken object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    content = token if isinstance(token, str) else getattr(token, "content", None)
    return content if isinstance(content, str) and content else None


def read_names(config: Mapping[str, Any], fallback: Mapping[str, Any] | None = None) -> Names:
    """Returns the names in a tokenizer_config.json; special_tokens_map.json gives those that it does not mention."""
    merged = {**(fallback or {}), **config}
    extra = merged.get("additional_special_tokens") or []
    found = [_text_of(merged.get(key)) for key in _OTHERS] + [_text_of(token) for token in extra]
    tokens = {key: _text_of(merged.get(key)) for key in _NAMED}
    return Names(tokens=tokens, others=tuple(name for name in found if name))


def find_reserved(candidates: Iterable[tuple[str, int]], names: Names) -> dict[str, int]:
    """Returns the tokens named as reserved or unused, such as ``<|reserved_special_token_0|>``, by rising id."""
    used = names.tokens.values()
    found = [(id_, name) for name, id_ in candidates if name not in used and RESERVED.fullmatch(name)]
    return {name: id_ for id_, name in sorted(found)}


def chat_template_of(config: Mapping[str, Any]) -> str | None:
    """Returns the chat template of a configuration: a string, or ``default`` (or the only one) of several."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [t for t in template if isinstance(t, Mapping) and isinstance(t.get("name"), str)]
        template = {t["name"]: t.get("template") for t in named}
    if isinstance(template, Mapping):
        template = template.get("default", next(iter(template.values())) if len(template) == 1 else None)
    return template if isinstance(template, str) and template else None
