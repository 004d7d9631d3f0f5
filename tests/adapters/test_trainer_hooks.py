"""Only the MindFormers adapter changes other libraries, by the methods in `HOOKS`; a missing method is named."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import types

import pytest

from ms_prefstream.adapters import trainer_hooks
from ms_prefstream.adapters.trainer_hooks import HOOKS, when_imported
from tests.processes import run_python

METHODS = """
import sys
import mindspore, mindspore.dataset, mindformers

def attributes():
    # those of every class of MindSpore and MindFormers that is loaded
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("mindspore", "mindformers"):
            for kind in list(vars(module).values()):
                if isinstance(kind, type) and str(kind).startswith(("<class 'mindspore", "<class 'mindformers")):
                    found[kind] = dict(vars(kind))
    return found

def changed(before):
    return sorted(
        f"{kind.__module__}.{kind.__name__}.{name}"
        for kind, now in attributes().items() if kind in before
        for name in now.keys() | before[kind].keys()
        if now.get(name) is not before[kind].get(name)
    )

try:
    import mindformers.pynative.trainer.trainer
except ImportError:
    print("no PyNative trainer")  # as in MindFormers 1.7
finders, before = list(sys.meta_path), attributes()
import ms_prefstream as mps

rows = [dict(prompt=f"a{i}", chosen="x" * (i + 1), rejected="y z") for i in range(9)]
stream = mps.stream(rows, task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(2))
dataset = stream.dataset()
assert len(list(dataset.create_dict_iterator(num_epochs=1))) == 4
assert (sys.meta_path, changed(before)) == (finders, [])
print("wrapped:")
import warnings
warnings.simplefilter("error")  # every method is found in the installed version
import ms_prefstream.adapters.mindformers
print(*changed(before), sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.mindspore
def test_a_stream_changes_no_class_of_mindspore_and_mindformers(tmp_path: pathlib.Path) -> None:
    said = run_python("-c", METHODS, folder=tmp_path).splitlines()
    wrapped = said[said.index("wrapped:") + 1 :]
    hooks = [hook for hook in HOOKS if "pynative" not in hook.module or "no PyNative trainer" not in said]
    assert wrapped == sorted(f"{hook.module}.{hook.owner}.{hook.method}" for hook in hooks)


NOT_LOADED = """
import sys
finders = list(sys.meta_path)
import ms_prefstream as mps

rows = [dict(prompt=f"a{i}", chosen="x" * (i + 1), rejected="y z") for i in range(9)]
mps.stream(rows, task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(2)).dataset()
print("the same finders:", [finder for finder in sys.meta_path if finder not in finders
                            and type(finder).__module__.startswith("ms_prefstream")], "mindformers" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.mindspore
def test_a_dataset_waits_for_no_import(tmp_path: pathlib.Path) -> None:
    assert run_python("-c", NOT_LOADED, folder=tmp_path).splitlines()[-1] == "the same finders: [] False"


def test_a_method_that_is_missing_is_named_with_the_check_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("mindformers.trainer.base_trainer")
    module.BaseTrainer = type("BaseTrainer", (), {"set_train_dataset": lambda self, dataset: None})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.warns(UserWarning, match="no method") as said:
        trainer_hooks._wrap_methods(module.__name__)
    sentences = [str(one.message) for one in said]
    assert len(sentences) == 3
    assert sentences[-1] == (
        "mindformers.trainer.base_trainer.BaseTrainer has no method warp_data_order_with_tool_cells here, so the check "
        "of construct_args_key against the columns is off for streams of ms_prefstream. MindFormers 1.7.0, 1.9.0 have "
        "it: install one of them, or check this yourself."
    )


def test_a_function_is_called_after_an_import(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "awaited_module.py").write_text("found = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    seen: list[int] = []

    def look() -> None:
        seen.append(sys.modules["awaited_module"].found)

    when_imported("awaited_module", look)
    assert importlib.util.find_spec("awaited_module") is not None  # asks for the module without importing it
    assert seen == []
    import awaited_module  # type: ignore[import-not-found]

    assert (seen, awaited_module.found, sys.meta_path) == ([1], 1, before)
    when_imported("awaited_module", look)
    assert seen == [1, 1]
    monkeypatch.delitem(sys.modules, "awaited_module")
