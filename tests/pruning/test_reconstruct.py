"""Pruning with +reconstruct: nearer to the dense model, in order, and for models on disk."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pruner_zero import prune
from pruner_zero.models.load import load_model
from pruner_zero.sparsity.sweep import OBS
from pruner_zero.text.token_windows import Windows
from tests.pruning.conftest import Prune, language_model, recipe_of
from tests.text.refusals import refusal


def divergence(method: str, windows: Windows, pruned_by: Prune) -> float:
    pruned, dense = language_model("llama"), language_model("llama")
    pruned_by(pruned, method)
    with torch.no_grad():
        wanted = dense.model(windows.tokens).logits.log_softmax(-1)
        predicted = pruned.model(windows.tokens).logits.log_softmax(-1)
    return float(functional.kl_div(predicted, wanted, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("method", ["wanda", "wanda+obs", "magnitude", "wanda@global"])
def test_the_model_comes_nearer_to_the_dense_one(
    method: str, windows: Windows, pruned_by: Prune
) -> None:
    trained = divergence(f"{method}+reconstruct=40", windows, pruned_by)
    assert trained < 0.95 * divergence(method, windows, pruned_by)


def test_passes_are_named_once_and_blocks_go_in_order() -> None:
    method = recipe_of("wanda+obs+reconstruct=3+distill=40", dense_inputs=True)
    assert (method.update, method.reconstruct, method.distill) == (OBS, 3, 40)
    assert method.order == "sequential"
    assert recipe_of("wanda", reconstruct=2).reconstruct == 2
    for amount in ("", "=-1", "=many"):
        assert refusal(partial(recipe_of, f"wanda+reconstruct{amount}")) == (
            f"wanda+reconstruct{amount}: say how many passes, as in +reconstruct=4"
        )


def test_a_model_on_disk_gets_the_same_weights(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    results = [
        prune(
            llama_folder,
            "wanda+reconstruct=2",
            calibration=text_file,
            sparsity=0.5,
            windows=4,
            seqlen=16,
            output=tmp_path / str(offload),
            offload=offload,
        )
        for offload in (False, True)
    ]
    memory, disk = (dict(load_model(result.output or "").weights()) for result in results)
    assert all(torch.equal(disk[name], tensor) for name, tensor in memory.items())
