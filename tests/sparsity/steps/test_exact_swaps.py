"""Swaps judged by solving anew: smaller errors, towards the best of all masks, the same counts."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.steps import exact_swaps
from pruner_zero.sparsity.steps.least_squares import TOLERANCE
from tests.masks import keep_mask
from tests.sparsity import reference
from tests.sparsity.steps.kernels import exact_update, layer_of, refine_exact, refine_mask
from tests.sparsity.steps.test_least_squares import lstsq
from tests.sparsity.steps.test_sweep import layer

PATTERNS = [Unstructured(0.5), Unstructured(0.7, "matrix"), SemiStructured(2, 4)]


def problem(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights, and the Gram matrix of inputs that depend on each other."""
    weight, _ = layer(rows, columns, seed)
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator)
    x = torch.randn(4 * columns, columns, generator=generator) @ mixed
    return weight, x.T @ x


def errors(weight: Tensor, gram: Tensor, pruned: Tensor) -> Tensor:
    """The quantity that solving lowers, of every row, in float64: w'Hw' − 2w'·(W·H)."""
    H = reference.damped(gram)
    return (pruned.double() * (pruned.double() @ H - 2 * weight.double() @ H)).sum(1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**31), st.sampled_from(PATTERNS))
def test_no_row_ends_worse_than_solving_under_its_mask(
    rows: int, seed: int, pattern: Pattern
) -> None:
    weight, gram = problem(rows, 16, seed)
    mask = keep_mask(weight.abs(), pattern)
    result = refine_exact(weight, gram, mask, pattern, tolerance=1e-3)
    refined = result.mask
    assert torch.equal(refined.sum(1), mask.sum(1))
    if isinstance(pattern, SemiStructured):
        assert (refined.view(rows, -1, pattern.m).sum(2) == pattern.m - pattern.n).all()
    masked = exact_update(weight, gram, mask)
    before = errors(weight, gram, masked.weight)
    after = errors(weight, gram, result.weight)
    assert (after <= before + 1e-5 * before.abs()).all()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("last", "apart"), [(1e-3, 3e-3), (TOLERANCE, 1e-2)])
def test_the_weights_are_the_solution_under_the_mask_that_is_left(
    pattern: Pattern, last: float, apart: float
) -> None:
    weight, gram = problem(30, 32, 0)
    mask = keep_mask(weight.abs(), pattern)
    result = refine_exact(weight, gram, mask, pattern, tolerance=last)
    refined = result.mask
    assert not torch.equal(refined, mask)
    H = reference.damped(gram)
    root = torch.linalg.cholesky(H, upper=True)
    expected = lstsq(weight, root, refined, weight.double() @ root.T)
    assert float((result.weight - expected).abs().max()) < apart * float(expected.abs().max())
    plain, least, left = (
        errors(weight, gram, pruned).sum() for pruned in (weight * refined, expected, result.weight)
    )
    assert least <= left < least + 1e-4 * (plain - least)
    assert torch.equal(result.weight.masked_fill(refined, 0.0), torch.zeros_like(weight))
    assert result.note is None


@pytest.mark.parametrize("pattern", [Unstructured(0.6), SemiStructured(2, 4)])
def test_swaps_judged_by_solving_leave_less_error_than_swaps_before_solving(
    pattern: Pattern,
) -> None:
    weight, gram = problem(64, 128, 0)
    mask = keep_mask(weight.abs(), pattern)

    def error(pruned: Tensor) -> float:
        removed = (weight - pruned).double()
        return float((removed @ reference.damped(gram) * removed).sum())

    before = error(exact_update(weight, gram, refine_mask(weight, gram, mask, pattern)).weight)
    by_turns = [
        error(refine_exact(weight, gram, mask, pattern, turns=n, tolerance=1e-3).weight)
        for n in range(13)
    ]
    plain = error(exact_update(weight, gram, mask).weight)
    assert by_turns[0] == pytest.approx(plain, rel=1e-4)
    # Equal but for how far the last solution goes.
    assert all(new <= old * 1.0001 for old, new in pairwise(by_turns))
    assert by_turns[12] < 0.9 * before


