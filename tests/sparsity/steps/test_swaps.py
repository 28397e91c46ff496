"""Refined masks: the best pair of brute force, smaller errors, the same counts."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.steps import swaps
from tests.masks import keep_mask
from tests.sparsity.steps.kernels import refine_mask
from tests.sparsity.steps.test_sweep import layer

PATTERNS = [
    Unstructured(0.5),
    Unstructured(0.3, "matrix"),
    Unstructured(0.7, "global"),
    SemiStructured(2, 4),
    SemiStructured(3, 8),
]


def errors(weight: Tensor, gram: Tensor, mask: Tensor) -> list[float]:
    """δ·C·δᵀ of every row, in float64."""
    removed = weight.double() * ~mask
    return (removed @ gram.double() * removed).sum(1).tolist()


def best_swap(weight: Tensor, gram: Tensor, kept: Tensor, group: int) -> tuple[float, Tensor]:
    """All pairs of one row tried: the smallest error within reach, and its mask."""
    best, mask = errors(weight[None], gram, kept[None])[0], kept
    for p, q in product(range(len(kept)), repeat=2):
        if not kept[p] and kept[q] and p // group == q // group:
            trial = kept.clone()
            trial[p], trial[q] = True, False
            error = errors(weight[None], gram, trial[None])[0]
            if error < best:
                best, mask = error, trial
    return best, mask


def one_round(weight: Tensor, gram: Tensor, kept: Tensor, group: int) -> Tensor:
    """One row: the best pair among weights that have not moved yet, until none would help.

    In groups, a group's pair is the one that was its best at the beginning.
    """
    width = len(kept)

    def error(mask: Tensor) -> float:
        return errors(weight[None], gram, mask[None])[0]

    def swapped(mask: Tensor, pair: tuple[int, int]) -> Tensor:
        trial = mask.clone()
        trial[pair[0]], trial[pair[1]] = True, False
        return trial

    pairs = [
        (p, q)
        for p, q in product(range(width), repeat=2)
        if not kept[p] and kept[q] and p // group == q // group
    ]
    if group < width:
        by_group = (
            [pair for pair in pairs if pair[0] // group == g] for g in range(width // group)
        )
        pairs = [
            min(of_group, key=lambda pair: error(swapped(kept, pair))) for of_group in by_group
        ]
    start = error(kept)
    while pairs:
        best = min(pairs, key=lambda pair: error(swapped(kept, pair)))
        if error(swapped(kept, best)) >= error(kept) - 1e-5 * start:
            break
        kept = swapped(kept, best)
        pairs = [pair for pair in pairs if pair[0] != best[0] and pair[1] != best[1]]
    return kept


def random_mask(weight: Tensor, pattern: Pattern, seed: int) -> Tensor:
    """A mask of the pattern's counts, at random."""
    if isinstance(pattern, Unstructured) and pattern.scope == "global":
        pattern = Unstructured(pattern.sparsity, "matrix")
    scores = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
    return keep_mask(scores, pattern)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31), st.sampled_from(PATTERNS))
def test_no_pair_of_any_row_is_left_that_would_help(
    rows: int, groups: int, seed: int, pattern: Pattern
) -> None:
    columns = 4 * groups if pattern != SemiStructured(3, 8) else 8 * groups
    weight, gram = layer(rows, columns, seed)
    refined = refine_mask(weight, gram, random_mask(weight, pattern, seed), pattern)
    group = pattern.m if isinstance(pattern, SemiStructured) else columns
    for row, error in enumerate(errors(weight, gram, refined)):
        # What is left is below the share of the error that is not worth a swap.
        best, _ = best_swap(weight[row], gram, refined[row], group)
        assert best >= error * (1 - 1e-4)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), SemiStructured(2, 4)])
def test_a_round_takes_one_best_pair_after_the_other(pattern: Pattern) -> None:
    weight, gram = layer(30, 24)
    mask = random_mask(weight, pattern, 1)
    refined = refine_mask(weight, gram, mask, pattern, rounds=1)
    group = 4 if isinstance(pattern, SemiStructured) else 24
    expected = [one_round(row, gram, kept, group) for row, kept in zip(weight, mask, strict=True)]
    assert torch.equal(refined, torch.stack(expected))
    assert (refined & ~mask).sum() > 2 * len(mask)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(3))
