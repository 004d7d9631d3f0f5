"""The recipes of examples/README.md: each YAML file and each Python block, read with a tokenizer of its family.

The published files are used where ../shared has them; otherwise small tokenizers stand in for them.
"""

from __future__ import annotations

import itertools
import pathlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import yaml

import ms_prefstream as mps
from ms_prefstream.adapters.yaml_keys import stream_from
from ms_prefstream.steps.collate import select_columns
from tests.helpers import Batch, assert_same_batches

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
BUNDLED = ROOT / "ms_prefstream" / "demo" / "pairs.jsonl"
KINDS = ("input_ids", "labels", "loss_mask")
COLUMNS = [f"{side}_{kind}" for side in ("chosen", "rejected") for kind in KINDS]
WITH_REFERENCE = [*COLUMNS[:3], "chosen_ref_logps", *COLUMNS[3:], "rejected_ref_logps"]
BATCH, READ = 8, 2  # rows of a batch, and how many batches the tests look at


@dataclass(frozen=True)
class Recipe:
    """What a recipe must give, stated by hand.

    Attributes:
        title: Its heading in the README.
        tokenizer: The path that stands in the recipe.
        length: Columns of a batch.
        shifted: Whether labels and mask stand one column before their token.
        pad: The pad token as text.
        begins: The text of a row up to the user's first words, with {system} in the place of the system message.
        between: The template's text between prompt and answer.
        ends: The token that ends an answer.
    """

    title: str
    tokenizer: str
    length: int
    shifted: bool
    pad: str
    begins: str
    between: str
    ends: str


CHATML = {"begins": "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
          "between": "<|im_end|>\n<|im_start|>assistant\n", "ends": "<|im_end|>"}  # fmt: skip
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
RECIPES = {
    "qwen2_5": Recipe("Qwen2.5", "path/to/Qwen2.5-7B-Instruct", 4097, False, "<|endoftext|>", **CHATML),
    "llama3": Recipe(
        "Llama 3", "path/to/Meta-Llama-3-8B-Instruct", 8193, False, "<|reserved_special_token_0|>",
        "<|begin_of_text|>" + HEADER.format("system") + "{system}<|eot_id|>" + HEADER.format("user"),
        "<|eot_id|>" + HEADER.format("assistant"), "<|eot_id|>",
    ),
    "internlm2": Recipe(
        "InternLM2", "path/to/internlm2-chat-7b", 2049, False, "</s>", **CHATML | {"begins": "<s>" + CHATML["begins"]}
    ),
    "baichuan2": Recipe(
        "Baichuan2", "path/to/Baichuan2-13B-Chat/tokenizer.model", 4096, True, "<unk>",
        "{system}<reserved_106>", "<reserved_107>", "</s>",
    ),
    "glm4": Recipe(
        "GLM-4", "path/to/glm-4-9b-chat-hf", 8192, True, "<|endoftext|>",
        "[gMASK]<sop><|system|>\n{system}<|user|>\n", "<|assistant|>\n", "<|user|>",
    ),
}  # fmt: skip
TOKENIZERS = {  # a recipe and what it is run with: a fixture, or a folder of ../shared/tokenizers
    "qwen2_5": ("chatml_dir", "../qwen2_5"),
    "llama3": ("llama3_like",),
    "internlm2": ("internlm2_like", "../internlm2"),
    "baichuan2": ("baichuan2_like",),
    "glm4": ("glm4_like",),
}
RUNS = [(name, tokenizer) for name, found in TOKENIZERS.items() for tokenizer in found]


@pytest.fixture
def tokenizer(request: pytest.FixtureRequest) -> str:
    """The tokenizer that a run names."""
    name = str(request.param)
    if name.startswith("../"):
        return str(request.getfixturevalue("shared") / "tokenizers" / name[3:])
    return str(request.getfixturevalue(name))