def in_turns(weight: Tensor, H: Tensor, kept: Tensor, group: int, turns: int, limit: int) -> Tensor:
    """The mask of one row, pair by pair, at most `limit` in a turn.

    A turn without gain halves the number of pairs of the next.
    """

    def solved(mask: Tensor) -> tuple[Tensor, float]:
        solution = torch.zeros_like(weight)
        solution[mask] = torch.linalg.solve(H[mask][:, mask], (H @ weight)[mask])
        return solution, float((solution - weight) @ H @ (solution - weight))

    curvature = (H.diagonal() / torch.linalg.inv(H).diagonal()).sqrt()
    most = limit
    for _ in range(turns):
        solution, before = solved(kept)
        cost, gain = solution.square() * curvature, (H @ (weight - solution)).square() / curvature
        pairs = []
        for start in range(0, len(weight), group):
            places = torch.arange(start, start + group)
            pruned = sorted(places[kept[places]].tolist(), key=lambda j: float(cost[j]))
            revived = sorted(places[~kept[places]].tolist(), key=lambda j: -float(gain[j]))
            group_pairs = list(zip(pruned, revived, strict=False))
            pairs += group_pairs[:1] if group < len(weight) else group_pairs
        pairs = [(q, p) for q, p in pairs if gain[p] > cost[q]]
        pairs = sorted(pairs, key=lambda pair: float(cost[pair[0]] - gain[pair[1]]))[:most]
        trial = kept.clone()
        for q, p in pairs:
            trial[p], trial[q] = True, False
        most = limit
        if solved(trial)[1] < before:
            kept = trial
        else:
            most = len(pairs) // 2
    return kept


@pytest.mark.parametrize("turns", [1, 2, 5])
@pytest.mark.parametrize(
    ("pattern", "limit"),
    [(Unstructured(0.5), 24), (Unstructured(0.5), 2), (SemiStructured(2, 4), 24)],
)
def test_a_turn_swaps_what_both_estimates_say(
    pattern: Pattern, limit: int, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "pruner_zero.sparsity.steps.exact_swaps"
    monkeypatch.setattr(f"{module}._TOLERANCE", 1e-5)
    monkeypatch.setattr(f"{module}._LEAST_PAIRS", limit)
    weight, gram = problem(30, 24, 0)
    mask = keep_mask(weight.abs(), pattern)
    refined = refine_exact(weight, gram, mask, pattern, turns=turns).mask
    group = pattern.m if isinstance(pattern, SemiStructured) else 24
    H = reference.damped(gram)
    rows = zip(weight.double(), mask, strict=True)
    expected = [in_turns(row, H, kept, group, turns, limit) for row, kept in rows]
    assert torch.equal(refined, torch.stack(expected))
    assert (refined != mask).any(1).sum() > 8


def test_it_goes_more_than_half_way_to_the_best_of_all_masks() -> None:
    weight, gram = problem(40, 8, 3)
    mask = keep_mask(weight.abs(), Unstructured(0.5))
    H = reference.damped(gram)
    best = torch.full((40,), torch.inf, dtype=torch.float64)
    for kept in combinations(range(8), 4):
        every = torch.zeros(40, 8, dtype=torch.bool)
        every[:, list(kept)] = True
        solved = exact_update(weight, gram, every, tolerance=1e-6).weight
        best = best.minimum(errors(weight, gram, solved))
    whole = -(weight.double() @ H * weight.double()).sum(1)
    start = errors(weight, gram, exact_update(weight, gram, mask).weight)
    end = errors(weight, gram, refine_exact(weight, gram, mask, Unstructured(0.5)).weight)
    assert (start - whole).sum() > 1.5 * (best - whole).sum()
    assert (end - best).sum() < 0.5 * (start - best).sum()


def test_the_scale_of_weights_and_inputs_has_no_effect() -> None:
    weight, gram = problem(6, 16, 3)
    mask = keep_mask(weight.abs(), Unstructured(0.5))
    refined = refine_exact(weight, gram, mask, Unstructured(0.5)).mask
    assert not torch.equal(refined, mask)
    small = layer_of(weight / 64, gram / 64, mask)
    assert torch.equal(exact_swaps.refine_exact(small).mask, refined)
    # No factor of the Hessian stays in memory.
    assert "inverse_factor" not in vars(small.required_hessian)


def test_a_mask_that_no_swap_would_help_stays() -> None:
    weight, _ = layer(8, 32)
    gram = torch.diag(torch.rand(32, generator=torch.Generator().manual_seed(0)) + 0.1)
    best = keep_mask(weight**2 * gram.diagonal(), Unstructured(0.5))
    result = refine_exact(weight, gram, best, Unstructured(0.5))
    assert torch.equal(result.mask, best)
    assert torch.equal(result.weight, exact_update(weight, gram, best).weight)


def test_more_rows_than_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = problem(20, 40, 0)
    mask = keep_mask(weight.abs(), Unstructured(0.5))
    result = refine_exact(weight, gram, mask, Unstructured(0.5))
    monkeypatch.setattr("pruner_zero.sparsity.steps.exact_swaps._ROWS", 7)
    in_parts = refine_exact(weight, gram, mask, Unstructured(0.5))
    whole, parts = (errors(weight, gram, each.weight).sum() for each in (result, in_parts))
    assert float(parts) == pytest.approx(float(whole), rel=1e-3)
