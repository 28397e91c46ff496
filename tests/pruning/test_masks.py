"""Masks on disk: saved beside the model, read back bit for bit, applied to another model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import LanguageModel, find_matrices, load_model
from pruner_zero.pruning import apply_masks, load_masks, prune, prune_by_masks, save_masks
from tests.cli.conftest import Cli, cli
from tests.conftest import save_tiny
from tests.full_disk import full_disk
from tests.pruning.conftest import language_model
from tests.tiny import fingerprint
from tests.tiny_models import ARCHITECTURES

__all__ = ["cli"]

SMALL: dict[str, Any] = {"sparsity": 0.4, "windows": 2, "seqlen": 16, "save_mask": True}


@pytest.fixture(scope="module")
def saved(llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model with its masks. Tests must not write to it."""
    output = tmp_path_factory.mktemp("pruned") / "out"
    prune(llama_folder, "wanda", calibration=text_file, output=output, **SMALL)
    return output


def halved(model: LanguageModel) -> LanguageModel:
    """`model` with every other weight of each matrix zero."""
    for matrix in find_matrices(model.model):
        matrix.weight[:, ::2] = 0
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_masks_of_a_model_come_back(architecture: str, tmp_path: Path) -> None:
    model = halved(language_model(architecture))
    matrices = find_matrices(model.model)
    save_masks(model, matrices, tmp_path)
    masks = load_masks(tmp_path)
    assert list(masks) == [matrix.name for matrix in matrices]
    for matrix in matrices:
        assert masks[matrix.name].dtype == torch.bool
        assert torch.equal(masks[matrix.name], matrix.weight != 0)


@pytest.mark.parametrize("width", [1, 7, 8, 9])
def test_rows_of_any_width_are_packed(width: int, tmp_path: Path) -> None:
    model = language_model("llama")
    matrix = find_matrices(model.model)[0]
    matrix.parameter.data = (torch.arange(3 * width).reshape(3, width) % 3).float()
    save_masks(model, [matrix], tmp_path)
    assert torch.equal(load_masks(tmp_path)[matrix.name], matrix.weight != 0)
    assert (tmp_path / "masks.safetensors").stat().st_size < 200