def section(name: str) -> dict[str, Any]:
    """The recipe's file."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "recipes" / f"{name}_dpo.yaml").read_text("utf-8"))
    assert found["train_dataset_task"] == {"type": "PrefStreamDataset", "dataset_config": found["train_dataset"]}
    return found


def from_yaml(found: dict[str, Any], **changed: Any) -> tuple[mps.Stream, list[Batch]]:
    """The stream of a file's keys, and its first batches with the columns that the file names."""
    keys = {**found["train_dataset"]["data_loader"], **changed}
    assert keys.pop("type") == "PrefStreamDataLoader"
    stream = stream_from(keys, batch_size=found["runner_config"]["batch_size"])
    steps = select_columns(stream._steps, found["train_dataset"]["input_columns"])
    return stream, list(itertools.islice(steps.start(0), READ))


def python_blocks(title: str) -> list[str]:
    """The Python blocks under a heading of the README."""
    part = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^##|\Z)", README, flags=re.DOTALL | re.MULTILINE)
    assert part is not None, title
    return re.findall(r"^```python\n(.*?)^```$", part[1], flags=re.DOTALL | re.MULTILINE)


def from_readme(name: str, tokenizer: str) -> mps.Stream:
    """The stream that the recipe's Python makes."""
    (code,), recipe = python_blocks(RECIPES[name].title), RECIPES[name]
    assert f'"{recipe.tokenizer}"' in code
    names: dict[str, Any] = {}
    exec(code.replace(recipe.tokenizer, tokenizer), names)
    stream: mps.Stream = names["stream"]
    return stream


@pytest.mark.parametrize(("name", "tokenizer"), RUNS, indirect=["tokenizer"])
def test_a_recipe_yields_what_it_states(name: str, tokenizer: str, here: pathlib.Path) -> None:
    recipe, found = RECIPES[name], section(name)
    assert found["train_dataset"]["data_loader"]["tokenizer"] == recipe.tokenizer
    stream, batches = from_yaml(found, tokenizer=tokenizer)
    assert stream.shapes == [(BATCH, recipe.length)]
    assert stream.tokenizer is not None
    assert stream.tokenizer.decode([stream.pad_token_id]) == recipe.pad
    for step, batch in enumerate(batches):
        assert list(batch) == COLUMNS
        assert {(array.shape, array.dtype.name) for array in batch.values()} == {((BATCH, recipe.length), "int32")}
        for at, row in enumerate(stream.rows(0, step, resolved=True)):
            _check_row(stream, recipe, {column: batch[column][at] for column in COLUMNS}, int(row))


def _check_row(stream: mps.Stream, recipe: Recipe, row: dict[str, Any], number: int) -> None:
    """One pair against the text that it was made of."""
    raw = mps.read(str(BUNDLED))[number]
    assert stream.tokenizer is not None
    for side in ("chosen", "rejected"):
        ids, labels, mask = (row[f"{side}_{kind}"] for kind in KINDS)
        text = stream.tokenizer.decode(ids.tolist())
        answer = raw[side][-1]["content"]
        asked = raw["prompt"][-1]["content"] + recipe.between
        if raw["prompt"][0]["role"] == "system" and len(raw["prompt"]) == 2:
            assert text.startswith(recipe.begins.format(system=raw["prompt"][0]["content"]) + asked)
        assert asked + answer + recipe.ends in text
        at = np.flatnonzero(mask) + recipe.shifted  # where the tokens stand that count
        assert stream.tokenizer.decode(ids[at].tolist()) == answer + recipe.ends
        assert (labels[mask == 1] == ids[at]).all()
        if recipe.shifted:
            end = int((ids != stream.pad_token_id).nonzero()[0][-1])
            assert (labels[:end] == ids[1 : end + 1]).all()
        else:
            assert (labels == ids).all()


