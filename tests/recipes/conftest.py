"""A folder as the recipes see it, and small tokenizers of their families for where the real files are not at hand."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from ms_prefstream.encode.backends.sentencepiece_proto import read_model
from tests.fixtures_tokenizers import train_byte_fallback, train_byte_level, write_directory

ROOT = pathlib.Path(__file__).parents[2]
THREES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_TEMPLATE = (
    "{% for message in messages %}"
    "{{ (bos_token if loop.first else '') + '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
INTERNLM2_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder as the recipes see it: data/ with the bundled pairs and examples/recipes/."""
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "ms_prefstream" / "demo" / "pairs.jsonl", tmp_path / "data" / "train-0.jsonl")
    shutil.copytree(ROOT / "examples" / "recipes", tmp_path / "examples" / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def byte_level(folder: pathlib.Path, special: list[str], config: dict[str, object], size: int = 700) -> pathlib.Path:
    """A directory with byte-level BPE that keeps up to three digits together."""
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(THREES), "isolated")
    parts = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return write_directory(
        folder, train_byte_level(pre_tokenizers.Sequence(parts), None, special, size).to_str(), config
    )


@pytest.fixture(scope="session")
def llama3_like(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Byte-level BPE with role headers and a reserved token; its chat template trims contents."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|start_header_id|>",
               "<|end_header_id|>", "<|eot_id|>"]  # fmt: skip
    config = {"bos_token": special[0], "eos_token": "<|eot_id|>", "chat_template": LLAMA3_TEMPLATE}
    return byte_level(tmp_path_factory.mktemp("llama3"), special, config)


@pytest.fixture(scope="session")
def glm4_like(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Byte-level BPE with a prefix of two control tokens and a control token for each role."""
    special = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    config = {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return byte_level(tmp_path_factory.mktemp("glm4"), special, config)


@pytest.fixture(scope="session")
def baichuan2_like(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A SentencePiece model with control symbols for the roles and nothing beside it."""
    data = train_byte_fallback(control_symbols=["<reserved_106>", "<reserved_107>"])
    path = tmp_path_factory.mktemp("baichuan2") / "tokenizer.model"
    path.write_bytes(data)
    return path


@pytest.fixture(scope="session")
def internlm2_like(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A SentencePiece model without a dummy prefix, whose configuration names pieces that it keeps in reserve."""
    reserve = {"[UNUSED_TOKEN_0]": "<|im_start|>", "[UNUSED_TOKEN_1]": "<|im_end|>"}
    data = train_byte_fallback(add_dummy_prefix=False, user_defined_symbols=list(reserve))
    pieces = [piece for piece, _ in read_model(data).pieces]
    added = {str(pieces.index(piece)): {"content": name, "special": True} for piece, name in reserve.items()}
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>",
              "add_bos_token": True, "chat_template": INTERNLM2_TEMPLATE, "added_tokens_decoder": added}  # fmt: skip
    directory = write_directory(tmp_path_factory.mktemp("internlm2"), None, config)
    (directory / "tokenizer.model").write_bytes(data)
    return directory
