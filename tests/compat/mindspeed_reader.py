"""A program that loads pairs with the data loader of MindSpeed-LLM or MindSpeed-RL and saves its batches.

    python tests/compat/mindspeed_reader.py megatron|llm|rl CHECKOUT MEGATRON PREFIX SEQ_LENGTH ROWS PAD OUT.npz

CHECKOUT holds `mindspeed_llm` or `mindspeed_rl`, MEGATRON the package `megatron` of Megatron-LM core 0.12. It needs
torch, transformers and tokenizers, and nothing of this project. `megatron` saves the documents that Megatron-LM's
`IndexedDataset` reads instead. Without a device, what is imported for devices and for
command lines is replaced: `megatron.training`, the tokenizer, and `torch.cuda` where a rank counts its devices. The
data set, its index, its sampler and the collator are those of the checkout.
"""

from __future__ import annotations

import os
import sys
import tempfile
import types
from typing import Any

import numpy as np

BATCH = 4


def package(name: str, folder: str = "", **names: Any) -> None:
    """Makes an importable package or module of these names, without the code of its `__init__.py`."""
    module: Any = types.ModuleType(name)
    module.__path__ = [os.path.join(folder, *name.split("."))] if folder else []
    vars(module).update(names)
    sys.modules[name] = module


def tokenizer_of(pad: int) -> Any:
    """A tokenizer that only pads."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>" if one == pad else str(one): one for one in range(pad + 1)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="0")), pad_token="<pad>"
    )


def llm_batches(checkout: str, prefix: str, length: int, rows: int, pad: int) -> dict[str, Any]:
    """The batches of MindSpeed-LLM's training, with rows padded to the longest of a batch, and to the whole length."""
    import torch

    args = types.SimpleNamespace(
        is_pairwise_dataset=True, is_instruction_dataset=False, stage="dpo", no_shuffle=True, seq_length=length,
        return_document_ids=False, padded_samples=False, full_shuffle_instruction_dataset=False, num_workers=0, seed=1,
        micro_batch_size=BATCH, global_batch_size=BATCH, dataloader_type="single", tokenizer_padding_side="right",
        no_pad_to_seq_lengths=True, pad_to_multiple_of=8,
    )  # fmt: skip
    made = types.SimpleNamespace(tokenizer=tokenizer_of(pad), pad=pad, eos=0)
    package("megatron.training", get_args=lambda: args, print_rank_0=lambda _: None, get_tokenizer=lambda: made)
    package("mindspeed_llm", checkout)
    package("mindspeed_llm.training", checkout)
    package("mindspeed_llm.training.tokenizer", build_tokenizer=lambda _: made)
    package("mindspeed_llm.training.utils", compute_actual_seq_len=None)
    for name in ("mindspeed_llm.legacy", "mindspeed_llm.legacy.data"):
        package(name, checkout)
    torch.cuda.device_count = lambda: 1
    torch.cuda.LongTensor = torch.LongTensor
    store = torch.distributed.FileStore(os.path.join(tempfile.mkdtemp(), "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel()
    from mindspeed_llm.legacy.data.data_samplers import build_pretraining_data_loader
    from mindspeed_llm.tasks.preprocess.decoder_packed_mtf_dataset import build_train_valid_test_datasets

    train, _, _ = build_train_valid_test_datasets([prefix], "100,0,0", length, (rows, 0, 0), 1)
    found = {"short": list(build_pretraining_data_loader(train, 0))}
    args.no_pad_to_seq_lengths = False
    return found | {"padded": list(build_pretraining_data_loader(train, 0))}


def rl_batches(checkout: str, prefix: str, length: int, rows: int, pad: int) -> dict[str, Any]:
    """The batches of MindSpeed-RL's training."""
    args = types.SimpleNamespace(is_pairwise_dataset=True)
    package("mindspeed_rl", checkout)
    package("mindspeed_rl.datasets", checkout)
    package("mindspeed_rl.utils")
    package("mindspeed_rl.utils.loggers", Loggers=lambda _: types.SimpleNamespace(info=lambda _: None))
    package("mindspeed_rl.datasets.templates", get_model_template=None)
    package("datasets", arrow_dataset=types.SimpleNamespace(Dataset=type("Dataset", (), {})))
    from mindspeed_rl.datasets.build_dataset import build_train_valid_test_datasets
    from mindspeed_rl.datasets.dataloader import PromptDataLoader
    from mindspeed_rl.datasets.prompt_dataset import PromptDataset

    train, _, _ = build_train_valid_test_datasets(
        prefix, "100,0,0", length, (rows, 0, 0), dataset_cls=PromptDataset, no_shuffle=True, extra_param=args
    )
    return {"rl": list(PromptDataLoader(train, BATCH, 0, 1, [], True, True, tokenizer=tokenizer_of(pad)))}


def documents(prefix: str) -> dict[str, Any]:
    """Every document of the files, which have the bytes that Megatron-LM's own builder writes."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    columns = [f"{side}_{name}" for side in ("chosen", "rejected") for name in ("input_ids", "labels")]
    found = {column: IndexedDataset(f"{prefix}_packed_{column}_document") for column in columns}
    for column, dataset in found.items():
        files = [f"{prefix}_packed_{column}_document.{suffix}" for suffix in ("bin", "idx")]
        with tempfile.TemporaryDirectory() as folder:
            built = [os.path.join(folder, os.path.basename(file)) for file in files]
            builder = IndexedDatasetBuilder(built[0])
            for row in range(len(dataset)):
                builder.add_item(torch.tensor(dataset.get(row)))
                builder.end_document()
            builder.finalize(built[1])
            for one, other in zip(files, built, strict=True):
                with open(one, "rb") as file, open(other, "rb") as expected:
                    assert file.read() == expected.read(), one
    return {
        f"{row}/{column}": dataset.get(row).copy()  # the data set unmaps its file when it is deleted
        for column, dataset in found.items()
        for row in range(len(dataset))
    }


def main(kind: str, checkout: str, megatron: str, prefix: str, length: str, rows: str, pad: str, out: str) -> None:
    """Save every batch."""
    sys.path[:0] = [megatron, checkout]
    if kind == "megatron":
        np.savez(out, **documents(prefix))
        return
    batches = (llm_batches if kind == "llm" else rl_batches)(checkout, prefix, int(length), int(rows), int(pad))
    arrays = {
        f"{name}/{step}/{column}": np.asarray(batch[column])
        for name, found in batches.items()
        for step, batch in enumerate(found)
        for column in ("input_ids", "attention_mask", "labels")
    }
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