@pytest.mark.parametrize("offload", [False, True])
def test_prune_saves_the_zeros_of_every_pruned_matrix(
    offload: bool, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    options = {**SMALL, "exclude": ("*.mlp.*",), "offload": offload}
    prune(llama_folder, calibration=text_file, output=tmp_path / "out", **options)
    model, masks = load_model(tmp_path / "out"), load_masks(tmp_path / "out")
    matrices = find_matrices(model.model, exclude=("*.mlp.*",))
    assert list(masks) == [matrix.name for matrix in matrices]
    for matrix in matrices:
        assert torch.equal(masks[matrix.name], matrix.weight != 0)
    index = json.loads((tmp_path / "out" / "masks" / "masks.json").read_text())
    zeros = sum(entry["zeros"] for entry in record_of(tmp_path / "out")["matrices"])
    assert zeros == sum(mask.numel() - int(mask.sum()) for mask in masks.values())
    assert [entry["kept"] for entry in index["matrices"].values()] == [
        int(mask.sum()) for mask in masks.values()
    ]


def record_of(folder: Path) -> Any:
    return json.loads((folder / "pruning.json").read_text())


def test_prune_without_save_mask_saves_no_masks(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    options = {**SMALL, "save_mask": None}
    prune(llama_folder, calibration=text_file, output=tmp_path / "out", **options)
    assert not (tmp_path / "out" / "masks").exists()
    with pytest.raises(PrunerZeroError, match="holds no masks: give what prune --save-mask wrote"):
        load_masks(tmp_path / "out")


def test_masks_applied_to_the_dense_model_give_the_pruned_one(
    saved: Path, llama_folder: Path
) -> None:
    model, pruned = load_model(llama_folder), load_model(saved)
    records = apply_masks(model, saved)
    assert fingerprint(model.model) == fingerprint(pruned.model)
    assert sum(record.zeros for record in records) == sum(
        entry["zeros"] for entry in record_of(saved)["matrices"]
    )


def test_a_model_object_without_a_tokenizer_takes_them_too(saved: Path, llama_folder: Path) -> None:
    model = load_model(llama_folder).model
    masks = dict(list(load_masks(saved / "masks").items())[:3])
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
    name: str, mask: torch.Tensor, why: str, llama_folder: Path, saved: Path
) -> None:
    model = load_model(llama_folder)
    before = fingerprint(model.model)
    masks = load_masks(saved)
    masks[next(iter(masks)) if name == "first" else name] = mask
    with pytest.raises(PrunerZeroError, match=why):
        apply_masks(model, masks)
    assert fingerprint(model.model) == before


def test_the_command_applies_them(
    cli: Cli, saved: Path, llama_folder: Path, tmp_path: Path
) -> None:
    outcome = cli("prune", llama_folder, "--mask", saved, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "of the weights of 14 matrices are zero" in outcome.out
    again, once = load_model(tmp_path / "out"), load_model(saved)
    assert fingerprint(again.model) == fingerprint(once.model)
    for name, mask in load_masks(tmp_path / "out").items():
        assert torch.equal(mask, load_masks(saved)[name])
    assert "prune" in (tmp_path / "out" / "README.md").read_text()
    assert not list(tmp_path.glob("*.partial"))


def test_the_command_prints_its_result_as_json(
    cli: Cli, saved: Path, llama_folder: Path, tmp_path: Path
) -> None:
    outcome = cli("prune", llama_folder, "--mask", saved, "-o", tmp_path / "out", "--json")
    assert json.loads(outcome.out)["masks"] == str(saved)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--metric", "wanda"], "--mask decides which weights are pruned: leave out --metric"),
        (["--sparsity", "0.5"], "--mask decides which weights are pruned: leave out --sparsity"),
        (["--seed", "0"], "--mask decides which weights are pruned: leave out --seed"),
        (["--save-mask"], "--mask decides which weights are pruned: leave out --save-mask"),
    ],
)
def test_options_without_effect_beside_a_mask_are_refused(
    options: list[str], line: str, cli: Cli, saved: Path, llama_folder: Path, tmp_path: Path
) -> None:
    command = ["prune", llama_folder, "--mask", saved, "-o", tmp_path / "out", *options]
    assert cli(*command).error == line
    assert not list(tmp_path.iterdir())


def test_masks_of_another_model_are_refused(cli: Cli, saved: Path, tmp_path: Path) -> None:
    gpt2 = save_tiny(tmp_path / "other", "gpt2")
    line = cli("prune", gpt2, "--mask", saved, "-o", tmp_path / "out").error
    assert "but the model has no such matrix: give the masks of a model of this shape" in line
    assert not (tmp_path / "out").exists()


def test_a_result_says_where_its_masks_are_from(
    saved: Path, llama_folder: Path, tmp_path: Path
) -> None:
    result = prune_by_masks(llama_folder, saved, tmp_path / "out")
    assert repr(result).startswith(f"{tmp_path / 'out'}: ")
    assert f"by the masks in {saved}" in repr(result)
    assert len(result.to_rows()) == 14


def test_masks_need_a_folder(llama_folder: Path, text_file: Path) -> None:
    with pytest.raises(PrunerZeroError, match="--save-mask needs an output folder"):
        prune(llama_folder, calibration=text_file, **SMALL)


def test_a_full_disk_leaves_no_masks(tmp_path: Path) -> None:
    model = language_model("llama")
    with full_disk(room=100), pytest.raises(PrunerZeroError, match="no space left"):
        save_masks(model, find_matrices(model.model), tmp_path / "masks")
    assert not list((tmp_path / "masks").iterdir())
