"""Steps after a mask: refinement, sweeps and least squares, and their notes."""

from typing import Any

import pytest
import torch
from pruner_zero.sparsity.steps.least_squares import TOLERANCE, solve
from torch import Tensor, nn

from pruner_zero.choices import Mode
from pruner_zero.models.matrices import Matrix
from pruner_zero.pruning.masks import Mask, Statistics, masks_of
from pruner_zero.pruning.matrix import MatrixRecord, prune_matrix
from pruner_zero.pruning.recipe import Recipe, Scored
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.text.token_windows import Windows
from tests.masks import keep_mask
from tests.pruning.conftest import Prune, language_model, recipe_of
from tests.pruning.plain import in_order, inputs, places
from tests.sparsity.reference import damped, error_under, keep_groups
from tests.sparsity.steps.kernels import (
    exact_update,
    refine_mask,
    sparsegpt,
)
from tests.sparsity.steps.test_sweep import layer


def matrix_of(weight: Tensor) -> Matrix:
    """A matrix of its own, not part of a model."""
    return Matrix("up_proj", 0, nn.Parameter(weight.clone(), requires_grad=False), "weight")


def example(rows: int = 24, columns: int = 160) -> tuple[Tensor, Statistics]:
    """A weight, and the X, G and gram of inputs that fit together."""
    weight, gram = layer(rows, columns)
    G = torch.rand(rows, columns, generator=torch.Generator().manual_seed(1))
    return weight, Statistics({"X": gram.diagonal().sqrt()[None], "G": G}, Hessian(gram))


def gram_of(statistics: Statistics) -> Tensor:
    """The Gram matrix, which has been collected."""
    assert statistics.hessian is not None
    return statistics.hessian.gram


def prune_one(
    matrix: Matrix, statistics: Statistics, method: Recipe, mask: Tensor | None = None
) -> MatrixRecord:
    """Prune a matrix that competes with no other, under `mask` if there is one."""
    chosen = Mask(mask)
    if mask is None:
        assert isinstance(method.masks, Scored)
        sweep = method.sweep is not None
        chosen = masks_of([matrix], method.masks, lambda _: statistics, sweep=sweep)[matrix.name]
    return prune_matrix(matrix, statistics, method, chosen)


def pruned(
    text: str, weight: Tensor, statistics: Statistics, pattern: Pattern, mask: Tensor | None = None
) -> tuple[Tensor, str | None]:
    """The weights that a method leaves, and its note."""
    matrix = matrix_of(weight)
    if isinstance(pattern, SemiStructured):
        method = recipe_of(text, pattern=str(pattern))
    else:
        method = recipe_of(text, sparsity=pattern.sparsity, scope=pattern.scope)
    record = prune_one(matrix, statistics, method, mask)
    assert record.zeros == int((matrix.weight == 0).sum())
    assert record.damping == (None if method.steps in ((), ("refine",)) else 0.01)
    return matrix.weight.detach(), record.note


