"""Loads a tokenizer, whatever form it comes in, with the first backend of `backends.LOADERS` that serves it."""

from __future__ import annotations

import dataclasses
import numbers
import os
import pathlib
from typing import Any

from ms_prefstream.checks import whole_number
from ms_prefstream.disk import cause_and_remedy, check_path, read_yaml, shown, status_of
from ms_prefstream.encode.backends import BACKENDS, LOADERS
from ms_prefstream.encode.backends.base import Form, NotServedError, Tokenizer
from ms_prefstream.encode.backends.tokenizer_source import ACCEPTED, TokenizerSource, find_files
from ms_prefstream.errors import OptionError, SourceError, TokenizerError
from ms_prefstream.packages import warn_if_untried
from ms_prefstream.sources.local_hub import cache_roots, model_folders

__all__ = ["Tokenizer", "choose_pad_id", "load_tokenizer", "with_embedding"]

# Where mindformers puts what belongs to a model name: checkpoint_download/<family>/, e.g. llama2 for llama2_7b.
_MINDFORMERS_FOLDER = pathlib.Path("checkpoint_download")


def load_tokenizer(tokenizer: Any, backend: str = "auto") -> Tokenizer:
    """Loads a tokenizer. Nothing is downloaded, and code that comes with a tokenizer is never run.

    Args:
        tokenizer: A directory in Hugging Face layout, a tokenizer.json, a SentencePiece ``.model`` (or a directory
            with one), a mindformers YAML file or model name whose files exist locally, the name of a model in a
            local cache of Hugging Face or ModelScope, a tokenizer object of transformers or mindformers,
            ``"bytes"``, or a `Tokenizer`, which is returned as it is.
        backend: ``auto`` takes fastokens or tiktoken where it is proven equal, else the backend that the files are
            made for.

    Raises:
        OptionError: The backend has a name that does not exist.
        TokenizerError: There is no tokenizer, it cannot be read, or the backend cannot be used for it.
    """
    if backend not in BACKENDS:
        raise OptionError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}.")
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    source = _source(tokenizer)
    loaders = [loader for loader in LOADERS if backend in ("auto", loader.backend)]
    refusals: list[str] = []
    for loader in loaders:
        if loader.reads not in source.forms:
            continue
        try:
            loaded = loader.load(source)
        except NotServedError as why:
            refusals.append(f"{loader.backend} does not fit, because {why}")
            continue
        if loader.reads is Form.JSON:
            warn_if_untried("tokenizers")
        reason = f"backend={backend!r} was asked for" if backend != "auto" else "; ".join(refusals) or loaded.reason
        return dataclasses.replace(loaded, reason=reason)
    if refusals:
        raise TokenizerError(
            f"backend={backend!r} cannot be used for {source.name}: {refusals[0]}. Use backend='auto'."
        )
    raise TokenizerError(
        f"backend={backend!r} needs {loaders[0].reads.value}, and tokenizer {source.name!r} has none. Use "
        "backend='auto', or pass a directory with such a file."
    )


def _source(tokenizer: Any) -> TokenizerSource:
    """Returns the tokenizer's files, or what an object offers."""
    if not isinstance(tokenizer, (str, os.PathLike)):
        from ms_prefstream.encode.backends.object_backend import read_object

        warn_if_untried(type(tokenizer).__module__.partition(".")[0])
        return read_object(tokenizer)
    if tokenizer == "bytes":
        return TokenizerSource(name="bytes", forms={Form.BYTES: None})
    name = os.fspath(tokenizer)
    check_path(name, TokenizerError, "tokenizer")
    try:
        return _files_of(name)
    except OSError as error:
        where = shown(error.filename or name)
        raise TokenizerError(f"tokenizer {where} cannot be read: {cause_and_remedy(error)}.") from error


def _files_of(name: str) -> TokenizerSource:
    """Returns the files of a tokenizer at a path, or of a model name.

    Raises:
        OSError: The system cannot look the path up.
    """
    path = pathlib.Path(name).expanduser()
    if status_of(path, follow=True) is None:
        folder = _mindformers_folder(name) or _hub_folder(name)
        if folder is None:
            searched = ", ".join(cache_roots())
            raise TokenizerError(
                f"no tokenizer called {name!r} is on this machine (local caches: {searched}), and nothing is "
                f"downloaded. {ACCEPTED}."
            )
        return dataclasses.replace(find_files(folder), name=name)
    return find_files(_named_in_yaml(path) if path.suffix in (".yaml", ".yml") else path)


