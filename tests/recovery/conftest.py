"""Pruned tiny models and a text that they can learn something from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_matrices
from pruner_zero.pruning.prune import prune
from tests.tiny import Notes, tiny_tokenizer
from tests.tiny_models import tiny_model


class Stopping(Notes):
    """Progress that stops a training as Ctrl-C would, in the validation after the fourth step."""

    def note(self, line: str) -> None:
        super().note(line)
        if line.startswith("step 4,"):
            raise KeyboardInterrupt


def prune_half(model: torch.nn.Module) -> dict[str, Tensor]:
    """Zero the smaller half of every matrix; where the zeros are, by parameter name."""
    matrices = find_matrices(model)
    for matrix in matrices:
        weight = matrix.weight
        order = weight.abs().flatten().argsort()[: weight.numel() // 2]
        flat = weight.flatten()
        flat[order] = 0
        weight.copy_(flat.view(weight.shape))
    return {matrix.parameter_name: matrix.parameter.data == 0 for matrix in matrices}


def pruned_model(
    architecture: str = "llama", dtype: torch.dtype = torch.float32, blocks: int = 2
) -> tuple[LanguageModel, dict[str, Tensor]]:
    """A tiny model with half of its weights zero, and the places of the zeros."""
    model = tiny_model(architecture, blocks=blocks).to(dtype)
    zeros = prune_half(model)
    return LanguageModel(model, tiny_tokenizer(), architecture), zeros


def save_pruned(folder: Path, architecture: str = "llama", blocks: int = 2) -> Path:
    """Save a pruned tiny model as a user's would be."""
    language_model, _ = pruned_model(architecture, blocks=blocks)
    language_model.model.save_pretrained(folder)
    language_model.tokenizer.save_pretrained(folder)
    return folder


def save_compact(folder: Path, prose: str, structure: str, dense: Path) -> Path:
    """The model at `dense` without half of its units, saved by prune."""
    sizes = {"windows": 3, "seqlen": 24}
    metric = None if structure == "blocks" else "wanda"
    options: dict[str, Any] = {"structure": structure, "sparsity": 0.5, **sizes}
    prune(dense, metric, calibration=[prose], output=folder, **options)
    return folder


@pytest.fixture(scope="session")
def pruned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pruned tiny LLaMA. Tests must not write to it."""
    return save_pruned(tmp_path_factory.mktemp("pruned") / "llama")