def test_every_round_lowers_the_error_and_keeps_the_counts(pattern: Pattern, seed: int) -> None:
    weight, gram = layer(30, 160, seed)
    mask = random_mask(weight, pattern, seed)
    before, zeros = errors(weight, gram, mask), (~mask).sum(1)
    total = sum(before)
    assert torch.equal(refine_mask(weight, gram, mask, pattern, rounds=0), mask)
    for rounds in range(1, 6):
        refined = refine_mask(weight, gram, mask, pattern, rounds=rounds)
        after = errors(weight, gram, refined)
        assert all(new <= old * (1 + 1e-6) for new, old in zip(after, before, strict=True))
        assert torch.equal((~refined).sum(1), zeros)
        if isinstance(pattern, SemiStructured):
            assert ((~refined).view(30, -1, pattern.m).sum(2) == pattern.n).all()
        before = after
    assert sum(before) < 0.8 * total


def test_a_good_mask_gets_better_too() -> None:
    weight, gram = layer(64, 256)
    mask = keep_mask(weight.abs() * gram.diagonal().sqrt(), Unstructured(0.5))
    refined = refine_mask(weight, gram, mask, Unstructured(0.5))
    assert sum(errors(weight, gram, refined)) < 0.9 * sum(errors(weight, gram, mask))


def test_uncorrelated_inputs_leave_the_mask_of_the_smallest_contributions() -> None:
    weight, _ = layer(8, 100)
    gram = torch.diag(torch.rand(100, generator=torch.Generator().manual_seed(0)) + 0.1)
    scores = weight**2 * gram.diagonal()
    best = keep_mask(scores, Unstructured(0.5))
    assert torch.equal(refine_mask(weight, gram, best, Unstructured(0.5)), best)
    start = random_mask(weight, Unstructured(0.5), 0)
    refined = refine_mask(weight, gram, start, Unstructured(0.5))
    assert sum(errors(weight, gram, refined)) < 1.0001 * sum(errors(weight, gram, best))


@pytest.mark.parametrize("kept", [0, 1, 2, 39, 40])
def test_rows_with_next_to_nothing_to_swap(kept: int) -> None:
    weight, gram = layer(4, 40)
    mask = torch.arange(40).expand(4, 40) < kept
    refined = refine_mask(weight, gram, mask, Unstructured(0.5))
    assert (refined.sum(1) == kept).all()
    for row, error in enumerate(errors(weight, gram, refined)):
        assert best_swap(weight[row], gram, refined[row], 40)[0] >= error * (1 - 1e-4)


def test_groups_that_break_the_pattern_keep_their_own_counts() -> None:
    weight, gram = layer(4, 12)
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[:, 4:8] = False
    mask[:, 8] = False
    refined = refine_mask(weight, gram, mask, SemiStructured(2, 4))
    assert torch.equal(refined.view(4, 3, 4).sum(2), mask.view(4, 3, 4).sum(2))


def test_more_rows_than_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = layer(20, 40)
    mask = random_mask(weight, Unstructured(0.5), 0)
    whole = refine_mask(weight, gram, mask, Unstructured(0.5))
    monkeypatch.setattr("pruner_zero.sparsity.steps.swaps._ROWS", 7)
    parts = refine_mask(weight, gram, mask, Unstructured(0.5))
    assert sum(errors(weight, gram, parts)) == pytest.approx(
        sum(errors(weight, gram, whole)), rel=1e-3
    )


def test_groups_of_as_many_rows_as_memory_holds_are_swapped_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, gram = layer(20, 40)
    mask = random_mask(weight, SemiStructured(2, 4), 0)
    whole = refine_mask(weight, gram, mask, SemiStructured(2, 4))
    sizes: list[int] = []
    pairs_of_groups = swaps._pairs_of_groups

    def noted(W: Tensor, C: Tensor, mask: Tensor, change: Tensor, m: int) -> tuple[Tensor, Tensor]:
        sizes.append(W.numel() * m)
        return pairs_of_groups(W, C, mask, change, m)

    monkeypatch.setattr(swaps, "_pairs_of_groups", noted)
    monkeypatch.setattr(swaps, "_PAIRS", 7 * 40 * 4)
    assert torch.equal(refine_mask(weight, gram, mask, SemiStructured(2, 4)), whole)
    assert max(sizes) == 7 * 40 * 4
