"""Reference log-probabilities from a MindFormers model: the example runs, and its check can fail."""

from __future__ import annotations

import importlib.util
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import yaml

import ms_prefstream as mps
from tests.helpers import pairs
from tests.processes import run_python
from tests.trainer.configs import llama_config

SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "reference_mindformers.py"
pytestmark = pytest.mark.mindspore


@pytest.mark.training
def test_a_cache_gets_the_log_probabilities_of_a_llama(tmp_path: pathlib.Path) -> None:
    said = run_python(SCRIPT, "--out", "cache", "--check-rows", "12", folder=tmp_path)
    assert "cache: 10 columns, among them chosen_ref_logps, rejected_ref_logps" in said
    assert re.search(r"check passed: 16 rows computed again agree to 1e-3", said)
    stream = mps.stream(str(tmp_path / "cache"), task=mps.DPO(192), tokenizer=None, batching=mps.Pad(8))
    batch = next(stream.batches())
    for side in ("chosen", "rejected"):
        mean = batch[f"{side}_ref_logps"][:, 0] / batch[f"{side}_loss_mask"].sum(axis=1)
        assert mean == pytest.approx(np.full(8, -np.log(stream.pad_token_id)), abs=0.2)  # it knows nothing


@pytest.mark.training
def test_a_model_of_a_yaml_file_with_a_checkpoint(tmp_path: pathlib.Path) -> None:
    import mindspore as ms

    model = llama_config()["model"]
    model["model_config"] |= {"hidden_size": 32, "vocab_size": 264}
    (tmp_path / "model.yaml").write_text(yaml.dump({"model": model}))
    (tmp_path / "save.py").write_text(
        "import mindspore as ms\nfrom mindformers import LlamaConfig, LlamaForCausalLM, MindFormerConfig\n"
        "config = dict(MindFormerConfig('model.yaml').model.model_config)\nconfig.pop('type')\n"
        "ms.save_checkpoint(LlamaForCausalLM(LlamaConfig(**config)), 'sft.ckpt')\n"
    )
    run_python("save.py", folder=tmp_path)
    assert ms.load_checkpoint(str(tmp_path / "sft.ckpt"))
    options = ["--model", "model.yaml", "--checkpoint", "sft.ckpt", "--max-length", "128", "--out", "cache"]
    said = run_python(SCRIPT, *options, folder=tmp_path)
    assert "check passed" in said
    assert '"reference_id": "sft.ckpt"' in (tmp_path / "cache" / "manifest.json").read_text()


class Flat:
    """A model to which all of 300 tokens are alike."""

    def __call__(self, ids: Any) -> Any:
        import mindspore as ms

        return (ms.Tensor(np.zeros((*ids.shape, 300), np.float32)),)


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.01, False)])
def test_the_check_finds_sums_that_are_not_the_models(
    factor: float, passes: bool, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("reference_mindformers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    def reference(batch: Any) -> Any:
        sums = [batch[f"{side}_loss_mask"].sum(axis=1) for side in ("chosen", "rejected")]
        return tuple(-factor * np.log(300) * side for side in sums)

    options: dict[str, Any] = {"task": mps.DPO(128), "batching": mps.Pad(4)}
    mps.write_cache(
        mps.stream(pairs(9), tokenizer="bytes", **options), tmp_path / "cache", reference=reference, reference_id="flat"
    )
    cached = mps.stream(str(tmp_path / "cache"), tokenizer=None, **options)
    if passes:
        example.check(Flat(), cached, 6)
        assert "check passed: 8 rows" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit, match=r"check failed: 8 rows .*largest relative difference 1\.0e-02"):
            example.check(Flat(), cached, 6)
