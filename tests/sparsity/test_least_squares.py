"""Least squares under a mask: what NumPy's solver finds row by row, never worse than a sweep."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.steps import conjugate_gradients, least_squares
from pruner_zero.sparsity.steps.least_squares import remove_columns, solve
from pruner_zero.sparsity.steps.step import Layer
from tests.masks import keep_mask
from tests.sparsity import reference
from tests.sparsity.steps.kernels import HALF, exact_update, layer_of, sparsegpt
from tests.sparsity.steps.test_sweep import assert_close, layer

seeds = st.integers(0, 2**31)


def random_mask(rows: int, columns: int, sparsity: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) >= sparsity


def loud_layer(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs with a few directions and channels a hundred times as large, as models have."""
    weight, _ = layer(rows, columns, seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2 * columns, columns, generator=generator)
    directions = 30 * torch.randn(2 * columns, 3, generator=generator)
    inputs += directions @ torch.randn(3, columns, generator=generator)
    inputs[:, ::17] *= 100
    return weight, inputs.T @ inputs


def lstsq(weight: Tensor, root: Tensor, mask: Tensor, goal: Tensor) -> Tensor:
    """Row by row: the kept weights w' with root[:, S]·w' closest to the row of `goal`."""
    solved = np.zeros(weight.shape)
    for row, kept in enumerate(mask.numpy()):
        solved[row, kept] = np.linalg.lstsq(root.numpy()[:, kept], goal[row].numpy())[0]
    return torch.from_numpy(solved)


def error_rows(H: Tensor, change: Tensor) -> Tensor:
    change = change.double()
    return (change @ H * change).sum(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 40), seeds, st.floats(0, 1))
def test_each_row_is_what_a_least_squares_solver_finds(
    rows: int, columns: int, seed: int, sparsity: float
) -> None:
    weight, gram = layer(rows, columns, seed)
    mask = random_mask(rows, columns, sparsity, seed)
    result = exact_update(weight, gram, mask, tolerance=1e-5)
    root = torch.linalg.cholesky(reference.damped(gram), upper=True)
    expected = lstsq(weight, root, mask, weight.double() @ root.T)
    assert_close(result.weight, expected)
    assert torch.equal(result.weight.masked_fill(mask, 0.0), torch.zeros_like(weight))
    assert not torch.signbit(result.weight[~mask]).any()


def test_rows_that_share_their_columns_are_solved_by_the_reduced_normal_equations() -> None:
    """W·H[:, P]·H[P, P]⁻¹ in float64."""
    weight, gram = loud_layer(20, 96)
    columns, empty = random_mask(1, 96, 0.25)[0], torch.tensor([3, 7])
    mask = columns.repeat(20, 1)
    mask[empty] = False
    result = exact_update(weight, gram, mask)
    H = reference.damped(gram)
    inverse = torch.linalg.inv(H[columns][:, columns])
    expected = torch.zeros(20, 96, dtype=torch.float64)
    expected[:, columns] = weight.double() @ H[:, columns] @ inverse
    expected[empty] = 0
    assert_close(result.weight, expected)
    assert (result.iterations, result.converged) == (0, True)
    assert not torch.signbit(result.weight[~mask]).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pattern", [Unstructured(0.6), SemiStructured(2, 4)])
@pytest.mark.parametrize("make", [layer, loud_layer])
def test_no_sweep_and_no_plain_mask_leaves_a_smaller_error(
    make: Callable[[int, int, int], tuple[Tensor, Tensor]],
    pattern: Unstructured | SemiStructured,
    seed: int,
) -> None:
    weight, gram = make(24, 160, seed)
    mask = keep_mask(weight.abs() * gram.diagonal().sqrt(), pattern)
    H = reference.damped(gram)
    result = exact_update(weight, gram, mask)
    best = error_rows(H, weight - result.weight)
    swept = sparsegpt(weight, gram, pattern, mask=mask).weight
    assert (best <= 1.0001 * error_rows(H, weight - swept)).all()
    assert (best <= error_rows(H, weight * ~mask)).all()
    assert result.converged
    assert result.residual <= 2e-3
    assert 0 < result.iterations < 60


@pytest.mark.parametrize("make", [layer, loud_layer])
def test_the_gradient_on_the_kept_weights_is_zero(
    make: Callable[[int, int], tuple[Tensor, Tensor]],
) -> None:
    weight, gram = make(16, 200)
    mask = random_mask(16, 200)
    H = reference.damped(gram)
    result = exact_update(weight, gram, mask, tolerance=1e-5)
    before = (weight.double() * ~mask @ H)[mask].norm()
    gradient = ((weight - result.weight).double() @ H)[mask].norm()
    assert gradient < 1e-3 * before


