"""Pruning with +reconstruct: nearer to the dense model, in order, and for models on disk."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pruner_zero import prune
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.load import load_model
from pruner_zero.pruning.notation import parse_recipe
from pruner_zero.pruning.runner import run_recipe
from pruner_zero.text.windows import Windows
from tests.pruning.conftest import OpenStore, language_model
from tests.text.refusals import refusal


def divergence(method: str, windows: Windows, new_store: OpenStore) -> float:
    pruned, dense = language_model("llama"), language_model("llama")
    run_recipe(pruned, windows, parse_recipe(method, sparsity=0.5), new_store(pruned))
    with torch.no_grad():
        wanted = dense.model(windows.tokens).logits.log_softmax(-1)
        predicted = pruned.model(windows.tokens).logits.log_softmax(-1)
    return float(functional.kl_div(predicted, wanted, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("method", ["wanda", "wanda+exact", "magnitude", "wanda@global"])
def test_the_model_comes_nearer_to_the_dense_one(
    method: str, windows: Windows, new_store: OpenStore
) -> None:
    trained = divergence(f"{method}+reconstruct=40", windows, new_store)
    assert trained < 0.95 * divergence(method, windows, new_store)


def test_passes_are_named_once_and_blocks_go_in_order() -> None:
    method = parse_recipe("wanda+exact+reconstruct=3+distill=40", sparsity=0.5)
    assert (method.steps, method.reconstruct, method.distill) == (("exact",), 3, 40)
    assert parse_recipe("wanda", sparsity=0.5, reconstruct=2).reconstruct == 2
    assert refusal(lambda: parse_recipe("wanda+reconstruct", sparsity=0.5)) == (
        "wanda+reconstruct: say how many passes, as in +reconstruct=4"
    )
    with pytest.raises(PrunerZeroError, match="needs --mode sequential: choose it, or leave out"):
        method.mode("one-shot")


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
            threads=1,
        )
        for offload in (False, True)
    ]
    memory, disk = (dict(load_model(result.output or "").weights()) for result in results)
    assert all(torch.equal(disk[name], tensor) for name, tensor in memory.items())
