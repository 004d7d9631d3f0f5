"""Types of option values: what they accept, and what shell completion offers."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem


class Count(click.IntRange):
    """A number of rows, passes or the like; one that no program can count to is as good as the largest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return min(super().convert(value, param, ctx), sys.maxsize)


class SourcePath(click.ParamType[Any]):
    """A path, glob or name of a data set; a section of a YAML file stays as it is."""

    name = "source"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class Suggested(click.ParamType[Any]):
    """Free text or a path, of which completion offers the usual values."""

    name = "text"

    def __init__(self, *values: str) -> None:
        self._values = values

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not isinstance(value, str):
            self.fail(f"{value!r:.60}; expected text, such as {' or '.join(self._values)}.", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [*_starting(self._values, incomplete), CompletionItem(incomplete, type="file")]


class Preset(click.ParamType[Any]):
    """The name of a preset, see `ms-prefstream formats --list`; the library checks it."""

    name = "preset"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ms_prefstream.formats import PRESETS  # imported here: only completion needs the names

        return _starting(["auto", *sorted(PRESETS)], incomplete)


class JsonObject(click.ParamType[Any]):
    """An object as JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, dict):
            return value
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(found := json.loads(value), dict):
                return found
        self.fail(f'{value!r}; expected a JSON object such as \'{{"name": "value"}}\'.', param, ctx)


class SecretJson(JsonObject):
    """An object as JSON that may hold credentials: no message repeats it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail('expected a JSON object such as \'{"endpoint_url": "https://..."}\'.', param, ctx)


CARRIED = ("int64", "float32", "text")


class CarriedField(click.ParamType[Any]):
    """NAME, NAME:DTYPE or NAME:DTYPE=DEFAULT, or an object with such entries as JSON."""

    name = "field"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, dict):
            return value
        if value.startswith(("{", "[")):
            return JsonObject().convert(value, param, ctx)
        field, colon, rest = value.partition(":")
        dtype, equal, default = rest.partition("=")
        if colon and dtype not in CARRIED:
            expected = f"NAME, or NAME:DTYPE or NAME:DTYPE=DEFAULT with {', '.join(CARRIED)}"
            self.fail(f"{value!r}; expected {expected}.", param, ctx)
        if not equal:
            return {field: dtype or None}
        with contextlib.suppress(ValueError):
            return {field: [dtype, default if dtype == "text" else json.loads(default)]}
        self.fail(f"{value!r}; expected a number after '='.", param, ctx)


class Numbers(click.ParamType[Any]):
    """Whole numbers with commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple(value)
        with contextlib.suppress(ValueError):
            return tuple(map(int, value.split(",")))
        self.fail(f"{value!r}; expected numbers with commas, as 128,256,512.", param, ctx)


class PartRange(click.ParamType[Any]):
    """One of several ranges, counted from 1: 3/8."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        number, _, total = value.partition("/")
        if number.isascii() and number.isdigit() and total.isascii() and total.isdigit():
            return int(number), int(total)
        self.fail(f"{value!r}; expected K/N with the K-th of N ranges, as 3/8.", param, ctx)


class FileLayout(click.Choice[str]):
    """A layout of files. The layout of a task is refused, with the option that takes it."""

    def __init__(self, layouts: Sequence[str], of_tasks: Sequence[str]) -> None:
        super().__init__(layouts)
        self._of_tasks = of_tasks

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self._of_tasks and value not in self.choices:
            self.fail(
                f"{value!r} is a layout of the task: give --task-layout {value}. The layout of files is one of "
                f"{', '.join(self.choices)}.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


def _starting(values: Sequence[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(value) for value in values if value.startswith(incomplete)]