def test_a_row_without_zeros_stays_and_one_without_weights_goes() -> None:
    weight, gram = layer(12, 40)
    mask = torch.ones(12, 40, dtype=torch.bool)
    for _ in range(2):
        result = exact_update(weight, gram, mask, tolerance=0.0)
        assert torch.equal(result.weight, weight * mask)
        assert (result.iterations, result.residual, result.converged) == (0, 0.0, True)
        mask[::3] = False


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_stopped_early_it_says_so_and_is_no_worse_than_the_mask(iterations: int) -> None:
    weight, gram = loud_layer(16, 200)
    mask = random_mask(16, 200)
    result = exact_update(weight, gram, mask, max_iterations=iterations)
    H = reference.damped(gram)
    assert not result.converged
    assert result.residual > 1e-3
    assert result.iterations == iterations
    best = error_rows(H, weight - result.weight)
    assert (best <= 1.000001 * error_rows(H, weight * ~mask)).all()


def test_the_residual_tells_what_is_left_to_gain() -> None:
    weight, gram = layer(8, 200)
    mask = random_mask(8, 200)
    H = reference.damped(gram)
    best = exact_update(weight, gram, mask, tolerance=1e-6)
    least = error_rows(H, weight - best.weight)
    possible = error_rows(H, weight * ~mask) - least
    for iterations in (2, 4, 6):
        early = exact_update(weight, gram, mask, max_iterations=iterations)
        excess = error_rows(H, weight - early.weight) - least
        share = float((excess / possible).max())
        assert early.residual**2 / 10 < share < early.residual**2 * 10


