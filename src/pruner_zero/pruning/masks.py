"""The zeros of a pruned model as masks of another model of the same shapes."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Matrix, find_matrices, load_offloaded


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


def masks_for(
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
