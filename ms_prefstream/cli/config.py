"""`--config`: the keys of a YAML file as values of options.

``task: {type: DPO, max_length: 1024}``  ->  ``--task dpo --max-length 1024``
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ms_prefstream.adapters.yaml_keys import TASK_TYPES, check_sections, plain_keys, refuse_unknown
from ms_prefstream.batch import BATCHING_RULES
from ms_prefstream.disk import read_yaml
from ms_prefstream.errors import OptionError
from ms_prefstream.tasks import TASKS

_OF_LOADER = ("type", "columns", "reference_free")  # keys of PrefStreamDataLoader that are no options of a stream
_NULL_MEANS_NONE = ("tokenizer", "template", "index")


def options_in(path: str) -> dict[str, Any]:
    """Returns the options that a YAML file states, by the names of the command line's parameters.

    Args:
        path: A file with the keys of `mps.stream`, alone or as `data_loader`, or a whole configuration of MindFormers,
            of which `train_dataset.data_loader` and `runner_config.batch_size` count.

    Raises:
        OptionError: It is not YAML, or a key is unknown.
    """
    content = read_yaml(path, OptionError, "the configuration")
    if not isinstance(content, dict):
        raise OptionError(f"{path}: expected keys such as source:, tokenizer: and task:, and found {content!r:.60}.")
    sizes: dict[str, Any] = {}
    if isinstance(dataset := content.get("train_dataset"), dict):
        sizes = {"batch_size": (content.get("runner_config") or {}).get("batch_size", 1)}
        content = dataset
    loader = content.get("data_loader", content)
    if not isinstance(loader, dict):
        raise OptionError(f"{path}: data_loader is {loader!r}; expected a section with source, tokenizer and task.")
    given = plain_keys({name: value for name, value in loader.items() if name not in _OF_LOADER}, f"{path}: ")
    check_sections(given, [name for name in ("task", "batching") if name in given], f"{path}: ")
    options = _task(given.pop("task", None), path) | _batching(given.pop("batching", None), sizes, path)
    source = given.pop("dataset_dir", None) or given.pop("source", None)
    if source is not None:
        options["source"] = tuple(source) if isinstance(source, list) else (source,)
    for name, value in given.items():
        if value is None and name in _NULL_MEANS_NONE:
            value = "none"
        if name == "carry" and isinstance(value, dict):
            value = [value]
        if name in ("shuffle", "drop_remainder") and isinstance(value, bool):
            value = str(value).lower()
        options["format_" if name == "format" else name] = value
    return {name: value for name, value in options.items() if value is not None}


def _task(section: Mapping[str, Any] | None, path: str) -> dict[str, Any]:
    if section is None:
        return {}
    kind, options = _split(section, TASK_TYPES, f"{path}: task")
    names = {made.__name__: name for name, made in TASKS.items()}
    return {**options, "task": names[kind]}


def _batching(section: Any, sizes: dict[str, Any], path: str) -> dict[str, Any]:
    section = {"type": section} if isinstance(section, str) else section
    if section is None:
        return sizes
    kind, options = _split(section, BATCHING_RULES, f"{path}: batching")
    if options.get("max_tokens") is None:
        options = sizes | options
    if kind == "Pack":
        options["pack"] = options.pop("tokens", None)
    elif kind == "Pad":
        options["pad"] = True
    return options


def _split(section: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Returns the type of a section, and its options after a check of their names."""
    kind = str(section.get("type"))
    if kind not in kinds:
        raise OptionError(f"{where}.type is {section.get('type')!r}; expected one of {', '.join(kinds)}.")
    options = {name: value for name, value in section.items() if name != "type"}
    refuse_unknown(options, tuple(inspect.signature(kinds[kind]).parameters), f"{where} ({kind}): ")
    return kind, options