PATTERNS = [Unstructured(0.5), Unstructured(0.6, "block"), SemiStructured(2, 4)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_step_equals_the_function_of_the_sparsity_room(pattern: Pattern) -> None:
    weight, statistics = example()
    gram, X = gram_of(statistics), statistics.values["X"]
    assert X is not None
    mask = keep_mask(weight.abs() * X, pattern)
    refined = refine_mask(weight, gram, mask, pattern)

    def swept(mask: Tensor) -> Tensor:
        return sparsegpt(weight, gram, pattern, mask=mask).weight

    expected = {
        "wanda": weight * mask,
        "wanda+refine": weight * refined,
        "wanda+obs": swept(mask),
        "wanda+refine+obs": swept(refined),
        "wanda+exact": exact_update(weight, gram, mask, tolerance=TOLERANCE).weight,
        "wanda+refine+exact": exact_update(weight, gram, refined, tolerance=TOLERANCE).weight,
        "sparsegpt": sparsegpt(weight, gram, pattern).weight,
    }
    for text, weights in expected.items():
        assert torch.equal(pruned(text, weight, statistics, pattern)[0], weights), text


@pytest.mark.parametrize("pattern", PATTERNS)
def test_refinement_and_least_squares_take_the_mask_that_a_sweep_chose(pattern: Pattern) -> None:
    weight, statistics = example()
    gram = gram_of(statistics)
    chosen = sparsegpt(weight, gram, pattern).mask
    solved, _ = pruned("sparsegpt+exact", weight, statistics, pattern)
    expected = exact_update(weight, gram, chosen, tolerance=TOLERANCE).weight
    assert torch.equal(solved, expected)
    refined = refine_mask(weight, gram, chosen, pattern)
    swept, _ = pruned("sparsegpt+refine", weight, statistics, pattern)
    assert torch.equal(swept, sparsegpt(weight, gram, pattern, mask=refined).weight)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_step_lowers_the_error(pattern: Pattern) -> None:
    weight, statistics = example()
    H = damped(gram_of(statistics))
    steps = ["wanda", "wanda+obs", "wanda+exact", "wanda+refine+exact"]
    errors = [
        error_under(H, weight - pruned(text, weight, statistics, pattern)[0]) for text in steps
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[1]


@pytest.mark.parametrize("text", ["wanda+refine", "wanda+obs", "wanda+exact", "wanda+refine+exact"])
def test_updates_start_from_a_given_mask(text: str) -> None:
    weight, statistics = example()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) > 0.4
    left, _ = pruned(text, weight, statistics, Unstructured(0.5), mask)
    assert torch.equal((left == 0).sum(1), (~mask).sum(1))
    assert torch.equal(left == 0, ~mask) == ("refine" not in text)


def test_raised_damping_and_an_unfinished_solution_are_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, _ = layer(4, 8)
    gram = torch.full((8, 8), 1.05).fill_diagonal_(1.0)
    statistics = Statistics({"X": torch.ones(1, 8)}, Hessian(gram))
    for text in ("wanda+exact", "wanda+obs", "sparsegpt"):
        record = prune_one(matrix_of(weight), statistics, recipe_of(text))
        assert record.damping == pytest.approx(0.1)
        assert record.note == "damping raised to 0.1 for the Cholesky factor"

    def hurried(*arguments: Any, **options: Any) -> object:
        return solve(*arguments, **options, max_iterations=1)

    monkeypatch.setattr("pruner_zero.sparsity.steps.least_squares.solve", hurried)
    weight, statistics = example()
    _, note = pruned("wanda+exact", weight, statistics, Unstructured(0.5))
    assert note is not None
    assert note.startswith("least squares stopped at 1 iterations with a residual of 0.")


@pytest.mark.parametrize("text", ["magnitude+refine", "sparsegpt@row", "wanda+exact"])
def test_a_matrix_without_inputs_is_pruned_by_magnitude_and_left_alone(text: str) -> None:
    weight, statistics = example(6, 16)
    statistics = Statistics(
        {"X": torch.zeros(1, 16), "G": statistics.values["G"]}, Hessian(torch.zeros(16, 16))
    )
    matrix = matrix_of(weight)
    record = prune_one(matrix, statistics, recipe_of(text))
    assert record.note is not None
    assert record.note.endswith("inputs are not known: pruned by magnitude")
    mask = keep_groups(weight.abs(), 16, 8)
    assert torch.equal(matrix.weight, weight * mask)


@pytest.mark.parametrize("mode", ["one-shot", "sequential"])
def test_masks_over_the_whole_model_are_refined_in_either_order(
    mode: Mode, windows: Windows, pruned_by: Prune
) -> None:
    ours, plain, masked = (language_model("llama") for _ in range(3))
    pruned_by(masked, "wanda@global")
    masks = {place.name: place.weight != 0 for place in places(masked.model)}
    pruned_by(ours, "wanda@global+refine", mode)
    for place, x in in_order(plain.model, windows.tokens, mode):
        chosen = masks[place.name]
        refined = refine_mask(place.weight, x.T @ x, chosen, Unstructured(0.5, "row"))
        assert torch.equal(refined.sum(1), chosen.sum(1))
        place.weight.mul_(refined)
    every = places(plain.model)
    assert any((place.weight != 0).ne(masks[place.name]).any() for place in every)
    for pruned_place, expected in zip(places(ours.model), every, strict=True):
        assert torch.equal(pruned_place.weight, expected.weight), pruned_place.name


def test_refinement_and_least_squares_of_a_whole_model(windows: Windows, pruned_by: Prune) -> None:
    ours, dense = language_model("gpt2"), language_model("gpt2")
    records = pruned_by(ours, "wanda+refine+exact", "one-shot").records
    for mine, place in zip(places(ours.model), places(dense.model), strict=True):
        x = inputs(dense.model, windows.tokens, place.block)[place.name]
        gram = x.T @ x
        H = damped(gram) + gram.diagonal().diag() * 2 * x.shape[1] / x.shape[0]
        mask = mine.weight != 0
        assert ((~mask).sum(1) == place.weight.shape[1] // 2).all()
        gradient = ((place.weight - mine.weight).double() @ H)[mask].norm()
        assert gradient < 1e-2 * (place.weight.double() * ~mask @ H)[mask].norm()
    assert {record.damping for record in records} == {0.01}
    shares = {record.name: 2 * record.shape[1] / windows.tokens.numel() for record in records}
    assert {record.name: record.shrinkage for record in records} == pytest.approx(shares)