def _mindformers_folder(name: str) -> pathlib.Path | None:
    """Returns the folder into which mindformers downloads the files of a model name, if it exists."""
    folder = _MINDFORMERS_FOLDER / name.rsplit("/", 1)[-1].split("_")[0]
    return folder if name and "\\" not in name and folder.is_dir() else None


def _hub_folder(name: str) -> pathlib.Path | None:
    """Returns the folder of a model in a local cache, one with a tokenizer before others; None without one."""
    try:
        found = list(map(pathlib.Path, model_folders(name)))
    except SourceError as error:
        raise TokenizerError(str(error)) from None
    whole = (path for path in found if (path / "tokenizer.json").exists() or any(path.glob("*.model")))
    return next(whole, found[0] if found else None)


def _named_in_yaml(path: pathlib.Path) -> pathlib.Path:
    """Returns the tokenizer file that a mindformers YAML names, or the folder of the YAML file."""
    config = read_yaml(path, TokenizerError, "the configuration")
    section: Any = config
    for key in ("processor", "tokenizer"):
        section = section.get(key) if isinstance(section, dict) else None
    listed = section if isinstance(section, dict) else {}
    for key in ("tokenizer_file", "vocab_file"):
        if isinstance(listed.get(key), str):
            for candidate in (pathlib.Path(listed[key]), path.parent / listed[key]):
                if candidate.is_file():
                    return candidate
    return path.parent


def with_embedding(tokenizer: Tokenizer, vocab_size: int | None) -> Tokenizer:
    """Returns the tokenizer of a model whose embedding has so many rows; None leaves it as it is.

    Raises:
        OptionError: It is no whole number, or smaller than the tokenizer's vocabulary.
    """
    if vocab_size is None:
        return tokenizer
    size = whole_number("vocab_size", vocab_size, 1)
    if size < tokenizer.vocab_size:
        raise OptionError(
            f"vocab_size is {size}, but tokenizer {tokenizer.name} has the ids 0 to {tokenizer.vocab_size - 1}; "
            f"expected the rows of the model's embedding, at least {tokenizer.vocab_size}. Give that number "
            "(vocab_size in the model's configuration), or leave it out."
        )
    return dataclasses.replace(tokenizer, embedding_size=size)


def choose_pad_id(given: int | None, tokenizer: Tokenizer | None, vocab_size: int | None = None) -> int:
    """Returns the given id, else the tokenizer's pad token, else a reserved one, else its end token.

    Args:
        given: The option `pad_token_id`.
        tokenizer: None for rows that are already tokenized.
        vocab_size: The option of that name, for these rows.

    Raises:
        OptionError: The tokenizer has no such id, or it is missing for rows that are already tokenized.
        TokenizerError: The tokenizer has none of these tokens.
    """
    if given is not None:
        size = whole_number("vocab_size", vocab_size, 1) if vocab_size is not None else None
        size = size if tokenizer is None else tokenizer.ids
        top = None if size is None else size - 1
        number = isinstance(given, numbers.Integral) and not isinstance(given, bool)
        if not number or given < 0 or (top is not None and given > top):
            of = (
                "the model"
                if tokenizer is None or tokenizer.embedding_size is not None
                else f"tokenizer {tokenizer.name}"
            )
            known = "" if top is None else f"; {of} has the ids 0 to {top}"
            raise OptionError(f"pad_token_id is {given!r}; expected the id of a token{known}.")
        return int(given)
    if tokenizer is None:
        raise OptionError(
            "tokenizer=None is for rows that are already tokenized, and these need pad_token_id, the id that arrays "
            "are filled up with. Pass pad_token_id=<id>, or tokenizer= for rows with text."
        )
    for candidate in (tokenizer.pad_id, tokenizer.reserved_id, tokenizer.eos_id):
        if candidate is not None:
            return candidate
    raise TokenizerError(
        f"tokenizer {tokenizer.name} has no pad, reserved or end token to pad with. Pass pad_token_id=<id>."
    )
