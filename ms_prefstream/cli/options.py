"""Options that commands share; their names are the Python names with dashes.

This file imports nothing of the library, so that `--help` and shell completion stay quick. `building.py` makes objects
of the values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

TASKS = ("dpo", "reward", "rlhf")
Command = TypeVar("Command", bound=Callable[..., Any])

source_argument = click.argument("source", nargs=-1, required=True)

_TASK_OPTIONS = (
    click.option("--task", type=click.Choice(TASKS), required=True, help="What rows become."),
    click.option("--max-length", type=int, help="Tokens of one side (dpo, reward)."),
    click.option("--max-prompt-length", type=int, help="Tokens of the prompt; columns of prompt_ids (rlhf)."),
    click.option("--seq-length", type=int, help="Columns of prompt + response (rlhf)."),
    click.option("--truncation", help="prompt_left (default), response_right, drop; rlhf: right."),
    click.option("--labels", help="dpo: unshifted, shifted."),
    click.option("--reward-token", help="Text or id of the reward token."),
    click.option("--margin", is_flag=True, default=None, help="Add the margin column (dpo, reward)."),
    click.option("--eos/--no-eos", "append_eos", default=None, help="Without a template: end token after responses."),
)

_LAYOUT_OPTION = click.option("--layout", help="dpo: paired, concat. reward: mindformers, reward_token.")

_TASK_LAYOUT_OPTION = click.option("--task-layout", "layout", help="reward: mindformers (default) or reward_token.")

_ENCODING_OPTIONS = (
    click.option("--tokenizer", required=True, help="Directory, tokenizer.json, .model file, 'bytes', or 'none'."),
    click.option("--format", "format_", default="auto", show_default=True, help="Preset that reads the rows."),
    click.option("--cvalues-types", multiple=True, help='CValues difficulty "better>worse"; may be repeated.'),
    click.option("--template", default="auto", show_default=True, help="auto, chat, none, Jinja text or .jinja file."),
    click.option("--template-variables", metavar="JSON", help='Variables of the template: {"enable_thinking": false}.'),
    click.option("--fields", metavar="JSON", help='Standard name -> the row\'s field: {"prompt": "question"}.'),
    click.option("--vocab-size", type=int, help="Rows of the model's embedding, where it is padded."),
    click.option("--content-lost", help="report (default), drop or error: words of a trained turn that are lost."),
    click.option("--continue-final-message", help="error (default) or join: a prompt that ends with an answer."),
    click.option("--train-empty-think", is_flag=True, default=None, help="Train the template's empty think block."),
    click.option("--boundary", default="auto", show_default=True, help="auto, joint or inference."),
    click.option("--special-tokens-in-content", default="escape", show_default=True, help="escape, error or allow."),
    click.option(
        "--backend", default="auto", show_default=True, help="auto, fastokens, tiktoken, tokenizers, sentencepiece."
    ),
)

_ROW_OPTIONS = (
    click.option("--pad-token-id", type=int, help="What ids are padded with."),
    click.option("--on-bad-row", default="raise", show_default=True, help="raise or drop."),
    click.option("--quarantine", type=click.Path(), help="JSON Lines file for dropped rows."),
)

_BATCH_OPTIONS = (
    click.option("--batch-size", type=int, help="Rows of a step (8 if nothing is given)."),
    click.option("--max-tokens", type=int, help="Tokens of a step instead; needs a length index."),
    click.option("--multiple-of", type=int, help="Bucket widths: multiples of this (64 if nothing is given)."),
    click.option("--boundaries", help="Bucket widths, comma-separated."),
    click.option("--max-shapes", type=int, help="As many bucket widths as this, chosen for the data."),
    click.option("--round-to", type=int, help="With --max-shapes: widths are multiples of this (16)."),
    click.option("--extra", type=int, default=0, help="Columns added to every bucket width."),
    click.option("--pad", is_flag=True, help="Pad everything to one length instead of buckets."),
    click.option("--length", type=int, help="That length; the task's if not given."),
    click.option("--pack", type=int, metavar="TOKENS", help="Pack samples into rows of so many tokens."),
    click.option("--max-segments", type=int, help="Columns of actual_seq_len in packs (128)."),
    click.option("--steps-per-epoch", type=int, help="Steps of packs, or of a source read from the front."),
    click.option("--shuffle", type=click.Choice(["true", "false", "window"]), default="true", show_default=True),
    click.option("--no-shuffle", "shuffle", flag_value="false", help="The same as --shuffle false: source order."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the order, 0 to 2**32 - 1."),
    click.option("--workers", type=int, default=0, show_default=True, help="Processes that tokenise; 0 for none."),
    click.option("--window", type=int, default=64, show_default=True, help="Steps sorted by length together."),
    click.option("--drop-remainder/--no-drop-remainder", default=True, show_default=True, help="Or repeat a few rows."),
    click.option("--longest-first", is_flag=True, help="Step 0 holds the longest rows of its window."),
    click.option("--num-shards", type=int, help="Ranks that share the data, with --shard-id."),
    click.option("--shard-id", type=int, help="This rank, from 0."),
    click.option("--logical-shards", type=int, help="Shards that are planned; ranks that divide them may share a run."),
)


def _adding(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Returns a decorator that adds options to a command, in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_VERBOSE_OPTION = click.option("--verbose/--quiet", default=True, help="Whether a summary and warnings are shown.")

encoding_options = _adding(*_TASK_OPTIONS, _LAYOUT_OPTION, *_ENCODING_OPTIONS)
"""Adds the options of `mps.encode` and its task to a command."""

stream_options = _adding(
    *_TASK_OPTIONS, _LAYOUT_OPTION, *_ENCODING_OPTIONS, *_ROW_OPTIONS, *_BATCH_OPTIONS, _VERBOSE_OPTION
)
"""Adds the options of `mps.stream`, its task and its batching to a command."""

row_options = _adding(*_TASK_OPTIONS, _TASK_LAYOUT_OPTION, *_ENCODING_OPTIONS, *_ROW_OPTIONS, _VERBOSE_OPTION)
"""Adds the options that decide what rows become, without order and batches; --layout is free for other uses."""
