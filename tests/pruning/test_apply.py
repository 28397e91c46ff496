"""The zeros of a pruned model: read from its folder, written into another model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import LanguageModel, find_matrices, load_model, save_model
from pruner_zero.pruning import apply_masks, load_masks, prune, prune_by_masks
from pruner_zero.recovery import NOT_RETRAINED
from tests.cli.conftest import Cli, cli
from tests.conftest import save_tiny
from tests.pruning.conftest import language_model
from tests.tiny import fingerprint, tiny_tokenizer
from tests.tiny_models import ARCHITECTURES, tiny_model

__all__ = ["cli"]

SMALL: dict[str, Any] = {"sparsity": 0.4, "windows": 2, "seqlen": 16}


@pytest.fixture(scope="module")
def pruned(llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pruned model. Tests must not write to it."""
    output = tmp_path_factory.mktemp("pruned") / "out"
    prune(llama_folder, "wanda", calibration=text_file, output=output, **SMALL)
    return output


def zeros_of(folder: Path) -> int:
    entries = json.loads((folder / "pruning.json").read_text())["matrices"]
    return sum(entry["zeros"] for entry in entries)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_masks_are_where_the_saved_model_has_zeros(architecture: str, tmp_path: Path) -> None:
    model = language_model(architecture)
    matrices = find_matrices(model.model)
    for matrix in matrices[1:]:
        matrix.weight[:, ::2] = 0
    save_model(model, tmp_path)
    masks = load_masks(tmp_path)
    assert list(masks) == [matrix.name for matrix in matrices]
    for matrix in matrices:
        assert masks[matrix.name].dtype == torch.bool
        assert torch.equal(masks[matrix.name], matrix.weight != 0)


def test_masks_applied_to_the_dense_model_give_the_pruned_one(
    pruned: Path, llama_folder: Path
) -> None:
    model = load_model(llama_folder)
    records = apply_masks(model, pruned)
    assert fingerprint(model.model) == fingerprint(load_model(pruned).model)
    assert sum(record.zeros for record in records) == zeros_of(pruned)


def test_matrices_without_zeros_stay_as_they_are(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    options = {**SMALL, "exclude": ("*.mlp.*",)}
    prune(llama_folder, "wanda", calibration=text_file, output=tmp_path / "out", **options)
    model = load_model(llama_folder)
    records = apply_masks(model, tmp_path / "out")
    assert fingerprint(model.model) == fingerprint(load_model(tmp_path / "out").model)
    assert {record.name.split(".")[3] for record in records} == {"self_attn"}


def test_a_model_object_without_a_tokenizer_takes_some_of_the_masks(
    pruned: Path, llama_folder: Path
) -> None:
    model = load_model(llama_folder).model
    masks = dict(list(load_masks(pruned).items())[:3])
    assert [record.name for record in apply_masks(model, masks)] == list(masks)


@pytest.mark.parametrize(
    ("name", "mask", "why"),
    [
        ("nowhere", torch.ones(2, 2, dtype=torch.bool), "has no such matrix"),
        ("first", torch.ones(2, 2, dtype=torch.bool), r"bool \(2, 2\), but the model has"),
        ("first", torch.ones(32, 32), "float32 "),
    ],
)
def test_a_mask_that_does_not_fit_leaves_the_model_as_it_was(
    name: str, mask: torch.Tensor, why: str, llama_folder: Path, pruned: Path
) -> None:
    model = load_model(llama_folder)
    before = fingerprint(model.model)
    masks = load_masks(pruned)
    masks[next(iter(masks)) if name == "first" else name] = mask
    with pytest.raises(PrunerZeroError, match=why):
        apply_masks(model, masks)
    assert fingerprint(model.model) == before


def test_the_command_applies_them(
    cli: Cli, pruned: Path, llama_folder: Path, tmp_path: Path
) -> None:
    outcome = cli("prune", llama_folder, "--mask", pruned, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "of the weights of 14 matrices are zero" in outcome.out
    again, once = load_model(tmp_path / "out"), load_model(pruned)
    assert fingerprint(again.model) == fingerprint(once.model)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"where `{pruned}` has zeros" in card
    # Recovery replaces this sentence.
    assert NOT_RETRAINED in card
    assert not list(tmp_path.glob("*.partial"))


def test_the_command_prints_its_result_as_json(
    cli: Cli, pruned: Path, llama_folder: Path, tmp_path: Path
) -> None:
    outcome = cli("prune", llama_folder, "--mask", pruned, "-o", tmp_path / "out", "--json")
    assert json.loads(outcome.out)["masks"] == str(pruned)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--metric", "wanda"], "--mask decides which weights are pruned: leave out --metric"),
        (["--sparsity", "0.5"], "--mask decides which weights are pruned: leave out --sparsity"),
        (["--seed", "0"], "--mask decides which weights are pruned: leave out --seed"),
    ],
)
def test_options_without_effect_beside_a_mask_are_refused(
    options: list[str], line: str, cli: Cli, pruned: Path, llama_folder: Path, tmp_path: Path
) -> None:
    command = ["prune", llama_folder, "--mask", pruned, "-o", tmp_path / "out", *options]
    assert cli(*command).error == line
    assert not list(tmp_path.iterdir())


def blocks(count: int) -> LanguageModel:
    return LanguageModel(tiny_model("llama", blocks=count), tiny_tokenizer(), "tiny")


def test_a_folder_that_does_not_fit_is_refused_in_one_line(
    cli: Cli, pruned: Path, llama_folder: Path, tmp_path: Path
) -> None:
    save_model(blocks(3), tmp_path / "deep")
    refusals = {
        (save_tiny(tmp_path / "gpt2", "gpt2"), pruned): "has no matrix transformer.h.0",
        (tmp_path / "deep", pruned): "has no matrix model.layers.2.mlp.down_proj, which the model",
        (llama_folder, llama_folder): "has no zero weights: give the folder of a pruned model",
        (llama_folder, tmp_path): str(tmp_path),
    }
    for (model, masks), line in refusals.items():
        outcome = cli("prune", model, "--mask", masks, "-o", tmp_path / "out")
        assert line in outcome.error
        assert not (tmp_path / "out").exists()


def test_a_result_names_the_model_whose_zeros_it_has(
    pruned: Path, llama_folder: Path, tmp_path: Path
) -> None:
    result = prune_by_masks(llama_folder, pruned, tmp_path / "out")
    assert repr(result).startswith(f"{tmp_path / 'out'}: ")
    assert f"by the zeros of {pruned}" in repr(result)
    assert len(result.to_rows()) == 14
