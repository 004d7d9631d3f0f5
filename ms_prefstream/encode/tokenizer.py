"""Loading a tokenizer, whatever form it comes in."""

from __future__ import annotations

import numbers
import os
import pathlib
from typing import Any

from ms_prefstream.encode.backends.base import Tokenizer
from ms_prefstream.encode.backends.tokenizer_files import ACCEPTED, find_files, read_bytes
from ms_prefstream.errors import OptionError, TokenizerError

__all__ = ["BACKENDS", "Tokenizer", "load_tokenizer"]

BACKENDS = ("auto", "tiktoken", "tokenizers", "sentencepiece")

# Where mindformers puts what belongs to a model name: checkpoint_download/<family>/, e.g. llama2 for llama2_7b.
_MINDFORMERS_FOLDER = pathlib.Path("checkpoint_download")


def load_tokenizer(tokenizer: Any, backend: str = "auto") -> Tokenizer:
    """Load a tokenizer. Nothing is downloaded, and code that comes with a tokenizer is never run.

    Args:
        tokenizer: A directory in Hugging Face layout, a tokenizer.json, a SentencePiece ``.model`` (or a directory
            with one), a mindformers YAML file or model name whose files are there already, a tokenizer object of
            transformers or mindformers, ``"bytes"``, or a `Tokenizer`, which is returned as it is.
        backend: ``auto`` takes tiktoken where it is proven equal, else what the files are made for.

    Returns:
        The tokenizer.

    Raises:
        OptionError: The backend has a name that does not exist.
        TokenizerError: There is no tokenizer, it cannot be read, or the backend cannot be used for it.
    """
    if backend not in BACKENDS:
        raise OptionError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}.")
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if isinstance(tokenizer, (str, os.PathLike)):
        if tokenizer == "bytes":
            return _bytes(backend)
        return _from_path(os.fspath(tokenizer), backend)
    from ms_prefstream.encode.backends.object_backend import load_object, looks_like_tokenizer

    if not looks_like_tokenizer(tokenizer):
        raise TokenizerError(f"a {type(tokenizer).__name__} is not a tokenizer. {ACCEPTED}.")
    return load_object(tokenizer, backend)


def _bytes(backend: str) -> Tokenizer:
    from ms_prefstream.encode.backends.bytes_backend import byte_tokenizer

    if backend != "auto":
        raise TokenizerError(f"backend={backend!r} cannot be used for the tokenizer 'bytes'. Use backend='auto'.")
    return byte_tokenizer()


def _from_path(name: str, backend: str) -> Tokenizer:
    path = pathlib.Path(name).expanduser()
    if not path.exists():
        path = _mindformers_folder(name)
    if path.suffix in (".yaml", ".yml"):
        path = _named_in_yaml(path)
    files = find_files(path)
    if files.json_path is not None and backend != "sentencepiece":
        from ms_prefstream.encode.backends.load_hf import load_hf

        return load_hf(files.json_path, files, backend)
    if files.model_path is None:
        raise TokenizerError(
            f"backend='sentencepiece' needs a SentencePiece model, and {path} has none. Use backend='auto'."
        )
    if backend in ("tiktoken", "tokenizers"):
        raise TokenizerError(
            f"backend={backend!r} needs a tokenizer.json, and {path} has none. Use backend='auto', or pass a directory "
            "with tokenizer.json."
        )
    from ms_prefstream.encode.backends.sentencepiece_backend import load_spm

    reason = "it was asked for" if backend == "sentencepiece" else "the tokenizer is a SentencePiece model"
    return load_spm(files.model_path, files, reason)


def _mindformers_folder(name: str) -> pathlib.Path:
    """The folder into which mindformers downloads the files of a model name, if they are there."""
    folder = _MINDFORMERS_FOLDER / name.rsplit("/", 1)[-1].split("_")[0]
    if name and "\\" not in name and folder.is_dir():
        return folder
    raise TokenizerError(f"no tokenizer called {name!r} is on this machine, and nothing is downloaded. {ACCEPTED}.")


def _named_in_yaml(path: pathlib.Path) -> pathlib.Path:
    """The tokenizer file that a mindformers YAML names, or the folder it lies in."""
    import yaml  # comes with mindformers

    try:
        config = yaml.safe_load(read_bytes(path))
    except yaml.YAMLError as error:
        raise TokenizerError(f"{path} is not valid YAML ({error}). {ACCEPTED}.") from None
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
