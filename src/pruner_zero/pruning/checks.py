"""What is refused before any work of a recipe."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch import nn

from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import (
    Matrix,
    check_finite,
    check_weights,
    find_blocks,
    find_matrices,
)
from pruner_zero.pruning.recipe import Recipe
from pruner_zero.training.distillation import check_memory


def check_recipe(
    language_model: LanguageModel,
    recipe: Recipe,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    weights: bool = True,
    saved: bool = False,
) -> list[Matrix]:
    """The matrices that will be pruned, chosen as by `find_matrices`.

    weights: whether to read all of them, as `check_parameters` does. saved: whether there will be a
    journal. Raises PrunerZeroError for all mistakes that can be found before calibration.
    """
    cut = recipe.cut
    matrices = find_matrices(language_model.model, (cut and cut.include) or include, exclude)
    if recipe.pattern:
        for matrix in matrices:
            recipe.pattern.check(matrix.name, (matrix.weight.shape[0], matrix.weight.shape[1]))
    if weights:
        check_parameters(language_model, matrices)
    if recipe.distill:
        share = 0.0 if cut and cut.when == "text" else recipe.removed().sparsity
        check_memory(language_model, matrices, share, cut=cut is not None, copied=not saved)
    return matrices


def check_parameters(language_model: LanguageModel, matrices: Sequence[Matrix]) -> None:
    """Raise PrunerZeroError for NaN and infinity, except in matrices that are left out."""
    model = language_model.model
    others = {matrix.parameter_name for matrix in find_matrices(model)}
    names = {id(p): name for name, p in model.named_parameters() if name not in others}

    def named(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return ((names[id(p)], p) for p in module.parameters() if id(p) in names)

    by_block = defaultdict(list)
    for matrix in matrices:
        by_block[matrix.block].append(matrix)
    for index in range(len(find_blocks(model))):
        with language_model.block(index) as block:
            check_weights(by_block[index])
            check_finite(named(block))
            for parameter in block.parameters():
                names.pop(id(parameter), None)
    with language_model.outside():
        check_finite(named(model))
