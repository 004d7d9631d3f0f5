"""Options that commands share, in groups; their names are the Python names with dashes.

This file imports nothing of the library, so that `--help` and shell completion stay quick. `building.py` makes objects
of the values. `tests/cli/` compares the names and choices here with those of the library.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
import cloup
from click.core import ParameterSource

from ms_prefstream.cli.values import (
    CarriedField,
    JsonObject,
    Numbers,
    PartRange,
    Preset,
    SecretJson,
    SourcePath,
    Suggested,
)
from ms_prefstream.errors import OptionError

Command = TypeVar("Command", bound=Callable[..., Any])

TASKS = ("dpo", "reward", "rlhf", "kto", "process-reward", "prompts")
TASK_LAYOUTS = ("paired", "concat", "mindformers", "reward_token")
TRUNCATIONS = ("prompt_left", "response_right", "drop", "right")
BACKENDS = ("auto", "fastokens", "tiktoken", "tokenizers", "sentencepiece")
ENGINES = ("local", "ray")
FILE_LAYOUTS = ("ragged", "mindrlhf", "mindrlhf-grpo", "mindformers", "megatron")

CONFIG = "ms_prefstream.config"
"""Key of the file of --config in `click.Context.meta`."""


def command(*, example: str) -> Callable[[Callable[..., Any]], cloup.Command]:
    """Returns a decorator that makes a command with grouped options.

    Args:
        example: Command lines that its help ends with.
    """
    lines = "\n".join(f"  {line}" for line in example.strip().splitlines())
    return cloup.command(epilog=f"\b\nExample:\n{lines}")


def read_config(ctx: click.Context, _: click.Parameter, path: str | None) -> str | None:
    """Makes the keys of a YAML file the defaults of all other options."""
    if path is not None and not ctx.resilient_parsing:
        from ms_prefstream.cli.config import options_in

        try:
            ctx.default_map = options_in(path)
        except OptionError as error:  # about keys of the file: no flags here
            raise click.UsageError(str(error), ctx) from None
        ctx.meta[CONFIG] = path
        _check_types(ctx, path)
    return path


def _check_types(ctx: click.Context, path: str) -> None:
    """Raises `click.UsageError` for a key of a file whose value has a type that no flag can give."""
    for param in ctx.command.params:
        if param.name not in (given := ctx.default_map or {}):
            continue
        try:
            param.type_cast_value(ctx, given[param.name])
        except click.BadParameter:
            continue  # raised again when the option is read
        except (TypeError, ValueError, AttributeError, OverflowError):
            value = given[param.name]
            raise click.UsageError(
                f"{path}: {param.name.rstrip('_')} is {value!r:.60} ({type(value).__name__}); expected a value such as "
                f"{param.opts[0]} takes: {param.type.name}.",
                ctx,
            ) from None


def is_in_file(ctx: click.Context, name: str) -> bool:
    """Returns whether the value of an option comes from the file of --config."""
    return ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP


def refuse_layout(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    """Refuses --layout where no files are written, and names the option of the task's layout."""
    if value is not None and not ctx.resilient_parsing:
        raise click.UsageError(
            f"--layout is the layout of the files that `ms-prefstream cache` writes. The layout of the task is "
            f"--task-layout {value}.",
            ctx,
        )


def with_escapes(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    r"""Returns a text of the command line with the characters that ``\n``, ``\t`` and ``\\`` stand for in it."""
    if value is None or is_in_file(ctx, str(param.name)):  # YAML has escapes of its own
        return value
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t"}.get(found[1], "\\"), value)


source_argument = cloup.argument("source", nargs=-1, required=True, type=SourcePath())

config_option = cloup.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="YAML file with the keys of MindFormers' data_loader section; options given here go before it.",
)

verbose_option = cloup.option("--verbose/--quiet", default=True, help="Whether a summary and warnings are shown.")

_refused_layout = click.option("--layout", "refused_layout", hidden=True, expose_value=False, callback=refuse_layout)

FORMAT = (
    cloup.option("--format", "format_", type=Preset(), default="auto", show_default=True, help="Preset of the rows."),
    cloup.option("--fields", type=JsonObject(), help='Standard name -> the row\'s field: {"prompt": "question"}.'),
    cloup.option("--split", metavar="SIDE:SHARE", help="A side of SOURCE by a hash of prompts: test:0.02, train:0.98."),
)

