"""A program that asks mindrlhf's DPO networks how they align outputs and labels.

    python -m tests.compat.networks CHECKOUT

The classes are loaded from their files and their `construct` runs as it is, over a backbone of this file's own: it is
small, and what the real ones need has moved between versions of MindFormers. The reference log-probabilities of a
batch are those of the network itself, so the loss is ln 2 exactly if it compares each output with the token that
follows. Prints for every network and both kinds of labels the loss of each pair and the columns that its backbone saw.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import mindformers  # noqa: F401 - the files import parts of it by name
import mindspore as ms
import numpy as np
from mindformers import LlamaConfig
from mindspore import Tensor, nn, ops

import ms_prefstream as mps
from tests.compat.readers import load
from tests.helpers import pairs

NETWORKS = {  # as the recipes of examples/README.md name them
    "Qwen2_5_7BDPO": "mindrlhf/models/qwen2_5/qwen_dpo.py",
    "Glm4DPO": "mindrlhf/models/glm4/glm_dpo.py",
    "Baichuan13BDPO": "mindrlhf/models/baichuan2/baichuan2_13b.py",
}
LENGTH = 128


class Backbone(nn.Cell):
    """Token ids -> hidden states -> logits, each column by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output_layer = nn.Embedding(300, 16, embedding_table="normal"), nn.Dense(16, 300)
        self.saw = 0

    def construct(self, tokens: Any, *_: Any, **__: Any) -> Any:
        self.saw = tokens.shape[1]
        return self.embedding(tokens) * 30


def network(kind: type[Any], losses: type[Any]) -> Any:
    """The class with its own `construct` and loss, and nothing of what its constructor builds."""
    backbone = Backbone()
    made = kind.__new__(kind)
    nn.Cell.__init__(made)
    made.model = made.transformer = backbone
    made.lm_head = backbone.output_layer
    made.shape, made.slice, made.reshape = ops.Shape(), ops.StridedSlice(), ops.Reshape()
    made.cast, made.not_equal, made.mul = ops.Cast(), ops.NotEqual(), ops.Mul()
    made.use_past, made.pad_token_id, made.ignore_token_id, made.alpha = False, 259, -100, 0.0
    config = LlamaConfig(pad_token_id=259)
    config.alpha, config.beta = 0.0, 0.1
    made.dpo_loss = losses(config)
    made.dpo_loss.cast = made.cast
    made.set_train()
    made.dpo_loss.phase = "train"
    return made, backbone


def sums(backbone: Backbone, ids: Any, mask: Any) -> Any:
    """(B, 1) float32: the log-probabilities of the tokens under an unshifted mask, each from the column before it."""
    logits = backbone.output_layer(backbone(Tensor(ids))).asnumpy().astype(np.float64)[:, :-1]
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_probs, ids[:, 1:, None].astype(np.int64), axis=-1)[..., 0]
    return (chosen * mask[:, 1:]).sum(axis=1, keepdims=True).astype(np.float32)


def batch(labels: str) -> Any:
    """Pairs in the order of their source."""
    stream = mps.stream(
        pairs(4), task=mps.DPO(LENGTH, labels=labels), tokenizer="bytes", batching=mps.Pad(4), shuffle=False
    )
    return next(stream.batches())


def main(checkout: str) -> None:
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.set_seed(1)
    found: dict[str, Any] = {}
    for name, file in NETWORKS.items():
        module = load(f"dpo_{name}", str(pathlib.Path(checkout, file)))
        made, backbone = network(getattr(module, name), module.DPOLossV2)
        found[name] = {}
        for labels in ("unshifted", "shifted"):
            columns, plain = batch(labels), batch("unshifted")
            given = []
            for side in ("chosen", "rejected"):
                given += [Tensor(columns[f"{side}_{kind}"]) for kind in ("input_ids", "labels", "loss_mask")]
                given.append(Tensor(sums(backbone, plain[f"{side}_input_ids"], plain[f"{side}_loss_mask"])))
            losses = made(*given).asnumpy().reshape(-1).tolist()
            found[name][labels] = {"losses": losses, "columns": backbone.saw}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
