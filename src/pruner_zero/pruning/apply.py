"""Pruning by masks from an earlier run: no calibration, no metric."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pruner_zero.files import write_atomic
from pruner_zero.models import Dtype, LanguageModel, as_language_model, find_matrices, save_model
from pruner_zero.provenance import Cost, measured
from pruner_zero.pruning.checkpoint import Checkpoint
from pruner_zero.pruning.masks import FOLDER, check_fit, load_masks, save_masks
from pruner_zero.pruning.prune_matrix import write_zeros
from pruner_zero.pruning.record import MatrixRecord, PrunedMatrices
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
        """How much of the model is zero, by which masks, and where it is."""
        return f"{self.output}: {self.share()}, by the masks in {self.masks}"


def apply_masks(
    model: LanguageModel | nn.Module, masks: Mapping[str, Tensor] | str | Path
) -> list[MatrixRecord]:
    """Zero, in place, the weights that `masks` prune; return a record of each matrix.

    masks: bool (out, in) by matrix name, True = kept, or the folder that `load_masks` reads.
    Matrices without a mask stay as they are. Raises PrunerZeroError, with the model as it was,
    where a mask fits no matrix of the model.
    """
    by_name = load_masks(masks) if isinstance(masks, str | Path) else masks
    module = model.model if isinstance(model, LanguageModel) else model
    return [
        write_zeros(matrix, by_name[matrix.name].to(matrix.weight.device))
        for matrix in check_fit(find_matrices(module), by_name)
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
    """Prune `model` by the masks in the folder `masks`, and save it to `output`.

    model: what `load_model` takes, or a model object with its `tokenizer`, which is then pruned
    in place. The masks are saved with it. Raises PrunerZeroError for masks that are damaged or of
    a model of other shapes, and for an output that cannot be written.
    """
    folder = check_output(output, overwrite)
    by_name = load_masks(masks)
    language_model = as_language_model(model, tokenizer, dtype)
    matrices = check_fit(find_matrices(language_model.model), by_name)

    def run(_: object) -> MaskedResult:
        with measured() as cost:
            records = apply_masks(language_model, by_name)
        return MaskedResult(language_model, Path(masks), tuple(records), cost, folder)

    def write(result: MaskedResult, _: object, staged: Path) -> None:
        save_model(language_model, staged)
        save_masks(language_model, matrices, staged / FOLDER)
        write_atomic(staged / "README.md", _card(result))

    return build_folder(folder, overwrite, Checkpoint, {}, run, write)


def _card(result: MaskedResult) -> str:
    name = result.language_model.name
    return (
        "---\nlibrary_name: transformers\ntags: [pruned, pruner-zero]\n---\n\n"
        f"# {Path(name).name}, {result.sparsity:.1%} zeros\n\n"
        f"The weights of `{name}` with zeros where the masks in `{result.masks}` prune. Nothing "
        "was calibrated or retrained. The masks are in `masks/`.\n"
    )