TEMPLATE = (
    cloup.option(
        "--template",
        type=Suggested("auto", "chat", "none"),
        default="auto",
        show_default=True,
        help="auto, chat, none, Jinja text or .jinja file.",
    ),
    cloup.option("--template-variables", type=JsonObject(), help='For the template: {"enable_thinking": false}.'),
    cloup.option(
        "--template-limit-s", type=float, help="Seconds for one conversation, 10 unless given; inf for no limit."
    ),
)

_TASK = (
    cloup.option("--task", type=click.Choice(TASKS), required=True, help="What rows become."),
    cloup.option("--max-length", type=int, help="Tokens of one side, row or prompt (all but rlhf)."),
    cloup.option("--max-prompt-length", type=int, help="Tokens of the prompt; columns of prompt_ids (rlhf)."),
    cloup.option("--seq-length", type=int, help="Columns of prompt + response (rlhf)."),
    cloup.option(
        "--truncation",
        type=click.Choice(TRUNCATIONS),
        help="What is cut of a row that is too long; right is for rlhf.  [default: prompt_left]",
    ),
    cloup.option(
        "--task-layout",
        "layout",
        type=click.Choice(TASK_LAYOUTS),
        help="Arrays of a batch.  [default: paired (dpo), mindformers (reward)]",
    ),
    cloup.option("--labels", type=click.Choice(("unshifted", "shifted")), help="Labels of dpo.  [default: unshifted]"),
    cloup.option("--reward-token", help="Text or id of the reward token."),
    cloup.option("--margin", is_flag=True, default=None, help="Add the margin column (dpo, reward)."),
    cloup.option("--kl/--no-kl", default=None, help="Add the columns kl_* (kto).  [default: kl]"),
    cloup.option(
        "--step-separator",
        callback=with_escapes,
        help=r"Text after each step, with \n, \t and \\ as escapes (process-reward).  [default: \n]",
    ),
    cloup.option("--last-step-only", is_flag=True, default=None, help="Label the last step alone (process-reward)."),
    cloup.option("--values", is_flag=True, default=None, help="Labels of steps are numbers (process-reward)."),
    cloup.option("--padding-side", type=click.Choice(("right", "left")), help="Of prompts.  [default: right]"),
    cloup.option("--repeat", type=int, help="Adjacent rows of each of the prompts.  [default: 1]"),
    cloup.option("--eos/--no-eos", "append_eos", default=None, help="Without a template: end token after responses."),
)

CARRY = cloup.option(
    "--carry",
    type=CarriedField(),
    metavar="NAME[:DTYPE[=DEFAULT]]",
    multiple=True,
    callback=lambda ctx, param, given: dict(item for one in given for item in one.items()) or None,
    help="Field that becomes a column: id, weight:float32=1.0; may be repeated.",
)

_ROWS = (
    *FORMAT,
    CARRY,
    cloup.option("--cvalues-types", multiple=True, help='CValues difficulty "better>worse"; may be repeated.'),
    cloup.option(
        "--content-lost",
        type=click.Choice(("report", "drop", "error")),
        help="What happens to rows whose trained turn loses words to the template.  [default: report]",
    ),
    cloup.option(
        "--continue-final-message",
        type=click.Choice(("error", "join")),
        help="What happens to a prompt that ends with an answer.  [default: error]",
    ),
)

_BAD_ROWS = (
    cloup.option("--on-bad-row", type=click.Choice(("raise", "drop")), default="raise", show_default=True),
    cloup.option("--quarantine", type=click.Path(), help="JSON Lines file for dropped rows."),
)

_TOKENS = (
    cloup.option(
        "--tokenizer",
        type=Suggested("bytes", "none"),
        required=True,
        help="Directory, tokenizer.json, .model file, 'bytes', or 'none'.",
    ),
    *TEMPLATE,
    cloup.option("--boundary", type=click.Choice(("auto", "joint", "inference")), default="auto", show_default=True),
    cloup.option(
        "--special-tokens-in-content",
        type=click.Choice(("escape", "error", "allow")),
        default="escape",
        show_default=True,
        help="Control strings in texts.",
    ),
    cloup.option("--train-empty-think", is_flag=True, default=None, help="Train the template's empty think block."),
    cloup.option("--vocab-size", type=int, help="Rows of the model's embedding, where it is padded."),
    cloup.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True),
)

_PAD_ID = cloup.option("--pad-token-id", type=int, help="What ids are padded with.")