@pytest.mark.parametrize("damping", [1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("loud", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("tokens", [40, 1200])
def test_few_tokens_little_damping_and_loud_channels_are_solved(
    tokens: int, loud: float, damping: float
) -> None:
    weight, _ = layer(8, 160)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(tokens, 160, generator=generator)
    inputs += loud * torch.randn(tokens, 1, generator=generator)
    inputs[:, ::31] *= loud
    gram = inputs.T @ inputs
    mask = keep_mask(weight.abs() * gram.diagonal().sqrt(), HALF)
    result = exact_update(weight, gram, mask, damping=damping)
    swept = sparsegpt(weight, gram, HALF, mask=mask, damping=damping)
    assert result.converged
    H = reference.damped(gram, Hessian(gram, damping=damping).used_damping)
    best = reference.error_under(H, weight - result.weight)
    assert best <= 1.0001 * reference.error_under(H, weight - swept.weight)


def test_raised_damping_is_told() -> None:
    weight, _ = layer(4, 8)
    gram = torch.full((8, 8), 1.05).fill_diagonal_(1.0)
    mask = random_mask(4, 8)
    result = exact_update(weight, gram, mask, tolerance=1e-5)
    assert Hessian(gram).used_damping == pytest.approx(0.1)
    root = torch.linalg.cholesky(reference.damped(gram, 0.1), upper=True)
    assert_close(result.weight, lstsq(weight, root, mask, weight.double() @ root.T))


def test_a_multiple_of_the_gram_and_bfloat16_weights() -> None:
    weight, gram = layer(8, 64)
    weight = weight.bfloat16()
    mask = random_mask(8, 64)
    plain = exact_update(weight, gram, mask, tolerance=1e-5)
    assert_close(exact_update(weight, gram / 512, mask, tolerance=1e-5).weight, plain.weight)
    assert plain.weight.dtype == torch.float32


def test_rows_beyond_those_solved_together_have_the_same_solution_up_to_the_tolerance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, gram = loud_layer(20, 40)
    mask = random_mask(20, 40)
    whole = exact_update(weight, gram, mask, tolerance=1e-4)
    most = 0
    solve_rows = conjugate_gradients.conjugate_gradients

    def noted(product: Any, residual: Tensor, *rest: Any) -> tuple[Tensor, Tensor, int]:
        nonlocal most
        most = max(most, len(residual))
        return solve_rows(product, residual, *rest)

    monkeypatch.setattr(least_squares, "conjugate_gradients", noted)
    monkeypatch.setattr(least_squares, "_ROWS", 7)
    parts = exact_update(weight, gram, mask, tolerance=1e-4)
    assert most == 7
    assert parts.converged
    assert parts.iterations <= whole.iterations
    H = reference.damped(gram)
    apart = error_rows(H, parts.weight - whole.weight)
    assert (apart <= 1e-6 * error_rows(H, weight.masked_fill(mask, 0))).all()
    again = [
        exact_update(weight[i : i + 7], gram, mask[i : i + 7], tolerance=1e-4).weight
        for i in range(0, 20, 7)
    ]
    assert torch.equal(parts.weight, torch.cat(again))


def test_known_dominant_directions_save_most_iterations() -> None:
    weight, gram = loud_layer(6, 160)
    mask = random_mask(6, 160)
    few = solve(layer_of(weight, gram, mask), tolerance=1e-3)
    without = layer_of(weight, gram, mask)
    vars(without.hessian)["nystrom"] = torch.zeros(160, 32)
    many = solve(without, tolerance=1e-3)
    assert few.converged
    assert 3 * few.iterations < many.iterations


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(2, 40), seeds, st.floats(0, 1))
def test_removed_columns_leave_what_least_squares_on_the_others_find(
    rows: int, columns: int, seed: int, sparsity: float
) -> None:
    weight, gram = loud_layer(rows, columns, seed)
    gram[:, 0] = gram[0] = 0
    mask = random_mask(1, columns, sparsity, seed).expand(rows, columns)
    hessian = Hessian(gram)
    updated = remove_columns(weight, hessian, ~mask[0])
    assert updated is not None
    wanted = exact_update(weight, gram, mask).weight.double()
    assert not updated[~mask].any()
    change, least = updated.double() - weight, wanted - weight
    least[:, 0] = change[:, 0] = 0
    H = hessian.damped().double()
    allowed = (1.001 * error_rows(H, least)).maximum(1e-9 * error_rows(H, weight))
    assert (error_rows(H, change) <= allowed).all()


@pytest.mark.parametrize("kept", [0, 12, 20, 32])
def test_a_held_inverse_changes_how_columns_are_removed_and_not_the_result(kept: int) -> None:
    weight, gram = loud_layer(8, 32)
    mask = (torch.arange(32) < kept).repeat(8, 1)
    mask[3] = False
    layers = [layer_of(weight, gram, mask) for _ in range(2)]
    _ = layers[1].required_hessian.inverse
    without, held = map(solve, layers)
    assert held.iterations == without.iterations == 0
    assert_close(held.weight, without.weight)


def test_a_held_inverse_needs_neither_a_copy_of_the_hessian_nor_a_product_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, gram = loud_layer(8, 32)
    columns, hessian = torch.arange(32) < 20, Hessian(gram)
    expected = remove_columns(weight, hessian, ~columns)
    assert expected is not None

    def refuse(*_: object) -> None:
        raise AssertionError("H is not needed")

    monkeypatch.setattr(Hessian, "damped", refuse)
    solved = solve(Layer(weight, hessian, HALF, columns.repeat(8, 1)))
    assert torch.equal(solved.weight, expected)


@pytest.mark.parametrize("loud", [False, True])
def test_coarse_solutions_of_wide_matrices_take_as_many_iterations_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, loud: bool
) -> None:
    monkeypatch.setattr(conjugate_gradients, "has_fast_bfloat16", lambda _: True)
    weight, gram = (loud_layer if loud else layer)(24, 192)
    problem = layer_of(weight, gram, random_mask(24, 192))
    H = reference.damped(gram)
    fine = solve(problem, tolerance=1e-3).weight
    least = error_rows(H, weight - fine)
    iterations, excess = [], []
    for wide in (193, 192):
        monkeypatch.setattr(conjugate_gradients, "_WIDE", wide)
        coarse = solve(problem, tolerance=0.05)
        iterations.append(coarse.iterations)
        excess.append(float((error_rows(H, weight - coarse.weight) / least).max()) - 1)
        assert coarse.converged
    assert iterations[1] <= iterations[0] + 1
    assert max(excess) < 0.05
    assert excess[0] != excess[1]


@pytest.mark.parametrize("loud", [False, True])
def test_fine_solutions_of_wide_matrices_are_as_good_with_products_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, loud: bool
) -> None:
    monkeypatch.setattr(conjugate_gradients, "has_fast_bfloat16", lambda _: True)
    weight, gram = (loud_layer if loud else layer)(24, 192)
    problem = layer_of(weight, gram, random_mask(24, 192))
    H = reference.damped(gram)
    fine = solve(problem, tolerance=1e-3)
    monkeypatch.setattr(conjugate_gradients, "_WIDE", 192)
    coarse = solve(problem, tolerance=1e-3)
    assert not torch.equal(coarse.weight, fine.weight)
    assert coarse.converged
    assert coarse.residual <= 2e-3
    least, reached = (error_rows(H, weight - each.weight) for each in (fine, coarse))
    assert (reached <= least * (1 + 1e-5)).all()


def test_products_in_float32_are_iterated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = loud_layer(24, 192)
    calls = []
    solve_rows = conjugate_gradients.conjugate_gradients

    def noted(*given: Any) -> tuple[Tensor, Tensor, int]:
        calls.append(1)
        return solve_rows(*given)

    monkeypatch.setattr(least_squares, "conjugate_gradients", noted)
    # Beyond what rounding allows, so that the residual is above the tolerance afterwards.
    solution = exact_update(weight, gram, random_mask(24, 192), tolerance=1e-9)
    assert len(calls) == 1
    assert not solution.converged
