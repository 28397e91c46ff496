"""Pruning by the zeros of another model: no calibration, no metric."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pruner_zero.files import write_atomic
from pruner_zero.models import Dtype, LanguageModel, as_language_model, find_matrices, save_model
from pruner_zero.provenance import Cost, measured
from pruner_zero.pruning.checkpoint import Checkpoint
from pruner_zero.pruning.masks import masks_for
from pruner_zero.pruning.prune_matrix import write_zeros
from pruner_zero.pruning.record import MatrixRecord, PrunedMatrices
from pruner_zero.recovery import NOT_RETRAINED
from pruner_zero.result_folder import build_folder, check_output


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
    by_name = masks_for(matrices, masks)
    return [
        write_zeros(matrix, by_name[matrix.name].to(matrix.weight.device))
        for matrix in matrices
        if matrix.name in by_name and not by_name[matrix.name].all()
    ]


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
    folder = check_output(output, overwrite)
    language_model = as_language_model(model, tokenizer, dtype)
    by_name = masks_for(find_matrices(language_model.model), masks)

    def run(_: object) -> MaskedResult:
        with measured() as cost:
            records = apply_masks(language_model, by_name)
        return MaskedResult(language_model, Path(masks), tuple(records), cost, folder)

    def write(result: MaskedResult, _: object, staged: Path) -> None:
        save_model(language_model, staged)
        write_atomic(staged / "README.md", _card(result))

    return build_folder(folder, overwrite, Checkpoint, {}, run, write)


def _card(result: MaskedResult) -> str:
    name = result.language_model.name
    return (
        "---\nlibrary_name: transformers\ntags: [pruned, pruner-zero]\n---\n\n"
        f"# {Path(name).name}, {result.sparsity:.1%} zeros in {len(result.records)} matrices\n\n"
        f"The weights of `{name}` with zeros where `{result.masks}` has zeros. Nothing was "
        f"calibrated. {NOT_RETRAINED}\n"
    )
