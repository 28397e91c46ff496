"""The closed-form rungs are the formulas on all rows, and an estimate of them on some rows."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pruner_zero.choices import Scope
from pruner_zero.evolution.row_sample import (
    SampledMatrix,
    closed_form_error,
    sample_matrix,
    sampled_masks,
    stack,
)
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.scoring import ScoreError
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured


def matrices(rows: int) -> tuple[list[SampledMatrix], list[Tensor], list[Tensor]]:
    """Two matrices sampled at `rows` rows, their dense weights and Gram matrices."""
    generator = torch.Generator().manual_seed(0)
    sample, dense, grams = [], [], []
    for index, (outputs, inputs) in enumerate([(12, 8), (20, 16)]):
        weight = torch.randn(outputs, inputs, generator=generator)
        tokens = torch.randn(64, inputs, generator=generator)
        gram = tokens.T @ tokens
        statistics = {
            "X": gram.diagonal().sqrt()[None],
            "G": torch.rand(outputs, inputs, generator=generator),
        }
        sample.append(sample_matrix(f"m{index}", 0, weight, statistics, gram, rows))
        dense.append(weight)
        grams.append(gram)
    return sample, dense, grams


def pruned_rank(values: Tensor, share: float) -> Tensor:
    """A plain stable sort: True where a weight of a flat group is kept."""
    keep = torch.ones_like(values, dtype=torch.bool)
    keep[values.sort(stable=True).indices[: math.floor(len(values) * share)]] = False
    return keep


@pytest.mark.parametrize("scope", ["row", "matrix", "global"])
def test_on_all_rows_the_masks_are_those_of_the_whole_model(scope: Scope) -> None:
    sample, dense, grams = matrices(rows=100)
    masks = sampled_masks(sample, parse("W * X"), scope, Unstructured(0.5))
    scores = [
        weight.abs() * gram.diagonal().sqrt() for weight, gram in zip(dense, grams, strict=True)
    ]
    if scope == "global":
        flat = pruned_rank(torch.cat([values.flatten() for values in scores]), 0.5)
        wanted = list(flat.split([values.numel() for values in scores]))
    elif scope == "matrix":
        wanted = [pruned_rank(values.flatten(), 0.5) for values in scores]
    else:
        wanted = [torch.cat([pruned_rank(row, 0.5) for row in values]) for values in scores]
    for mask, expected in zip(masks, wanted, strict=True):
        assert torch.equal(mask.flatten(), expected)


def test_an_nm_pattern_is_its_own_group_whatever_the_scope() -> None:
    sample, _, _ = matrices(rows=100)
    row = sampled_masks(sample, parse("W * X"), "row", SemiStructured(2, 4))
    everything = sampled_masks(sample, parse("W * X"), "global", SemiStructured(2, 4))
    for row_mask, global_mask in zip(row, everything, strict=True):
        assert torch.equal(row_mask, global_mask)
        assert (row_mask.view(-1, 4).sum(1) == 2).all()


def test_the_closed_form_error_weighs_rows_by_gradient_and_matrices_by_their_loss() -> None:
    sample, dense, grams = matrices(rows=100)
    masks = sampled_masks(sample, parse("W"), "global", Unstructured(0.5))
    total = 0.0
    for matrix, weight, gram, mask in zip(sample, dense, grams, masks, strict=True):
        removed = weight * ~mask
        lost = torch.trace(removed @ gram @ removed.T) / torch.trace(weight @ gram @ weight.T)
        felt = 0.0
        for row in range(weight.shape[0]):
            energy = matrix.terminals["G"][row].square().sum() / gram.diagonal().sum()
            felt += float(energy * (removed[row] @ gram @ removed[row]))
        total += felt / float(1 - lost) ** 8
    assert closed_form_error(sample, masks) == pytest.approx(math.log(total), rel=1e-5)


def test_with_prices_half_of_each_row_by_wanda_costs_what_was_measured() -> None:
    sample, dense, grams = matrices(rows=6)
    priced = []
    for matrix, weight, gram, price in zip(sample, dense, grams, (0.02, 0.5), strict=True):
        terminals = {name: values for name, values in matrix.terminals.items() if name == "X"}
        terminals |= {"G": weight.abs(), "P": torch.full((1, 1), price / weight.numel())}
        priced.append(sample_matrix(matrix.name, 0, weight, terminals, gram, 6))
    masks = sampled_masks(priced, parse("W * X"), "row", Unstructured(0.5))
    assert closed_form_error(priced, masks) == pytest.approx(math.log(0.52), rel=1e-5)
    for matrix, mask, price in zip(priced, masks, (0.02, 0.5), strict=True):
        assert float(matrix.cost(mask)) == pytest.approx(price, rel=1e-5)
        assert float(matrix.cost(torch.zeros_like(mask))) > price
    stacked = stack([priced[0], replace(priced[0], name="m2")])
    assert stacked[0].cost(torch.stack([masks[0]] * 2)).tolist() == pytest.approx([0.02, 0.02])


def test_a_matrix_of_which_nothing_costs_anything_keeps_the_closed_form() -> None:
    weight, gram = torch.randn(4, 8), torch.zeros(8, 8)
    terminals = {"X": torch.zeros(1, 8), "P": torch.zeros(1, 1)}
    assert float(sample_matrix("m", 0, weight, terminals, gram, 4).scale) == 1


def test_without_gradients_the_closed_form_error_is_the_share_of_the_output_that_is_lost() -> None:
    sample, dense, grams = matrices(rows=100)
    blind = [replace(matrix, sensitivity=None) for matrix in sample]
    masks = sampled_masks(blind, parse("W"), "row", Unstructured(0.5))
    total = 0.0
    for weight, gram, mask in zip(dense, grams, masks, strict=True):
        removed = weight * ~mask
        lost = torch.trace(removed @ gram @ removed.T) / torch.trace(weight @ gram @ weight.T)
        total += float(lost) / (1 - float(lost)) ** 8
    assert closed_form_error(blind, masks) == pytest.approx(math.log(total), rel=1e-5)


def test_a_matrix_that_is_pruned_away_costs_much_but_not_endlessly() -> None:
    sample, dense, _ = matrices(rows=100)
    gone = [torch.zeros_like(weight, dtype=torch.bool) for weight in dense]
    half = sampled_masks(sample, parse("W"), "row", Unstructured(0.5))
    errors = [closed_form_error(sample, masks) for masks in (half, [gone[0], half[1]], gone)]
    assert errors == sorted(errors)
    assert math.isfinite(errors[-1])


def test_some_rows_stand_for_all_of_them() -> None:
    sample, dense, _ = matrices(rows=5)
    assert [matrix.weight.shape[0] for matrix in sample] == [5, 5]
    assert [matrix.share for matrix in sample] == [12 / 5, 20 / 5]
    assert torch.equal(sample[0].weight[0], dense[0][0])
    assert torch.equal(sample[0].weight[-1], dense[0][-1])
    assert sample[0].terminals["G"].shape == (5, 8)


def test_a_column_is_cut_to_the_rows_and_weighs_them() -> None:
    _, dense, grams = matrices(rows=5)
    column = torch.rand(12, 1, generator=torch.Generator().manual_seed(1))
    X = (grams[0].diagonal() / 2).sqrt()[None]
    rows = [0, 3, 6, 8, 11]
    from_outputs = sample_matrix("m", 0, dense[0], {"X": X, "O": column}, grams[0], 5)
    assert torch.equal(from_outputs.terminals["O"], column[rows])
    # The sensitivity is what O * X in the place of G would give.
    from_gradients = sample_matrix("m", 0, dense[0], {"X": X, "G": column * X}, grams[0], 5)
    assert from_outputs.sensitivity is not None
    assert from_gradients.sensitivity is not None
    torch.testing.assert_close(from_outputs.sensitivity, from_gradients.sensitivity)
    [mask] = sampled_masks([from_outputs], parse("W * O"), "matrix", Unstructured(0.5))
    expected = pruned_rank((dense[0].abs() * column)[rows].flatten(), 0.5)
    assert torch.equal(mask.flatten(), expected)


def of_blocks(blocks: int) -> list[SampledMatrix]:
    """In each block two matrices of one input and one shape, and one of another."""
    generator = torch.Generator().manual_seed(2)
    sample = []
    for block in range(blocks):
        for inputs, outputs in [(16, [12, 12]), (24, [20])]:
            tokens = torch.randn(64, inputs, generator=generator)
            gram = (tokens.T @ tokens).bfloat16()
            for place, rows in enumerate(outputs):
                weight = torch.randn(rows, inputs, generator=generator)
                statistics = {
                    "X": gram.diagonal().float().sqrt()[None],
                    "O": torch.rand(rows, 1, generator=generator),
                    "G": torch.rand(rows, inputs, generator=generator),
                }
                name = f"{block}.{inputs}.{place}"
                sample.append(sample_matrix(name, block, weight, statistics, gram, 6))
    return sample


@pytest.mark.parametrize(
    ("pattern", "scope"),
    [
        *((Unstructured(0.5), scope) for scope in ("row", "block", "matrix", "global")),
        (SemiStructured(2, 4), "row"),
    ],
)
@pytest.mark.parametrize("expression", ["mms(W) * X^0.5", "O * column_share(G) * W + 0.5", "S"])
def test_a_stack_is_masked_and_judged_like_its_matrices(
    pattern: Pattern, scope: Scope, expression: str
) -> None:
    sample = of_blocks(3)
    masks = sampled_masks(sample, parse(expression), scope, pattern)
    stacks = stack(list(sample))
    # Equal shapes come together, those of one input apart.
    places = [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert [len(stacked.weight) for stacked in stacks] == [3, 3, 3]
    stacked_masks = sampled_masks(stacks, parse(expression), scope, pattern)
    for where, stacked, mask in zip(places, stacks, stacked_masks, strict=True):
        for place, alike, cost in zip(where, mask, stacked.cost(mask), strict=True):
            assert torch.equal(alike, masks[place]), sample[place].name
            torch.testing.assert_close(cost, sample[place].cost(masks[place]))
    expected = pytest.approx(closed_form_error(sample, masks))
    assert closed_form_error(stacks, stacked_masks) == expected


def test_a_gram_matrix_of_several_matrices_is_stacked_once() -> None:
    sample = of_blocks(2)
    distinct = {id(matrix.gram): matrix.gram.numel() for matrix in sample}
    first, second, third = stack(sample)
    assert first.gram is second.gram
    assert first.gram.numel() + third.gram.numel() == sum(distinct.values())


def test_a_matrix_that_calibration_never_reached_is_in_no_stack() -> None:
    sample = of_blocks(2)
    unreached = {name: torch.zeros_like(value) for name, value in sample[0].terminals.items()}
    sample[0] = replace(sample[0], terminals={**unreached, "W": sample[0].terminals["W"]})
    lone, *stacks = stack(list(sample))
    assert lone is sample[0]
    masks = sampled_masks([lone, *stacks], parse("W * X"), "row", Unstructured(0.5))
    assert torch.equal(masks[0], sampled_masks([lone], parse("W"), "row", Unstructured(0.5))[0])


def test_more_blocks_take_no_more_operations() -> None:
    def operations(blocks: int) -> int:
        stacks = stack(of_blocks(blocks))
        with torch.profiler.profile() as profile:
            masks = sampled_masks(stacks, parse("W * (O * X)^0.75"), "row", Unstructured(0.5))
            closed_form_error(stacks, masks)
        # The operations inside another one depend on the processor.
        outer = [event for event in profile.events() if event.cpu_parent is None]
        return sum("aten::" in event.name for event in outer)

    # What the first call finds out about the expression is kept.
    operations(1)
    assert 0 < operations(16) == operations(4)


def test_one_matrix_of_a_stack_without_scores_rejects_the_metric() -> None:
    sample = of_blocks(2)
    sample[0].terminals["G"].fill_(torch.inf)
    stacks = stack(sample)
    with pytest.raises(ScoreError, match="scores are not finite"):
        sampled_masks(stacks, parse("G * W"), "row", Unstructured(0.5))
    equal = of_blocks(2)
    equal[0].terminals["G"].fill_(1)
    with pytest.raises(ScoreError, match=r"all 96 scores equal 1\.0"):
        sampled_masks(stack(equal), parse("G"), "row", Unstructured(0.5))