@pytest.mark.parametrize(("name", "tokenizer"), RUNS, indirect=["tokenizer"])
def test_yaml_and_python_of_a_recipe_are_the_same(name: str, tokenizer: str, here: pathlib.Path) -> None:
    _, expected = from_yaml(section(name), tokenizer=tokenizer)
    stream = from_readme(name, tokenizer)
    found = [{column: batch[column] for column in COLUMNS} for batch in itertools.islice(stream.batches(0), READ)]
    assert_same_batches(found, expected)


@pytest.mark.mindspore
@pytest.mark.parametrize(("name", "tokenizer"), [(name, found[0]) for name, found in TOKENIZERS.items()],
                         indirect=["tokenizer"])  # fmt: skip
def test_a_recipe_with_reference_log_probabilities(name: str, tokenizer: str, here: pathlib.Path) -> None:
    """The README's way: a cache of the recipe's stream, read with eight columns, and files for mindrlhf."""
    from mindspore.mindrecord import FileReader

    recipe, (code,) = RECIPES[name], python_blocks("With reference log-probabilities")
    names: dict[str, Any] = {"mps": mps, "stream": from_readme(name, tokenizer)}
    exec(code, names)
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    shown, own = yaml.safe_load(text), section(name)
    task = own["train_dataset"]["data_loader"]["task"]
    assert shown["train_dataset"]["input_columns"] == WITH_REFERENCE
    _, batches = from_yaml({**shown, "runner_config": own["runner_config"]}, task=task)
    for batch in batches:
        assert list(batch) == WITH_REFERENCE
        for side in ("chosen", "rejected"):
            stored = batch[f"{side}_ref_logps"]
            assert (stored.shape, stored.dtype) == ((BATCH, 1), np.float32)
            assert (stored[:, 0] == -batch[f"{side}_loss_mask"].sum(axis=1)).all()
            assert batch[f"{side}_input_ids"].shape == (BATCH, recipe.length)
    _, expected = from_yaml(own, tokenizer=tokenizer)
    assert_same_batches([{column: batch[column] for column in COLUMNS} for batch in batches], expected)
    reader = FileReader(str(here / "for-mindrlhf" / "part-00000.mindrecord"))
    row = next(iter(reader.get_next()))
    reader.close()
    sizes = {column: value.shape for column, value in row.items()}
    assert sizes.pop("chosen_ref_logps") == sizes.pop("rejected_ref_logps") == (1,)
    assert set(sizes) == {*COLUMNS, "chosen_attention_mask", "rejected_attention_mask"}
    assert set(sizes.values()) == {(recipe.length,)}


def test_internlm2_has_its_control_tokens_inside_the_vocabulary(shared: pathlib.Path, here: pathlib.Path) -> None:
    stream, _ = from_yaml(section("internlm2"), tokenizer=str(shared / "tokenizers" / "internlm2"))
    assert stream.tokenizer is not None
    assert stream.tokenizer.special["<|im_start|>"] == 92543


def test_the_readme_names_every_script_and_every_recipe() -> None:
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")} - {"common.py"}
    table = set(re.findall(r"^\| `(\w+\.py)` \|.*\| `python examples/\1[^`]*` \|$", README, flags=re.MULTILINE))
    assert scripts == table
    files = {path.name for path in (ROOT / "examples" / "recipes").iterdir()}
    assert {f"{name}_dpo.yaml" for name in RECIPES} | {"baichuan2.jinja", "glm4.jinja"} == files
    assert files <= set(re.findall(r"\(recipes/([\w.]+)\)", README))


def test_the_table_of_the_readme_says_what_the_recipes_do() -> None:
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in README.splitlines() if line.startswith("| ")}
    for recipe in RECIPES.values():
        assert ("| S, shifted |" if recipe.shifted else "| S + 1, unshifted |") in rows[recipe.title]
        length = recipe.length - (not recipe.shifted)
        assert f"S = {length}:" in README.split(f"### {recipe.title}\n")[1].split("```")[0]