_BATCHES = (
    cloup.option("--batch-size", type=int, help="Rows of a step.  [default: 8]"),
    cloup.option("--max-tokens", type=int, help="Tokens of a step instead; needs a length index."),
    cloup.option("--multiple-of", type=int, help="Bucket widths: multiples of this.  [default: 64]"),
    cloup.option("--boundaries", type=Numbers(), help="Bucket widths: 128,256,512."),
    cloup.option("--max-shapes", type=int, help="As many bucket widths as this, chosen for the data."),
    cloup.option("--round-to", type=int, help="With --max-shapes: widths are multiples of this.  [default: 16]"),
    cloup.option("--extra", type=int, default=0, help="Columns added to every bucket width."),
    cloup.option("--pad", is_flag=True, help="Pad everything to one length instead of buckets."),
    cloup.option("--length", type=int, help="That length; the task's if not given."),
    cloup.option("--pack", type=int, metavar="TOKENS", help="Pack samples into rows of so many tokens."),
    cloup.option("--max-segments", type=int, help="Columns of actual_seq_len in packs.  [default: 128]"),
)

ORDER_BY = cloup.option(
    "--order-by", metavar="KEY", help="Order rows by margin, length or field:NAME; -KEY descending."
)

ENGINE = (
    cloup.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="local",
        show_default=True,
        help="local: processes of this machine; ray: a Ray cluster.",
    ),
    cloup.option("--ray-address", help="A running Ray cluster; one on this machine if not given."),
)

PART_RANGE = cloup.option(
    "--part-range", type=PartRange(), metavar="K/N", help="Only the K-th of N ranges of the rows, as 3/8."
)

_ORDER = (
    cloup.option("--shuffle", type=click.Choice(("true", "false", "window")), default="true", show_default=True),
    cloup.option("--no-shuffle", "shuffle", flag_value="false", help="The same as --shuffle false: source order."),
    cloup.option("--seed", type=int, default=0, show_default=True, help="Of the order, 0 to 2**32 - 1."),
    cloup.option("--window", type=int, default=64, show_default=True, help="Steps sorted by length together."),
    cloup.option(
        "--drop-remainder",
        type=click.Choice(("true", "false", "mask")),
        default="true",
        show_default=True,
        help="Rows that fill no last step: left out, filled up, or filled up with a column row_mask.",
    ),
    cloup.option("--no-drop-remainder", "drop_remainder", flag_value="false", help="The same as false: repeat a few."),
    cloup.option("--longest-first", is_flag=True, help="Step 0 holds the longest rows of its window."),
    ORDER_BY,
    cloup.option("--order-noise", type=float, help="With --order-by: share of the rows by which a row may move."),
    cloup.option("--steps-per-epoch", type=int, help="Steps of packs, or of a source read from the front."),
    cloup.option("--num-shards", type=int, help="Ranks that share the data, with --shard-id."),
    cloup.option("--shard-id", type=int, help="This rank, from 0."),
    cloup.option("--logical-shards", type=int, help="Shards that are planned; ranks that divide them may share a run."),
)


def adding(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Returns a decorator that adds options, or groups of them, to a command in this order."""

    def add(made: Command) -> Command:
        return functools.reduce(lambda done, option: option(done), reversed(options), made)

    return add


REMOTE = (
    cloup.option(
        "--storage-options", type=SecretJson(), help="Of s3:// and other URLs, as JSON; better in the environment."
    ),
    cloup.option(
        "--cache-dir",
        type=click.Path(file_okay=False),
        help="Local copies of remote files.  [default: ~/.cache/ms_prefstream/files]",
    ),
)


def run_group(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns the last group of a command: its own options about the run, then those about URLs, then --config."""
    return cloup.option_group("Run", *options, *REMOTE, config_option)


_task_group = cloup.option_group("Task", *_TASK, _refused_layout)
_token_group = cloup.option_group("Tokens", *_TOKENS)
_token_and_pad_group = cloup.option_group("Tokens", *_TOKENS, _PAD_ID)

row_options = adding(
    cloup.option_group("Task", *_TASK),
    cloup.option_group("Rows", *_ROWS, *_BAD_ROWS),
    _token_and_pad_group,
)
"""Adds the options that decide what rows become, without order and batches; --layout is free for files."""

index_options = adding(_task_group, cloup.option_group("Rows", *_ROWS, _BAD_ROWS[0]), _token_group)
"""Adds the options of `mps.build_index`."""

doctor_options = adding(_task_group, cloup.option_group("Rows", *_ROWS, _BAD_ROWS[0]), _token_and_pad_group)
"""Adds the options of `mps.doctor`."""

stream_options = adding(
    _task_group,
    cloup.option_group("Rows", *_ROWS, *_BAD_ROWS),
    _token_and_pad_group,
    cloup.option_group("Batches", *_BATCHES),
    cloup.option_group("Order", *_ORDER),
)
"""Adds the options of `mps.stream`, its task and its batching, but those of the run."""
