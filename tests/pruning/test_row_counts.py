"""Masks by counts of zeros in rows are those that the scores of the whole model give."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruner_zero.metric.grammar import parse
from pruner_zero.metric.metric import Metric
from pruner_zero.metric.operators import OPERATORS
from pruner_zero.models.matrices import Matrix
from pruner_zero.pruning.masks import Statistics, masks_of
from pruner_zero.pruning.recipe import Scored
from pruner_zero.pruning.row_counts import by_rank, row_counts
from pruner_zero.sparsity.selection import Unstructured


def matrices_of(shapes: list[tuple[int, int]], seed: int = 0) -> list[Matrix]:
    generator = torch.Generator().manual_seed(seed)
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    return [Matrix(f"m{number}", number, w, f"m{number}") for number, w in enumerate(weights)]


def statistics_of(matrices: list[Matrix], seed: int = 0) -> dict[str, Statistics]:
    generator = torch.Generator().manual_seed(seed)
    return {
        m.name: Statistics(
            {
                "X": 0.1 + torch.rand(1, m.weight.shape[1], generator=generator),
                "P": torch.rand(1, 1, generator=generator).double().exp().float(),
            }
        )
        for m in matrices
    }


def masks(
    matrices: list[Matrix], text: str, sparsity: float, statistics: dict[str, Statistics]
) -> dict[str, Tensor]:
    chosen = Scored(Metric.of(text), Unstructured(sparsity, "global"))
    result = masks_of(matrices, chosen, lambda matrix: statistics[matrix.name])
    kept = {matrix.name: result[matrix.name].kept for matrix in matrices}
    return {name: mask for name, mask in kept.items() if mask is not None}


SHAPES = st.lists(st.tuples(st.integers(1, 5), st.integers(2, 20)), min_size=1, max_size=5)


@given(SHAPES, st.sampled_from([0.0, 0.2, 0.5, 0.77, 0.95]), st.integers(0, 99))
def test_they_are_those_of_all_scores(
    shapes: list[tuple[int, int]], sparsity: float, seed: int
) -> None:
    matrices, text = matrices_of(shapes, seed), "row_odds(W * X)^2 * P^0.5"
    statistics = statistics_of(matrices, seed)
    by_count = masks(matrices, text, sparsity, statistics)
    # An added zero hides the form.
    plain = masks(matrices, f"{text} + 0 * W", sparsity, statistics)
    assert by_rank(parse(f"{text} + 0 * W")) is None
    assert by_count.keys() == plain.keys()
    for name in by_count:
        assert torch.equal(by_count[name], plain[name])


def test_equal_odds_go_by_lowest_matrix_and_row() -> None:
    matrices = matrices_of([(3, 4), (2, 4)])
    counts = row_counts(matrices, OPERATORS["row_odds"], lambda _: 1.0, 0.35)
    # Of 20 weights 7 go: the lowest of each of five rows, and the second one of two rows.
    assert counts.zeros == {"m0": (1, 2), "m1": (1, 0)}
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert counts.choose({"m0": scores.expand(3, 4)})["m0"].sum(1).tolist() == [2, 2, 3]


def test_a_dearer_matrix_keeps_more() -> None:
    matrices = matrices_of([(4, 100), (4, 100)])
    zeros = row_counts(
        matrices, OPERATORS["row_odds"], lambda m: 9.0 if m.name == "m0" else 1.0, 0.5
    ).zeros
    # Odds of a third and of three: a logistic function of the logarithm of the factor.
    assert zeros == {"m0": (25, 0), "m1": (75, 0)}


def test_a_matrix_without_a_price_does_not_compete() -> None:
    matrices = matrices_of([(4, 10), (4, 10)])
    statistics = statistics_of(matrices)
    statistics["m0"].values["P"].zero_()
    kept = masks(matrices, "row_odds(W * X) * P^0.5", 0.3, statistics)
    assert [int((~kept[name]).sum()) for name in ("m0", "m1")] == [12, 12]


@pytest.mark.parametrize(
    ("text", "inside", "factor"),
    [
        ("row_odds(W * X) * P^0.5", "W * X", "sqrt(P)"),
        ("3 * row_odds(W)^2 * P", "W", "sqrt(P)"),
        ("row_odds(W) / D", None, None),
        ("row_odds(W) * small(W)", None, None),
        ("row_odds(W) * small(P) * exp(P)", "W", "exp(P) * small(P)"),
        ("row_odds(W) * row_odds(X * W)", None, None),
        ("row_odds(W) * W * P", None, None),
        ("-row_odds(W) * P", None, None),
        ("row_odds(W)^-1 * P", None, None),
        ("W * P", None, None),
    ],
)
def test_products_of_ranks_and_numbers_of_the_matrix_are_told_from_others(
    text: str, inside: str | None, factor: str | None
) -> None:
    parts = by_rank(parse(text))
    known = None if inside is None or factor is None else (parse(inside), parse(factor))
    assert (parts and (parts[0].operands[0], parts[1])) == known
