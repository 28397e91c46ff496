"""NaN and infinity, wherever they enter: one line, and no result that hides them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import save_tiny
from tests.faults.verbs import one_line, run
from tests.recovery.conftest import save_pruned

WEIGHT = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.0.post_attention_layernorm.weight"
Change = Callable[[dict[str, torch.Tensor]], object]
HALF = ["--sparsity", "0.5", "--windows", 4, "--seqlen", 16]

COMMANDS = {
    "search": ["search", *HALF, "--evaluations", 8, "--workers", 1, "--minutes", 0.2],
    **{
        f"prune {metric}": ["prune", *HALF, "--metric", metric]
        for metric in ("magnitude", "wanda", "gblm", "sparsegpt", "W * G@global")
    },
    "prune --offload": ["prune", *HALF, "--metric", "gblm", "--offload"],
    "recover": ["recover", "--steps", 2, "--seqlen", 16],
    "evaluate": ["evaluate", "--seqlen", 16],
}


def spoiled(folder: Path, pruned: bool, change: Change) -> Path:
    """A saved model whose weights were changed."""
    (save_pruned if pruned else save_tiny)(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def refused(name: str, change: Change, text: Path, folder: Path) -> str:
    """The line that refuses one of the COMMANDS on a spoiled model; nothing may be left of it."""
    verb, *options = COMMANDS[name]
    model = spoiled(folder / "model", verb == "recover", change)
    texts = {"prune": ["--calibration", text], "search": ["--calibration", text]}
    texts = {**texts, "recover": ["--text", text], "evaluate": ["--text", text]}
    texts["search"] = [*texts["search"], "--search-text", text]
    output = [] if verb == "evaluate" else ["-o", folder / "out"]
    cache = [] if verb in ("evaluate", "recover") else ["--cache", folder / "cache"]
    line = one_line(run(verb, model, *texts[str(verb)], *options, *output, *cache))
    assert not (folder / "out" / "model.safetensors").exists()
    assert not (folder / "out" / "best.json").exists()
    return line


@pytest.mark.fault("a weight is NaN or infinite", "one line that names it or the loss")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_weight(name: str, value: float, text_file: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[WEIGHT][3, 4] = value

    line = refused(name, change, text_file, tmp_path)
    assert "model.layers.1.mlp.up_proj has 1 weights" in line or name == "evaluate"
    assert "NaN or infinite" in line or "not finite" in line or "no finite" in line, line


@pytest.mark.fault(
    "finite weights that make activations, and so gradients, infinite",
    "one line that names the matrix or the loss",
)
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "prune magnitude"])
def test_activations(name: str, text_file: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[NORM].fill_(1e30)

    line = refused(name, change, text_file, tmp_path)
    assert "finite" in line or "NaN" in line, line
