"""Pruning by the zeros of another model: no calibration, no metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import write_atomic
from pruner_zero.models import (
    Dtype,
    LanguageModel,
    Matrix,
    as_language_model,
    find_matrices,
    load_offloaded,
    save_model,
)
from pruner_zero.provenance import Cost, measured
from pruner_zero.pruning.checkpoint import Checkpoint
from pruner_zero.pruning.prune_matrix import write_zeros
from pruner_zero.pruning.record import MatrixRecord, PrunedMatrices
from pruner_zero.recovery import NOT_RETRAINED
from pruner_zero.result_folder import build_folder, check_output, title_of
from pruner_zero.settings.base import name_of


@dataclass(frozen=True, repr=False)
class MaskedResult(PrunedMatrices):
    """A model pruned by the masks of another: the model, its records, the cost, the folder."""

    shown = ("name", "shape", "zeros", "sparsity")

    language_model: LanguageModel
    masks: Path
    records: tuple[MatrixRecord, ...]
    cost: Cost
    output: Path

    def caption(self) -> str:
        """How much of the model is zero, by whose zeros, and where it is."""
        return f"{self.output}: {self.share()}, by the zeros of {self.masks}"


def apply_masks(
    model: LanguageModel | nn.Module, masks: Mapping[str, Tensor] | str | Path
) -> list[MatrixRecord]:
    """Zero, in place, the weights that `masks` prune; return a record of each matrix.

    masks: bool (out, in) by matrix name, True = kept, or the folder of a pruned model, whose zeros
    are taken. Matrices without a mask, or with one that keeps all, stay as they are. Raises
    PrunerZeroError, with the model as it was, where a mask fits no matrix of the model.
    """
    module = model.model if isinstance(model, LanguageModel) else model
    matrices = find_matrices(module)
    by_name = _masks_for(matrices, masks)
    return [
        write_zeros(matrix, by_name[matrix.name].to(matrix.weight.device))
        for matrix in matrices
        if matrix.name in by_name and not by_name[matrix.name].all()
    ]


def load_masks(folder: str | Path) -> dict[str, Tensor]:
    """The mask of every matrix of a pruned model: bool (out, in) by name, False = the weight is 0.

    folder: of the pruned model, of which one block is read at a time. Raises PrunerZeroError where
    no weight is zero, and as `load_offloaded` does.
    """
    pruned = load_offloaded(folder, device="cpu")
    masks: dict[str, Tensor] = {}
    for block, matrices in groupby(find_matrices(pruned.model), key=lambda matrix: matrix.block):
        with pruned.block(block):
            masks |= {matrix.name: matrix.weight != 0 for matrix in matrices}
    if all(mask.all() for mask in masks.values()):
        raise PrunerZeroError(f"{folder} has no zero weights: give the folder of a pruned model")
    return masks


def _masks_for(
    matrices: Sequence[Matrix], masks: Mapping[str, Tensor] | str | Path
) -> Mapping[str, Tensor]:
    """`masks`, or those of the pruned model in a folder, after a check that they fit `matrices`.

    A folder must have a mask of each. Raises PrunerZeroError naming the matrix that does not fit.
    """
    by_name = {matrix.name: matrix for matrix in matrices}
    if isinstance(masks, str | Path):
        folder, masks = masks, load_masks(masks)
        if missing := by_name.keys() - masks.keys():
            raise PrunerZeroError(
                f"{folder} has no matrix {min(missing)}, which the model has: give the folder of "
                "a model of this shape"
            )
    for name, mask in masks.items():
        matrix = by_name.get(name)
        if matrix is None or matrix.weight.shape != mask.shape or mask.dtype != torch.bool:
            has = "has no such matrix" if matrix is None else f"has {tuple(matrix.weight.shape)}"
            raise PrunerZeroError(
                f"the mask of {name} is {str(mask.dtype).removeprefix('torch.')} "
                f"{tuple(mask.shape)}, but the model {has}: give the masks of a model of this shape"
            )
    return masks


def prune_by_masks(
    model: str | Path | LanguageModel | Any,
    masks: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    tokenizer: Any = None,
    dtype: Dtype = "auto",
) -> MaskedResult:
    """Write the zeros of the pruned model in the folder `masks` into `model`; save it to `output`.

    model: what `load_model` takes, or a model object with its `tokenizer`, which is then pruned
    in place. Raises PrunerZeroError for a folder without zeros or of a model of other shapes, and
    for an output that cannot be written.
    """
    folder = check_output(output, overwrite, [name_of(model), masks])
    language_model = as_language_model(model, tokenizer, dtype)
    by_name = _masks_for(find_matrices(language_model.model), masks)

    def run(_: object) -> MaskedResult:
        with measured() as cost:
            records = apply_masks(language_model, by_name)
        return MaskedResult(language_model, Path(masks), tuple(records), cost, folder)

    def write(result: MaskedResult, _: object, staged: Path) -> Cost:
        save_model(language_model, staged)
        write_atomic(staged / "README.md", _card(result))
        return result.cost

    return build_folder(folder, overwrite, Checkpoint, {}, run, write)


def _card(result: MaskedResult) -> str:
    name = result.language_model.name
    return (
        "---\nlibrary_name: transformers\ntags: [pruned, pruner-zero]\n---\n\n"
        f"# {title_of(name)}, {result.sparsity:.1%} zeros in {len(result.records)} matrices\n\n"
        f"The weights of `{name}` with zeros where `{result.masks}` has zeros. Nothing was "
        f"calibrated. {NOT_RETRAINED}\n"
    )
